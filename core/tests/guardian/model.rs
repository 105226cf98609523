//! A storage, a ledger and a platform as values: they answer the guardian's effects as the real ones would, at once
//! or, where a test says so, wrongly or not at all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rbd_guardian_core::fence::step::{Sent, Step, StepOutcome};
use rbd_guardian_core::guardian::io::{Effect, Input, Now, Recorded};
use rbd_guardian_core::guardian::report::{Outcome, Report};
use rbd_guardian_core::guardian::settings::Settings;
use rbd_guardian_core::model::addr::{ClientAddr, Entry};
use rbd_guardian_core::model::barrier::{PoolProof, PoolToProve};
use rbd_guardian_core::model::blocklist::Blocklist;
use rbd_guardian_core::model::ceph_snapshot::{CephSnapshot, Clients, Daemon, SeenAt};
use rbd_guardian_core::model::epoch::OsdEpoch;
use rbd_guardian_core::model::gate_keys;
use rbd_guardian_core::model::image_users::ImageUse;
use rbd_guardian_core::model::incus_snapshot::{
    Details, GateView, IncusSnapshot, Instance, InstanceId, InstanceKind, MemberState, MemberStatus,
    MemberView, Notice, Thresholds,
};
use rbd_guardian_core::model::member::Members;
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::osdmap::{DataPools, MAPS_AT_ONCE, OsdMap, Pool};
use rbd_guardian_core::model::policy::Policy;
use rbd_guardian_core::model::record::{FenceState, Records, Removal};
use rbd_guardian_core::model::sweep_part::SweepSelection;
use rbd_guardian_core::model::volume::{Content, ImageName, StoragePool, Volume, VolumeKind};
use rbd_guardian_core::recording::recorder::{LIMIT, Recorder};
use rbd_guardian_core::recording::replay::replay;

use crate::blocklist::set;

pub(crate) const STEP: Duration = Duration::from_millis(250);

/// A write of one member's keys, on the condition that they are as they were read.
pub(crate) struct GateWrite {
    member: String,
    read: BTreeMap<String, String>,
    keys: BTreeMap<String, String>,
}

/// What the guardian has to do with.
pub(crate) struct Model {
    pub(crate) guardian: Recorder,
    pub(crate) boot: Duration,
    pub(crate) ledger: Records,
    pub(crate) audit: Vec<String>,
    /// Every epoch, the newest last.
    pub(crate) maps: Vec<OsdMap>,
    pub(crate) view: IncusSnapshot,
    pub(crate) uses: Vec<ImageUse>,
    /// What members answer when they are asked themselves.
    pub(crate) states: BTreeMap<String, MemberState>,
    /// Members that leave a question open, without an error.
    pub(crate) unanswered: BTreeSet<String>,
    /// The same where they are asked for their interfaces.
    pub(crate) unanswered_networks: BTreeSet<String>,
    pub(crate) reports: Vec<Report>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) started: Vec<InstanceId>,
    /// So many starts fail before one succeeds.
    pub(crate) failing_starts: u32,
    /// The platform does not answer.
    pub(crate) platform_down: bool,
    /// So long a listing of everything takes.
    pub(crate) listing_takes: Duration,
    /// What a sweep cannot read, in its words.
    pub(crate) unread: Vec<String>,
    /// Images that Incus lists and their pools do not have, and what of directories cannot be read.
    pub(crate) gone: BTreeSet<ImageName>,
    pub(crate) unlisted: Vec<String>,
    /// What image headers say of the pools of their data.
    pub(crate) data_pools: DataPools,
    /// What is silent when all clients are asked for, for a release.
    pub(crate) clients_unread: Vec<String>,
    pub(crate) looks_fail: bool,
    /// Questions to the platform get no answer, not even that there is none.
    pub(crate) hangs: bool,
    /// Members whose configuration cannot be written.
    pub(crate) unwritable: BTreeSet<String>,
    /// Writes of the gate that were sent and do not arrive, while this is set; or they arrive, and their answers do not.
    pub(crate) gate_held: Option<Vec<GateWrite>>,
    pub(crate) gate_answers_lost: bool,
    /// The ledger cannot be written.
    pub(crate) ledger_down: bool,
    /// Answers of what was begun.
    answers_due: VecDeque<Input>,
    /// Answers that take their time, and when each comes.
    pub(crate) later: Vec<(Duration, Input)>,
    /// PGs that do not answer.
    pub(crate) silent: BTreeSet<u32>,
    /// Clients that monitors know of.
    pub(crate) sessions: BTreeSet<ClientAddr>,
    pub(crate) daemons: Vec<Daemon>,
    /// Interfaces of members that tell.
    pub(crate) networks: BTreeMap<String, BTreeSet<ipnet::IpNet>>,
    /// What the monitors logged of removals; `None` if the log cannot be read.
    pub(crate) removals: Option<Vec<Removal>>,
    /// How far the monitors' clock is before the guardian's.
    pub(crate) ahead: SignedDuration,
    /// By how much somebody set the clock of the guardian's host.
    pub(crate) stepped: SignedDuration,
}

