//! The gate waits for a seal within the healing that begins it, and for none that cannot come.

use rbd_guardian_core::fence::step::Step;
use rbd_guardian_core::guardian::io::Effect;
use rbd_guardian_core::guardian::settings::Trigger;
use rbd_guardian_core::model::gate_keys::{EPOCH, SEAL, WAIT};
use rbd_guardian_core::model::incus_snapshot::{Operation, OperationKind};

use crate::model::{Model, settings};
use crate::{SECOND, healthy};

/// What each member is told of how often to look.
fn looks(model: &Model, lost: &str) -> Option<String> {
    let told =
        ["n1", "n2", "n3"].map(|name| model.keys_of(name).unwrap().get(&format!("{WAIT}{lost}")).cloned());
    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
    told[0].clone()
}

fn lost(mut model: Model) -> Model {
    model.lose("n2");
    model.run(5 * SECOND);
    model
}

#[test]
fn a_lost_member_is_waited_for_until_its_seal_is_there() {
    let mut model = healthy();
    assert_eq!(looks(&model, "n2"), None);
    model.lose("n2");
    model.until("told", |model| looks(model, "n2").is_some());
    let epoch = model.keys("n1")[EPOCH].clone();
    model.run(60 * SECOND);
    assert_eq!(model.keys("n1")[EPOCH], epoch, "nothing is written again meanwhile");
    model.heal_is_refused("n2");
    model.until("open", |model| model.seals().contains("n2"));
    assert_eq!(looks(&model, "n2"), None, "told with the seal that it is over");
    assert!(model.keys("n1").contains_key(&format!("{SEAL}n2")));
}

#[test]
fn a_member_that_is_back_is_waited_for_no_longer() {
    let mut model = lost(healthy());
    assert!(looks(&model, "n2").is_some());
    model.bring_back("n2", 200_000 * SECOND);
    model.until("told", |model| looks(model, "n2").is_none());
    assert!(!model.changed_storage());
}

#[test]
fn nothing_is_waited_for_that_no_guardian_would_seal_by_itself() {
    let mut manual = settings();
    manual.trigger = Trigger::Manual;
    let mut model = healthy();
    model.restart_with(manual);
    model.run(10 * SECOND);
    assert_eq!(looks(&lost(model), "n2"), None, "fences are the operator's");

    let mut model = healthy();
    model.view.thresholds.healing = None;
    assert_eq!(looks(&lost(model), "n2"), None, "nothing is healed");

    let mut model = healthy();
    model.view.gate.as_mut().unwrap().scriptlets.values_mut().for_each(|text| *text = Ok(String::new()));
    assert_eq!(looks(&lost(model), "n2"), None, "there is no gate");

    let mut model = healthy();
    model.lose("n3");
    let model = lost(model);
    assert_eq!((looks(&model, "n2"), looks(&model, "n3")), (None, None), "the view is in doubt");

    let mut model = crate::sealed("n3");
    model.run(60 * SECOND);
    assert_eq!(looks(&lost(model), "n2"), None, "the storm brake");
}

#[test]
fn a_refused_fence_ends_the_wait_and_so_does_every_healing_after_it() {
    let mut model = healthy();
    model.daemons.iter_mut().for_each(|daemon| daemon.clients.clear());
    let mut settings = settings();
    settings.policy.protected = vec!["10.0.0.2/32".parse().unwrap()];
    model.restart_with(settings);
    model.run(10 * SECOND);
    let mut model = lost(model);
    assert!(looks(&model, "n2").is_some(), "not judged before it is wanted");
    model.heal_is_refused("n2");
    model.until("refused", |model| model.state("n2") == "refused");
    model.run(SECOND);
    assert_eq!(
        (looks(&model, "n2"), model.changed_storage()),
        (None, false),
        "at once, not when its time is over"
    );
    for _ in 0..3 {
        model.run(60 * SECOND);
        model.heal_is_refused("n2");
        model.run(SECOND);
        assert_eq!(looks(&model, "n2"), None, "waited for in vain once");
    }
}

#[test]
fn silent_pgs_end_the_wait_and_the_gate_opens_once_they_answer() {
    let mut model = lost(healthy());
    model.silent = [3].into();
    model.heal_is_refused("n2");
    model.until("pending", |model| model.state("n2") == "pending");
    model.until("told", |model| looks(model, "n2").is_none());
    model.run(60 * SECOND);
    model.heal_is_refused("n2");
    model.run(SECOND);
    assert_eq!(looks(&model, "n2"), None, "waited for in vain once");
    model.silent.clear();
    model.until("open", |model| model.seals().contains("n2"));
}

/// A scriptlet has no clock, and Incus ends it after 5 s.
#[test]
fn the_guardian_takes_its_word_back_while_nobody_knows_yet_whether_the_seal_comes() {
    let mut model = lost(healthy());
    model.silent = [3].into();
    model.heal_is_refused("n2");
    let announced = model.boot;
    model.until("told", |model| looks(model, "n2").is_none());
    let took = model.boot - announced;
    assert!((3 * SECOND..=4 * SECOND).contains(&took), "{took:?}");
    assert_eq!(model.state("n2"), "committed");
}

/// Incus lists the healing for as long as it lasts.
#[test]
fn a_healing_that_goes_on_is_waited_for_no_longer_than_one_that_is_announced() {
    let mut model = lost(healthy());
    model.silent = [3].into();
    let (id, location) = ("heal".to_owned(), "n1".to_owned());
    let heal = Operation { id, kind: OperationKind::Heal, location, instances: [].into() };
    model.view.operations = Some(vec![heal]);
    model.view.members.get_mut("n2").unwrap().heartbeat_age = Some(90 * SECOND);
    let announced = model.boot;
    model.until("told", |model| looks(model, "n2").is_none());
    let took = model.boot - announced;
    assert!((3 * SECOND..=6 * SECOND).contains(&took), "{took:?}");
}

/// From the announcement to the first entry nothing is read that was read while the member was lost: a silent monitor
/// would hold the look up for seconds, and a silent member its question for most of one.
#[test]
fn what_a_fence_needs_is_read_before_its_healing_is_announced() {
    let mut model = lost(healthy());
    model.run(20 * SECOND);
    let before = model.effects.len();
    model.unanswered.insert("n2".to_owned());
    model.heal_is_refused("n2");
    let sent = |effect: &Effect| matches!(effect, Effect::Fence(_, Step::Add(_)));
    model.until("an entry is sent", |model| model.effects.iter().any(sent));
    let after = &model.effects[before..];
    let until = after.iter().position(sent).unwrap();
    assert!(!after[..until].iter().any(|effect| matches!(effect, Effect::Look)), "{:#?}", &after[..until]);
    // Incus is: its announcement may have arrived late.
    assert!(after[..until].iter().any(|effect| matches!(effect, Effect::ReadView { .. })));
}

/// A look of before the loss, or an old one, serves no fence.
#[test]
fn a_fence_that_nothing_prepared_looks_first() {
    let mut model = healthy();
    model.looks_fail = true;
    let mut model = lost(model);
    model.run(20 * SECOND);
    model.looks_fail = false;
    let before = model.effects.len();
    model.heal_is_refused("n2");
    model.until("open", |model| model.seals().contains("n2"));
    assert!(model.effects[before..].iter().any(|effect| matches!(effect, Effect::Look)));
}
