//! A member that answers when it is asked itself is not fenced, whatever its cluster says of it (INV-6).

use std::time::Duration;

use rbd_guardian_core::guardian::io::{Effect, Input};
use rbd_guardian_core::guardian::report::Outcome;
use rbd_guardian_core::model::incus_snapshot::{MemberState, MemberStatus, Notice};
use rbd_guardian_core::model::target::Target;

use crate::model::{Model, id};
use crate::{SECOND, fence_anyway, healthy};

/// The member answers again; what its cluster says of it stays as it is.
fn answers(model: &mut Model, member: &str) {
    let machine = Some(format!("machine-{}", member.trim_start_matches('n')));
    model.states.insert(member.to_owned(), MemberState { uptime: 200_000 * SECOND, machine });
}

fn evacuate(model: &mut Model, member: &str) {
    let view = model.view.members.get_mut(member).unwrap();
    (view.status, view.heartbeat_age) = (MemberStatus::Evacuated, None);
    let instance = model.view.instances.as_mut().unwrap().get_mut(&id("c2")).unwrap();
    instance.location = "n3".to_owned();
}

#[test]
fn inv6_a_member_that_answers_again_and_is_evacuated_by_hand_is_not_fenced() {
    let mut model = healthy();
    model.lose("n2");
    model.run(30 * SECOND);
    assert_eq!(model.state("n2"), "suspect");
    // It is back, and evacuated before its heartbeat is written: the state of maintenance hides that it is Online.
    answers(&mut model, "n2");
    model.run(3 * SECOND);
    evacuate(&mut model, "n2");
    model.run(120 * SECOND);
    model.heal_is_refused("n2");
    model.run(120 * SECOND);
    assert!(!model.changed_storage(), "{:#?}", model.logs());
    assert_eq!((model.state("n2"), model.ledger.fences.len()), ("watching", 0));
}

#[test]
fn inv6_an_evacuation_by_hand_in_the_same_moment_is_withdrawn_before_anything_is_sent() {
    let mut model = healthy();
    model.lose("n2");
    model.run(30 * SECOND);
    answers(&mut model, "n2");
    evacuate(&mut model, "n2");
    model.run(120 * SECOND);
    assert!(!model.changed_storage(), "{:#?}", model.logs());
    assert_eq!(model.state("n2"), "watching");
}

#[test]
fn inv6_a_member_that_its_cluster_calls_offline_and_that_answers_is_not_fenced() {
    for gate_everywhere in [true, false] {
        let mut model = healthy();
        if !gate_everywhere {
            model.view.gate.as_mut().unwrap().scriptlets.insert("n3".to_owned(), Ok(String::new()));
        }
        model.lose_for_long("n2");
        answers(&mut model, "n2");
        for _ in 0..20 {
            model.run(5 * SECOND);
            model.heal_is_refused("n2");
        }
        assert!(!model.changed_storage(), "{:#?}", model.logs());
        assert_eq!(model.ledger.fences.len(), 0, "{:#?}", model.logs());
        // Silent from now on: an answer of before protects nothing.
        model.states.remove("n2");
        model.run(5 * SECOND);
        model.heal_is_refused("n2");
        model.until("sealed", |model| model.state("n2") == "sealed");
    }
}

#[test]
fn inv6_it_is_asked_once_more_between_the_intent_and_the_first_entry() {
    let mut model = healthy();
    model.lose("n2");
    model.run(30 * SECOND);
    model.heal_is_refused("n2");
    model.until("sealed", |model| model.state("n2") == "sealed");
    let at = |what: &dyn Fn(&Effect) -> bool| model.effects.iter().position(what).unwrap();
    let intended = at(&|effect| matches!(effect, Effect::Record { what, .. } if what.ends_with("intended")));
    let added = at(&|effect| format!("{effect:?}").contains("Add("));
    let asked = |effect: &Effect| *effect == Effect::ReadMemberState("n2".to_owned());
    assert!(model.effects[intended..added].iter().any(asked), "{:#?}", &model.effects[intended..added]);
    assert!(model.effects[..intended].iter().any(asked), "and before the intent");
}