pub(crate) fn id(name: &str) -> InstanceId {
    InstanceId { project: "default".to_owned(), name: name.to_owned() }
}

pub(crate) fn start() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

pub(crate) fn settings() -> Settings {
    Settings::new("g1", "boot-1", Policy::default(), Members::default())
}

impl Model {
    /// Members n1 to n3, see [`Model::of`].
    pub(crate) fn new() -> Self {
        Self::of(3)
    }

    /// So many members from n1 at 10.0.0.1 on, with a container c1 and so on each, the gate installed everywhere.
    pub(crate) fn of(members: u8) -> Self {
        let pool = Pool {
            name: "incus".into(),
            pg_num: 8,
            overlay: None,
            eio: false,
            unclear: None,
            applications: vec!["rbd".into()],
        };
        let map = OsdMap {
            epoch: OsdEpoch(10),
            modified: start(),
            blocklist: Blocklist::default(),
            knows_ranges: true,
            reads_paused: false,
            not_understood: Vec::new(),
            pools: BTreeMap::from([(1, pool)]),
        };
        let boot = Duration::from_secs(1000);
        let now = Now { boot, wall: start() };
        let mut model = Self {
            guardian: Recorder::new(settings(), Records::default(), now, LIMIT),
            boot,
            ledger: Records::default(),
            audit: Vec::new(),
            maps: vec![map],
            view: IncusSnapshot::default(),
            uses: Vec::new(),
            states: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            unanswered_networks: BTreeSet::new(),
            reports: Vec::new(),
            effects: Vec::new(),
            started: Vec::new(),
            failing_starts: 0,
            platform_down: false,
            listing_takes: Duration::ZERO,
            unread: Vec::new(),
            gone: BTreeSet::new(),
            unlisted: Vec::new(),
            data_pools: DataPools::new(),
            clients_unread: Vec::new(),
            looks_fail: false,
            hangs: false,
            unwritable: BTreeSet::new(),
            gate_held: None,
            gate_answers_lost: false,
            ledger_down: false,
            answers_due: VecDeque::new(),
            later: Vec::new(),
            silent: BTreeSet::new(),
            sessions: BTreeSet::new(),
            daemons: Vec::new(),
            networks: BTreeMap::new(),
            removals: Some(Vec::new()),
            ahead: SignedDuration::ZERO,
            stepped: SignedDuration::ZERO,
        };
        model.platform(members);
        model
    }

    /// Members n1 to n3, and a recording of so many bytes.
    pub(crate) fn recording(limit: usize) -> Self {
        let mut model = Self::new();
        model.guardian = Recorder::new(settings(), Records::default(), model.now(), limit);
        model
    }

    /// Members n1 to n3, and so many instances more that do not run.
    pub(crate) fn with_volumes(volumes: u32) -> Self {
        let mut model = Self::new();
        let (all, instances) = (model.view.volumes.as_mut().unwrap(), model.view.instances.as_mut().unwrap());
        let (volume, instance) = (all[0].clone(), instances[&id("c1")].clone());
        for number in 0..volumes {
            let name = format!("more-{number}");
            all.push(Volume { name: name.clone(), ..volume.clone() });
            let details = Some(Details { running: false, ..instance.details.clone().unwrap() });
            instances.insert(id(&name), Instance { details, ..instance.clone() });
        }
        model
    }

