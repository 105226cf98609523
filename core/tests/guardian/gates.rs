//! What the gate is told, where, and what becomes of what somebody else writes there.

use std::collections::BTreeSet;
use std::time::Duration;

use rbd_guardian_core::guardian::io::{Effect, Input, Recorded};
use rbd_guardian_core::model::epoch::GateEpoch;
use rbd_guardian_core::model::gate_keys::{self, EPOCH, SEAL};
use rbd_guardian_core::model::incus_snapshot::{MemberStatus, Notice};
use rbd_guardian_core::model::operator_request::Request;

use super::model::{GateWrite, Model};
use super::{SECOND, healthy, sealed};

fn seal(member: &str) -> String {
    format!("{SEAL}{member}")
}

fn writes(model: &Model) -> usize {
    model.effects.iter().filter(|effect| matches!(effect, Effect::PutGate { .. })).count()
}

fn foreign(model: &Model) -> Vec<String> {
    model.logs().into_iter().filter(|line| line.starts_with("gate-foreign-write")).collect()
}

#[test]
fn every_member_is_told_the_same_with_one_epoch_the_lost_one_too() {
    let mut model = sealed("n2");
    let keys = ["n1", "n2", "n3"].map(|name| model.keys(name).clone());
    assert!(keys[0] == keys[1] && keys[0] == keys[2], "{keys:#?}");
    assert_eq!(keys[0][&seal("n2")], keys[0][EPOCH], "a seal counts beside the epoch it was written with");
    assert_eq!(gate_keys::epoch(&keys[0]), model.ledger.gate.as_ref().unwrap().epoch);
}

#[test]
fn inv7_a_seal_key_that_the_ledger_does_not_back_is_removed_and_told_once() {
    let mut model = healthy();
    let epoch = model.keys("n1")[EPOCH].clone();
    model.keys("n1").insert(seal("n3"), epoch);
    model.until("removed", |model| model.seals().is_empty());
    model.run(10 * SECOND);
    let told = foreign(&model);
    assert!(told.len() == 1 && told[0].contains("n1 has a seal key for n3"), "{told:#?}");
}

#[test]
fn inv7_a_seal_key_found_by_a_guardian_that_takes_over_is_removed_and_told() {
    let mut model = healthy();
    model.keys("n1").insert(seal("n3"), "1".to_owned());
    model.restart("boot-1");
    model.until("removed", |model| model.seals().is_empty());
    model.run(10 * SECOND);
    assert_eq!(foreign(&model).len(), 1, "{:#?}", foreign(&model));
}

#[test]
fn what_somebody_else_wrote_is_told_once_also_while_it_cannot_be_mended() {
    let mut model = healthy();
    model.keys("n1").insert(seal("n3"), "1".to_owned());
    model.ledger_down = true;
    model.run(20 * SECOND);
    assert!(model.seals().contains("n3"), "what cannot be recorded is not done");
    assert_eq!(foreign(&model).len(), 1, "{:#?}", foreign(&model));
    model.restart("boot-1");
    model.ledger_down = true;
    let told = foreign(&model).len();
    model.run(20 * SECOND);
    assert_eq!(foreign(&model).len(), told + 1, "{:#?}", foreign(&model));
}

/// Also one whose contents are those that are wanted: another guardian may have read them before.
#[test]
fn inv7_contents_that_were_there_before_are_written_again() {
    let mut model = sealed("n2");
    let before = model.keys("n3").clone();
    model.remove_entry("10.0.0.2:0/0");
    model.until("sealed again", |model| model.keys_of("n3") != Some(&before) && model.seals().contains("n2"));
    model.run(5 * SECOND);
    let last = gate_keys::epoch(model.keys("n3"));
    *model.keys("n3") = before.clone();
    model.run(5 * SECOND);
    let now = model.keys("n3").clone();
    assert!(gate_keys::epoch(&now) > last && now.contains_key(&seal("n2")), "{before:#?} {now:#?}");
    assert_eq!(foreign(&model).len(), 1);
}

