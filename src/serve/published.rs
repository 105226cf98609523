//! What the event loop publishes: one picture of this guardian. Everything that is served is made of it, once.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::body::Bytes;
use jiff::Timestamp;
use rbd_guardian_core::guardian::report::Level;
use rbd_guardian_core::guardian::status::Status;
use rbd_guardian_core::guardian::sums::Sums;
use serde::Serialize;
use serde_json::{Value, json};

use crate::serve::figures::Figures;
use crate::serve::{metrics, page};
use crate::shown::outlook::{Outlook, outlook};
use crate::shown::{self, parts::AnswerSource};

/// A line that was logged: each is an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct EventLine {
    /// Counts up without a gap.
    pub(crate) seq: u64,
    pub(crate) at: Timestamp,
    pub(crate) level: Level,
    pub(crate) code: String,
    pub(crate) member: Option<String>,
    pub(crate) text: String,
}

/// How many of them are kept.
const LINES: usize = 128;

/// The newest of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct EventLines(Arc<VecDeque<Arc<EventLine>>>);

impl EventLines {
    pub(crate) fn push(&mut self, line: EventLine) {
        let lines = Arc::make_mut(&mut self.0);
        lines.push_back(Arc::new(line));
        if lines.len() > LINES {
            lines.pop_front();
        }
    }

    /// Those after this one, oldest first.
    pub(crate) fn after(&self, seq: u64) -> impl DoubleEndedIterator<Item = &Arc<EventLine>> {
        self.0.iter().filter(move |line| line.seq > seq)
    }
}

/// One picture.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// When it was taken, by the boot clock and the wall clock.
    pub(crate) boot: Duration,
    pub(crate) wall: Timestamp,
    /// What this guardian says of itself, in the form of `status`.
    pub(crate) own: Value,
    pub(crate) leads: bool,
    /// What the core knows; of one that waits, as far as the ledger and its glances at Incus tell.
    pub(crate) core: Option<Status>,
    pub(crate) sums: Option<Sums>,
    pub(crate) figures: Figures,
    pub(crate) lines: EventLines,
    /// When the daemon began.
    pub(crate) began: Timestamp,
    pub(crate) made: Made,
}

/// What was made of it.
#[derive(Debug, Default)]
pub(crate) struct Made {
    status: OnceLock<Value>,
    status_text: OnceLock<Bytes>,
    steady: OnceLock<u64>,
    outlook: OnceLock<Outlook>,
    metrics: OnceLock<Bytes>,
    main: OnceLock<Bytes>,
    page: OnceLock<Bytes>,
}

impl Published {
    /// The documented form of `status --json`.
    pub(crate) fn status(&self) -> &Value {
        self.made.status.get_or_init(|| {
            let mut status = serde_json::to_value(&self.core).unwrap_or_default();
            if !status.is_object() {
                status = json!({});
            }
            if let (Some(fields), Some(own)) = (status.as_object_mut(), self.own.as_object()) {
                fields.extend(own.clone());
            }
            let source = if self.leads { AnswerSource::Leader } else { AnswerSource::Ledger };
            status["source"] = json!(source);
            shown::status(status)
        })
    }

    pub(crate) fn outlook(&self) -> &Outlook {
        self.made.outlook.get_or_init(|| outlook(self.status()))
    }

    pub(crate) fn status_text(&self) -> Bytes {
        self.made.status_text.get_or_init(|| Bytes::from(self.status().to_string())).clone()
    }

    /// Tells pictures apart that differ in more than ages.
    pub(crate) fn steady(&self) -> u64 {
        *self.made.steady.get_or_init(|| {
            let mut status = self.status().clone();
            for source in ["platform", "storage"] {
                status[source]["age_s"] = Value::Null;
            }
            u64::from(crc32fast::hash(status.to_string().as_bytes()))
        })
    }

    pub(crate) fn metrics(&self) -> Bytes {
        self.made.metrics.get_or_init(|| Bytes::from(metrics::text(self))).clone()
    }

    /// The changing part of the page.
    pub(crate) fn main(&self) -> Bytes {
        self.made.main.get_or_init(|| Bytes::from(page::main(self))).clone()
    }

    pub(crate) fn page(&self) -> Bytes {
        self.made.page.get_or_init(|| Bytes::from(page::whole(self))).clone()
    }
}