    fn platform(&mut self, members: u8) {
        let remote = StoragePool {
            driver: "ceph".into(),
            osd_pool: Some("incus".into()),
            data_pool: None,
            cluster: None,
        };
        let mut gate = GateView::default();
        let (mut instances, mut volumes) = (BTreeMap::new(), Vec::new());
        for n in 1..=members {
            let (member, name) = (format!("n{n}"), format!("c{n}"));
            let ip: std::net::IpAddr = format!("10.0.0.{n}").parse().unwrap();
            let url = format!("https://10.1.0.{n}:8443");
            let view = MemberView {
                status: MemberStatus::Online,
                heartbeat_age: None,
                url,
                leads: n == 1,
                addresses: Ok([ip].into()),
            };
            self.view.members.insert(member.clone(), view);
            let details = Details { running: true, ran: true, ..Details::default() };
            let instance =
                Instance { kind: InstanceKind::Container, location: member.clone(), details: Some(details) };
            instances.insert(id(&name), instance);
            volumes.push(Volume {
                pool: "remote".into(),
                project: "default".into(),
                name: name.clone(),
                kind: VolumeKind::Instance(InstanceKind::Container),
                content: Content::Filesystem,
                shared: false,
                used_by: BTreeSet::new(),
                unknown: Vec::new(),
            });
            let image = ImageName {
                pool: "incus".into(),
                namespace: String::new(),
                name: format!("container_{name}"),
            };
            self.uses.push(ImageUse {
                image,
                watchers: vec![format!("{ip}:0/{n}00").parse().unwrap()],
                locks: Vec::new(),
                unknown: Vec::new(),
            });
            gate.scriptlets.insert(member.clone(), Ok("gate 1".into()));
            gate.members.insert(member.clone(), BTreeMap::new());
            let uptime = Duration::from_secs(100_000);
            self.states.insert(member.clone(), MemberState { uptime, machine: Some(format!("machine-{n}")) });
        }
        self.view.from = "n1".into();
        self.view.thresholds =
            Thresholds { offline: Duration::from_secs(20), healing: Some(Duration::from_secs(60)) };
        self.view.instances = Some(instances);
        self.view.volumes = Some(volumes);
        self.view.pools = Some([("remote".to_owned(), remote)].into());
        self.view.operations = Some(Vec::new());
        self.view.gate = Some(gate);
    }

    pub(crate) fn map(&self) -> &OsdMap {
        self.maps.last().unwrap()
    }

