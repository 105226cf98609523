//! What else operators' worlds have: locks that are stale or a foreign host's, watches of clients that ended, active daemons
//! on members, instances that are moved while they run, and entries that somebody adds by hand.

use std::collections::BTreeSet;
use std::time::Duration;

use fastrand::Rng;
use ipnet::IpNet;
use jiff::SignedDuration;
use rbd_guardian_core::guardian::io::StaleLock;
use rbd_guardian_core::model::addr::{ClientAddr, EntityAddr, Entry};
use rbd_guardian_core::model::ceph_snapshot::{Daemon, DaemonKind, Role};
use rbd_guardian_core::model::fence_id::FenceId;
use rbd_guardian_core::model::image_users::Locker;
use rbd_guardian_core::model::incus_snapshot::{InstanceId, Operation, OperationKind};
use rbd_guardian_core::model::volume::ImageName;

use super::events::Event;
use super::facets::{Facet, on};
use super::state::{World, put};

/// How a world is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) members: u8,
    /// The data of images lies in a pool of its own, tagged for file systems, or excepted.
    pub(crate) data: DataPool,
    pub(crate) second_ips: bool,
    /// A storage pool of Incus lies in another Ceph cluster, in an OSD pool of the same name.
    pub(crate) second_cluster: bool,
    /// All of Incus's images lie in another Ceph cluster, which has the name of the guardian's.
    pub(crate) wrong_cluster: bool,
    pub(crate) said: bool,
    pub(crate) hyperconverged: bool,
    pub(crate) floating: bool,
    /// An mgr and an mds are active on members.
    pub(crate) active: bool,
    /// A profile attaches a volume to each VM.
    pub(crate) profiles: bool,
}

/// Where data of images lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataPool {
    WithTheImages,
    Apart,
    TaggedForFiles,
    /// So tagged, and Incus does not name it.
    InHeadersAlone,
    Excepted,
}

/// An instance that is moved to another member while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Migration {
    guest: InstanceId,
    target: String,
    /// The client there that has its images open meanwhile.
    client: ClientAddr,
    until: Duration,
    number: u64,
}

impl Shape {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let data = match rng.u8(..5) {
            1 => DataPool::Apart,
            2 if on(Facet::DataPools) => DataPool::TaggedForFiles,
            3 if on(Facet::DataPools) => DataPool::Excepted,
            4 if on(Facet::DataPools) => DataPool::InHeadersAlone,
            _ => DataPool::WithTheImages,
        };
        Self {
            members: rng.u8(3..=5),
            data,
            second_ips: rng.bool() && on(Facet::SecondAddresses),
            second_cluster: rng.bool(),
            wrong_cluster: rng.u8(..8) == 0 && on(Facet::SecondCluster),
            said: rng.u8(..4) == 0,
            hyperconverged: rng.bool(),
            floating: rng.bool(),
            active: rng.bool(),
            profiles: rng.bool(),
        }
    }

    /// Shows what these events are about.
    pub(crate) fn suits(&mut self, theme: &[Event]) {
        match theme {
            [Event::Lose(_) | Event::Fence(..), Event::Pass(_), Event::TakeOver(_), ..] => {
                self.wrong_cluster |= on(Facet::SecondCluster);
            }
            [Event::Partial(_), ..] => self.profiles = true,
            [Event::Lose(_), Event::Float(_), ..] | [Event::Lose(_), Event::Pass(_), Event::Float(_), ..] => {
                self.floating = true;
            }
            _ => {}
        }
    }
}

impl World {
    /// A client that uses an image of the instance takes its lock and keeps it, whatever becomes of the client; or one of
    /// a foreign host does.
    pub(crate) fn locks_image(&mut self, guest: &InstanceId, foreign: bool) {
        let image = self.images_of(guest).swap_remove(0);
        let owner = if foreign {
            let backup = self.client_at("backup", 0);
            Some(self.clients[backup].addr)
        } else {
            self.clients.iter().find(|one| one.alive && one.images.contains(&image)).map(|one| one.addr)
        };
        let Some(owner) = owner else { return };
        let locker = Locker {
            owner: format!("client.{}", owner.nonce),
            cookie: "auto 1".to_owned(),
            address: Some(EntityAddr::from(owner)),
        };
        self.locks.entry(image).or_insert(locker);
    }

    /// INV-6: only the lock of a client that is refused is broken.
    pub(crate) fn breaks_lock(&mut self, lock: &StaleLock) {
        if !self.map().blocklist.refuses(lock.address) {
            self.breaks(format!("INV-6: the lock of {} is broken, and it is not refused", lock.address));
        }
        self.locks.retain(|image, one| *image != lock.image || one.owner != lock.owner);
    }

    /// A watch of a client of the member stays though the client has ended (a fault of Ceph).
    pub(crate) fn leaves_ghost(&mut self, guest: &InstanceId, nth: usize) {
        let location = self.guests[guest].location.clone();
        let image = self.images_of(guest).swap_remove(0);
        let client = self.new_client(&location, nth);
        self.opens(client, image);
        let client = &mut self.clients[client];
        (client.alive, client.ghost) = (false, true);
    }

