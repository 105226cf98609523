//! What the guardian needs of an osdmap.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::model::addr::{Entry, host_keys};
use crate::model::blocklist::Blocklist;
use crate::model::epoch::OsdEpoch;

/// A pool's number. Never used again after the pool is deleted.
pub type PoolId = i64;

/// One epoch of the osdmap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsdMap {
    /// Grows by one with each change.
    pub epoch: OsdEpoch,
    /// When it was made, by the monitors' clock.
    pub modified: Timestamp,
    /// Who is refused.
    pub blocklist: Blocklist,
    /// Whether these monitors know range entries (16.2.11, 17.2.1, 18.2.0 and later).
    pub knows_ranges: bool,
    /// `pauserd` set: no OSD answers reads, so no PG can be proved.
    pub reads_paused: bool,
    /// Items of the dump that were not understood, each in words. A recording of before has none: such a dump was lost as
    /// a whole.
    #[serde(default)]
    pub not_understood: Vec<String>,
    #[serde(deserialize_with = "by_number")]
    pub pools: BTreeMap<PoolId, Pool>,
}

/// For `#[serde(deserialize_with)]`: the keys of a JSON object are texts, and stay so inside of a flattened struct.
///
/// # Errors
/// The deserializer's, or a key that is no number.
pub fn by_number<'de, T, D>(deserializer: D) -> Result<BTreeMap<PoolId, T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let all = BTreeMap::<String, T>::deserialize(deserializer)?.into_iter();
    all.map(|(id, value)| Ok((id.parse().map_err(D::Error::custom)?, value))).collect()
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub name: String,
    /// How many PGs it has: numbered from 0.
    pub pg_num: u32,
    /// The pool clients' operations are redirected to, if it is overlaid by a cache tier.
    pub overlay: Option<PoolId>,
    /// Clients answer every operation on it with EIO themselves.
    pub eio: bool,
    /// What of it was not understood, in words: it is there, and none of its PGs can be proved. A recording of before has
    /// none of those.
    #[serde(default)]
    pub unclear: Option<String>,
    /// What it was enabled for (`rbd`, `cephfs`, `rgw`, `mgr`, …).
    pub applications: Vec<String>,
}

/// Which pools the guardian answers for: every one an RBD client could write, because a seal that leaves one out
/// is none. So image pools, their data pools and pools that join later are covered without being named.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Guarded {
    /// Pools the operator vouches for: no member writes there.
    pub except: Vec<String>,
    /// Pools that the platform keeps images or their data in, whatever their tags say. Guardians of before went by tags alone.
    #[serde(default)]
    pub named: BTreeSet<String>,
    /// Pools that the headers of images name for their data, by the pool of the headers. Guardians of before did not read it.
    #[serde(default)]
    pub data: DataPools,
}

/// The pools that the headers in each pool name for the data of their images.
pub type DataPools = BTreeMap<String, BTreeSet<PoolId>>;

/// Missed maps are read and examined in parts of at most so many: each holds the whole blocklist.
pub const MAPS_AT_ONCE: usize = 32;

/// A map this old says nothing of the monitors' clock but that it is later. The configuration lets a new entry stand at
/// least a day longer than is required of it.
const DAY: SignedDuration = SignedDuration::from_hours(24);

impl OsdMap {
    /// What the monitors' clock may be. Entries begin and end by that one alone (`OSDMonitor::tick`, docs/facts/ceph.md#blocklist-entries), and
    /// it can be years off this guardian's: what is judged by the wrong one takes a short entry for a long one, or a new
    /// one for a short one, which no repetition would make longer.
    pub fn clock(&self, wall: Timestamp) -> Timestamp {
        let latest = self.modified.checked_add(DAY).unwrap_or(Timestamp::MAX);
        wall.clamp(self.modified, latest)
    }
}

impl Guarded {
    /// The guarded pools of a map.
    pub fn pools<'m>(&self, map: &'m OsdMap) -> BTreeMap<PoolId, &'m Pool> {
        let data: BTreeSet<PoolId> = self.data.values().flatten().copied().collect();
        let holds = |id: &PoolId, pool: &Pool| {
            pool.may_hold_images() || self.named.contains(&pool.name) || data.contains(id)
        };
        let guarded = |id: &PoolId, pool: &Pool| holds(id, pool) && !self.except.contains(&pool.name);
        map.pools.iter().filter(|(id, pool)| guarded(id, pool)).map(|(id, pool)| (*id, pool)).collect()
    }

    /// Pools that images with headers in this pool keep their data in, and that the operator excepts.
    pub fn excepted_data<'m>(&self, headers: &str, map: &'m OsdMap) -> impl Iterator<Item = &'m str> {
        let data = self.data.get(headers).into_iter().flatten();
        let names = data.filter_map(|id| map.pools.get(id)).map(|pool| pool.name.as_str());
        names.filter(|name| self.except.iter().any(|excepted| excepted == name))
    }

    /// These headers were read as well, all there are if it is `complete`.
    pub fn note_data(&mut self, found: &DataPools, complete: bool) {
        if complete {
            self.data.clone_from(found);
            return;
        }
        for (headers, pools) in found {
            self.data.entry(headers.clone()).or_default().extend(pools);
        }
    }
}

impl Pool {
    /// The tag is advice, not protection: a pool without one, or with several, may hold images. `rbd-guardian` is the
    /// ledger's: no member writes there, and what protects it is that each write to it is conditional.
    fn may_hold_images(&self) -> bool {
        const OTHERS: [&str; 6] = ["cephfs", "rgw", "mgr", "mgr_devicehealth", "nfs", "rbd-guardian"];
        let other = |app: &String| OTHERS.contains(&app.as_str());
        self.applications.is_empty() || !self.applications.iter().all(other)
    }
}

/// A whole-host key that covers an entry and is not in use, so that its end can be chosen; `None` if both
/// forms are taken, or ranges are unknown here.
pub fn free_cover(map: &OsdMap, entry: Entry) -> Option<Entry> {
    let free = |key: &Entry| *key != entry && map.blocklist.until(*key).is_none();
    let known = |key: &Entry| map.knows_ranges || !matches!(key, Entry::HostRange(_));
    host_keys(entry).into_iter().find(|key| free(key) && known(key))
}
