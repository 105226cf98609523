//! The guardian's core against a modelled world.
#![allow(clippy::disallowed_methods)] // Drawn worlds say how long they took.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // Tests.

mod addresses;
mod answers;
mod awaited;
mod bare;
mod blocklist;
mod book;
mod chase;
mod clocks;
mod disarm;
mod fences;
mod five;
mod forms;
mod found;
mod gates;
mod hold;
mod host_clock;
mod identity;
mod many;
mod model;
mod pools;
mod reach;
mod recording;
mod replanned;
mod storage;
mod sweeps;
mod takeover;
mod waits;
mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use rbd_guardian_core::fence::step::Step;
use rbd_guardian_core::guardian::io::{Effect, Input};
use rbd_guardian_core::guardian::report::Outcome;
use rbd_guardian_core::model::addr::EntityAddr;
use rbd_guardian_core::model::incus_snapshot::{MemberStatus, Notice, Operation, OperationKind};
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::overrides::Overrides;
use rbd_guardian_core::model::record::{FenceRecord, FenceState};
use rbd_guardian_core::model::target::Target;
use rbd_guardian_core::rules::refusal::Refusal;

use model::{Model, id};

const SECOND: Duration = Duration::from_secs(1);

fn healthy() -> Model {
    let mut model = Model::new();
    model.run(10 * SECOND);
    model
}

impl Model {
    /// It answers again, so soon after its boot that this proves a reboot, until it is released.
    #[track_caller]
    fn bring_back_until_released(&mut self, member: &str, uptime: Duration) {
        self.bring_back(member, uptime);
        self.until("released", |model| model.state(member) == "watching" && !model.refuses(member));
    }
}

fn sealed(member: &str) -> Model {
    let mut model = healthy();
    model.lose_until_open(member);
    model
}

fn fence(member: &str) -> Request {
    fence_of(Target::Member(member.to_owned()))
}

/// An operator's, with no flag.
fn fence_of(target: Target) -> Request {
    Request::Fence { target, overrides: Overrides::default(), reason: None, by: "root@h".to_owned() }
}

/// An operator's who knows that the member answers.
fn fence_anyway(target: Target) -> Request {
    let mut request = fence_of(target);
    if let Request::Fence { overrides, reason, .. } = &mut request {
        overrides.reachable = true;
        *reason = Some("a test".to_owned());
    }
    request
}

#[test]
fn at_rest_nothing_is_fenced_and_addresses_are_remembered() {
    let mut model = healthy();
    model.run(300 * SECOND);
    assert!(!model.changed_storage());
    assert_eq!(model.state("n1"), "watching");
    assert_eq!(model.alarms().len(), 0, "{:?}", model.alarms());
    let member = &model.ledger.members["n2"];
    assert!(member.addresses.contains_key(&"10.0.0.2".parse().unwrap()));
    assert_eq!(member.clients.iter().next().unwrap().to_string(), "10.0.0.2:0/200");
    assert_eq!(member.machine.as_deref(), Some("machine-2"));
}

#[test]
fn inv2_a_refused_heal_fences_and_only_then_the_gate_opens() {
    let mut model = healthy();
    model.lose("n2");
    model.run(30 * SECOND);
    assert_eq!(
        (model.changed_storage(), model.state("n2")),
        (false, "suspect"),
        "Incus would leave it alone yet"
    );
    model.heal_is_refused("n2");
    model.until("sealed", |model| model.state("n2") == "sealed");
    model.until("open", |model| model.seals().contains("n2"));
    assert!(model.refuses("n2") && !model.refuses("n1"));
    let record = model.ledger.fences.values().next().unwrap();
    assert_eq!((record.state, record.by.as_str()), (FenceState::Sealed, "the guardian"));
    assert_eq!(record.proofs.len(), 1);
    let order: Vec<&str> = model.audit.iter().filter_map(|what| what.split(' ').nth(1)).collect();
    let at = |what| order.iter().position(|one| *one == what).unwrap();
    assert!(at("intended") < at("sealed"), "{order:?}");
}

