//! The cage: one process tree with a pid and a mount namespace of its own, in which a whole lab lives.
//!
//! Pid 1 does nothing but read a pipe whose other end the test process holds. However the test ends, the pipe closes, pid 1
//! exits, and the kernel ends everything inside; with the last process go its mounts, its network namespaces and its loop devices.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{Pid, geteuid};

use crate::cache;
use crate::process::Process;
use crate::wait::wait_for;
use crate::world::World;

const INIT: &str = include_str!("init.sh");

#[derive(Debug)]
pub(crate) struct Cage {
    init: Process,
    dir: PathBuf,
    /// Whether the logs are to stay.
    keep: AtomicBool,
}

impl Cage {
    /// # Errors
    /// Not root, or the kernel refuses the namespaces.
    pub(crate) fn start(world: World) -> Result<Cage> {
        ensure!(geteuid().is_root(), "the lab makes namespaces and mounts: run it as root");
        // Below /tmp whatever TMPDIR says: the paths of Ceph's sockets must stay short, see also init.sh.
        let dir = tempfile::Builder::new().prefix("rbd-guardian-lab.").tempdir_in("/tmp")?.keep();
        let mut unshare = Command::new("unshare");
        unshare
            .args([
                "--pid",
                "--mount",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--",
                "sh",
                "-c",
                INIT,
                "lab",
            ])
            .arg(&dir)
            .arg(world.folder()?.unwrap_or_default())
            .arg(match world {
                World::Own => "none",
                World::Second => "beside",
                World::Newest => "root",
            })
            .args(shared()?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the test process alone: pid 1 has to live long enough to clean up.
            .process_group(0);
        let mut init = Process::spawn("the lab's pid 1", &mut unshare, 1)?;
        expect_ready(init.entry()).context("the lab's pid 1")?;
        Ok(Cage { init, dir, keep: AtomicBool::new(false) })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A sleeping process with its own network and mount namespace: what makes a host a host.
    pub(crate) fn anchor(&self, name: &str) -> Result<Process> {
        let mut command = enter(self.init.pid(), &["--pid", "--mount"]);
        command
            .args(["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c"])
            .arg("ip link set lo up && echo ready && exec sleep infinity")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut anchor = Process::spawn(name, &mut command, 1)?;
        expect_ready(anchor.entry()).with_context(|| format!("host {name}"))?;
        Ok(anchor)
    }

    pub(crate) fn init_pid(&self) -> Pid {
        self.init.pid()
    }

    /// Lets the logs stay when all else goes.
    pub(crate) fn keep(&self) {
        if !self.keep.swap(true, Ordering::Relaxed) {
            eprintln!("lab: the logs stay in {}", self.dir.display());
        }
    }

    /// Ends everything; where a `Result` helps nobody.
    pub(crate) fn end_loudly(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("lab: the teardown is not complete: {error:#}");
        }
    }

    /// Ends everything and waits until nothing is left.
    fn end(&mut self) -> Result<()> {
        let Some(mut pipe) = self.init.entry().stdin.take() else {
            return Ok(());
        };
        pipe.write_all(if self.keep.load(Ordering::Relaxed) { b"keep\n" } else { b"\n" }).ok();
        drop(pipe);
        self.init.wait(Duration::from_secs(30))?;
        wait_for_no_loops(&self.dir, Duration::from_secs(10))
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        self.end_loudly();
    }
}

/// What a lab whose root is another system has of this machine's under the same names: what Cargo has built, and what the containers are
/// made of.
fn shared() -> Result<Vec<PathBuf>> {
    let program = env::current_exe()?;
    let built = program.parent().and_then(Path::parent).context("a program without a folder")?;
    Ok([Some(built.to_owned()), cache::prepared("incus").ok()].into_iter().flatten().collect())
}

/// `nsenter` into some namespaces of a process. The process dies with the helper that entered for it.
pub(crate) fn enter(target: Pid, namespaces: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--target={target}")).args(namespaces).args([
        "--",
        "setpriv",
        "--pdeathsig=KILL",
        "--",
    ]);
    command
}

pub(crate) fn expect_ready(child: &mut Child) -> Result<()> {
    let stdout = child.stdout.take().context("no pipe")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line == "ready\n", "not ready: {line:?}");
    Ok(())
}

/// Waits until no loop device stands on a file below a directory. Whoever was killed between attaching and detaching one has left it.
pub(crate) fn wait_for_no_loops(dir: &Path, deadline: Duration) -> Result<()> {
    wait_for(&format!("the loop devices below {} to go", dir.display()), deadline, || {
        let left = loops_below(dir)?;
        if !left.is_empty() {
            Command::new("losetup").arg("--detach").args(&left).stderr(Stdio::null()).status()?;
        }
        ensure!(left.is_empty(), "still there: {left:?}");
        Ok(Some(()))
    })
}

/// The loop devices whose backing file is below a directory.
fn loops_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for device in fs::read_dir("/sys/block")? {
        let device = device?;
        // Absent for a loop device that is free, and for any other device.
        if let Ok(backing) = fs::read_to_string(device.path().join("loop/backing_file"))
            && Path::new(backing.trim_end()).starts_with(dir)
        {
            found.push(Path::new("/dev").join(device.file_name()));
        }
    }
    Ok(found)
}

/// Where this machine has the second version's cgroup tree.
pub(crate) fn cgroup2() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mut lines = mounts.lines().map(|line| line.split(' '));
    let path = lines.find_map(|mut words| {
        let path = words.nth(1);
        (words.next() == Some("cgroup2")).then_some(path).flatten()
    });
    Ok(path.context("this machine has no cgroup2 mounted: containers and systemd need it")?.into())
}
