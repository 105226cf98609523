//! Nothing waits in vain without somebody being told what for, since when, and what to do.

use std::time::Duration;

use rbd_guardian_core::fence::step::Step;
use rbd_guardian_core::guardian::io::Effect;
use rbd_guardian_core::guardian::report::Alarm;
use rbd_guardian_core::model::ceph_snapshot::{Daemon, DaemonKind, Role};
use rbd_guardian_core::model::incus_snapshot::{Operation, OperationKind};

use crate::hold::client;
use crate::model::Model;
use crate::{SECOND, healthy, sealed};

fn alarm(model: &Model, code: &str) -> Option<Alarm> {
    model.guardian.alarms().into_iter().find(|alarm| alarm.code == code)
}

/// How often it was told that it began.
fn told(model: &Model, code: &str) -> usize {
    // A state may have the same word.
    let begins = format!("{code} ");
    let its = |line: &&String| line.starts_with(&begins) && !line.contains("pending: waiting");
    model.logs().iter().filter(its).count()
}

/// It is told after so long, with these words, once, and is over when its cause is.
#[track_caller]
fn is_told(model: &mut Model, code: &str, after: Duration, words: &[&str]) {
    let began = model.boot;
    model.until(code, |model| alarm(model, code).is_some());
    let took = model.boot - began;
    assert!(took + 2 * SECOND >= after && took <= after + 15 * SECOND, "{code} after {took:?}");
    model.run(30 * SECOND);
    let alarm = alarm(model, code).unwrap();
    for word in words {
        let said = alarm.text.contains(word) || alarm.advice.iter().any(|advice| advice.contains(word));
        assert!(said, "{word}: {alarm:#?}");
    }
    assert!(alarm.text.contains(" since 2026-11-22T12:"), "{alarm:#?}");
    assert_eq!(told(model, code), 1, "{:#?}", model.logs());
}

/// n2 is lost and refused to be healed.
fn lost(model: &mut Model) {
    model.lose("n2");
    model.run(3 * SECOND);
    model.heal_is_refused("n2");
}

#[test]
fn what_cannot_be_read_elsewhere_keeps_no_gate_closed() {
    let mut model = healthy();
    model.unread =
        ["image incus/container_c1: EIO", "image incus/container_c22: EIO", "pool other: no answer"]
            .map(str::to_owned)
            .to_vec();
    lost(&mut model);
    model.until("open", |model| model.seals().contains("n2"));
    model.run(60 * SECOND);
    assert_eq!((told(&model, "gate-waits"), told(&model, "pending")), (0, 0));
}

#[test]
fn inv2_an_image_of_the_member_that_cannot_be_read_keeps_the_gate_closed_and_is_told() {
    for unread in ["image incus/container_c2: EIO", "pool incus: no answer", "osd dump: no answer"] {
        let mut model = healthy();
        model.unread = vec![unread.to_owned()];
        lost(&mut model);
        model.until("sealed", |model| model.state("n2") == "sealed");
        is_told(&mut model, "gate-waits", 10 * SECOND, &[unread, "n2"]);
        assert!(model.seals().is_empty());
        let waits = model.guardian.status(model.now()).fences[0].waits.clone();
        assert!(waits.is_some_and(|waits| waits.contains(unread)));
        model.unread.clear();
        model.until("open", |model| model.seals().contains("n2"));
        model.until("over", |model| alarm(model, "gate-waits").is_none());
    }
}

#[test]
fn a_user_outside_of_the_fence_is_named_with_what_to_do() {
    let mut model = healthy();
    model.silent = [3].into();
    lost(&mut model);
    // Before the fence is planned it would make the plan incomplete.
    model.until("pending", |model| model.state("n2") == "pending");
    model.silent.clear();
    let image = model.uses.iter_mut().find(|one| one.image.name.ends_with("c2")).unwrap();
    image.watchers.push("10.0.0.77:0/5".parse().unwrap());
    model.until("sealed", |model| model.state("n2") == "sealed");
    let words =
        ["incus/container_c2", "10.0.0.77:0/5", "user.rbd-guardian.ceph-addresses", "guard.admin_hosts"];
    is_told(&mut model, "gate-waits", 10 * SECOND, &words);
}

#[test]
fn a_listing_that_keeps_failing_is_named() {
    let mut model = healthy();
    model.view.instances = None;
    model.run(90 * SECOND);
    let alarm = alarm(&model, "listing-lost").unwrap();
    assert!(alarm.text.contains("instances"), "{alarm:#?}");
    assert_eq!(told(&model, "listing-lost"), 1);
    // What was known before is enough for the gate.
    lost(&mut model);
    model.until("open", |model| model.seals().contains("n2"));
}

