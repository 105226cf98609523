//! The fence and release machines against a model of the storage that loses answers, splits pools, expires and
//! tampers. What holds there: INV-1 (sealed means sealed), no gap while an entry is replaced, and INV-4.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    clippy::cast_sign_loss
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use rbd_guardian_core::fence::releasing::Release;
use rbd_guardian_core::fence::sealing::{Failure, Sealing, SealingState};
use rbd_guardian_core::fence::step::{Sent, Step, StepMachine as _, StepOutcome};
use rbd_guardian_core::model::addr::{ClientAddr, EntityAddr, Entry, parse_target};
use rbd_guardian_core::model::barrier::{PoolProof, PoolToProve};
use rbd_guardian_core::model::blocklist::Blocklist;
use rbd_guardian_core::model::ceph_snapshot::{CephSnapshot, Clients};
use rbd_guardian_core::model::epoch::OsdEpoch;
use rbd_guardian_core::model::member::{Member, Members};
use rbd_guardian_core::model::osdmap::{OsdMap, Pool, PoolId};
use rbd_guardian_core::model::policy::Policy;
use rbd_guardian_core::model::target::Target;
use rbd_guardian_core::rules::plan::{Plan, PlanRequest, plan};

const HOST: &str = "10.0.0.5";

fn start() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn client(nonce: u32) -> ClientAddr {
    ClientAddr { ip: HOST.parse().unwrap(), nonce }
}

/// The storage: every map there ever was, and the epoch each PG has reached.
struct Storage {
    maps: Vec<OsdMap>,
    pgs: BTreeMap<(PoolId, u32), usize>,
    sessions: BTreeSet<ClientAddr>,
    /// Random bits that decide what goes wrong next; all zero is fair weather.
    faults: std::vec::IntoIter<u8>,
    added: i64,
    tampered: bool,
}

impl Storage {
    fn new(short: &[Entry], faults: Vec<u8>) -> Self {
        let mut blocklist = Blocklist::default();
        for entry in short {
            insert(&mut blocklist, *entry, start() + Duration::from_secs(60));
        }
        let pool = Pool {
            name: "images".into(),
            pg_num: 4,
            overlay: None,
            eio: false,
            unclear: None,
            applications: vec![],
        };
        let pools = BTreeMap::from([(1, pool)]);
        let map = OsdMap {
            epoch: OsdEpoch(0),
            modified: start(),
            blocklist,
            knows_ranges: true,
            reads_paused: false,
            not_understood: vec![],
            pools,
        };
        let pgs = (0..4).map(|pg| ((1, pg), 0)).collect();
        let faults = faults.into_iter();
        Self { maps: vec![map], pgs, sessions: BTreeSet::new(), faults, added: 0, tampered: false }
    }

    fn map(&self) -> &OsdMap {
        self.maps.last().unwrap()
    }

    fn change(&mut self, change: impl FnOnce(&mut OsdMap)) {
        let mut map = self.map().clone();
        map.epoch = map.epoch.later(1);
        change(&mut map);
        self.maps.push(map);
    }

    fn fault(&mut self) -> u8 {
        self.faults.next().unwrap_or(0)
    }

    /// Something happens by itself: a PG catches up, a pool is split, created or deleted, a short entry ends, an
    /// operator tampers.
    fn weather(&mut self, may_tamper: bool) {
        let newest = self.maps.len() - 1;
        match self.fault() {
            1..=40 => {
                let which = usize::from(self.fault()) % self.pgs.len().max(1);
                if let Some(epoch) = self.pgs.values_mut().nth(which) {
                    *epoch = newest;
                }
            }
            41..=50 => {
                let Some((&id, pool)) = self.map().pools.iter().next() else {
                    return;
                };
                let (old, new) = (pool.pg_num, pool.pg_num + 2);
                self.change(|map| map.pools.get_mut(&id).unwrap().pg_num = new);
                // A child has the map that made it, at least.
                for pg in old..new {
                    self.pgs.insert((id, pg), newest + 1);
                }
            }
            51..=60 => {
                let id = PoolId::from(self.maps.len() as u32) + 1;
                let pool = Pool { name: format!("p{id}"), pg_num: 2, ..self.maps[0].pools[&1].clone() };
                self.change(|map| drop(map.pools.insert(id, pool)));
                self.pgs.extend([((id, 0), newest + 1), ((id, 1), newest + 1)]);
            }
            61..=66 if self.map().pools.len() > 1 => {
                let id = *self.map().pools.keys().next().unwrap();
                self.change(|map| drop(map.pools.remove(&id)));
                self.pgs.retain(|(pool, _), _| *pool != id);
            }
            67..=72 => {
                let soon = start() + Duration::from_secs(3600);
                self.change(|map| map.blocklist.entries.retain(|_, until| *until > soon));
            }
            73..=78 if may_tamper => {
                self.tampered = true;
                self.change(|map| map.blocklist = Blocklist::default());
            }
            79..=90 => drop(self.sessions.insert(client(7))),
            _ => {}
        }
    }

