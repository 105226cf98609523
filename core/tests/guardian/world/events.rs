//! What may happen in a world: to members, to the storage, to Incus, to the guardian, and what operators do.

use std::collections::BTreeSet;
use std::time::Duration;

use fastrand::Rng;
use jiff::SignedDuration;
use rbd_guardian_core::guardian::io::Input;
use rbd_guardian_core::model::addr::Entry;
use rbd_guardian_core::model::fence_id::FenceId;
use rbd_guardian_core::model::incus_snapshot::{InstanceId, MemberStatus, Notice};
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::overrides::Overrides;
use rbd_guardian_core::model::target::Target;

use super::facets::{Facet, on};
use super::state::{DATA, Fate, IMAGES, World, ip, put};

/// One thing that happens. Numbers choose among what is there, so that a history stays one when parts are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// So many seconds go by.
    Pass(u8),
    /// Incus loses the member, whose clients go on writing.
    Lose(u8),
    /// It loses Incus and the storage.
    Cut(u8),
    /// Its power fails.
    PowerOff(u8),
    /// What was cut is mended; its heartbeat is written after so many seconds.
    Return(u8, u8),
    /// It reaches the storage again, and Incus does not reach it.
    StorageBack(u8),
    /// It boots and is back.
    Reboot(u8),
    /// It has another address; its old one belongs to a host of OSDs now.
    Renumber(u8),
    /// A floating address moves to it.
    Float(u8),
    /// A backup host opens an image for a moment, while its instance is down.
    Backup(u8),
    /// An instance ends and starts again.
    Restart(u8),
    /// A command opens and closes an image on a member, as agents do.
    Agent(u8),
    /// An operator evacuates the member.
    Evacuate(u8),
    /// Or restores it.
    Restore(u8),
    /// An operator removes an entry.
    RemoveEntry(u8),
    /// `osd blocklist clear`.
    ClearBlocklist,
    /// An entry of the member's host, or of a client of it, that ends after so many seconds.
    AddShort(u8, u8),
    /// An operator fences a member.
    Fence(u8, bool),
    /// An operator fences an address of the member, naming no member.
    FenceAddress(u8),
    /// An operator releases: with the assertion that it is off, if it is.
    Release(u8),
    /// A PG answers nobody.
    Stick(u8),
    /// A PG answers late, after so many seconds more than 5.
    SlowPg(u8, u8),
    /// All answer.
    Unstick,
    /// Incus gives no answer; each question takes so many seconds to fail.
    IncusHangs(u8),
    /// It answers.
    IncusBack,
    /// Readings lack instances, volumes, operations, who uses what profiles attach.
    Partial(u8),
    /// The ledger cannot be written.
    LedgerDown,
    /// It can.
    LedgerBack,
    /// No monitor answers.
    MonitorsSilent,
    /// They answer.
    MonitorsBack,
    /// A source of a look is silent.
    LookUnread(bool),
    /// An image cannot be read.
    Unreadable(u8),
    /// All can be read.
    Readable,
    /// A member's configuration cannot be written, or can again.
    Unwritable(u8),
    /// The next change of the blocklist is not answered.
    Unanswered(u8),
    /// Reads take so long, in tenths of a second.
    Lag(u8),
    /// Changes of the blocklist take so long, in tenths of a second.
    SlowChanges(u8),
    /// A client takes the lock of an image, and keeps it.
    Lock(u8),
    /// A client ends, and its watch stays.
    Ghost(u8),
    /// A running instance is moved; it takes so many seconds.
    Migrate(u8, u8),
    /// An operator adds an entry for a lost member by hand, for years.
    AddByHand(u8),
    /// What fails does so at once, or after its time.
    FailsAtOnce(bool),
    /// Another guardian takes over: on this host, or on another one, or one without Incus.
    TakeOver(u8),
    /// Osdmaps come each second, as in a cluster in which much goes on, or no longer.
    Churn(bool),
    /// Incus announces that something changed.
    Changed,
    /// A pool gets more PGs.
    Split(u8),
    /// Somebody removes the images of an instance that does not run, and Incus lists it still.
    Gone(u8),
    /// A foreign host opens the volume that a profile attaches, while nobody can read who uses it.
    Export(u8),
    /// An instance is deleted, and one of the same name is made on another member.
    Anew(u8),
}

