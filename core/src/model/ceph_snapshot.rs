//! What was read before a decision.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::addr::{ClientAddr, EntityAddr};
use crate::model::osdmap::{DataPools, OsdMap};

/// One look at the storage: everything `plan` is a function of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CephSnapshot {
    pub now: Timestamp,
    /// The guardian's own addresses.
    pub own: Vec<EntityAddr>,
    pub map: OsdMap,
    /// The daemons of the storage.
    pub daemons: Vec<Daemon>,
    /// Client instances seen, and where.
    pub clients: Clients,
    /// What could not be read, each in words. Unknown is not none.
    pub unread: Vec<String>,
    /// Pools that the headers of images name for their data. Looks of before did not read it.
    #[serde(default)]
    pub data_pools: DataPools,
}

/// Client instances and every place each was seen at.
pub type Clients = BTreeMap<ClientAddr, BTreeSet<SeenAt>>;

/// Where a client instance was seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeenAt {
    /// A session with a monitor, as this entity (`client.admin`).
    Session(String),
    /// A watch on this image (`pool/image`).
    Watch(String),
    /// The exclusive lock of this image.
    Lock(String),
    /// Remembered from when its member was healthy.
    Remembered,
}

/// A daemon of the storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// What it does.
    pub kind: DaemonKind,
    /// Its name without the kind: `a`, `3`.
    pub name: String,
    /// Where it is: several IPs in a dual-stack cluster, none when the monitors do not say.
    pub ips: Vec<IpAddr>,
    /// Whether work would move if it failed.
    pub role: Role,
    /// Addresses of client instances it holds itself (a mgr's modules).
    pub clients: Vec<ClientAddr>,
    /// It holds others that are not known, or all of them are not. Guardians of before decided as if there were none.
    #[serde(default)]
    pub clients_unknown: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DaemonKind {
    Mon,
    /// Object store.
    Osd,
    /// Manager.
    Mgr,
    /// Metadata server.
    Mds,
    /// Anything that registered itself with the mgr: rgw, rbd-mirror, gateways. Its name tells which.
    Service,
}

/// What a daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Holds a role that a standby can take over (mgr, mds).
    Active,
    /// Could take one over; a monitor outside of the quorum.
    Standby,
    /// Its kind has no such roles, or it is down.
    Plain,
}

impl Daemon {
    /// Is one of its addresses among these?
    pub fn is_at(&self, ips: &BTreeSet<IpAddr>) -> bool {
        self.ips.iter().any(|ip| ips.contains(ip))
    }
}

impl std::fmt::Display for DaemonKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Mon => "mon",
            Self::Osd => "osd",
            Self::Mgr => "mgr",
            Self::Mds => "mds",
            Self::Service => "service",
        })
    }
}

impl std::fmt::Display for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.kind, self.name)
    }
}
