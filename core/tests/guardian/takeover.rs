//! What a guardian makes of answers that come late, and of what a dead one left.

use rbd_guardian_core::fence::step::Step;
use rbd_guardian_core::guardian::io::Effect;
use rbd_guardian_core::guardian::report::Outcome;
use rbd_guardian_core::model::addr::Entry;
use rbd_guardian_core::model::fence_id::FenceId;
use rbd_guardian_core::model::incus_snapshot::MemberStatus;
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::overrides::Overrides;
use rbd_guardian_core::model::record::{FenceRecord, FenceState};
use rbd_guardian_core::model::target::Target;
use rbd_guardian_core::rules::loss_evidence::Health;
use rbd_guardian_core::rules::refusal::Refusal;

use crate::model::Model;
use crate::{SECOND, healthy, sealed};

fn count(model: &Model, is: impl Fn(&Step) -> bool) -> usize {
    let steps = model.effects.iter();
    steps.filter(|effect| matches!(effect, Effect::Fence(_, step) if is(step))).count()
}

fn barriers(model: &Model) -> usize {
    count(model, |step| matches!(step, Step::Barrier { .. }))
}

/// INV-1: the PGs were asked with a map of before.
#[test]
fn inv1_a_barrier_that_began_before_an_entry_was_removed_proves_nothing_after() {
    let mut model = healthy();
    model.lose("n2");
    model.run(3 * SECOND);
    // No PG of any pool: every one answers, seconds later.
    model.silent = [9999].into();
    model.heal_is_refused("n2");
    model.until("the barrier is on its way", |model| barriers(model) == 1);
    model.remove_entry("10.0.0.2:0/0");
    let before = barriers(&model);
    // Until the old barrier is answered.
    model.run(6 * SECOND);
    model.silent.clear();
    model.until("the gate is open", |model| model.seals().contains("n2"));
    let asserted = model.effects.iter().rposition(|effect| matches!(effect, Effect::Fence(_, Step::Add(_))));
    let asked =
        model.effects.iter().rposition(|effect| matches!(effect, Effect::Fence(_, Step::Barrier { .. })));
    assert!(barriers(&model) > before && asked > asserted, "sealed without having asked the PGs anew");
}

/// An intent that a guardian left, as the ledger has it.
fn intent(model: &Model, id: &FenceId, by: &str) -> FenceRecord {
    let record = model.ledger.fences[id].clone();
    let mut entries = record.entries.clone();
    entries.insert(Entry::Host("10.0.0.2".parse().unwrap()), None);
    let (state, by) = (FenceState::Intended, by.to_owned());
    FenceRecord { state, entries, by, sealed: None, proofs: Vec::new(), marks: [].into(), ..record }
}

/// A member that was fenced and released once, with the entries of its old clients.
fn released() -> (Model, FenceId) {
    let mut model = sealed("n2");
    model.uses.retain(|one| !one.image.name.ends_with("c2"));
    model.run(120 * SECOND);
    model.bring_back_until_released("n2", 20 * SECOND);
    let id = model.ledger.fences.keys().next().unwrap().clone();
    assert!(model.ledger.fences[&id].entries.values().any(Option::is_some), "old clients stay refused");
    (model, id)
}

#[test]
fn inv6_old_entries_of_a_member_that_is_back_are_not_taken_for_a_fence_that_was_begun() {
    let (mut model, id) = released();
    let left = intent(&model, &id, "the guardian");
    let kept: Vec<Entry> = left.entries.keys().copied().filter(|entry| !entry.is_host()).collect();
    model.ledger.fences.insert(id.clone(), left);
    model.restart("boot-2");
    model.run(20 * SECOND);
    assert!(!model.refuses("n2"), "its cluster reaches it");
    let record = &model.ledger.fences[&id];
    assert_eq!(record.state, FenceState::Released);
    assert!(kept.iter().all(|entry| record.entries.contains_key(entry)), "{record:#?}");
}

#[test]
fn inv6_an_intent_that_is_refused_when_it_is_planned_anew_is_never_carried_out() {
    let (mut model, id) = released();
    model.lose_until_open("n3");
    let left = intent(&model, &id, "root@somewhere");
    model.ledger.fences.insert(id.clone(), left);
    model.restart("boot-2");
    model.until("ended", |model| model.ledger.fences[&id].state != FenceState::Intended);
    assert!(!model.refuses("n2"), "the brake");
    model.run(120 * SECOND);
    model.bring_back_until_released("n3", 20 * SECOND);
    model.restart("boot-3");
    model.run(20 * SECOND);
    assert!(!model.refuses("n2"), "nobody asks for it any more");
}