    fn add(&mut self, entries: &[Entry]) -> Vec<(Entry, Sent)> {
        let mut sent = Vec::new();
        for entry in entries {
            let (happens, answer) = match self.fault() % 8 {
                5 => (true, Sent::Unknown),
                6 => (false, Sent::Unknown),
                _ => (true, Sent::Acknowledged),
            };
            if happens {
                self.added += 1;
                let until = start() + Policy::default().expire + Duration::from_secs(self.added as u64);
                self.change(|map| insert(&mut map.blocklist, *entry, until));
            }
            sent.push((*entry, answer));
        }
        sent
    }

    fn remove(&mut self, entries: &[Entry]) -> Vec<(Entry, Sent)> {
        let mut sent = Vec::new();
        for entry in entries {
            let answer = if self.fault() % 8 == 5 { Sent::Unknown } else { Sent::Acknowledged };
            self.change(|map| match entry {
                Entry::HostRange(ip) => drop(map.blocklist.ranges.remove(&(*ip).into())),
                Entry::Host(ip) => {
                    let _ = map.blocklist.entries.remove(&EntityAddr { ip: *ip, port: 0, nonce: 0 });
                }
                Entry::Client(client) => drop(map.blocklist.entries.remove(&(*client).into())),
            });
            sent.push((*entry, answer));
        }
        sent
    }

    /// PGs that answer have the newest map by then; the others stay where they are.
    fn barrier(&mut self, pools: &[PoolToProve]) -> Vec<PoolProof> {
        let newest = self.maps.len() - 1;
        let mut proofs = Vec::new();
        for pool in pools {
            let mut pending = BTreeSet::new();
            for pg in 0..pool.pg_num {
                let silent = self.fault() % 8 == 7;
                match self.pgs.get_mut(&(pool.id, pg)) {
                    // The client makes up an answer for a pool that is gone.
                    None => {}
                    Some(_) if silent => drop(pending.insert(pg)),
                    Some(epoch) => *epoch = newest,
                }
            }
            proofs.push(PoolProof { pool: pool.clone(), pending, trouble: None });
        }
        proofs
    }

    fn perform(&mut self, step: Step) -> StepOutcome {
        match step {
            Step::ReadMap => {
                let is_read = self.fault() % 8 != 3;
                StepOutcome::Map(is_read.then(|| self.map().clone().into()))
            }
            Step::ReadClients => {
                let are_read = self.fault() % 8 != 3;
                StepOutcome::Clients(are_read.then(|| self.sessions.clone()))
            }
            Step::Add(entries) => StepOutcome::Added(self.add(&entries)),
            Step::Remove(entries) => StepOutcome::Removed(self.remove(&entries)),
            Step::Barrier { pools, .. } => StepOutcome::Proved(self.barrier(&pools)),
            Step::FailOver(_) | Step::ReadDaemons => unreachable!("no daemons here"),
        }
    }

    /// Would any PG still take a write of a target, by the map that PG has?
    fn takes_a_write(&self, targets: &BTreeSet<Entry>) -> bool {
        self.pgs.values().any(|epoch| !refuses(&self.maps[*epoch].blocklist, targets))
    }
}