impl Event {
    /// Most of the time members are lost and come back while something else does not work.
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let n = rng.u8(..);
        match rng.u8(..103) {
            0..22 => Self::Pass(rng.u8(1..=20)),
            22..30 => Self::Pass(rng.u8(20..=45)),
            30..37 => Self::Lose(n),
            37..40 => Self::Cut(n),
            40..42 => Self::PowerOff(n),
            42..47 => Self::Return(n, rng.u8(..15)),
            47..49 => Self::StorageBack(n),
            49..54 => Self::Reboot(n),
            54 => Self::Renumber(n),
            55 => Self::Float(n),
            56..58 => Self::Backup(n),
            58 if rng.bool() => Self::FailsAtOnce(rng.bool()),
            58 => Self::Restart(n),
            59..61 => Self::Agent(n),
            61..63 => Self::Evacuate(n),
            63 if rng.bool() => Self::Migrate(n, rng.u8(..30)),
            63 => Self::Restore(n),
            64..68 => Self::RemoveEntry(n),
            68 => Self::ClearBlocklist,
            69 if rng.bool() => Self::AddByHand(n),
            69 => Self::AddShort(n, rng.u8(30..)),
            70..73 => Self::Fence(n, rng.bool()),
            73 => Self::FenceAddress(n),
            74..76 => Self::Release(n),
            76 => Self::Stick(n),
            77 => Self::SlowPg(n, rng.u8(..)),
            78 => Self::Unstick,
            79 => Self::IncusHangs(rng.u8(1..30)),
            80..82 => Self::IncusBack,
            82 => Self::Partial(rng.u8(..16)),
            83 => Self::LedgerDown,
            84..86 => Self::LedgerBack,
            86 => Self::MonitorsSilent,
            87..89 => Self::MonitorsBack,
            89 => Self::LookUnread(rng.bool()),
            90 => Self::Unreadable(n),
            91 if rng.bool() => Self::Ghost(n),
            91 => Self::Readable,
            92 if rng.bool() => Self::Lock(n),
            92 => Self::Unwritable(n),
            93..95 => Self::Unanswered(n),
            95 => Self::Lag(rng.u8(..40)),
            96 => Self::SlowChanges(rng.u8(..60)),
            97 => Self::TakeOver(n),
            98 if rng.bool() => Self::Churn(rng.bool()),
            98 => Self::Changed,
            99 => Self::Split(n),
            100 => Self::Gone(n),
            101 => Self::Export(n),
            _ => Self::Anew(n),
        }
    }
}

impl World {
    fn nth_member(&self, n: u8) -> String {
        self.members.keys().nth(usize::from(n) % self.members.len()).unwrap().clone()
    }

    fn nth_guest(&self, n: u8) -> InstanceId {
        let ours: Vec<_> = self.guests.iter().filter(|(_, guest)| guest.pool != "away").collect();
        ours[usize::from(n) % ours.len()].0.clone()
    }

