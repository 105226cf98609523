//! A guardian with a flight recorder: whatever changes it goes through here, and is recorded.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Deref;

use crate::guardian::Guardian;
use crate::guardian::io::{Effect, Input, Now};
use crate::guardian::report::Report;
use crate::guardian::settings::Settings;
use crate::model::record::Records;
use crate::recording::format::{Beginning, Checkpoint, Recording, RecordingLine};
use crate::recording::maps::Maps;

/// What a recording may take, in bytes as it is kept: minutes of a large cluster in turmoil, days of one at rest.
pub const LIMIT: usize = 4 << 20;

/// A guardian, and the recording of it. To be looked at like the guardian itself.
#[derive(Debug)]
pub struct Recorder {
    guardian: Guardian,
    effects: VecDeque<Effect>,
    recording: Recording,
}

impl Recorder {
    /// A guardian that begins with this; its recording takes so many bytes at most.
    pub fn new(settings: Settings, records: Records, now: Now, limit: usize) -> Self {
        let begin = Beginning { version: version(), settings, records, now };
        let mut recording = Recording::new(limit);
        recording.begin(&RecordingLine { begin: Some(Cow::Borrowed(&begin)), ..RecordingLine::default() });
        let guardian = Guardian::new(begin.settings, begin.records, now);
        Self { guardian, effects: VecDeque::new(), recording }
    }

    /// Takes in what happened, and decides what to do at once: so effects are a function of inputs and their times.
    pub fn handle(&mut self, now: Now, input: Input) {
        if self.recording.is_long() {
            self.recording.turn();
            let maps = Maps::of(&mut self.guardian);
            let checkpoint = Checkpoint { version: version(), guardian: Cow::Borrowed(&self.guardian), maps };
            self.recording.begin(&RecordingLine { checkpoint: Some(checkpoint), ..RecordingLine::default() });
        }
        // Written first: should the guardian fail on it, this is what it failed on.
        self.recording.input(now, &input);
        for effect in step(&mut self.guardian, now, input) {
            self.recording
                .write(&RecordingLine { effect: Some(Cow::Borrowed(&effect)), ..RecordingLine::default() });
            self.effects.push_back(effect);
        }
    }

    /// What to do next; `None` when nothing is to be done before the next input.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// What is to be told next.
    pub fn next_report(&mut self) -> Option<Report> {
        self.guardian.next_report()
    }

    /// Other settings, from now on.
    pub fn reconfigure(&mut self, settings: Settings) {
        self.recording
            .write(&RecordingLine { settings: Some(Cow::Borrowed(&settings)), ..RecordingLine::default() });
        self.guardian.reconfigure(settings);
    }

    /// The recording as it is now, compressed (gzip).
    pub fn recording(&mut self) -> Vec<u8> {
        self.recording.bytes()
    }
}

impl Deref for Recorder {
    type Target = Guardian;

    fn deref(&self) -> &Guardian {
        &self.guardian
    }
}

/// One input, and every effect it leads to.
pub(super) fn step(guardian: &mut Guardian, now: Now, input: Input) -> Vec<Effect> {
    guardian.handle(now, input);
    std::iter::from_fn(|| guardian.next_effect(now)).collect()
}

fn version() -> String {
    crate::VERSION.to_owned()
}
