//! The next write to the ledger, and the result of the last one.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::guardian::context::Ctx;
use crate::guardian::io::Effect;
use crate::guardian::lanes::Lane;
use crate::guardian::report::{Alarm, Level, Outcome, Reports};
use crate::guardian::trail::{self, DueChange};
use crate::model::gate_keys::REMOVE;
use crate::model::overrides::reason;
use crate::model::record::{Change, Key, Record};

/// What an operator does outside the guardian, or changes in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct TrailNote {
    number: u64,
    #[serde(flatten)]
    due: DueChange,
    sent: bool,
}

/// The writes to the ledger.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Journal {
    /// The write that is on its way.
    writing: Vec<Change>,
    /// Why nothing can be recorded.
    cannot_record: Option<String>,
    /// Notes of operators that the ledger does not have yet.
    #[serde(default)]
    notes: VecDeque<TrailNote>,
}

impl Journal {
    pub(super) fn failure(&self) -> Option<&str> {
        self.cannot_record.as_deref()
    }

    /// An operator announces something that happens outside the guardian.
    pub(super) fn handle_note(
        &mut self,
        number: u64,
        what: &str,
        said: Option<String>,
        by: &str,
        reports: &mut Reports,
    ) {
        let why = reason(said.as_deref()).unwrap_or("no reason given");
        reports.log(Level::Warn, "operator", None, format!("{by}: {what} ({why})"));
        let (what, why) = (what.to_owned(), format!("{by}: {why}"));
        self.note(number, DueChange { changes: Vec::new(), what, why });
    }

    /// Queues a note; what it says counts from when the ledger has it.
    pub(super) fn note(&mut self, number: u64, due: DueChange) {
        self.notes.push_back(TrailNote { number, due, sent: false });
    }

    /// A write succeeded. Returns the changes that the ledger has now.
    pub(super) fn handle_written(&mut self, reports: &mut Reports) -> Vec<Change> {
        if self.notes.front().is_some_and(|note| note.sent)
            && let Some(note) = self.notes.pop_front()
        {
            reports.answer(note.number, Outcome::Noted);
        }
        if self.cannot_record.take().is_some() {
            reports.log(Level::Info, "recording", None, "the ledger can be written again".to_owned());
        }
        std::mem::take(&mut self.writing)
    }

    /// A write failed. Its note is sent again.
    pub(super) fn handle_not_written(&mut self, why: Option<String>, reports: &mut Reports) {
        self.writing.clear();
        if let Some(note) = self.notes.front_mut() {
            note.sent = false;
        }
        let Some(why) = why else { return };
        if self.cannot_record.is_none() {
            let text = format!("{why}: nothing is fenced or released");
            reports.log(Level::Error, "cannot-record", None, text);
        }
        self.cannot_record = Some(why);
    }

    /// The note of an operator that is recorded next.
    pub(super) fn due_note(&mut self, ctx: Ctx<'_>) -> Option<DueChange> {
        let note = self.notes.front_mut()?;
        // The operator removes the gate as soon as this is recorded: a gate write in flight would arrive after the removal.
        if note.due.what == REMOVE && ctx.lanes.began(&Lane::Gate).is_some() {
            return None;
        }
        note.sent = true;
        Some(note.due.clone())
    }

    pub(super) fn begin(&mut self, due: DueChange) -> Effect {
        let DueChange { changes, what, why } = due;
        self.writing.clone_from(&changes);
        Effect::Record { changes, what, why }
    }

    /// Is what the gate may say being recorded anew? Until that is answered nobody knows which of two the ledger has (INV-8).
    pub(super) fn is_recording_gate(&self) -> bool {
        self.writing.iter().any(|change| matches!(change, Change::Put(Record::Gate(_))))
    }

    pub(super) fn alarms(&self) -> Vec<Alarm> {
        let advice = || vec!["rbd-guardian doctor".to_owned()];
        let alarm = |why: &String| Alarm::new("cannot-record", None, why.clone(), advice());
        self.cannot_record.iter().map(alarm).collect()
    }
}

/// A fence whose record the ledger does not hold yet.
pub(super) fn due_fence(ctx: Ctx<'_>) -> Option<DueChange> {
    let fence = ctx.fences.all().find(|fence| ctx.records.fences.get(fence.id()) != Some(fence.record()))?;
    let (what, why) = trail::of(fence, ctx.records.fences.get(fence.id()));
    Some(DueChange { changes: vec![Change::Put(Record::Fence(fence.record().clone()))], what, why })
}

/// Records of members that changed, or else of members that no longer exist.
pub(super) fn due_members(ctx: Ctx<'_>) -> Option<DueChange> {
    let due = |changes: Vec<Change>, why: &str| {
        let (what, why) = ("address book".to_owned(), why.to_owned());
        (!changes.is_empty()).then_some(DueChange { changes, what, why })
    };
    let book = &ctx.book.members;
    let changed = book.values().filter(|member| ctx.records.members.get(&member.name) != Some(member));
    let changed = changed.map(|member| Change::Put(Record::Member(member.clone()))).collect();
    let is_gone = |name: &&String| {
        !book.contains_key(*name)
            && ctx.incus.view().is_some_and(|view| !view.members.contains_key(*name))
            && !ctx.keeps_record(name)
    };
    let ended = ctx.records.members.keys().filter(is_gone);
    let ended = ended.map(|name| Change::Remove(Key::Member(name.clone()))).collect();
    due(changed, "learnt while healthy").or_else(|| due(ended, "removed from the cluster"))
}
