//! The tables `[daemon]`, `[trigger]` and `[guard]`: what only the daemon goes by.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use rbd_guardian_core::guardian::settings::{OnConflict, Trigger};
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
    /// Where recordings of the core go: a folder that is there.
    pub recordings: PathBuf,
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
            recordings: PathBuf::from("/var/lib/rbd-guardian"),
            lease: Duration::from_secs(8),
        }
    }
}

/// `[trigger]`: when a member is fenced and released without anybody asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TriggerConfig {
    /// Who may begin a fence.
    pub mode: Trigger,
    /// Without the gate a lost member is fenced so long before healing is due.
    pub lead: Duration,
    /// Between two fences that nobody asked for.
    pub cool_down: Duration,
    /// Release a member that is proved to have rebooted.
    pub auto_release: bool,
}

/// `[guard]`: the single-writer guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardConfig {
    /// When a client uses an image it should not.
    pub on_conflict: OnConflict,
    /// Between two sweeps.
    pub every: Duration,
    /// Hosts whose use of any image is legitimate.
    pub admin_hosts: Vec<IpNet>,
}

impl Default for TriggerConfig {
    fn default() -> Self {
        Self {
            mode: Trigger::default(),
            lead: Duration::from_secs(10),
            cool_down: Duration::from_secs(30),
            auto_release: true,
        }
    }
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self { on_conflict: OnConflict::default(), every: Duration::from_secs(30), admin_hosts: Vec::new() }
    }
}

/// A key, and what is allowed.
type BadValue = (&'static str, String);

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTrigger {
    mode: Option<Trigger>,
    lead: Option<String>,
    cool_down: Option<String>,
    auto_release: Option<bool>,
}

impl RawTrigger {
    /// Checks it.
    ///
    /// # Errors
    /// The key, and what is allowed.
    pub fn check(&self) -> Result<TriggerConfig, BadValue> {
        let defaults = TriggerConfig::default();
        Ok(TriggerConfig {
            mode: self.mode.unwrap_or(defaults.mode),
            lead: duration("trigger.lead", self.lead.as_deref(), defaults.lead, 2..=300)?,
            cool_down: duration(
                "trigger.cool_down",
                self.cool_down.as_deref(),
                defaults.cool_down,
                0..=86_400,
            )?,
            auto_release: self.auto_release.unwrap_or(defaults.auto_release),
        })
    }
}

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawGuard {
    on_conflict: Option<OnConflict>,
    every: Option<String>,
    #[serde(default)]
    admin_hosts: Vec<String>,
}

impl RawGuard {
    /// Checks it.
    ///
    /// # Errors
    /// The key, and what is allowed.
    pub fn check(&self) -> Result<GuardConfig, BadValue> {
        let defaults = GuardConfig::default();
        let network = |text: &String| {
            let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_| ("guard.admin_hosts", format!("'{text}' is neither an IP nor a network")))
        };
        Ok(GuardConfig {
            on_conflict: self.on_conflict.unwrap_or(defaults.on_conflict),
            every: duration("guard.every", self.every.as_deref(), defaults.every, 1..=3600)?,
            admin_hosts: self.admin_hosts.iter().map(network).collect::<Result<_, _>>()?,
        })
    }
}

fn duration(
    key: &'static str,
    text: Option<&str>,
    default: Duration,
    seconds: RangeInclusive<u64>,
) -> Result<Duration, BadValue> {
    let Some(text) = text else { return Ok(default) };
    let duration = humantime::parse_duration(text).map_err(|e| (key, format!("'{text}': {e}; write 8s")))?;
    let (least, most) = (Duration::from_secs(*seconds.start()), Duration::from_secs(*seconds.end()));
    if duration < least || duration > most {
        let shown = humantime::format_duration;
        return Err((key, format!("between {} and {}", shown(least), shown(most))));
    }
    Ok(duration)
}

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawDaemon {
    name: Option<String>,
    socket: Option<PathBuf>,
    log: Option<LogForm>,
    recordings: Option<PathBuf>,
    lease: Option<String>,
}

impl RawDaemon {
    /// Checks it.
    ///
    /// # Errors
    /// The key, and what is allowed.
    pub fn check(self) -> Result<DaemonConfig, BadValue> {
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
        let recordings = self.recordings.unwrap_or(defaults.recordings);
        if !recordings.is_absolute() {
            let detail = format!("'{}' must be an absolute path", recordings.display());
            return Err(("daemon.recordings", detail));
        }
        // Shorter, one slow OSD would end it; longer, a dead leader's work would wait too long.
        let lease = duration("daemon.lease", self.lease.as_deref(), defaults.lease, 4..=60)?;
        let log = self.log.unwrap_or_default();
        Ok(DaemonConfig { name: self.name, socket, log, recordings, lease })
    }
}