/// `blocklist.insert`, which keeps the earlier end of a key that is there.
fn insert(blocklist: &mut Blocklist, entry: Entry, until: Timestamp) {
    match entry {
        Entry::HostRange(ip) => drop(blocklist.ranges.entry(ip.into()).or_insert(until)),
        Entry::Host(ip) => {
            let _ = blocklist.entries.entry(EntityAddr { ip, port: 0, nonce: 0 }).or_insert(until);
        }
        Entry::Client(client) => drop(blocklist.entries.entry(client.into()).or_insert(until)),
    }
}

fn refuses(blocklist: &Blocklist, targets: &BTreeSet<Entry>) -> bool {
    targets.iter().all(|target| match target {
        Entry::Client(client) => blocklist.refuses(*client),
        // A nonce nobody has seen.
        Entry::Host(ip) | Entry::HostRange(ip) => blocklist.refuses(ClientAddr { ip: *ip, nonce: u32::MAX }),
    })
}

/// `None` where the plan is refused, as it must be when no cover is free.
fn planned(storage: &Storage, target: Target) -> Option<Plan> {
    let members = Members(vec![Member { name: "n1".into(), addresses: vec![HOST.parse().unwrap()] }]);
    let known = [1, 2].map(|nonce| (client(nonce), BTreeSet::new()));
    let world = CephSnapshot {
        now: start(),
        own: vec![],
        map: storage.map().clone(),
        daemons: vec![],
        clients: if matches!(target, Target::Member(_)) { Clients::from(known) } else { Clients::new() },
        unread: vec![],
        data_pools: BTreeMap::new(),
    };
    plan(&PlanRequest::of(target), &members, &world, &Policy::default()).ok()
}

/// Runs a fence to its end or for so many steps, checking after each. Returns it and whether it ended.
fn run_fence(storage: &mut Storage, plan: Plan, may_tamper: bool) -> Result<Sealing, TestCaseError> {
    let targets = plan.entries.clone();
    let mut fence = Sealing::new(plan);
    let mut held_since = None;
    for _ in 0..400 {
        let Some(step) = fence.next_step() else { break };
        storage.weather(may_tamper);
        fence.handle(storage.perform(step));
        if storage.tampered {
            // What an operator removed is free until it is asserted again: judged at the end.
            held_since = None;
            continue;
        }
        if fence.state() == SealingState::Sealed {
            prop_assert!(!storage.takes_a_write(&targets), "INV-1: sealed, and a PG takes a write");
        }
        held_since = held_since.or(fence.committed());
        if let Some(since) = held_since {
            let maps = &storage.maps[since.0 as usize..];
            prop_assert!(maps.iter().all(|map| refuses(&map.blocklist, &targets)), "free for a moment");
        }
    }
    Ok(fence)
}

fn targets() -> impl Strategy<Value = Target> {
    prop_oneof![
        Just(Target::Member("n1".into())),
        Just(Target::Addresses([HOST].iter().map(|t| parse_target(t).unwrap()).collect())),
        Just(Target::Addresses(
            ["10.0.0.5:0/1", "10.0.0.5:0/2"].iter().map(|t| parse_target(t).unwrap()).collect()
        )),
    ]
}

