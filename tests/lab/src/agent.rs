//! The lab's own connection to its cluster, for commands.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::host::Host;
use crate::process::Process;

const SCRIPT: &str = include_str!("agent.py");
/// The interpreter that Debian's Ceph bindings belong to, whatever else is first in PATH.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// A helper that speaks in lines: one in, one out.
#[derive(Debug)]
pub(crate) struct Agent {
    requests: ChildStdin,
    answers: Receiver<String>,
    process: Process,
    /// Questions without an answer.
    open: u32,
}

#[derive(Deserialize)]
struct Answer {
    rc: i32,
    out: String,
    err: String,
}

impl Agent {
    /// Starts the agent that runs `ceph` commands; it waits for the monitors until the deadline.
    pub(crate) fn for_commands(host: &Host, deadline: Duration) -> Result<Agent> {
        let agent = host.agent("agent", PYTHON, ["-c", SCRIPT, &deadline.as_secs().to_string()])?;
        agent.listen(deadline)?;
        Ok(agent)
    }

    /// Starts a helper as a [`Process`] two generations down, see [`Host::agent`].
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Agent> {
        let mut process = Process::spawn(name, command.stdin(Stdio::piped()).stdout(Stdio::piped()), 2)?;
        let requests = process.entry().stdin.take().context("no pipe")?;
        let stdout = BufReader::new(process.entry().stdout.take().context("no pipe")?);
        let (sender, answers) = channel();
        // It ends with the helper's stdout, or when the agent is dropped and the next line comes.
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        })?;
        Ok(Agent { requests, answers, process, open: 0 })
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits for a line that was not asked for.
    pub(crate) fn listen(&self, deadline: Duration) -> Result<String> {
        self.answers.recv_timeout(deadline).with_context(|| format!("no answer within {deadline:.0?}"))
    }

    pub(crate) fn ask(&mut self, request: &str, deadline: Duration) -> Result<String> {
        self.open += 1;
        writeln!(self.requests, "{request}").context("the helper is gone")?;
        let answer = self.listen(deadline)?;
        self.open -= 1;
        Ok(answer)
    }

    /// Whether every question was answered, so that the next answer belongs to the next question.
    pub(crate) fn in_step(&self) -> bool {
        self.open == 0
    }

    /// Runs one `ceph` command. `Value::Null` when it answers nothing.
    pub(crate) fn ceph(&mut self, words: &[&str], deadline: Duration) -> Result<Value> {
        self.run(&json!(words), deadline).with_context(|| format!("ceph {}", words.join(" ")))
    }

    /// Runs a command given as JSON, see `agent.py`.
    pub(crate) fn run(&mut self, command: &Value, deadline: Duration) -> Result<Value> {
        let line = self.ask(&command.to_string(), deadline)?;
        let answer: Answer =
            serde_json::from_str(&line).with_context(|| format!("not an answer: {line:?}"))?;
        ensure!(answer.rc == 0, "{} ({})", answer.err.trim(), answer.rc);
        parse(&answer.out)
    }
}

/// What a `ceph` command answered, as a value. Text that is not JSON is a string.
pub(crate) fn parse(out: &str) -> Result<Value> {
    let out = out.trim();
    if out.is_empty() {
        return Ok(Value::Null);
    }
    match serde_json::from_str(out) {
        Ok(value) => Ok(value),
        Err(_) if !out.starts_with(['{', '[']) => Ok(Value::String(out.to_owned())),
        Err(error) => bail!("unreadable answer: {error}: {out}"),
    }
}
