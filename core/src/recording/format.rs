//! What went into a guardian and what came out of it, a line each, in memory that is bounded.
//!
//! A recording begins with all that the guardian knew, so that everything it decides can be had again from the inputs
//! that follow ([`replay`](crate::recording::replay::replay)). It is kept in parts that each begin so; when there are too many, the
//! oldest goes. Each part is compressed as it is written: clusters are large, and their readings much alike.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{self, Write};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use crate::guardian::Guardian;
use crate::guardian::io::{Effect, Input, Now};
use crate::guardian::settings::Settings;
use crate::model::image_users::ImageUse;
use crate::model::incus_snapshot::IncusSnapshot;
use crate::model::osdmap::{DataPools, OsdMap};
use crate::model::record::Records;
use crate::recording::maps::Maps;

/// One line: a JSON object with what applies of these.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordingLine<'a> {
    /// A guardian begins, with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin: Option<Cow<'a, Beginning>>,
    /// A guardian goes on, with all it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint<'a>>,
    /// Other settings, from here on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<Cow<'a, Settings>>,
    /// When the input came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Now>,
    /// It took this in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Cow<'a, Input>>,
    /// It took in a reading that says what the last one of its kind says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<RepeatedInput>,
    /// It wanted this, because of the input above and at its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Cow<'a, Effect>>,
}

/// What a guardian begins with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Beginning {
    /// Of the program that made the recording.
    pub version: String,
    /// What it goes by.
    pub settings: Settings,
    /// What the ledger holds.
    pub records: Records,
    pub now: Now,
}

/// All that a guardian knows, where what led to it is not in the recording any more.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checkpoint<'a> {
    /// Of the program that made the recording.
    pub version: String,
    /// The guardian, without its maps.
    pub guardian: Cow<'a, Guardian>,
    pub maps: Maps,
}

/// A reading that brought nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepeatedInput {
    pub kind: Kind,
    /// When it began, where that counts.
    pub began: Duration,
}

/// Readings that are large, and mostly say what the last one said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Of the platform, without instances and volumes.
    Glance,
    /// Of the platform, with all.
    Whole,
    Maps,
    Sweep,
}

/// What one says.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub enum RecordingRead<'a> {
    View(&'a IncusSnapshot),
    Maps(&'a [OsdMap]),
    /// Users of images, what could not be read, and where their data lies.
    Sweep(&'a [ImageUse], &'a [String], &'a DataPools),
}

impl RepeatedInput {
    /// An input apart from what it reads, and what that is; `None` for inputs that are kept whole.
    pub fn of(input: &Input) -> Option<(Self, RecordingRead<'_>)> {
        match input {
            Input::View { began, view: Ok(view) } => {
                let kind = if view.volumes.is_some() { Kind::Whole } else { Kind::Glance };
                Some((Self { kind, began: *began }, RecordingRead::View(view)))
            }
            Input::Maps(Ok(maps)) => {
                Some((Self { kind: Kind::Maps, began: Duration::ZERO }, RecordingRead::Maps(maps)))
            }
            Input::Swept { began, uses, unread, data_pools } => Some((
                Self { kind: Kind::Sweep, began: *began },
                RecordingRead::Sweep(uses, unread, data_pools),
            )),
            Input::Tick
            | Input::Notice(_)
            | Input::View { view: Err(_), .. }
            | Input::MemberState(..)
            | Input::Answered(_)
            | Input::Networks(..)
            | Input::Pinged(..)
            | Input::Looked(_)
            | Input::Maps(Err(_))
            | Input::Audit(..)
            | Input::Found { .. }
            | Input::Recorded(_)
            | Input::Step(..)
            | Input::Retired(..)
            | Input::GatePut(_)
            | Input::GatePushed(_)
            | Input::LockBroken(..)
            | Input::Started(..)
            | Input::Request(..)
            | Input::Deposed(_) => None,
        }
    }

    /// The input, by the last one of its kind.
    pub fn input(self, last: &Input) -> Input {
        let mut input = last.clone();
        if let Input::View { began, .. } | Input::Swept { began, .. } = &mut input {
            *began = self.began;
        }
        input
    }
}

/// Lines, the newest last, in parts that each can be replayed from their beginning.
#[derive(Debug)]
pub(super) struct Recording {
    /// Of the parts together, in bytes, without what each begins with.
    limit: usize,
    parts: VecDeque<Vec<u8>>,
    /// The part that is being written.
    open: GzEncoder<Vec<u8>>,
    /// How long it was when its beginning was written.
    began_at: usize,
    /// What the last reading of each kind in this part says, as a digest: two that differ with the same digest are less
    /// likely than a memory error.
    said: BTreeMap<Kind, u64>,
}

impl Recording {
    /// Nothing is written yet.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, parts: VecDeque::new(), open: part(), began_at: 0, said: BTreeMap::new() }
    }

    /// Writes what the open part begins with.
    pub(super) fn begin(&mut self, line: &RecordingLine<'_>) {
        self.write(line);
        // So that its length is known: the rest comes in blocks.
        let _ = self.open.flush();
        self.began_at = self.open.get_ref().len();
    }

    /// Writes an input, or that it is the last one again.
    pub(super) fn input(&mut self, at: Now, input: &Input) {
        if let Some((again, reading)) = RepeatedInput::of(input) {
            let says = digest(&reading);
            if self.said.insert(again.kind, says) == Some(says) {
                self.write(&RecordingLine { at: Some(at), again: Some(again), ..RecordingLine::default() });
                return;
            }
        }
        self.write(&RecordingLine {
            at: Some(at),
            input: Some(Cow::Borrowed(input)),
            ..RecordingLine::default()
        });
    }

    pub(super) fn write(&mut self, line: &RecordingLine<'_>) {
        // Memory takes everything, and everything has a form in JSON (a test writes each).
        let _ = serde_json::to_writer(&mut self.open, line);
        let _ = self.open.write_all(b"\n");
    }

    /// Is a new part due?
    pub(super) fn is_long(&self) -> bool {
        self.open.get_ref().len().saturating_sub(self.began_at) >= self.limit / 4
    }

    /// Closes the open part; the next one is to be begun. What is too much goes, the oldest first.
    pub(super) fn turn(&mut self) {
        self.said.clear();
        let closed = self.close();
        self.parts.push_back(closed);
        while self.parts.len() > 1 && self.parts.iter().map(Vec::len).sum::<usize>() > self.limit / 4 * 3 {
            self.parts.pop_front();
        }
    }

    /// All of it, as a file has it (gzip: RFC 1952, whose members may follow each other).
    pub(super) fn bytes(&mut self) -> Vec<u8> {
        let open = self.close();
        let bytes = self.parts.iter().chain([&open]).flatten().copied().collect();
        // The part goes on, in another member.
        self.open = GzEncoder::new(open, Compression::fast());
        bytes
    }

    fn close(&mut self) -> Vec<u8> {
        std::mem::replace(&mut self.open, part()).finish().unwrap_or_default()
    }
}

fn part() -> GzEncoder<Vec<u8>> {
    GzEncoder::new(Vec::new(), Compression::fast())
}

fn digest(reading: &RecordingRead<'_>) -> u64 {
    let mut digest = Digest(DefaultHasher::new());
    let _ = serde_json::to_writer(&mut digest, reading);
    digest.0.finish()
}

struct Digest(DefaultHasher);

impl Write for Digest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
