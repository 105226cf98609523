//! Records of released fences: kept for a while, and of what stands longer.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::guardian::context::Ctx;
use crate::guardian::trail::DueChange;
use crate::model::addr::Entry;
use crate::model::record::{Change, FenceRecord, FenceState, Key, Record};

/// How long the record of a released fence is kept where nothing of it stands any more.
const KEPT: Duration = Duration::from_secs(90 * 24 * 3600);
/// How many records of released fences are kept, the newest.
const MOST: usize = 256;

/// An intent that nothing came of: what an earlier fence of the same ID left, as older guardians recorded it, is not
/// forgotten, clients that stay refused, and removals in doubt (INV-7).
pub(super) fn undone(ctx: Ctx<'_>, mut record: FenceRecord) -> Change {
    let stands = |entry: &Entry| ctx.map().is_none_or(|map| map.blocklist.until(*entry).is_some());
    let id = record.id.clone();
    let elsewhere = |entry: &Entry| {
        ctx.records.fences.values().any(|fence| fence.id != id && fence.entries.contains_key(entry))
    };
    record.entries.retain(|entry, _| !entry.is_host() && stands(entry) && !elsewhere(entry));
    record.state = FenceState::Released;
    if record.entries.is_empty() && record.in_doubt.is_empty() {
        Change::Remove(Key::Fence(record.id))
    } else {
        Change::Put(Record::Fence(record))
    }
}

/// An operator's word on a removal in doubt ends it in the records of earlier fences as well.
pub(super) fn doubts_ended(ctx: Ctx<'_>) -> Option<DueChange> {
    let said = ctx.fences.all().filter(|fence| fence.record().overrides.doubt);
    let ended: BTreeSet<Entry> = said.flat_map(|fence| fence.record().entries.keys().copied()).collect();
    let mut record = ctx
        .records
        .fences
        .values()
        .find(|record| {
            record.state == FenceState::Released
                && !ctx.fences.has(&record.id)
                && !record.in_doubt.is_disjoint(&ended)
        })?
        .clone();
    record.in_doubt.retain(|entry| !ended.contains(entry));
    let what = format!("{} has removals in doubt no more", record.id);
    let why = "the operator's word, with a later fence that rests on the entry".to_owned();
    Some(DueChange { changes: vec![Change::Put(Record::Fence(record))], what, why })
}

/// The record of a released fence whose time is over, or that is one too many: what of it stands still or is in doubt
/// goes to a newer one.
pub(super) fn forgotten(ctx: Ctx<'_>) -> Option<DueChange> {
    let map = ctx.map()?;
    let released =
        |record: &&FenceRecord| record.state == FenceState::Released && !ctx.fences.has(&record.id);
    let ended = |record: &FenceRecord| record.released.unwrap_or(record.since);
    let all = || ctx.records.fences.values().filter(released);
    let standing = |record: &FenceRecord| {
        let stands = |entry: &&Entry| map.blocklist.until(**entry).is_some();
        record.entries.keys().filter(stands).copied().collect::<BTreeSet<Entry>>()
    };
    let served = |record: &&FenceRecord| {
        ctx.ceph.is_over(ctx.now, ended(record), KEPT)
            && record.in_doubt.is_empty()
            && standing(record).is_empty()
    };
    if let Some(record) = all().find(served) {
        let what = format!("{} is forgotten", record.id);
        let why = format!("released at {}, and nothing of it stands", ended(record));
        let changes = vec![Change::Remove(Key::Fence(record.id.clone()))];
        return Some(DueChange { changes, what, why });
    }
    if all().count() <= MOST {
        return None;
    }
    let oldest = all().min_by_key(|record| record.order())?;
    let of_member = |record: &&FenceRecord| record.id != oldest.id && record.member == oldest.member;
    let heir = all().filter(of_member).min_by_key(|record| record.order());
    let heir =
        heir.or_else(|| all().filter(|record| record.id != oldest.id).min_by_key(|record| record.order()))?;
    let mut heir = heir.clone();
    for entry in standing(oldest) {
        heir.entries.entry(entry).or_insert(map.blocklist.until(entry));
    }
    heir.in_doubt.extend(&oldest.in_doubt);
    heir.dead.extend(&oldest.dead);
    let what = format!("{} is forgotten", oldest.id);
    let why = format!("more than {MOST} fences were released; what stands of it goes to {}", heir.id);
    let changes = vec![Change::Put(Record::Fence(heir)), Change::Remove(Key::Fence(oldest.id.clone()))];
    Some(DueChange { changes, what, why })
}