    /// Lets something happen.
    pub(crate) fn happens(&mut self, event: Event) {
        if !matches!(event, Event::Pass(_)) {
            self.log.push(format!("{:?}: {event:?}", self.time()));
        }
        match event {
            Event::Pass(seconds) => self.passes(Duration::from_secs(seconds.into())),
            Event::Lose(n) => {
                let name = self.nth_member(n);
                self.hosts.get_mut(&name).unwrap().cluster = false;
            }
            Event::Cut(n) => {
                let name = self.nth_member(n);
                let host = self.hosts.get_mut(&name).unwrap();
                (host.cluster, host.storage) = (false, false);
            }
            Event::PowerOff(n) => {
                let name = self.nth_member(n);
                let host = self.hosts.get_mut(&name).unwrap();
                (host.up, host.cluster) = (false, false);
            }
            Event::Return(n, after) => {
                let name = self.nth_member(n);
                if self.hosts[&name].up {
                    self.is_back(&name, after);
                }
            }
            Event::StorageBack(n) => {
                let name = self.nth_member(n);
                self.hosts.get_mut(&name).unwrap().storage = true;
            }
            Event::Reboot(n) => self.reboots(n),
            Event::Renumber(n) if on(Facet::Renumbering) => self.renumbers(n),
            Event::Float(n) if on(Facet::Floating) => {
                let name = self.nth_member(n);
                for host in self.hosts.values_mut() {
                    host.floating.clear();
                }
                self.hosts.get_mut(&name).unwrap().floating.insert(ip(0, 200));
                self.moved_at.insert(ip(0, 200), self.boot);
            }
            Event::Backup(n) if on(Facet::Backups) => self.backs_up(n),
            Event::Renumber(_) | Event::Float(_) | Event::Backup(_) => {}
            Event::Restart(n) => {
                let guest = self.nth_guest(n);
                if self.answers(&self.guests[&guest].location) {
                    self.stops(&guest);
                    self.passes(Duration::from_secs(1));
                    self.starts(&guest);
                    self.announced();
                }
            }
            Event::Agent(n) => self.agent(n),
            Event::Evacuate(n) => self.evacuates(n),
            Event::Restore(n) => {
                let name = self.nth_member(n);
                if self.answers(&name) && self.leader().is_some() {
                    self.members.get_mut(&name).unwrap().maintenance = None;
                    self.announced();
                }
            }
            Event::RemoveEntry(n) => self.removes_entry(n),
            Event::ClearBlocklist => {
                self.tampered = Some(self.responsive);
                self.change(|map| {
                    map.blocklist.entries.clear();
                    map.blocklist.ranges.clear();
                });
            }
            Event::AddShort(n, seconds) => self.adds_short(n, seconds),
            Event::Fence(n, accept) => {
                let name = self.nth_member(n);
                self.asks_fence(Target::Member(name), accept, n % 2 == 0);
            }
            Event::FenceAddress(n) if on(Facet::TwoFences) => {
                let name = self.nth_member(n);
                let host = Entry::Host(self.hosts[&name].ips[0]);
                if !self.answers(&name) {
                    self.asks_fence(Target::Addresses([host].into()), false, true);
                }
            }
            Event::FenceAddress(_) => {}
            Event::Release(n) => self.asks_release(n),
            Event::Stick(n) => {
                let pool = if n % 2 == 0 { IMAGES } else { DATA };
                let pgs = self.map().pools[&pool].pg_num;
                self.sticks(pool, u32::from(n / 2) % pgs);
            }
            Event::SlowPg(n, seconds) if on(Facet::LatePgs) => {
                let pool = if n % 2 == 0 { IMAGES } else { DATA };
                let pgs = self.map().pools[&pool].pg_num;
                let delay = Duration::from_secs(5 + u64::from(seconds % 116));
                self.slows(pool, u32::from(n / 2) % pgs, delay);
            }
            Event::SlowPg(..) => {}
            Event::Lock(n) => {
                let guest = self.nth_guest(n);
                self.locks_image(&guest, n.is_multiple_of(4));
            }
            Event::Ghost(n) => {
                let guest = self.nth_guest(n);
                self.leaves_ghost(&guest, usize::from(n / 8));
            }
            Event::Migrate(n, seconds) => {
                let guest = self.nth_guest(n);
                self.migrates(&guest, Duration::from_secs(seconds.into()));
            }
            Event::AddByHand(n) => {
                let name = self.nth_member(n);
                self.adds_by_hand(&name, n % 2 == 0);
            }
            Event::FailsAtOnce(at_once) => self.faults.at_once = at_once,
            Event::Unstick => {
                self.stuck.clear();
                self.late_pgs.clear();
            }
            Event::IncusHangs(seconds) => {
                self.faults.incus_hangs = Some(Duration::from_secs(seconds.into()));
            }
            Event::IncusBack => {
                self.faults.incus_hangs = None;
                self.handle(Input::Notice(Notice::Missed));
            }
            Event::Partial(what) => {
                self.faults.no_instances = what & 1 != 0;
                self.faults.no_volumes = what & 2 != 0;
                self.faults.no_operations = what & 4 != 0;
                self.faults.no_profiles = what & 8 != 0;
                if !self.faults.no_profiles {
                    self.ends_exports();
                }
            }
            Event::LedgerDown => self.faults.ledger_down = true,
            Event::LedgerBack => self.faults.ledger_down = false,
            Event::MonitorsSilent => self.faults.monitors_silent = true,
            Event::MonitorsBack => self.faults.monitors_silent = false,
            Event::LookUnread(unread) => self.faults.look_unread = unread,
            Event::Unreadable(n) => {
                let image = self.images_of(&self.nth_guest(n)).swap_remove(0);
                self.faults.unreadable.insert(image);
            }
            Event::Readable => self.faults.unreadable.clear(),
            Event::Unwritable(n) => {
                let name = self.nth_member(n);
                if !self.faults.unwritable.remove(&name) {
                    self.faults.unwritable.insert(name);
                }
            }
            Event::Unanswered(n) => self.faults.next_sent.push_back(match n % 3 {
                0 => Fate::Done,
                1 => Fate::NotDone,
                _ => Fate::Late(Duration::from_secs(u64::from(n))),
            }),
            Event::Lag(tenths) => self.faults.lag = Duration::from_millis(100 * u64::from(tenths)),
            Event::SlowChanges(tenths) => {
                self.faults.slow_changes = Duration::from_millis(100 * u64::from(tenths));
            }
            Event::TakeOver(n) => match n % 4 {
                0 => self.takes_over("boot-1", true),
                1 if on(Facet::WithoutIncus) => self.takes_over("boot-3", false),
                _ => self.takes_over("boot-2", true),
            },
            Event::Churn(churn) => self.faults.churn = churn,
            Event::Changed => self.announced(),
            Event::Split(n) => {
                let pool = if n % 2 == 0 { IMAGES } else { DATA };
                self.change(|map| {
                    let pool = map.pools.get_mut(&pool).unwrap();
                    pool.pg_num = (pool.pg_num * 2).min(16);
                });
                // All of it is asked again.
                self.told.retain(|(id, _), _| *id != pool);
            }
            Event::Gone(n) if on(Facet::SecondCluster) => self.loses_images(n),
            Event::Gone(_) => {}
            Event::Export(n) => {
                let vm = self.guest_at(&self.nth_member(n), 1);
                vm.into_iter().for_each(|vm| self.exports(&vm));
            }
            Event::Anew(n) => {
                let guest = self.guest_at(&self.nth_member(n), usize::from(n / 16));
                guest.into_iter().for_each(|guest| self.made_anew(&guest));
            }
        }
        self.holds();
    }

