//! The `[daemon]` table.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonConfig {
    /// This guardian's name among the others; if not given, the host's.
    pub name: Option<String>,
    /// Where verbs on the same host reach it.
    pub socket: PathBuf,
    /// The form of its log where journald does not take it.
    pub log: LogForm,
    /// How long another guardian waits for a leader that is silent. Renewed four times within it.
    pub lease: Duration,
}

/// `daemon.log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogForm {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self {
            name: None,
            socket: PathBuf::from("/run/rbd-guardian/control.sock"),
            log: LogForm::default(),
            lease: Duration::from_secs(8),
        }
    }
}

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDaemon {
    name: Option<String>,
    socket: Option<PathBuf>,
    log: Option<LogForm>,
    lease: Option<String>,
}

impl RawDaemon {
    /// Checks it.
    ///
    /// # Errors
    /// The key, and what is allowed.
    pub fn check(self) -> Result<DaemonConfig, (&'static str, String)> {
        let defaults = DaemonConfig::default();
        if self.name.as_ref().is_some_and(|name| name.is_empty() || name.len() > 63) {
            return Err(("daemon.name", "1 to 63 characters".to_owned()));
        }
        let socket = self.socket.unwrap_or(defaults.socket);
        // `sun_path` has 108 bytes with the NUL (unix(7)); a moment long the name is a little longer.
        if !socket.is_absolute() || socket.as_os_str().len() > 100 {
            let detail = format!("'{}' must be an absolute path of at most 100 bytes", socket.display());
            return Err(("daemon.socket", detail));
        }
        let lease = self.lease.as_deref().map_or(Ok(defaults.lease), |text| {
            humantime::parse_duration(text).map_err(|e| ("daemon.lease", format!("'{text}': {e}; write 8s")))
        })?;
        // Shorter, one slow OSD would end it; longer, a dead leader's work would wait too long.
        if !(Duration::from_secs(4)..=Duration::from_secs(60)).contains(&lease) {
            return Err(("daemon.lease", "between 4s and 60s".to_owned()));
        }
        Ok(DaemonConfig { name: self.name, socket, log: self.log.unwrap_or_default(), lease })
    }
}
