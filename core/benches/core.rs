//! What an input costs the core, by the size of the world: `cargo bench -p rbd-guardian-core`. An input is to cost what it
//! changes, not what there is.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm)] // A bench.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use divan::{Bencher, black_box};
use jiff::Timestamp;
use rbd_guardian_core::guardian::Guardian;
use rbd_guardian_core::guardian::io::{Effect, Input, Now, Recorded};
use rbd_guardian_core::guardian::settings::Settings;
use rbd_guardian_core::model::blocklist::Blocklist;
use rbd_guardian_core::model::ceph_snapshot::{CephSnapshot, Clients, SeenAt};
use rbd_guardian_core::model::epoch::OsdEpoch;
use rbd_guardian_core::model::image_users::ImageUse;
use rbd_guardian_core::model::incus_snapshot::{
    Details, GateView, IncusSnapshot, Instance, InstanceId, InstanceKind, MemberState, MemberStatus,
    MemberView, Notice, Thresholds,
};
use rbd_guardian_core::model::member::Members;
use rbd_guardian_core::model::osdmap::{DataPools, OsdMap, Pool};
use rbd_guardian_core::model::policy::Policy;
use rbd_guardian_core::model::record::Records;
use rbd_guardian_core::model::volume::{Content, ImageName, StoragePool, Volume, VolumeKind};

/// Volumes and members; the least alone with `GUARDIAN_BENCH=smoke`.
fn sizes() -> Vec<(u32, u32)> {
    let smoke = std::env::var("GUARDIAN_BENCH").is_ok_and(|size| size == "smoke");
    let all = [(1_000, 3), (10_000, 50), (100_000, 3), (100_000, 500)];
    all.into_iter().take(if smoke { 1 } else { 4 }).collect()
}
/// Between two inputs: so short that nothing becomes due meanwhile.
const SHORT: Duration = Duration::from_micros(100);

/// A world at rest, and the guardian that watches it.
struct World {
    guardian: Guardian,
    boot: Duration,
    map: OsdMap,
    view: IncusSnapshot,
    uses: Vec<ImageUse>,
}

fn ip(member: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0001 + member).into()
}

fn name(member: u32) -> String {
    format!("member-{member:03}")
}

impl World {
    fn new((volumes, members): (u32, u32)) -> Self {
        let start: Timestamp = "2026-11-28T00:00:00Z".parse().unwrap();
        let boot = Duration::from_secs(1000);
        let settings = Settings::new("g1", "boot-1", Policy::default(), Members::default());
        let map = OsdMap {
            epoch: OsdEpoch(10),
            modified: start,
            blocklist: Blocklist::default(),
            knows_ranges: true,
            reads_paused: false,
            not_understood: Vec::new(),
            pools: BTreeMap::from([(1, pool())]),
        };
        let guardian = Guardian::new(settings, Records::default(), Now { boot, wall: start });
        let (view, uses) = incus(volumes, members);
        let mut world = Self { guardian, boot, map, view, uses };
        for _ in 0..200 {
            world.boot += Duration::from_millis(100);
            world.give(Input::Tick);
        }
        world
    }

    fn now(&self) -> Now {
        let start: Timestamp = "2026-11-28T00:00:00Z".parse().unwrap();
        Now { boot: self.boot, wall: start + self.boot.saturating_sub(Duration::from_secs(1000)) }
    }

    /// An input, and what follows from it until all is answered.
    fn give(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            self.boot += SHORT;
            inputs.extend(self.effects(input).into_iter().map(|effect| self.answer(effect)));
        }
    }

    /// What is measured: an input, and the effects that it leads to.
    fn effects(&mut self, input: Input) -> Vec<Effect> {
        let now = self.now();
        self.guardian.handle(now, input);
        while self.guardian.next_report().is_some() {}
        std::iter::from_fn(|| self.guardian.next_effect(now)).collect()
    }

    fn answer(&mut self, effect: Effect) -> Input {
        let began = self.boot;
        match effect {
            Effect::ReadView { whole } => Input::View { began, view: Ok(self.reading(whole)) },
            Effect::ReadMemberState(name) => {
                let (uptime, machine) = (Duration::from_secs(100_000), Some(format!("machine of {name}")));
                Input::MemberState(name, Ok(MemberState { uptime, machine }))
            }
            Effect::ReadNetworks(name) => Input::Networks(name, Ok(BTreeSet::new())),
            Effect::Look => Input::Looked(Ok(self.look())),
            Effect::ReadMaps { .. } => Input::Maps(Ok(vec![self.map.clone()])),
            Effect::Sweep(_) => Input::Swept {
                began,
                uses: self.uses.clone(),
                unread: Vec::new(),
                data_pools: DataPools::new(),
            },
            Effect::Find(_) => Input::Found { began, missing: BTreeSet::new(), unread: Vec::new() },
            Effect::Record { .. } => Input::Recorded(Recorded::Written),
            Effect::PutGate { at, contents, epoch } => {
                let told = at.into_iter().map(|name| (name, contents.keys(epoch)));
                self.view.gate.as_mut().unwrap().members.extend(told);
                Input::GatePut(BTreeMap::new())
            }
            other => unreachable!("{other:?} in a world at rest"),
        }
    }

    fn reading(&self, whole: bool) -> IncusSnapshot {
        let view = &self.view;
        IncusSnapshot {
            instances: view.instances.clone().filter(|_| whole),
            volumes: view.volumes.clone().filter(|_| whole),
            pools: view.pools.clone().filter(|_| whole),
            from: view.from.clone(),
            members: view.members.clone(),
            thresholds: view.thresholds,
            operations: view.operations.clone(),
            gate: view.gate.clone(),
        }
    }

    fn look(&self) -> CephSnapshot {
        let mut clients = Clients::new();
        for used in &self.uses {
            let client = used.watchers[0].client().unwrap();
            clients.entry(client).or_default().insert(SeenAt::Session("client.admin".to_owned()));
        }
        CephSnapshot {
            now: self.now().wall,
            own: vec!["192.0.2.1:0/1".parse().unwrap()],
            map: self.map.clone(),
            daemons: Vec::new(),
            clients,
            unread: Vec::new(),
            data_pools: DataPools::new(),
        }
    }
}