    fn passes(&mut self, time: Duration) {
        let end = self.boot + time;
        while self.boot < end && self.broken.is_none() {
            self.step();
            self.holds();
        }
    }

    /// Incus tells of a change, unless it hangs.
    pub(crate) fn announced(&mut self) {
        if self.faults.incus_hangs.is_none() {
            self.handle(Input::Notice(Notice::Changed));
        }
    }

    fn is_back(&mut self, name: &str, after: u8) {
        let boot = self.boot;
        let host = self.hosts.get_mut(name).unwrap();
        if !host.cluster {
            host.answers_since = boot;
        }
        (host.cluster, host.storage) = (true, true);
        self.members.get_mut(name).unwrap().heartbeats_from = boot + Duration::from_secs(after.into());
    }

    fn reboots(&mut self, n: u8) {
        let name = self.nth_member(n);
        let boot = self.boot;
        let host = self.hosts.get_mut(&name).unwrap();
        (host.up, host.cluster, host.booted) = (true, false, boot);
        host.boots += 1;
        for client in self.clients.iter_mut().filter(|client| client.host == name) {
            client.alive = false;
        }
        self.is_back(&name, 5);
        let here = |(_, guest): &(&InstanceId, &super::state::Guest)| guest.location == name;
        let guests: Vec<InstanceId> = self.guests.iter().filter(here).map(|(id, _)| id.clone()).collect();
        for guest in guests {
            self.guests.get_mut(&guest).unwrap().running = false;
            self.starts(&guest);
        }
        self.announced();
    }