    /// A new epoch.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut OsdMap)) {
        let mut map = self.map().clone();
        map.epoch = map.epoch.later(1);
        map.modified = self.storage_clock();
        change(&mut map);
        self.maps.push(map);
    }

    pub(crate) fn remove_entry(&mut self, entry: &str) {
        let addr = entry.parse().unwrap();
        self.change(|map| {
            map.blocklist.entries.remove(&addr);
        });
    }

    /// A guardian that knows nothing but the ledger takes over, on another host if it is of another boot.
    pub(crate) fn restart(&mut self, boot_id: &str) {
        self.restart_with(Settings { boot_id: boot_id.to_owned(), ..settings() });
    }

    pub(crate) fn restart_with(&mut self, settings: Settings) {
        self.replays();
        self.guardian = Recorder::new(settings, self.ledger.clone(), self.now(), LIMIT);
        self.answers_due.clear();
    }

    /// The same on the same host, with a recording of so many bytes.
    pub(crate) fn restart_recording(&mut self, limit: usize) {
        self.restart("boot-1");
        self.guardian = Recorder::new(settings(), self.ledger.clone(), self.now(), limit);
    }

    /// What was recorded so far leads to exactly the same effects again.
    #[track_caller]
    pub(crate) fn replays(&mut self) {
        replay(&*self.guardian.recording()).unwrap_or_else(|difference| panic!("{difference}"));
    }

    pub(crate) fn handle(&mut self, input: Input) {
        let now = self.now();
        self.guardian.handle(now, input);
        while let Some(report) = self.guardian.next_report() {
            self.reports.push(report);
        }
        // All are begun before any is answered, as in the daemon.
        while let Some(effect) = self.guardian.next_effect() {
            self.check(&effect);
            self.effects.push(effect.clone());
            let input = self.perform(effect);
            if let Input::Step(_, StepOutcome::Proved(_)) = &input
                && !self.silent.is_empty()
            {
                self.later.push((self.boot + Duration::from_secs(5), input));
            } else if matches!(&input, Input::Step(_, StepOutcome::Unread(unread)) if unread.iter().any(|one| one.ends_with("no answer")))
            {
                self.later.push((self.boot + Duration::from_secs(3), input));
            } else {
                self.answers_due.push_back(input);
            }
        }
    }

    /// Lets time pass, with every effect answered, until something holds.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..2000 {
            if holds(self) {
                return;
            }
            self.step();
        }
        panic!("never: {what}\n{:#?}\n{:#?}", self.guardian.status(self.now()), self.logs());
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.boot + time;
        while self.boot < end {
            self.step();
        }
    }

    pub(crate) fn step(&mut self) {
        self.handle(Input::Tick);
        let now = self.boot;
        for (_, input) in self.later.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.handle(input);
        }
        for _ in 0..1000 {
            let Some(input) = self.answers_due.pop_front() else {
                self.boot += STEP;
                return;
            };
            self.boot += Duration::from_millis(1);
            self.handle(input);
        }
        panic!("effects without end: {:#?}", &self.effects[self.effects.len() - 10..]);
    }

    /// INV-2, INV-8: what an effect relies on is there.
    fn check(&self, effect: &Effect) {
        match effect {
            Effect::PutGate { contents, epoch, .. } => {
                let recorded = self.ledger.gate.as_ref().map(|gate| (gate.epoch, &gate.open));
                assert_eq!(recorded, Some((*epoch, &contents.open)), "recorded before it is written");
                for member in contents.open.clone() {
                    let sealed = self.ledger.fences.values().any(|fence| {
                        fence.member.as_deref() == Some(&member) && fence.state == FenceState::Sealed
                    });
                    assert!(sealed, "the gate opens for {member} before the seal is recorded");
                    let all_refused = self.ledger.fences.values().any(|fence| {
                        let stands = |entry: &Entry| self.refuses_entry(*entry);
                        fence.member.as_deref() == Some(&member) && fence.entries.keys().all(stands)
                    });
                    assert!(all_refused, "the gate opens for {member}, which is not refused");
                    // INV-1: what no PG of a pool has answered is no seal for it.
                    let fences = self.ledger.fences.values();
                    let of_it = fences.filter(|fence| fence.member.as_deref() == Some(&member));
                    let proved: Vec<&str> =
                        of_it.flat_map(|fence| &fence.proofs).map(|proof| proof.pool.as_str()).collect();
                    let published = contents.pools.iter().filter_map(|pool| pool.strip_prefix("ceph:ceph/"));
                    for pool in published {
                        assert!(proved.contains(&pool), "the gate opens for {member} and {pool}: not proved");
                    }
                }
            }
            Effect::Fence(id, Step::Add(_) | Step::Remove(_)) => {
                assert!(self.ledger.fences.contains_key(id), "{id} is not recorded");
            }
            Effect::Retire(id, entries) => {
                let record = &self.ledger.fences[id];
                let backed = |entry: &Entry| {
                    let dead = entry.client().is_some_and(|client| record.dead.contains(&client));
                    dead && record.in_doubt.contains(entry)
                };
                assert!(entries.iter().all(backed), "{entries:?}: not recorded, or not dead");
                assert_eq!(record.state, FenceState::Released);
            }
            Effect::Release(id, Step::Remove(entries)) => {
                let record = &self.ledger.fences[id];
                assert_eq!(record.state, FenceState::Releasing);
                assert!(
                    entries.iter().all(|entry| record.in_doubt.contains(entry)),
                    "{entries:?}: not recorded"
                );
                let member = record.member.clone().unwrap_or_default();
                assert!(!self.seals().contains(&member), "released while its gate is open");
            }
            _ => {}
        }
    }

    /// Nobody is told anything any more.
    pub(crate) fn clear_gate(&mut self) {
        self.view.gate.as_mut().unwrap().members.values_mut().for_each(BTreeMap::clear);
    }

    /// A late write reaches the platform.
    pub(crate) fn arrives(&mut self, write: GateWrite) {
        let keys = self.keys(&write.member);
        if *keys == write.read {
            *keys = write.keys;
        }
    }

    /// The keys of one member.
    pub(crate) fn keys(&mut self, member: &str) -> &mut BTreeMap<String, String> {
        self.view.gate.as_mut().unwrap().members.get_mut(member).unwrap()
    }

    pub(crate) fn keys_of(&self, member: &str) -> Option<&BTreeMap<String, String>> {
        self.view.gate.as_ref()?.members.get(member)
    }

    /// The users of the images that a sweep reads.
    fn uses_in(&self, part: &SweepSelection) -> Vec<ImageUse> {
        let has = |one: &&ImageUse| part.has(&one.image.pool, &one.image.namespace, &one.image.name);
        self.uses.iter().filter(has).cloned().collect()
    }

    pub(crate) fn refuses(&self, member: &str) -> bool {
        let ip = format!("10.0.0.{}", member.trim_start_matches('n')).parse().unwrap();
        self.map().blocklist.hosts(ip).next().is_some()
    }

    /// By its own key, or by one that covers it.
    fn refuses_entry(&self, entry: Entry) -> bool {
        let blocklist = &self.map().blocklist;
        entry
            .client()
            .map_or_else(|| blocklist.hosts(entry.ip()).next().is_some(), |client| blocklist.refuses(client))
    }

    pub(crate) fn seals(&self) -> BTreeSet<String> {
        gate_keys::sealed_anywhere(self.view.gate.as_ref().unwrap())
    }

    fn send(&mut self, entries: &[Entry], until: Option<Timestamp>) -> Vec<(Entry, Sent)> {
        self.change(|map| {
            for entry in entries {
                match *entry {
                    Entry::Host(ip @ std::net::IpAddr::V4(_)) => set(map, format!("{ip}:0/0"), until),
                    Entry::Host(ip @ std::net::IpAddr::V6(_)) => set(map, format!("[{ip}]:0/0"), until),
                    Entry::Client(client) => set(map, client.to_string(), until),
                    Entry::HostRange(ip) => {
                        map.blocklist.ranges.remove(&ip.into());
                        map.blocklist.ranges.extend(until.map(|until| (ip.into(), until)));
                    }
                }
            }
        });
        entries.iter().map(|entry| (*entry, Sent::Acknowledged)).collect()
    }

    pub(crate) fn look(&self) -> CephSnapshot {
        let mut clients = Clients::new();
        for one in &self.uses {
            for client in one.clients() {
                clients.entry(client).or_default().insert(SeenAt::Watch(one.image.to_string()));
            }
        }
        for client in &self.sessions {
            clients.entry(*client).or_default().insert(SeenAt::Session("client.admin".to_owned()));
        }
        CephSnapshot {
            now: self.map().clock(self.now().wall),
            own: vec!["10.0.0.9:0/9".parse().unwrap()],
            map: self.map().clone(),
            daemons: self.daemons.clone(),
            clients,
            unread: Vec::new(),
            data_pools: self.data_pools.clone(),
        }
    }

    fn outcome(&mut self, step: Step) -> StepOutcome {
        match step {
            Step::FailOver(daemon) => StepOutcome::FailedOver(daemon, Sent::Acknowledged),
            Step::ReadDaemons => StepOutcome::Daemons(Some(Vec::new())),
            Step::Add(entries) => {
                let until = self.storage_clock() + Policy::default().expire;
                StepOutcome::Added(self.send(&entries, Some(until)))
            }
            Step::Remove(entries) => StepOutcome::Removed(self.send(&entries, None)),
            Step::ReadMap => StepOutcome::Map(Some(self.map().clone().into())),
            Step::Barrier { pools, epoch } => {
                assert!(epoch > OsdEpoch(0) && epoch <= self.map().epoch, "asked with epoch {epoch}");
                self.boot += STEP;
                let silent = |pool: &PoolToProve| self.silent.range(..pool.pg_num).copied().collect();
                let proof = |pool| PoolProof { pending: silent(&pool), pool, trouble: None };
                StepOutcome::Proved(pools.into_iter().map(proof).collect())
            }
            Step::ReadClients if !self.clients_unread.is_empty() => {
                self.boot += STEP;
                StepOutcome::Unread(self.clients_unread.clone())
            }
            Step::ReadClients => StepOutcome::Clients(Some(self.look().clients.into_keys().collect())),
        }
    }

    fn perform(&mut self, effect: Effect) -> Input {
        let silence = || "does not answer".to_owned();
        let began = self.boot;
        match effect {
            Effect::ReadView { .. } if self.hangs => Input::Tick,
            Effect::ReadView { .. } if self.platform_down => Input::View { began, view: Err(silence()) },
            Effect::ReadView { whole } => {
                let mut view = self.view.clone();
                if !whole {
                    (view.instances, view.volumes, view.pools) = (None, None, None);
                }
                let took = if whole { self.listing_takes } else { Duration::ZERO };
                Input::View { began: began - took, view: Ok(view) }
            }
            Effect::ReadMemberState(name) if self.unanswered.contains(&name) => Input::Tick,
            Effect::ReadMemberState(name) => {
                let state = self.states.get(&name).cloned().filter(|_| !self.platform_down);
                Input::MemberState(name, state.ok_or_else(silence))
            }
            Effect::ReadNetworks(name) if self.unanswered_networks.contains(&name) => Input::Tick,
            Effect::ReadNetworks(name) => {
                let networks = self.networks.get(&name).cloned().ok_or_else(silence);
                Input::Networks(name, networks)
            }
            Effect::Ping(name) => Input::Pinged(name, Ok(false)),
            Effect::Look if self.looks_fail => Input::Looked(Err(silence())),
            Effect::Look => Input::Looked(Ok(self.look())),
            Effect::ReadMaps { after } => {
                let maps = self.maps.iter().filter(|map| map.epoch > after).take(MAPS_AT_ONCE);
                let maps = maps.cloned().collect::<Vec<_>>();
                let newest = || vec![self.map().clone()];
                Input::Maps(Ok(if after == OsdEpoch(0) { newest() } else { maps }))
            }
            Effect::ReadAudit(id) => Input::Audit(id, self.removals.clone().ok_or_else(silence)),
            Effect::Sweep(part) => Input::Swept {
                began,
                uses: self.uses_in(&self.guardian.sweep_selection(part)),
                unread: self.unread.clone(),
                data_pools: self.data_pools.clone(),
            },
            Effect::Find(images) => {
                let images = images.into_iter().filter(|image| self.gone.contains(image));
                Input::Found { began, missing: images.collect(), unread: self.unlisted.clone() }
            }
            Effect::Record { changes, what, .. } => {
                if self.ledger_down {
                    let holds = None;
                    return Input::Recorded(Recorded::Not { why: "no answer".to_owned(), holds });
                }
                self.audit.push(what);
                changes.into_iter().for_each(|change| self.ledger.apply(change));
                Input::Recorded(Recorded::Written)
            }
            Effect::Fence(id, step) | Effect::Release(id, step) => Input::Step(id, self.outcome(step)),
            Effect::Retire(id, entries) => Input::Retired(id, self.send(&entries, None)),
            Effect::PutGate { at, contents, epoch } if self.gate_held.is_some() => {
                let keys = contents.keys(epoch);
                let write = |member: &String| GateWrite {
                    member: member.clone(),
                    read: self.keys_of(member).unwrap().clone(),
                    keys: keys.clone(),
                };
                let writes: Vec<_> = at.iter().map(write).collect();
                self.gate_held.as_mut().unwrap().extend(writes);
                Input::Tick
            }
            Effect::PutGate { at, contents, epoch } => {
                let (here, lost) = at
                    .into_iter()
                    .partition::<Vec<_>, _>(|name| !self.platform_down && !self.unwritable.contains(name));
                let gate = self.view.gate.as_mut().unwrap();
                gate.members.extend(here.iter().map(|name| (name.clone(), contents.keys(epoch))));
                let lost = if self.gate_answers_lost { [here, lost].concat() } else { lost };
                Input::GatePut(lost.into_iter().map(|name| (name, silence())).collect())
            }
            Effect::PushGate => Input::GatePushed(Ok(())),
            Effect::BreakLock(lock) => Input::LockBroken(lock, Ok(())),
            Effect::Start(instance) if self.failing_starts > 0 => {
                self.failing_starts -= 1;
                Input::Started(instance, Err("the storage pool is unavailable".to_owned()))
            }
            Effect::Start(instance) => {
                self.started.push(instance.clone());
                if let Some(details) =
                    self.view.instances.as_mut().and_then(|all| all.get_mut(&instance)?.details.as_mut())
                {
                    details.running = true;
                }
                Input::Started(instance, Ok(()))
            }
        }
    }

    /// The member's cluster loses it.
    pub(crate) fn lose(&mut self, member: &str) {
        let view = self.view.members.get_mut(member).unwrap();
        view.status = MemberStatus::Offline;
        view.heartbeat_age = Some(Duration::from_secs(21));
        self.states.remove(member);
    }

    /// So long ago that it is to be healed.
    pub(crate) fn lose_for_long(&mut self, member: &str) {
        self.lose(member);
        self.view.members.get_mut(member).unwrap().heartbeat_age = Some(Duration::from_secs(61));
    }

    /// Its cluster loses it, and the gate refuses to heal it, until it is sealed and the gate is open for it.
    #[track_caller]
    pub(crate) fn lose_until_open(&mut self, member: &str) {
        self.lose(member);
        self.run(Duration::from_secs(3));
        self.heal_is_refused(member);
        self.until("the gate is open", |model| model.seals().contains(member));
    }

    /// It answers again, after so much time since its boot.
    pub(crate) fn bring_back(&mut self, member: &str, uptime: Duration) {
        let view = self.view.members.get_mut(member).unwrap();
        view.status = MemberStatus::Online;
        view.heartbeat_age = None;
        let machine = Some(format!("machine-{}", member.trim_start_matches('n')));
        self.states.insert(member.to_owned(), MemberState { uptime, machine });
    }

    pub(crate) fn heal_is_refused(&mut self, member: &str) {
        self.handle(Input::Notice(Notice::Refused { member: member.to_owned(), healing: true }));
    }

    pub(crate) fn ask(&mut self, number: u64, request: Request) {
        self.handle(Input::Request(number, request));
    }

    pub(crate) fn state(&self, member: &str) -> &'static str {
        let status = self.guardian.status(self.now());
        status.members.iter().find(|line| line.name == member).map_or("unknown", |line| line.state)
    }

    pub(crate) fn alarms(&self) -> BTreeSet<&'static str> {
        self.guardian.alarms().into_iter().map(|alarm| alarm.code).collect()
    }

    pub(crate) fn answers(&self) -> Vec<(u64, Outcome)> {
        let answer = |report: &Report| match report {
            Report::Answer(number, outcome) => Some((*number, outcome.clone())),
            Report::Log { .. } => None,
        };
        self.reports.iter().filter_map(answer).collect()
    }

    pub(crate) fn logs(&self) -> Vec<String> {
        let line = |report: &Report| match report {
            Report::Log { code, member, text, .. } => format!("{code} {member:?} {text}"),
            Report::Answer(number, outcome) => format!("answer {number}: {outcome:?}"),
        };
        self.reports.iter().map(line).collect()
    }

    pub(crate) fn changed_storage(&self) -> bool {
        self.effects.iter().any(|effect| matches!(effect, Effect::Fence(_, Step::Add(_))))
    }
}
