//! One guardian of several: a name, a host, a configuration and a socket of its own.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lab::{Host, Process, wait_for};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::guarded::SOON;
use super::{Answer, LIMIT, Site, answer, program};

/// A guardian and its daemon, which ends with it.
pub struct Guardian {
    name: String,
    host: Host,
    dir: PathBuf,
    keyring: PathBuf,
    /// What starts it.
    within: Vec<OsString>,
    daemon: Mutex<Option<Process>>,
    lives: Mutex<Vec<PathBuf>>,
}

impl Guardian {
    /// On this host; not configured, and not started.
    pub fn new(site: &Site, name: &str, host: &str) -> Self {
        Self {
            name: name.to_owned(),
            host: site.lab.host(host).clone(),
            dir: site.lab.dir().to_owned(),
            keyring: site.keyring.clone(),
            within: Vec::new(),
            daemon: Mutex::default(),
            lives: Mutex::default(),
        }
    }

    /// Another program starts it, and becomes it: these words, then its own.
    pub fn within(&mut self, words: Vec<OsString>) {
        self.within = words;
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    fn config(&self) -> PathBuf {
        self.dir.join(format!("{}.toml", self.name))
    }

    fn halt(&self) -> PathBuf {
        self.dir.join(format!("{}.halt", self.name))
    }

    fn socket(&self) -> PathBuf {
        self.dir.join(format!("{}.sock", self.name))
    }

    /// Writes its configuration: `before` and `after` around its own table.
    pub fn configure(&self, before: &str, after: &str) {
        let (name, socket) = (&self.name, self.socket());
        let own = format!("[daemon]\nname = {name:?}\nsocket = {socket:?}\nlog = \"json\"\nlease = \"4s\"\n");
        fs::write(self.config(), format!("{before}\n{own}{after}\n")).unwrap();
    }

    /// Runs a verb on its host with `--json`.
    pub fn verb(&self, words: &[&str]) -> Answer {
        answer(words, &self.command(words).output().unwrap())
    }

    /// Asks as an operator does: again while the answer is that nobody can tell yet (5), as where a disk stood still for
    /// longer than the leader's lease. In the end it is done.
    #[track_caller]
    pub fn insist(&self, words: &[&str]) -> Answer {
        let mut doubt = None;
        let told = wait_for(&format!("{words:?} to be done"), SOON, || {
            let answer = self.verb(words);
            let told = (answer.exit != 5).then(|| answer.clone());
            doubt = Some(answer);
            Ok(told)
        });
        told.unwrap_or_else(|error| panic!("{error:#}: {doubt:#?}\n{}", self.log_text())).expect(0)
    }

    /// The command line of a verb on its host.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.host.bounded(program(), LIMIT);
        command.arg("--config").arg(self.config()).arg("--keyring").arg(&self.keyring).arg("--json");
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Starts the daemon; it may take a while to lead.
    pub fn start(&self) {
        let mut daemon = self.daemon();
        assert!(daemon.is_none(), "it runs already");
        let name = format!("{}-{}", self.name, self.lives().len() + 1);
        fs::write(self.halt(), "").unwrap();
        let halt = format!("RBD_GUARDIAN_HALT=@{}", self.halt().display());
        let own = [program(), "--config".into(), self.config(), "--keyring".into()];
        let own = own.into_iter().chain([self.keyring.clone(), Path::new("run").into()]);
        let words = [OsString::from(halt)].into_iter().chain(self.within.clone());
        let words = words.chain(own.map(PathBuf::into_os_string));
        *daemon = Some(self.host.spawn(&name, "env", words).unwrap());
        self.lives().push(self.dir.join(format!("log/{name}.out")));
    }

    /// It halts at the next step of this kind, as `src/daemon/halt.rs` has it: `before:gate`.
    pub fn halt_at(&self, step: &str) {
        let (_, kind) = step.split_once(':').unwrap();
        fs::write(self.halt(), format!("{step}:{}", self.steps(kind).len() + 1)).unwrap();
    }

    /// Waits until it has halted.
    #[track_caller]
    pub fn wait_until_halted(&self) {
        let halted = wait_for(&format!("{} to halt", self.name), SOON * 2, || {
            let pid = self.daemon().as_ref().unwrap().pid();
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            Ok(stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')).then_some(()))
        });
        halted.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log_text()));
    }