#[test]
fn inv6_nothing_is_intended_before_the_member_was_asked_and_had_its_time_to_answer() {
    let mut model = healthy();
    model.lose("n2");
    answers(&mut model, "n2");
    for _ in 0..40 {
        model.heal_is_refused("n2");
        model.step();
    }
    let intends =
        |effect: &Effect| matches!(effect, Effect::Record { what, .. } if what.ends_with("intended"));
    assert!(!model.effects.iter().any(intends), "{:#?}", model.logs());
    assert!(model.state("n2") != "unknown" && model.ledger.fences.is_empty());
}

#[test]
fn inv6_an_answer_that_comes_after_the_intent_is_waited_for() {
    let mut model = healthy();
    model.lose("n2");
    model.unanswered.insert("n2".to_owned());
    model.run(30 * SECOND);
    model.heal_is_refused("n2");
    model.until("intended", |model| !model.ledger.fences.is_empty());
    model.step();
    model.step();
    model.handle(Input::Answered("n2".to_owned()));
    model.run(60 * SECOND);
    assert!(!model.changed_storage(), "{:#?}", model.logs());
    assert!(model.ledger.fences.is_empty(), "withdrawn");
}

#[test]
fn a_question_without_an_answer_costs_a_fence_next_to_nothing() {
    let mut model = healthy();
    model.lose("n2");
    model.unanswered.insert("n2".to_owned());
    model.run(30 * SECOND);
    model.heal_is_refused("n2");
    let refused = model.boot;
    model.until("sealed", |model| model.state("n2") == "sealed");
    assert!(model.boot - refused < 5 * SECOND, "{:?}", model.boot - refused);
}

#[test]
fn an_answer_without_a_state_is_an_answer() {
    let mut model = healthy();
    model.lose("n2");
    model.unanswered.insert("n2".to_owned());
    model.run(30 * SECOND);
    model.handle(Input::Answered("n2".to_owned()));
    evacuate(&mut model, "n2");
    model.run(60 * SECOND);
    assert!(!model.changed_storage(), "{:#?}", model.logs());
}

#[test]
fn an_operators_fence_needs_no_silence_and_the_core_says_whether_the_member_answers() {
    let mut model = healthy();
    let since = model.boot;
    assert_eq!(model.guardian.answers_since("n2", since), None, "not asked since");
    model.ask(1, fence_anyway(Target::Member("n2".to_owned())));
    model.until("answered", |model| !model.answers().is_empty());
    assert!(matches!(model.answers()[0], (1, Outcome::Sealed(..))));
    assert_eq!(model.guardian.answers_since("n2", since), Some(true));
    let mut model = healthy();
    model.lose("n2");
    model.run(3 * SECOND);
    let since = model.boot;
    model.run(Duration::from_secs(3));
    assert_eq!(model.guardian.answers_since("n2", since), Some(false));
}

fn listings(model: &Model) -> usize {
    model.effects.iter().filter(|effect| **effect == Effect::ReadView { whole: true }).count()
}

/// How many listings a second of announcements leads to, ten seconds long.
fn listings_while_announced(model: &mut Model) -> usize {
    let (before, end) = (listings(model), model.now().boot + 10 * SECOND);
    while model.now().boot < end {
        model.handle(Input::Notice(Notice::Changed));
        model.step();
    }
    listings(model) - before
}

/// A CI that launches instances all the time must not make Incus list all of them all the time; a fence waits for no listing.
#[test]
fn what_is_announced_all_the_time_is_listed_for_a_small_share_of_it() {
    let mut model = healthy();
    model.listing_takes = SECOND;
    model.run(61 * SECOND);
    let before = listings(&model);
    model.run(10 * SECOND);
    model.handle(Input::Notice(Notice::Changed));
    model.run(SECOND);
    assert_eq!(listings(&model), before + 1, "one announcement is listed at once");
    let calm = listings_while_announced(&mut model);
    assert!((1..=3).contains(&calm), "{calm}");
    model.lose("n2");
    model.run(2 * SECOND);
    let lost = listings_while_announced(&mut model);
    assert!(lost >= 10, "{lost}");
}