#[test]
fn a_gate_that_waits_for_the_first_listing_says_so() {
    let mut model = Model::new();
    model.view.volumes = None;
    model.run(10 * SECOND);
    lost(&mut model);
    model.until("sealed", |model| model.state("n2") == "sealed");
    is_told(&mut model, "gate-waits", 10 * SECOND, &["storage volumes"]);
}

#[test]
fn a_pending_fence_names_its_pgs() {
    let mut model = healthy();
    model.silent = [3].into();
    lost(&mut model);
    is_told(&mut model, "pending", 30 * SECOND, &["1.3", "pool incus", "ceph pg"]);
    model.silent.clear();
    model.until("open", |model| model.seals().contains("n2"));
    model.until("over", |model| alarm(model, "pending").is_none());
}

#[test]
fn a_fence_that_is_wanted_and_not_begun_is_told() {
    let mut model = healthy();
    model.looks_fail = true;
    lost(&mut model);
    is_told(&mut model, "pending", 30 * SECOND, &["the guardian wants", "does not answer", "ceph -s"]);
    assert!(model.ledger.fences.is_empty());
    model.looks_fail = false;
    model.until("open", |model| model.seals().contains("n2"));
    model.until("over", |model| alarm(model, "pending").is_none());
}

#[test]
fn a_key_that_cannot_be_written_is_named() {
    let mut model = healthy();
    model.unwritable = ["n3".to_owned()].into();
    lost(&mut model);
    model.until("sealed", |model| model.state("n2") == "sealed");
    is_told(&mut model, "gate-waits", 10 * SECOND, &["n3", "does not answer"]);
    model.unwritable.clear();
    model.until("over", |model| alarm(model, "gate-waits").is_none());
}

#[test]
fn a_release_names_the_source_it_waits_for() {
    let mut model = sealed("n2");
    model.clients_unread = vec!["sessions of mon.b: no answer".to_owned()];
    model.run(60 * SECOND);
    model.bring_back("n2", 20 * SECOND);
    model.until("releasing", |model| model.state("n2") == "releasing");
    is_told(&mut model, "release-waits", 30 * SECOND, &["sessions of mon.b: no answer"]);
    assert!(model.refuses("n2"));
    model.clients_unread.clear();
    model.until("released", |model| model.state("n2") == "watching" && !model.refuses("n2"));
    model.until("over", |model| alarm(model, "release-waits").is_none());
}

/// One that fails at once was asked as fast as it failed.
#[test]
fn clients_that_could_not_be_read_are_asked_for_after_a_pause_that_grows() {
    let mut model = sealed("n2");
    model.clients_unread = vec!["image incus/container_c2: EIO".to_owned()];
    model.run(60 * SECOND);
    model.bring_back("n2", 20 * SECOND);
    model.until("releasing", |model| model.state("n2") == "releasing");
    let asked = |model: &Model| {
        let asks = |effect: &&Effect| matches!(effect, Effect::Release(_, Step::ReadClients));
        model.effects.iter().filter(asks).count()
    };
    let before = asked(&model);
    model.run(60 * SECOND);
    let times = asked(&model) - before;
    assert!((4..=12).contains(&times), "{times}");
    model.clients_unread.clear();
    model.until("released", |model| model.state("n2") == "watching" && !model.refuses("n2"));
}

#[test]
fn a_release_names_the_operation_or_the_gate_it_waits_for() {
    let mut model = sealed("n2");
    model.run(60 * SECOND);
    let (id, location) = ("0815".to_owned(), "n1".to_owned());
    model.view.operations =
        Some(vec![Operation { id, kind: OperationKind::Start, location, instances: [].into() }]);
    model.bring_back("n2", 20 * SECOND);
    model.until("releasing", |model| model.state("n2") == "releasing");
    is_told(&mut model, "release-waits", 30 * SECOND, &["0815"]);

    let mut model = sealed("n2");
    model.run(60 * SECOND);
    model.unwritable = ["n3".to_owned()].into();
    model.bring_back("n2", 20 * SECOND);
    model.until("releasing", |model| model.state("n2") == "releasing");
    is_told(&mut model, "release-waits", 30 * SECOND, &["n3", "does not answer"]);
}

