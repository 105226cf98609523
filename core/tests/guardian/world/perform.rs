//! How a world answers the guardian's effects: with what is true there, as far as it can be read, at once or later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use rbd_guardian_core::fence::step::{Sent, Step, StepOutcome};
use rbd_guardian_core::guardian::Guardian;
use rbd_guardian_core::guardian::io::{Effect, Input, Recorded};
use rbd_guardian_core::guardian::report::Report;
use rbd_guardian_core::model::addr::{ClientAddr, EntityAddr, Entry};
use rbd_guardian_core::model::ceph_snapshot::{self, Clients, SeenAt};
use rbd_guardian_core::model::epoch::OsdEpoch;
use rbd_guardian_core::model::fence_id::FenceId;
use rbd_guardian_core::model::image_users::ImageUse;
use rbd_guardian_core::model::incus_snapshot::{
    Details, GateView, IncusSnapshot, Instance, InstanceId, MemberState, MemberView, Notice, Thresholds,
};
use rbd_guardian_core::model::osdmap::{DataPools, PoolId};
use rbd_guardian_core::model::sweep_part::SweepSelection;
use rbd_guardian_core::model::volume::{ImageName, StoragePool};

use super::drawn::DataPool;
use super::state::{DATA, Fate, HEALING, OFFLINE, Own, STEP, World, put};

/// A command that is not answered is given up then.
const UNANSWERED: Duration = Duration::from_secs(5);

fn is_in(part: &SweepSelection, image: &ImageName) -> bool {
    part.has(&image.pool, &image.namespace, &image.name)
}

fn silence() -> String {
    "does not answer".to_owned()
}

impl World {
    /// Gives the guardian an input, and begins what it wants.
    pub(crate) fn handle(&mut self, input: Input) {
        let now = self.now();
        self.guardian.handle(now, input);
        while let Some(report) = self.guardian.next_report() {
            let line = match report {
                Report::Log { code, member, text, .. } => {
                    format!("{:?}:   {code} {} {text}", self.time(), member.unwrap_or_default())
                }
                Report::Answer(number, outcome) => {
                    format!("{:?}:   answer {number}: {outcome:?}", self.time())
                }
            };
            self.log.push(line.chars().take(300).collect());
        }
        while let Some(effect) = self.guardian.next_effect(now) {
            self.before(&effect);
            self.paced(&effect);
            let asked = effect.clone();
            let (after, input) = self.perform(effect);
            self.paced_answer(&asked, &input);
            self.answers_in(after, input);
        }
    }

    pub(crate) fn answers_in(&mut self, after: Duration, input: Input) {
        self.numbers += 1;
        self.due.push((self.boot + after, self.numbers, input));
    }

    /// Lets a second go by.
    pub(crate) fn step(&mut self) {
        let end = self.boot + STEP;
        if self.faults.churn {
            self.change(|_| {});
        }
        self.goes_on();
        self.handle(Input::Tick);
        for _ in 0..3000 {
            self.due.sort_by_key(|(at, number, _)| (*at, *number));
            if self.due.first().is_none_or(|(at, ..)| *at >= end) {
                self.boot = end.max(self.boot);
                self.counts_time();
                return;
            }
            let (at, _, input) = self.due.remove(0);
            self.boot = at.max(self.boot) + Duration::from_micros(100);
            self.handle(input);
        }
        self.broken.get_or_insert("effects without end".to_owned());
    }

    fn counts_time(&mut self) {
        let faults = &self.faults;
        let silent = faults.ledger_down || faults.monitors_silent;
        let busy = faults.lag > Duration::from_secs(1) || faults.slow_changes > Duration::from_secs(1);
        let began = self.boot.saturating_sub(self.guardian_since) < Duration::from_secs(2);
        if !silent && !busy && !began && faults.next_sent.is_empty() {
            self.responsive += STEP;
        }
    }

    /// A guardian that knows nothing but the ledger takes over.
    pub(crate) fn takes_over(&mut self, boot_id: &str, platform: bool) {
        self.settings.boot_id = boot_id.to_owned();
        self.settings.platform = platform;
        let now = self.now();
        self.guardian = Guardian::new(self.settings.clone(), self.ledger.clone(), now);
        self.pace = super::pace::Pace::default();
        self.guardian_since = self.boot;
        self.due.clear();
        self.told.clear();
        self.epoch_at_takeover = self.map().epoch;
    }

