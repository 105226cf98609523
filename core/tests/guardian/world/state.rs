//! What is true in a drawn world, whatever the guardian believes of it: hosts, client instances, images, PGs and what
//! Incus's database says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rbd_guardian_core::guardian::Guardian;
use rbd_guardian_core::guardian::io::{Input, Now};
use rbd_guardian_core::guardian::settings::Settings;
use rbd_guardian_core::model::addr::{ClientAddr, EntityAddr, Entry};
use rbd_guardian_core::model::blocklist::Blocklist;
use rbd_guardian_core::model::ceph_snapshot::{Daemon, DaemonKind, Role};
use rbd_guardian_core::model::epoch::OsdEpoch;
use rbd_guardian_core::model::fence_id::FenceId;
use rbd_guardian_core::model::incus_snapshot::{InstanceId, InstanceKind, MemberStatus};
use rbd_guardian_core::model::member::Members;
use rbd_guardian_core::model::osdmap::{OsdMap, Pool, PoolId};
use rbd_guardian_core::model::policy::Policy;
use rbd_guardian_core::model::record::{FenceState, Records};
use rbd_guardian_core::model::volume::ImageName;

use super::super::model::{id, start};
use super::drawn::{DataPool, Shape};
use super::facets::{Facet, on};

/// Between two ticks.
pub(crate) const STEP: Duration = Duration::from_secs(1);
/// Of the cluster of members.
pub(crate) const OFFLINE: Duration = Duration::from_secs(20);
/// Of the cluster of members.
pub(crate) const HEALING: Duration = Duration::from_secs(30);
/// Healing is tried again.
const HEAL_EVERY: Duration = Duration::from_secs(10);
/// A watch lives this long without its client (`osd_client_watch_timeout`).
const WATCH: Duration = Duration::from_secs(30);

/// The pool of images; that of their data; a pool of a file system.
pub(crate) const IMAGES: PoolId = 1;
/// See there.
pub(crate) const DATA: PoolId = 2;

/// A machine: a member, or a foreign one.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Addresses that clients of it use.
    pub(crate) ips: Vec<IpAddr>,
    /// Addresses beside those, which wander between hosts.
    pub(crate) floating: BTreeSet<IpAddr>,
    pub(crate) up: bool,
    /// Incus reaches it.
    pub(crate) cluster: bool,
    /// Its clients reach the storage.
    pub(crate) storage: bool,
    pub(crate) booted: Duration,
    pub(crate) boots: u32,
    /// Since when Incus reaches it without a break.
    pub(crate) answers_since: Duration,
}

/// What Incus's database says of a member.
#[derive(Debug, Clone)]
pub(crate) struct InDatabase {
    pub(crate) maintenance: Option<MemberStatus>,
    pub(crate) heartbeat: Duration,
    /// Heartbeats are written from then on: it answers already before.
    pub(crate) heartbeats_from: Duration,
    /// What the operator says of its addresses.
    pub(crate) said: BTreeSet<IpAddr>,
    pub(crate) healed: Duration,
    pub(crate) keys: BTreeMap<String, String>,
}

/// A client instance.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) addr: ClientAddr,
    pub(crate) host: String,
    pub(crate) images: BTreeSet<ImageName>,
    /// Images it ever used: it may write what it has in its buffers.
    pub(crate) ever: BTreeSet<ImageName>,
    pub(crate) alive: bool,
    /// When it opened each image last.
    pub(crate) opened: BTreeMap<ImageName, Duration>,
    /// When it renewed its watches last.
    pub(crate) renewed: Duration,
    /// A sweep and a whole reading after it showed it to the guardian at an image of its host's, while that was healthy.
    pub(crate) known: bool,
    /// It was refused while its member was sealed: for good.
    pub(crate) dead: bool,
    /// It ended, and its watches stay.
    pub(crate) ghost: bool,
    /// It closes its images then.
    pub(crate) until: Option<Duration>,
}