#[test]
fn a_member_that_is_back_before_anything_was_sent_is_left_alone() {
    let mut model = healthy();
    model.lose("n2");
    model.run(3 * SECOND);
    // The announcement is heard late: all that was read ahead of it shows a lost member.
    model.bring_back("n2", 200_000 * SECOND);
    model.heal_is_refused("n2");
    model.run(60 * SECOND);
    assert!(!model.changed_storage(), "{:#?}", model.logs());
    assert_eq!((model.state("n2"), model.ledger.fences.len()), ("watching", 0));
}

#[test]
fn a_manual_move_that_is_refused_fences_nothing_by_itself_but_an_operator_does() {
    let mut model = healthy();
    model.lose("n2");
    model.run(3 * SECOND);
    model.handle(Input::Notice(Notice::Refused { member: "n2".to_owned(), healing: false }));
    model.run(20 * SECOND);
    assert!(!model.changed_storage());
    model.ask(1, fence("n2"));
    model.until("answered", |model| !model.answers().is_empty());
    assert!(matches!(model.answers()[0], (1, Outcome::Sealed(..))));
    model.until("open", |model| model.seals().contains("n2"));
}

#[test]
fn without_the_gate_a_silent_member_is_fenced_before_healing() {
    let mut model = healthy();
    model.view.gate.as_mut().unwrap().scriptlets.insert("n3".to_owned(), Ok(String::new()));
    model.lose("n2");
    model.run(20 * SECOND);
    assert!(model.alarms().contains("gate-partial"));
    assert!(model.effects.contains(&Effect::PushGate));
    assert!(!model.changed_storage(), "healing is 39 s away");
    model.view.members.get_mut("n2").unwrap().heartbeat_age = Some(51 * SECOND);
    model.until("sealed", |model| model.state("n2") == "sealed");
}

#[test]
fn no_fence_without_a_view_that_has_a_quorum() {
    let mut model = healthy();
    model.lose("n2");
    model.run(3 * SECOND);
    model.platform_down = true;
    model.run(10 * SECOND);
    model.heal_is_refused("n2");
    model.run(60 * SECOND);
    assert!(!model.changed_storage());
    assert!(model.alarms().contains("view-lost"));
    model.platform_down = false;
    model.heal_is_refused("n2");
    model.until("sealed", |model| model.state("n2") == "sealed");
}

#[test]
fn inv8_what_cannot_be_recorded_is_not_done() {
    let mut model = healthy();
    model.lose("n2");
    model.run(3 * SECOND);
    model.ledger_down = true;
    model.heal_is_refused("n2");
    model.run(30 * SECOND);
    assert!(!model.changed_storage());
    assert!(model.alarms().contains("cannot-record"));
    model.ledger_down = false;
    model.until("sealed", |model| model.state("n2") == "sealed");
    assert!(!model.alarms().contains("cannot-record"));
}

#[test]
fn a_silent_pg_keeps_the_gate_closed() {
    let mut model = healthy();
    model.lose("n2");
    model.run(3 * SECOND);
    model.silent = [3].into();
    model.heal_is_refused("n2");
    model.until("pending", |model| model.state("n2") == "pending");
    model.run(60 * SECOND);
    assert_eq!(model.seals().len(), 0);
    model.silent.clear();
    model.until("open", |model| model.seals().contains("n2"));
}

