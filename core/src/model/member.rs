//! Incus members as the guardian knows them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A member and the IPs its storage clients are known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name in the cluster.
    pub name: String,
    /// Its identity IPs: what watchers and monitor sessions of its clients show.
    pub addresses: Vec<IpAddr>,
}

/// All members, in the order of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members(pub Vec<Member>);

impl Members {
    pub fn get(&self, name: &str) -> Option<&Member> {
        self.0.iter().find(|member| member.name == name)
    }

    /// Whose address it is.
    pub fn owner(&self, ip: IpAddr) -> Option<&Member> {
        self.0.iter().find(|member| member.addresses.contains(&ip))
    }
}