/// An instance, as Incus's database has it.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) kind: InstanceKind,
    pub(crate) location: String,
    pub(crate) running: bool,
    /// The storage pool of Incus.
    pub(crate) pool: String,
}

/// An entry of the guardian's own.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    pub(crate) fence: FenceId,
    pub(crate) member: Option<String>,
    pub(crate) at: Duration,
}

/// What does not work, while it does not.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Incus gives no answer; each question takes this long to fail.
    pub(crate) incus_hangs: Option<Duration>,
    pub(crate) no_instances: bool,
    pub(crate) no_volumes: bool,
    pub(crate) no_operations: bool,
    /// Nobody can read who uses what profiles attach.
    pub(crate) no_profiles: bool,
    pub(crate) ledger_down: bool,
    /// The storage's monitors answer no question.
    pub(crate) monitors_silent: bool,
    /// A source of a look is silent.
    pub(crate) look_unread: bool,
    /// Images that no sweep can read.
    pub(crate) unreadable: BTreeSet<ImageName>,
    /// Members whose configuration cannot be written.
    pub(crate) unwritable: BTreeSet<String>,
    /// What becomes of the next changes of the blocklist.
    pub(crate) next_sent: VecDeque<Fate>,
    /// Osdmaps come each second, of which none is about the blocklist.
    pub(crate) churn: bool,
    /// What fails does so at once, instead of after its time.
    pub(crate) at_once: bool,
    /// Answers of reads take this long.
    pub(crate) lag: Duration,
    /// Answers of changes to the blocklist take this long.
    pub(crate) slow_changes: Duration,
}

/// What becomes of a command that is never answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Done,
    NotDone,
    /// It arrives after this time.
    Late(Duration),
}

/// A whole world, and the guardian in it.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) guardian: Guardian,
    pub(crate) settings: Settings,
    pub(crate) boot: Duration,
    /// When the guardian began.
    pub(crate) guardian_since: Duration,
    pub(crate) ledger: Records,
    pub(crate) maps: Vec<OsdMap>,
    /// PGs that answer nobody, and the epoch they have.
    pub(crate) stuck: BTreeMap<(PoolId, u32), OsdEpoch>,
    pub(crate) late_pgs: BTreeMap<(PoolId, u32), super::late::LatePg>,
    /// The newest epoch that each PG has told this guardian.
    pub(crate) told: BTreeMap<(PoolId, u32), OsdEpoch>,
    /// The newest osdmap when this guardian began.
    pub(crate) epoch_at_takeover: OsdEpoch,
    /// Since when every PG has told what a fence waits for, in responsive time.
    pub(crate) all_told_since: BTreeMap<FenceId, Duration>,
    pub(crate) pace: super::pace::Pace,
    pub(crate) locks: BTreeMap<ImageName, rbd_guardian_core::model::image_users::Locker>,
    pub(crate) migrations: Vec<super::drawn::Migration>,
    pub(crate) hosts: BTreeMap<String, Host>,
    pub(crate) members: BTreeMap<String, InDatabase>,
    pub(crate) clients: Vec<Client>,
    pub(crate) guests: BTreeMap<InstanceId, Guest>,
    pub(crate) daemons: Vec<(String, Daemon)>,
    pub(crate) gate: bool,
    pub(crate) faults: Faults,
    pub(crate) due: Vec<(Duration, u64, Input)>,
    /// Changes of the blocklist that are on their way for long.
    pub(crate) late: Vec<(Duration, Entry, Option<Timestamp>)>,
    pub(crate) numbers: u64,
    pub(crate) log: Vec<String>,
    /// What the guardian added and did not remove.
    pub(crate) own: BTreeMap<Entry, Own>,
    /// Time in which the storage and the ledger answered and a guardian led: what has a bound is counted in it.
    pub(crate) responsive: Duration,
    /// When somebody last took away an entry, in responsive time.
    pub(crate) tampered: Option<Duration>,
    /// Since when an entry of a fence that is held does not stand, in responsive time.
    pub(crate) free_since: BTreeMap<(FenceId, Entry), Duration>,
    pub(crate) broken: Option<String>,
    /// Reboots of each member when its fence was sealed first.
    pub(crate) boots_at_seal: BTreeMap<FenceId, u32>,
    /// When the fence of each ID began.
    pub(crate) fences_began: BTreeMap<FenceId, Timestamp>,
    /// Fences that an operator asserted away.
    pub(crate) asserted: BTreeSet<FenceId>,
    pub(crate) moved_at: BTreeMap<IpAddr, Duration>,
    /// Since when Incus answers in good time.
    pub(crate) prompt_since: Duration,
    /// Clients that the last sweep showed where they belong.
    pub(crate) shown: BTreeSet<ClientAddr>,
    pub(crate) cluster_shape: Shape,
    /// Images that Incus lists, that somebody removed, and when.
    pub(crate) gone: BTreeMap<ImageName, Duration>,
    /// Since when something waits and no alarm says so.
    pub(crate) silent_since: Option<Duration>,
}