fn short_entries() -> impl Strategy<Value = Vec<Entry>> {
    let ip = HOST.parse().unwrap();
    let clients = [1, 2].map(|nonce| Entry::Client(client(nonce)));
    let all = [clients.as_slice(), &[Entry::Host(ip), Entry::HostRange(ip)]].concat();
    proptest::sample::subsequence(all, 0..=3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn inv1_sealed_means_that_no_pg_takes_a_write(
        target in targets(),
        short in short_entries(),
        faults in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut storage = Storage::new(&short, faults);
        let Some(plan) = planned(&storage, target) else { return Ok(()) };
        run_fence(&mut storage, plan, false)?;
    }

    #[test]
    fn inv3_what_an_operator_removed_is_asserted_and_proved_again(
        target in targets(),
        faults in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut storage = Storage::new(&[], faults);
        let Some(plan) = planned(&storage, target) else { return Ok(()) };
        let targets = plan.entries.clone();
        let fence = run_fence(&mut storage, plan, true)?;
        // The last look of the machine showed the entries: nothing was tampered with after it, or it would go on.
        if fence.is_done() && refuses(&storage.map().blocklist, &targets) {
            let unproved: Vec<_> = storage.pgs.iter().filter(|(_, e)| !refuses(&storage.maps[**e].blocklist, &targets)).collect();
            prop_assert!(unproved.is_empty(), "INV-1: sealed, and {unproved:?} take a write");
        }
    }

    #[test]
    fn a_fence_ends_sealed_when_nothing_goes_wrong(target in targets(), short in short_entries()) {
        let mut storage = Storage::new(&short, vec![]);
        let Some(plan) = planned(&storage, target) else { return Ok(()) };
        let entries = plan.entries.clone();
        let fence = run_fence(&mut storage, plan, false)?;
        prop_assert!(fence.is_done() && fence.state() == SealingState::Sealed);
        let long = |entry: &Entry| storage.map().blocklist.until(*entry) > Some(start() + Duration::from_secs(4 * 365 * 86_400));
        prop_assert!(entries.iter().all(long), "every entry is long in the end: {:?}", storage.map().blocklist);
        let left = storage.map().blocklist.entries.len() + storage.map().blocklist.ranges.len();
        let foreign = short.iter().filter(|entry| !entries.contains(entry)).count();
        prop_assert_eq!(left, entries.len() + foreign, "no cover is left behind");
    }

    #[test]
    fn inv4_no_known_client_is_free_when_its_host_is_released(
        short in short_entries(),
        faults in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let host = Entry::Host(HOST.parse().unwrap());
        let mut storage = Storage::new(&short, faults);
        // Keeps its early end if it is among the short ones.
        storage.change(|map| insert(&mut map.blocklist, host, start() + Duration::from_secs(200_000_000)));
        storage.sessions.extend([client(1), client(3)]);
        let mut release = Release::new([HOST.parse().unwrap()].into(), Policy::default().required_until(start()));
        let known = storage.sessions.clone();
        let long = Policy::default().required_until(start());
        for _ in 0..400 {
            let Some(step) = release.next_step() else { break };
            storage.weather(false);
            if step.removals().iter().any(|entry| entry.is_host()) {
                for client in &known {
                    let until = storage.map().blocklist.until(Entry::Client(*client));
                    prop_assert!(until >= Some(long), "{client} would be free, now or soon: {until:?}");
                }
            }
            release.handle(storage.perform(step));
        }
    }
}

#[test]
fn a_refused_entry_ends_the_fence_with_the_monitors_words() {
    let storage = Storage::new(&[], vec![]);
    let mut fence = Sealing::new(planned(&storage, Target::Member("n1".into())).unwrap());
    while let Some(step) = fence.next_step() {
        match step {
            Step::Add(entries) => {
                let refused = entries.iter().map(|e| (*e, Sent::Refused("EACCES".into()))).collect();
                fence.handle(StepOutcome::Added(refused));
            }
            _ => fence.handle(StepOutcome::Map(Some(storage.map().clone().into()))),
        }
    }
    assert!(matches!(fence.failure(), Some(Failure::Entry { status, .. }) if status == "EACCES"));
    assert_eq!(fence.state(), SealingState::Intended);
}

/// A lock breaker's entry that lands after the plan was made, on a host that also runs somebody else.
#[test]
fn inv6_a_cover_that_nobody_approved_is_never_put_up() {
    let mut storage = Storage::new(&[], vec![]);
    let target = Entry::Client(client(7));
    let mut plan = planned(&storage, Target::Addresses([target].into())).unwrap();
    plan.coverable.clear();
    storage.change(|map| insert(&mut map.blocklist, target, start() + Duration::from_secs(3600)));
    let mut fence = Sealing::new(plan);
    while let Some(step) = fence.next_step() {
        match step {
            Step::ReadMap => fence.handle(StepOutcome::Map(Some(storage.map().clone().into()))),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fence.failure(), Some(&Failure::Uncovered { entry: target }));
}

#[test]
fn a_fence_ends_when_no_pool_is_left_to_prove() {
    let mut storage = Storage::new(&[], vec![]);
    let plan = planned(&storage, Target::Member("n1".into())).unwrap();
    storage.change(|map| map.pools.clear());
    let fence = run_fence(&mut storage, plan, false).unwrap();
    assert_eq!(fence.failure(), Some(&Failure::NoPools));
}

/// A fence whose entries stand in this map, with the barrier under way.
fn asking(storage: &mut Storage) -> (Sealing, Vec<Entry>) {
    let plan = planned(storage, Target::Member("n1".into())).unwrap();
    let entries: Vec<Entry> = plan.entries.iter().copied().collect();
    let mut fence = Sealing::new(plan);
    loop {
        match fence.next_step().unwrap() {
            Step::ReadMap => fence.handle(StepOutcome::Map(Some(storage.map().clone().into()))),
            Step::Add(entries) => fence.handle(StepOutcome::Added(storage.add(&entries))),
            Step::Barrier { .. } => return (fence, entries),
            other => panic!("{other:?}"),
        }
    }
}

/// The next barrier it asks for, over readings of the map.
fn asks_again(fence: &mut Sealing, storage: &Storage) -> (Vec<PoolToProve>, OsdEpoch) {
    loop {
        match fence.next_step().unwrap() {
            Step::ReadMap => fence.handle(StepOutcome::Map(Some(storage.map().clone().into()))),
            Step::Barrier { pools, epoch } => return (pools, epoch),
            other => panic!("{other:?}"),
        }
    }
}

fn pending(pools: &[PoolToProve], pgs: &[u32]) -> Vec<PoolProof> {
    let proof = |pool: &PoolToProve| PoolProof {
        pool: pool.clone(),
        pending: pgs.iter().copied().collect(),
        trouble: None,
    };
    pools.iter().map(proof).collect()
}

/// While the PGs are asked somebody removes the entries, and they are put back: a PG may have the map between.
#[test]
fn inv1_answers_of_before_a_removal_do_not_count_for_the_entries_that_were_put_back() {
    let mut storage = Storage::new(&[], vec![]);
    let (mut fence, entries) = asking(&mut storage);
    let before = storage.map().epoch;
    let proved = pending(&[PoolToProve::new(1, &storage.map().pools[&1])], &[]);
    storage.change(|map| map.blocklist = Blocklist::default());
    fence.observe(&storage.map().clone().into());
    assert_eq!(storage.add(&entries).len(), entries.len());
    fence.observe(&storage.map().clone().into());
    fence.handle(StepOutcome::Proved(proved));
    assert_ne!(fence.state(), SealingState::Sealed);
    let (pools, epoch) = asks_again(&mut fence, &storage);
    assert!(pools.len() == 1 && epoch > before, "asked anew, with {epoch} after {before}");
    fence.handle(StepOutcome::Proved(pending(&pools, &[])));
    assert_eq!(fence.next_step(), Some(Step::ReadMap));
    fence.handle(StepOutcome::Map(Some(storage.map().clone().into())));
    assert_eq!(fence.state(), SealingState::Sealed);
}

/// PGs that take turns in being late: each has answered once.
#[test]
fn inv1_a_pg_that_answered_once_stays_proved() {
    let mut storage = Storage::new(&[], vec![]);
    let (mut fence, _) = asking(&mut storage);
    let pools = [PoolToProve::new(1, &storage.map().pools[&1])];
    fence.handle(StepOutcome::Proved(pending(&pools, &[0, 1])));
    let (pools, _) = asks_again(&mut fence, &storage);
    fence.handle(StepOutcome::Proved(pending(&pools, &[1, 2])));
    let left: BTreeSet<u32> = fence.proofs().flat_map(|proof| proof.pending.iter().copied()).collect();
    assert_eq!(left, [1].into());
    let (pools, _) = asks_again(&mut fence, &storage);
    fence.handle(StepOutcome::Proved(pending(&pools, &[0])));
    assert_eq!(fence.next_step(), Some(Step::ReadMap));
    fence.handle(StepOutcome::Map(Some(storage.map().clone().into())));
    assert_eq!(fence.state(), SealingState::Sealed);
}
