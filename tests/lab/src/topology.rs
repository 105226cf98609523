//! What a lab is to consist of.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Result, bail, ensure};

use crate::lab::Lab;
use crate::world::World;

/// A daemon that a host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A monitor: one or three in a lab, on any hosts.
    Mon(&'static str),
    /// A manager; the first one to come up is active, others stand by.
    Mgr(&'static str),
    /// An OSD; the numbers of a lab's OSDs run from 0 without a gap.
    Osd(u32),
    /// A metadata server. With one, the lab has a file system named `lab`.
    Mds(&'static str),
}

impl Role {
    /// The daemon's name as Ceph has it: `osd.0`.
    #[must_use]
    pub fn name(self) -> String {
        format!("{}.{}", self.kind(), self.id())
    }

    pub(crate) fn kind(self) -> &'static str {
        match self {
            Role::Mon(_) => "mon",
            Role::Mgr(_) => "mgr",
            Role::Osd(_) => "osd",
            Role::Mds(_) => "mds",
        }
    }

    pub(crate) fn id(self) -> String {
        match self {
            Role::Mon(id) | Role::Mgr(id) | Role::Mds(id) => id.to_owned(),
            Role::Osd(id) => id.to_string(),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// Where OSDs keep their objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ObjectStore {
    /// In memory: fast to make, nothing survives the end (or a kill) of an OSD.
    #[default]
    Memory,
    /// In a sparse file of 4 GiB: survives a kill and a new start.
    Bluestore,
}

/// The description of a lab: hosts, their daemons, options. [`Topology::start`] makes it real.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    pub(crate) hosts: Vec<(String, Vec<Role>)>,
    /// The hosts that have a second link, for Incus.
    pub(crate) linked: BTreeSet<String>,
    pub(crate) conf: Vec<(String, String)>,
    pub(crate) ipv6: bool,
    pub(crate) store: ObjectStore,
    pub(crate) world: World,
    /// The monitors have a wall clock of their own.
    pub(crate) clock: bool,
    /// So have the OSDs.
    pub(crate) osd_clock: bool,
}

/// The host every lab has besides those asked for: it runs no daemon, and nobody cuts it off.
pub(crate) const ADMIN: &str = "admin";

impl Topology {
    /// A lab without any host but `admin`, which is always there for commands and never cut off.
    #[must_use]
    pub fn new() -> Topology {
        Topology {
            hosts: vec![(ADMIN.to_owned(), Vec::new())],
            world: World::from_env(),
            ..Topology::default()
        }
    }

    /// The usual: one host `store` with one mon, one mgr and three OSDs, and client hosts of these names.
    #[must_use]
    pub fn small(clients: &[&str]) -> Topology {
        let store = [Role::Mon("a"), Role::Mgr("x"), Role::Osd(0), Role::Osd(1), Role::Osd(2)];
        clients
            .iter()
            .fold(Topology::new().host("store", &store), |topology, client| topology.host(client, &[]))
    }

    /// Adds a host with an address of its own, and the daemons it runs.
    #[must_use]
    pub fn host(mut self, name: &str, roles: &[Role]) -> Topology {
        self.hosts.push((name.to_owned(), roles.to_vec()));
        self
    }

    /// As [`Topology::host`], with a second link in a network of its own: a member of an Incus cluster, or a guardian's host.
    #[must_use]
    pub fn linked(mut self, name: &str, roles: &[Role]) -> Topology {
        self.linked.insert(name.to_owned());
        self.host(name, roles)
    }

    /// For an Incus cluster with storage apart: a host `store` as in [`Topology::small`]; `n1`, `n2`, `n3` for the members, and `guard`.
    #[must_use]
    pub fn apart() -> Topology {
        ["n1", "n2", "n3", "guard"]
            .iter()
            .fold(Topology::small(&[]), |topology, name| topology.linked(name, &[]))
    }

    /// For an Incus cluster that is its own storage: a mon, a mgr and an OSD on each of `n1`, `n2`, `n3`, which are the members; and `guard`.
    #[must_use]
    pub fn hyperconverged() -> Topology {
        Topology::new()
            .linked("n1", &[Role::Mon("a"), Role::Mgr("x"), Role::Osd(0)])
            .linked("n2", &[Role::Mon("b"), Role::Mgr("y"), Role::Osd(1)])
            .linked("n3", &[Role::Mon("c"), Role::Mgr("z"), Role::Osd(2)])
            .linked("guard", &[])
    }

    /// Adds a line to the global section of ceph.conf.
    #[must_use]
    pub fn conf(mut self, option: &str, value: &str) -> Topology {
        self.conf.push((option.to_owned(), value.to_owned()));
        self
    }

    /// The whole lab on IPv6 (`fd77::/64`), without any IPv4 address.
    #[must_use]
    pub fn ipv6(mut self) -> Topology {
        self.ipv6 = true;
        self
    }

    /// Where OSDs keep their objects; in memory unless said otherwise.
    #[must_use]
    pub fn objectstore(mut self, store: ObjectStore) -> Topology {
        self.store = store;
        self
    }

    /// Which releases it runs, whatever [`World::from_env`] says.
    #[must_use]
    pub fn world(mut self, world: World) -> Topology {
        self.world = world;
        self
    }

    /// Gives the monitors a wall clock of their own, see [`Lab::step_mon_clocks`]. There is no cephx in such a lab: keys and
    /// tickets end by clocks too, and OSDs that are left behind by years refuse every new session.
    /// Nor is an OSD marked down that was not heard of for years, by that clock: nothing but entries is to end.
    #[must_use]
    pub fn own_mon_clocks(mut self) -> Topology {
        self.clock = true;
        ["cluster", "service", "client"]
            .iter()
            .fold(self, |topology, kind| topology.conf(&format!("auth {kind} required"), "none"))
            .conf("mon osd report timeout", "2000000000")
    }

    /// Gives the OSDs a wall clock of their own, all the same one, see [`Lab::step_osd_clocks`]. Tickets last for an hour: steps of
    /// minutes leave cephx alone.
    #[must_use]
    pub fn own_osd_clocks(mut self) -> Topology {
        self.osd_clock = true;
        self
    }

    /// Starts it, and returns when all monitors are in quorum, a manager is active and all OSDs are up.
    ///
    /// # Errors
    /// The topology makes no cluster, the machine lacks something, or a daemon does not come up in time.
    pub fn start(self) -> Result<Lab> {
        self.check()?;
        Lab::start(self)
    }

    pub(crate) fn roles(&self) -> impl Iterator<Item = Role> {
        self.hosts.iter().flat_map(|(_, roles)| roles.iter().copied())
    }

    fn check(&self) -> Result<()> {
        let mut names = BTreeSet::new();
        for (name, _) in &self.hosts {
            ensure!(names.insert(name), "two hosts are named {name}");
        }
        ensure!(self.hosts.len() <= 200, "{} hosts: the lab has addresses for 200", self.hosts.len());
        let roles: BTreeSet<Role> = self.roles().collect();
        ensure!(roles.len() == self.roles().count(), "a daemon is listed twice");
        let count = |kind| roles.iter().filter(|role| role.kind() == kind).count();
        ensure!(count("mon") > 0, "no monitor");
        ensure!(count("mgr") > 0, "no manager");
        for (number, role) in roles.iter().filter(|role| role.kind() == "osd").enumerate() {
            if role.id() != number.to_string() {
                bail!("OSDs are numbered from 0 without a gap: {role} stands in the place of osd.{number}");
            }
        }
        Ok(())
    }
}
