//! What the tests on the real lab share: a guardian on a host of its own, with its own key and nothing more.
#![allow(dead_code, unreachable_pub)] // Each test program uses a part of it.

use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use lab::{Lab, Topology};
use serde_json::Value;

/// The longest any verb may take in a test.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A lab with a guardian on the host `guard`.
pub struct Site {
    pub lab: Lab,
    config: PathBuf,
    keyring: PathBuf,
    log: PathBuf,
}

/// What a verb answered.
#[derive(Debug)]
pub struct Answer {
    pub exit: i32,
    pub json: Value,
    pub stderr: String,
}

impl Site {
    /// One host `store` with a small cluster, the hosts `n1` and `n2` as members, and the guardian on `guard`.
    pub fn small() -> Self {
        Self::start(Topology::small(&["n1", "n2", "guard"]), &["n1", "n2"])
    }

    /// Starts the lab and configures these of its hosts as members.
    pub fn start(topology: Topology, members: &[&str]) -> Self {
        let lab = topology.start().unwrap();
        let caps = [
            ("mon", include_str!("../../deploy/ceph/mon.caps")),
            ("osd", include_str!("../../deploy/ceph/osd.caps")),
        ];
        let keyring = lab
            .key("guardian", &caps.map(|(kind, cap)| (kind, cap.trim())))
            .unwrap();
        let (config, log) = (
            lab.dir().join("rbd-guardian.toml"),
            lab.dir().join("guardian.log"),
        );
        let site = Self {
            lab,
            config,
            keyring,
            log,
        };
        site.configure(members, "");
        site
    }

    /// Writes the configuration anew: these members with their real addresses, and more lines before them.
    pub fn configure(&self, members: &[&str], more: &str) {
        let member = |name: &&str| {
            format!(
                "[[member]]\nname = \"{name}\"\naddresses = [\"{}\"]\n",
                self.lab.host(name).ip()
            )
        };
        let members: String = members.iter().map(member).collect();
        std::fs::write(&self.config, format!("{more}\n{members}")).unwrap();
    }

    /// Runs a verb on the guardian's host with `--json`.
    pub fn guardian(&self, words: &[&str]) -> Answer {
        self.guardian_on("guard", words)
    }

    /// Runs a verb on this host with `--json`.
    pub fn guardian_on(&self, host: &str, words: &[&str]) -> Answer {
        let output = self.command(host, words).output().unwrap();
        answer(words, &output)
    }

    /// The command line of a verb, to be run as the test likes.
    pub fn command(&self, host: &str, words: &[&str]) -> std::process::Command {
        let mut command = self
            .lab
            .host(host)
            .bounded(env!("CARGO_BIN_EXE_rbd-guardian"), LIMIT);
        command
            .arg("--config")
            .arg(&self.config)
            .arg("--keyring")
            .arg(&self.keyring)
            .arg("--json")
            .args(words);
        command
    }

    pub fn ip(&self, host: &str) -> String {
        self.lab.host(host).ip().to_string()
    }

    /// The blocklist as `osd dump` prints it: entry → until.
    pub fn blocklist(&self) -> serde_json::Map<String, Value> {
        let dump = self.lab.ceph(&["osd", "dump"]).unwrap();
        dump["blocklist"].as_object().unwrap().clone()
    }

    pub fn epoch(&self) -> u64 {
        self.lab.ceph(&["osd", "stat"]).unwrap()["epoch"]
            .as_u64()
            .unwrap()
    }
}

/// Exit code, parsed stdout (null if there was none) and stderr.
pub fn answer(words: &[&str], output: &Output) -> Answer {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let json = if stdout.trim().is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{words:?}: {e}: {stdout}{stderr}"))
    };
    let exit = output
        .status
        .code()
        .unwrap_or_else(|| panic!("{words:?} was killed: {stdout}{stderr}"));
    Answer { exit, json, stderr }
}

impl Answer {
    /// Asserts the exit code, showing everything if it is another.
    #[track_caller]
    pub fn expect(self, exit: i32) -> Self {
        assert_eq!(self.exit, exit, "{self:#?}");
        self
    }
}
