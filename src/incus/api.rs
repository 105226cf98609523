//! Answers of Incus, as far as they are used: the shape of its JSON, 6.0.4 to 7.x (docs/facts/incus.md#the-api).
//!
//! Go writes an empty list or map as `null` as readily as `[]`; both are read as empty here, except where `null`
//! means that nobody could be asked. Words of an enumeration stay text: a newer Incus has more of them.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;
use rbd_guardian_core::model::incus_snapshot::{InstanceId, InstanceKind, MemberStatus, OperationKind};
use rbd_guardian_core::model::volume::{Content, VolumeKind};
use serde::{Deserialize, Deserializer, Serialize};

use super::path::instance_of;

/// Configuration keys.
pub type Keys = BTreeMap<String, String>;

/// `cluster.offline_threshold`, where it is not set (internal/server/db/node.go:1276).
pub const DEFAULT_OFFLINE_THRESHOLD: Duration = Duration::from_secs(20);

/// `GET /1.0`: answered from memory, also by a member without a quorum.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Server {
    /// `trusted` or `untrusted`: whether our certificate counts.
    #[serde(default)]
    pub auth: String,
    /// What it can do.
    #[serde(default, deserialize_with = "or_empty")]
    pub api_extensions: Vec<String>,
    /// The server's configuration as this member has it in memory; nothing for the untrusted.
    #[serde(default, deserialize_with = "texts")]
    pub config: Keys,
    /// Who it is; nothing for the untrusted.
    #[serde(default)]
    pub environment: Environment,
}

/// `environment` of [`Server`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Environment {
    /// The member's name.
    #[serde(default)]
    pub server_name: String,
    /// `6.0.4`.
    #[serde(default)]
    pub server_version: String,
    /// Is it a member of a cluster?
    #[serde(default)]
    pub server_clustered: bool,
    /// What it presents, in PEM.
    #[serde(default)]
    pub certificate: String,
}

/// An item of `GET /1.0/cluster/members?recursion=1`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Member {
    pub server_name: String,
    /// Where its API is: a member is asked itself there before it is fenced.
    pub url: String,
    /// As the member that answers sees it.
    pub status: MemberStatus,
    /// Why, and for an offline one how long ago it was heard.
    #[serde(default)]
    pub message: String,
    /// `database-leader`, `database`, …
    #[serde(default, deserialize_with = "or_empty")]
    pub roles: Vec<String>,
    /// `user.*` among others.
    #[serde(default, deserialize_with = "texts")]
    pub config: Keys,
}

/// `GET /1.0/cluster/members/M`, to be put back with another configuration: a PUT replaces all of it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct MemberObject {
    /// `user.*` among others.
    #[serde(default, deserialize_with = "texts")]
    pub config: Keys,
    /// Roles, groups and whatever else a member has; Incus leaves alone what cannot be replaced.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, serde_json::Value>,
}

/// `GET /1.0/cluster/members/M/state`, which Incus forwards to M.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MemberState {
    pub sysinfo: SysInfo,
}

/// `sysinfo` of [`MemberState`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SysInfo {
    /// Seconds since it booted (sysinfo(2)).
    pub uptime: u64,
}

/// `GET /1.0/resources?target=M`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Resources {
    #[serde(default)]
    pub system: System,
    /// Its network cards.
    #[serde(default, deserialize_with = "or_empty")]
    pub network: Network,
}

/// `system` of [`Resources`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct System {
    /// The machine's, from DMI or `lshw`; empty where there is none, or a maker's placeholder.
    #[serde(default)]
    pub uuid: String,
    /// Its serial number, as above.
    #[serde(default)]
    pub serial: String,
    #[serde(default, deserialize_with = "or_empty")]
    pub motherboard: HardwarePart,
    #[serde(default, deserialize_with = "or_empty")]
    pub chassis: HardwarePart,
}

/// A part that has a serial number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct HardwarePart {
    /// Often empty or a placeholder.
    #[serde(default)]
    pub serial: String,
}

/// `network` of [`Resources`]: physical devices only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Network {
    #[serde(default, deserialize_with = "or_empty")]
    pub cards: Vec<NetworkCard>,
}

/// A network card; virtual functions have entries of their own within, which are not read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct NetworkCard {
    #[serde(default, deserialize_with = "or_empty")]
    pub ports: Vec<NetworkPort>,
}

