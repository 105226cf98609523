//! Requests that the ledger passes on to whoever leads, as far as this leader has them in hand.

use std::collections::BTreeMap;
use std::time::Duration;

use rbd_guardian_core::guardian::io::Recorded;
use rbd_guardian_core::model::record::RequestRecord;
use rbd_guardian_core::rules::operator_request::Settled;

use crate::control::protocol::ControlLine;

/// Between two looks at the ledger's requests: one small read each.
const EVERY: Duration = Duration::from_secs(1);

/// Of one lead.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// When to look next; `None` while that is under way.
    at: Option<Duration>,
    in_hand: BTreeMap<String, RequestProgress>,
}

/// How far a request is that was begun.
#[derive(Debug)]
pub(super) enum RequestProgress {
    /// It is being recorded, done, or answered.
    Busy,
    /// Its answer could not be recorded yet.
    Answered(Box<RequestRecord>),
}

/// What is written of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestNote {
    Taken,
    Answered,
    Forgotten,
}

impl Requests {
    pub(super) fn new(now: Duration) -> Self {
        Self { at: Some(now), in_hand: BTreeMap::new() }
    }

    /// Is a look due? Then it is under way from now on.
    pub(super) fn looks(&mut self, now: Duration) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }

    /// What was found. What is there no more needs no answer.
    pub(super) fn looked(&mut self, now: Duration, found: Option<&[(RequestRecord, Settled)]>) {
        self.at = Some(now + EVERY);
        if let Some(found) = found {
            self.in_hand.retain(|id, hand| {
                matches!(hand, RequestProgress::Busy) || found.iter().any(|(one, _)| one.id == *id)
            });
        }
    }

    pub(super) fn hand(&self, id: &str) -> Option<&RequestProgress> {
        self.in_hand.get(id)
    }

    pub(super) fn keep(&mut self, id: &str, hand: RequestProgress) {
        self.in_hand.insert(id.to_owned(), hand);
    }

    pub(super) fn let_go(&mut self, id: &str) {
        self.in_hand.remove(id);
    }
}

impl RequestNote {
    /// For the trail.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Taken => "takes",
            Self::Answered => "answers",
            Self::Forgotten => "removes",
        }
    }
}

/// The answer of a request that has none.
pub(super) fn ended() -> ControlLine {
    ControlLine::Unavailable(
        "the request ended without an answer: `rbd-guardian status` shows how far it got".to_owned(),
    )
}

/// A write that ended without an answer.
pub(super) fn not_noted() -> Recorded {
    Recorded::Not { why: "it ended without an answer".to_owned(), holds: None }
}
