//! A running lab.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::agent::{Agent, parse};
use crate::cage::Cage;
use crate::conf::{Conf, run};
use crate::daemon::Daemon;
use crate::host::Host;
use crate::network::{Links, Network, set_filter};
use crate::process::Process;
use crate::topology::{ADMIN, Role, Topology};
use crate::wait::{report, wait_for};
use crate::world::World;

/// The bound on every command and on each step of the start.
const DEADLINE: Duration = Duration::from_secs(60);

/// How far the monitors' clocks are off, in the lab's directory.
const CLOCK: &str = "clock";
/// The same of the OSDs.
const OSD_CLOCK: &str = "osd-clock";

/// How soon monitors propose a change and give up on an election, in seconds: Ceph's defaults, and what makes a start quick.
const PACE: [&str; 3] = ["paxos_propose_interval", "paxos_min_wait", "mon_election_timeout"];
const USUAL: [&str; 3] = ["1", "0.05", "5"];
const QUICK: [&str; 3] = ["0.05", "0.01", "0.5"];

/// A running lab: a Ceph cluster, its hosts and its network. Dropping it ends and removes everything.
///
/// The order of the fields is the order of their end; the cage goes before all of them, in `drop`.
#[derive(Debug)]
pub struct Lab {
    agent: Mutex<Option<Agent>>,
    daemons: BTreeMap<String, Mutex<Daemon>>,
    hosts: Vec<Host>,
    network: Network,
    /// What makes the hosts' namespaces exist.
    _anchors: Vec<Process>,
    cage: Cage,
    dir: PathBuf,
}

impl Lab {
    pub(crate) fn start(topology: Topology) -> Result<Lab> {
        let cage = Cage::start(topology.world)?;
        let dir = cage.dir().to_owned();
        let beside = if topology.world == World::Second { topology.world.folder()? } else { None };
        let network = Network::start(&cage, topology.ipv6)?;
        if topology.clock {
            fs::write(dir.join(CLOCK), "+0")?;
        }
        if topology.osd_clock {
            fs::write(dir.join(OSD_CLOCK), "+0")?;
        }
        let mut anchors = Vec::new();
        let mut hosts = Vec::new();
        let mut daemons = BTreeMap::new();
        for (number, (name, roles)) in (0..).zip(&topology.hosts) {
            let anchor = cage.anchor(name)?;
            let linked = topology.linked.contains(name);
            network.plug(anchor.pid(), number, if linked { Links::Both } else { Links::Ceph })?;
            let host = Host {
                name: name.clone(),
                number,
                address: network.address(number),
                incus: linked.then(|| network.address_on(Links::Incus, number)),
                fuses: Arc::default(),
                anchor: anchor.pid(),
                dir: dir.clone(),
                world: topology.world,
                beside: beside.clone(),
            };
            for role in roles {
                let mut daemon = Daemon::new(*role, host.clone());
                daemon.clock = match role {
                    Role::Mon(_) => topology.clock.then(|| dir.join(CLOCK)),
                    Role::Osd(_) => topology.osd_clock.then(|| dir.join(OSD_CLOCK)),
                    Role::Mgr(_) | Role::Mds(_) => None,
                };
                daemons.insert(role.name(), Mutex::new(daemon));
            }
            anchors.push(anchor);
            hosts.push(host);
        }
        let lab = Lab { agent: Mutex::new(None), daemons, hosts, network, _anchors: anchors, cage, dir };
        lab.boot(&topology)
            .with_context(|| format!("the cluster did not start; its logs are in {}/log", lab.dir.display()))
            .inspect_err(|_| {
                lab.keep();
            })?;
        Ok(lab)
    }

