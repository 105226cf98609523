//! Which images a sweep reads: those that may be in use by each, the others by turns.

use std::collections::BTreeSet;

use rbd_guardian_core::guardian::io::Effect;
use rbd_guardian_core::model::image_users::ImageUse;
use rbd_guardian_core::model::incus_snapshot::Notice;
use rbd_guardian_core::model::sweep_part::{SweepPart, SweepSelection};
use rbd_guardian_core::model::target::Target;
use rbd_guardian_core::model::volume::ImageName;

use crate::model::{Model, id, settings};
use crate::{SECOND, fence_anyway};

const IDLE: u32 = 400;

fn image(name: &str) -> ImageName {
    ImageName { pool: "incus".into(), namespace: String::new(), name: format!("container_{name}") }
}

fn parts(model: &Model) -> Vec<SweepPart> {
    let part = |effect: &Effect| if let Effect::Sweep(part) = effect { Some(*part) } else { None };
    model.effects.iter().filter_map(part).collect()
}

fn has(selection: &SweepSelection, image: &ImageName) -> bool {
    selection.has(&image.pool, &image.namespace, &image.name)
}

/// How many images of instances that do not run a sweep of this part reads.
fn idle_in(model: &Model, part: SweepPart) -> usize {
    let selection = model.guardian.sweep_selection(part);
    (0..IDLE).filter(|n| has(&selection, &image(&format!("more-{n}")))).count()
}

/// Somebody whom nobody can name.
fn strange_user(name: &str) -> ImageUse {
    let unknown = vec!["watcher client.9 with the address '-'".to_owned()];
    ImageUse { image: image(name), watchers: Vec::new(), locks: Vec::new(), unknown }
}

#[test]
fn images_in_use_are_read_by_each_sweep_and_the_others_within_ten_minutes() {
    let mut model = Model::with_volumes(IDLE);
    model.run(10 * SECOND);
    assert_eq!(parts(&model)[0], SweepPart::Whole, "nothing is known yet");
    let before = parts(&model).len();
    model.run(610 * SECOND);
    let parts = parts(&model)[before..].to_vec();
    // As often as before: each 30 s.
    assert!((20..=21).contains(&parts.len()), "{parts:?}");
    let mut read = BTreeSet::new();
    for part in parts {
        let selection = model.guardian.sweep_selection(part);
        for running in ["c1", "c2", "c3"] {
            assert!(has(&selection, &image(running)), "{running}");
        }
        let idle = (0..IDLE).filter(|n| has(&selection, &image(&format!("more-{n}"))));
        let idle: Vec<u32> = idle.collect();
        // A twentieth is 20.
        assert!((5..=45).contains(&idle.len()), "{}", idle.len());
        read.extend(idle);
    }
    assert_eq!(read.len(), IDLE as usize);
}

#[test]
fn who_sweeps_each_second_reads_each_image_within_twenty() {
    let mut settings = settings();
    settings.guard.every = SECOND;
    let mut model = Model::with_volumes(IDLE);
    model.restart_with(settings);
    model.run(10 * SECOND);
    let before = parts(&model).len();
    model.run(21 * SECOND);
    let parts = parts(&model)[before..].to_vec();
    let turns = parts.into_iter().map(|part| model.guardian.sweep_selection(part));
    let turns: Vec<_> = turns.collect();
    assert!((0..IDLE).all(|n| turns.iter().any(|turn| has(turn, &image(&format!("more-{n}"))))));
}

#[test]
fn an_image_that_comes_into_use_is_read_by_the_next_sweep_and_for_as_long_as_it_has_a_user() {
    let mut model = Model::with_volumes(IDLE);
    model.run(70 * SECOND);
    let in_use =
        |model: &Model, name: &str| has(&model.guardian.sweep_selection(SweepPart::InUse), &image(name));
    assert_eq!(idle_in(&model, SweepPart::InUse), 0);
    let instances = model.view.instances.as_mut().unwrap();
    instances.get_mut(&id("more-7")).unwrap().details.as_mut().unwrap().running = true;
    model.handle(rbd_guardian_core::guardian::io::Input::Notice(Notice::Changed));
    model.until("it is known to run", |model| in_use(model, "more-7"));
    // A user of an image that nobody should use is found in its turn, and followed from then on.
    model.uses.push(strange_user("more-8"));
    model.run(620 * SECOND);
    assert!(in_use(&model, "more-8"));
    model.uses.pop();
    model.run(31 * SECOND);
    assert!(!in_use(&model, "more-8"));
}

#[test]
fn what_a_sweep_could_not_read_is_read_by_the_next_one() {
    let mut model = Model::with_volumes(IDLE);
    model.run(70 * SECOND);
    model.unread = vec!["pool incus: no answer".to_owned()];
    let before = parts(&model).len();
    model.until("a sweep", |model| parts(model).len() > before);
    model.unread.clear();
    model.until("another", |model| parts(model).len() > before + 1);
    model.run(31 * SECOND);
    let parts = parts(&model);
    assert!(matches!(parts[before], SweepPart::Turn { .. }), "{parts:?}");
    assert_eq!(parts[before + 1], SweepPart::Whole);
    assert!(matches!(parts[before + 2], SweepPart::Turn { .. }), "{parts:?}");
}

/// INV-2: a gate waits for each image of its member, also of an instance that does not run.
#[test]
fn inv2_a_gate_waits_for_images_of_its_member_that_are_not_in_use() {
    let mut model = Model::with_volumes(IDLE);
    model.run(70 * SECOND);
    model.uses.push(strange_user("more-3"));
    model.ask(1, fence_anyway(Target::Member("n1".into())));
    model.until("sealed", |model| model.state("n1") == "sealed");
    for _ in 0..80 {
        model.step();
        assert!(!model.seals().contains("n1"), "{:#?}", model.logs());
    }
    model.uses.pop();
    model.until("the gate is open", |model| model.seals().contains("n1"));
}
