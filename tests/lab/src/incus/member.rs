//! A member: a host that lives, dies and boots again, and its incusd.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde_json::Value;
use uuid::Uuid;

use crate::cage::{cgroup2, enter, expect_ready, wait_for_no_loops};
use crate::conf::run;
use crate::host::Host;
use crate::incus::cluster::POOL;
use crate::process::Process;
use crate::wait::{report, wait_for};

const LIFE: &str = include_str!("member.sh");
const RBD: &str = include_str!("rbd.sh");
const INCUSD: &str = "/usr/libexec/incus/incusd";
/// The bound on one call of the `incus` client.
const DEADLINE: Duration = Duration::from_secs(60);
/// For how long a member seems to have been up when its lab starts, in seconds.
const FIRST_UPTIME: i64 = 100_000;

/// A member of the cluster. All that runs on it is in a pid namespace of its own and ends with that: a reboot is the end of one and the
/// start of another, with an uptime that begins again.
#[derive(Debug)]
pub struct Member {
    host: Host,
    address: IpAddr,
    home: PathBuf,
    cgroup: PathBuf,
    uuid: Uuid,
    life: Mutex<Option<Life>>,
}

/// The order of the fields is the order of their end.
#[derive(Debug)]
struct Life {
    daemon: Option<Process>,
    init: Process,
}

impl Member {
    /// Makes the member's disk; nothing runs yet.
    pub(crate) fn new(host: &Host) -> Result<Member> {
        let address = host.incus_ip().with_context(|| format!("{} has no link for Incus", host.name()))?;
        let home = host.dir.join("incus").join(host.name());
        for folder in ["bin", "dev", "images", "log", "sys", "var"] {
            fs::create_dir_all(home.join(folder))?;
        }
        let database = host.dir.join("memory").join(host.name());
        run(host.command("mkdir").arg(&database))?;
        symlink(database, home.join("var/database"))?;
        fs::create_dir_all(host.dir.join("incus/here"))?;
        let wrapper = home.join("bin/rbd");
        fs::write(&wrapper, RBD.replace("@HOME@", &home.display().to_string()))?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        fs::copy(host.world.mapper()?, home.join("bin/mapper"))?;
        let uuid = Uuid::new_v4();
        fs::write(home.join("uuid"), format!("{uuid}\n"))?;
        let cgroup = cgroup2()?.join(host.dir.file_name().context("an odd folder")?).join(host.name());
        Ok(Member { host: host.clone(), address, home, cgroup, uuid, life: Mutex::new(None) })
    }