/// A port of a network card.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct NetworkPort {
    /// Its MAC address at this moment: a port of a bond has the bond's.
    #[serde(default)]
    pub address: String,
}

/// An item of `GET /1.0/instances?recursion=1&all-projects=true`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Instance {
    pub name: String,
    #[serde(default)]
    pub project: Option<String>,
    /// `container` or `virtual-machine`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The member it is placed on.
    #[serde(default)]
    pub location: Option<String>,
    /// `Running`, `Stopped`, `Error`, …
    #[serde(default)]
    pub status: String,
    /// `null` in the stub of an instance whose member could not be asked.
    #[serde(default)]
    pub config: Option<InstanceConfig>,
    /// With what its profiles say; `null` or absent in a stub.
    #[serde(default)]
    pub expanded_config: Option<InstanceConfig>,
    #[serde(default)]
    pub expanded_devices: Option<BTreeMap<String, Device>>,
}

/// Of an instance's configuration what is used: there are dozens of keys, and thousands of instances.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct InstanceConfig {
    /// `volatile.last_state.power`.
    #[serde(default, rename = "volatile.last_state.power")]
    pub power: Option<String>,
    /// `boot.autostart`.
    #[serde(default, rename = "boot.autostart")]
    pub autostart: Option<String>,
}

/// A device of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Device {
    /// `disk`, `nic`, …
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Of a disk, what it is when it is no volume of a pool: `ceph:POOL/IMAGE` among others.
    #[serde(default)]
    pub source: Option<String>,
    /// Of such a disk, the Ceph cluster that it names.
    #[serde(default, rename = "ceph.cluster_name")]
    pub cluster: Option<String>,
}

/// `GET /1.0/profiles/P?project=Q`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Profile {
    /// Instances that have it, of every project that may.
    pub used_by: Vec<String>,
}

/// An item of `GET /1.0/storage-pools?recursion=1`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Pool {
    pub name: String,
    /// `ceph`, `dir`, …
    pub driver: String,
    /// Nothing for those who may not edit pools.
    #[serde(default, deserialize_with = "texts")]
    pub config: Keys,
}

/// An item of `GET /1.0/storage-pools/P/volumes?recursion=1&all-projects=true`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Volume {
    /// Its name; `VOLUME/SNAPSHOT` of a snapshot.
    pub name: String,
    /// `container`, `virtual-machine`, `custom` or `image`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `filesystem`, `block` or `iso`.
    #[serde(default)]
    pub content_type: String,
    /// The project it is stored under.
    #[serde(default)]
    pub project: Option<String>,
    /// What is used of its configuration.
    #[serde(default, deserialize_with = "or_empty")]
    pub config: VolumeConfig,
    /// Paths of instances, profiles and images. Absent is unknown, not empty: who uses an image rests on it.
    #[serde(default, deserialize_with = "present")]
    pub used_by: Option<Vec<String>>,
}

/// Of a volume's configuration what is used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct VolumeConfig {
    /// `security.shared`.
    #[serde(default, rename = "security.shared")]
    pub shared: Option<String>,
}

/// `GET /1.0/projects/P`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Project {
    /// What the operator wrote; a PUT without it would lose it.
    #[serde(default)]
    pub description: String,
    /// All of it: a PUT replaces all of it.
    #[serde(default, deserialize_with = "texts")]
    pub config: Keys,
}

/// An operation, in the listing and in events.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Operation {
    pub id: String,
    /// What it does.
    #[serde(default)]
    pub description: String,
    /// `Pending`, `Running`, `Success`, `Failure`, …
    #[serde(default)]
    pub status: String,
    /// Why it failed.
    #[serde(default)]
    pub err: String,
    /// The member that executes it.
    #[serde(default)]
    pub location: String,
    /// Paths by kind: `instances` → `/1.0/instances/c1?project=p1`.
    #[serde(default, deserialize_with = "or_empty")]
    pub resources: BTreeMap<String, Option<Vec<String>>>,
}

/// `GET /1.0/operations?recursion=1&all-projects=true`: by status, in lower case.
pub type Operations = BTreeMap<String, Option<Vec<Operation>>>;

