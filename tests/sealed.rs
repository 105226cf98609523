//! INV-1: sealed means sealed. Writers write numbered blocks through the fence as fast as they can, cut off and not.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use common::dice::{Dice, number_from_env};
use common::guarded::SOON;
use common::guardian::Guardian;
use common::pending::{lead, pgs_led_by};
use common::round::{Counts, Cut, Draw, prepare, round, seal};
use common::{LIMIT, Site};
use lab::{Errno, Pool, monotonic, wait_for};

/// The kinds of rounds: every number of writers meets every kind of cut before any meets it again.
fn kinds(dice: &mut Dice) -> impl Iterator<Item = (usize, u8)> + use<> {
    let mut kinds: Vec<(usize, u8)> =
        [0, 1, 8].into_iter().flat_map(|writers| (0..3).map(move |cut| (writers, cut))).collect();
    for last in (1..kinds.len()).rev() {
        kinds.swap(last, usize::try_from(dice.below(last as u64 + 1)).unwrap());
    }
    kinds.into_iter().cycle()
}

fn draw(dice: &mut Dice, (writers, cut): (usize, u8)) -> Draw {
    Draw {
        writers,
        depth: [1, 2, 4, 16][usize::try_from(dice.below(4)).unwrap()],
        cut: match cut {
            0 => Cut::Never,
            1 => Cut::Before,
            _ => Cut::During(dice.millis(1500)),
        },
        healed_after: dice.millis(3000),
    }
}

fn site(images: usize) -> Site {
    let site = Site::small();
    prepare(&site, images);
    site
}

/// `GUARDIAN_ROUNDS` rounds (8), drawn from `GUARDIAN_SEED`.
#[test]
fn inv1_after_sealed_no_write_is_taken_in_randomised_rounds() {
    let rounds = number_from_env("GUARDIAN_ROUNDS", 8);
    let mut dice = Dice::from_env();
    let kinds = kinds(&mut dice);
    let site = site(8);
    let mut total = Counts::default();
    for (number, kind) in (1..=rounds).zip(kinds) {
        let draw = draw(&mut dice, kind);
        println!("round {number}: {draw}");
        let counts = round(&site, &draw);
        println!("  {counts}");
        total.acked_before += counts.acked_before;
        total.refused_after += counts.refused_after;
        total.late_answers += counts.late_answers;
        total.hashes += counts.hashes;
    }
    println!(
        "{rounds} rounds: {} writes acknowledged before a seal, 0 taken after it, {} refused after it, {} answers heard late, \
         {} images unchanged",
        total.acked_before, total.refused_after, total.late_answers, total.hashes
    );
}

/// The writers of a healed host try for two minutes.
#[test]
fn inv1_a_sealed_image_does_not_change_for_two_minutes_after_the_link_healed() {
    const WATCHED: Duration = Duration::from_secs(120);
    const EVERY: Duration = Duration::from_secs(4);
    let draw = Draw { writers: 2, depth: 4, cut: Cut::Before, healed_after: Duration::ZERO };
    let site = site(draw.writers);
    let sealed = seal(&site, &draw);
    site.lab.heal("n1").unwrap();
    let healed = monotonic();
    sealed.wait_for_refusals();
    let mut counts = Counts::default();
    while monotonic() - healed < WATCHED {
        counts = Counts { hashes: counts.hashes, ..Counts::default() };
        sealed.check(&mut counts);
        // Not a wait for anything: the time in between is what is watched.
        thread::sleep(EVERY);
    }
    sealed.wait_for_refusals();
    println!(
        "{:.0?} after the link healed: {} writes refused, 0 taken, {} answers heard late, {} hashes taken, none changed",
        monotonic() - healed,
        counts.refused_after,
        counts.late_answers,
        counts.hashes
    );
}

/// INV-1: what a PG answers counts, however late it is. This OSD takes a client's operations up to 40 s late, so hardly one
/// is answered within one look of the guardian (5 s), and many not before an operation on its own connection ends (15 s).
#[test]
fn inv1_pgs_that_answer_late_are_proved_by_their_late_answers() {
    const LATEST: &str = "40";
    const LOOK: Duration = Duration::from_secs(5);
    const OWN: Duration = Duration::from_secs(15);
    /// What a look at a pool without images reads.
    const LOOKED_AT: [&str; 6] =
        ["rbd_directory", "rbd_namespace", "rbd_info", "rbd_trash", "rbd_children", "rbd_mirroring"];
    let site = Site::small();
    lead(&site.lab, 0, "rbd-guardian", &[]);
    site.lab.pool("late", Pool::replicated(16, 1)).unwrap();
    lead(&site.lab, 1, "late", &[]);
    lead(&site.lab, 2, "late", &LOOKED_AT);
    let late = pgs_led_by(&site.lab, 2);
    assert!(late.len() >= 8, "{late:?}");
    let mut client = site.lab.host("n1").idle_client("late").unwrap();
    let mut write = || -> Vec<Result<(), Errno>> {
        (0..64).map(|number| client.try_write(&format!("lab.{number}")).unwrap()).collect()
    };
    assert!(write().iter().all(Result::is_ok));

    // Of connections of clients that begin from now on.
    for (option, value) in [("probability", "1"), ("max", LATEST), ("type", "client")] {
        site.lab.ceph(&["config", "set", "osd.2", &format!("ms_inject_delay_{option}"), value]).unwrap();
    }
    wait_for("the OSD to have the delay", SOON, || {
        let shown = site.lab.ceph(&["config", "show", "osd.2", "ms_inject_delay_type"])?;
        Ok((shown == "client").then_some(()))
    })
    .unwrap();
    let guard = Guardian::new(&site, "guard", "guard");
    let member = |name| format!("[[member]]\nname = \"{name}\"\naddresses = [\"{}\"]\n", site.ip(name));
    guard.configure("", &["n1", "n2"].map(member).concat());
    guard.start();
    guard.wait_until_leading(SOON);

    let asked = monotonic();
    let pending = guard.verb(&["fence", "n1", "--reason", "cable", "--timeout", "10s"]).expect(3).json;
    assert_eq!(pending["state"], "pending", "{pending:#}");
    let mut answered: BTreeMap<String, Duration> = BTreeMap::new();
    guard.wait_for_status("n1 to be sealed", LIMIT, |status| {
        let fence = &status["fences"][0];
        let named = |pg: &&String| fence["pending"].as_array().into_iter().flatten().any(|one| one == *pg);
        for pg in late.iter().filter(|pg| !named(pg)) {
            answered.entry(pg.clone()).or_insert_with(|| monotonic() - asked);
        }
        fence["state"] == "sealed"
    });
    println!("seen as proved after {answered:.1?}, sealed {:.1?} after the command", monotonic() - asked);
    let beyond = |limit: Duration| answered.values().filter(|took| **took > limit).count();
    assert!(
        beyond(LOOK) > 0 && beyond(OWN) > 0,
        "the delays were too short to show anything: {answered:.1?}"
    );
    assert_eq!(write(), [Err(Errno::ESHUTDOWN); 64]);
}