    fn perform(&mut self, effect: Effect) -> (Duration, Input) {
        let lag = self.faults.lag;
        let began = self.boot;
        match effect {
            Effect::ReadView { whole } => match self.incus() {
                Err(after) => (after, Input::View { began, view: Err(silence()) }),
                Ok(()) => {
                    let faults = &self.faults;
                    let lacks = faults.no_instances || faults.no_volumes || faults.no_operations;
                    if whole && !lacks && !faults.no_profiles {
                        let shown = std::mem::take(&mut self.shown);
                        let clients = self.clients.iter_mut().filter(|one| shown.contains(&one.addr));
                        clients.for_each(|one| one.known = true);
                    }
                    (lag, Input::View { began, view: self.view(whole).ok_or_else(silence) })
                }
            },
            Effect::ReadMemberState(name) => match self.incus() {
                Err(after) => (after, Input::MemberState(name, Err(silence()))),
                Ok(()) => {
                    let host = self.hosts.get(&name).filter(|_| self.answers(&name));
                    let state = host.map(|host| MemberState {
                        uptime: self.boot - host.booted,
                        machine: Some(format!("machine-{name}")),
                    });
                    (lag, Input::MemberState(name, state.ok_or_else(silence)))
                }
            },
            Effect::ReadNetworks(name) => match self.incus() {
                Err(after) => (after, Input::Networks(name, Err(silence()))),
                Ok(()) => {
                    let networks = self.answers(&name).then(|| self.networks(&name));
                    (lag, Input::Networks(name, networks.ok_or_else(silence)))
                }
            },
            Effect::Ping(name) => {
                let answers = self.answers(&name);
                (lag, Input::Pinged(name, Ok(answers)))
            }
            Effect::Look if self.faults.monitors_silent => (self.unanswered(), Input::Looked(Err(silence()))),
            Effect::Look => (lag, Input::Looked(Ok(self.look()))),
            Effect::ReadMaps { .. } if self.faults.monitors_silent => {
                (self.unanswered(), Input::Maps(Err(silence())))
            }
            Effect::ReadMaps { after } => {
                let maps: Vec<_> = self.maps.iter().filter(|map| map.epoch > after).cloned().collect();
                let newest = || vec![self.map().clone()];
                (lag, Input::Maps(Ok(if after == OsdEpoch(0) { newest() } else { maps })))
            }
            Effect::ReadAudit(id) => (lag, Input::Audit(id, Ok(Vec::new()))),
            Effect::Sweep(part) => {
                let part = self.guardian.sweep_selection(part);
                let uses = self.uses(&part);
                let unread = self.faults.unreadable.iter().filter(|image| is_in(&part, image));
                let unread = unread.map(ToString::to_string).collect();
                (lag, Input::Swept { began, uses, unread, data_pools: self.data_pools() })
            }
            Effect::Find(_) if self.faults.monitors_silent => {
                let missing = BTreeSet::new();
                (self.unanswered(), Input::Found { began, missing, unread: vec![silence()] })
            }
            Effect::Find(images) => {
                let lacks =
                    |image: &ImageName| self.cluster_shape.wrong_cluster || self.gone.contains_key(image);
                let missing = images.into_iter().filter(lacks).collect();
                (lag, Input::Found { began, missing, unread: Vec::new() })
            }
            Effect::Record { .. } if self.faults.ledger_down => {
                (self.unanswered(), Input::Recorded(Recorded::Not { why: silence(), holds: None }))
            }
            Effect::Record { changes, .. } => {
                changes.into_iter().for_each(|change| self.ledger.apply(change));
                (Duration::ZERO, Input::Recorded(Recorded::Written))
            }
            Effect::Fence(id, step) | Effect::Release(id, step) => {
                let (after, outcome) = self.outcome(&id, step);
                (after, Input::Step(id, outcome))
            }
            Effect::Retire(id, entries) => {
                let (after, sent) = self.send(&id, &entries, false);
                (after, Input::Retired(id, sent))
            }
            Effect::PutGate { at, contents, epoch } => match self.incus() {
                Err(after) => (after, Input::GatePut(at.into_iter().map(|name| (name, silence())).collect())),
                Ok(()) => {
                    let (lost, there): (Vec<String>, Vec<String>) =
                        at.into_iter().partition(|name| self.faults.unwritable.contains(name));
                    for name in there {
                        if let Some(member) = self.members.get_mut(&name) {
                            member.keys = contents.keys(epoch);
                        }
                    }
                    (lag, Input::GatePut(lost.into_iter().map(|name| (name, silence())).collect()))
                }
            },
            Effect::PushGate => (lag, Input::GatePushed(Ok(()))),
            Effect::BreakLock(lock) => {
                self.breaks_lock(&lock);
                (lag, Input::LockBroken(lock, Ok(())))
            }
            Effect::Start(instance) => {
                self.starts(&instance);
                (lag, Input::Started(instance, Ok(())))
            }
        }
    }

