//! Client entries of released fences go when they have served (`policy.retain_client_entries`): only of instances that
//! were fenced before the seal that the proof of the reboot is about, so that all of them are dead (INV-4).

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::fence::step::Sent;
use crate::guardian::Guardian;
use crate::guardian::io::Effect;
use crate::guardian::pace::Lane;
use crate::guardian::report::Level;
use crate::model::addr::Entry;
use crate::model::fence_id::FenceId;
use crate::model::record::{Change, FenceRecord, FenceState, Key, Record};

/// So many removals are sent at once: each is in one proposal of the monitors with the others.
const AT_ONCE: usize = 100;
/// Between two rounds.
const EVERY: Duration = Duration::from_secs(10);

impl Guardian {
    /// Released fences whose time is over, with the entries of dead clients that stand. What another fence holds stays.
    fn due(&self) -> impl Iterator<Item = (&FenceRecord, BTreeSet<Entry>)> {
        let now = self.now.wall;
        let retain = self.settings.policy.retain_client_entries;
        let over = move |released: Timestamp| {
            let since = SignedDuration::try_from(retain).unwrap_or(SignedDuration::MAX);
            !retain.is_zero() && now.duration_since(released) >= since
        };
        let released = self.records.fences.values().filter(move |record| {
            record.state == FenceState::Released
                && record.released.is_some_and(over)
                && !record.dead.is_empty()
        });
        let standing = |record: &FenceRecord| {
            let stands =
                |entry: &Entry| self.map.as_ref().is_none_or(|map| map.blocklist.until(*entry).is_some());
            let held = |entry: &Entry| {
                let others = self.records.fences.values().filter(|other| other.state.is_in_force());
                self.fences.values().any(|fence| fence.accounts_for(*entry))
                    || others.into_iter().any(|other| other.entries.contains_key(entry))
            };
            let dead = record.dead.iter().copied().map(Entry::Client);
            dead.filter(stands).filter(|entry| !held(entry)).take(AT_ONCE).collect::<BTreeSet<_>>()
        };
        let idle = self.map.is_some() && self.retired.is_none_or(|at| self.map_read > at);
        released
            .filter(move |record| idle && !self.fences.contains_key(&record.id))
            .map(move |record| (record, standing(record)))
    }

    /// A removal is recorded before it is sent, and what is gone when it is.
    pub(super) fn retirement(&self) -> Option<(Vec<Change>, String, String)> {
        let (record, standing) = self
            .due()
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
            let clock = self.map.as_ref().map_or(self.now.wall, |map| map.clock(self.now.wall));
            standing.iter().for_each(|entry| record.note_sent(*entry, clock));
            format!("{} removes {} client entries", record.id, standing.len())
        };
        let over = record.entries.is_empty() && record.in_doubt.is_empty();
        let change =
            if over { Change::Remove(Key::Fence(record.id)) } else { Change::Put(Record::Fence(record)) };
        Some((vec![change], what, why))
    }

    pub(super) fn retire(&mut self) -> Option<Effect> {
        if !self.may_begin(&Lane::Retire) || self.retired.is_some_and(|at| self.now.boot < at + EVERY) {
            return None;
        }
        let recorded = |(record, standing): &(&FenceRecord, BTreeSet<Entry>)| {
            !standing.is_empty() && standing.is_subset(&record.in_doubt)
        };
        let (id, entries) =
            self.due().find(recorded).map(|(record, standing)| (record.id.clone(), standing))?;
        self.begin(Lane::Retire);
        Some(Effect::Retire(id, entries.into_iter().collect()))
    }

    /// What became of it is read from the map; what is not gone is sent again.
    pub(super) fn sent_to_retire(&mut self, id: &FenceId, sent: &[(Entry, Sent)]) {
        self.retired = Some(self.now.boot);
        for (entry, sent) in sent {
            match sent {
                Sent::Acknowledged | Sent::Unknown => {}
                Sent::Refused(why) => {
                    self.log(
                        Level::Warn,
                        "not-retired",
                        None,
                        format!("{id}: {entry} was not removed: {why}"),
                    );
                }
            }
        }
    }
}
