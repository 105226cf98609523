//! The ledger on a real cluster: what one write promises (INV-7, INV-8, INV-9), what a reader sees, and who may lead.
//!
//! The first test starts the lab, runs the second one inside of it, and looks at the result with the verbs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../inside/mod.rs"]
mod inside;

mod strangers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use std::{env, thread};

use jiff::Timestamp;
use lab::{Pool, wait_for};
use nix::errno::Errno;
use rbd_guardian::ceph::rados::cluster::{Cluster, Options};
use rbd_guardian::ceph::rados::ioctx::IoCtx;
use rbd_guardian::ceph::rados::omap::OmapWrite;
use rbd_guardian::deadline::Deadline;
use rbd_guardian::ledger::{
    Bid, Leadership, LeaseError, Ledger, LedgerConfig, LedgerReadError, LedgerWriteError, NAMESPACE, OBJECT,
    Snapshot, TrailEntry,
};
use rbd_guardian_core::model::addr::{ClientAddr, Entry};
use rbd_guardian_core::model::epoch::{GateEpoch, LeaderEpoch, OsdEpoch};
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::overrides::Overrides;
use rbd_guardian_core::model::record::{
    Change, FenceRecord, FenceState, GateRecord, Key, MemberRecord, Proof, Record, Records, RequestRecord,
    Source, UptimeSample, VERSION,
};
use rbd_guardian_core::model::target::{Coverage, Target};
use serde_json::json;

use common::{LIMIT, Site};

type Result<T> = inside::Result<T>;

/// For what only hangs if it is broken.
const LONG: Duration = Duration::from_secs(60);
/// Between a deadline and the moment a loaded machine notices it.
const SLACK: Duration = Duration::from_secs(20);
const STOP: &str = "stop osd.0 osd.1 osd.2";
const CONT: &str = "cont osd.0 osd.1 osd.2";
/// How many entries the trail keeps here.
const KEPT: u64 = 20;

#[test]
fn inv7_inv8_inv9_the_ledger_on_a_real_cluster() {
    let site = Site::small();
    site.lab.pool("images", Pool::replicated(8, 2)).unwrap();
    let pool = pool_of(&site, "rbd-guardian");
    site.configure(&["n1", "n2"], "");
    let empty = site.guardian(&["ledger"]).expect(0).json;
    assert_eq!((&empty["leader"], &empty["fences"]), (&json!(null), &json!([])), "{empty:#}");

    let keyring = site.lab.dir().join("ceph.client.guardian.keyring");
    inside::run(&site.lab, &[], "inside_the_lab", &json!({"pool": pool, "keyring": keyring})).unwrap();

    what_the_inside_left_is_shown(&site);
    pools_that_cannot_hold_it_are_refused(&site);
}

fn pool_of(site: &Site, name: &str) -> i64 {
    let dump = site.lab.ceph(&["osd", "dump"]).unwrap();
    let pool =
        dump["pools"].as_array().unwrap().iter().find(|pool| pool["pool_name"] == name).unwrap().clone();
    pool["pool"].as_i64().unwrap()
}

/// The inside ends with a record of a newer form: it is shown, and the doctor says what is wrong.
fn what_the_inside_left_is_shown(site: &Site) {
    let show = site.guardian(&["ledger", "show"]).expect(0);
    assert_eq!(show.json["newer"], 9);
    let mut members = show.json["members"].as_array().unwrap().iter();
    let newer = members.find(|member| member["name"] == "newer").unwrap();
    assert_eq!(newer["machine"], "known", "what is understood is shown");
    assert!(
        show.json["unread"]["fence/newer"].is_string() && show.json["unread"]["fence/damaged"].is_string()
    );
    assert!(show.stderr.contains("form 9") && show.stderr.contains("update"), "{}", show.stderr);
    assert!(show.json["fences"].as_array().unwrap().len() >= 200);
    let audit = site.guardian(&["ledger", "audit", "--last", "2"]).expect(0);
    let trail = audit.json.as_array().unwrap();
    assert_eq!(trail.len(), 2, "{trail:?}");
    assert_eq!(trail[0]["seq"].as_u64().map(|seq| seq + 1), trail[1]["seq"].as_u64(), "the newest last");
    let mut words = site.lab.host("guard").bounded(env!("CARGO_BIN_EXE_rbd-guardian"), LIMIT);
    words.arg("--config").arg(site.lab.dir().join("rbd-guardian.toml")).arg("ledger");
    let text = String::from_utf8(words.output().unwrap().stdout).unwrap();
    let shown = text.lines().filter(|line| line.trim_start().starts_with("F-0")).count();
    assert!(shown == 200 && text.contains("epoch") && text.contains("fence/damaged"), "{shown}\n{text}");

    let doctor = site.guardian(&["doctor"]).expect(1);
    let checks = doctor.json.as_array().unwrap();
    let failed: Vec<_> = checks.iter().filter(|check| check["verdict"] == "fail").collect();
    assert!(failed.iter().all(|check| check["check"] == "ledger"), "{failed:#?}");
    let told = |what: &str| failed.iter().any(|check| check["detail"].as_str().unwrap().contains(what));
    assert!(told("form 9") && told("'fence/damaged'") && told("form 9: missing field"), "{failed:#?}");
    let warned = |what: &str| checks.iter().any(|check| check["detail"].as_str().unwrap().contains(what));
    assert!(warned("keeps 2 copies") && warned("with one copy left"), "{checks:#?}");
}

