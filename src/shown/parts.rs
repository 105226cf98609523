//! Parts of answers that several verbs print.

use jiff::Timestamp;
use rbd_guardian_core::model::addr::Entry;
use rbd_guardian_core::model::record::FenceRecord;
use rbd_guardian_core::model::target::Coverage;
use rbd_guardian_core::rules::plan::Plan;
use serde::Serialize;

/// A blocklist entry and when it ends; `null` if it was not seen.
#[derive(Clone, Serialize)]
pub(crate) struct EntryAnswer {
    pub(crate) entry: Entry,
    pub(crate) kind: &'static str,
    pub(crate) until: Option<Timestamp>,
}

impl EntryAnswer {
    /// Whole seconds: more is noise to a reader five years ahead.
    pub(crate) fn new((entry, until): (Entry, Option<Timestamp>)) -> Self {
        let until = until.and_then(|until| Timestamp::from_second(until.as_second()).ok());
        Self { entry, kind: entry.kind(), until }
    }
}

#[derive(Serialize)]
pub(crate) struct CoverageAnswer {
    pub(crate) verdict: Coverage,
    pub(crate) known_clients: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
}

impl CoverageAnswer {
    /// Of a fence in the ledger.
    pub(crate) fn of(fence: &FenceRecord) -> Self {
        let clients = fence.entries.keys().filter(|entry| !entry.is_host()).count();
        Self { verdict: fence.coverage, known_clients: clients, notes: fence.evidence.clone() }
    }

    pub(crate) fn without_notes(mut self) -> Self {
        self.notes.clear();
        self
    }

    pub(crate) fn new(plan: &Plan) -> Self {
        Self { verdict: plan.coverage, known_clients: plan.known_clients, notes: plan.notes.clone() }
    }
}

/// Where an answer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AnswerSource {
    /// The guardian that leads.
    Leader,
    /// The ledger's records, with Incus and Ceph as this command read them.
    Ledger,
    /// Ceph alone, and the configuration: no guardian ever led here, or the ledger cannot be read.
    Ceph,
}