#[test]
fn inv3_a_removed_entry_closes_the_gate_and_is_asserted_again() {
    let mut model = sealed("n2");
    model.remove_entry("10.0.0.2:0/0");
    let since = model.effects.len();
    model.until("breached", |model| model.audit.iter().any(|what| what.ends_with("breached")));
    model.until("sealed", |model| model.refuses("n2") && model.state("n2") == "sealed");
    model.until("open", |model| model.seals().contains("n2"));
    let effects: Vec<String> = model.effects[since..].iter().map(|effect| format!("{effect:?}")).collect();
    let of = |what: &str| effects.iter().position(|effect| effect.contains(what)).unwrap();
    // At the same time: neither waits for the other, and what is sealed again waits for both.
    assert!(of("Add(") < of("PutGate") && of("PutGate") < of("state: Sealed"), "{effects:#?}");
    assert!(model.audit.iter().any(|what| what.ends_with("breached")));
    // When it was lifted, and until when, stays known.
    let fence = model.ledger.fences.values().next().unwrap();
    let [breach] = &fence.breaches[..] else { panic!("{fence:#?}") };
    assert_eq!(breach.held.map(|held| held.later(1)), Some(breach.gone), "{breach:?}");
    assert!(breach.committed > Some(breach.gone) && breach.sealed > Some(breach.seen), "{breach:?}");
}

#[test]
fn inv3_a_removal_is_mended_also_while_the_platform_is_down() {
    let mut model = sealed("n2");
    model.platform_down = true;
    model.run(10 * SECOND);
    model.remove_entry("10.0.0.2:0/0");
    model.until("sealed again", |model| model.refuses("n2") && model.state("n2") == "sealed");
}

#[test]
fn inv3_an_entry_that_went_and_came_back_between_two_looks_is_a_breach() {
    let mut model = sealed("n2");
    model.remove_entry("10.0.0.2:0/0");
    let until = model.now().wall + 50_000 * 3600 * SECOND;
    model.change(|map| map.blocklist.entries.extend([("10.0.0.2:0/0".parse().unwrap(), until)]));
    model.run(5 * SECOND);
    assert!(model.audit.iter().any(|what| what.ends_with("breached")), "{:#?}", model.audit);
}

#[test]
fn a_restart_goes_on_from_the_ledger_without_closing_the_gate() {
    let mut model = sealed("n2");
    let since = model.effects.len();
    model.restart("boot-1");
    model.run(10 * SECOND);
    assert_eq!(model.state("n2"), "sealed");
    let kept = |effect: &Effect| match effect {
        Effect::PutGate { contents, .. } => Some(contents.open.contains("n2")),
        _ => None,
    };
    // One write, of what is there already: what another guardian has read before is out of date then (INV-7).
    let puts: Vec<bool> = model.effects[since..].iter().filter_map(kept).collect();
    assert_eq!((puts, model.seals().contains("n2")), (vec![true], true));
}

#[test]
fn a_restart_after_an_entry_was_removed_finds_the_breach() {
    let mut model = sealed("n2");
    model.remove_entry("10.0.0.2:0/0");
    model.restart("boot-1");
    model.until("sealed", |model| model.refuses("n2") && model.state("n2") == "sealed");
    assert!(model.audit.iter().any(|what| what.ends_with("breached")), "{:#?}", model.audit);
}

#[test]
fn inv5_a_rebooted_member_is_released_and_its_old_clients_never() {
    let mut model = sealed("n2");
    model.uses.retain(|one| !one.image.name.ends_with("c2"));
    model.run(120 * SECOND);
    model.bring_back_until_released("n2", 20 * SECOND);
    assert_eq!(model.seals().len(), 0);
    let client: EntityAddr = "10.0.0.2:0/200".parse().unwrap();
    assert!(model.map().blocklist.refuses(client.client().unwrap()), "INV-4");
    assert_eq!(model.ledger.fences.values().next().unwrap().state, FenceState::Released);
    assert!(model.ledger.fences.values().all(|fence| fence.in_doubt.is_empty()));
}

