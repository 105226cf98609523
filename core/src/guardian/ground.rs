//! What a step of a fence or release may rely on.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::guardian::Guardian;
use crate::guardian::case::{self, Case};
use crate::guardian::gate::{self, GateState};
use crate::guardian::io::Now;
use crate::guardian::pace::Lane;
use crate::model::record::FenceRecord;

/// What a step may rely on, as the guardian knows it at this moment.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// The time.
    pub now: Now,
    /// The monitors' clock, by which entries end.
    pub storage: Timestamp,
    /// What the ledger holds of this fence.
    pub recorded: Option<&'a FenceRecord>,
    /// Still lost in a reading that began after the intent was recorded, and silent when it was asked itself since; `None`
    /// until both are known. Where nobody but the operator is the judge, always `Some(true)`.
    pub still_wanted: Option<bool>,
    /// No seal key of the member is at the gate, as read back; or closing it failed and cannot be waited for.
    pub gate_closed: GateClosed,
    /// Operations that could start an instance, as of now; `None` if they are not known.
    pub starting: Option<&'a BTreeSet<String>>,
}

/// Whether the gate lets instances of the member go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateClosed {
    /// No seal key is there, as read back after the last write.
    Yes,
    /// One is there, or nobody knows.
    NotYet,
    /// It cannot be told or changed now: the platform does not answer.
    CannotTell,
}

impl Guardian {
    /// What a step of a case may rely on.
    pub(super) fn ground<'a>(&'a self, case: &Case) -> Ground<'a> {
        let recorded = self.records.fences.get(&case.id);
        let operators = case.record.by != case::GUARDIAN;
        let member = case.member().unwrap_or_default();
        let still_wanted = if operators || case.member().is_none() {
            Some(true)
        } else {
            let recorded_at = case.recorded_at.filter(|_| recorded.is_some());
            recorded_at.and_then(|recorded| self.is_lost_since(member, recorded))
        };
        let gate_closed = self.gate_closed(case);
        let starting = Some(&self.starting)
            .filter(|_| self.starting_known || case.member().is_none() || !self.settings.platform);
        let storage = self.map.as_ref().map_or(self.now.wall, |map| map.clock(self.now.wall));
        Ground { now: self.now, storage, recorded, still_wanted, gate_closed, starting }
    }

    /// Is the gate closed for the member of this fence, as read back after the last write?
    pub(super) fn gate_closed(&self, case: &Case) -> GateClosed {
        let member = case.member().unwrap_or_default();
        let gate = self.view.as_ref().and_then(|view| view.gate.as_ref());
        let writing = self.busy.contains_key(&Lane::Gate);
        let read = self.view_began > self.desk.ended;
        // Only a write that closes it says that it cannot be closed, once it has ended.
        let refused = self.desk.failed.is_some() && self.desk.closes(member) && !writing;
        let unseen = self.view_failed.is_some() && !self.view_is_fresh();
        let unwritten = || self.map.is_none() || self.gate_state() == GateState::Unknown;
        // What this guardian has not written over, a late write of an earlier one may open yet (INV-7).
        let wrote = |gate| match self.gate_state() {
            // It writes nothing there.
            GateState::Unknown | GateState::Absent => true,
            GateState::Partial { .. } | GateState::Installed | GateState::Off => self.desk.wrote_all(gate),
        };
        let closed = |gate| !gate::sealed_anywhere(gate).contains(member) && wrote(gate);
        match gate {
            _ if case.member().is_none() => GateClosed::Yes,
            // It reads no gate: the ledger's word is all there is.
            _ if !self.settings.platform && self.is_named(member) => GateClosed::CannotTell,
            _ if !self.settings.platform => GateClosed::Yes,
            Some(gate) if read && closed(gate) => GateClosed::Yes,
            Some(_) | None if refused || unseen => GateClosed::CannotTell,
            Some(_) if unwritten() => GateClosed::CannotTell,
            None if self.view.is_some() => GateClosed::CannotTell,
            Some(_) | None => GateClosed::NotYet,
        }
    }
}
