//! One reading of the platform: what a member with quorum says of members, instances, storage and the gate.
//!
//! Fields and values as Incus has them (docs/facts/incus.md#the-api); what is not used is not kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::pairs;
use crate::model::volume::{ExternalImage, StoragePool, Volume};

/// Everything read in one go. What could not be read is `None`, never empty: unknown is not none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncusSnapshot {
    /// The member that answered.
    pub from: String,
    /// All members. Needs the database, so that there is one at all shows that `from` has a quorum.
    pub members: BTreeMap<String, MemberView>,
    /// Thresholds of the cluster.
    pub thresholds: Thresholds,
    /// All instances of all projects. Those of an unreachable member come without their devices.
    #[serde(with = "pairs::option")]
    pub instances: Option<BTreeMap<InstanceId, Instance>>,
    /// Storage pools by name.
    pub pools: Option<BTreeMap<String, StoragePool>>,
    /// Volumes of all pools and projects, from the database alone: complete also while members are down.
    pub volumes: Option<Vec<Volume>>,
    /// Operations under way.
    pub operations: Option<Vec<Operation>>,
    /// The gate as Incus has it.
    pub gate: Option<GateView>,
}

/// After how long without a heartbeat a member counts as offline, and is healed (0: never).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thresholds {
    /// `cluster.offline_threshold`.
    pub offline: Duration,
    /// `cluster.healing_threshold` as it counts: never below `offline`; `None` when healing is off.
    pub healing: Option<Duration>,
}

/// A member in the members' listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    pub status: MemberStatus,
    /// How old its last heartbeat is, where the answer says so (it does for an offline member).
    pub heartbeat_age: Option<Duration>,
    /// Where its API is (`https://10.0.0.1:8443`).
    pub url: String,
    /// Does it lead the database?
    pub leads: bool,
    /// `user.rbd-guardian.ceph-addresses`, the operator's word on its storage addresses; or why it is not understood.
    pub addresses: Result<BTreeSet<IpAddr>, String>,
}

/// `status` of a member. States of maintenance hide whether it is reachable (docs/facts/incus.md#healing).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum MemberStatus {
    /// Reachable.
    Online,
    /// No heartbeat for the offline threshold.
    Offline,
    /// Instances are being moved away, by hand or by healing.
    Evacuating,
    /// They were moved away.
    Evacuated,
    /// They are being brought back.
    Restoring,
    /// It runs another version.
    Blocked,
    /// A word this guardian does not know.
    Other(String),
}

/// Project and name: unique in a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceId {
    pub project: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Container or VM.
    pub kind: InstanceKind,
    /// The member it is placed on.
    pub location: String,
    /// `None` if its member could not be asked.
    pub details: Option<Details>,
}

/// What only the instance's member can tell, or what the configuration says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    pub running: bool,
    /// `volatile.last_state.power` is RUNNING: healing starts it elsewhere.
    pub ran: bool,
    /// `boot.autostart`: `Some(false)` keeps healing from starting it.
    pub autostart: Option<bool>,
    /// Images that `source=ceph:POOL/IMAGE` disk devices map.
    pub external_images: Vec<ExternalImage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceKind {
    Container,
    VirtualMachine,
}

/// An operation that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub id: String,
    /// What it does, as the API words it.
    pub kind: OperationKind,
    /// The member that executes it.
    pub location: String,
    /// The instances it is about.
    pub instances: BTreeSet<InstanceId>,
}

/// Operations that matter here, by their description (docs/facts/incus.md#healing).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    /// "Healing cluster".
    Heal,
    /// "Evacuating cluster member", "Restoring cluster member".
    Evacuate,
    /// "Migrating instance": also what healing does to each instance.
    Migrate,
    /// "Starting instance".
    Start,
    Other,
}

/// The gate as the API shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateView {
    /// `instances.placement.scriptlet` in each member's own memory; `Err` for a member that did not answer.
    pub scriptlets: BTreeMap<String, Result<String, String>>,
    /// Members whose gate is not the one that this version of the guardian installs.
    #[serde(default)]
    pub other_version: BTreeSet<String>,
    /// The keys `user.rbd-guardian.*` of project `default`: the operator's override, and what has no effect there.
    pub project: BTreeMap<String, String>,
    /// The guardian's own keys in each member's configuration.
    pub members: BTreeMap<String, BTreeMap<String, String>>,
}

/// What a member says of itself; asked of itself, so an answer means that it is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberState {
    /// Since it booted (`sysinfo.uptime`).
    pub uptime: Duration,
    /// What tells one machine from another of the same name, as [`Machine`](crate::model::machine::Machine) writes it; `None` if
    /// its API shows nothing that does.
    pub machine: Option<String>,
}

/// Something Incus announced, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Notice {
    /// An operation "Healing cluster" began or goes on; the member it is for, where a message names it.
    Healing {
        /// The lost member.
        member: Option<String>,
    },
    /// The gate refused to re-place an instance of this member.
    Refused {
        /// The member that is not sealed.
        member: String,
        /// Whether healing asked (a `relocation` alone may be an operator's `incus move`).
        healing: bool,
    },
    /// The gate refused a placement for a reason that no seal changes: a disk on storage that is not covered.
    NotPlaced {
        /// The gate's words.
        why: String,
    },
    /// Keys of the gate, members or instances may have changed: read them again.
    Changed,
    /// Events may have been missed: read everything again.
    Missed,
}

impl From<String> for MemberStatus {
    fn from(status: String) -> Self {
        match status.to_ascii_lowercase().as_str() {
            "online" => Self::Online,
            "offline" => Self::Offline,
            "evacuating" => Self::Evacuating,
            "evacuated" => Self::Evacuated,
            "restoring" => Self::Restoring,
            "blocked" => Self::Blocked,
            _ => Self::Other(status),
        }
    }
}

impl From<MemberStatus> for String {
    fn from(status: MemberStatus) -> Self {
        status.to_string()
    }
}

impl fmt::Display for MemberStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Online => "Online",
            Self::Offline => "Offline",
            Self::Evacuating => "Evacuating",
            Self::Evacuated => "Evacuated",
            Self::Restoring => "Restoring",
            Self::Blocked => "Blocked",
            Self::Other(status) => status,
        })
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.project == "default" {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.project, self.name)
        }
    }
}