impl World {
    /// Members n1 and so on, each with a container and a VM, and a backup host and a host of OSDs beside them.
    pub(crate) fn new(shape: Shape) -> Self {
        let boot = Duration::from_secs(100_000);
        let mut policy = Policy::default();
        if shape.data == DataPool::Excepted {
            policy.guarded.except.push("data".to_owned());
        }
        let mut settings = Settings::new("g1", "boot-1", policy, Members::default());
        settings.guard.every = Duration::from_secs(5);
        settings.cool_down = Duration::from_secs(5);
        let mut world = Self {
            guardian: Guardian::new(settings.clone(), Records::default(), Now { boot, wall: start() }),
            settings,
            boot,
            guardian_since: boot,
            ledger: Records::default(),
            maps: vec![first_map(shape)],
            stuck: BTreeMap::new(),
            late_pgs: BTreeMap::new(),
            told: BTreeMap::new(),
            epoch_at_takeover: OsdEpoch::default(),
            all_told_since: BTreeMap::new(),
            pace: super::pace::Pace::default(),
            locks: BTreeMap::new(),
            migrations: Vec::new(),
            hosts: BTreeMap::new(),
            members: BTreeMap::new(),
            clients: Vec::new(),
            guests: BTreeMap::new(),
            daemons: Vec::new(),
            gate: true,
            faults: Faults::default(),
            due: Vec::new(),
            late: Vec::new(),
            numbers: 0,
            log: Vec::new(),
            own: BTreeMap::new(),
            responsive: Duration::ZERO,
            tampered: None,
            free_since: BTreeMap::new(),
            broken: None,
            boots_at_seal: BTreeMap::new(),
            fences_began: BTreeMap::new(),
            asserted: BTreeSet::new(),
            moved_at: BTreeMap::new(),
            prompt_since: Duration::ZERO,
            shown: BTreeSet::new(),
            cluster_shape: shape,
            gone: BTreeMap::new(),
            silent_since: None,
        };
        world.people(shape);
        world
    }

