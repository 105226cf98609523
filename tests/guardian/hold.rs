//! The hold: entries of others, who removed one, and clients that appear later.

use std::time::Duration;

use rbd_guardian::domain::addr::{ClientAddr, EntityAddr, Entry};
use rbd_guardian::domain::guardian::io::{Effect, Request};
use rbd_guardian::domain::guardian::report::Alarm;
use rbd_guardian::domain::origin::Origin;
use rbd_guardian::domain::plan::{Coverage, Target};
use rbd_guardian::domain::record::{FenceRecord, FenceState, Removal};
use rbd_guardian::domain::world::{Daemon, DaemonKind, Role};

use crate::model::Model;
use crate::{SECOND, healthy, sealed};

const YEAR: u64 = 31_556_952;

fn client(text: &str) -> ClientAddr {
    text.parse::<EntityAddr>().unwrap().client().unwrap()
}

fn list(model: &mut Model, entry: &str, seconds: u64) {
    let until = model.now().wall + Duration::from_secs(seconds);
    model.change(|map| map.blocklist.entries.extend([(entry.parse().unwrap(), until)]));
}

fn orphans(model: &Model) -> Vec<Alarm> {
    model.guardian.alarms().into_iter().filter(|alarm| alarm.code == "orphan-entry").collect()
}

fn origins(model: &Model) -> Vec<(String, Origin)> {
    let others = model.guardian.status(model.now()).others;
    others.into_iter().map(|other| (other.entry.to_string(), other.origin)).collect()
}

fn record(model: &Model) -> &FenceRecord {
    model.ledger.fences.values().next().unwrap()
}

#[test]
fn entries_of_other_tools_are_listed_and_no_alarm() {
    let mut model = sealed("n2");
    list(&mut model, "10.0.0.1:6800/77", 86_400);
    list(&mut model, "10.0.0.1:0/78", 86_400); // At the same moment.
    list(&mut model, "10.0.0.3:0/5", 3600);
    let until = model.now().wall + Duration::from_secs(5 * YEAR);
    model.change(|map| map.blocklist.ranges.extend([("10.9.0.0/16".parse().unwrap(), until)]));
    model.run(15 * SECOND);
    assert_eq!(orphans(&model), []);
    let expected = [
        ("10.0.0.1:0/78", Origin::Daemon),
        ("10.0.0.1:6800/77", Origin::Daemon),
        ("10.0.0.3:0/5", Origin::LockBreak),
        ("10.9.0.0/16", Origin::Network),
    ];
    assert_eq!(origins(&model), expected.map(|(entry, origin)| (entry.to_owned(), origin)));
}

#[test]
fn what_looks_like_a_guardians_and_is_in_no_record_is_an_alarm_with_the_command() {
    let mut model = healthy();
    // A cover that a killed fence left, a late whole host, and a late client that is dead.
    list(&mut model, "10.0.7.7:0/0", 5 * YEAR);
    list(&mut model, "10.0.0.2:0/0", 5 * YEAR);
    list(&mut model, "10.0.0.3:0/12345", 5 * YEAR);
    model.until("told", |model| orphans(model).len() == 2);
    let told: Vec<_> = orphans(&model).into_iter().map(|alarm| (alarm.member, alarm.advice)).collect();
    let advice = |entry: &str| vec![format!("if nobody needs it: ceph osd blocklist rm {entry}")];
    assert_eq!(told, [(Some("n2".to_owned()), advice("10.0.0.2:0/0")), (None, advice("10.0.7.7:0/0"))]);
    // One of a client that is alive.
    list(&mut model, "10.0.0.3:0/300", 5 * YEAR);
    model.until("told", |model| orphans(model).len() == 3);
    model.remove_entry("10.0.7.7:0/0");
    model.until("over", |model| orphans(model).len() == 2);
}