    /// The member shuts its instances down for it, and its clients begin anew.
    fn renumbers(&mut self, n: u8) {
        let name = self.nth_member(n);
        if !self.answers(&name) || self.held(&name).is_some() {
            return;
        }
        let old = self.hosts[&name].ips[0];
        self.numbers += 1;
        let new = ip(2, u8::try_from(self.numbers % 200).unwrap());
        if self.clients.iter().any(|client| client.addr.ip == new) {
            return;
        }
        self.moved_at.insert(old, self.boot);
        self.moved_at.insert(new, self.boot);
        self.hosts.get_mut(&name).unwrap().ips[0] = new;
        let member = self.members.get_mut(&name).unwrap();
        if member.said.remove(&old) {
            member.said.insert(new);
        }
        for (host, daemon) in self.daemons.iter_mut().filter(|(host, _)| *host == name) {
            daemon.ips = self.hosts[host].ips[..1].to_vec();
        }
        self.hosts.get_mut("osds").unwrap().ips.push(old);
        let osds = self.hosts["osds"].ips.clone();
        for (_, daemon) in self.daemons.iter_mut().filter(|(host, _)| host == "osds") {
            daemon.ips.clone_from(&osds);
        }
        let nth = osds.len() - 1;
        self.new_client("osds", nth);
        self.reboots(n);
    }

    fn backs_up(&mut self, n: u8) {
        let guest = self.nth_guest(n);
        if !self.answers(&self.guests[&guest].location) {
            return;
        }
        self.stops(&guest);
        let image = self.images_of(&guest).swap_remove(0);
        if self.gone.contains_key(&image) {
            return;
        }
        let client = self.client_at("backup", 0);
        self.opens(client, image);
        self.clients[client].until = Some(self.boot + Duration::from_secs(u64::from(n % 7) + 1));
        self.passes(Duration::from_secs(u64::from(n % 8)));
        self.starts(&guest);
        self.announced();
    }

    /// A new client of the member uses an image of its own for a moment.
    fn agent(&mut self, n: u8) {
        let name = self.nth_member(n);
        let guests = self.guests.iter().find(|(id, guest)| {
            let gone = self.images_of(id).iter().any(|image| self.gone.contains_key(image));
            guest.location == name && guest.pool != "away" && !gone
        });
        let Some(guest) = guests.map(|(guest, _)| guest.clone()) else { return };
        if !self.hosts[&name].up {
            return;
        }
        let client = self.new_client(&name, usize::from(n / 8));
        let image = self.images_of(&guest).swap_remove(0);
        self.opens(client, image);
        self.clients[client].until = Some(self.boot + Duration::from_secs(u64::from(n % 20)));
    }

    fn loses_images(&mut self, n: u8) {
        let guest = self.nth_guest(n);
        if !self.answers(&self.guests[&guest].location) {
            return;
        }
        self.stops(&guest);
        for image in self.images_of(&guest) {
            self.gone.insert(image.clone(), self.boot);
            for client in &mut self.clients {
                client.images.remove(&image);
            }
        }
        self.announced();
    }

    fn evacuates(&mut self, n: u8) {
        let name = self.nth_member(n);
        if !self.answers(&name) || self.leader().is_none() || self.members[&name].maintenance.is_some() {
            return;
        }
        let free = |other: &&String| {
            **other != name && self.answers(other) && self.members[*other].maintenance.is_none()
        };
        let Some(target) = self.members.keys().find(free).cloned() else { return };
        let here =
            |(_, guest): &(&InstanceId, &super::state::Guest)| guest.location == name && guest.pool != "away";
        let guests: Vec<InstanceId> = self.guests.iter().filter(here).map(|(id, _)| id.clone()).collect();
        // One that is fenced cannot give its instances away: they do not stop.
        if self.held(&name).is_some() {
            return;
        }
        for guest in guests {
            self.stops(&guest);
            self.guests.get_mut(&guest).unwrap().location.clone_from(&target);
            self.starts(&guest);
        }
        self.members.get_mut(&name).unwrap().maintenance = Some(MemberStatus::Evacuated);
        self.announced();
    }