#[test]
fn a_member_that_lost_its_keys_or_joined_is_told_again_and_all_others_with_it() {
    let mut model = sealed("n2");
    let before = gate_keys::epoch(model.keys("n1"));
    model.keys("n3").clear();
    model.until("told", |model| model.keys_of("n3").is_some_and(|keys| keys.contains_key(&seal("n2"))));
    let [one, other] = ["n1", "n3"].map(|name| model.keys(name).clone());
    assert_eq!(one, other, "what has an older epoch than another one opens nothing");
    assert!(gate_keys::epoch(&one) > before);
    model.run(5 * SECOND);
    assert_eq!(foreign(&model).len(), 1);
}

#[test]
fn inv3_the_gate_is_closed_when_no_member_has_the_key_not_when_some_have_none() {
    let mut model = sealed("n2");
    model.run(2 * SECOND);
    model.unwritable = ["n3".to_owned()].into();
    model.bring_back("n2", 20 * SECOND);
    model.until("releasing", |model| model.state("n2") == "releasing");
    model.run(20 * SECOND);
    assert_eq!((model.state("n2"), model.refuses("n2")), ("releasing", true), "its key is at n3 still");
    assert!(!model.keys("n1").contains_key(&seal("n2")), "where it can be removed it is");
    assert_eq!(foreign(&model), Vec::<String>::new(), "a write that failed is nobody else's");
    model.unwritable.clear();
    model.until("released", |model| model.state("n2") == "watching");
    assert!(model.seals().is_empty());
}

/// INV-2: what an offline member has in its configuration is of the database, and no key outlives its fence there.
#[test]
fn inv2_a_member_that_comes_back_has_no_key_of_a_fence_that_is_over() {
    let mut model = sealed("n2");
    model.lose("n3");
    model.run(2 * SECOND);
    model.bring_back_until_released("n2", 20 * SECOND);
    assert_eq!(model.view.members["n3"].status, MemberStatus::Offline);
    assert!(!model.keys("n3").contains_key(&seal("n2")));
}

#[test]
fn no_epoch_that_somebody_sets_keeps_the_gate_from_being_written() {
    for epoch in [
        u64::MAX.to_string(),
        (u64::MAX - 1).to_string(),
        "99999999999999999999999".to_owned(),
        "x".to_owned(),
    ] {
        let mut model = healthy();
        model.keys("n1").insert(EPOCH.to_owned(), epoch.clone());
        model.run(5 * SECOND);
        let recorded = model.ledger.gate.as_ref().unwrap().epoch;
        assert_eq!(gate_keys::epoch(model.keys("n1")), recorded, "{epoch}");
        assert!(recorded < GateEpoch(100), "{epoch}: {recorded}");
        assert_eq!(foreign(&model).len(), 1, "{epoch}");
        // And for one that finds it.
        model.keys("n1").insert(EPOCH.to_owned(), epoch.clone());
        model.restart("boot-1");
        model.lose("n2");
        model.run(3 * SECOND);
        model.heal_is_refused("n2");
        model.until("open", |model| model.keys_of("n1").is_some_and(|keys| keys.contains_key(&seal("n2"))));
    }
}

/// `gate remove` and `gate install` while a daemon runs; what they write is not its own, and nobody else's either.
#[test]
fn a_gate_that_is_removed_and_installed_again_is_no_foreign_write() {
    let mut model = healthy();
    let scriptlets = model.view.gate.as_ref().unwrap().scriptlets.clone();
    model.clear_gate();
    let gate = model.view.gate.as_mut().unwrap();
    gate.scriptlets.values_mut().for_each(|line| *line = Ok(String::new()));
    let before = writes(&model);
    model.run(10 * SECOND);
    assert_eq!(writes(&model), before, "nothing is written for a gate that is not there");
    // A key that was left opens the next one.
    model.keys("n1").insert(seal("n3"), "1".to_owned());
    model.until("removed", |model| model.seals().is_empty());
    model.run(3 * SECOND);
    model.keys("n1").insert(EPOCH.to_owned(), "50".to_owned());
    model.view.gate.as_mut().unwrap().scriptlets = scriptlets;
    model.run(10 * SECOND);
    assert_eq!(foreign(&model), Vec::<String>::new());
    assert!(
        ["n1", "n2", "n3"].iter().all(|name| gate_keys::epoch(model.keys_of(name).unwrap()) > GateEpoch(50))
    );
}