#[test]
fn inv4_the_entries_of_a_released_fence_are_no_orphans_also_when_it_is_fenced_again() {
    let mut model = sealed("n2");
    model.run(60 * SECOND);
    model.bring_back("n2", 20 * SECOND);
    model.until("released", |model| model.state("n2") == "watching" && !model.refuses("n2"));
    model.run(15 * SECOND);
    assert_eq!((origins(&model), orphans(&model)), (vec![], vec![]));
    let old = Entry::Client(client("10.0.0.2:0/200"));
    model.uses.iter_mut().for_each(|one| one.watchers.retain(|watcher| watcher.nonce != 200));
    model.run(100 * SECOND);
    model.lose("n2");
    model.run(3 * SECOND);
    model.heal_is_refused("n2");
    model.until("sealed again", |model| model.seals().contains("n2"));
    assert!(record(&model).entries.contains_key(&old), "{:?}", record(&model).entries);
    model.run(5 * SECOND);
    assert_eq!(origins(&model), []);
}

#[test]
fn inv3_who_removed_the_entry_is_told_and_recorded() {
    let mut model = sealed("n2");
    let at = model.now().wall;
    let removal = |entry: &str, address: &str| Removal {
        at,
        entity: "client.admin".to_owned(),
        address: address.to_owned(),
        entry: Some(entry.parse().unwrap()),
    };
    let culprit = removal("10.0.0.2:0/0", "10.0.0.8:0/4711");
    // Another entry, and one that this guardian removed itself.
    model.removals =
        Some(vec![removal("10.0.0.3:0/0", "10.0.0.8:0/4711"), removal("10.0.0.2:0/0", "10.0.0.9:0/9")]);
    model.remove_entry("10.0.0.2:0/0");
    model.until("sealed again", |model| model.refuses("n2") && model.state("n2") == "sealed");
    model.run(2 * SECOND);
    assert_eq!(record(&model).removals, [], "the log is behind");
    model.removals.as_mut().unwrap().push(culprit.clone());
    model.until("recorded", |model| record(model).removals == [culprit.clone()]);
    let told = |model: &Model| model.logs().iter().filter(|line| line.starts_with("breached-by")).count();
    assert_eq!(told(&model), 1, "{:#?}", model.logs());
    assert!(
        model.logs().iter().any(|line| line.contains("client.admin at 10.0.0.8:0/4711 removed 10.0.0.2:0/0"))
    );
    model.until("open", |model| model.seals().contains("n2"));
    let tampered = |model: &Model| model.guardian.alarms().into_iter().find(|alarm| alarm.code == "tampered");
    assert!(
        tampered(&model).unwrap().text.contains("client.admin at 10.0.0.8:0/4711"),
        "for as long as it is held"
    );
    let asked = model.effects.iter().filter(|effect| matches!(effect, Effect::ReadAudit(_))).count();
    assert!((2..20).contains(&asked), "{asked}");
    model.run(60 * SECOND);
    assert_eq!(told(&model), 1);
}

#[test]
fn inv3_a_log_that_cannot_be_read_holds_up_nothing() {
    let mut model = sealed("n2");
    model.removals = None;
    model.remove_entry("10.0.0.2:0/0");
    model.until("open", |model| model.refuses("n2") && model.seals().contains("n2"));
    model.run(20 * SECOND);
    let told: Vec<_> = model.logs().into_iter().filter(|line| line.starts_with("breached-by")).collect();
    assert!(told.len() == 1 && told[0].contains("not known: does not answer"), "{told:#?}");
    let asked =
        |model: &Model| model.effects.iter().filter(|effect| matches!(effect, Effect::ReadAudit(_))).count();
    let before = asked(&model);
    model.run(60 * SECOND);
    assert_eq!(asked(&model), before, "for a while only");
}

/// `n2` has the only mgr, so that only its known clients may be fenced; sealed, and open by the operator's acceptance.
fn known_clients() -> Model {
    let mut model = Model::new();
    model.daemons = vec![Daemon {
        kind: DaemonKind::Mgr,
        name: "x".to_owned(),
        ips: vec!["10.0.0.2".parse().unwrap()],
        role: Role::Active,
        clients: vec![client("10.0.0.2:0/999")],
    }];
    model.sessions.insert(client("10.0.0.2:0/999"));
    model.run(10 * SECOND);
    model.lose("n2");
    model.run(3 * SECOND);
    let target = Target::Member("n2".to_owned());
    model.ask(
        1,
        Request::Fence {
            target,
            accept_incomplete: true,
            over_brake: false,
            reason: None,
            by: "root@h".to_owned(),
        },
    );
    model.until("open", |model| model.seals().contains("n2"));
    assert!(!model.refuses("n2"));
    assert_eq!(record(&model).coverage, Coverage::KnownClients);
    model
}