/// Its clients of now would be refused for good: the release gives an entry to each that it sees.
#[test]
fn a_guardian_that_takes_over_a_release_puts_back_no_host_entry_that_went() {
    let mut model = sealed("n2");
    model.uses.retain(|one| !one.image.name.ends_with("c2"));
    model.run(120 * SECOND);
    let held = model.ledger.fences.values().next().unwrap().clone();
    model.bring_back("n2", 20 * SECOND);
    model.until("the removal", |model| !model.refuses("n2"));
    // As the ledger is when the guardian dies before it hears of the removal.
    let in_doubt = held.entries.keys().copied().filter(|entry| entry.is_host()).collect();
    let left = FenceRecord { state: FenceState::Releasing, in_doubt, ..held };
    model.ledger.fences.insert(left.id.clone(), left);
    model.platform_down = true;
    model.restart("boot-2");
    for _ in 0..40 {
        model.step();
        assert!(!model.refuses("n2"), "its host entry was put back");
    }
    model.platform_down = false;
    model.until("released", |model| model.state("n2") == "watching");
    assert!(!model.refuses("n2"));
}

#[test]
fn inv5_a_member_that_did_not_reboot_is_never_released() {
    let mut model = sealed("n2");
    model.run(30 * SECOND);
    "n1".clone_into(&mut model.view.instances.as_mut().unwrap().get_mut(&id("c2")).unwrap().location);
    model.bring_back("n2", 200_000 * SECOND);
    model.until("returned-stale", |model| model.state("n2") == "returned-stale");
    model.run(600 * SECOND);
    assert!(model.refuses("n2"));
    assert!(model.alarms().contains("returned-stale"));
}

#[test]
fn inv5_another_guardian_counts_the_time_since_the_seal_from_its_own_boot() {
    let mut model = sealed("n2");
    model.run(60 * SECOND);
    model.restart("boot-2");
    model.run(10 * SECOND);
    model.bring_back("n2", 40 * SECOND);
    model.run(30 * SECOND);
    assert!(model.refuses("n2"), "it may have booted before this guardian knew of the seal");
    model.run(60 * SECOND);
    model.bring_back("n2", 20 * SECOND);
    model.until("released", |model| !model.refuses("n2"));
}

#[test]
fn a_release_waits_for_operations_that_began_before() {
    let mut model = sealed("n2");
    model.run(60 * SECOND);
    let heal = Operation {
        id: "1".to_owned(),
        kind: OperationKind::Heal,
        location: "n1".to_owned(),
        instances: [].into(),
    };
    model.view.operations = Some(vec![heal]);
    model.bring_back("n2", 20 * SECOND);
    model.run(60 * SECOND);
    assert!(model.refuses("n2") && model.seals().is_empty(), "the gate is closed, the entries stay");
    model.view.operations = Some(Vec::new());
    model.until("released", |model| !model.refuses("n2"));
}

#[test]
fn instances_that_could_not_start_are_started_after_the_release() {
    let mut model = sealed("n2");
    model.run(60 * SECOND);
    let details =
        model.view.instances.as_mut().unwrap().get_mut(&id("c2")).unwrap().details.as_mut().unwrap();
    details.running = false;
    model.bring_back("n2", 20 * SECOND);
    model.until("started", |model| model.started == [id("c2")]);
}

#[test]
fn an_instance_whose_storage_comes_back_late_is_started_then() {
    let mut model = sealed("n2");
    model.run(60 * SECOND);
    let details =
        model.view.instances.as_mut().unwrap().get_mut(&id("c2")).unwrap().details.as_mut().unwrap();
    details.running = false;
    model.failing_starts = 6;
    model.bring_back("n2", 20 * SECOND);
    model.until("released", |model| !model.refuses("n2"));
    model.run(40 * SECOND);
    assert_eq!(model.started, [], "a pool is tried again once a minute");
    model.run(60 * SECOND);
    assert_eq!(model.started, [id("c2")]);
}