    fn people(&mut self, shape: Shape) {
        for n in 1..=shape.members {
            let name = format!("n{n}");
            let mut ips: Vec<IpAddr> = vec![ip(0, n)];
            if shape.second_ips {
                ips.push(ip(1, n));
            }
            self.add_host(&name, ips.clone());
            let in_database = InDatabase {
                maintenance: None,
                heartbeat: self.boot,
                heartbeats_from: self.boot,
                said: if shape.said { ips.into_iter().collect() } else { BTreeSet::new() },
                healed: Duration::ZERO,
                keys: BTreeMap::new(),
            };
            self.members.insert(name.clone(), in_database);
            let guest =
                |kind| Guest { kind, location: name.clone(), running: true, pool: "remote".to_owned() };
            self.guests.insert(id(&format!("c{n}")), guest(InstanceKind::Container));
            self.guests.insert(id(&format!("v{n}")), guest(InstanceKind::VirtualMachine));
        }
        self.add_host("backup", vec![ip(0, 50)]);
        self.add_host("osds", vec![ip(0, 60)]);
        self.add_host("far", vec![ip(0, 70)]);
        self.add_host("guardian", vec![ip(0, 9)]);
        if shape.second_cluster && on(Facet::SecondCluster) {
            let far = Guest {
                kind: InstanceKind::Container,
                location: "n2".to_owned(),
                running: true,
                pool: "away".to_owned(),
            };
            self.guests.insert(id("far"), far);
            // In this cluster an image of that name is somebody else's.
            let image = image_of("container_far");
            let client = self.client_at("far", 0);
            self.opens(client, image);
        }
        let mut daemon = |kind, name: &str, host: &str, role| {
            let ips = self.hosts[host].ips[..1].to_vec();
            let clients = Vec::new();
            let name = name.to_owned();
            let daemon = Daemon { kind, name, ips, role, clients, clients_unknown: false };
            self.daemons.push((host.to_owned(), daemon));
        };
        daemon(DaemonKind::Osd, "9", "osds", Role::Plain);
        daemon(DaemonKind::Mgr, "x", "osds", Role::Active);
        if shape.hyperconverged {
            for n in 1..=shape.members {
                daemon(DaemonKind::Osd, &n.to_string(), &format!("n{n}"), Role::Plain);
            }
            daemon(DaemonKind::Mon, "a", "n1", Role::Plain);
            daemon(DaemonKind::Mgr, "y", "n2", Role::Standby);
        }
        if shape.active {
            self.daemons_are_active_on_members();
        }
        let guests: Vec<InstanceId> = self.guests.keys().cloned().collect();
        for guest in &guests {
            // Where hosts have two addresses, the second is used later only.
            if shape.second_ips && guest.name.starts_with('v') {
                self.guests.get_mut(guest).unwrap().running = false;
            } else {
                self.starts(guest);
            }
        }
        if shape.floating && on(Facet::Floating) {
            self.hosts.get_mut("n1").unwrap().floating.insert(ip(0, 200));
        }
        let own = self.client_at("guardian", 0);
        self.settings.guard.own = vec![EntityAddr::from(self.clients[own].addr)];
    }

    fn add_host(&mut self, name: &str, ips: Vec<IpAddr>) {
        let host = Host {
            ips,
            floating: BTreeSet::new(),
            up: true,
            cluster: true,
            storage: true,
            booted: Duration::ZERO,
            boots: 0,
            answers_since: Duration::ZERO,
        };
        self.hosts.insert(name.to_owned(), host);
    }

    /// The kernel's client of a host at its nth address, made when there is none.
    pub(crate) fn client_at(&mut self, host: &str, nth: usize) -> usize {
        let ips = &self.hosts[host].ips;
        let ip = ips[nth % ips.len()];
        let found = self.clients.iter().position(|one| one.alive && one.host == host && one.addr.ip == ip);
        found.unwrap_or_else(|| self.new_client(host, nth))
    }

    pub(crate) fn new_client(&mut self, host: &str, nth: usize) -> usize {
        let ips = &self.hosts[host].ips;
        let ip = ips[nth % ips.len()];
        let nonce = self.nonce_at(ip);
        self.clients.push(Client {
            addr: ClientAddr { ip, nonce },
            host: host.to_owned(),
            images: BTreeSet::new(),
            ever: BTreeSet::new(),
            alive: true,
            opened: BTreeMap::new(),
            renewed: self.boot,
            known: false,
            dead: false,
            ghost: false,
            until: None,
        });
        self.clients.len() - 1
    }

    pub(crate) fn opens(&mut self, client: usize, image: ImageName) {
        self.clients[client].images.insert(image.clone());
        self.clients[client].opened.insert(image.clone(), self.boot);
        self.clients[client].ever.insert(image);
        self.clients[client].renewed = self.boot;
    }

