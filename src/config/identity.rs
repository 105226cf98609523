//! Who this guardian is.

use std::{fs, io};

use crate::config::daemon::DaemonConfig;

/// Names this boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// This guardian, this host, this boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The guardian's name: the configured one, or the host's.
    pub name: String,
    /// The host's name.
    pub host: String,
    /// Names this boot of the host: times since boot count from it.
    pub boot_id: String,
}

impl Identity {
    /// Finds it out.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn find(config: &DaemonConfig) -> io::Result<Self> {
        let host = host()?;
        let boot_id = fs::read_to_string(BOOT_ID)?.trim().to_owned();
        Ok(Self { name: config.name.clone().unwrap_or_else(|| host.clone()), host, boot_id })
    }
}

/// This host's name.
///
/// # Errors
/// The kernel does not tell.
pub fn host() -> io::Result<String> {
    Ok(nix::unistd::gethostname()?.to_string_lossy().into_owned())
}
