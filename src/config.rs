//! The configuration file: TOML in, checked types out. Every error names the file, the place and what is allowed.

pub mod daemon;
pub mod files;
pub mod identity;
pub mod serve;
pub mod source;

use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use rbd_guardian_core::guardian::settings::Settings;
use rbd_guardian_core::model::addr::EntityAddr;
use rbd_guardian_core::model::member::{Member, Members};
use rbd_guardian_core::model::osdmap::Guarded;
use rbd_guardian_core::model::policy::{DEFAULT_EXPIRE, DEFAULT_MIN_REMAINING, Policy};
use serde::Deserialize;

use crate::config::daemon::{DaemonConfig, GuardConfig, RawDaemon, RawGuard, RawTrigger, TriggerConfig};
use crate::config::files::{ConfigFile, MergedConfig};
use crate::config::identity::Identity;
use crate::config::serve::{RawServe, ServeConfig};
use crate::incus::endpoint::Endpoint;
use crate::incus::options::{IncusConfig, host};
use crate::ledger::LedgerConfig;

/// Read if `--config` is not given; may be absent. Snippets are in the folder `conf.d` beside it.
pub const DEFAULT_PATH: &str = "/etc/rbd-guardian/rbd-guardian.toml";

/// The sample configuration: each key with its default.
pub const SAMPLE: &str = include_str!("../config/rbd-guardian.toml");

/// What the operator configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How to reach Ceph.
    pub ceph: CephConfig,
    /// Where guardians keep what they know together.
    pub ledger: LedgerConfig,
    /// What fences may do.
    pub policy: Policy,
    pub members: Members,
    /// How to reach Incus.
    pub incus: IncusConfig,
    /// How the daemon runs.
    pub daemon: DaemonConfig,
    /// When it fences and releases by itself.
    pub trigger: TriggerConfig,
    /// Its single-writer guard.
    pub guard: GuardConfig,
    /// Where it serves metrics and the status page.
    pub serve: ServeConfig,
}

/// The `[ceph]` table. Options of the same name on the command line win.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CephConfig {
    /// Path of `ceph.conf`.
    pub conf: Option<PathBuf>,
    pub cluster: Option<String>,
    /// Client name without `client.`.
    pub id: Option<String>,
    /// Path of the keyring.
    pub keyring: Option<PathBuf>,
    /// Pools no member writes to; all others that could hold images are guarded.
    #[serde(default)]
    pub except_pools: Vec<String>,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {path}: {error}")]
    Unreadable { path: String, error: std::io::Error },
    /// It is no TOML, or a key is unknown, missing or of another type. The TOML reader tells line and column.
    #[error("{path}: {detail}")]
    Malformed {
        path: String,
        /// Line, column and what is expected.
        detail: String,
    },
    /// A value is not allowed.
    #[error("{path}: {key}: {detail}")]
    BadValue {
        path: String,
        key: String,
        /// What is allowed.
        detail: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    ceph: CephConfig,
    #[serde(default)]
    ledger: RawLedger,
    #[serde(default)]
    policy: RawPolicy,
    #[serde(default)]
    incus: RawIncus,
    #[serde(default)]
    daemon: RawDaemon,
    #[serde(default)]
    trigger: RawTrigger,
    #[serde(default)]
    guard: RawGuard,
    #[serde(default)]
    serve: RawServe,
    #[serde(default, rename = "member")]
    members: Vec<RawMember>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLedger {
    pool: Option<String>,
    audit_entries: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    expire: Option<String>,
    min_remaining: Option<String>,
    retain_client_entries: Option<String>,
    fail_over: Option<bool>,
    max_fenced_members: Option<usize>,
    #[serde(default)]
    protected: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIncus {
    #[serde(default)]
    endpoints: Vec<String>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    cluster_certificate: Option<PathBuf>,
    timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMember {
    name: String,
    #[serde(default)]
    addresses: Vec<String>,
}

impl Config {
    /// Reads the named file, or the default one, which may be absent, and the snippets beside it.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::of(&files::read(path.unwrap_or(Path::new(DEFAULT_PATH)), path.is_some())?)
    }

    /// Checks the texts of these files, of which later ones override earlier ones.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn of(files: &[ConfigFile]) -> Result<Self, ConfigError> {
        Self::checked(&merge(files)?)
    }

    /// Checks the values of files that were put together.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn checked(merged: &MergedConfig) -> Result<Self, ConfigError> {
        // Each file by itself was of this shape.
        let raw = RawConfig::deserialize(merged.table.clone()).map_err(|error| ConfigError::Malformed {
            path: DEFAULT_PATH.to_owned(),
            detail: error.message().to_owned(),
        })?;
        let check = ConfigCheck { merged };
        let members = check.members(raw.members)?;
        let guarded = Guarded { except: raw.ceph.except_pools.clone(), ..Guarded::default() };
        let policy = Policy { guarded, ..check.policy(raw.policy)? };
        let incus = check.incus(raw.incus)?;
        let ledger = check.ledger(raw.ledger)?;
        let bad = |(key, detail)| check.bad(key, detail);
        let daemon = raw.daemon.check().map_err(bad)?;
        let trigger = raw.trigger.check().map_err(bad)?;
        let guard = raw.guard.check().map_err(bad)?;
        let serve = raw.serve.check().map_err(bad)?;
        Ok(Self { ceph: raw.ceph, ledger, policy, members, incus, daemon, trigger, guard, serve })
    }

    /// What the core goes by, as the guardian of this identity whose own storage addresses are these.
    pub fn settings(&self, identity: &Identity, own: &[EntityAddr]) -> Settings {
        let Self { policy, members, incus, trigger, guard, .. } = self;
        let mut settings = Settings::new(&identity.name, &identity.boot_id, policy.clone(), members.clone());
        settings.platform = !incus.endpoints.is_empty();
        settings.trigger = trigger.mode;
        settings.lead = trigger.lead;
        settings.cool_down = trigger.cool_down;
        settings.auto_release = trigger.auto_release;
        settings.guard.on_conflict = guard.on_conflict;
        settings.guard.every = guard.every;
        settings.guard.admin_hosts.clone_from(&guard.admin_hosts);
        settings.guard.own = own.to_vec();
        settings.storage = self.ceph.cluster.clone().unwrap_or(settings.storage);
        settings
    }
}

