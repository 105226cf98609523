//! A daemon that can be halted at a step, stopped, killed and started again.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use jiff::Timestamp;
use lab::{Host, Process, wait_for};
use serde_json::Value;

use crate::common::{Answer, LIMIT, Site, Underway, answer, program};

/// What an operator who knows says.
pub(crate) const ASSERTED: [&str; 3] = ["--assert-powered-off", "--reason", "the test says so"];

/// A daemon of its own name, with a configuration and a socket of its own.
pub(crate) struct Guard<'s> {
    site: &'s Site,
    pub(crate) name: String,
    host: &'static str,
    process: Option<Process>,
    /// What starts it.
    within: Vec<OsString>,
    /// The logs of its lives.
    logs: Vec<PathBuf>,
}

impl<'s> Guard<'s> {
    /// On this host, for these members; it does not run yet.
    pub(crate) fn new(site: &'s Site, name: &str, host: &'static str, members: &[&str]) -> Self {
        let guard =
            Self { site, name: name.to_owned(), host, process: None, within: Vec::new(), logs: Vec::new() };
        let member =
            |name: &&str| format!("[[member]]\nname = \"{name}\"\naddresses = [\"{}\"]\n", site.ip(name));
        let members: String = members.iter().map(member).collect();
        let socket = guard.path("sock");
        let text = format!(
            "[daemon]\nname = \"{name}\"\nsocket = {socket:?}\nlog = \"json\"\nlease = \"4s\"\n{members}"
        );
        fs::write(guard.path("toml"), text).unwrap();
        guard
    }

    /// Another program starts it, and becomes it: these words, then its own. These lines come before its own table's.
    pub(crate) fn within(&mut self, words: Vec<OsString>, lines: &str) {
        let path = self.path("toml");
        let text = fs::read_to_string(&path).unwrap().replacen("[daemon]\n", lines, 1);
        fs::write(path, text).unwrap();
        self.within = words;
    }

    pub(crate) fn host(&self) -> &Host {
        self.site.lab.host(self.host)
    }

    fn path(&self, ending: &str) -> PathBuf {
        self.site.lab.dir().join(format!("{}.{ending}", self.name))
    }

    pub(crate) fn start(&mut self) {
        self.start_halting("");
    }

    /// It halts there, as `src/daemon/halt.rs` has it.
    pub(crate) fn start_halting(&mut self, at: &str) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let life = format!("{}-{}", self.name, self.logs.len() + 1);
        let halt = format!("RBD_GUARDIAN_HALT={at}");
        let words = [halt.into()].into_iter().chain(self.within.clone());
        let words = words.chain([program().into_os_string(), "--config".into(), self.path("toml").into()]);
        let words = words.chain(["--keyring".into(), self.site.keyring.clone().into()]);
        let words = words.chain(["run".into()]);
        self.process = Some(self.site.lab.host(self.host).spawn(&life, "env", words).unwrap());
        self.logs.push(self.site.lab.dir().join(format!("log/{life}.out")));
    }

    pub(crate) fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    /// SIGKILL, if it runs.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
        }
    }

    /// Does it stand still?
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process().pid())).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    }

    pub(crate) fn wait_until_stopped(&self) {
        let stopped =
            wait_for(&format!("{} to halt", self.name), LIMIT, || Ok(self.is_stopped().then_some(())));
        stopped.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log()));
    }

    fn command(&self, words: &[&str]) -> Command {
        self.site.command_with(&self.path("toml"), self.host, words)
    }

    /// Runs a verb beside it.
    pub(crate) fn verb(&self, words: &[&str]) -> Answer {
        answer(words, &self.command(words).output().unwrap())
    }

    /// Starts a verb beside it.
    pub(crate) fn start_verb(&self, words: &[&str]) -> Underway {
        self.site.start_command(self.command(words), words)
    }

    /// Its own words; `None` while it does not answer.
    pub(crate) fn status(&self) -> Option<Value> {
        let mut stream = UnixStream::connect(self.path("sock")).ok()?;
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(b"{\"verb\":\"status\"}\n").ok()?;
        let last = BufReader::new(stream).lines().last()?.ok()?;
        Some(serde_json::from_str::<Value>(&last).unwrap()["status"].clone())
    }

    /// Waits until its status is like this.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = wait_for(&format!("{}: {what}", self.name), LIMIT, || {
            last = self.status().unwrap_or_default();
            Ok(is(&last).then(|| last.clone()))
        });
        found.unwrap_or_else(|error| panic!("{error:#}: {last:#}\n{}", self.log()))
    }

    pub(crate) fn wait_until_leading(&self) -> Value {
        self.until("leading", |status| status["stage"] == "leading")
    }

    /// What it logged in this life.
    pub(crate) fn log(&self) -> String {
        self.logs.last().map(|log| fs::read_to_string(log).unwrap()).unwrap_or_default()
    }

    /// Lines of this life's log with this code.
    pub(crate) fn logged(&self, code: &str) -> Vec<Value> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["code"] == code).collect()
    }

    /// Waits for so many such lines; the last of them.
    #[track_caller]
    pub(crate) fn hears(&self, code: &str, count: usize) -> Value {
        let line = wait_for(&format!("{}: {code} in the log", self.name), LIMIT, || {
            Ok(self.logged(code).get(count - 1).cloned())
        });
        line.unwrap_or_else(|error| panic!("{error:#}: {}", self.log()))
    }

    /// Waits until it leads no more; why, in its own words.
    pub(crate) fn wait_until_deposed(&self, successor: &Guard<'_>) -> String {
        let line = self.hears("deposed", 1);
        self.until("standby", |status| {
            let trouble = status["trouble"].as_str().unwrap_or_default();
            status["stage"] == "standby" && trouble.starts_with(&successor.name)
        });
        line["message"].as_str().unwrap().to_owned()
    }

    /// The kinds of the steps it took in this life, in order.
    pub(crate) fn steps(&self) -> Vec<String> {
        let kind = |line: Value| {
            line["message"].as_str().unwrap().split_once(' ').map(|(_, kind)| kind.to_owned()).unwrap()
        };
        self.logged("step").into_iter().map(kind).collect()
    }
}

/// When a line of a log was written.
pub(crate) fn at(line: &Value) -> Timestamp {
    line["timestamp"].as_str().unwrap().parse().unwrap()
}
