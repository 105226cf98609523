//! Client entries of released fences go when they have served (`policy.retain_client_entries`): only of instances that
//! were fenced before the seal that the proof of the reboot is about, so that all of them are dead (INV-4).

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::fence::step::Sent;
use crate::guardian::context::Ctx;
use crate::guardian::io::Effect;
use crate::guardian::lanes::Lane;
use crate::guardian::report::{Level, Reports};
use crate::guardian::trail::DueChange;
use crate::model::addr::Entry;
use crate::model::fence_id::FenceId;
use crate::model::now::Now;
use crate::model::record::{Change, FenceRecord, FenceState, Key, Record};

/// So many removals are sent at once: each is in one proposal of the monitors with the others.
const AT_ONCE: usize = 100;
/// Between two rounds.
const EVERY: Duration = Duration::from_secs(10);

/// The removals of client entries.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Retirement {
    /// When removals were answered last.
    retired: Option<Duration>,
}

impl Retirement {
    /// Released fences whose time is over, with the entries of dead clients that stand. What another fence holds stays.
    fn due<'a>(&self, ctx: Ctx<'a>) -> impl Iterator<Item = (&'a FenceRecord, BTreeSet<Entry>)> + use<'a> {
        let retain = ctx.settings.policy.retain_client_entries;
        let over =
            move |released: Timestamp| !retain.is_zero() && ctx.ceph.is_over(ctx.now, released, retain);
        let released = ctx.records.fences.values().filter(move |record| {
            record.state == FenceState::Released
                && record.released.is_some_and(over)
                && !record.dead.is_empty()
        });
        let standing = move |record: &FenceRecord| {
            let stands = |entry: &Entry| ctx.map().is_none_or(|map| map.blocklist.until(*entry).is_some());
            let held = |entry: &Entry| {
                let others = ctx.records.fences.values().filter(|other| other.state.is_in_force());
                ctx.fences.all().any(|fence| fence.accounts_for(*entry))
                    || others.into_iter().any(|other| other.entries.contains_key(entry))
            };
            let dead = record.dead.iter().copied().map(Entry::Client);
            dead.filter(stands).filter(|entry| !held(entry)).take(AT_ONCE).collect::<BTreeSet<_>>()
        };
        let idle = ctx.map().is_some() && self.retired.is_none_or(|at| ctx.ceph.map_read > at);
        released
            .filter(move |record| idle && !ctx.fences.has(&record.id))
            .map(move |record| (record, standing(record)))
    }

    /// A removal is recorded before it is sent, and what is gone when it is.
    pub(super) fn due_change(&self, ctx: Ctx<'_>) -> Option<DueChange> {
        let (record, standing) = self
            .due(ctx)
            .find(|(record, standing)| standing.is_empty() || !standing.is_subset(&record.in_doubt))?;
        let mut record = record.clone();
        let why = format!("released at {}, and its clients are dead", record.released.unwrap_or_default());
        let what = if standing.is_empty() {
            let gone: Vec<Entry> = record.dead.iter().copied().map(Entry::Client).collect();
            record.dead.clear();
            record.entries.retain(|entry, _| !gone.contains(entry));
            // Should one arrive yet, it hits a key that nobody relies on: no client has that nonce again.
            record.in_doubt.retain(|entry| !gone.contains(entry));
            format!("{} forgets its clients: their entries are gone", record.id)
        } else {
            record.in_doubt.extend(&standing);
            let clock = ctx.ceph.clock(ctx.now);
            standing.iter().for_each(|entry| record.note_sent(*entry, clock));
            format!("{} removes {} client entries", record.id, standing.len())
        };
        let over = record.entries.is_empty() && record.in_doubt.is_empty();
        let change =
            if over { Change::Remove(Key::Fence(record.id)) } else { Change::Put(Record::Fence(record)) };
        Some(DueChange { changes: vec![change], what, why })
    }

    pub(super) fn next_effect(&self, ctx: Ctx<'_>) -> Option<Effect> {
        if !ctx.may_begin(&Lane::Retire) || self.retired.is_some_and(|at| ctx.now.boot < at + EVERY) {
            return None;
        }
        let recorded = |(record, standing): &(&FenceRecord, BTreeSet<Entry>)| {
            !standing.is_empty() && standing.is_subset(&record.in_doubt)
        };
        let (id, entries) =
            self.due(ctx).find(recorded).map(|(record, standing)| (record.id.clone(), standing))?;
        Some(Effect::Retire(id, entries.into_iter().collect()))
    }

    /// What became of it is read from the map; what is not gone is sent again.
    pub(super) fn handle_sent(
        &mut self,
        now: Now,
        id: &FenceId,
        sent: &[(Entry, Sent)],
        reports: &mut Reports,
    ) {
        self.retired = Some(now.boot);
        for (entry, sent) in sent {
            match sent {
                Sent::Acknowledged | Sent::Unknown => {}
                Sent::Refused(why) => {
                    let text = format!("{id}: {entry} was not removed: {why}");
                    reports.log(Level::Warn, "not-retired", None, text);
                }
            }
        }
    }
}
