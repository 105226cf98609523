//! A host whose first process is the real systemd, so that units are tried as they are shipped.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;

use crate::cage::cgroup2;
use crate::host::Host;
use crate::process::{Process, child_of};
use crate::wait::wait_for;

const SCRIPT: &str = include_str!("systemd.sh");
const GOAL: &str = "lab.target";
/// systemd needs half a second; a machine under load several times that.
const BOOT: Duration = Duration::from_secs(60);
/// For one command in it.
const LIMIT: Duration = Duration::from_secs(60);

/// Files that a system has over those of this machine.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
}

/// A running systemd and what it started. Dropped, all of it is gone.
#[derive(Debug)]
pub struct Systemd {
    host: Host,
    init: Pid,
    _process: Process,
}

impl Files {
    /// None yet, for this host.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(host: &Host) -> Result<Self> {
        let folder = host.dir.join(format!("systemd-{}", host.name)).join("files");
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// Puts a file there, with this mode; all belong to root.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> Result<()> {
        let path = self.folder.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().context("a file without a folder")?)?;
        fs::write(&path, content)?;
        Ok(fs::set_permissions(&path, Permissions::from_mode(mode))?)
    }

    /// Copies a program there.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn program(&self, path: &str, from: &Path) -> Result<()> {
        self.put(path, fs::read(from)?, 0o755)
    }
}

impl Systemd {
    /// Whether this machine has a systemd.
    ///
    /// # Errors
    /// It has none.
    pub fn available(host: &Host) -> Result<()> {
        let path = host.root().join("usr/lib/systemd/systemd");
        ensure!(path.exists(), "systemd is not installed here: run tests/lab/setup");
        Ok(())
    }

    /// Boots with these units as its goal, in the network of this host.
    ///
    /// # Errors
    /// It does not answer within a minute.
    pub fn boot(host: &Host, files: &Files, units: &[&str]) -> Result<Systemd> {
        let units = units.join(" ");
        let goal = format!("[Unit]\nRequires={units} systemd-journald.service\nAfter={units}\n");
        files.put(&format!("/etc/systemd/system/{GOAL}"), goal, 0o644)?;
        // The kernel's messages are this machine's, and no disk keeps what is logged.
        let journald = "[Journal]\nReadKMsg=no\nStorage=volatile\n";
        files.put("/etc/systemd/journald.conf.d/lab.conf", journald, 0o644)?;
        let folder = files.folder.parent().context("files without a folder")?;
        let cgroup =
            cgroup2()?.join(host.dir.file_name().context("an odd folder")?).join("systemd").join(&host.name);
        fs::create_dir_all(&cgroup)?;
        let mut command = host.lasting("sh");
        command.args(["-c", r#"echo 0 >"$0/cgroup.procs" && exec "$@""#]).arg(&cgroup);
        command.args([
            "unshare",
            "--pid",
            "--mount",
            "--cgroup",
            "--uts",
            "--ipc",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            SCRIPT,
            "sh",
        ]);
        command.args([folder.join("layers").as_path(), files.folder.as_path()]).arg(GOAL);
        let log = fs::File::create(host.dir.join(format!("log/{}.systemd", host.name)))?;
        command.stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = Process::spawn(&format!("systemd on {}", host.name), &mut command, 2)?;
        let init = wait_for("systemd's process", BOOT, || child_of(u32::try_from(process.pid().as_raw())?))?;
        let init = Pid::from_raw(i32::try_from(init)?);
        let systemd = Systemd { host: host.clone(), init, _process: process };
        wait_for("systemd to answer", BOOT, || {
            let asked = systemd.run(&["systemctl", "is-system-running"])?;
            let said = String::from_utf8_lossy(&asked.stdout).into_owned();
            Ok(["initializing", "starting", "running", "degraded"].contains(&said.trim()).then_some(()))
        })?;
        Ok(systemd)
    }

    /// A command in it, as its root.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new("timeout");
        command.arg("--kill-after=2").arg(LIMIT.as_secs().to_string());
        command.arg("nsenter").arg(format!("--target={}", self.init));
        command
            .args(["--pid", "--mount", "--cgroup", "--net", "--uts", "--ipc", "--root", "--wd", "--"])
            .args(words);
        command
    }

    /// Runs such a command.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run<S: AsRef<OsStr>>(&self, words: &[S]) -> Result<Output> {
        Ok(self.command(words).output()?)
    }

    /// A property of a unit.
    ///
    /// # Errors
    /// systemd does not tell it.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let shown = self.run(&["systemctl", "show", "--value", &format!("--property={name}"), unit])?;
        ensure!(shown.status.success(), "{shown:?}");
        Ok(String::from_utf8(shown.stdout)?.trim().to_owned())
    }

    /// The pid of a unit's main process, as seen from outside; `None` while it has none.
    ///
    /// # Errors
    /// systemd does not tell it.
    pub fn main_process(&self, unit: &str) -> Result<Option<Pid>> {
        let inside = self.property(unit, "MainPID")?;
        if inside == "0" {
            return Ok(None);
        }
        // Its pid within the innermost namespace is the last of these.
        let is = |status: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            line.and_then(|line| line.split_whitespace().last()) == Some(&inside)
        };
        let space = fs::read_link(format!("/proc/{}/ns/pid", self.init))?;
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let same = fs::read_link(path.join("ns/pid")).is_ok_and(|its| its == space);
            if same && fs::read_to_string(path.join("status")).is_ok_and(|status| is(&status)) {
                let pid = path.file_name().and_then(OsStr::to_str).context("an odd pid")?;
                return Ok(Some(Pid::from_raw(pid.parse()?)));
            }
        }
        Ok(None)
    }

    /// Where its files can be found from outside.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init))
    }

    /// The journal of a unit.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn journal(&self, unit: &str) -> Result<String> {
        let read =
            self.run(&["journalctl", "--no-pager", "--output=short-precise", &format!("--unit={unit}")])?;
        Ok(String::from_utf8_lossy(&read.stdout).into_owned())
    }

    /// The host whose network it has.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }
}