    fn boot(&self, topology: &Topology) -> Result<()> {
        let admin = self.host(ADMIN);
        let mons: Vec<_> = topology
            .hosts
            .iter()
            .zip(&self.hosts)
            .flat_map(|((_, roles), host)| roles.iter().map(move |role| (role, host.address)))
            .filter_map(
                |(role, address)| {
                    if let Role::Mon(name) = role { Some((*name, address)) } else { None }
                },
            )
            .collect();
        let conf = Conf { dir: &self.dir, fsid: Uuid::new_v4(), topology, range: self.network.range(), mons };
        conf.write(|tool| admin.command(tool))?;
        // The monitors start with a short propose interval, which saves a second for each step of the start.
        thread::scope(|scope| {
            let made: Vec<_> = self
                .daemons
                .values()
                .map(|daemon| {
                    scope.spawn(|| {
                        let mut daemon = lock(daemon);
                        daemon.make()?;
                        if let Role::Mon(_) = daemon.role() {
                            daemon.start_with(
                                &PACE
                                    .into_iter()
                                    .zip(QUICK)
                                    .map(|(option, value)| format!("--{option}={value}"))
                                    .collect::<Vec<_>>(),
                            )?;
                        }
                        Ok(())
                    })
                })
                .collect();
            made.into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a start-up thread panicked")))
        })?;
        report("daemons made, monitors started");
        wait_for("the first command", DEADLINE, || self.ceph(&["mon", "stat"]).map(Some))?;
        for number in 0..self.daemons.keys().filter(|name| name.starts_with("osd.")).count() {
            let name = format!("osd.{number}");
            let uuid = self.daemon(&name).uuid.to_string();
            self.ceph(&["osd", "create", &uuid, &number.to_string()])?;
        }
        // It would make a pool of its own. No mgr runs yet that knew this option, hence the force.
        self.ceph_json(&json!({"prefix": "config set", "who": "mgr", "name": "mgr/devicehealth/enable_monitoring", "value": "false",
            "force": true}))?;
        for daemon in self.daemons.values() {
            let mut daemon = lock(daemon);
            if !matches!(daemon.role(), Role::Mon(_)) {
                daemon.start()?;
            }
        }
        self.wait_until_up()?;
        if self.daemons.keys().any(|name| name.starts_with("mds.")) {
            self.ceph(&["osd", "pool", "create", "cephfs_meta", "8"])?;
            self.ceph(&["osd", "pool", "create", "cephfs_data", "8"])?;
            self.ceph(&["fs", "new", "lab", "cephfs_meta", "cephfs_data"])?;
            wait_for("an active mds", DEADLINE, || {
                let up = self.ceph(&["mds", "stat"])?;
                Ok(up.to_string().contains("up:active").then_some(()))
            })?;
        }
        conf.mons.iter().try_for_each(|(name, _)| self.set_pace(name, USUAL))
    }

    /// Waits until every monitor is in quorum, a manager is active and every OSD is up.
    ///
    /// # Errors
    /// After a minute, with what was last seen.
    pub fn wait_until_up(&self) -> Result<()> {
        let wanted = |kind: &str| {
            self.daemons.keys().filter(|name| name.split('.').next() == Some(kind)).count() as u64
        };
        wait_for("all monitors, a manager and all OSDs", DEADLINE, || {
            let status = self.ceph(&["status"])?;
            let mons = status["quorum"].as_array().map_or(0, Vec::len) as u64;
            let osds = status["osdmap"]["num_up_osds"].as_u64().unwrap_or(0);
            let mgr = status["mgrmap"]["available"].as_bool().unwrap_or(false);
            let seen = format!("{mons} monitors, {osds} OSDs, manager: {mgr}");
            ensure!(mons == wanted("mon") && osds == wanted("osd") && mgr, "{seen}");
            Ok(Some(()))
        })
    }

    /// The lab's directory: ceph.conf, keyrings, `log/`, and whatever a test puts there. It goes with the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The lab's ceph.conf.
    #[must_use]
    pub fn conf(&self) -> PathBuf {
        self.dir.join("ceph.conf")
    }

    /// The pid of the lab's pid 1, as seen from outside.
    #[must_use]
    pub fn init_pid(&self) -> nix::unistd::Pid {
        self.cage.init_pid()
    }