    /// A mgr and an mds are active on members, their standbys elsewhere.
    pub(crate) fn daemons_are_active_on_members(&mut self) {
        let mut daemon = |kind, name: &str, host: &str, role| {
            let daemon = Daemon {
                kind,
                name: name.to_owned(),
                ips: self.hosts[host].ips[..1].to_vec(),
                role,
                clients: Vec::new(),
                clients_unknown: false,
            };
            self.daemons.retain(|(_, old)| old.kind != kind || old.name != name);
            self.daemons.push((host.to_owned(), daemon));
        };
        daemon(DaemonKind::Mgr, "x", "osds", Role::Standby);
        daemon(DaemonKind::Mgr, "y", "n2", Role::Active);
        daemon(DaemonKind::Mds, "m", "n1", Role::Active);
        daemon(DaemonKind::Mds, "s", "osds", Role::Standby);
    }

    /// INV-6: no host entry while a daemon that others depend on is active there.
    pub(crate) fn inv6_active_daemons(&mut self, id: &FenceId, entries: &[Entry]) {
        let hosts =
            entries.iter().filter(|entry| entry.is_host() && !self.moved_unseen(id, entry.ip(), self.boot));
        let hit = hosts.into_iter().find_map(|entry| {
            let active = |daemon: &&Daemon| daemon.role == Role::Active && daemon.ips.contains(&entry.ip());
            self.daemons
                .iter()
                .map(|(_, daemon)| daemon)
                .find(active)
                .map(|daemon| format!("{entry} refuses {daemon}"))
        });
        if let Some(text) = hit {
            self.breaks(format!("INV-6: {text}, which is active"));
        }
    }

    /// A running instance is moved to another member; it takes so long.
    pub(crate) fn migrates(&mut self, guest: &InstanceId, takes: Duration) {
        let location = self.guests[guest].location.clone();
        let free = |name: &&String| {
            **name != location
                && self.answers(name)
                && self.held(name).is_none()
                && self.members[*name].maintenance.is_none()
        };
        let target = self.members.keys().find(free).cloned();
        let moving = self.is_moving(guest);
        let (Some(target), true) = (target, self.answers(&location) && self.guests[guest].running && !moving)
        else {
            return;
        };
        self.numbers += 1;
        let number = self.numbers;
        let client = self.client_at(&target, 0);
        for image in self.images_of(guest) {
            self.opens(client, image);
        }
        let client = self.clients[client].addr;
        self.migrations.push(Migration {
            guest: guest.clone(),
            target,
            client,
            until: self.boot + takes,
            number,
        });
        self.announced();
    }

    pub(crate) fn is_moving(&self, guest: &InstanceId) -> bool {
        self.migrations.iter().any(|one| one.guest == *guest)
    }

    /// Those that have had their time end, where both members still answer; the others fail.
    pub(crate) fn migrations_go_on(&mut self) {
        let mut over = Vec::new();
        for one in &self.migrations {
            let location = &self.guests[&one.guest].location;
            let both = self.answers(location) && self.answers(&one.target) && self.leader().is_some();
            if !both || self.held(location).is_some() || one.until <= self.boot {
                over.push((one.clone(), both && self.held(location).is_none()));
            }
        }
        for (one, done) in over {
            self.migrations.retain(|other| other.number != one.number);
            if done {
                self.stops(&one.guest);
                self.guests.get_mut(&one.guest).unwrap().location.clone_from(&one.target);
                self.starts(&one.guest);
            } else {
                let images: BTreeSet<ImageName> = self.images_of(&one.guest).into_iter().collect();
                let gone = self.clients.iter_mut().filter(|client| client.addr == one.client);
                gone.for_each(|client| client.images.retain(|image| !images.contains(image)));
            }
            self.announced();
        }
    }

    /// As Incus tells them.
    pub(crate) fn operations(&self) -> Vec<Operation> {
        let one = |one: &Migration| Operation {
            id: format!("operation-{}", one.number),
            kind: OperationKind::Migrate,
            location: self.guests[&one.guest].location.clone(),
            instances: [one.guest.clone()].into(),
        };
        self.migrations.iter().map(one).collect()
    }

    /// An operator refuses a lost member by hand, for years: its host, or a range around it.
    pub(crate) fn adds_by_hand(&mut self, name: &str, wide: bool) {
        if self.answers(name) {
            return;
        }
        let ip = self.hosts[name].ips[0];
        let until = self.now().wall + SignedDuration::from_hours(5 * 365 * 24);
        self.change(|map| {
            if wide {
                let range = IpNet::new(ip, 31).unwrap().trunc();
                map.blocklist.ranges.entry(range).or_insert(until);
            } else {
                put(map, Entry::Host(ip), Some(until));
            }
        });
    }
}
