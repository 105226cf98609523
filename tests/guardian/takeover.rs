//! What a guardian makes of answers that come late, and of what a dead one left.

use rbd_guardian::domain::addr::Entry;
use rbd_guardian::domain::fence;
use rbd_guardian::domain::guardian::io::Effect;
use rbd_guardian::domain::record::{FenceRecord, FenceState};

use crate::model::Model;
use crate::{SECOND, healthy, sealed};

fn count(model: &Model, is: impl Fn(&fence::Effect) -> bool) -> usize {
    let steps = model.effects.iter();
    steps.filter(|effect| matches!(effect, Effect::Fence(_, step) if is(step))).count()
}

fn barriers(model: &Model) -> usize {
    count(model, |step| matches!(step, fence::Effect::Barrier { .. }))
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
    let asserted =
        model.effects.iter().rposition(|effect| matches!(effect, Effect::Fence(_, fence::Effect::Add(_))));
    let asked = model
        .effects
        .iter()
        .rposition(|effect| matches!(effect, Effect::Fence(_, fence::Effect::Barrier { .. })));
    assert!(barriers(&model) > before && asked > asserted, "sealed without having asked the PGs anew");
}

/// An intent that a guardian left, as the ledger has it.
fn intent(model: &Model, id: &str, by: &str) -> FenceRecord {
    let record = model.ledger.fences[id].clone();
    let mut entries = record.entries.clone();
    entries.insert(Entry::Host("10.0.0.2".parse().unwrap()), None);
    let (state, by) = (FenceState::Intended, by.to_owned());
    FenceRecord { state, entries, by, sealed: None, proofs: Vec::new(), marks: [].into(), ..record }
}

/// A member that was fenced and released once, with the entries of its old clients.
fn released() -> (Model, String) {
    let mut model = sealed("n2");
    model.uses.retain(|one| !one.image.name.ends_with("c2"));
    model.run(120 * SECOND);
    model.bring_back("n2", 20 * SECOND);
    model.until("released", |model| model.state("n2") == "watching" && !model.refuses("n2"));
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
    model.lose("n3");
    model.run(3 * SECOND);
    model.heal_is_refused("n3");
    model.until("the gate is open", |model| model.seals().contains("n3"));
    let left = intent(&model, &id, "root@somewhere");
    model.ledger.fences.insert(id.clone(), left);
    model.restart("boot-2");
    model.until("ended", |model| model.ledger.fences[&id].state != FenceState::Intended);
    assert!(!model.refuses("n2"), "the brake");
    model.run(120 * SECOND);
    model.bring_back("n3", 20 * SECOND);
    model.until("released", |model| model.state("n3") == "watching" && !model.refuses("n3"));
    model.restart("boot-3");
    model.run(20 * SECOND);
    assert!(!model.refuses("n2"), "nobody asks for it any more");
}
