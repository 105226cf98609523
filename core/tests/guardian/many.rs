//! Many fences at once.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use rbd_guardian_core::fence::step::Step;
use rbd_guardian_core::guardian::io::Effect;
use rbd_guardian_core::model::addr::Entry;
use rbd_guardian_core::model::record::FenceState;
use rbd_guardian_core::model::target::Target;

use crate::model::Model;
use crate::{SECOND, fence_of};

const FENCES: usize = 200;

fn held(model: &Model) -> usize {
    model.ledger.fences.values().filter(|fence| fence.state == FenceState::Sealed).count()
}

/// Fences of bare clients, each of its own.
fn with_fences() -> Model {
    let mut model = Model::new();
    model.run(10 * SECOND);
    for number in 0..FENCES as u64 {
        let client = format!("192.0.2.{}:0/{}", number % 250 + 1, number + 1).parse::<Entry>().unwrap();
        let target = Target::Addresses([client].into());
        model.ask(number, fence_of(target));
        if number % 20 == 0 {
            model.run(SECOND);
        }
    }
    model.until("all are sealed", |model| held(model) == FENCES);
    model
}

#[test]
fn inv1_hundreds_of_fences_are_taken_over_with_one_barrier_and_nothing_to_record() {
    let mut model = with_fences();
    let before = model.ledger.fences.clone();
    model.restart("boot-1");
    model.effects.clear();
    model.audit.clear();
    model.run(5 * SECOND);
    let count = |is: fn(&Step) -> bool| {
        model.effects.iter().filter(|effect| matches!(effect, Effect::Fence(_, step) if is(step))).count()
    };
    let (maps, barriers) =
        (count(|step| *step == Step::ReadMap), count(|step| matches!(step, Step::Barrier { .. })));
    println!("{maps} readings of the map, {barriers} barriers, {:?} recorded", model.audit);
    assert_eq!((maps, barriers), (2, 1));
    assert_eq!(model.ledger.fences, before);
    println!("checkpoints of {:?} bytes", checkpoints_have_each_map_once(&mut model));
}

/// What 200 held fences know together is written once: the map above all, here with 5,000 entries of others.
fn checkpoints_have_each_map_once(model: &mut Model) -> Vec<usize> {
    let until = model.now().wall + Duration::from_secs(86_400);
    let others =
        (0..5000).map(|n| (format!("198.51.100.{}:0/{}", n % 250 + 1, n + 1).parse().unwrap(), until));
    model.change(|map| map.blocklist.entries.extend(others));
    model.restart_recording(512 << 10);
    for _ in 0..10 {
        model.change(|_| {});
        model.run(2 * SECOND);
    }
    let mut text = String::new();
    MultiGzDecoder::new(&*model.guardian.recording()).read_to_string(&mut text).unwrap();
    let checkpoints: Vec<&str> = text.lines().filter(|line| line.starts_with(r#"{"checkpoint""#)).collect();
    let lengths: Vec<usize> = checkpoints.iter().map(|line| line.len()).collect();
    let maps: Vec<usize> =
        checkpoints.iter().map(|line| line.matches("198.51.100.7:0/4757").count()).collect();
    assert!(!maps.is_empty() && maps.iter().all(|count| *count <= 4), "{maps:?}");
    lengths
}

/// INV-1: a barrier that began before a fence's entries were there proves nothing about it.
#[test]
fn inv1_a_barrier_that_is_on_its_way_serves_nobody_who_asks_later() {
    let mut model = Model::new();
    model.run(10 * SECOND);
    model.silent = BTreeSet::from([3]);
    let fence = |client: &str| fence_of(Target::Addresses([client.parse::<Entry>().unwrap()].into()));
    model.ask(1, fence("192.0.2.1:0/1"));
    let is_barrier = |effect: &&Effect| matches!(effect, Effect::Fence(_, Step::Barrier { .. }));
    model.until("its barrier is on its way", |model| model.effects.iter().any(|effect| is_barrier(&effect)));
    model.ask(2, fence("192.0.2.2:0/2"));
    model.run(Duration::from_secs(3));
    assert_eq!(model.effects.iter().filter(is_barrier).count(), 1, "the second one waits");
    model.silent.clear();
    model.until("both are sealed", |model| held(model) == 2);
    let asked: BTreeSet<_> =
        model.effects.iter().filter(is_barrier).map(|effect| format!("{effect:?}")).collect();
    assert!(asked.len() >= 2, "{asked:?}");
    let proofs: Vec<_> = model.ledger.fences.values().map(|fence| fence.proofs[0].epoch).collect();
    assert!(proofs[0] != proofs[1], "each by an epoch that has its own entries: {proofs:?}");
}
