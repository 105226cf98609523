//! A process inside the lab that outlives the call that started it: a daemon, a writer, an anchor.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait_for;

/// How long a killed process may take to be gone. One that waits for a disk of the lab goes when that disk does.
const REAP: Duration = Duration::from_secs(20);

/// A running process of the lab, known by its pid outside of the lab.
#[derive(Debug)]
pub struct Process {
    name: String,
    /// The helper program that entered the namespaces and waits for the process proper.
    entry: Child,
    pid: Pid,
}

impl Process {
    /// Runs a command whose process proper is `depth` generations below the program that is started.
    pub(crate) fn spawn(name: &str, command: &mut Command, depth: usize) -> Result<Process> {
        let mut entry = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let pid = wait_for(&format!("the process of {name}"), REAP, || {
            if let Some(status) = entry.try_wait()? {
                return Ok(Some(Err(status)));
            }
            let mut pid = entry.id();
            for _ in 0..depth {
                match child_of(pid)? {
                    Some(child) => pid = child,
                    None => return Ok(None),
                }
            }
            Ok(Some(Ok(pid)))
        })?;
        match pid {
            Ok(pid) => Ok(Process { name: name.to_owned(), entry, pid: Pid::from_raw(i32::try_from(pid)?) }),
            Err(status) => bail!("{name} ended at once: {}", describe(status)),
        }
    }

    /// The pid, as seen from outside of the lab.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// SIGSTOP: it keeps its sockets and its beliefs, and does nothing. Waits until that is so: the signal is one thread's
    /// to take, and until that has its turn the others go on.
    ///
    /// # Errors
    /// It is not running any more, or does not stop within 20 s.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        wait_for(&format!("{} to stand still", self.name), Duration::from_secs(20), || {
            Ok(self.stands_still()?.then_some(()))
        })
    }

    fn stands_still(&self) -> Result<bool> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid))?;
        let states = tasks.map(|task| {
            // A thread that ended meanwhile stands still.
            let Ok(stat) = fs::read_to_string(task?.path().join("stat")) else { return Ok(true) };
            let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
            Ok(state.is_some_and(|state| "TtZX".contains(state)))
        });
        states.into_iter().try_fold(true, |all, still: Result<bool>| Ok(all & still?))
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// It is not running any more.
    pub fn cont(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// It is not gone after 20 s.
    pub fn kill(&mut self) -> Result<()> {
        self.kill_within(REAP)
    }

    /// As [`Process::kill`], for one that may be waiting for a disk that does not answer.
    pub(crate) fn kill_within(&mut self, deadline: Duration) -> Result<()> {
        // A pid that was reaped may belong to somebody else by now.
        if self.is_running() {
            kill(self.pid, Signal::SIGKILL).ok();
            self.wait(deadline)?;
        }
        Ok(())
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// It is still running after `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        wait_for(&format!("the end of {}", self.name), deadline, || Ok(self.entry.try_wait()?))
    }

    /// Whether it is running (or stopped), that is: not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.entry.try_wait(), Ok(None))
    }

    pub(crate) fn entry(&mut self) -> &mut Child {
        &mut self.entry
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill().ok();
    }
}

pub(crate) fn child_of(pid: u32) -> Result<Option<u32>> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(children.split_whitespace().next().map(str::parse).transpose()?)
}

/// How a process ended, in words.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