#[test]
fn an_operators_release_without_proof_is_refused_and_with_an_assertion_done() {
    let mut model = sealed("n2");
    let fence = model.ledger.fences.keys().next().unwrap().clone();
    let release = |assert_powered_off| Request::Release {
        fence: fence.to_string(),
        since: None,
        assert_powered_off,
        reason: Some("pulled the plug".to_owned()),
        by: "root@h".to_owned(),
    };
    model.ask(7, release(false));
    let (7, Outcome::Refused(reasons)) = &model.answers()[0] else { panic!("{:?}", model.answers()) };
    assert!(matches!(&reasons[..], [Refusal::NotProved { what, .. }] if what == "n2"), "{reasons:?}");
    model.ask(8, release(true));
    model.until("answered", |model| model.answers().len() == 2);
    assert!(matches!(model.answers()[1], (8, Outcome::Released(_))));
    assert!(!model.refuses("n2"));
}

#[test]
fn a_member_that_is_back_before_its_heal_is_stranded_with_commands() {
    let mut model = sealed("n2");
    model.bring_back("n2", 200_000 * SECOND);
    model.until("stranded", |model| model.alarms().contains("stranded"));
    let alarm = model.guardian.alarms().into_iter().find(|alarm| alarm.code == "stranded").unwrap();
    assert!(alarm.advice.iter().any(|advice| advice.contains("incus move c2")), "{alarm:?}");
    model.run(60 * SECOND);
    assert!(model.alarms().contains("returned-stale"));
    assert_eq!(model.state("n2"), "stranded", "that its instances run nowhere comes first");
}

/// An instance that may run nowhere else keeps no healing from ending: from Incus 7.0.1 on candidates are filtered, and none is no error.
#[test]
fn what_healing_left_on_a_sealed_member_is_stranded_and_what_it_moves_is_not() {
    let mut model = sealed("n2");
    let evacuated = |model: &mut Model, healing: bool| {
        model.view.members.get_mut("n2").unwrap().status = MemberStatus::Evacuated;
        let heal = Operation {
            id: "heal".to_owned(),
            kind: OperationKind::Heal,
            location: "n1".to_owned(),
            instances: BTreeSet::new(),
        };
        model.view.operations = Some(if healing { vec![heal] } else { Vec::new() });
    };
    evacuated(&mut model, true);
    model.run(60 * SECOND);
    assert!(!model.alarms().contains("stranded"), "its healing is under way");
    evacuated(&mut model, false);
    model.until("stranded", |model| model.alarms().contains("stranded"));
    let alarm = model.guardian.alarms().into_iter().find(|alarm| alarm.code == "stranded").unwrap();
    assert!(alarm.text.contains("c2") && alarm.text.contains("restricted.cluster.groups"), "{alarm:?}");
    assert!(alarm.advice.iter().any(|advice| advice.contains("incus move c2")), "{alarm:?}");

    let instances = model.view.instances.as_mut().unwrap();
    instances
        .values_mut()
        .filter(|instance| instance.location == "n2")
        .for_each(|instance| instance.location = "n1".to_owned());
    model.until("moved", |model| !model.alarms().contains("stranded"));
}

#[test]
fn the_storm_brake_holds_two_members_of_three() {
    let mut model = sealed("n2");
    model.lose("n3");
    model.run(60 * SECOND);
    model.heal_is_refused("n3");
    model.until("refused", |model| model.state("n3") == "refused");
    model.run(60 * SECOND);
    assert!(!model.refuses("n3"));
    for told in ["suspect Some(\"n3\")", "refused Some(\"n3\")"] {
        assert_eq!(
            model.logs().iter().filter(|line| line.starts_with(told)).count(),
            1,
            "{:#?}",
            model.logs()
        );
    }
}

#[test]
fn a_guardian_that_knows_no_address_refuses() {
    let mut model = Model::new();
    model.view.members.get_mut("n2").unwrap().addresses = Ok([].into());
    model.uses.clear();
    model.lose("n2");
    model.run(5 * SECOND);
    model.heal_is_refused("n2");
    model.until("refused", |model| model.state("n2") == "refused");
    assert!(!model.changed_storage() && model.seals().is_empty());
}