fn pools_that_cannot_hold_it_are_refused(site: &Site) {
    site.lab.pool("coded", Pool::erasure_coded(8)).unwrap();
    let one = json!({"prefix": "osd pool create", "pool": "one", "pg_num": 1, "pgp_num": 1, "size": 1});
    site.lab.ceph_json(&one).unwrap();
    for (pool, names) in [
        ("nowhere", ["`ceph osd pool create nowhere", "`ceph osd pool application enable nowhere"]),
        ("coded", ["'coded' is erasure-coded", "`ceph osd pool create NAME"]),
        ("one", ["'one' keeps 1 copy", "size 3"]),
    ] {
        site.configure(&["n1", "n2"], &format!("[ledger]\npool = \"{pool}\""));
        let refused = site.guardian(&["ledger"]).expect(2);
        print!("{}", refused.stderr);
        assert!(names.iter().all(|name| refused.stderr.contains(name)), "{}", refused.stderr);
        assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
        let doctor = site.guardian(&["doctor"]).expect(1).json;
        let told = |check: &serde_json::Value| {
            check["verdict"] == "fail"
                && names.iter().all(|name| check["detail"].as_str().unwrap().contains(name))
        };
        assert!(doctor.as_array().unwrap().iter().any(told), "{doctor:#}");
    }
}

/// Does nothing but in the lab.
#[test]
fn inside_the_lab() -> Result<()> {
    let Some(facts) = inside::facts()? else {
        return Ok(());
    };
    let keyring = facts["keyring"].as_str().ok_or("no keyring")?;
    let pool = facts["pool"].as_i64().ok_or("no pool")?;
    let (a, b) = (Guardian::start("a", keyring, pool)?, Guardian::start("b", keyring, pool)?);
    nobody_but_a_leader_creates_it(&a)?;
    every_record_comes_back_as_it_was(&a)?;
    a_deposed_leader_writes_nothing(&a, &b)?;
    a_record_changed_meanwhile_is_not_written_over(&a)?;
    an_absent_record_is_compared_too(&a)?;
    requests_need_no_leader_and_change_nothing_else(&a, &b)?;
    the_trail_is_bounded_and_in_step(&a)?;
    one_of_two_bidders_has_the_lease(&a, &b)?;
    silence_is_unknown_and_ends(&a)?;
    the_load_is_read_in_time(&a)?;
    a_snapshot_is_of_one_moment(&a, &b)?;
    strangers::what_others_write_costs_no_record(&a)?;
    what_is_newer_or_damaged_is_not_written(&a)
}

/// One guardian's connection.
struct Guardian {
    name: &'static str,
    cluster: Cluster,
    pool: i64,
    ledger: Ledger,
}

impl Guardian {
    fn start(name: &'static str, keyring: &str, pool: i64) -> Result<Self> {
        let conf = env::var_os("CEPH_CONF").map(Into::into);
        let options = Options { conf, keyring: Some(keyring.into()), timeout: LONG, ..Options::default() };
        let cluster = Cluster::connect(&options)?;
        let config = LedgerConfig { audit_entries: KEPT, ..LedgerConfig::default() };
        let ledger = Ledger::open(&cluster, &config, &long())?;
        Ok(Self { name, cluster, pool, ledger })
    }