/// Puts these files together. Each of them is checked by itself, so that an error names the file and the place in it.
///
/// # Errors
/// A file is not TOML, or has a key that is unknown or of another type.
pub fn merge(files: &[ConfigFile]) -> Result<MergedConfig, ConfigError> {
    let main = files.first().map_or(DEFAULT_PATH, |file| &file.path).to_owned();
    let mut merged = MergedConfig::new(main);
    for ConfigFile { path, text } in files {
        let malformed = |error: toml::de::Error| ConfigError::Malformed {
            path: path.clone(),
            detail: place(text, error.span()) + &error.message().replace('\n', ", "),
        };
        toml::from_str::<RawConfig>(text).map_err(malformed)?;
        merged.add(toml::from_str(text).map_err(malformed)?, path);
    }
    Ok(merged)
}

struct ConfigCheck<'a> {
    merged: &'a MergedConfig,
}

impl ConfigCheck<'_> {
    fn bad(&self, key: impl Into<String>, detail: impl std::fmt::Display) -> ConfigError {
        let key = key.into();
        let path = self.merged.origin(&key).unwrap_or(&self.merged.main).to_owned();
        ConfigError::BadValue { path, key, detail: detail.to_string() }
    }

    fn members(&self, raw: Vec<RawMember>) -> Result<Members, ConfigError> {
        let mut members: Vec<Member> = Vec::new();
        for RawMember { name, addresses } in raw {
            if name.is_empty() || name.len() > 63 {
                return Err(self.bad("member.name", format!("'{name}' must have 1 to 63 characters")));
            }
            if members.iter().any(|member| member.name == name) {
                return Err(self.bad("member.name", format!("'{name}' is there twice")));
            }
            let key = format!("member '{name}' addresses");
            let mut ips = Vec::new();
            for text in &addresses {
                ips.push(host(text).map_err(|detail| self.bad(&key, detail))?);
            }
            members.push(Member { name, addresses: ips });
        }
        Ok(Members(members))
    }

    fn incus(&self, raw: RawIncus) -> Result<IncusConfig, ConfigError> {
        let defaults = IncusConfig::default();
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for text in &raw.endpoints {
            let endpoint = text.parse().map_err(|detail| self.bad("incus.endpoints", detail))?;
            if endpoints.contains(&endpoint) {
                return Err(self.bad("incus.endpoints", format!("'{text}' is there twice")));
            }
            endpoints.push(endpoint);
        }
        let timeout = self.duration("incus.timeout", raw.timeout.as_deref(), defaults.timeout, "5s")?;
        // A slow member answers a listing of all instances in seconds; longer than healing waits, no answer is of use.
        let bounds = Duration::from_millis(500)..=Duration::from_secs(30);
        if !bounds.contains(&timeout) {
            return Err(self.bad("incus.timeout", "between 500ms and 30s"));
        }
        Ok(IncusConfig {
            endpoints,
            certificate: raw.certificate.unwrap_or(defaults.certificate),
            key: raw.key.unwrap_or(defaults.key),
            cluster_certificate: raw.cluster_certificate.unwrap_or(defaults.cluster_certificate),
            timeout,
        })
    }

    fn ledger(&self, raw: RawLedger) -> Result<LedgerConfig, ConfigError> {
        let defaults = LedgerConfig::default();
        let audit_entries = raw.audit_entries.unwrap_or(defaults.audit_entries);
        if !AUDIT_ENTRIES.contains(&audit_entries) {
            let (least, most) = (AUDIT_ENTRIES.start(), AUDIT_ENTRIES.end());
            let detail = format!("from {least} to {most} (Ceph warns of objects with 200000 keys)");
            return Err(self.bad("ledger.audit_entries", detail));
        }
        let pool = raw.pool.unwrap_or(defaults.pool);
        if pool.is_empty() {
            return Err(self.bad("ledger.pool", "the name of a replicated pool"));
        }
        Ok(LedgerConfig { pool, audit_entries })
    }

    fn policy(&self, raw: RawPolicy) -> Result<Policy, ConfigError> {
        let defaults = Policy::default();
        let years = "5years or 90days";
        let expire = self.duration("policy.expire", raw.expire.as_deref(), defaults.expire, years)?;
        let min = raw.min_remaining.as_deref();
        let min = self.duration("policy.min_remaining", min, defaults.min_remaining, years)?;
        let retain = raw.retain_client_entries.as_deref();
        let key = "policy.retain_client_entries";
        let retain = self.duration(key, retain, defaults.retain_client_entries, "90days, or 0s for never")?;
        if expire > DEFAULT_EXPIRE {
            return Err(self.bad("policy.expire", "at most 5 years (Ceph 16 is not known to bear more)"));
        }
        if min + MARGIN > expire {
            let detail = "policy.min_remaining must be at least a day less than policy.expire (defaults: 4years, 5years)";
            return Err(self.bad("policy.min_remaining", detail));
        }
        if raw.max_fenced_members == Some(0) {
            return Err(
                self.bad("policy.max_fenced_members", "at least 1: with 0 nothing could ever be fenced")
            );
        }
        let network = |text: &String| {
            let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network
                .map_err(|_| self.bad("policy.protected", format!("'{text}' is neither an IP nor a network")))
        };
        Ok(Policy {
            expire,
            min_remaining: min,
            retain_client_entries: retain,
            fail_over: raw.fail_over.unwrap_or(defaults.fail_over),
            max_fenced_members: raw.max_fenced_members,
            protected: raw.protected.iter().map(network).collect::<Result<_, _>>()?,
            guarded: defaults.guarded,
        })
    }

    fn duration(
        &self,
        key: &str,
        text: Option<&str>,
        default: Duration,
        example: &str,
    ) -> Result<Duration, ConfigError> {
        let parse = |text| humantime::parse_duration(text);
        text.map_or(Ok(default), |text| {
            parse(text).map_err(|e| self.bad(key, format!("'{text}': {e}; write {example}")))
        })
    }
}