    /// The instance runs: its images are used by clients of its host, those of a VM by two.
    pub(crate) fn starts(&mut self, guest: &InstanceId) {
        let Guest { location, kind, pool, .. } = self.guests[guest].clone();
        let host = &self.hosts[&location];
        if !host.up || !host.storage || pool == "away" {
            return;
        }
        // There is nothing to start from.
        if self.images_of(guest).iter().any(|image| self.gone.contains_key(image)) {
            return;
        }
        // The storage refuses: it does not start.
        let refused = |ip: &IpAddr| self.map().blocklist.refuses(ClientAddr { ip: *ip, nonce: 1 });
        if !self.cluster_shape.wrong_cluster && host.ips.iter().any(refused) {
            return;
        }
        self.guests.get_mut(guest).unwrap().running = true;
        let kernel = self.client_at(&location, 0);
        match kind {
            InstanceKind::Container => self.opens(kernel, image_of(&format!("container_{}", guest.name))),
            InstanceKind::VirtualMachine => {
                let name = format!("virtual-machine_{}", guest.name);
                self.opens(kernel, image_of(&name));
                let qemu = self.new_client(&location, 1);
                self.opens(qemu, image_of(&format!("{name}.block")));
                // The host maps it as well, under the address of its kernel.
                self.opens(kernel, image_of(&format!("{name}.block")));
            }
        }
        if let Some(volume) = self.attached(guest) {
            let qemu = self.new_client(&location, 1);
            self.opens(qemu, volume);
        }
    }

    /// It ends cleanly: its host closes its images.
    pub(crate) fn stops(&mut self, guest: &InstanceId) {
        let images = self.images_of(guest);
        let guest = self.guests.get_mut(guest).unwrap();
        guest.running = false;
        for client in self.clients.iter_mut().filter(|one| one.host == guest.location) {
            client.images.retain(|image| !images.contains(image));
            if client.images.is_empty() && client.ever.iter().all(|image| image.name.ends_with(".block")) {
                client.alive = false;
            }
        }
    }

    pub(crate) fn images_of(&self, guest: &InstanceId) -> Vec<ImageName> {
        let mut images = match self.guests[guest].kind {
            InstanceKind::Container => vec![image_of(&format!("container_{}", guest.name))],
            InstanceKind::VirtualMachine => {
                let name = format!("virtual-machine_{}", guest.name);
                vec![image_of(&name), image_of(&format!("{name}.block"))]
            }
        };
        images.extend(self.attached(guest));
        images
    }

    /// The member whose instance it is, and the instance.
    pub(crate) fn owner_of(&self, image: &ImageName) -> Option<(&InstanceId, &Guest)> {
        self.guests.iter().find(|(name, guest)| guest.pool != "away" && self.images_of(name).contains(image))
    }

    /// Pools that an image's bytes lie in.
    pub(crate) fn pools_of_images(&self) -> BTreeSet<PoolId> {
        match self.cluster_shape.data {
            DataPool::WithTheImages => [IMAGES].into(),
            DataPool::Apart | DataPool::TaggedForFiles | DataPool::InHeadersAlone | DataPool::Excepted => {
                [IMAGES, DATA].into()
            }
        }
    }

    /// Those of them that a seal covers: not what the operator excepts.
    pub(crate) fn guarded_pools(&self) -> BTreeSet<PoolId> {
        match self.cluster_shape.data {
            DataPool::Excepted => [IMAGES].into(),
            DataPool::WithTheImages
            | DataPool::Apart
            | DataPool::TaggedForFiles
            | DataPool::InHeadersAlone => self.pools_of_images(),
        }
    }

    pub(crate) fn now(&self) -> Now {
        Now { boot: self.boot, wall: start() + (self.boot - Duration::from_secs(100_000)) }
    }

    pub(crate) fn map(&self) -> &OsdMap {
        self.maps.last().unwrap()
    }

    /// The blocklist that a PG has.
    pub(crate) fn blocklist_of(&self, epoch: OsdEpoch) -> &Blocklist {
        &self.maps[usize::try_from(epoch.0 - self.maps[0].epoch.0).unwrap()].blocklist
    }

