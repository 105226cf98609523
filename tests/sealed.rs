//! INV-1: sealed means sealed. Writers write numbered blocks through the fence as fast as they can, cut off and not.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::thread;
use std::time::Duration;

use common::Site;
use common::dice::{Dice, number_from_env};
use common::round::{Counts, Cut, Draw, prepare, round, seal};
use lab::monotonic;

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