/// What `ledger.audit_entries` may be. An omap is not made for more (`osd_deep_scrub_large_omap_object_key_threshold`).
const AUDIT_ENTRIES: RangeInclusive<u64> = 10..=100_000;

/// Between the end of a new entry and what counts as short, so that clocks may differ.
const MARGIN: Duration = Duration::from_secs(24 * 3600);

/// `line 2, column 10: `, counted from 1, of where a span begins.
fn place(text: &str, span: Option<Range<usize>>) -> String {
    let before = span.and_then(|span| text.get(..span.start));
    before.map_or_else(String::new, |before| {
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!("line {}, column {column}: ", before.matches('\n').count() + 1)
    })
}

const _: () = assert!(DEFAULT_MIN_REMAINING.as_secs() + MARGIN.as_secs() < DEFAULT_EXPIRE.as_secs());

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::of(&[ConfigFile { path: "test.toml".to_owned(), text: text.to_owned() }])
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_sample_is_the_default() {
        let sample = parse(SAMPLE).unwrap();
        let mut default = parse("").unwrap();
        default.members = sample.members.clone();
        assert_eq!(sample, default, "what the sample sets must be what is assumed");
        assert_eq!(sample.members.0.len(), 3, "the sample shows members");
    }

    #[test]
    fn incus_is_reached_as_it_is_written() {
        let text =
            "[incus]\nendpoints = [\"https://n1:8443\", \"unix:/run/x\"]\nkey = \"/k\"\ntimeout = \"2s\"\n";
        let incus = parse(text).unwrap().incus;
        let names: Vec<_> = incus.endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["https://n1:8443", "unix:/run/x"]);
        assert_eq!((incus.key, incus.timeout), (PathBuf::from("/k"), Duration::from_secs(2)));
        assert_eq!(incus.certificate, IncusConfig::default().certificate);
        assert!(error("[incus]\nendpoints = [\"n1\"]\n").contains("incus.endpoints: 'n1'"));
        assert!(error("[incus]\nendpoints = [\"https://a\", \"https://a:8443\"]\n").contains("twice"));
        assert!(error("[incus]\ntimeout = \"1h\"\n").contains("between 500ms and 30s"));
        assert!(error("[incus]\ntimeout = \"x\"\n").contains("write 5s"));
        assert!(error("[incus]\nendpoint = \"https://a\"\n").contains("line 2"));
    }

    #[test]
    fn errors_name_file_place_and_what_is_allowed() {
        assert!(error("[polcy]\n").contains("line 1"), "{}", error("[polcy]\n"));
        assert!(error("[policy]\nexpire = 5\n").contains("line 2"));
        assert!(error("[policy]\nexpire = \"6years\"\n").contains("at most 5 years"));
        assert!(error("[policy]\nexpire = \"soon\"\n").contains("policy.expire"));
        assert!(error("[policy]\nexpire = \"1year\"\n").contains("min_remaining"));
        assert!(error("[policy]\nmax_fenced_members = 0\n").contains("at least 1"));
        assert!(error("[daemon]\nlease = \"1s\"\n").contains("daemon.lease: between 4s and 1m"));
        assert!(error("[daemon]\nsocket = \"run/x\"\n").contains("absolute path"));
        assert!(error("[daemon]\nrecordings = \"x\"\n").contains("absolute path"));
        assert!(error("[daemon]\nlog = \"xml\"\n").contains("line 2"));
        assert!(error("[trigger]\nmode = \"never\"\n").contains("line 2"));
        assert!(error("[trigger]\nlead = \"1s\"\n").contains("trigger.lead: between 2s and 5m"));
        assert!(error("[guard]\non_conflict = \"kill\"\n").contains("`fence-stale`"));
        assert!(error("[guard]\nadmin_hosts = [\"me\"]\n").contains("'me'"));
        assert!(error("[policy]\nprotected = [\"x\"]\n").contains("'x'"));
        assert!(error("[serve]\nlisten = \"9976\"\n").contains("serve.listen"));
        assert!(error("[ledger]\naudit_entries = 9\n").contains("from 10 to 100000"));
        assert!(error("[ledger]\npool = \"\"\n").contains("ledger.pool"));
        assert!(error("[ledger]\nnamespace = \"x\"\n").contains("line 2"));
        let twice = "[[member]]\nname = \"a\"\n[[member]]\nname = \"a\"\n";
        assert!(error(twice).contains("twice"));
        for bad in ["10.0.0.0/24", "fe80::1", "10.0.0.5:0/7", "n1"] {
            let text = format!("[[member]]\nname = \"a\"\naddresses = [\"{bad}\"]\n");
            assert!(error(&text).contains("member 'a' addresses"), "{bad}");
        }
    }
}
