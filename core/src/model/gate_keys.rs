//! The gate's keys: how they are written and read, and what they say.
//!
//! Each member's configuration says whose instances that member may take. So an unfinished write opens some targets
//! only, and the gate is closed for a member when no configuration names it any more, as read back.
//!
//! Contents are compared as a whole and written as a whole, with an epoch that never repeats: the platform checks its
//! tags in one transaction and writes in another, and equal contents have equal tags (docs/design.md#gate).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::model::epoch::GateEpoch;
use crate::model::incus_snapshot::{GateView, IncusSnapshot, MemberStatus, MemberView};
use crate::model::osdmap::OsdMap;
use crate::model::policy::Policy;
use crate::model::volume::StoragePool;

/// What all keys of the guardian begin with.
pub const KEYS: &str = "user.rbd-guardian.";
/// Followed by the name of another member: this one may take its instances. The value is the epoch of the write, and counts
/// while no member has a newer one: what somebody puts back or writes late opens nothing.
pub const SEAL: &str = "user.rbd-guardian.seal.";
/// Followed by the name of a lost member whose seal may come any moment: how often the gate looks for it before it refuses to
/// heal an instance of that member.
pub const WAIT: &str = "user.rbd-guardian.wait.";
/// Raised by each write.
pub const EPOCH: &str = "user.rbd-guardian.epoch";
/// All members, separated by commas: so that the gate can count a member's instances instead of listing all.
pub const MEMBERS: &str = "user.rbd-guardian.members";
/// Storage whose every image a seal covers, and storage no other member can reach, separated by commas.
pub const POOLS: &str = "user.rbd-guardian.pools";
/// The operator's, in the configuration of project `default`: `off` lets everything through.
pub const OVERRIDE: &str = "user.rbd-guardian.gate";

/// An epoch that is so far above what was recorded was written by somebody else: a guardian raises it by one.
const FAR: u64 = 1 << 32;

/// What the gate is told, the same at every member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateContents {
    /// Members whose instances may be placed elsewhere.
    pub open: BTreeSet<String>,
    pub members: BTreeSet<String>,
    /// Covered storage, see [`covered`].
    pub pools: BTreeSet<String>,
    /// Members whose seal is waited for within a healing, and how many looks that takes at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub awaited: BTreeMap<String, u32>,
}

/// Where the gate stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum GateState {
    /// Nothing is known of it.
    Unknown,
    /// At no member.
    Absent,
    /// At some members only: those named heal without asking.
    Partial {
        /// Reachable members without it.
        missing: BTreeSet<String>,
    },
    /// At every member that can be reached.
    Installed,
    /// Switched off by the operator.
    Off,
}

impl GateContents {
    /// As keys of a member's configuration.
    pub fn keys(&self, epoch: GateEpoch) -> BTreeMap<String, String> {
        // For members without a gate: nothing is left behind.
        if *self == Self::default() {
            return BTreeMap::new();
        }
        let listed = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(",");
        let seals = self.open.iter().map(|member| (format!("{SEAL}{member}"), epoch.to_string()));
        let lists = [(MEMBERS.to_owned(), listed(&self.members)), (POOLS.to_owned(), listed(&self.pools))];
        let waits = self.awaited.iter().map(|(member, looks)| (format!("{WAIT}{member}"), looks.to_string()));
        let own = [(EPOCH.to_owned(), epoch.to_string())];
        // The platform drops keys without a value.
        seals.chain(waits).chain(lists).chain(own).filter(|(_, value)| !value.is_empty()).collect()
    }

    /// From a member's keys; seals that open nothing are left out, as far as its own keys tell.
    pub fn of(keys: &BTreeMap<String, String>) -> Self {
        let listed = |key| {
            let names = keys.get(key).into_iter().flat_map(|names| names.split(','));
            names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
        };
        let epoch = keys.get(EPOCH);
        let counts = |member: &String| keys.get(&format!("{SEAL}{member}")) == epoch;
        let open = seals(keys).into_iter().filter(counts).collect();
        let looks = |(key, looks): (&String, &String)| {
            Some((key.strip_prefix(WAIT)?.to_owned(), looks.parse().ok()?))
        };
        let awaited = keys.iter().filter_map(looks).collect();
        Self { open, members: listed(MEMBERS), pools: listed(POOLS), awaited }
    }
}

