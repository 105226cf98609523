//! A site whose guardian watches a real Incus cluster: enrolled, the gate installed, its daemon on the host `guard`.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use lab::incus::Cluster;
use lab::{Lab, Process, Topology, monotonic, wait_for};
use nix::time::{ClockId, clock_gettime};
use rbd_guardian::config::Config;
use rbd_guardian::incus::options::IncusConfig;
use serde_json::Value;

use super::guardian::Guardian;
use super::{Answer, Site};

/// The members of every such site.
pub const MEMBERS: [&str; 3] = ["n1", "n2", "n3"];
/// What takes seconds.
pub const SOON: Duration = Duration::from_secs(60);
/// Incus looks for members to heal once a minute; a new leader needs half of one, and its first try may fail.
pub const HEALED: Duration = Duration::from_secs(200);

/// A lab with an Incus cluster on [`MEMBERS`], and a guardian. The order of the fields is the order of their end.
pub struct Guarded {
    first: Guardian,
    pub cluster: Cluster,
    pub site: Site,
    endpoints: String,
}

impl Guarded {
    /// All of it, with the gate installed and the daemon leading on a fresh reading of Incus.
    pub fn start(topology: Topology) -> Self {
        let site = Self::without_daemon(topology);
        site.guardian(&["gate", "install"]).expect(0);
        site.start_daemon();
        site.wait_until_watching();
        site
    }

    /// A site whose guardian is enrolled and configured, without gate and daemon.
    pub fn without_daemon(topology: Topology) -> Self {
        let mut site = Self::unenrolled(topology);
        let token = site.cluster.trust("rbd-guardian").unwrap();
        site.enroll(&token);
        site
    }

    /// A site whose guardian Incus does not know yet.
    pub fn unenrolled(topology: Topology) -> Self {
        let site = Site::start(topology, &[]);
        let cluster = site.lab.incus(&MEMBERS).unwrap();
        let first = Guardian::new(&site, "guard", "guard");
        let site = Self { first, cluster, site, endpoints: String::new() };
        site.configure("");
        site
    }

    /// Uses a token, and asks all members from then on.
    pub fn enroll(&mut self, token: &str) {
        let enrolled = self.guardian(&["incus", "enroll", token]).expect(0).json;
        let endpoints = enrolled["endpoints"].as_array().unwrap();
        assert_eq!(endpoints.len(), MEMBERS.len(), "{enrolled:#}");
        self.endpoints = endpoints.iter().map(Value::to_string).collect::<Vec<_>>().join(", ");
        self.configure("");
    }

    /// How the guardian reaches Incus, by its configuration.
    pub fn incus(&self) -> IncusConfig {
        Config::load(Some(&self.path("guard.toml"))).unwrap().incus
    }

    pub fn lab(&self) -> &Lab {
        &self.site.lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.lab().dir().join(name)
    }

    /// Writes the configuration: all members as endpoints, and more tables. What is known of members is learnt.
    pub fn configure(&self, more: &str) {
        self.first.configure(&self.incus_table(), more);
    }

    /// The `[incus]` table.
    fn incus_table(&self) -> String {
        let [certificate, key, cluster] =
            ["guardian.crt", "guardian.key", "cluster.crt"].map(|name| self.path(name));
        format!(
            "[incus]\nendpoints = [{}]\ncertificate = {certificate:?}\nkey = {key:?}\ncluster_certificate = {cluster:?}\n",
            self.endpoints
        )
    }

    /// Another guardian of the same cluster, configured and not started.
    pub fn another(&self, name: &str, host: &str) -> Guardian {
        self.another_with(name, host, "")
    }

    /// The same, with more lines of its own table, and more tables.
    pub fn another_with(&self, name: &str, host: &str, more: &str) -> Guardian {
        let guardian = Guardian::new(&self.site, name, host);
        guardian.configure(&self.incus_table(), more);
        guardian
    }

    /// The guardian on the host `guard`.
    pub fn first(&self) -> &Guardian {
        &self.first
    }

    /// Runs a verb on the guardian's host with `--json`.
    pub fn guardian(&self, words: &[&str]) -> Answer {
        self.first.verb(words)
    }

    /// As [`Guardian::insist`].
    #[track_caller]
    pub fn insist(&self, words: &[&str]) -> Answer {
        self.first.insist(words)
    }

    /// Starts the daemon; it may take a while to lead.
    pub fn start_daemon(&self) {
        self.first.start();
    }

    /// Ends the daemon as systemd does.
    pub fn stop_daemon(&self) {
        self.first.stop();
    }

