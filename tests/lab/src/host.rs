//! A host of the lab: a network namespace, a mount namespace, an address.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use anyhow::Result;
use nix::unistd::Pid;

use crate::agent::Agent;
use crate::cage::enter;
use crate::disk::Fuse;
use crate::network::Links;
use crate::process::Process;
use crate::world::World;

/// A host. Cheap to clone; a clone does not keep the lab alive.
#[derive(Debug, Clone)]
pub struct Host {
    pub(crate) name: String,
    pub(crate) number: u8,
    pub(crate) address: IpAddr,
    /// Its address at its second link, if it has one.
    pub(crate) incus: Option<IpAddr>,
    pub(crate) anchor: Pid,
    pub(crate) dir: PathBuf,
    pub(crate) world: World,
    /// The system beside the machine's own, whose programs come first.
    pub(crate) beside: Option<PathBuf>,
    /// The pools mounted here, by name, as long as a device needs them.
    pub(crate) fuses: Arc<Mutex<BTreeMap<String, Weak<Fuse>>>>,
}

impl Host {
    /// The name it has in the topology.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, in Ceph's public network.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.address
    }

    /// Its address in the Incus network, see [`crate::Topology::linked`].
    #[must_use]
    pub fn incus_ip(&self) -> Option<IpAddr> {
        self.incus
    }

    pub(crate) fn links(&self) -> Links {
        if self.incus.is_some() { Links::Both } else { Links::Ceph }
    }

    /// Where the files that this host sees (its mounts too) can be found from outside. A file on a disk that hangs hangs here as well.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.anchor))
    }

    /// A command that runs in this host, with `CEPH_CONF` set so that the lab's `client.admin` is who it is for Ceph's tools.
    ///
    /// A bare name that the second release has is run from there, in a lab of [`World::Second`]. The working directory is `/`; killing the [`std::process::Child`]
    /// kills the program.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.with_ceph(enter(self.anchor, &["--pid", "--mount", "--net"]), program.as_ref())
    }

    /// As [`Host::command`], but killed after `limit`: it then ends with exit code 124 or 137.
    #[must_use]
    pub fn bounded(&self, program: impl AsRef<OsStr>, limit: Duration) -> Command {
        let mut command = enter(self.anchor, &["--pid", "--mount", "--net"]);
        command.args(["timeout", "--kill-after=2"]).arg(limit.as_secs_f64().to_string());
        self.with_ceph(command, program.as_ref())
    }

    /// Starts a command that is to run on, and can be stopped and killed by its own pid.
    ///
    /// Its output goes to `log/NAME.out` of the lab.
    ///
    /// # Errors
    /// It can't be started, or ends at once.
    pub fn spawn<S: AsRef<OsStr>>(
        &self,
        name: &str,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Process> {
        let log = File::create(self.dir.join(format!("log/{name}.out")))?;
        let mut command = self.lasting(program);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Process::spawn(name, &mut command, 2)
    }

    /// A command whose process proper is two generations down: between it and the program that entered for it stands one that does not
    /// mind when it is stopped (`nsenter` would stop itself as well), in a session of its own.
    pub(crate) fn lasting(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = enter(self.anchor, &["--pid", "--mount", "--net"]);
        command.args(["setsid", "--fork", "--wait", "setpriv", "--pdeathsig=KILL", "--"]);
        self.with_ceph(command, program.as_ref())
    }

    /// Starts a lasting helper that speaks in lines. What it says on stderr goes to `log/NAME.err` of the lab.
    pub(crate) fn agent<S: AsRef<OsStr>>(
        &self,
        name: &str,
        program: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Agent> {
        let errors =
            File::options().append(true).create(true).open(self.dir.join(format!("log/{name}.err")))?;
        Agent::start(name, self.lasting(program).args(args).stderr(errors))
    }

    fn with_ceph(&self, mut command: Command, program: &OsStr) -> Command {
        if let Some(root) = &self.beside
            && Path::new(program).components().count() == 1
            && root.join("usr/bin").join(program).exists()
        {
            command.arg("chroot").arg(root);
        }
        command.arg(program).env("CEPH_CONF", self.dir.join("ceph.conf"));
        command
    }
}