/// `GET /1.0/networks/IF/state?target=M`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NetworkState {
    /// What the interface has. An interface whose addresses are absent is not read, rather than without any.
    #[serde(deserialize_with = "or_empty")]
    pub addresses: Vec<Address>,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Address {
    /// Without its prefix length.
    pub address: String,
    /// Its prefix length, as text.
    #[serde(default)]
    pub netmask: String,
    /// `global`, `link` or `local`.
    pub scope: String,
}

impl Server {
    /// `cluster.offline_threshold`.
    pub fn offline_threshold(&self) -> Duration {
        self.seconds("cluster.offline_threshold").unwrap_or(DEFAULT_OFFLINE_THRESHOLD)
    }

    /// `cluster.healing_threshold` as it counts: never below the offline threshold (node.go, config.go:722); `None`
    /// when healing is off.
    pub fn healing_threshold(&self) -> Option<Duration> {
        let healing = self.seconds("cluster.healing_threshold").filter(|healing| !healing.is_zero())?;
        Some(healing.max(self.offline_threshold()))
    }

    /// `instances.placement.scriptlet`; empty for none.
    pub fn scriptlet(&self) -> &str {
        self.config.get("instances.placement.scriptlet").map_or("", String::as_str)
    }

    fn seconds(&self, key: &str) -> Option<Duration> {
        self.config.get(key)?.parse().ok().map(Duration::from_secs)
    }
}

impl Member {
    /// How old its last heartbeat is, where the message says so: `No heartbeat for 1m3.2s (2026-…)`.
    pub fn heartbeat_age(&self) -> Option<Duration> {
        let age = self.message.strip_prefix("No heartbeat for ")?.split(" (").next()?;
        // Go's durations (`1m3.2s`) are a part of the friendly format.
        age.parse::<SignedDuration>().ok()?.try_into().ok()
    }

    /// Does it lead the database?
    pub fn leads(&self) -> bool {
        self.roles.iter().any(|role| role == "database-leader")
    }
}

/// Container or VM; `None` for a kind this guardian does not know.
pub fn instance_kind(kind: &str) -> Option<InstanceKind> {
    match kind {
        "container" => Some(InstanceKind::Container),
        "virtual-machine" => Some(InstanceKind::VirtualMachine),
        _ => None,
    }
}

impl Volume {
    /// What it belongs to; `None` for a kind this guardian does not know.
    pub fn volume_kind(&self) -> Option<VolumeKind> {
        match self.kind.as_str() {
            "custom" => Some(VolumeKind::Custom),
            "image" => Some(VolumeKind::Image),
            kind => instance_kind(kind).map(VolumeKind::Instance),
        }
    }

    /// What is inside; `None` for a content this guardian does not know.
    pub fn content(&self) -> Option<Content> {
        match self.content_type.as_str() {
            // Older answers leave it out for what has always been there.
            "filesystem" | "" => Some(Content::Filesystem),
            "block" => Some(Content::Block),
            "iso" => Some(Content::Iso),
            _ => None,
        }
    }

    /// A snapshot shares its volume's image.
    pub fn is_snapshot(&self) -> bool {
        self.name.contains('/')
    }
}

impl Operation {
    /// What it does (internal/server/db/operationtype/operation_type.go:196-207).
    pub fn kind(&self) -> OperationKind {
        match self.description.as_str() {
            "Healing cluster" => OperationKind::Heal,
            "Evacuating cluster member" | "Restoring cluster member" => OperationKind::Evacuate,
            "Migrating instance" => OperationKind::Migrate,
            "Starting instance" => OperationKind::Start,
            _ => OperationKind::Other,
        }
    }

    /// Is it still under way? An unknown status counts as such: it was not seen to have ended.
    pub fn is_under_way(&self) -> bool {
        !matches!(self.status.as_str(), "Success" | "Failure" | "Cancelled")
    }

    /// The instances it is about.
    pub fn instances(&self) -> impl Iterator<Item = InstanceId> {
        self.resources.get("instances").into_iter().flatten().flatten().filter_map(|path| instance_of(path))
    }
}

/// `null` as empty, and only what is absent as `None`.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    or_empty(deserializer).map(Some)
}

fn or_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Configuration values are text, but a server may render what it hides, or a number, as something else.
pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Keys, D::Error> {
    let values: BTreeMap<String, serde_json::Value> = or_empty(deserializer)?;
    let text = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => text,
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::Array(_)
        | serde_json::Value::Object(_) => value.to_string(),
    };
    Ok(values.into_iter().map(|(key, value)| (key, text(value))).collect())
}