#[test]
fn inv7_a_removal_in_doubt_is_not_relied_on_again() {
    let mut model = sealed("n2");
    let fence = model.ledger.fences.values_mut().next().unwrap();
    let host = *fence.entries.keys().find(|entry| entry.is_host()).unwrap();
    fence.in_doubt.insert(host);
    fence.state = FenceState::Released;
    model.remove_entry("10.0.0.2:0/0");
    model.clear_gate();
    model.restart("boot-1");
    model.run(5 * SECOND);
    model.heal_is_refused("n2");
    model.until("open", |model| model.seals().contains("n2"));
    model.remove_entry("10.0.0.2:0/0");
    assert!(model.refuses("n2"), "the late removal hits a key nobody relies on");
}

#[test]
fn a_deposed_guardian_does_nothing_more() {
    let mut model = healthy();
    model.handle(Input::Deposed("g2 leads".to_owned()));
    let before = model.effects.len();
    model.lose("n2");
    model.heal_is_refused("n2");
    model.run(60 * SECOND);
    assert_eq!(model.effects.len(), before);
}

#[test]
fn a_stale_writer_is_told_within_two_seconds_of_a_sweep() {
    let mut model = healthy();
    let stranger = "10.0.0.1:0/100".parse().unwrap();
    model.uses.iter_mut().find(|one| one.image.name.ends_with("c2")).unwrap().watchers.push(stranger);
    let sweeps =
        |model: &Model| model.effects.iter().filter(|effect| matches!(effect, Effect::Sweep(_))).count();
    let before = sweeps(&model);
    model.until("a sweep", |model| sweeps(model) > before);
    model.run(2 * SECOND);
    assert!(model.alarms().contains("second-writer"), "{:?}", model.alarms());
    assert!(!model.changed_storage());
    model.uses.iter_mut().for_each(|one| one.watchers.truncate(1));
    let before = sweeps(&model);
    model.until("a sweep", |model| sweeps(model) > before);
    model.run(2 * SECOND);
    assert!(!model.alarms().contains("second-writer"), "told for as long as it is so");
}

#[test]
fn an_image_that_is_opened_elsewhere_for_a_moment_is_not_told() {
    let mut model = healthy();
    let sweeps =
        |model: &Model| model.effects.iter().filter(|effect| matches!(effect, Effect::Sweep(_))).count();
    for nonce in 100..103 {
        let at = |model: &mut Model, then: &dyn Fn(&mut Vec<_>)| {
            then(&mut model.uses.iter_mut().find(|one| one.image.name.ends_with("c2")).unwrap().watchers);
        };
        at(&mut model, &|watchers| watchers.push(format!("10.0.0.1:0/{nonce}").parse().unwrap()));
        let before = sweeps(&model);
        model.until("a sweep", |model| sweeps(model) > before);
        at(&mut model, &|watchers| watchers.truncate(watchers.len() - 1));
        let until = model.now().boot + 3 * SECOND;
        while model.now().boot < until {
            assert!(!model.alarms().contains("second-writer"));
            model.step();
        }
    }
}

#[test]
fn a_release_never_removes_before_it_is_recorded() {
    let mut model = sealed("n2");
    model.run(60 * SECOND);
    model.bring_back("n2", 20 * SECOND);
    model.until("asked", |model| {
        model.effects.iter().any(|effect| matches!(effect, Effect::Release(_, Step::Remove(_))))
    });
    assert_eq!(model.view.members["n2"].status, MemberStatus::Online);
}

#[test]
fn an_intent_that_a_dead_guardian_left_is_withdrawn_or_completed_by_what_stands() {
    let mut model = sealed("n2");
    let fence = model.ledger.fences.values_mut().next().unwrap();
    fence.state = FenceState::Intended;
    fence.sealed = None;
    // Nothing stood when it was intended: what stands now was sent for it.
    fence.entries.values_mut().for_each(|until| *until = None);
    model.clear_gate();
    model.bring_back("n2", 200_000 * SECOND);
    model.restart("boot-1");
    model.until("completed", |model| {
        model.ledger.fences.values().any(|fence| fence.state == FenceState::Sealed)
    });

    let fence = model.ledger.fences.values_mut().next().unwrap();
    fence.state = FenceState::Intended;
    fence.sealed = None;
    for entry in ["10.0.0.2:0/0", "10.0.0.2:0/200"] {
        model.remove_entry(entry);
    }
    model.restart("boot-1");
    model.until("withdrawn", |model| model.ledger.fences.is_empty());
    assert!(!model.refuses("n2"));
}