    /// Whether Incus answers the guardian; if not, how long it takes to know.
    fn incus(&self) -> Result<(), Duration> {
        match self.faults.incus_hangs {
            Some(after) => Err(after),
            None if self.leader().is_none() && self.faults.at_once => Err(Duration::ZERO),
            None if self.leader().is_none() => Err(Duration::from_secs(1)),
            None => Ok(()),
        }
    }

    fn outcome(&mut self, id: &FenceId, step: Step) -> (Duration, StepOutcome) {
        let lag = self.faults.lag;
        match step {
            Step::FailOver(daemon) => {
                for (_, other) in &mut self.daemons {
                    if other.kind == daemon.kind && other.name == daemon.name {
                        other.role = ceph_snapshot::Role::Standby;
                    } else if other.kind == daemon.kind && other.role == ceph_snapshot::Role::Standby {
                        other.role = ceph_snapshot::Role::Active;
                    }
                }
                (lag, StepOutcome::FailedOver(daemon, Sent::Acknowledged))
            }
            Step::ReadDaemons => {
                let daemons = self.daemons.iter().map(|(_, daemon)| daemon.clone());
                let daemons = (!self.faults.monitors_silent).then(|| daemons.collect());
                (lag, StepOutcome::Daemons(daemons))
            }
            Step::Add(entries) => {
                let (after, sent) = self.send(id, &entries, true);
                (after, StepOutcome::Added(sent))
            }
            Step::Remove(entries) => {
                let (after, sent) = self.send(id, &entries, false);
                (after, StepOutcome::Removed(sent))
            }
            Step::ReadMap => {
                let map = (!self.faults.monitors_silent).then(|| self.map().clone().into());
                let after = if map.is_some() { lag } else { self.unanswered() };
                (after, StepOutcome::Map(map))
            }
            Step::Barrier { pools, epoch } => {
                let within = self.unanswered();
                let (after, proofs) = self.asks_pgs(pools, epoch, within);
                (after, StepOutcome::Proved(proofs))
            }
            Step::ReadClients => {
                let silent = self.faults.look_unread || self.faults.monitors_silent;
                let clients = (!silent).then(|| self.look().clients.into_keys().collect());
                (if silent { self.unanswered() } else { lag }, StepOutcome::Clients(clients))
            }
        }
    }

    /// How long it takes until a question without an answer is given up.
    fn unanswered(&self) -> Duration {
        if self.faults.at_once { Duration::ZERO } else { UNANSWERED }
    }

    /// Changes the blocklist as the monitors do: an entry that stands keeps its end.
    fn send(&mut self, fence: &FenceId, entries: &[Entry], add: bool) -> (Duration, Vec<(Entry, Sent)>) {
        let until = add.then(|| {
            let expire = Timestamp::from_second(self.now().wall.as_second()).unwrap();
            expire.checked_add(self.settings.policy.expire).unwrap()
        });
        let fate = match self.faults.next_sent.pop_front() {
            None if self.faults.monitors_silent => Some(Fate::NotDone),
            fate => fate,
        };
        let what = if add { "adds" } else { "removes" };
        let names: Vec<String> = entries.iter().map(ToString::to_string).collect();
        self.log.push(format!("{:?}:   {fence} {what} {} ({fate:?})", self.time(), names.join(" ")));
        let member = self.ledger.fences.get(fence).and_then(|record| record.member.clone());
        for entry in entries {
            if add {
                let own = Own { fence: fence.to_owned(), member: member.clone(), at: self.boot };
                self.own.entry(*entry).or_insert(own);
            }
        }
        match fate {
            None | Some(Fate::Done) => self.change(|map| {
                entries.iter().for_each(|entry| put(map, *entry, until));
            }),
            Some(Fate::NotDone) => {}
            Some(Fate::Late(after)) => {
                let at = self.boot + after;
                self.late.extend(entries.iter().map(|entry| (at, *entry, until)));
            }
        }
        let sent = if fate.is_some() { Sent::Unknown } else { Sent::Acknowledged };
        let after = if fate.is_some() { self.unanswered() } else { self.faults.slow_changes };
        (after, entries.iter().map(|entry| (*entry, sent.clone())).collect())
    }

