//! An entry of the blocklist in whatever form the osdmap lists it.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::addr::{EntityAddr, Entry};

/// An entry in any form that the blocklist has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listed {
    /// Of `blocklist`.
    Address(EntityAddr),
    /// Of `range_blocklist`.
    Range(IpNet),
}

impl Listed {
    /// The entry, if it is of the kinds that the guardian adds.
    pub fn entry(self) -> Option<Entry> {
        match self {
            Self::Address(addr) if addr.is_host() => Some(Entry::Host(addr.ip)),
            Self::Address(addr) => addr.client().map(Entry::Client),
            Self::Range(range) if range.prefix_len() == range.max_prefix_len() => {
                Some(Entry::HostRange(range.addr()))
            }
            Self::Range(_) => None,
        }
    }

    /// `host`, `client`, `daemon` or `network`.
    pub fn kind(self) -> &'static str {
        match (self, self.entry()) {
            (_, Some(entry)) => entry.kind(),
            (Self::Address(_), None) => "daemon",
            (Self::Range(_), None) => "network",
        }
    }

    pub(crate) fn names(self, ip: IpAddr) -> bool {
        match self {
            Self::Address(addr) => addr.ip == ip,
            Self::Range(range) => range.contains(&ip),
        }
    }

    /// The command that lifts it. Without `range` a range would be taken for a client whose nonce is the length of
    /// its prefix.
    pub fn removal(self) -> String {
        let range = if matches!(self, Self::Range(_)) { "range " } else { "" };
        format!("ceph osd blocklist {range}rm {self}")
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => addr.fmt(f),
            Self::Range(range) => range.fmt(f),
        }
    }
}

impl Serialize for Listed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // A range has no port; an address without one would be read from it as well.
        let range = text.parse().map(Self::Range);
        range.or_else(|_| text.parse().map(Self::Address)).map_err(serde::de::Error::custom)
    }
}
