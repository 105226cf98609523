//! Everything that goes into the core or comes out of it has a form in JSON, and is the same when it is read again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use rbd_guardian_core::fence::step::{Sent, Step, StepOutcome};
use rbd_guardian_core::guardian::io::{Effect, Input, Now, Recorded, StaleLock};
use rbd_guardian_core::guardian::settings::{OnConflict, Settings, Trigger};
use rbd_guardian_core::model::addr::{ClientAddr, Entry};
use rbd_guardian_core::model::barrier::{PoolProof, PoolToProve};
use rbd_guardian_core::model::ceph_snapshot::{Daemon, DaemonKind, Role, SeenAt};
use rbd_guardian_core::model::epoch::{GateEpoch, OsdEpoch};
use rbd_guardian_core::model::fence_id::FenceId;
use rbd_guardian_core::model::gate_keys::GateContents;
use rbd_guardian_core::model::image_users::{ImageUse, Locker};
use rbd_guardian_core::model::incus_snapshot::{MemberState, MemberStatus, Notice, Operation, OperationKind};
use rbd_guardian_core::model::member::{Member, Members};
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::overrides::Overrides;
use rbd_guardian_core::model::policy::Policy;
use rbd_guardian_core::model::record::{Change, GateRecord, Key, Record, Records, Removal};
use rbd_guardian_core::model::target::Target;
use rbd_guardian_core::model::volume::ImageName;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::{Model, id, start};

fn is_read_as_it_is_written<T: Serialize + DeserializeOwned + PartialEq + Debug>(one: &T) {
    let text = serde_json::to_string(one).unwrap();
    let read: T = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(read, *one, "{text}");
}

fn entries() -> Vec<Entry> {
    let ips: [std::net::IpAddr; 2] = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
    let of = |ip| [Entry::Host(ip), Entry::HostRange(ip), Entry::Client(ClientAddr { ip, nonce: 7 })];
    ips.into_iter().flat_map(of).collect()
}

fn sent() -> Vec<(Entry, Sent)> {
    let all = [Sent::Acknowledged, Sent::Refused("EPERM".to_owned()), Sent::Unknown];
    entries().into_iter().zip(all.into_iter().cycle()).collect()
}

fn lock() -> StaleLock {
    let image = ImageName { pool: "incus".into(), namespace: "a b".into(), name: "c/1".into() };
    let address =
        "10.0.0.2:0/7".parse::<rbd_guardian_core::model::addr::EntityAddr>().unwrap().client().unwrap();
    StaleLock { image, owner: "client.4126".into(), cookie: "auto 1".into(), address }
}

fn daemons() -> Vec<Daemon> {
    let kinds = [DaemonKind::Mon, DaemonKind::Osd, DaemonKind::Mgr, DaemonKind::Mds, DaemonKind::Service];
    let roles = [Role::Active, Role::Standby, Role::Plain];
    let daemon = |(kind, role)| Daemon {
        kind,
        name: "x".to_owned(),
        ips: vec!["10.0.0.2".parse().unwrap()],
        role,
        clients: vec![lock().address],
        clients_unknown: false,
    };
    kinds.into_iter().zip(roles.into_iter().cycle()).map(daemon).collect()
}

/// A ledger with a fence that was sealed, and everything else a ledger has.
fn records() -> Records {
    let mut model = Model::new();
    model.run(Duration::from_secs(10));
    model.lose("n2");
    model.run(Duration::from_secs(3));
    model.heal_is_refused("n2");
    model.until("open", |model| model.seals().contains("n2"));
    model.ledger.clone()
}

fn requests() -> Vec<Request> {
    let fence = |target| Request::Fence {
        target,
        overrides: Overrides { accept_incomplete: true, brake: true, ..Overrides::default() },
        reason: Some("why\n\"quoted\"".to_owned()),
        by: "root@h".to_owned(),
    };
    let release = Request::Release {
        fence: "F-1".into(),
        since: None,
        assert_powered_off: true,
        reason: None,
        by: "x".into(),
    };
    let addresses = Target::Addresses(entries().into_iter().collect());
    let by = || "root@h".to_owned();
    let until = Timestamp::UNIX_EPOCH;
    let disarm = Request::Disarm { until, reason: Some("why".to_owned()), by: by() };
    let arm = Request::Arm { reason: None, by: by() };
    vec![fence(Target::Member("n2".to_owned())), fence(addresses), release, disarm, arm]
}

fn notices() -> Vec<Notice> {
    let member = || "n2".to_owned();
    vec![
        Notice::Healing { member: Some(member()) },
        Notice::Healing { member: None },
        Notice::Refused { member: member(), healing: true },
        Notice::NotPlaced { why: member() },
        Notice::Changed,
        Notice::Missed,
    ]
}