/// What `gate remove --force` does while a member is sealed: the scriptlet goes first, seen at one member after the other, then
/// each member's keys.
#[test]
fn a_gate_that_is_removed_under_a_held_fence_accuses_nobody_and_leaves_no_keys() {
    let mut model = sealed("n2");
    model.until("open", |model| model.seals().contains("n2"));
    model.run(5 * SECOND);
    let (before, told) = (writes(&model), model.logs().len());
    let note = Request::Note {
        what: gate_keys::REMOVE.to_owned(),
        reason: Some("moving house".to_owned()),
        by: "root@h".to_owned(),
    };
    model.ask(7, note);
    model.until("recorded", |model| model.audit.iter().any(|what| what == gate_keys::REMOVE));
    // A reading may show the scriptlet of before, and keys of after.
    model.keys("n1").clear();
    model.run(3 * SECOND);
    for name in ["n1", "n3", "n2"] {
        let gate = model.view.gate.as_mut().unwrap();
        gate.scriptlets.insert(name.to_owned(), Ok(String::new()));
        model.run(2 * SECOND);
    }
    model.keys("n2").clear();
    model.run(3 * SECOND);
    model.keys("n3").clear();
    model.run(90 * SECOND);
    assert_eq!(foreign(&model), Vec::<String>::new());
    assert_eq!(writes(&model), before, "nothing is written behind the operator's back");
    assert!(["n1", "n2", "n3"].iter().all(|name| model.keys_of(name).unwrap().is_empty()));
    let logs = model.logs().split_off(told);
    assert!(!logs.iter().any(|line| line.contains("stay where they are")), "{logs:#?}");
    assert!(!model.effects.iter().any(|effect| matches!(effect, Effect::PushGate)), "it is not put back");
    assert_eq!(model.state("n2"), "sealed", "the fence is held on");
}

/// INV-3 comes first, and what a removal that died left is put right.
#[test]
fn inv3_a_breach_closes_a_gate_that_is_being_removed_and_one_that_stays_is_told_again() {
    let mut model = sealed("n2");
    model.until("open", |model| model.seals().contains("n2"));
    let note = Request::Note { what: gate_keys::REMOVE.to_owned(), reason: None, by: "root@h".to_owned() };
    model.ask(7, note);
    model.until("recorded", |model| model.audit.iter().any(|what| what == gate_keys::REMOVE));
    let before = writes(&model);
    model.remove_entry("10.0.0.2:0/0");
    model.until("closed", |model| writes(model) > before && !model.seals().contains("n2"));
    model.keys("n1").clear();
    model.run(90 * SECOND);
    assert!(!model.keys_of("n1").unwrap().is_empty() && model.seals().contains("n2"), "{:#?}", model.logs());
}

#[test]
fn keys_in_project_default_are_without_effect_and_told() {
    let mut model = healthy();
    let before = writes(&model);
    model.view.gate.as_mut().unwrap().project.insert(seal("n2"), "sealed".to_owned());
    model.run(Duration::from_secs(5));
    assert!(model.seals().is_empty());
    let alarm = model.guardian.alarms().into_iter().find(|alarm| alarm.code == "gate-stray-keys").unwrap();
    assert!(alarm.advice[0].contains(&format!("incus project unset default {}", seal("n2"))), "{alarm:?}");
    assert_eq!(writes(&model), before, "a project is slow to write, and nothing depends on it");
}

