//! What the tests on the real lab share: a guardian on a host of its own, with its own key and nothing more.
#![allow(dead_code, unreachable_pub)] // Each test program uses a part of it.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used)] // It is a part of tests.

pub mod body;
pub mod dice;
pub mod fault;
pub mod guarded;
pub mod guardian;
pub mod history;
pub mod json;
pub mod monitor;
pub mod pending;
pub mod round;
pub mod short_first;
pub mod siege;
pub mod trail;

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lab::{Lab, Topology, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The longest any verb may take in a test.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A lab with a guardian on the host `guard`.
pub struct Site {
    pub lab: Lab,
    config: PathBuf,
    pub keyring: PathBuf,
    log: PathBuf,
}

/// What a verb answered.
#[derive(Debug, Clone)]
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
        let keyring = lab.key("guardian", &caps.map(|(kind, cap)| (kind, cap.trim()))).unwrap();
        let pool = serde_json::json!({"prefix": "osd pool create", "pool": "rbd-guardian", "pg_num": 1, "pgp_num": 1, "size": 2});
        lab.ceph_json(&pool).unwrap();
        lab.ceph(&["osd", "pool", "application", "enable", "rbd-guardian", "rbd-guardian"]).unwrap();
        let (config, log) = (lab.dir().join("rbd-guardian.toml"), lab.dir().join("guardian.log"));
        let site = Self { lab, config, keyring, log };
        site.configure(members, "");
        site
    }

    /// Writes the configuration anew: these members with their real addresses, and more lines before them.
    pub fn configure(&self, members: &[&str], more: &str) {
        let member = |name: &&str| {
            format!("[[member]]\nname = \"{name}\"\naddresses = [\"{}\"]\n", self.lab.host(name).ip())
        };
        let members: String = members.iter().map(member).collect();
        std::fs::write(&self.config, format!("{more}\n{members}")).unwrap();
    }

    /// Gives the guardians' client another key: the old one is refused at once. `publish` writes it to their keyring.
    pub fn rotate_key(&self, publish: bool) {
        let admin = self.lab.host("admin");
        let made = admin.bounded("ceph-authtool", LIMIT).arg("--gen-print-key").output().unwrap();
        let key = String::from_utf8(made.stdout).unwrap();
        let text = format!("[client.guardian]\n\tkey = {}\n", key.trim());
        let caps = |text: &str| text.trim().replace('"', "\\\"");
        let (mon, osd) =
            (include_str!("../../deploy/ceph/mon.caps"), include_str!("../../deploy/ceph/osd.caps"));
        let caps = format!("\tcaps mon = \"{}\"\n\tcaps osd = \"{}\"\n", caps(mon), caps(osd));
        let import = self.lab.dir().join("import.keyring");
        fs::write(&import, format!("{text}{caps}")).unwrap();
        self.lab.ceph(&["auth", "import", "-i", import.to_str().unwrap()]).unwrap();
        fs::rename(&import, self.next_keyring()).unwrap();
        if publish {
            self.publish_key();
        }
    }

    fn next_keyring(&self) -> PathBuf {
        self.keyring.with_extension("next")
    }

    /// Writes the key of [`Site::rotate_key`] to the guardians' keyring.
    pub fn publish_key(&self) {
        fs::set_permissions(self.next_keyring(), Permissions::from_mode(0o600)).unwrap();
        fs::rename(self.next_keyring(), &self.keyring).unwrap();
    }

    /// `deploy/ceph/create-key`, where each host of the lab sees it, whatever world it has as its root.
    pub fn create_key(&self) -> PathBuf {
        let folder = self.lab.dir().join("deploy");
        fs::create_dir_all(&folder).unwrap();
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ceph")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
        folder.join("create-key")
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

    /// Starts a verb on the guardian's host with `--json`; the test goes on meanwhile.
    pub fn start_guardian(&self, words: &[&str]) -> Underway {
        self.start_command(self.command("guard", words), words)
    }

    /// The same for a command line of its own.
    pub fn start_command(&self, mut command: std::process::Command, words: &[&str]) -> Underway {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let log = self.lab.dir().join(format!("log/guardian-{number}.err"));
        command.stdout(Stdio::piped()).stderr(File::create(&log).unwrap());
        Underway {
            words: words.iter().map(ToString::to_string).collect(),
            child: command.spawn().unwrap(),
            log,
        }
    }

    /// The command line of a verb, to be run as the test likes.
    pub fn command(&self, host: &str, words: &[&str]) -> std::process::Command {
        self.command_with(&self.config, host, words)
    }

    /// The same with a configuration of its own.
    pub fn command_with(&self, config: &Path, host: &str, words: &[&str]) -> std::process::Command {
        let mut command = self.lab.host(host).bounded(program(), LIMIT);
        command.arg("--config").arg(config).arg("--keyring").arg(&self.keyring).arg("--json").args(words);
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
        self.lab.ceph(&["osd", "stat"]).unwrap()["epoch"].as_u64().unwrap()
    }
}

/// A verb that is running.
pub struct Underway {
    words: Vec<String>,
    child: Child,
    log: PathBuf,
}

impl Underway {
    /// What it said on stderr so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Sends a signal to the guardian itself, which is the last of the programs that started one another.
    pub fn signal(&self, signal: Signal) {
        let guardian = wait_for("the guardian's process", LIMIT, || {
            let mut pid = self.child.id();
            while let Some(child) =
                fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?.split_whitespace().next()
            {
                pid = child.parse()?;
            }
            let name = fs::read_to_string(format!("/proc/{pid}/comm"))?;
            Ok((name.trim() == "rbd-guardian").then_some(pid))
        });
        kill(Pid::from_raw(guardian.unwrap().try_into().unwrap()), signal).unwrap();
    }

    /// Waits for its end, whatever it answers.
    pub fn ended(mut self) {
        self.child.wait().unwrap();
    }

    /// Waits for its end where it cannot have answered.
    pub fn killed(mut self) {
        self.child.wait().unwrap();
    }

    /// Waits for its end.
    pub fn answer(self) -> Answer {
        let mut output = self.child.wait_with_output().unwrap();
        output.stderr = fs::read(&self.log).unwrap();
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        answer(&words, &output)
    }
}

/// The guardian. Cargo tells tests and benchmarks where it is; an example lies in a folder beside it.
pub fn program() -> PathBuf {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.parent()?.join("rbd-guardian"));
    option_env!("CARGO_BIN_EXE_rbd-guardian").map(PathBuf::from).or_else(beside).unwrap()
}

/// What `tests/lab/setup` prepared; `None` where it could not, with the reason said past the capture of test output.
/// CI has to have it, unless there is nothing to prepare.
pub fn prepared<T>(found: anyhow::Result<T>) -> Option<T> {
    let reason = match found {
        Ok(found) => return Some(found),
        Err(reason) => format!("{reason:#}"),
    };
    let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!in_ci || reason.contains("is already the second release"), "CI has to run this: {reason}");
    let mut stderr = std::io::stderr();
    writeln!(stderr, "skipped: {reason}").unwrap();
    None
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
    let exit =
        output.status.code().unwrap_or_else(|| panic!("{words:?}: {}: {stdout}{stderr}", output.status));
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
