//! What Incus logs, as one of its members tells it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use lab::monotonic;
use serde_json::Value;

use super::guarded::{Guarded, HEALED};

/// What Incus tells of its doings, by one of its members.
pub struct Monitor {
    client: Child,
    log: PathBuf,
}

impl Monitor {
    pub fn start(site: &Guarded, name: &str) -> Self {
        let log = site.path(&format!("log/monitor-{}.json", monotonic().as_millis()));
        let mut client = site.cluster.member(name).client(HEALED * 3);
        client.args(["monitor", "--type=logging", "--format=json", "--all-projects"]);
        let client = client.stdout(Stdio::from(File::create(&log).unwrap())).spawn().unwrap();
        Self { client, log }
    }

    /// When it said something like this, after an instant.
    pub fn said(&self, after: Duration, what: impl Fn(&Value) -> bool) -> Vec<Duration> {
        let text = fs::read_to_string(&self.log).unwrap();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| what(line)).map(|line| Guarded::instant(&line)).filter(|at| *at > after).collect()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}
