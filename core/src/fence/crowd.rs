//! How many clients appear on a member after its fence was planned.

use serde::{Deserialize, Serialize};

/// Clients that appear after a fence was planned, as the last look showed them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFlood {
    /// Some were new: the gate is not opened and closed for each.
    fresh: bool,
    /// More than are fenced.
    beyond: bool,
    /// More than are remembered.
    forgotten: bool,
}

impl ClientFlood {
    /// A look showed new clients, or more than are fenced.
    pub(super) fn note_look(&mut self, fresh: bool, beyond: bool) {
        (self.fresh, self.beyond) = (fresh, beyond);
    }

    /// More clients appeared than are remembered.
    pub(super) fn note_forgotten(&mut self) {
        self.forgotten = true;
    }

    /// Are there more than are fenced?
    pub fn is_beyond(self) -> bool {
        self.beyond
    }

    /// Are there more than are remembered?
    pub fn is_forgotten(self) -> bool {
        self.forgotten
    }

    /// Can one be free, or was one a look ago?
    pub(super) fn is_open(self) -> bool {
        self.fresh || self.beyond
    }
}