    /// What a sweep of the guardian's own cluster shows.
    fn uses(&mut self, part: &SweepSelection) -> Vec<ImageUse> {
        let mut watchers: BTreeMap<ImageName, Vec<EntityAddr>> = BTreeMap::new();
        self.shown.clear();
        for at in 0..self.clients.len() {
            if !self.watches(&self.clients[at]) || self.is_elsewhere(&self.clients[at]) {
                continue;
            }
            let client = &self.clients[at];
            let mut shown = false;
            let readable =
                |image: &&ImageName| !self.faults.unreadable.contains(*image) && is_in(part, image);
            for image in client.images.iter().filter(readable) {
                watchers.entry(image.clone()).or_default().push(client.addr.into());
                shown |= self.owner_of(image).is_some_and(|(_, guest)| {
                    guest.running
                        && guest.location == client.host
                        && self.answers(&client.host)
                        && self.held(&client.host).is_none()
                        && self.members[&client.host].maintenance.is_none()
                });
            }
            if shown {
                self.shown.insert(client.addr);
            }
        }
        let readable = |image: &&ImageName| !self.faults.unreadable.contains(*image) && is_in(part, image);
        let locked = self.locks.keys().filter(readable);
        locked.for_each(|image| {
            watchers.entry(image.clone()).or_default();
        });
        let one = |(image, watchers)| {
            let locks = self.locks.get(&image).cloned().into_iter().collect();
            ImageUse { image, watchers, locks, unknown: Vec::new() }
        };
        watchers.into_iter().map(one).collect()
    }

    fn look(&self) -> ceph_snapshot::CephSnapshot {
        let mut clients = Clients::new();
        for client in self.clients.iter().filter(|client| !self.is_elsewhere(client)) {
            if self.watches(client) {
                for image in &client.images {
                    clients.entry(client.addr).or_default().insert(SeenAt::Watch(image.to_string()));
                }
            }
            if client.alive && self.hosts[&client.host].storage {
                let session = SeenAt::Session("client.admin".to_owned());
                clients.entry(client.addr).or_default().insert(session);
            }
        }
        for (image, lock) in &self.locks {
            let owner = lock.address.and_then(|address| address.client());
            let seen = owner.map(|owner| clients.entry(owner).or_default());
            seen.map(|seen| seen.insert(SeenAt::Lock(image.to_string())));
        }
        let unread = if self.faults.look_unread { vec!["mon.b: no answer".to_owned()] } else { Vec::new() };
        ceph_snapshot::CephSnapshot {
            now: self.map().clock(self.now().wall),
            own: self.settings.guard.own.clone(),
            map: self.map().clone(),
            daemons: self.daemons.iter().map(|(_, daemon)| daemon.clone()).collect(),
            clients,
            unread,
            data_pools: self.data_pools(),
        }
    }

    /// What headers say of the data of their images.
    fn data_pools(&self) -> DataPools {
        match self.cluster_shape.data {
            DataPool::WithTheImages => DataPools::new(),
            DataPool::Apart | DataPool::TaggedForFiles | DataPool::InHeadersAlone | DataPool::Excepted => {
                [("incus".to_owned(), [DATA].into())].into()
            }
        }
    }

    pub(crate) fn networks(&self, name: &str) -> BTreeSet<IpNet> {
        let host = &self.hosts[name];
        let all = host.ips.iter().chain(&host.floating);
        all.map(|ip| IpNet::new(*ip, 24).unwrap()).collect()
    }

