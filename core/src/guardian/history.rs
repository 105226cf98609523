//! Fences that were, and what fences have to do with each other: two may rest on one entry, and each has a record of its
//! own, also where one member is fenced again and again. Records of released fences are kept for a while.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::SignedDuration;

use crate::fence::Fence;
use crate::guardian::Guardian;
use crate::model::addr::Entry;
use crate::model::fence_id::{FenceContent, FenceId};
use crate::model::listed::Listed;
use crate::model::record::{Change, FenceRecord, FenceState, Key, Record};

/// How long the record of a released fence is kept where nothing of it stands any more.
const KEPT: Duration = Duration::from_secs(90 * 24 * 3600);
/// How many records of released fences are kept, the newest.
const MOST: usize = 256;

impl Guardian {
    /// Entries that other fences rest on: what stands of this one and is among them is not removed with it (INV-3). Of two
    /// that are released at the same time, the one with the later ID removes what they share.
    pub(super) fn rested_on(&self, fence: &Fence) -> BTreeSet<Entry> {
        let others = self.fences.values().filter(|other| other.id() != fence.id());
        let others = others
            .filter(|other| !(other.is_releasing() && fence.is_releasing() && fence.id() > other.id()))
            .flat_map(Fence::rests_on);
        let recorded = self.records.fences.values().filter(|record| {
            record.id != *fence.id() && record.state.is_in_force() && !self.fences.contains_key(&record.id)
        });
        others.chain(recorded.flat_map(|record| record.entries.keys().copied())).collect()
    }

    /// The intent of a guardian that died for the same member and entries goes on under its own ID; any other fence gets
    /// one that no fence had.
    pub(super) fn identify(&self, planned: &FenceContent) -> (FenceContent, Option<FenceRecord>) {
        let read = |id: &FenceId| id.read().ok();
        let left = self.records.fences.values().find(|record| {
            record.state == FenceState::Intended
                && !self.fences.contains_key(&record.id)
                && read(&record.id).is_some_and(|id| id.is_same_target(planned))
        });
        if let Some(id) = left.and_then(|left| read(&left.id)) {
            return (id, left.cloned());
        }
        let now = u64::try_from(self.now.wall.as_millisecond()).unwrap_or_default();
        let known = self.records.fences.keys().chain(self.fences.keys());
        let last = known.filter_map(|id| read(id)?.made).max();
        let made = Some(last.map_or(now, |last| now.max(last.saturating_add(1))));
        (FenceContent { made, ..planned.clone() }, None)
    }

    /// The fence that stands, or comes to stand, for the same member or the same entries.
    pub(super) fn standing_for(&mut self, planned: &FenceContent) -> Option<&mut Fence> {
        self.fences
            .values_mut()
            .find(|fence| fence.release().is_none() && fence.target().is_same_target(planned))
    }

    /// Whose an entry is that stands after a release, and how it is lifted.
    pub(super) fn whose(&self, listed: Listed) -> String {
        let rests =
            |fence: &&Fence| listed.entry().is_some_and(|entry| fence.record().entries.contains_key(&entry));
        self.fences.values().find(rests).map_or_else(
            || format!("it is nobody's here; if nobody needs it: {}", listed.removal()),
            |fence| format!("fence {} rests on it: rbd-guardian release --fence {0}", fence.id()),
        )
    }

    /// An operator's word on a removal in doubt ends it in the records of earlier fences as well.
    pub(super) fn doubts_ended(&self) -> Option<(Vec<Change>, String, String)> {
        let said = self.fences.values().filter(|fence| fence.record().overrides.doubt);
        let ended: BTreeSet<Entry> = said.flat_map(|fence| fence.record().entries.keys().copied()).collect();
        let mut record = self
            .records
            .fences
            .values()
            .find(|record| {
                record.state == FenceState::Released
                    && !self.fences.contains_key(&record.id)
                    && !record.in_doubt.is_disjoint(&ended)
            })?
            .clone();
        record.in_doubt.retain(|entry| !ended.contains(entry));
        let text = format!("{} has removals in doubt no more", record.id);
        let why = "the operator's word, with a later fence that rests on the entry".to_owned();
        Some((vec![Change::Put(Record::Fence(record))], text, why))
    }

    /// The record of a released fence whose time is over, or that is one too many: what of it stands still or is in doubt
    /// goes to a newer one.
    pub(super) fn forgotten(&self) -> Option<(Vec<Change>, String, String)> {
        let map = self.map.as_ref()?;
        let released = |record: &&FenceRecord| {
            record.state == FenceState::Released && !self.fences.contains_key(&record.id)
        };
        let ended = |record: &FenceRecord| record.released.unwrap_or(record.since);
        let all = || self.records.fences.values().filter(released);
        let standing = |record: &FenceRecord| {
            let stands = |entry: &&Entry| map.blocklist.until(**entry).is_some();
            record.entries.keys().filter(stands).copied().collect::<BTreeSet<Entry>>()
        };
        let served = |record: &&FenceRecord| {
            let age = self.now.wall.duration_since(ended(record));
            age >= SignedDuration::try_from(KEPT).unwrap_or(SignedDuration::MAX)
                && record.in_doubt.is_empty()
                && standing(record).is_empty()
        };
        if let Some(record) = all().find(served) {
            let text = format!("{} is forgotten", record.id);
            let why = format!("released at {}, and nothing of it stands", ended(record));
            return Some((vec![Change::Remove(Key::Fence(record.id.clone()))], text, why));
        }
        if all().count() <= MOST {
            return None;
        }
        let oldest = all().min_by_key(|record| ended(record))?;
        let of_member = |record: &&FenceRecord| record.id != oldest.id && record.member == oldest.member;
        let heir = all().filter(of_member).min_by_key(|record| ended(record));
        let heir = heir
            .or_else(|| all().filter(|record| record.id != oldest.id).min_by_key(|record| ended(record)))?;
        let mut heir = heir.clone();
        for entry in standing(oldest) {
            heir.entries.entry(entry).or_insert(map.blocklist.until(entry));
        }
        heir.in_doubt.extend(&oldest.in_doubt);
        heir.dead.extend(&oldest.dead);
        let text = format!("{} is forgotten", oldest.id);
        let why = format!("more than {MOST} fences were released; what stands of it goes to {}", heir.id);
        let changes = vec![Change::Put(Record::Fence(heir)), Change::Remove(Key::Fence(oldest.id.clone()))];
        Some((changes, text, why))
    }
}
