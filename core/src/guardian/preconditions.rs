//! What a step of a fence may rely on, as the guardian knows it at this moment.

use crate::fence::preconditions::{GateClosed, Preconditions};
use crate::fence::{Fence, GUARDIAN};
use crate::guardian::Guardian;
use crate::guardian::gate::{self, GateState};
use crate::guardian::pace::Lane;

impl Guardian {
    /// What a step of a fence may rely on.
    pub(super) fn preconditions<'a>(&'a self, fence: &Fence) -> Preconditions<'a> {
        let recorded = self.records.fences.get(fence.id());
        let operators = fence.record().by != GUARDIAN;
        let member = fence.member().unwrap_or_default();
        let still_wanted = if operators || fence.member().is_none() {
            Some(true)
        } else {
            let recorded_at = fence.recorded_at().filter(|_| recorded.is_some());
            recorded_at.and_then(|recorded| self.is_lost_since(member, recorded))
        };
        let gate_closed = self.gate_closed(fence);
        let starting = Some(&self.starting)
            .filter(|_| self.starting_known || fence.member().is_none() || !self.settings.platform);
        let storage = self.map.as_ref().map_or(self.now.wall, |map| map.clock(self.now.wall));
        Preconditions { now: self.now, storage, recorded, still_wanted, gate_closed, starting }
    }

    /// Is the gate closed for the member of this fence, as read back after the last write?
    pub(super) fn gate_closed(&self, fence: &Fence) -> GateClosed {
        let member = fence.member().unwrap_or_default();
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
            _ if fence.member().is_none() => GateClosed::Yes,
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
