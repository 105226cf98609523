//! Which images a sweep reads: what a guardian costs the cluster at rest follows what is in use, not what there is.
//!
//! Each sweep reads the images that may be in use: those that had a user at the last sweep, and those of an instance that
//! is not known to be stopped. The others had no user when they were read last. They are read by turns, so that each is
//! read again within ten minutes. The first sweep reads all, and so does the one after a sweep that left something unread.
//!
//! A gate waits for each image of its member whether it may be in use or not (INV-2), and for those whose instances
//! nobody knows. What of them a sweep did not read is kept, because a listing that is newer than the sweep may show others.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::guardian::address_book::is_stopped;
use crate::guardian::context::Ctx;
use crate::model::osdmap::DataPools;
use crate::model::sweep_part::{SweepPart, SweepSelection};
use crate::model::volume::{Expected, ImageName};

/// The longest time between two readings of one image.
const EACH_WITHIN: Duration = Duration::from_secs(600);
/// A sweep reads at least this fraction (one of twenty parts) of the images that are not in use, however often the operator
/// lets the guardian sweep.
const MOST_TURNS: u64 = 20;

/// Whose turn it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct SweepTurns {
    next: u32,
    /// What the sweep that is on its way reads.
    begun: Option<SweepPart>,
    /// Images a gate may wait for that this sweep reads; `None`: all.
    asked: Option<BTreeSet<ImageName>>,
    /// Pools that headers named for their data, since so many turns: after all turns every header was read.
    data: DataPools,
    since: u32,
}

impl SweepTurns {
    /// Begins a sweep that is due by the clock, or (`InUse`) one that a gate waits for.
    pub(super) fn begin(&mut self, ctx: Ctx<'_>, is_due: bool) -> SweepPart {
        let every = ctx.settings.guard.every.as_secs().max(1);
        let turns = (EACH_WITHIN.as_secs() / every).clamp(1, MOST_TURNS);
        let of = u32::try_from(turns).unwrap_or(1);
        let incomplete = ctx.ceph.sweep.as_ref().is_none_or(|last| !last.unread.is_empty());
        let part = if incomplete || ctx.incus.whole_began.is_none() || of == 1 {
            SweepPart::Whole
        } else if is_due {
            self.next = (self.next + 1) % of;
            SweepPart::Turn { turn: self.next, of }
        } else {
            SweepPart::InUse
        };
        let waits = |fence: &Fence| !fence.is_clear() && fence.member().is_some();
        self.asked = match part {
            SweepPart::Whole => None,
            SweepPart::InUse | SweepPart::Turn { .. } if ctx.fences.all().any(waits) => {
                Some(awaited(ctx).cloned().collect())
            }
            SweepPart::InUse | SweepPart::Turn { .. } => Some(BTreeSet::new()),
        };
        self.begun = Some(part);
        part
    }

    /// The sweep on its way ended. The images that a gate may wait for that it read (`None`: all), and the pools that headers
    /// name for their data, if every header was read since this was returned last.
    pub(super) fn end(
        &mut self,
        found: &DataPools,
        complete: bool,
    ) -> (Option<BTreeSet<ImageName>>, Option<DataPools>) {
        let part = self.begun.take();
        for (headers, pools) in found {
            self.data.entry(headers.clone()).or_default().extend(pools);
        }
        let all = match part {
            // One that nobody asked for is of a recording of before: it read everything.
            None | Some(SweepPart::Whole) => complete,
            Some(SweepPart::InUse) => false,
            Some(SweepPart::Turn { of, .. }) => {
                self.since = if complete { self.since + 1 } else { 0 };
                self.since >= of
            }
        };
        if all || !complete {
            self.since = 0;
        }
        let data = all.then(|| match part {
            None | Some(SweepPart::Whole) => found.clone(),
            Some(SweepPart::InUse | SweepPart::Turn { .. }) => self.data.clone(),
        });
        if all || !complete {
            self.data.clear();
        }
        (self.asked.take(), data)
    }
}

/// The images that this part includes now.
pub(super) fn selection(ctx: Ctx<'_>, part: SweepPart) -> SweepSelection {
    let (images, view) = (&ctx.incus.images, ctx.incus.view());
    let stopped = |expected: &Expected| view.is_some_and(|view| is_stopped(expected, view));
    let runs = |expected: &Expected| match expected {
        Expected::Exclusive { .. } => !stopped(expected),
        Expected::AnyMember | Expected::Unknown { .. } => false,
    };
    let running = images.iter().filter(|(_, expected)| runs(expected)).map(|(image, _)| image);
    let used = ctx.ceph.uses().iter().map(|one| &one.image);
    SweepSelection::new(part, running.chain(used).chain(awaited(ctx)))
}

/// Images that a gate may wait for: those of fenced members, and those whose instances nobody knows.
fn awaited(ctx: Ctx<'_>) -> impl Iterator<Item = &ImageName> {
    let members: BTreeSet<&str> = ctx.fences.all().filter_map(Fence::member).collect();
    let awaited = move |expected: &Expected| {
        expected.unknown().is_some() || members.iter().any(|member| expected.is_at(member))
    };
    ctx.incus.images.iter().filter(move |(_, expected)| awaited(expected)).map(|(image, _)| image)
}