    /// Lines of this life's log about steps of this kind.
    pub fn steps(&self, kind: &str) -> Vec<Value> {
        let text = self.lives().last().map(|life| fs::read_to_string(life).unwrap()).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is = |line: &Value| {
            let said = line["message"].as_str().and_then(|message| message.split_once(' '));
            line["code"] == "step" && said.is_some_and(|(_, said)| said == kind)
        };
        lines.filter(is).collect()
    }

    /// Ends the daemon as systemd does.
    pub fn stop(&self) {
        let mut daemon = self.daemon().take().unwrap();
        kill(daemon.pid(), Signal::SIGTERM).unwrap();
        let status = daemon.wait(SOON).unwrap();
        assert!(status.success(), "{status}: {}", self.log_text());
    }

    pub fn kill(&self) {
        self.daemon().take().unwrap().kill().unwrap();
    }

    /// To stop and continue it.
    pub fn with_daemon<T>(&self, act: impl FnOnce(&mut Process) -> T) -> T {
        act(self.daemon().as_mut().unwrap())
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Process>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lives(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the daemon logged in all of its lives.
    pub fn log_text(&self) -> String {
        self.lives().iter().map(|path| fs::read_to_string(path).unwrap()).collect()
    }

    /// Its log lines with this code.
    pub fn logged(&self, code: &str) -> Vec<Value> {
        let text = self.log_text();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["code"] == code).collect()
    }

    /// Waits for a log line with this code that is as asked, as the log is written after its status has changed; the
    /// last such line.
    #[track_caller]
    pub fn hears(&self, code: &str, is: impl Fn(&Value) -> bool) -> Value {
        let line = wait_for(&format!("{}: {code} in the log", self.name), SOON, || {
            Ok(self.logged(code).into_iter().rfind(&is))
        });
        line.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log_text()))
    }

    /// The daemon's own words over its socket, `None` while it does not answer.
    pub fn status(&self) -> Option<Value> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(b"{\"verb\":\"status\"}\n").ok()?;
        let last = BufReader::new(stream).lines().last()?.ok()?;
        Some(serde_json::from_str::<Value>(&last).unwrap()["status"].clone())
    }

    /// Waits for such a status, and returns it.
    #[track_caller]
    pub fn wait_for_status(
        &self,
        what: &str,
        deadline: Duration,
        mut is: impl FnMut(&Value) -> bool,
    ) -> Value {
        let mut last = Value::Null;
        let found = wait_for(&format!("{}: {what}", self.name), deadline, || {
            last = self.status().unwrap_or_default();
            Ok(is(&last).then(|| last.clone()))
        });
        found.unwrap_or_else(|error| panic!("{error:#}: {last:#}\n{}", self.log_text()))
    }

    /// Waits until it leads.
    #[track_caller]
    pub fn wait_until_leading(&self, deadline: Duration) -> Value {
        self.wait_for_status("to lead", deadline, |status| status["stage"] == "leading")
    }

    /// Waits until it stands by for this other one.
    #[track_caller]
    pub fn wait_until_standby(&self, leader: &str) -> Value {
        self.wait_for_status(&format!("to wait for {leader}"), SOON, |status| {
            status["stage"] == "standby" && status["leader"]["guardian"] == leader
        })
    }
}

/// The one that leads; `None` while none does.
pub fn leader<'g>(guardians: &[&'g Guardian]) -> Option<&'g Guardian> {
    let leads = |guardian: &&&Guardian| guardian.status().is_some_and(|status| status["stage"] == "leading");
    guardians.iter().find(leads).copied()
}

/// How often any of them began to lead.
pub fn leads(guardians: &[&Guardian]) -> usize {
    guardians.iter().map(|guardian| guardian.logged("leading").len()).sum()
}