#[test]
fn inv1_a_client_that_appears_where_only_known_ones_are_fenced_is_fenced_with_the_gate_closed() {
    let mut model = known_clients();
    let (late, since) = (client("10.0.0.2:0/201"), model.effects.len());
    model.sessions.insert(late);
    model.silent = [3].into();
    model.until("refused", |model| model.map().blocklist.refuses(late));
    model.run(10 * SECOND);
    assert_eq!((model.seals().len(), model.state("n2")), (0, "pending"), "not proved yet");
    model.silent.clear();
    model.until("open", |model| model.seals().contains("n2"));
    let record = record(&model);
    assert_eq!((record.state, record.seen.contains(&late)), (FenceState::Sealed, true));
    assert!(record.entries[&Entry::Client(late)].is_some());
    let effects: Vec<String> = model.effects[since..].iter().map(|effect| format!("{effect:?}")).collect();
    let at = |what: &str| effects.iter().position(|effect| effect.contains(what)).unwrap();
    let recorded = effects.iter().position(|e| e.starts_with("Record") && e.contains("nonce: 201")).unwrap();
    assert!(recorded < at("Add("), "recorded first");
    assert!(!model.audit.iter().any(|what| what.ends_with("breached")), "{:?}", model.audit);
    assert!(!model.map().blocklist.refuses(client("10.0.0.2:0/999")), "the mgr's own client");
    // The mgr's new client uses an image before the mgr tells of it: told by the time it is seen again.
    let module = client("10.0.0.2:0/1000");
    model.uses[0].watchers.push(module.into());
    let looks = |model: &Model| model.effects.iter().filter(|effect| **effect == Effect::Look).count();
    let before = looks(&model);
    model.until("a look", |model| looks(model) > before);
    model.daemons[0].clients.push(module);
    model.run(30 * SECOND);
    assert!(!model.map().blocklist.refuses(module));
}

#[test]
fn a_breach_while_a_client_is_chased_is_a_breach() {
    let mut model = known_clients();
    model.sessions.insert(client("10.0.0.2:0/201"));
    model.silent = [3].into();
    model.until("pending", |model| model.state("n2") == "pending");
    model.remove_entry("10.0.0.2:0/200");
    model.until("put back", |model| model.map().blocklist.refuses(client("10.0.0.2:0/200")));
    assert!(model.audit.iter().any(|what| what.ends_with("breached")), "{:?}", model.audit);
    model.silent.clear();
    model.until("open", |model| model.seals().contains("n2"));
}

#[test]
fn inv5_a_client_that_is_chased_puts_off_no_proof_of_a_reboot() {
    let mut model = known_clients();
    model.uses.retain(|one| !one.image.name.ends_with("c2"));
    model.run(120 * SECOND);
    model.sessions.insert(client("10.0.0.2:0/201"));
    model.until("chased", |model| model.map().blocklist.refuses(client("10.0.0.2:0/201")));
    model.run(10 * SECOND);
    model.bring_back("n2", 30 * SECOND);
    model.until("released", |model| record(model).state == FenceState::Released);
    for nonce in [200, 201] {
        assert!(model.map().blocklist.refuses(client(&format!("10.0.0.2:0/{nonce}"))), "INV-4");
        assert!(record(&model).entries.contains_key(&Entry::Client(client(&format!("10.0.0.2:0/{nonce}")))));
    }
}

#[test]
fn inv4_a_client_seen_for_a_while_under_a_host_entry_has_its_own_before_the_release() {
    let mut model = sealed("n2");
    let seen = client("10.0.0.2:0/201");
    model.sessions.insert(seen);
    model.until("remembered", |model| record(model).seen.contains(&seen));
    model.sessions.clear();
    model.uses.retain(|one| !one.image.name.ends_with("c2"));
    model.run(300 * SECOND);
    assert!(model.seals().contains("n2"), "the whole host is refused: nothing is to be proved");
    model.restart("boot-1");
    model.bring_back("n2", 20 * SECOND);
    model.until("released", |model| model.state("n2") == "watching" && !model.refuses("n2"));
    assert!(model.map().blocklist.refuses(seen));
    assert_eq!(model.seals().len(), 0);
}