    pub fn kill_daemon(&self) {
        self.first.kill();
    }

    /// To stop and continue it.
    pub fn with_daemon<T>(&self, act: impl FnOnce(&mut Process) -> T) -> T {
        self.first.with_daemon(act)
    }

    /// What the daemon logged in all of its lives.
    pub fn log_text(&self) -> String {
        self.first.log_text()
    }

    /// Its log lines with this code that are about this member.
    pub fn logged(&self, code: &str, member: &str) -> Vec<Value> {
        self.first.logged(code).into_iter().filter(|line| line["member"] == member).collect()
    }

    /// Waits for a log line with this code that is about this member; the last one.
    #[track_caller]
    pub fn hears(&self, code: &str, member: &str) -> Value {
        self.first.hears(code, |line| line["member"] == member)
    }

    /// The daemon's own words over its socket, `None` while it does not answer.
    pub fn status(&self) -> Option<Value> {
        self.first.status()
    }

    /// Waits for such a status, and returns it.
    #[track_caller]
    pub fn wait_for_status(&self, what: &str, deadline: Duration, is: impl Fn(&Value) -> bool) -> Value {
        self.first.wait_for_status(what, deadline, is)
    }

    /// Waits until it leads, reads Incus, and has the gate in place everywhere.
    #[track_caller]
    pub fn wait_until_watching(&self) -> Value {
        self.wait_for_status("the guardian to watch", SOON, |status| {
            let members = status["members"].as_array().map(Vec::as_slice).unwrap_or_default();
            status["stage"] == "leading"
                && status["platform"]["fresh"] == true
                && status["gate"]["state"] == "installed"
                && members.len() == MEMBERS.len()
                && members.iter().all(|member| member["state"] == "watching")
        })
    }

    /// Waits until it has learnt the address that this member's storage clients have, and all of its clients.
    #[track_caller]
    pub fn wait_until_known(&self, name: &str) {
        let ip = self.site.ip(name);
        self.wait_for_status(&format!("the address of {name}"), SOON, |status| {
            let line = member(status, name);
            line["addresses"].as_array().into_iter().flatten().any(|known| known["address"] == *ip)
        });
    }

    /// Waits until a member is in this state.
    #[track_caller]
    pub fn wait_for_state(&self, member: &str, state: &str, deadline: Duration) -> Value {
        let what = format!("{member} to be {state}");
        self.wait_for_status(&what, deadline, |status| self::member(status, member)["state"] == state)
    }

    /// Where an instance is placed, by the list: its own member, which may be lost, is not asked.
    #[track_caller]
    pub fn listed(&self, name: &str) -> String {
        let found = wait_for("the list of instances", SOON, || {
            let listed = self.cluster.live()?.query("/1.0/instances?recursion=1")?;
            let mut listed = listed.as_array().into_iter().flatten();
            let instance = listed.find(|instance| instance["name"] == name);
            Ok(instance.and_then(|instance| instance["location"].as_str().map(str::to_owned)))
        });
        found.unwrap()
    }

    /// A time of `CLOCK_BOOTTIME`, on the clock of [`monotonic`].
    pub fn since_boot(boot: Duration) -> Duration {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap());
        // They differ by the time this machine slept; nothing of the lab outlives that.
        boot - now.saturating_sub(monotonic())
    }

    /// When a log line was written, on the clock of [`monotonic`]: good as long as nobody sets the wall clock.
    pub fn instant(line: &Value) -> Duration {
        let at: Timestamp = line["timestamp"].as_str().unwrap().parse().unwrap();
        let ago = Timestamp::now().duration_since(at);
        monotonic() - Duration::try_from(ago).unwrap()
    }
}

/// A member's line of a status; null where there is none.
pub fn member(status: &Value, name: &str) -> Value {
    let mut members = status["members"].as_array().into_iter().flatten();
    members.find(|member| member["name"] == name).cloned().unwrap_or_default()
}

/// A member's fence in force, of a status; null where there is none.
pub fn fence(status: &Value, name: &str) -> Value {
    let mut fences = status["fences"].as_array().into_iter().flatten();
    fences.find(|fence| fence["member"] == name).cloned().unwrap_or_default()
}

/// An alarm of a status; null where there is none.
pub fn alarm(status: &Value, code: &str, name: &str) -> Value {
    let mut alarms = status["alarms"].as_array().into_iter().flatten();
    alarms.find(|alarm| alarm["code"] == code && alarm["member"] == name).cloned().unwrap_or_default()
}
