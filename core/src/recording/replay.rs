//! A recording, replayed: the same inputs into a fresh guardian, and every effect compared.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use serde::Serialize;
use serde_json::Value;

use crate::guardian::Guardian;
use crate::guardian::io::{Effect, Input, Now};
use crate::recording::format::{Checkpoint, Kind, RecordingLine, RepeatedInput};
use crate::recording::maps::Maps;
use crate::recording::recorder::step;

/// What a recording holds, where it replays exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// Of the program that made it.
    pub version: String,
    /// When it begins.
    pub from: Now,
    /// When it ends.
    pub to: Now,
    /// How many inputs it has.
    pub inputs: usize,
    /// How many effects it has.
    pub effects: usize,
    /// How often all that the guardian knew was compared as well.
    pub checkpoints: usize,
}

/// Where a recording does not replay. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The text is no line of a recording.
    #[error("line {line} is no line of a recording: {why}")]
    Damaged { line: usize, why: String },
    /// It does not say where the guardian begins.
    #[error(
        "line {line} has neither `begin` nor `checkpoint`, and nothing before it has: what came before is missing"
    )]
    NoBeginning { line: usize },
    #[error("there is nothing in it")]
    Empty,
    #[error(
        "line {line}: recorded (version {version}): {recorded}; this version ({}): {replayed}",
        crate::VERSION
    )]
    Effect {
        /// Of the effect, or of what follows where an effect is missing.
        line: usize,
        /// Of the program that made the recording.
        version: String,
        /// As JSON; `nothing` for none.
        recorded: String,
        /// As JSON; `nothing` for none.
        replayed: String,
    },
    /// The same decisions so far, on the ground of something else.
    #[error(
        "line {line}: the guardian knows something else at this checkpoint (version {version}): {field}: recorded {recorded}, this version ({}) {replayed}",
        crate::VERSION
    )]
    State {
        line: usize,
        /// Of the program that made the recording.
        version: String,
        field: String,
        /// As JSON.
        recorded: String,
        /// As JSON.
        replayed: String,
    },
}

/// Replays a recording, compressed or not.
///
/// # Errors
/// The first difference.
pub fn replay(recording: impl Read) -> Result<Replayed, Difference> {
    let mut replay = Replay::default();
    let mut number = 0;
    for line in lines(recording) {
        number += 1;
        let damaged = |why: String| Difference::Damaged { line: number, why };
        let line = line.map_err(|error| damaged(error.to_string()))?;
        let line: RecordingLine<'_> =
            serde_json::from_str(&line).map_err(|error| damaged(error.to_string()))?;
        replay.line(number, line)?;
    }
    replay.end(number + 1)
}

fn lines<'r>(recording: impl Read + 'r) -> impl Iterator<Item = io::Result<String>> + 'r {
    let mut recording = BufReader::new(recording);
    // RFC 1952: what begins with these two is compressed; JSON does not begin so.
    let compressed = recording.fill_buf().is_ok_and(|begin| begin.starts_with(&[0x1f, 0x8b]));
    let plain: Box<dyn BufRead + '_> = if compressed {
        Box::new(BufReader::new(MultiGzDecoder::new(recording)))
    } else {
        Box::new(recording)
    };
    plain.lines()
}

/// How far it came.
#[derive(Default)]
struct Replay {
    guardian: Option<Guardian>,
    /// What the guardian wants because of the last input, as far as it was not compared yet.
    wants: VecDeque<Effect>,
    last: BTreeMap<Kind, Input>,
    version: String,
    times: Option<(Now, Now)>,
    inputs: usize,
    effects: usize,
    checkpoints: usize,
}