    fn removes_entry(&mut self, n: u8) {
        let entries: Vec<_> = self.map().blocklist.entries.keys().copied().collect();
        let ranges: Vec<_> = self.map().blocklist.ranges.keys().copied().collect();
        let all = entries.len() + ranges.len();
        if all == 0 {
            return;
        }
        self.tampered = Some(self.responsive);
        let at = usize::from(n) % all;
        self.change(|map| match entries.get(at) {
            Some(entry) => drop(map.blocklist.entries.remove(entry)),
            None => drop(map.blocklist.ranges.remove(&ranges[at - entries.len()])),
        });
    }

    fn adds_short(&mut self, n: u8, seconds: u8) {
        let name = self.nth_member(n);
        // On a host that is alive it would be an operator's fence, not a trap.
        if self.answers(&name) {
            return;
        }
        let until = self.now().wall + SignedDuration::from_secs(seconds.into());
        let client = self.clients.iter().find(|client| client.host == name && client.alive);
        let entry = match client.filter(|_| n.is_multiple_of(2)) {
            Some(client) => Entry::Client(client.addr),
            None => Entry::Host(self.hosts[&name].ips[0]),
        };
        self.change(|map| put(map, entry, Some(until)));
    }

    fn asks_fence(&mut self, target: Target, accept_incomplete: bool, reachable: bool) {
        self.numbers += 1;
        let over = Overrides { reachable, unknown: reachable, ..Overrides::default() };
        let request = Request::Fence {
            target,
            overrides: Overrides { accept_incomplete, ..over },
            reason: Some("a drill".to_owned()),
            by: "root@h".to_owned(),
        };
        self.handle(Input::Request(self.numbers, request));
    }

    fn asks_release(&mut self, n: u8) {
        let held: BTreeSet<(FenceId, Option<String>)> = self
            .ledger
            .fences
            .values()
            .filter(|fence| fence.state.stands())
            .map(|fence| (fence.id.clone(), fence.member.clone()))
            .collect();
        let Some((id, member)) = held.iter().nth(usize::from(n) % held.len().max(1)).cloned() else { return };
        // An operator says the truth; a fence of bare addresses is given up where the member's own holds.
        let assert_powered_off = member.is_none_or(|name| !self.hosts[&name].up);
        if assert_powered_off {
            self.asserted.insert(id.clone());
        }
        self.numbers += 1;
        let request = Request::Release {
            fence: id.to_string(),
            since: None,
            assert_powered_off,
            reason: Some("it is off".to_owned()),
            by: "root@h".to_owned(),
        };
        self.handle(Input::Request(self.numbers, request));
    }

    /// Everything works again, and nobody does anything any more.
    pub(crate) fn calms_down(&mut self) {
        self.log.push(format!("{:?}: all is calm", self.time()));
        self.faults = super::state::Faults::default();
        self.ends_exports();
        self.stuck.clear();
        self.late_pgs.clear();
        if !self.settings.platform {
            // One that sees Incus leads where there is one.
            self.takes_over("boot-1", true);
        }
        self.handle(Input::Notice(Notice::Missed));
    }

    pub(crate) fn warms_up(&mut self) {
        self.passes(Duration::from_secs(3));
        let guests: Vec<InstanceId> = self.guests.keys().cloned().collect();
        for guest in guests {
            if !self.guests[&guest].running {
                self.starts(&guest);
            }
        }
        self.announced();
        self.passes(Duration::from_secs(6));
        self.announced();
        self.passes(Duration::from_secs(3));
        let known = self.clients.iter().filter(|client| client.known).count();
        // Where the images are another cluster's nobody is seen at them.
        let wrong = self.cluster_shape.wrong_cluster;
        assert!(wrong || known >= 2 * usize::from(self.cluster_shape.members), "{known} clients are known");
    }
}