fn fence_n2(over_doubt: bool, reason: Option<&str>) -> Request {
    Request::Fence {
        target: Target::Member("n2".to_owned()),
        overrides: Overrides {
            accept_incomplete: false,
            doubt: over_doubt,
            reachable: true,
            ..Overrides::default()
        },
        reason: reason.map(str::to_owned),
        by: "root@h".to_owned(),
    }
}

/// The answer to a request.
fn answer(model: &mut Model, number: u64, request: Request) -> Outcome {
    model.ask(number, request);
    model.until("answered", |model| model.answers().iter().any(|(answered, _)| *answered == number));
    model.answers().pop().unwrap().1
}

#[test]
fn inv7_where_every_form_is_in_doubt_the_operators_word_ends_it_on_record() {
    let (mut model, id) = released();
    let host: Entry = "10.0.0.2:0/0".parse().unwrap();
    model.change(|map| map.knows_ranges = false);
    model.ledger.fences.get_mut(&id).unwrap().in_doubt.insert(host);
    model.restart("boot-2");
    model.run(5 * SECOND);
    let refused = answer(&mut model, 1, fence_n2(false, Some("it is dead")));
    let Outcome::Refused(reasons) = refused else { panic!("{refused:?}") };
    assert_eq!(reasons, [Refusal::InDoubt { entry: host }]);
    assert!(reasons[0].to_string().contains("--over-doubt --reason"));
    let unsaid = answer(&mut model, 2, fence_n2(true, None));
    assert!(
        matches!(&unsaid, Outcome::Refused(why) if why[0].to_string().contains("--reason")),
        "{unsaid:?}"
    );
    assert!(!model.refuses("n2"));
    let sealed = answer(&mut model, 3, fence_n2(true, Some("g1 was restarted")));
    let Outcome::Sealed(record, _) = sealed else { panic!("{sealed:?}") };
    assert!(record.overrides.doubt && record.in_doubt.is_empty() && record.entries.contains_key(&host));
    model.until("in the record of the first fence as well", |model| {
        model.ledger.fences[&id].in_doubt.is_empty()
    });
    assert_eq!(
        record.evidence[0],
        "root@h goes over a removal in doubt and an answer of the member: g1 was restarted"
    );
    // It is over for the next fence as well.
    let (fence, reason, by) = ("n2".to_owned(), Some("off".to_owned()), "root@h".to_owned());
    let gone =
        answer(&mut model, 4, Request::Release { fence, since: None, assert_powered_off: true, reason, by });
    assert!(matches!(gone, Outcome::Released(..)), "{gone:?}");
    let sealed = answer(&mut model, 5, fence_n2(false, Some("again")));
    let Outcome::Sealed(record, _) = sealed else { panic!("{sealed:?}") };
    assert!(!record.overrides.doubt);
}

#[test]
fn inv7_a_form_that_is_free_of_doubt_is_taken_whatever_the_operator_permits() {
    let (mut model, id) = released();
    let host: Entry = "10.0.0.2:0/0".parse().unwrap();
    model.ledger.fences.get_mut(&id).unwrap().in_doubt.insert(host);
    model.restart("boot-2");
    model.run(5 * SECOND);
    let sealed = answer(&mut model, 1, fence_n2(true, Some("g1 was restarted")));
    let Outcome::Sealed(record, _) = sealed else { panic!("{sealed:?}") };
    assert!(!record.overrides.doubt && !record.entries.contains_key(&host));
    assert!(model.ledger.fences[&id].in_doubt.contains(&host), "still");
}

/// Healing gives a lost member a status of maintenance: who takes over afterwards never saw it offline.
#[test]
fn a_member_that_was_healed_is_not_healthy_for_a_guardian_that_takes_over() {
    let mut model = sealed("n2");
    model.view.members.get_mut("n2").unwrap().status = MemberStatus::Evacuated;
    model.view.members.get_mut("n3").unwrap().status = MemberStatus::Evacuated;
    model.restart("boot-2");
    model.run(40 * SECOND);
    let health = |name: &str| {
        let status = model.guardian.status(model.now());
        status.members.iter().find(|line| line.name == name).unwrap().health
    };
    assert_ne!(health("n2"), Health::Healthy);
    assert_eq!(health("n3"), Health::Healthy, "an operator evacuated it");
}
