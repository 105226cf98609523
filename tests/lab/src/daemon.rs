//! One Ceph daemon of a lab.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;
use uuid::Uuid;

use crate::conf::run;
use crate::host::Host;
use crate::process::Process;
use crate::topology::Role;

/// A daemon and the host it belongs to. Stopping, killing and starting are all that happens to it.
#[derive(Debug)]
pub struct Daemon {
    role: Role,
    host: Host,
    /// An OSD's own id, which the monitors must know before it may join.
    pub(crate) uuid: Uuid,
    process: Option<Process>,
    /// The file that says how far its wall clock is off, if that can be set.
    pub(crate) clock: Option<PathBuf>,
}

/// The environment in which a program reads its wall clock through libfaketime, which looks into this file once a second.
/// Its monotonic clock is left alone: a step of the wall clock moves no other.
#[must_use]
pub fn own_clock(clock: &Path) -> Vec<String> {
    [
        "LD_PRELOAD=/usr/$LIB/faketime/libfaketimeMT.so.1".to_owned(),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_CACHE_DURATION=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
    ]
    .into()
}

impl Daemon {
    pub(crate) fn new(role: Role, host: Host) -> Daemon {
        Daemon { role, host, uuid: Uuid::new_v4(), process: None, clock: None }
    }

    /// Makes its data folder and what is in it.
    pub(crate) fn make(&self) -> Result<()> {
        let folder = if matches!(self.role, Role::Mon(_)) { "memory" } else { "data" };
        run(self.host.command("mkdir").arg(self.host.dir.join(folder).join(self.role.name())))?;
        let keyring = self.host.dir.join("data/keyring");
        let monmap = self.host.dir.join("data/monmap");
        let mut mkfs = self.host.command(self.program());
        mkfs.args(["--mkfs", "--no-mon-config", "--id", &self.role.id()]).arg("--keyring").arg(keyring);
        match self.role {
            Role::Mon(_) => run(mkfs.arg("--monmap").arg(monmap)).map(drop),
            Role::Osd(_) => run(mkfs.args(["--osd-uuid", &self.uuid.to_string()])).map(drop),
            Role::Mgr(_) | Role::Mds(_) => Ok(()),
        }
    }

    /// What it is.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// The host it runs in.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its pid, as seen from outside of the lab.
    ///
    /// # Errors
    /// It was killed, or never started.
    pub fn pid(&self) -> Result<Pid> {
        Ok(self.process()?.pid())
    }

    /// SIGSTOP: its connections stay, nothing answers.
    ///
    /// # Errors
    /// It is not running.
    pub fn stop(&self) -> Result<()> {
        self.process()?.stop()
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// It is not running.
    pub fn cont(&self) -> Result<()> {
        self.process()?.cont()
    }

    /// SIGKILL, and waits until it is gone. An OSD in memory loses what it had.
    ///
    /// # Errors
    /// It does not go.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Starts it (again). What the cluster makes of it is for the caller to wait for.
    ///
    /// # Errors
    /// It is running already, or ends at once.
    pub fn start(&mut self) -> Result<()> {
        self.start_with(&[])
    }

    pub(crate) fn start_with(&mut self, options: &[String]) -> Result<()> {
        ensure!(self.process.is_none(), "{} is running already", self.role);
        let name = self.role.name();
        let dir = &self.host.dir;
        let socket = dir.join(format!("run/{name}.asok"));
        let mut args = vec!["-f".to_owned(), "--id".to_owned(), self.role.id()];
        args.push(format!("--log-file={}", dir.join(format!("log/{name}.log")).display()));
        args.push(format!("--admin-socket={}", socket.display()));
        args.extend_from_slice(options);
        self.process = Some(match &self.clock {
            Some(clock) => {
                let mut words = own_clock(clock);
                words.push(self.program());
                words.extend(args);
                self.host.spawn(&name, "env", words)?
            }
            None => self.host.spawn(&name, self.program(), args)?,
        });
        Ok(())
    }

    fn program(&self) -> String {
        format!("ceph-{}", self.role.kind())
    }

    fn process(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("{} is not running", self.role))
    }
}
