//! The table `[incus]`: how Incus is reached.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use rbd_guardian_core::model::addr::{Entry, parse_target};

use crate::incus::endpoint::Endpoint;

/// The `[incus]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncusConfig {
    /// Members to ask and to listen to. Without any there is no Incus: fences are made by hand only.
    pub endpoints: Vec<Endpoint>,
    /// The guardian's certificate, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM, readable by its owner alone.
    pub key: PathBuf,
    /// The certificate that all members present, in PEM.
    pub cluster_certificate: PathBuf,
    /// Bounds each request to one member, from connecting to the end of the answer.
    pub timeout: Duration,
}

impl Default for IncusConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            certificate: PathBuf::from("/etc/rbd-guardian/incus.crt"),
            key: PathBuf::from("/etc/rbd-guardian/incus.key"),
            cluster_certificate: PathBuf::from("/etc/rbd-guardian/incus-cluster.crt"),
            timeout: Duration::from_secs(5),
        }
    }
}

pub(crate) fn host(text: &str) -> Result<IpAddr, String> {
    match parse_target(text).map_err(|error| error.to_string())? {
        Entry::Host(ip) | Entry::HostRange(ip) => Ok(ip),
        Entry::Client(client) => {
            Err(format!("'{text}' is one client instance: write its host, {}", client.ip))
        }
    }
}