impl Replay {
    fn line(&mut self, line: usize, says: RecordingLine<'_>) -> Result<(), Difference> {
        match says {
            RecordingLine { effect: Some(effect), at: None, input: None, .. } => {
                let wanted = self.wants.pop_front();
                self.compare(line, Some(effect.into_owned()), wanted)?;
                self.effects += 1;
            }
            RecordingLine { begin: Some(begin), .. } => {
                self.no_more(line)?;
                let begin = begin.into_owned();
                self.version = begin.version;
                self.guardian = Some(Guardian::new(begin.settings, begin.records, begin.now));
                self.passes(begin.now);
            }
            RecordingLine { checkpoint: Some(checkpoint), .. } => {
                self.no_more(line)?;
                let Checkpoint { version, guardian, maps } = checkpoint;
                let mut recorded = guardian.into_owned();
                self.version = version;
                // Readings refer to those of the same part.
                self.last.clear();
                if let Some(mut replayed) = self.guardian.take() {
                    let known = Maps::of(&mut replayed);
                    self.same(line, (&recorded, &maps), (&replayed, &known))?;
                    self.checkpoints += 1;
                }
                self.passes(recorded.now);
                maps.give_to(&mut recorded);
                self.guardian = Some(recorded);
            }
            RecordingLine { settings: Some(settings), .. } => {
                self.no_more(line)?;
                self.guardian(line)?.reconfigure(settings.into_owned());
            }
            RecordingLine { at: Some(at), input: Some(input), .. } => {
                self.input(line, at, input.into_owned())?
            }
            RecordingLine { at: Some(at), again: Some(again), .. } => {
                let why = || format!("there is no {:?} before it that it could repeat", again.kind);
                let last = self.last.get(&again.kind);
                let input = last.map(|last| again.input(last));
                self.input(line, at, input.ok_or_else(|| Difference::Damaged { line, why: why() })?)?;
            }
            RecordingLine { .. } => {
                return Err(Difference::Damaged { line, why: "it says nothing that is known".to_owned() });
            }
        }
        Ok(())
    }

    fn input(&mut self, line: usize, at: Now, input: Input) -> Result<(), Difference> {
        self.no_more(line)?;
        if let Some((again, _)) = RepeatedInput::of(&input) {
            self.last.insert(again.kind, input.clone());
        }
        self.wants = step(self.guardian(line)?, at, input).into();
        // What is told is not recorded.
        while self.guardian(line)?.next_report().is_some() {}
        self.inputs += 1;
        self.passes(at);
        Ok(())
    }

    fn guardian(&mut self, line: usize) -> Result<&mut Guardian, Difference> {
        self.guardian.as_mut().ok_or(Difference::NoBeginning { line })
    }

    fn passes(&mut self, now: Now) {
        self.times = Some((self.times.map_or(now, |(from, _)| from), now));
    }

    /// Before anything but an effect: whatever the guardian wants was recorded.
    fn no_more(&mut self, line: usize) -> Result<(), Difference> {
        let wanted = self.wants.pop_front();
        self.compare(line, None, wanted)
    }

    fn compare(
        &self,
        line: usize,
        recorded: Option<Effect>,
        replayed: Option<Effect>,
    ) -> Result<(), Difference> {
        if recorded == replayed {
            return Ok(());
        }
        let text = |effect: Option<Effect>| {
            effect.map_or_else(|| "nothing".to_owned(), |effect| json(&effect).to_string())
        };
        let (version, recorded, replayed) = (self.version.clone(), text(recorded), text(replayed));
        Err(Difference::Effect { line, version, recorded, replayed })
    }

    fn same(
        &self,
        line: usize,
        recorded: (&Guardian, &Maps),
        replayed: (&Guardian, &Maps),
    ) -> Result<(), Difference> {
        let known = |(guardian, maps): (&Guardian, &Maps)| {
            let mut known = json(guardian);
            known["maps"] = json(maps);
            known
        };
        let (recorded, replayed) = (known(recorded), known(replayed));
        let fields = recorded.as_object().into_iter().flatten();
        let differs = fields.map(|(field, value)| (field, value, &replayed[field])).find(|(_, a, b)| a != b);
        differs.map_or(Ok(()), |(field, recorded, replayed)| {
            let (field, version) = (field.clone(), self.version.clone());
            let (recorded, replayed) = (recorded.to_string(), replayed.to_string());
            Err(Difference::State { line, version, field, recorded, replayed })
        })
    }

    fn end(mut self, line: usize) -> Result<Replayed, Difference> {
        self.no_more(line)?;
        let (from, to) = self.times.ok_or(Difference::Empty)?;
        let Self { version, inputs, effects, checkpoints, .. } = self;
        Ok(Replayed { version, from, to, inputs, effects, checkpoints })
    }
}

fn json(what: &impl Serialize) -> Value {
    serde_json::to_value(what).unwrap_or_default()
}