/// Incus up to 7.0.1 announces `project-updated` before it writes, and also where it then refuses the write.
#[test]
fn an_announced_change_of_the_project_counts_only_as_it_is_read() {
    let mut model = healthy();
    let reads = |model: &Model| model.effects.iter().filter(|e| matches!(e, Effect::ReadView { .. })).count();
    let is_off = |model: &Model| model.alarms().contains("gate-off");
    let (read, told, written) = (reads(&model), model.logs().len(), writes(&model));
    model.handle(Input::Notice(Notice::Changed));
    model.run(SECOND);
    assert!(reads(&model) > read, "it is read");
    assert_eq!((model.alarms(), model.logs().len(), writes(&model)), (BTreeSet::new(), told, written));

    // The write comes after that reading, and nothing is announced any more.
    model.view.gate.as_mut().unwrap().project.insert("user.rbd-guardian.gate".to_owned(), "off".to_owned());
    let began = model.boot;
    model.until("it is read", is_off);
    assert!(model.boot - began <= 3 * SECOND, "{:?}", model.boot - began);
    model.view.gate.as_mut().unwrap().project.clear();
    model.handle(Input::Notice(Notice::Changed));
    assert!(is_off(&model), "until it is read");
    model.until("it is read", |model| !is_off(model));
}

/// A leader ended with the opening for n2 on its way: the successor, and the writes that may arrive yet.
fn opening_on_its_way() -> (Model, Vec<GateWrite>) {
    let mut model = healthy();
    model.lose("n2");
    model.run(3 * SECOND);
    model.gate_held = Some(Vec::new());
    model.heal_is_refused("n2");
    model.until("the opening is sent", |model| model.gate_held.as_ref().is_some_and(|held| !held.is_empty()));
    let late = model.gate_held.take().unwrap();
    assert!(model.ledger.gate.as_ref().unwrap().open.contains("n2") && model.seals().is_empty());
    model.restart("boot-2");
    (model, late)
}

#[test]
fn inv7_no_epoch_is_written_that_another_guardian_recorded() {
    let (mut model, _) = opening_on_its_way();
    let recorded = model.ledger.gate.as_ref().unwrap().epoch;
    model.until("open", |model| model.seals().contains("n2"));
    assert!(gate_keys::epoch(model.keys("n1")) > recorded, "with that one, something else may arrive yet");
}

/// What it reads is closed. Its own writes, which alone keep the late ones from arriving, take their time.
#[test]
fn inv7_a_late_opening_of_an_earlier_leader_finds_nobody_released() {
    let (mut model, late) = opening_on_its_way();
    model.gate_held = Some(Vec::new());
    let fence = model.ledger.fences.keys().next().unwrap().to_string();
    let (reason, by) = (Some("it is off".to_owned()), "root@h".to_owned());
    model.ask(1, Request::Release { fence, since: None, assert_powered_off: true, reason, by });
    model.run(20 * SECOND);
    late.into_iter().for_each(|write| model.arrives(write));
    assert!(model.seals().contains("n2") && model.refuses("n2"), "open for a member that is released");
}

#[test]
fn inv3_a_late_opening_of_an_earlier_leader_finds_no_breach_being_mended() {
    let (mut model, late) = opening_on_its_way();
    model.gate_held = Some(Vec::new());
    model.remove_entry("10.0.0.2:0/0");
    model.until("breached", |model| model.state("n2") == "breached");
    model.run(5 * SECOND);
    assert!(model.refuses("n2"), "put back, whatever becomes of the gate");
    assert_eq!(model.state("n2"), "breached", "sealed only when the gate is closed, for certain");
    let own = model.gate_held.take().unwrap();
    own.into_iter().for_each(|write| model.arrives(write));
    late.into_iter().for_each(|write| model.arrives(write));
    assert!(model.seals().is_empty(), "opened by a late write");
    model.handle(Input::GatePut([].into()));
    model.until("sealed", |model| model.state("n2") == "sealed");
    model.until("open", |model| model.seals().contains("n2"));
}

