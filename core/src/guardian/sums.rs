//! How much of everything there is, for whoever watches over many guardians: numbers alone.

use std::time::Duration;

use jiff::Timestamp;

use crate::guardian::context::Ctx;

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

impl Sums {
    pub(super) fn of(ctx: Ctx<'_>, conflicts: usize, ghost_watches: usize) -> Self {
        let at = |boot: Duration| ctx.now.wall.checked_sub(ctx.now.boot.saturating_sub(boot)).ok();
        let (sweep, map) = (ctx.ceph.sweep.as_ref(), ctx.map());
        let unread = sweep.map_or(0, |sweep| sweep.unread.len());
        Self {
            conflicts,
            ghost_watches,
            unreadable: unread + map.map_or(0, |map| map.not_understood.len()),
            images_in_use: ctx.ceph.uses().len(),
            swept: sweep.and_then(|sweep| at(sweep.ended)),
            map_read: map.and_then(|_| at(ctx.ceph.map_read)),
            view_read: ctx.incus.view().and_then(|_| at(ctx.incus.view_began)),
            whole_read: ctx.incus.whole_began.and_then(at),
            images: ctx.incus.images.len(),
        }
    }
}