    fn view(&self, whole: bool) -> Option<IncusSnapshot> {
        let from = self.leader()?.clone();
        let members = self.members.iter().map(|(name, member)| {
            let age = self.boot.saturating_sub(member.heartbeat);
            let view = MemberView {
                status: self.status(name),
                heartbeat_age: (age > OFFLINE).then_some(age),
                url: format!("https://{name}:8443"),
                leads: *name == from,
                addresses: Ok(member.said.clone()),
            };
            (name.clone(), view)
        });
        let scriptlet = |name: &String| {
            let gate = if self.gate { "gate 1" } else { "" };
            let answer = self.answers(name).then(|| gate.to_owned()).ok_or_else(silence);
            (name.clone(), answer)
        };
        let gate = GateView {
            scriptlets: self.members.keys().map(scriptlet).collect(),
            members: self.members.iter().map(|(name, member)| (name.clone(), member.keys.clone())).collect(),
            ..GateView::default()
        };
        Some(IncusSnapshot {
            members: members.collect(),
            from: from.clone(),
            thresholds: Thresholds { offline: OFFLINE, healing: Some(HEALING) },
            instances: (whole && !self.faults.no_instances).then(|| self.instances()),
            pools: whole.then(|| self.storage_pools()),
            volumes: (whole && !self.faults.no_volumes).then(|| self.volumes()),
            operations: (!self.faults.no_operations).then(|| self.operations()),
            gate: Some(gate),
        })
    }

    fn instances(&self) -> BTreeMap<InstanceId, Instance> {
        let one = |(name, guest): (&InstanceId, &super::state::Guest)| {
            let details = Details { running: guest.running, ran: true, ..Details::default() };
            let details = self.answers(&guest.location).then_some(details);
            (name.clone(), Instance { kind: guest.kind, location: guest.location.clone(), details })
        };
        self.guests.iter().map(one).collect()
    }

    fn storage_pools(&self) -> BTreeMap<String, StoragePool> {
        let data = match self.cluster_shape.data {
            DataPool::WithTheImages | DataPool::InHeadersAlone => None,
            DataPool::Apart | DataPool::TaggedForFiles | DataPool::Excepted => Some("data"),
        };
        let pool = |cluster: &str| -> StoragePool {
            let pool = serde_json::json!({
                "driver": "ceph", "osd_pool": "incus", "data_pool": data, "cluster": cluster,
            });
            serde_json::from_value(pool).unwrap()
        };
        [("remote".to_owned(), pool("ceph")), ("away".to_owned(), pool("faraway"))].into()
    }

    /// Healing asked the gate, and it refused: the guardian hears of it unless Incus hangs.
    pub(crate) fn refuses_heal(&mut self, member: &str) {
        if self.faults.incus_hangs.is_none() {
            let notice = Notice::Refused { member: member.to_owned(), healing: true };
            self.answers_in(Duration::ZERO, Input::Notice(notice));
        }
    }

    /// Is it a client of the other Ceph cluster that Incus uses, which has the name of the guardian's?
    pub(crate) fn is_elsewhere(&self, client: &super::state::Client) -> bool {
        // Backups are made of the images that there are.
        let uses_images = self.members.contains_key(&client.host) || client.host == "backup";
        self.cluster_shape.wrong_cluster && uses_images
    }

    /// Clients at this host that are known to the guardian from when all was well, whatever their IP.
    pub(crate) fn known_clients<'a>(
        &'a self,
        member: &'a str,
    ) -> impl Iterator<Item = &'a super::state::Client> {
        self.clients.iter().filter(move |client| client.host == member && client.known)
    }

    /// May a write of this client still be taken by some PG of these pools?
    pub(crate) fn may_write_to(&self, pools: &BTreeSet<PoolId>, client: ClientAddr) -> Option<String> {
        if self.clients.iter().any(|one| one.addr == client && self.is_elsewhere(one)) {
            return Some(format!("{client} writes in another Ceph cluster"));
        }
        if !self.map().blocklist.refuses(client) {
            return Some(format!("osdmap {} does not refuse {client}", self.map().epoch));
        }
        let free = |((pool, _), epoch): &((i64, u32), OsdEpoch)| {
            pools.contains(pool) && !self.blocklist_of(*epoch).refuses(client)
        };
        let ((pool, pg), epoch) = self.behind().find(free)?;
        Some(format!("PG {pool}.{pg} has osdmap {epoch}, which does not refuse {client}"))
    }
}
