//! The gate's keys: what they should be, what they are, and what to write.
//!
//! Contents are compared as a whole and written as a whole, with an epoch that never repeats: the platform checks its
//! tags in one transaction and writes in another, and equal contents have equal tags (DESIGN §5).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::map::OsdMap;
use crate::domain::policy::Policy;
use crate::domain::view::{GateView, MemberStatus, MemberView, View};

/// What all keys of the guardian begin with, in the configuration of project `default`.
pub const KEYS: &str = "user.rbd-guardian.";
/// Followed by a member's name: its instances may be placed elsewhere.
pub const SEAL: &str = "user.rbd-guardian.seal.";
/// The value of a seal key.
pub const SEALED: &str = "sealed";
/// Raised by each write.
pub const EPOCH: &str = "user.rbd-guardian.epoch";
/// All members, separated by commas: so that the gate can count a member's instances instead of listing all.
pub const MEMBERS: &str = "user.rbd-guardian.members";
/// Storage whose every image a seal covers, and storage no other member can reach, separated by commas.
pub const POOLS: &str = "user.rbd-guardian.pools";
/// The operator's: `off` lets everything through.
pub const OVERRIDE: &str = "user.rbd-guardian.gate";

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

/// What was written to the gate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Desk {
    /// The keys of the last write, if this guardian has written any.
    pub written: Option<BTreeMap<String, String>>,
    /// The epoch of the last write.
    pub epoch: u64,
    /// When the last write ended: readings that began before tell nothing of it.
    pub ended: Duration,
    /// When the last write failed, if none succeeded since.
    pub failed: Option<(Duration, String)>,
    /// When the scriptlet was sent last.
    pub pushed: Option<Duration>,
}

/// Where it stands, by a reading of all members.
pub fn state(view: Option<&View>, is_lost: impl Fn(&str) -> bool) -> GateState {
    let Some((view, gate)) = view.and_then(|view| Some((view, view.gate.as_ref()?))) else {
        return GateState::Unknown;
    };
    if gate.keys.get(OVERRIDE).is_some_and(|value| value == "off") {
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

/// The guardian's keys as they are, without the epoch and the operator's override.
pub fn own_keys(gate: &GateView) -> BTreeMap<String, String> {
    let own = |key: &&String| key.starts_with(KEYS) && ![EPOCH, OVERRIDE].contains(&key.as_str());
    gate.keys.iter().filter(|(key, _)| own(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The epoch as it is.
pub fn epoch(gate: &GateView) -> u64 {
    gate.keys.get(EPOCH).and_then(|epoch| epoch.parse().ok()).unwrap_or_default()
}

/// The keys as they should be.
pub fn wanted<'a>(
    open: &BTreeSet<String>,
    members: impl Iterator<Item = &'a String>,
    pools: &BTreeSet<String>,
) -> BTreeMap<String, String> {
    let seals = open.iter().map(|member| (format!("{SEAL}{member}"), SEALED.to_owned()));
    let members = members.cloned().collect::<Vec<_>>().join(",");
    let pools = pools.iter().cloned().collect::<Vec<_>>().join(",");
    let all = seals.chain([(MEMBERS.to_owned(), members), (POOLS.to_owned(), pools)]);
    // The platform drops keys without a value.
    all.filter(|(_, value)| !value.is_empty()).collect()
}

/// Drivers whose volumes are on one member alone; of others two members could write to one (`isRemote` in
/// internal/server/storage/drivers, 6.0.4 and 7.3).
pub const LOCAL: [&str; 4] = ["btrfs", "dir", "lvm", "zfs"];

/// Storage pools of which every image lies in a guarded pool of this storage cluster, those of single members, and
/// guarded pools as the source of a disk names them (`ceph:CLUSTER/POOL`).
pub fn covered(view: &View, map: &OsdMap, policy: &Policy, storage: &str) -> BTreeSet<String> {
    let guarded: BTreeSet<&str> = policy.guarded.pools(map).values().map(|pool| pool.name.as_str()).collect();
    let covered = view.pools.iter().flatten().filter(|(_, pool)| {
        let here = pool.cluster.as_deref().is_none_or(|cluster| cluster == storage);
        let whole = pool.osd_pool.as_ref().is_some_and(|osd_pool| guarded.contains(osd_pool.as_str()));
        LOCAL.contains(&pool.driver.as_str()) || (here && whole && pool.driver == "ceph")
    });
    let sources = guarded.iter().map(|pool| format!("ceph:{storage}/{pool}"));
    covered.map(|(name, _)| name.clone()).chain(sources).collect()
}

/// Members with a seal key.
pub fn seals(keys: &BTreeMap<String, String>) -> BTreeSet<String> {
    keys.keys().filter_map(|key| key.strip_prefix(SEAL)).map(str::to_owned).collect()
}