    /// The host it is.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its name, which is its host's.
    #[must_use]
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// Its address in the cluster's network.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Its URL, as in `https://10.78.0.12:8443`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.endpoint())
    }

    pub(crate) fn endpoint(&self) -> String {
        std::net::SocketAddr::new(self.address, 8443).to_string()
    }

    /// What it says of itself as `system.uuid` in its resources.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Its unix socket: full rights, from anywhere on this machine, and whatever cables are cut.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.home.join("var/unix.socket")
    }

    /// Where incusd mounts a container's root file system, for those who are in the member's mount namespace.
    pub(crate) fn root_of(&self, container: &str) -> PathBuf {
        self.home.join("var/storage-pools").join(POOL.0).join("containers").join(container).join("rootfs")
    }

    /// Where its containers' writers leave their logs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.home.join("log")
    }

    /// Runs the `incus` client against this member's socket; its stdout.
    ///
    /// # Errors
    /// The client's own, or not done within a minute.
    pub fn incus(&self, words: &[&str]) -> Result<String> {
        self.incus_within(DEADLINE, words)
    }

    /// As [`Member::incus`], with another bound.
    ///
    /// # Errors
    /// The client's own, or not done in time.
    pub fn incus_within(&self, limit: Duration, words: &[&str]) -> Result<String> {
        run(self.client(limit).args(words).stdin(Stdio::null()))
            .with_context(|| format!("incus {} on {}", words.join(" "), self.name()))
    }

    /// The `incus` client for this member, to be given words; it is killed after `limit`.
    #[must_use]
    pub fn client(&self, limit: Duration) -> Command {
        let mut command = self.host.bounded("incus", limit);
        command.env("INCUS_DIR", self.home.join("var")).env("INCUS_CONF", self.home.join("client"));
        command
    }

    /// `GET` of an API path, as in `/1.0/cluster/members?recursion=1`; the metadata.
    ///
    /// # Errors
    /// The API's, or no answer within a minute.
    pub fn query(&self, path: &str) -> Result<Value> {
        self.query_within(DEADLINE, path)
    }

    /// As [`Member::query`], with another bound.
    ///
    /// # Errors
    /// The API's, or no answer in time.
    pub fn query_within(&self, limit: Duration, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.incus_within(limit, &["query", path])?)?)
    }

    /// Any request, as in `request("PATCH", "/1.0", &json!({"config": {}}))`; waits for the operation if it is one. What it answers, if it
    /// does.
    ///
    /// # Errors
    /// The API's, or no answer within a minute.
    pub fn request(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let answer =
            self.incus(&["query", "--wait", "--request", method, "--data", &body.to_string(), path])?;
        Ok(if answer.trim().is_empty() { Value::Null } else { serde_json::from_str(&answer)? })
    }

    /// Seconds since its boot, as it says itself.
    ///
    /// # Errors
    /// It does not answer.
    pub fn uptime(&self) -> Result<i64> {
        let state = self.query(&format!("/1.0/cluster/members/{}/state", self.name()))?;
        state["sysinfo"]["uptime"].as_i64().with_context(|| format!("no uptime in {state}"))
    }

    /// Starts the member and its incusd, and waits until that answers.
    ///
    /// # Errors
    /// It runs already, or its incusd does not answer within a minute.
    pub fn power_on(&self) -> Result<()> {
        let uptime = i64::try_from(Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?).as_secs())?;
        self.boot(-uptime)
    }

    pub(crate) fn first_boot(&self) -> Result<()> {
        self.boot(FIRST_UPTIME)
    }

    /// `offset`: what its clock of uptime is ahead of the machine's, in seconds.
    fn boot(&self, offset: i64) -> Result<()> {
        {
            let mut life = self.life();
            ensure!(life.is_none(), "{} runs already", self.name());
            remove_cgroups(&self.cgroup)?;
            fs::create_dir_all(&self.cgroup)?;
            let mut command = self.in_cgroup();
            command
                .arg("nsenter")
                .arg(format!("--target={}", self.host.anchor))
                .args(["--pid", "--mount", "--net", "--", "setpriv", "--pdeathsig=KILL", "--"])
                .args([
                    "unshare",
                    "--pid",
                    "--mount",
                    "--uts",
                    "--cgroup",
                    "--time",
                    "--fork",
                    "--kill-child",
                ])
                .args(["--mount-proc", &format!("--boottime={offset}"), "--", "sh", "-c", LIFE, "life"])
                .arg(&self.host.dir)
                .arg(self.name())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(self.log("life")?);
            let mut init = Process::spawn(&format!("{}'s pid 1", self.name()), &mut command, 2)?;
            expect_ready(init.entry()).with_context(|| format!("{}'s pid 1", self.name()))?;
            *life = Some(Life { daemon: None, init });
        }
        self.start_daemon()?;
        self.wait_for_daemon()
    }

    /// Ends it as a power cut does: everything that runs on it, containers included, is gone at once.
    ///
    /// # Errors
    /// Something of it is still there after a while.
    pub fn power_off(&self) -> Result<()> {
        report(&format!("power off {}", self.name()));
        let Some(mut life) = self.life().take() else {
            return Ok(());
        };
        life.init.kill()?;
        if let Some(daemon) = &mut life.daemon {
            daemon.kill()?;
        }
        wait_for_no_loops(&self.home, DEADLINE)
    }

    /// Power off, and on.
    ///
    /// # Errors
    /// As [`Member::power_off`] and [`Member::power_on`].
    pub fn reboot(&self) -> Result<()> {
        self.power_off()?;
        self.power_on()
    }

    /// Stops all of it, as a hypervisor pauses a virtual machine: nothing is lost, and nothing moves. Daemons of Ceph on the same host
    /// are not part of it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pause(&self) -> Result<()> {
        self.freeze(true)
    }

    /// Undoes [`Member::pause`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn resume(&self) -> Result<()> {
        self.freeze(false)
    }

    fn freeze(&self, frozen: bool) -> Result<()> {
        fs::write(self.cgroup.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
        wait_for("the cgroup freezer", DEADLINE, || {
            let events = fs::read_to_string(self.cgroup.join("cgroup.events"))?;
            Ok(events.lines().any(|line| line == format!("frozen {}", u8::from(frozen))).then_some(()))
        })
    }

    /// Runs the incusd of a member that is on, and does not wait for it.
    ///
    /// # Errors
    /// It runs already, or ends at once.
    pub fn start_daemon(&self) -> Result<()> {
        let mut slot = self.life();
        let life = slot.as_mut().with_context(|| format!("{} is off", self.name()))?;
        ensure!(life.daemon.is_none(), "the incusd of {} runs already", self.name());
        let log = self.log("incusd")?;
        let mut command = self.in_cgroup();
        command
            .arg("nsenter")
            .arg(format!("--target={}", life.init.pid()))
            .args(Self::NAMESPACES)
            .args(["--", "setpriv", "--pdeathsig=KILL", "--", "setsid", "--fork", "--wait"])
            .args(["setpriv", "--pdeathsig=KILL", "--", INCUSD, "--verbose"])
            .env("INCUS_DIR", self.home.join("var"))
            .env("INCUS_SECURITY_APPARMOR", "false")
            // It would ask the world for them, and log that it can't.
            .env("INCUS_SKIP_INSTANCE_TYPES", "true")
            .env("CEPH_CONF", self.host.dir.join("ceph.conf"))
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.home.join("bin").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        life.daemon = Some(Process::spawn(&format!("incusd of {}", self.name()), &mut command, 2)?);
        Ok(())
    }

    /// Waits until incusd answers on its socket.
    ///
    /// # Errors
    /// It does not within a minute.
    pub fn wait_for_daemon(&self) -> Result<()> {
        wait_for(&format!("the incusd of {}", self.name()), DEADLINE, || {
            ensure!(self.socket().exists(), "no socket");
            // Answers only when the daemon is through with its start.
            self.incus_within(DEADLINE, &["admin", "waitready", "--timeout=60"]).map(Some)
        })
        .map(drop)
    }

    /// Kills incusd and nothing else: the containers go on.
    ///
    /// # Errors
    /// It does not go.
    pub fn kill_daemon(&self) -> Result<()> {
        let daemon = self.life().as_mut().and_then(|life| life.daemon.take());
        daemon.map_or(Ok(()), |mut daemon| daemon.kill())
    }

    /// SIGSTOP of incusd: its sockets stay, nothing answers, and its host still answers a ping.
    ///
    /// # Errors
    /// It is not running.
    pub fn stop_daemon(&self) -> Result<()> {
        self.with_daemon(Process::stop)
    }

    /// SIGCONT of incusd.
    ///
    /// # Errors
    /// It is not running.
    pub fn cont_daemon(&self) -> Result<()> {
        self.with_daemon(Process::cont)
    }

    /// The pid of incusd, as seen from outside of the lab.
    ///
    /// # Errors
    /// It is not running.
    pub fn daemon_pid(&self) -> Result<Pid> {
        self.with_daemon(|daemon| Ok(daemon.pid()))
    }

    fn with_daemon<T>(&self, act: impl FnOnce(&Process) -> Result<T>) -> Result<T> {
        let slot = self.life();
        let daemon = slot.as_ref().and_then(|life| life.daemon.as_ref());
        act(daemon.with_context(|| format!("no incusd runs on {}", self.name()))?)
    }

    /// A command inside the member's present life: its mounts, its processes, its clock of uptime.
    ///
    /// # Errors
    /// It is off.
    pub fn command(&self, program: &str) -> Result<Command> {
        let pid = self.life().as_ref().with_context(|| format!("{} is off", self.name()))?.init.pid();
        let mut command = enter(pid, &Self::NAMESPACES);
        command.arg(program).env("CEPH_CONF", self.host.dir.join("ceph.conf"));
        Ok(command)
    }

    const NAMESPACES: [&'static str; 6] = ["--pid", "--mount", "--net", "--uts", "--cgroup", "--time"];

    fn log(&self, of: &str) -> Result<File> {
        let path = self.host.dir.join(format!("log/{of}-{}.out", self.name()));
        Ok(File::options().create(true).append(true).open(path)?)
    }

    /// A command that joins the member's cgroup before it becomes the program it is told to.
    fn in_cgroup(&self) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo 0 >"$0/cgroup.procs" && exec "$@""#]).arg(&self.cgroup);
        command
    }

    fn life(&self) -> MutexGuard<'_, Option<Life>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a cgroup and those below, which whoever was killed in them has left.
fn remove_cgroups(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    wait_for(&format!("{} to be empty", path.display()), DEADLINE, || Ok(Some(fs::remove_dir(path)?)))
}
