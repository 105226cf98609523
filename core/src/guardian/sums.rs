//! How much of everything there is, for whoever watches over many guardians: numbers alone.

use std::time::Duration;

use jiff::Timestamp;

use crate::guardian::Guardian;
use crate::model::fence_id::FenceId;
use crate::model::record::FenceState;

/// Numbers that [`Status`](crate::guardian::status::Status) does not have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sums {
    pub conflicts: usize,
    /// Watches of clients that no monitor knows.
    pub ghost_watches: usize,
    /// Items of the storage's answers that could not be read or understood.
    pub unreadable: usize,
    /// Images with a user, by the last sweep.
    pub images_in_use: usize,
    pub swept: Option<Timestamp>,
    /// When the last osdmap was read, the last reading of Incus begun, and the last whole one.
    pub map_read: Option<Timestamp>,
    pub view_read: Option<Timestamp>,
    pub whole_read: Option<Timestamp>,
    /// Images that are guarded.
    pub images: usize,
}

impl Guardian {
    pub fn sums(&self) -> Sums {
        let at = |boot: Duration| self.now.wall.checked_sub(self.now.boot.saturating_sub(boot)).ok();
        let sweep = self.sweep.as_ref();
        let unread = sweep.map_or(0, |sweep| sweep.unread.len());
        Sums {
            conflicts: self.conflicts.len(),
            ghost_watches: self.ghosts.len(),
            unreadable: unread + self.map.as_ref().map_or(0, |map| map.not_understood.len()),
            images_in_use: sweep.map_or(0, |sweep| sweep.uses.len()),
            swept: sweep.and_then(|sweep| at(sweep.ended)),
            map_read: self.map.as_ref().and_then(|_| at(self.map_read)),
            view_read: self.view.as_ref().and_then(|_| at(self.view_began)),
            whole_read: self.whole_began.and_then(at),
            images: self.images.len(),
        }
    }

    /// Where each fence in force stands.
    pub fn fence_states(&self) -> impl Iterator<Item = (&FenceId, FenceState)> {
        self.fences.iter().map(|(id, fence)| (id, fence.record().state))
    }
}
