//! What the guardian tells: state changes as they happen, alarms as long as they last, answers to requests.

use std::collections::VecDeque;

use serde::Serialize;

use crate::model::barrier::PoolProof;
use crate::model::record::FenceRecord;
use crate::rules::refusal::Refusal;

/// Something to tell.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// A line of the log.
    Log {
        level: Level,
        /// A stable word for filters: `sealed`, `gate-closed`.
        code: &'static str,
        /// The member, if it is about one.
        member: Option<String>,
        /// In words, with what to do.
        text: String,
    },
    /// The answer to a request.
    Answer(u64, Outcome),
}

/// How loud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// A step of no interest unless something is looked for.
    Debug,
    /// A state changed as it should.
    Info,
    /// Something is not as it should be, and the guardian goes on with it.
    Warn,
    /// Somebody must act.
    Error,
}

/// What a request came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Sealed: every PG proved.
    Sealed(Box<FenceRecord>, Vec<PoolProof>),
    Released(Box<FenceRecord>),
    /// Nothing was done, for each of these reasons.
    Refused(Vec<Refusal>),
    /// It is in the trail.
    Noted,
    /// It cannot be done.
    Failed(String),
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(vec![refusal])
    }
}

/// Something that is not as it should be, as long as it is not. Told when it begins and when it ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Alarm {
    /// A stable word: `breached`, `returned-stale`, `stranded`, `gate-partial`.
    pub code: &'static str,
    /// The member, if it is about one.
    pub member: Option<String>,
    pub text: String,
    /// What of it stays the same while the text names one item after another, so that it is told once; `None`: all of it.
    #[serde(skip)]
    pub about: Option<String>,
    /// What to do, as commands that can be typed, or in words.
    pub advice: Vec<String>,
}

impl Alarm {
    /// One whose whole text stays the same.
    pub(super) fn new(code: &'static str, member: Option<&str>, text: String, advice: Vec<String>) -> Self {
        Self { code, member: member.map(str::to_owned), text, about: None, advice }
    }
}

/// What is to be told, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Reports(VecDeque<Report>);

impl Reports {
    pub(super) fn log(&mut self, level: Level, code: &'static str, member: Option<&str>, text: String) {
        self.0.push_back(Report::Log { level, code, member: member.map(str::to_owned), text });
    }

    pub(super) fn answer(&mut self, number: u64, outcome: Outcome) {
        self.0.push_back(Report::Answer(number, outcome));
    }

    pub(super) fn next(&mut self) -> Option<Report> {
        self.0.pop_front()
    }
}