    pub(crate) fn change(&mut self, change: impl FnOnce(&mut OsdMap)) {
        let mut map = self.map().clone();
        map.epoch = map.epoch.later(1);
        map.modified = self.now().wall;
        change(&mut map);
        self.maps.push(map);
    }

    pub(crate) fn status(&self, member: &str) -> MemberStatus {
        let in_database = &self.members[member];
        let offline = self.boot.saturating_sub(in_database.heartbeat) > OFFLINE;
        let plain = if offline { MemberStatus::Offline } else { MemberStatus::Online };
        in_database.maintenance.clone().unwrap_or(plain)
    }

    pub(crate) fn answers(&self, member: &str) -> bool {
        let host = &self.hosts[member];
        host.up && host.cluster
    }

    pub(crate) fn leader(&self) -> Option<&String> {
        let answering: Vec<&String> = self.members.keys().filter(|name| self.answers(name)).collect();
        (answering.len() * 2 > self.members.len()).then(|| answering[0])
    }

    /// Does Incus place an instance of this member there? Only where the gate lets it.
    pub(crate) fn gate_lets(&self, member: &str, target: &str) -> bool {
        if !self.gate {
            return true;
        }
        let epoch = |name: &str| -> u64 {
            let keys = &self.members[name].keys;
            keys.get("user.rbd-guardian.epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or_default()
        };
        let newest = self.members.keys().map(|name| epoch(name)).max().unwrap_or_default();
        let keys = &self.members[target].keys;
        let seal = keys.get(&format!("user.rbd-guardian.seal.{member}"));
        let covers = |pool: &str| {
            keys.get("user.rbd-guardian.pools").is_some_and(|pools| pools.split(',').any(|one| one == pool))
        };
        seal.and_then(|seal| seal.parse().ok()) == Some(newest) && newest > 0 && covers("remote")
    }

    pub(crate) fn is_open(&self, member: &str) -> bool {
        self.gate && self.members.keys().any(|target| target != member && self.gate_lets(member, target))
    }

    /// One second of what goes on without the guardian.
    pub(crate) fn goes_on(&mut self) {
        let now = self.boot;
        for (name, host) in &mut self.hosts {
            let Some(member) = self.members.get_mut(name) else { continue };
            if host.up && host.cluster && now >= member.heartbeats_from {
                member.heartbeat = now;
            }
        }
        if self.map().blocklist.entries.values().any(|until| *until < self.now().wall) {
            let wall = self.now().wall;
            self.change(|map| map.blocklist.entries.retain(|_, until| *until >= wall));
        }
        for (_, entry, until) in self.late.extract_if(.., |(at, ..)| *at <= now).collect::<Vec<_>>() {
            self.log.push(format!("{:?}: a late change of {entry} arrives", self.time()));
            self.change(|map| put(map, entry, until));
        }
        let newest = self.map().blocklist.clone();
        for client in &mut self.clients {
            let host = &self.hosts[&client.host];
            client.alive &= host.up;
            if client.until.is_some_and(|until| until <= now) {
                client.images.clear();
                client.until = None;
            }
            if client.alive && host.storage && !newest.refuses(client.addr) {
                client.renewed = now;
            }
        }
        self.migrations_go_on();
        self.heal();
    }

    /// Seconds since the beginning.
    pub(crate) fn time(&self) -> Duration {
        self.boot - Duration::from_secs(100_000)
    }

    pub(crate) fn watches(&self, client: &Client) -> bool {
        client.ghost
            || (self.boot.saturating_sub(client.renewed) < WATCH
                && (client.alive || !client.images.is_empty()))
    }

    fn heal(&mut self) {
        if self.leader().is_none() {
            return;
        }
        for name in self.members.keys().cloned().collect::<Vec<_>>() {
            let member = &self.members[&name];
            let due = self.boot.saturating_sub(member.heartbeat) > HEALING
                && member.maintenance.is_none()
                && self.boot >= member.healed + HEAL_EVERY;
            if !due || self.answers(&name) {
                continue;
            }
            self.members.get_mut(&name).unwrap().healed = self.boot;
            let here = |(_, guest): &(&InstanceId, &Guest)| guest.location == name && guest.pool != "away";
            let guests: Vec<InstanceId> =
                self.guests.iter().filter(here).map(|(guest, _)| guest.clone()).collect();
            let others: Vec<String> = self.members.keys().filter(|other| **other != name).cloned().collect();
            let target = others.iter().find(|other| {
                self.answers(other)
                    && self.members[*other].maintenance.is_none()
                    && self.gate_lets(&name, other)
            });
            match target.cloned() {
                Some(target) => {
                    for guest in guests {
                        self.placed_elsewhere(&name, &guest);
                        self.guests.get_mut(&guest).unwrap().location.clone_from(&target);
                        self.starts(&guest);
                    }
                    self.log.push(format!("{:?}: {name} is healed to {target}", self.time()));
                    self.members.get_mut(&name).unwrap().maintenance = Some(MemberStatus::Evacuated);
                }
                None if !guests.is_empty() => self.refuses_heal(&name),
                None => {}
            }
        }
    }

    /// Members that Incus lost and whose instances still wait there.
    pub(crate) fn lost(&self) -> Vec<String> {
        let waits = |name: &&String| {
            let member = &self.members[*name];
            self.boot.saturating_sub(member.heartbeat) > HEALING
                && member.maintenance.is_none()
                && self.guests.values().any(|guest| guest.location == **name && guest.pool != "away")
        };
        self.members.keys().filter(waits).cloned().collect()
    }

    /// Fences in force, of members, as the guardian reports them.
    pub(crate) fn held(&self, member: &str) -> Option<FenceState> {
        let of_it = |fence: &&rbd_guardian_core::model::record::FenceRecord| {
            fence.member.as_deref() == Some(member) && fence.state != FenceState::Released
        };
        self.ledger.fences.values().find(of_it).map(|fence| fence.state)
    }
}

pub(crate) fn ip(network: u8, host: u8) -> IpAddr {
    IpAddr::from([10, 0, network, host])
}

pub(crate) fn image_of(name: &str) -> ImageName {
    ImageName { pool: "incus".to_owned(), namespace: String::new(), name: name.to_owned() }
}

fn first_map(shape: Shape) -> OsdMap {
    let pool = |name: &str, application: &str| Pool {
        name: name.to_owned(),
        pg_num: 4,
        overlay: None,
        eio: false,
        applications: vec![application.to_owned()],
        unclear: None,
    };
    let files = matches!(shape.data, DataPool::TaggedForFiles | DataPool::InHeadersAlone);
    OsdMap {
        epoch: OsdEpoch(10),
        modified: start(),
        blocklist: Blocklist::default(),
        knows_ranges: true,
        reads_paused: false,
        not_understood: Vec::new(),
        pools: BTreeMap::from([
            (IMAGES, pool("incus", "rbd")),
            (DATA, pool("data", if files { "cephfs" } else { "rbd" })),
            (3, pool("files", "cephfs")),
        ]),
    }
}

/// Adds an entry that is not there, or removes it.
pub(crate) fn put(map: &mut OsdMap, entry: Entry, until: Option<Timestamp>) {
    let plain = |ip, nonce| EntityAddr { ip, port: 0, nonce };
    let addr = match entry {
        Entry::Host(ip) => plain(ip, 0),
        Entry::Client(client) => plain(client.ip, client.nonce),
        Entry::HostRange(ip) => {
            let Some(until) = until else {
                map.blocklist.ranges.remove(&ip.into());
                return;
            };
            map.blocklist.ranges.entry(ip.into()).or_insert(until);
            return;
        }
    };
    match until {
        Some(until) => drop(map.blocklist.entries.entry(addr).or_insert(until)),
        None => drop(map.blocklist.entries.remove(&addr)),
    }
}