    fn read(&self) -> Result<Snapshot> {
        Ok(self.ledger.read(&long())?)
    }

    fn lead(&self) -> Result<(Leadership, Snapshot)> {
        let mut snapshot = self.read()?;
        let leadership = self.ledger.lead(&mut snapshot, &self.bid(), "a test", &long())?;
        assert_eq!(snapshot, self.read()?, "what was written is known without a read");
        Ok((leadership, snapshot))
    }

    fn bid(&self) -> Bid {
        Bid {
            guardian: self.name.to_owned(),
            host: "admin".to_owned(),
            addresses: [client(1, 7)].into(),
            at: Timestamp::now(),
        }
    }

    fn write(
        &self,
        leadership: &Leadership,
        snapshot: &mut Snapshot,
        changes: &[Change],
    ) -> std::result::Result<(), LedgerWriteError> {
        self.ledger.write(leadership, snapshot, changes, &deed(), &long())
    }

    /// Past the rules, as another program might.
    fn raw(&self, object: &str, write: &OmapWrite) -> Result<std::result::Result<(), Errno>> {
        let mut io = IoCtx::open(&self.cluster, self.pool)?;
        io.set_namespace(NAMESPACE)?;
        let (to, results) = channel();
        io.omap_write(object, write, 0, &to)?;
        Ok(results.recv_timeout(LONG)?.result)
    }

    /// The keys of the trail that there are, whatever the ledger says of them.
    fn audit_keys(&self) -> Result<u64> {
        let mut io = IoCtx::open(&self.cluster, self.pool)?;
        io.set_namespace(NAMESPACE)?;
        let (to, results) = channel();
        io.omap_page(OBJECT, c"", 1000, 0, &to)?;
        let page = results.recv_timeout(LONG)?.result?;
        Ok(page.entries.iter().filter(|(key, _)| key.starts_with("audit/")).count() as u64)
    }

    fn exists(&self, object: &str) -> Result<bool> {
        let mut io = IoCtx::open(&self.cluster, self.pool)?;
        io.set_namespace(NAMESPACE)?;
        let (to, results) = channel();
        io.stat(object, 0, &to)?;
        Ok(results.recv_timeout(LONG)?.result.is_ok())
    }
}

fn long() -> Deadline {
    Deadline::after(LONG, Arc::default())
}

fn deed() -> TrailEntry {
    TrailEntry { at: Timestamp::now(), what: "writes".to_owned(), why: "a test".to_owned() }
}

fn client(host: u32, nonce: u32) -> ClientAddr {
    ClientAddr { ip: std::net::Ipv4Addr::from_bits(0x0a4d_0000 + host).into(), nonce }
}

fn fence(id: &str, entries: impl IntoIterator<Item = Entry>) -> FenceRecord {
    FenceRecord {
        overrides: Overrides { accept_incomplete: true, ..Overrides::default() },
        id: id.into(),
        member: Some("n1".to_owned()),
        state: FenceState::Sealed,
        entries: entries.into_iter().map(|entry| (entry, Some(Timestamp::MAX))).collect(),
        coverage: Coverage::KnownClients,
        in_doubt: [Entry::HostRange(client(1, 0).ip)].into(),
        evidence: vec!["no heartbeat for 20 s".to_owned()],
        reason: Some("healing".to_owned()),
        proofs: vec![Proof { id: 3, pool: "images".to_owned(), pgs: 8, epoch: OsdEpoch(99) }],
        by: "a on admin".to_owned(),
        since: Timestamp::now(),
        sealed: Some(Timestamp::now()),
        breaches: Vec::new(),
        marks: [("boot".to_owned(), Duration::from_millis(1_234_567))].into(),
        seen: [client(1, 9)].into(),
        released: Some(Timestamp::now()),
        dead: [client(1, 8)].into(),
        removals: Vec::new(),
        sent: BTreeMap::new(),
        refused_by: BTreeSet::new(),
    }
}

fn member(name: &str, clients: impl IntoIterator<Item = ClientAddr>) -> MemberRecord {
    MemberRecord {
        others: Some(BTreeSet::new()),
        interfaces: None,
        beside: BTreeMap::new(),
        name: name.to_owned(),
        addresses: [(client(1, 0).ip, [Source::Watcher, Source::Session].into())].into(),
        clients: clients.into_iter().collect(),
        machine: Some("4c4c4544".to_owned()),
        uptime: Some(UptimeSample { uptime: Duration::from_secs(86_400), at: Timestamp::now() }),
    }
}