    /// A host of the topology, or `admin`.
    ///
    /// # Panics
    /// There is none of this name: the test is wrong.
    #[must_use]
    pub fn host(&self, name: &str) -> &Host {
        self.hosts
            .iter()
            .find(|host| host.name == name)
            .unwrap_or_else(|| panic!("the lab has no host {name}"))
    }

    /// A daemon, as in `osd.0`. Hold the handle only as long as you need it: it is a lock.
    ///
    /// # Panics
    /// There is none of this name: the test is wrong.
    pub fn daemon(&self, name: &str) -> MutexGuard<'_, Daemon> {
        lock(self.daemons.get(name).unwrap_or_else(|| panic!("the lab has no daemon {name}")))
    }

    /// The monitor that leads the quorum, as in `mon.a`.
    ///
    /// # Errors
    /// No quorum.
    pub fn mon_leader(&self) -> Result<String> {
        let status = self.ceph(&["quorum_status"])?;
        Ok(format!("mon.{}", status["quorum_leader_name"].as_str().context("no leader")?))
    }

    /// Runs a `ceph` command from the host `admin` and returns its answer as JSON.
    ///
    /// # Errors
    /// The command's own, or no answer within a minute.
    pub fn ceph(&self, words: &[&str]) -> Result<Value> {
        if matches!(words.first(), Some(&"tell" | &"daemon"))
            || words.iter().any(|word| word.starts_with('-'))
        {
            return parse(&self.tool("ceph", &[&["--format=json"], words].concat())?);
        }
        self.with_agent(|agent| agent.ceph(words, DEADLINE))
    }

    /// Runs a monitor command given as JSON, as librados takes it: `{"prefix": "osd dump"}`.
    ///
    /// # Errors
    /// The command's own, or no answer within a minute.
    pub fn ceph_json(&self, command: &Value) -> Result<Value> {
        self.with_agent(|agent| agent.run(command, DEADLINE)).with_context(|| command.to_string())
    }

    /// Does a series of map changes with a short propose interval; each would take a second otherwise.
    pub(crate) fn quickly<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let leader = self.mon_leader()?;
        self.set_pace(&leader, QUICK)?;
        let done = change();
        self.set_pace(&leader, USUAL)?;
        done
    }

    fn set_pace(&self, mon: &str, pace: [&str; 3]) -> Result<()> {
        let mon = mon.trim_start_matches("mon.");
        for (option, value) in PACE.into_iter().zip(pace) {
            self.ceph_json(&json!({"target": mon, "prefix": "config set", "var": option, "val": [value]}))?;
        }
        Ok(())
    }

    /// Runs an `rbd` command from the host `admin`; its stdout.
    ///
    /// # Errors
    /// The command's own, or not ended within a minute.
    pub fn rbd(&self, words: &[&str]) -> Result<String> {
        self.tool("rbd", words)
    }

    fn tool(&self, program: &str, words: &[&str]) -> Result<String> {
        run(self.bounded(program).args(words)).with_context(|| format!("{program} {}", words.join(" ")))
    }

    /// A command on `admin` that is killed when it takes too long.
    pub(crate) fn bounded(&self, program: &str) -> Command {
        self.host(ADMIN).bounded(program, DEADLINE)
    }

    fn with_agent<T>(&self, ask: impl FnOnce(&mut Agent) -> Result<T>) -> Result<T> {
        let mut slot = lock(&self.agent);
        if !slot.as_mut().is_some_and(|agent| agent.process().is_running()) {
            *slot = None;
            *slot = Some(Agent::for_commands(self.host(ADMIN), DEADLINE)?);
        }
        let agent = slot.as_mut().context("no agent")?;
        let answer = ask(agent);
        if !agent.in_step() {
            // An answer that comes late would be taken for that to the next question.
            *slot = None;
        }
        answer
    }

    /// Steps the monitors' wall clocks to so many seconds from this machine's. They see it within a second; clocks that only
    /// go forward, as those of time-outs, are left alone.
    ///
    /// # Errors
    /// The topology has not [`Topology::own_mon_clocks`].
    pub fn step_mon_clocks(&self, seconds: i64) -> Result<()> {
        self.step(CLOCK, seconds)
    }

    /// The same of the OSDs' clocks.
    ///
    /// # Errors
    /// The topology has not [`Topology::own_osd_clocks`].
    pub fn step_osd_clocks(&self, seconds: i64) -> Result<()> {
        self.step(OSD_CLOCK, seconds)
    }

    fn step(&self, clock: &str, seconds: i64) -> Result<()> {
        let (clock, next) = (self.dir.join(clock), self.dir.join("clock.next"));
        ensure!(clock.exists(), "these daemons of this lab have no clocks of their own");
        // Never half a number, and never none.
        fs::write(&next, format!("{seconds:+}"))?;
        Ok(fs::rename(next, clock)?)
    }

    /// Pulls all cables of a host: nothing comes through, nothing is told about it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn cut(&self, host: &str) -> Result<()> {
        self.cut_links(host, self.host(host).links())
    }

    /// Plugs them in again.
    ///
    /// # Errors
    /// The kernel's.
    pub fn heal(&self, host: &str) -> Result<()> {
        self.heal_links(host, self.host(host).links())
    }

    /// Pulls some cables of a host.
    ///
    /// # Errors
    /// It has no such link.
    pub fn cut_links(&self, host: &str, links: Links) -> Result<()> {
        report(&format!("cut {host}: {links:?}"));
        self.network.set_links(self.host(host).number, links, false)
    }

    /// Undoes [`Lab::cut_links`].
    ///
    /// # Errors
    /// It has no such link.
    pub fn heal_links(&self, host: &str, links: Links) -> Result<()> {
        report(&format!("heal {host}: {links:?}"));
        self.network.set_links(self.host(host).number, links, true)
    }

    /// Makes `host` drop all traffic from and to `peer`; other paths stay.
    ///
    /// # Errors
    /// No nftables here.
    pub fn cut_pair(&self, host: &str, peer: &str) -> Result<()> {
        set_filter(self.host(host).anchor, self.host(peer).address, true)
    }

    /// Undoes [`Lab::cut_pair`].
    ///
    /// # Errors
    /// The pair was not cut.
    pub fn heal_pair(&self, host: &str, peer: &str) -> Result<()> {
        set_filter(self.host(host).anchor, self.host(peer).address, false)
    }

    /// The pid that holds the network namespace of the switch; its bridge is `br0`, that of the Incus network `br1`.
    #[must_use]
    pub fn switch(&self) -> nix::unistd::Pid {
        self.network.switch()
    }

    /// An address in the lab's network that no host has: for a machine plugged into the switch by other means.
    #[must_use]
    pub fn spare_address(&self, number: u8) -> IpAddr {
        self.network.address(200u8.saturating_add(number))
    }

    /// Creates `client.NAME` with these caps, as in `("mon", "allow r")`, and returns its keyring, which Ceph's tools find by themselves
    /// when called with `--id NAME`.
    ///
    /// # Errors
    /// The monitors refuse the caps.
    pub fn key(&self, name: &str, caps: &[(&str, &str)]) -> Result<PathBuf> {
        let entity = format!("client.{name}");
        let mut words = vec!["auth", "get-or-create-key", entity.as_str()];
        words.extend(caps.iter().flat_map(|(service, cap)| [*service, *cap]));
        let answer = self.ceph(&words)?;
        let key = answer["key"].as_str().with_context(|| format!("no key in {answer}"))?;
        let path = self.dir.join(format!("ceph.{entity}.keyring"));
        let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(format!("[{entity}]\n\tkey = {key}\n").as_bytes())?;
        Ok(path)
    }

    /// Lets ceph.conf and `log/` stay when the lab ends, and says where. So does a panic, and `LAB_KEEP` in the environment; a test
    /// that returns an error looks to the lab like one that succeeds.
    pub fn keep(&self) {
        self.cage.keep();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() || std::env::var_os("LAB_KEEP").is_some() {
            self.keep();
        }
        self.cage.end_loudly();
    }
}

/// A panic while a daemon's handle was held says nothing about the daemon.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