/// Where it stands, by a reading of all members.
pub fn state(view: Option<&IncusSnapshot>, is_lost: impl Fn(&str) -> bool) -> GateState {
    let Some((view, gate)) = view.and_then(|view| Some((view, view.gate.as_ref()?))) else {
        return GateState::Unknown;
    };
    if gate.project.get(OVERRIDE).is_some_and(|value| value == "off") {
        return GateState::Off;
    }
    let stands =
        |scriptlet: &Result<String, String>| scriptlet.as_ref().is_ok_and(|marker| !marker.is_empty());
    if !gate.scriptlets.values().any(stands) {
        let told = gate.scriptlets.values().any(Result::is_ok);
        return if told { GateState::Absent } else { GateState::Unknown };
    }
    let newest = gate.scriptlets.values().flatten().max();
    let lacks = |(name, member): &(&String, &MemberView)| match gate.scriptlets.get(*name) {
        // One that the cluster has lost cannot heal anybody.
        _ if member.status == MemberStatus::Offline => false,
        Some(Ok(marker)) => Some(marker) != newest || marker.is_empty(),
        Some(Err(_)) | None => !is_lost(name),
    };
    let missing: BTreeSet<String> = view.members.iter().filter(lacks).map(|(name, _)| name.clone()).collect();
    if missing.is_empty() { GateState::Installed } else { GateState::Partial { missing } }
}

/// What `gate remove` has recorded before it begins.
pub const REMOVE: &str = "gate remove";

/// Is this a key of the guardian's own in a member's configuration? Others there are the operator's.
pub fn is_own(key: &str) -> bool {
    [EPOCH, MEMBERS, POOLS].contains(&key) || key.starts_with(SEAL) || key.starts_with(WAIT)
}

/// Keys in project `default` that are without effect there.
pub fn stray(gate: &GateView) -> impl Iterator<Item = &str> {
    gate.project.keys().map(String::as_str).filter(|key| *key != OVERRIDE)
}

/// The epoch of a member's keys; 0 where there is none, or none that can be read.
pub fn epoch(keys: &BTreeMap<String, String>) -> GateEpoch {
    keys.get(EPOCH).and_then(|epoch| epoch.parse().ok()).map(GateEpoch).unwrap_or_default()
}

/// May this epoch have come about by writes that were recorded, the last known of them with `recorded`?
pub fn is_plausible(epoch: GateEpoch, recorded: GateEpoch) -> bool {
    epoch.0.saturating_sub(recorded.0) <= FAR
}

/// The last epoch that some member has, of those that are plausible.
pub fn last_epoch(gate: &GateView, recorded: GateEpoch) -> GateEpoch {
    let epochs = gate.members.values().map(epoch);
    epochs.filter(|epoch| is_plausible(*epoch, recorded)).max().unwrap_or_default()
}

/// Members that a key names, whether it opens anything or not.
pub fn seals(keys: &BTreeMap<String, String>) -> BTreeSet<String> {
    keys.keys().filter_map(|key| key.strip_prefix(SEAL)).map(str::to_owned).collect()
}

/// Members that a key of any member names: for all others the gate is closed.
pub fn sealed_anywhere(gate: &GateView) -> BTreeSet<String> {
    gate.members.values().flat_map(seals).collect()
}

/// Drivers whose volumes are on one member alone; of others two members could write to one (`isRemote` in
/// internal/server/storage/drivers, 6.0.4 and 7.3).
pub const LOCAL: [&str; 4] = ["btrfs", "dir", "lvm", "zfs"];

/// Pools of this storage cluster that storage pools keep images or their data in.
pub fn named(view: &IncusSnapshot, storage: &str) -> BTreeSet<String> {
    let here = |pool: &&StoragePool| pool.is_in(storage);
    let pools = view.pools.iter().flatten().map(|(_, pool)| pool).filter(here);
    pools.flat_map(|pool| pool.osd_pool.iter().chain(&pool.data_pool)).cloned().collect()
}

/// Storage pools of which every image, its data included, lies in a guarded pool of this storage cluster, those of single members, and
/// guarded pools as the source of a disk names them (`ceph:CLUSTER/POOL`). None of them is `uncovered`: a pool that lacks the
/// images that Incus lists there.
pub fn covered(
    view: &IncusSnapshot,
    map: &OsdMap,
    policy: &Policy,
    storage: &str,
    uncovered: &BTreeSet<&str>,
) -> BTreeSet<String> {
    let guarded = policy.guarded.pools(map);
    let guarded = guarded.values().map(|pool| pool.name.as_str()).filter(|name| !uncovered.contains(name));
    let guarded: BTreeSet<&str> = guarded.collect();
    let data = |headers: &str| policy.guarded.excepted_data(headers, map).next().is_none();
    let covered = view.pools.iter().flatten().filter(|(_, pool)| {
        let parts = pool.osd_pool.iter().chain(&pool.data_pool);
        let whole = pool.osd_pool.as_deref().is_some_and(data)
            && parts.into_iter().all(|part| guarded.contains(part.as_str()));
        LOCAL.contains(&pool.driver.as_str()) || (whole && pool.is_in(storage))
    });
    let sources = guarded.iter().filter(|pool| data(pool)).map(|pool| format!("ceph:{storage}/{pool}"));
    covered.map(|(name, _)| name.clone()).chain(sources).collect()
}