#[test]
fn a_member_is_fenced_a_second_time_as_the_first() {
    let mut model = sealed("n2");
    model.run(60 * SECOND);
    model.bring_back_until_released("n2", 20 * SECOND);
    model.run(200 * SECOND);
    model.lose("n2");
    model.run(3 * SECOND);
    model.heal_is_refused("n2");
    model.until("open again", |model| model.refuses("n2") && model.seals().contains("n2"));
}

#[test]
fn inv7_a_doubt_that_another_guardian_left_is_never_cleared_by_an_answer() {
    let mut model = sealed("n2");
    let fence = model.ledger.fences.values_mut().next().unwrap();
    let host = *fence.entries.keys().find(|entry| entry.is_host()).unwrap();
    (fence.state, fence.in_doubt) = (FenceState::Releasing, [host].into());
    model.restart("boot-1");
    model.until("released", |model| !model.refuses("n2"));
    let fence = model.ledger.fences.values().next().unwrap();
    assert_eq!(
        (fence.state, fence.in_doubt.len()),
        (FenceState::Released, 1),
        "the first one's may arrive yet"
    );
}

#[test]
fn inv3_a_breach_is_seen_and_mended_also_when_nothing_can_be_proved() {
    let mut model = sealed("n2");
    model.change(|map| map.pools.get_mut(&1).unwrap().overlay = Some(9));
    model.run(10 * SECOND);
    assert!(model.seals().is_empty(), "what cannot be proved does not open the gate");
    model.remove_entry("10.0.0.2:0/0");
    model.until("put back", |model| model.refuses("n2"));
    model.change(|map| map.pools.get_mut(&1).unwrap().overlay = None);
    model.until("open", |model| model.seals().contains("n2"));
}

#[test]
fn inv6_a_fence_is_not_sent_on_an_old_view() {
    let mut model = healthy();
    model.lose("n2");
    model.run(3 * SECOND);
    model.ledger_down = true;
    model.heal_is_refused("n2");
    model.run(3 * SECOND);
    model.platform_down = true;
    model.bring_back("n2", 200_000 * SECOND);
    model.run(60 * SECOND);
    model.ledger_down = false;
    model.run(60 * SECOND);
    assert!(!model.changed_storage(), "{:#?}", model.logs());
}

#[test]
fn inv6_an_entry_that_no_fence_accounts_for_is_told() {
    let mut model = healthy();
    let until = model.now().wall + 1000 * SECOND;
    model.change(|map| map.blocklist.entries.extend([("10.0.0.2:0/0".parse().unwrap(), until)]));
    model.until("told", |model| model.alarms().contains("orphan-entry"));
}

#[test]
fn inv3_a_breach_is_mended_while_the_gate_cannot_be_read() {
    let mut model = sealed("n2");
    model.view.gate = None;
    model.run(5 * SECOND);
    model.remove_entry("10.0.0.2:0/0");
    model.until("put back", |model| model.refuses("n2"));
}

#[test]
fn a_release_waits_for_what_began_before_and_for_nothing_else() {
    let mut model = sealed("n2");
    model.run(60 * SECOND);
    let start = |number: u32| Operation {
        id: number.to_string(),
        kind: OperationKind::Start,
        location: "n1".to_owned(),
        instances: [].into(),
    };
    model.view.operations = Some(vec![start(1)]);
    model.bring_back("n2", 20 * SECOND);
    model.run(20 * SECOND);
    assert!(model.refuses("n2"));
    model.view.operations = Some(vec![start(2)]);
    model.until("released", |model| !model.refuses("n2"));
}