fn inputs() -> Vec<Input> {
    let began = Duration::new(5, 7);
    let (fence, no) = (|| FenceId::from("F-1"), || "no answer".to_owned());
    let mut model = Model::new();
    model.view.members.get_mut("n2").unwrap().status = MemberStatus::Other("FROZEN".to_owned());
    model.view.operations = Some(vec![Operation {
        id: "1".into(),
        kind: OperationKind::Heal,
        location: "n1".into(),
        instances: [id("c1")].into(),
    }]);
    model.change(|map| {
        map.blocklist.entries.insert("10.0.0.2:0/0".parse().unwrap(), start());
        map.blocklist.ranges.insert("fd00::2/128".parse().unwrap(), start());
    });
    let mut world = model.look();
    world.daemons = daemons();
    world.clients.insert(lock().address, [SeenAt::Remembered, SeenAt::Session("client.admin".into())].into());
    let locker = Locker { owner: "c".into(), cookie: "k".into(), address: "10.0.0.2:0/7".parse().ok() };
    let uses = vec![ImageUse {
        image: lock().image,
        watchers: locker.address.into_iter().collect(),
        locks: vec![locker],
        unknown: vec![],
    }];
    let state = MemberState { uptime: began, machine: Some("m".into()) };
    let networks = BTreeSet::from(["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()]);
    let pool = PoolToProve { id: 3, name: "incus".into(), pg_num: 8 };
    let proof = PoolProof { pool, pending: [1, 7].into(), trouble: Some(no()) };
    let (entity, address) = ("client.admin".to_owned(), "10.0.0.8:0/7".to_owned());
    let removal = Removal { at: start(), entity, address, entry: Some(entries()[1]) };
    let all = vec![
        Input::Tick,
        Input::View { began, view: Ok(model.view.clone()) },
        Input::View { began, view: Err(no()) },
        Input::MemberState("n2".into(), Ok(state)),
        Input::MemberState("n2".into(), Err(no())),
        Input::Answered("n2".into()),
        Input::Networks("n2".into(), Ok(networks)),
        Input::Pinged("n2".into(), Ok(true)),
        Input::Looked(Ok(world)),
        Input::Maps(Ok(model.maps.clone())),
        Input::Audit(fence(), Ok(vec![removal])),
        Input::Audit(fence(), Err(no())),
        Input::Swept { began, uses, unread: vec![no()], data_pools: BTreeMap::new() },
        Input::Found { began, missing: [lock().image].into(), unread: vec![no()] },
        Input::Recorded(Recorded::Written),
        Input::Recorded(Recorded::Deposed(no())),
        Input::Recorded(Recorded::Not { why: no(), holds: Some(Box::new(records())) }),
        Input::Step(fence(), StepOutcome::FailedOver(daemons()[0].clone(), Sent::Unknown)),
        Input::Step(fence(), StepOutcome::Daemons(Some(daemons()))),
        Input::Step(fence(), StepOutcome::Daemons(None)),
        Input::Step(fence(), StepOutcome::Added(sent())),
        Input::Step(fence(), StepOutcome::Removed(sent())),
        Input::Retired(fence(), sent()),
        Input::Step(fence(), StepOutcome::Map(Some(model.map().clone().into()))),
        Input::Step(fence(), StepOutcome::Map(None)),
        Input::Step(fence(), StepOutcome::Proved(vec![proof])),
        Input::Step(fence(), StepOutcome::Unread(vec![no()])),
        Input::Step(fence(), StepOutcome::Clients(Some([lock().address].into()))),
        Input::GatePut(BTreeMap::new()),
        Input::GatePut([("n1".to_owned(), no())].into()),
        Input::GatePushed(Ok(())),
        Input::LockBroken(lock(), Err(no())),
        Input::Started(id("c1"), Ok(())),
        Input::Deposed(no()),
    ];
    let notices = notices().into_iter().map(Input::Notice);
    let requests = requests().into_iter().map(|request| Input::Request(7, request));
    all.into_iter().chain(notices).chain(requests).collect()
}

fn changes() -> Vec<Change> {
    let records = records();
    let fence = records.fences.values().next().unwrap().clone();
    let member = records.members.values().next().unwrap().clone();
    let gate = GateRecord { epoch: GateEpoch(7), open: ["n2".to_owned()].into(), ..GateRecord::default() };
    let keys =
        [Key::Gate, Key::Disarm, Key::Member("n2".into()), Key::Fence("F".into()), Key::Request("r".into())];
    let put = [Record::Gate(gate), Record::Member(member), Record::Fence(fence)].map(Change::Put);
    put.into_iter().chain(keys.map(Change::Remove)).collect()
}

fn effects() -> Vec<Effect> {
    let fence = || FenceId::from("F-1");
    let pools = vec![PoolToProve { id: 3, name: "incus".into(), pg_num: 8 }];
    let steps = [
        Step::FailOver(daemons()[2].clone()),
        Step::ReadDaemons,
        Step::Add(entries()),
        Step::Remove(entries()),
        Step::ReadMap,
        Step::Barrier { pools, epoch: OsdEpoch(7) },
    ];
    let releases = [Step::ReadMap, Step::ReadClients, Step::Add(entries()), Step::Remove(entries())];
    let all = vec![
        Effect::ReadView { whole: true },
        Effect::ReadMemberState("n2".into()),
        Effect::ReadNetworks("n2".into()),
        Effect::Ping("n2".into()),
        Effect::Look,
        Effect::ReadMaps { after: OsdEpoch(7) },
        Effect::ReadAudit(fence()),
        Effect::Sweep(rbd_guardian_core::model::sweep_part::SweepPart::Turn { turn: 3, of: 20 }),
        Effect::Find(vec![lock().image]),
        Effect::Record { changes: changes(), what: "what".into(), why: "why".into() },
        Effect::PutGate {
            at: ["n1".to_owned()].into(),
            contents: GateContents { open: ["n2".to_owned()].into(), ..GateContents::default() },
            epoch: GateEpoch(u64::MAX),
        },
        Effect::PushGate,
        Effect::Retire(fence(), entries()),
        Effect::BreakLock(lock()),
        Effect::Start(id("c1")),
    ];
    let steps = steps.into_iter().map(|step| Effect::Fence(fence(), step));
    let releases = releases.into_iter().map(|step| Effect::Release(fence(), step));
    all.into_iter().chain(steps).chain(releases).collect()
}

/// The name of a variant, as it is written.
fn kind(one: &impl Serialize) -> String {
    match serde_json::to_value(one).unwrap() {
        serde_json::Value::String(kind) => kind,
        other => other.as_object().unwrap().keys().next().unwrap().clone(),
    }
}

#[test]
fn inputs_are_read_as_they_are_written() {
    let all = inputs();
    all.iter().for_each(is_read_as_it_is_written);
    let kinds: BTreeSet<String> = all.iter().map(kind).collect();
    // Another one is to be added above. An outcome of a step is written by its own name.
    let known = unknown_variant::<Input>() - 1 + unknown_variant::<StepOutcome>();
    assert_eq!(kinds.len(), known, "{kinds:?}");
}

/// Recordings of earlier versions, and those who look into one, rely on it.
#[test]
fn an_outcome_is_written_as_before_it_had_a_type_of_its_own() {
    let written = |outcome| serde_json::to_string(&Input::Step("F-1".into(), outcome)).unwrap();
    assert_eq!(
        written(StepOutcome::Added(sent())),
        format!(r#"{{"added":["F-1",{}]}}"#, serde_json::to_string(&sent()).unwrap())
    );
    let daemon = serde_json::to_value(&daemons()[0]).unwrap();
    assert_eq!(
        written(StepOutcome::FailedOver(daemons()[0].clone(), Sent::Unknown)),
        format!(r#"{{"failed-over":["F-1",{daemon},"unknown"]}}"#)
    );
    assert_eq!(written(StepOutcome::Map(None)), r#"{"map":["F-1",null]}"#);
}

#[test]
fn effects_are_read_as_they_are_written() {
    let all = effects();
    all.iter().for_each(is_read_as_it_is_written);
    let kinds: BTreeSet<String> = all.iter().map(kind).collect();
    assert_eq!(kinds.len(), unknown_variant::<Effect>(), "{kinds:?}");
}

/// How many variants there are, by what is said of one that is unknown.
fn unknown_variant<T: DeserializeOwned + Debug>() -> usize {
    let error = serde_json::from_str::<T>(r#"{"explode":0}"#).unwrap_err().to_string();
    error.split_once("expected one of ").unwrap().1.split(", ").count()
}

#[test]
fn what_a_guardian_begins_with_is_read_as_it_is_written() {
    let member = Member { name: "n1".into(), addresses: vec!["fd00::1".parse().unwrap()] };
    let policy = Policy {
        max_fenced_members: Some(2),
        protected: vec!["10.0.0.0/8".parse().unwrap()],
        ..Policy::default()
    };
    let mut settings = Settings::new("g1", "boot", policy, Members(vec![member]));
    (settings.trigger, settings.guard.on_conflict) = (Trigger::Manual, OnConflict::FenceStale);
    settings.guard.own = vec!["[fd00::9]:0/9".parse().unwrap()];
    is_read_as_it_is_written(&settings);
    is_read_as_it_is_written(&records());
}

proptest! {
    #[test]
    fn times_are_read_as_they_are_written(boot: Duration, second in -9_999_999_999_i64..99_999_999_999, nano in 0..999_999_999_i32) {
        is_read_as_it_is_written(&Now { boot, wall: jiff::Timestamp::new(second, nano).unwrap_or_default() });
    }
}