fn mon(name: &str, role: Role) -> Daemon {
    Daemon {
        kind: DaemonKind::Mon,
        name: name.to_owned(),
        ips: Vec::new(),
        role,
        clients: Vec::new(),
        clients_unknown: false,
    }
}

/// A client that ended watches n2's image, and the gate waits for it.
fn ghost() -> Model {
    let mut model = healthy();
    model.daemons = ["a", "b", "c"].map(|name| mon(name, Role::Plain)).to_vec();
    let image = model.uses.iter_mut().find(|one| one.image.name.ends_with("c2")).unwrap();
    image.watchers.push("10.0.0.3:0/999".parse().unwrap());
    lost(&mut model);
    model.until("sealed", |model| model.state("n2") == "sealed");
    model
}

#[test]
fn a_watch_of_a_client_that_no_monitor_knows_does_not_hold_the_gate_for_ever() {
    let mut model = ghost();
    let began = model.boot;
    model.until("open", |model| model.seals().contains("n2"));
    assert!(model.boot - began >= 60 * SECOND, "one that changes its monitor has no session for a while");
    assert!(model.map().blocklist.entries.contains_key(&"10.0.0.3:0/999".parse().unwrap()));
    assert!(!model.refuses("n3"));
    assert_eq!(told(&model, "ghost-watch"), 1);
}

#[test]
fn inv6_what_may_be_alive_is_no_ghost() {
    let ghosts: [fn(&mut Model); 4] = [
        |model| model.sessions.extend([client("10.0.0.3:0/999")]),
        |model| model.daemons[1].role = Role::Standby,
        |model| {
            let other = model.uses.iter_mut().find(|one| one.image.name.ends_with("c3")).unwrap();
            other.watchers.push("10.0.0.3:0/999".parse().unwrap());
        },
        |model| model.daemons.clear(),
    ];
    for (number, alive) in ghosts.into_iter().enumerate() {
        let mut model = ghost();
        alive(&mut model);
        model.run(200 * SECOND);
        let refused = model.map().blocklist.refuses(client("10.0.0.3:0/999"));
        assert!(!refused && model.seals().is_empty(), "{number}");
    }
}

fn told_as_over(model: &Model, code: &str) -> Option<String> {
    let start = format!("alarm-over {}", if code == "refused" { "Some(\"n2\") over after " } else { "" });
    model.logs().into_iter().find(|line| line.starts_with(&start) && line.contains(&format!(" s: {code}: ")))
}

/// An image that a second member uses, and the alarm of it.
fn second_writer() -> (Model, usize) {
    let mut model = healthy();
    let at = model.uses.iter().position(|one| one.image.name.ends_with("c2")).unwrap();
    model.uses[at].watchers.push("10.0.0.1:0/100".parse().unwrap());
    model.until("told", |model| model.alarms().contains("second-writer"));
    (model, at)
}

/// Also of one whose beginning is told with more than the alarm says.
#[test]
fn each_alarm_is_told_as_over_with_how_long_it_lasted() {
    let (mut model, at) = second_writer();
    model.run(40 * SECOND);
    model.uses[at].watchers.truncate(1);
    model.until("over", |model| !model.alarms().contains("second-writer"));
    let over = told_as_over(&model, "second-writer").unwrap();
    let seconds: u64 = over.split("over after ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((40..140).contains(&seconds), "{over}");

    model.gone = model.uses.iter().map(|one| one.image.clone()).collect();
    model.restart("boot-2");
    model.until("told", |model| model.alarms().contains("wrong-cluster"));
    model.lose("n2");
    model.run(3 * SECOND);
    model.heal_is_refused("n2");
    model.until("refused", |model| model.alarms().contains("refused"));
    model.bring_back("n2", 100_200 * SECOND);
    model.until("over", |model| !model.alarms().contains("refused"));
    assert!(told_as_over(&model, "refused").is_some(), "{:#?}", model.logs());
}

/// INV-9: a sweep that shows the image, and not who uses it.
#[test]
fn inv9_a_second_writer_is_not_over_while_its_image_has_users_that_cannot_be_read() {
    let (mut model, at) = second_writer();
    model.uses[at].watchers.clear();
    model.uses[at].unknown.push("a watcher whose address is not understood".to_owned());
    for _ in 0..400 {
        model.step();
        assert!(model.alarms().contains("second-writer"), "{:#?}", model.logs());
    }
    model.uses[at].unknown.clear();
    model.until("over", |model| !model.alarms().contains("second-writer"));
}