fn put(record: FenceRecord) -> Change {
    Change::Put(Record::Fence(record))
}

fn nobody_but_a_leader_creates_it(a: &Guardian) -> Result<()> {
    let mut snapshot = a.read()?;
    assert_eq!(a.ledger.may_write(&long()), Ok(()));
    assert_eq!(a.ledger.holder(&long())?, None);
    assert!(snapshot.is_empty() && !a.exists(OBJECT)?, "looking makes nothing");
    let probed = "ledger.doctor.nobody";
    assert!(!a.exists(probed)?, "nor does trying whether a write is allowed");

    let leadership = a.ledger.lead(&mut snapshot, &a.bid(), "the first", &long())?;
    assert_eq!(leadership.leader().epoch, LeaderEpoch(1));
    assert!(a.exists(OBJECT)?);
    assert_eq!(a.read()?.records().leader.as_ref(), Some(leadership.leader()));
    // The snapshot of before the first leader is no licence to lead as the first one again.
    let again = a.ledger.lead(&mut Snapshot::default(), &a.bid(), "again", &long());
    assert!(matches!(again, Err(LedgerWriteError::Conflict { .. })), "{again:?}");
    Ok(())
}

fn every_record_comes_back_as_it_was(a: &Guardian) -> Result<()> {
    let (leadership, mut snapshot) = a.lead()?;
    let entries = [
        Entry::Host(client(1, 0).ip),
        Entry::Client(client(1, 7)),
        Entry::Client(ClientAddr { ip: "fd77::5".parse()?, nonce: 9 }),
    ];
    let records = [
        Record::Gate(GateRecord {
            epoch: GateEpoch(7),
            open: ["n2".to_owned()].into(),
            ..GateRecord::default()
        }),
        Record::Member(member("n1", [client(1, 7), client(1, 8)])),
        Record::Fence(fence("F-1", entries)),
        Record::Request(RequestRecord {
            id: "R-1".to_owned(),
            request: Request::Fence {
                target: Target::Addresses(BTreeSet::from([Entry::Host([10, 0, 0, 1].into())])),
                overrides: Overrides { accept_incomplete: true, ..Overrides::default() },
                reason: Some("cable".to_owned()),
                by: "b on n2".to_owned(),
            },
            at: Timestamp::now(),
            patience: Duration::from_millis(1500),
            taken: Some(LeaderEpoch(3)),
            answer: Some(json!({"refused": [{"code": "storm-brake", "reason": "two"}]})),
        }),
    ];
    let changes: Vec<Change> = records.iter().cloned().map(Change::Put).collect();
    a.write(&leadership, &mut snapshot, &changes)?;
    let mut expected = Records { leader: Some(leadership.leader().clone()), ..Records::default() };
    changes.into_iter().for_each(|change| expected.apply(change));
    let read = a.read()?;
    assert_eq!(read.records(), &expected);
    assert_eq!((read.unread(), read.newer()), (&BTreeMap::new(), None));
    assert_eq!(read, snapshot);

    let removals: Vec<Change> = records.iter().map(|record| Change::Remove(record.key())).collect();
    a.write(&leadership, &mut snapshot, &removals)?;
    let left = Records { leader: Some(leadership.leader().clone()), ..Records::default() };
    assert_eq!((a.read()?.records(), snapshot.records()), (&left, &left));
    Ok(())
}

/// INV-7: what counts is the leader record at the moment of the write, whatever the writer believes or has read.
fn a_deposed_leader_writes_nothing(a: &Guardian, b: &Guardian) -> Result<()> {
    let (old, mut stale) = a.lead()?;
    let (new, mut fresh) = b.lead()?;
    assert_eq!(new.leader().epoch, old.leader().epoch.next());
    let deposed = Err(LedgerWriteError::Deposed { by: Some(new.leader().clone()) });
    let change = [put(fence("F-deposed", []))];
    assert_eq!(a.write(&old, &mut stale, &change), deposed);
    assert_eq!(stale, b.read()?, "it was read anew, to say who leads");
    assert_eq!(a.write(&old, &mut stale, &change), deposed, "and what it reads does not make it the leader");
    assert_eq!(a.write(&old, &mut stale, &[]), deposed, "nor may it write to the trail");
    assert_eq!(b.read()?.records().fences, BTreeMap::new());
    b.write(&new, &mut fresh, &change)?;
    assert!(b.read()?.records().fences.contains_key("F-deposed"));
    Ok(())
}