fn pool() -> Pool {
    Pool {
        name: "incus".into(),
        pg_num: 256,
        overlay: None,
        eio: false,
        unclear: None,
        applications: vec!["rbd".into()],
    }
}

/// Every volume is the root disk of a container that runs.
fn incus(volumes: u32, members: u32) -> (IncusSnapshot, Vec<ImageUse>) {
    let mut gate = GateView::default();
    let mut all = BTreeMap::new();
    for n in 0..members {
        let view = MemberView {
            status: MemberStatus::Online,
            heartbeat_age: None,
            url: format!("https://{}:8443", ip(n)),
            leads: n == 0,
            addresses: Ok([ip(n)].into()),
        };
        all.insert(name(n), view);
        gate.scriptlets.insert(name(n), Ok("gate 1".into()));
        gate.members.insert(name(n), BTreeMap::new());
    }
    let (mut instances, mut listed, mut uses) = (BTreeMap::new(), Vec::new(), Vec::new());
    for n in 0..volumes {
        let (id, at) = (InstanceId { project: "default".into(), name: format!("c{n}") }, n % members);
        let details = Some(Details { running: true, ran: true, ..Details::default() });
        let kind = InstanceKind::Container;
        listed.push(Volume {
            pool: "remote".into(),
            project: "default".into(),
            name: id.name.clone(),
            kind: VolumeKind::Instance(kind),
            content: Content::Filesystem,
            shared: false,
            used_by: BTreeSet::new(),
            unknown: Vec::new(),
        });
        let image = ImageName {
            pool: "incus".into(),
            namespace: String::new(),
            name: format!("container_{}", id.name),
        };
        let watcher = format!("{}:0/{}", ip(at), at + 100).parse().unwrap();
        uses.push(ImageUse { image, watchers: vec![watcher], locks: Vec::new(), unknown: Vec::new() });
        instances.insert(id, Instance { kind, location: name(at), details });
    }
    let remote =
        StoragePool { driver: "ceph".into(), osd_pool: Some("incus".into()), data_pool: None, cluster: None };
    let view = IncusSnapshot {
        from: name(0),
        members: all,
        thresholds: Thresholds { offline: Duration::from_secs(20), healing: Some(Duration::from_secs(60)) },
        instances: Some(instances),
        pools: Some([("remote".to_owned(), remote)].into()),
        volumes: Some(listed),
        operations: Some(Vec::new()),
        gate: Some(gate),
    };
    (view, uses)
}

/// The world, once for all inputs of a row.
fn measure(bencher: Bencher<'_, '_>, size: (u32, u32), input: impl Fn(&mut World) -> Input) {
    let mut world = World::new(size);
    bencher.bench_local(move || {
        world.boot += SHORT;
        let input = input(&mut world);
        black_box(world.effects(input))
    });
}

#[divan::bench(args = sizes())]
fn tick(bencher: Bencher<'_, '_>, size: (u32, u32)) {
    measure(bencher, size, |_| Input::Tick);
}

#[divan::bench(args = sizes())]
fn osdmap(bencher: Bencher<'_, '_>, size: (u32, u32)) {
    measure(bencher, size, |world| {
        world.map.epoch = world.map.epoch.later(1);
        Input::Maps(Ok(vec![world.map.clone()]))
    });
}

#[divan::bench(args = sizes())]
fn notice(bencher: Bencher<'_, '_>, size: (u32, u32)) {
    measure(bencher, size, |_| Input::Notice(Notice::Changed));
}

#[divan::bench(args = sizes())]
fn next_effect(bencher: Bencher<'_, '_>, size: (u32, u32)) {
    let mut world = World::new(size);
    bencher.bench_local(move || {
        let now = world.now();
        black_box(world.guardian.next_effect(now))
    });
}

/// A reading of Incus, whose making is not measured.
fn measure_reading(bencher: Bencher<'_, '_>, size: (u32, u32), whole: bool) {
    let world = std::cell::RefCell::new(World::new(size));
    bencher
        .with_inputs(|| Input::View { began: world.borrow().boot, view: Ok(world.borrow().reading(whole)) })
        .bench_local_values(|input| {
            let mut world = world.borrow_mut();
            world.boot += SHORT;
            black_box(world.effects(input))
        });
}

#[divan::bench(args = sizes())]
fn glance(bencher: Bencher<'_, '_>, size: (u32, u32)) {
    measure_reading(bencher, size, false);
}

#[divan::bench(args = sizes(), sample_count = 10)]
fn whole_reading(bencher: Bencher<'_, '_>, size: (u32, u32)) {
    measure_reading(bencher, size, true);
}

fn main() {
    divan::main();
}