#[test]
fn a_write_that_is_refused_is_tried_again_as_it_was() {
    let mut model = sealed("n2");
    model.run(2 * SECOND);
    model.unwritable = ["n3".to_owned()].into();
    model.remove_entry("10.0.0.2:0/0");
    model.until("open again", |model| {
        model
            .keys_of("n1")
            .is_some_and(|keys| keys.contains_key(&seal("n2")) && keys != model.keys_of("n3").unwrap())
    });
    model.run(2 * SECOND);
    let (recorded, tries) = (model.ledger.gate.clone(), writes(&model));
    model.run(20 * SECOND);
    assert_eq!(model.ledger.gate, recorded, "the ledger is written for each try");
    assert!(writes(&model) > tries + 5, "it is tried again");
    model.unwritable.clear();
    model.until("told", |model| model.keys_of("n3") == model.keys_of("n1"));
    model.run(5 * SECOND);
    assert_eq!(model.ledger.gate, recorded);
    assert_eq!(foreign(&model), Vec::<String>::new());
}

/// Told to be open where it can be, n3 with neither key nor answer.
fn open_but_at_n3() -> Model {
    let mut model = healthy();
    model.unwritable = ["n3".to_owned()].into();
    model.lose_until_open("n2");
    model.run(5 * SECOND);
    assert!(!model.keys("n3").contains_key(&seal("n2")));
    model
}

/// What is at n3 is older than what all others have, and so is whatever else arrives there.
#[test]
fn who_is_at_no_member_is_released_though_one_of_them_cannot_be_written() {
    let mut model = open_but_at_n3();
    model.bring_back_until_released("n2", 20 * SECOND);
    assert!(model.seals().is_empty());
}

#[test]
fn inv3_a_breach_is_sealed_when_the_gate_is_closed_also_while_a_member_cannot_be_opened() {
    let mut model = open_but_at_n3();
    model.gate_held = Some(Vec::new());
    model.remove_entry("10.0.0.2:0/0");
    let map = model.map().clone();
    model.handle(Input::Maps(Ok(vec![map])));
    model.run(3 * SECOND);
    let closing = model.gate_held.take().unwrap();
    assert!(!closing.is_empty() && model.refuses("n2"), "put back at once");
    assert_eq!(model.state("n2"), "breached", "the gate is open");
    closing.into_iter().for_each(|write| model.arrives(write));
    assert!(model.seals().is_empty());
    model.handle(Input::GatePut([("n3".to_owned(), "not written".to_owned())].into()));
    model.until("sealed", |model| model.state("n2") == "sealed");
    model.until("open again", |model| model.seals().contains("n2"));
}

/// Whoever reads the map first: a gate that is written over at a takeover is not written open before that.
#[test]
fn inv3_a_look_of_a_guardian_that_takes_over_shows_the_breach_to_its_fences() {
    let mut model = sealed("n2");
    model.remove_entry("10.0.0.2:0/0");
    model.restart("boot-2");
    model.handle(Input::Tick);
    let (view, world) = (model.view.clone(), model.look());
    model.handle(Input::View { began: model.boot, view: Ok(view) });
    model.handle(Input::Looked(Ok(world)));
    model.handle(Input::Recorded(Recorded::Written));
    model.until("open again", |model| model.refuses("n2") && model.seals().contains("n2"));
    assert!(model.logs().iter().any(|line| line.contains("breached")), "{:#?}", model.logs());
}

#[test]
fn a_gate_of_another_version_is_told_with_what_to_do() {
    let mut model = healthy();
    assert!(!model.alarms().contains("gate-other-version"));
    model.view.gate.as_mut().unwrap().other_version = ["n1".to_owned()].into();
    model.run(3 * SECOND);
    let alarm = model.guardian.alarms().into_iter().find(|alarm| alarm.code == "gate-other-version").unwrap();
    assert!(alarm.text.contains("n1") && alarm.advice[0].contains("gate install"), "{alarm:?}");
}

/// INV-9: its answer was lost.
#[test]
fn inv9_a_write_that_is_there_though_it_counts_as_failed_is_not_repeated() {
    let mut model = healthy();
    model.gate_answers_lost = true;
    model.lose_until_open("n2");
    model.gate_answers_lost = false;
    let count = writes(&model);
    model.run(20 * SECOND);
    assert_eq!(writes(&model), count);
    model.keys("n3").clear();
    model.until("told", |model| model.keys_of("n3").is_some_and(|keys| keys.contains_key(&seal("n2"))));
    assert_eq!(foreign(&model).len(), 1, "it counts as told");
}