/// A fence's record, with what it must have.
fn record_of(id: &str, state: &str) -> Vec<u8> {
    let rest = r#""by":"x","since":"2026-01-01T00:00:00Z","member":null,"entries":{},"in_doubt":[],"breaches":[],"seen":[]"#;
    format!(r#"{{"v":1,"id":"{id}","state":"{state}",{rest}}}"#).into_bytes()
}

fn a_record_changed_meanwhile_is_not_written_over(a: &Guardian) -> Result<()> {
    let (leadership, mut snapshot) = a.lead()?;
    a.write(&leadership, &mut snapshot, &[put(fence("F-1", [])), put(fence("F-2", []))])?;
    // As the answer of a request changes under a leader that does not know: same leader, another record.
    let other = record_of("F-1", "released");
    a.raw(OBJECT, &OmapWrite { set: [("fence/F-1".to_owned(), other)].into(), ..OmapWrite::default() })??;
    let mut changed = fence("F-2", []);
    changed.state = FenceState::Breached;
    let both = [put(changed), Change::Remove(Key::Fence("F-1".into()))];
    let key = "fence/F-1".to_owned();
    assert_eq!(a.write(&leadership, &mut snapshot, &both), Err(LedgerWriteError::Conflict { key }));
    let now = a.read()?;
    assert_eq!(now.records().fences["F-2"].state, FenceState::Sealed, "all or nothing");
    assert_eq!(now.records().fences["F-1"].state, FenceState::Released);
    assert_eq!(snapshot, now, "so that the next try begins with what is there");
    a.write(&leadership, &mut snapshot, &both)?;
    assert_eq!(a.read()?.records().fences["F-2"].state, FenceState::Breached);

    // A write of this very leader that it never heard the answer of.
    let mut before = snapshot.clone();
    a.write(&leadership, &mut snapshot, &[])?;
    let key = "trail".to_owned();
    assert_eq!(a.write(&leadership, &mut before, &[]), Err(LedgerWriteError::Conflict { key }));
    Ok(())
}

fn an_absent_record_is_compared_too(a: &Guardian) -> Result<()> {
    let (leadership, mut snapshot) = a.lead()?;
    let value = record_of("F-3", "intended");
    a.raw(OBJECT, &OmapWrite { set: [("fence/F-3".to_owned(), value)].into(), ..OmapWrite::default() })??;
    let key = "fence/F-3".to_owned();
    let written = a.write(&leadership, &mut snapshot, &[put(fence("F-3", []))]);
    assert_eq!(
        written,
        Err(LedgerWriteError::Conflict { key: key.clone() }),
        "there is one, and none was read"
    );
    a.raw(OBJECT, &OmapWrite { remove: [key.clone()].into(), ..OmapWrite::default() })??;
    let written = a.write(&leadership, &mut snapshot, &[put(fence("F-3", []))]);
    assert_eq!(written, Err(LedgerWriteError::Conflict { key }), "one was read, and there is none");
    a.write(&leadership, &mut snapshot, &[put(fence("F-3", []))])?;
    Ok(())
}

fn requests_need_no_leader_and_change_nothing_else(a: &Guardian, b: &Guardian) -> Result<()> {
    let (leadership, mut snapshot) = a.lead()?;
    let mut seen = b.read()?;
    let request = RequestRecord {
        id: "R-2".to_owned(),
        request: Request::Release {
            fence: "n1".to_owned(),
            since: None,
            assert_powered_off: true,
            reason: None,
            by: "b".to_owned(),
        },
        at: Timestamp::now(),
        patience: Duration::from_secs(60),
        taken: None,
        answer: None,
    };
    b.ledger.ask(&mut seen, request.clone(), &long())?;
    let twice = b.ledger.ask(&mut seen.clone(), request.clone(), &long());
    assert_eq!(twice, Err(LedgerWriteError::Conflict { key: "request/R-2".to_owned() }));
    // The leader's next write is not disturbed by it.
    a.write(&leadership, &mut snapshot, &[])?;
    let now = a.read()?;
    assert_eq!(now.records().requests["R-2"], request);
    assert_eq!(b.ledger.glance(&long())?.records().requests["R-2"], request);

    // The leader, which has read everything else before, finds it and takes it; whoever asked may not take it back then.
    assert!(!snapshot.records().requests.contains_key("R-2"));
    a.ledger.requests(&mut snapshot, &long())?;
    let taken = RequestRecord { taken: Some(leadership.leader().epoch), ..request };
    a.write(&leadership, &mut snapshot, &[Change::Put(Record::Request(taken.clone()))])?;
    let late = b.ledger.withdraw(&mut seen, "R-2", &long());
    assert_eq!(late, Err(LedgerWriteError::Conflict { key: "request/R-2".to_owned() }));
    assert_eq!(seen.records().requests["R-2"], taken);
    // Answered and read, it goes, and disturbs nobody either.
    b.ledger.withdraw(&mut seen, "R-2", &long())?;
    a.write(&leadership, &mut snapshot, &[])?;
    a.ledger.requests(&mut snapshot, &long())?;
    assert!(snapshot.records().requests.is_empty());
    Ok(())
}

/// INV-8: no record without its deed, and no deed without its record.
fn the_trail_is_bounded_and_in_step(a: &Guardian) -> Result<()> {
    let (leadership, mut snapshot) = a.lead()?;
    for number in 0..2 * KEPT {
        let deed = TrailEntry { what: format!("deed {number}"), ..deed() };
        a.ledger.write(&leadership, &mut snapshot, &[], &deed, &long())?;
    }
    let trail = a.ledger.trail(&snapshot, u64::MAX, &long())?;
    assert_eq!((trail.len() as u64, snapshot.trail_entries(), a.audit_keys()?), (KEPT, KEPT, KEPT));
    assert!(trail.windows(2).all(|pair| pair[0].seq + 1 == pair[1].seq), "{trail:?}");
    let expected: Vec<String> = (KEPT..2 * KEPT).map(|number| format!("deed {number}")).collect();
    assert_eq!(trail.iter().map(|audit| audit.what.clone()).collect::<Vec<_>>(), expected);
    assert_eq!((trail[0].who.as_str(), trail[0].host.as_str()), ("a", "admin"));
    let last = a.ledger.trail(&snapshot, 3, &long())?;
    assert_eq!(last, trail[trail.len() - 3..]);

    // A write that is refused leaves no entry; one with a shorter bound drops the rest at once.
    let other = OmapWrite { set: [("fence/F-9".to_owned(), b"{}".to_vec())].into(), ..OmapWrite::default() };
    a.raw(OBJECT, &other)??;
    a.write(&leadership, &mut snapshot, &[put(fence("F-9", []))]).unwrap_err();
    assert_eq!((a.ledger.trail(&snapshot, u64::MAX, &long())?, a.audit_keys()?), (trail, KEPT));
    let remove = OmapWrite { remove: ["fence/F-9".to_owned()].into(), ..OmapWrite::default() };
    a.raw(OBJECT, &remove)??;
    let shorter = LedgerConfig { audit_entries: 10, ..LedgerConfig::default() };
    let shorter = Ledger::open(&a.cluster, &shorter, &long())?;
    shorter.write(&leadership, &mut snapshot, &[], &deed(), &long())?;
    assert_eq!((a.ledger.trail(&snapshot, u64::MAX, &long())?.len(), a.audit_keys()?), (10, 10));
    Ok(())
}

fn one_of_two_bidders_has_the_lease(a: &Guardian, b: &Guardian) -> Result<()> {
    let seconds = Duration::from_secs(3);
    let lease = a.ledger.lease("a", seconds, &long())?;
    assert_eq!(b.ledger.lease("b", seconds, &long()), Err(LeaseError::Held));
    assert_eq!(a.ledger.lease("a", seconds, &long()).as_ref(), Ok(&lease), "asked again, it is renewed");
    let holder = b.ledger.holder(&long())?.ok_or("nobody holds it")?;
    assert_eq!((holder.cookie.as_str(), holder.client), ("a", format!("client.{}", a.cluster.instance_id())));
    assert_eq!(holder.address.to_string(), a.cluster.addresses()?);

    // Renewed for longer than it was given: nobody else gets it.
    let began = Instant::now();
    while began.elapsed() < 2 * seconds {
        a.ledger.renew(&lease, &long())?;
        assert_eq!(b.ledger.lease("b", seconds, &long()), Err(LeaseError::Held));
    }
    // Not renewed any more: the other one gets it, and the first one hears of it.
    let began = Instant::now();
    let taken = wait_for("the end of the lease", LONG, || match b.ledger.lease("b", LONG, &long()) {
        Ok(lease) => Ok(Some(lease)),
        Err(LeaseError::Held) => Ok(None),
        Err(error) => Err(error.into()),
    })?;
    println!("a lease of {seconds:?} was over after {:?}", began.elapsed());
    assert_eq!(a.ledger.renew(&lease, &long()), Err(LeaseError::Lost));
    assert_eq!(a.ledger.give_up(lease, &long()), Ok(()), "what is lost can be given up");
    assert_eq!(b.ledger.holder(&long())?.ok_or("nobody")?.cookie, "b", "but not another's");
    b.ledger.give_up(taken, &long())?;
    assert_eq!(b.ledger.holder(&long())?, None);
    let next = a.ledger.lease("a", LONG, &long())?;
    a.ledger.give_up(next, &long())?;
    Ok(())
}

/// INV-9: no answer is neither yes nor no, comes in time, and does not last.
fn silence_is_unknown_and_ends(a: &Guardian) -> Result<()> {
    let (leadership, mut snapshot) = a.lead()?;
    let patience = Duration::from_secs(2);
    let soon = || Deadline::after(patience, Arc::default());
    inside::ask(STOP)?;
    let began = Instant::now();
    let change = [put(fence("F-silent", []))];
    let known = snapshot.clone();
    let written = a.ledger.write(&leadership, &mut snapshot, &change, &deed(), &soon());
    assert_eq!((written, &snapshot), (Err(LedgerWriteError::Unknown), &known));
    assert!(matches!(a.ledger.read(&soon()), Err(LedgerReadError::Silent { .. })));
    assert_eq!(a.ledger.lease("a", LONG, &soon()), Err(LeaseError::Unknown));
    assert!(began.elapsed() < 3 * patience + SLACK, "took {:?}", began.elapsed());
    inside::ask(CONT)?;

    let mut now = a.read()?;
    println!("the write nobody answered was done: {}", now != known);
    match a.write(&leadership, &mut now, &change) {
        // The one without an answer came in between.
        Err(LedgerWriteError::Conflict { .. }) => a.write(&leadership, &mut now, &change)?,
        other => other?,
    }
    assert!(a.read()?.records().fences.contains_key("F-silent"));
    let lease = a.ledger.lease("a", LONG, &long())?;
    a.ledger.give_up(lease, &long())?;
    Ok(())
}

/// Issue 4's load: 5,000 held client entries, 200 fences; with a full trail besides.
fn the_load_is_read_in_time(a: &Guardian) -> Result<()> {
    let (leadership, mut snapshot) = a.lead()?;
    for batch in 0..4 {
        let fences = (batch * 50..batch * 50 + 50).map(|number| {
            let entries = (1..=25).map(|nonce| Entry::Client(client(number, number * 1000 + nonce)));
            put(fence(&format!("F-{number:06}"), entries))
        });
        a.write(&leadership, &mut snapshot, &fences.collect::<Vec<_>>())?;
    }
    for number in 0..3 {
        let name = format!("incus-n{number}");
        let member = member(&name, (1..=20).map(|nonce| client(number, nonce)));
        a.write(&leadership, &mut snapshot, &[Change::Put(Record::Member(member))])?;
    }
    let full = Ledger::open(&a.cluster, &LedgerConfig::default(), &long())?;
    while snapshot.trail_entries() < 1000 {
        full.write(&leadership, &mut snapshot, &[], &deed(), &long())?;
    }
    let began = Instant::now();
    let read = a.read()?;
    let took = began.elapsed();
    let began = Instant::now();
    let trail = a.ledger.trail(&read, u64::MAX, &long())?;
    let clients: usize = read.records().fences.values().map(|fence| fence.entries.len()).sum();
    println!(
        "{} keys, {} bytes of records: {} fences with {clients} entries: read in {took:?}; a trail \
         of {} in {:?}",
        read.keys(),
        read.bytes(),
        read.records().fences.len(),
        trail.len(),
        began.elapsed(),
    );
    assert!(clients >= 5000 && trail.len() == 1000);
    assert!(took < Duration::from_secs(5), "restart to ready in 5 s is not possible: {took:?}");

    let mut times = Vec::new();
    for number in 0..20 {
        let change = [put(fence(&format!("F-{number:06}"), [Entry::Client(client(number, 1))]))];
        let began = Instant::now();
        full.write(&leadership, &mut snapshot, &change, &deed(), &long())?;
        times.push(began.elapsed());
    }
    times.sort();
    println!("a write: median {:?}, worst {:?}", times[times.len() / 2], times[times.len() - 1]);
    Ok(())
}

/// More records than an OSD gives at once, all while they are written: the first and the last one always belong together.
fn a_snapshot_is_of_one_moment(a: &Guardian, b: &Guardian) -> Result<()> {
    const READS: u32 = 20;
    let (leadership, mut snapshot) = a.lead()?;
    for batch in 0..6 {
        let many = (0..200).map(|number| put(fence(&format!("G-{batch}-{number}"), [])));
        a.write(&leadership, &mut snapshot, &many.collect::<Vec<_>>())?;
    }
    let stop = AtomicBool::new(false);
    let (reads, writes) = thread::scope(|scope| {
        let writer = scope.spawn(|| -> std::result::Result<u64, LedgerWriteError> {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let mut first = fence("0-first", []);
                first.by = round.to_string();
                let mut last = member("z-last", []);
                last.machine = Some(round.to_string());
                a.write(&leadership, &mut snapshot, &[put(first), Change::Put(Record::Member(last))])?;
            }
            Ok(round)
        });
        let mut reads = 0;
        let mut disagree = None;
        while reads < READS && disagree.is_none() {
            let Ok(read) = b.ledger.read(&long()) else { break };
            let first = read.records().fences.get("0-first").map(|fence| fence.by.clone());
            let last = read.records().members.get("z-last").and_then(|member| member.machine.clone());
            if first != last {
                disagree = Some((first, last));
            }
            reads += 1;
        }
        stop.store(true, Ordering::Relaxed);
        let writes = writer.join().unwrap();
        assert_eq!(disagree, None, "after {reads} reads");
        (reads, writes)
    });
    println!("{reads} reads of more than one page while {} writes went on", writes.clone()?);
    assert!(reads == READS && writes? > 10);
    Ok(())
}

/// Leaves the ledger so that nothing can be written any more: the last one.
fn what_is_newer_or_damaged_is_not_written(a: &Guardian) -> Result<()> {
    let (leadership, mut snapshot) = a.lead()?;
    let set = |key: &str, value: &str| {
        let set = [(key.to_owned(), value.as_bytes().to_vec())].into();
        a.raw(OBJECT, &OmapWrite { set, ..OmapWrite::default() })
    };
    set("fence/damaged", "{\"v\":1,\"id\":")??;
    let mut read = a.read()?;
    let written = a.write(&leadership, &mut read, &[put(fence("damaged", []))]);
    assert!(matches!(written, Err(LedgerWriteError::Damaged { .. })), "{written:?}");
    a.write(&leadership, &mut read, &[put(fence("F-beside", []))])?;

    // A newer guardian raises the form only: one that read before writes nothing after.
    let known = VERSION;
    let found = known + 1;
    set("meta", &format!("{{\"v\":{found}}}"))??;
    for snapshot in [&mut snapshot, &mut read] {
        let written = a.write(&leadership, snapshot, &[]);
        assert_eq!(written, Err(LedgerWriteError::NewerLedger { found, known }));
    }
    let led = a.ledger.lead(&mut read, &a.bid(), "a test", &long());
    assert_eq!(led, Err(LedgerWriteError::NewerLedger { found, known }));
    set("meta", &format!("{{\"v\":{known}}}"))??;

    let member = json!({"v": 9, "name": "newer", "addresses": {}, "clients": [], "machine": "known", "soul": "unknown"});
    set("member/newer", &member.to_string())??;
    set("fence/newer", "{\"v\":9,\"identity\":\"newer\"}")??;
    let mut read = a.read()?;
    assert_eq!(read.records().members["newer"].machine.as_deref(), Some("known"));
    assert!(read.unread().contains_key("fence/newer"));
    let written = a.write(&leadership, &mut read, &[put(fence("F-other", []))]);
    assert_eq!(written, Err(LedgerWriteError::NewerLedger { found: 9, known }));
    assert!(!a.read()?.records().fences.contains_key("F-other"));
    Ok(())
}
