//! A leader stopped (SIGSTOP) until another one has taken over and finished, and then continued: INV-7.

use std::thread;

use crate::common::Site;
use crate::common::dice::{Dice, number_from_env};
use crate::guard::{ASSERTED, Guard};
use crate::scene::{MEMBERS, Scene, site};

/// Steps with something to be sent late, or an answer to be heard late.
const FENCE: [&str; 5] =
    ["record-intended", "fence-add", "fence-read-map:2", "fence-barrier", "record-sealed"];
const RELEASE: [&str; 5] = [
    "record-releasing",
    "release-read-clients",
    "record-releasing:2",
    "release-read-map:2",
    "record-released",
];

fn one<'a>(dice: &mut Dice, of: &[&'a str]) -> &'a str {
    of[usize::try_from(dice.below(of.len() as u64)).unwrap()]
}

fn round(site: &Site, dice: &mut Dice) {
    let scene = Scene::new(site, 1);
    let mut first = Guard::new(site, "first", "guard", &MEMBERS);
    let mut second = Guard::new(site, "second", "spare", &MEMBERS);
    let in_release = dice.below(2) == 1;
    let at = format!(
        "{}:{}",
        one(dice, &["before", "after"]),
        one(dice, if in_release { &RELEASE } else { &FENCE })
    );
    let instant = (dice.below(2) == 1).then(|| dice.millis(2500));
    first.start_halting(if instant.is_some() { "" } else { &at });
    first.wait_until_leading();
    second.start();
    let release = [&["release", "n1"], ASSERTED.as_slice()].concat();
    let verb = if in_release {
        first.verb(&["fence", "n1"]).expect(0);
        first.start_verb(&release)
    } else {
        first.start_verb(&["fence", "n1"])
    };
    match instant {
        Some(instant) => {
            // Not a wait: the instant is drawn.
            thread::sleep(instant);
            first.process().stop().unwrap();
        }
        None => first.wait_until_stopped(),
    }
    let left = scene.fence();
    scene.legal(&left);
    second.wait_until_leading();

    // What was not recorded was not begun: then the operator, who had no answer, asks again.
    let taken = scene.fence();
    let finished = if in_release && taken["state"] == "sealed" || taken.is_null() {
        second.verb(if in_release { &release } else { &["fence", "n1"] }).expect(0);
        scene.fence()
    } else {
        let ends = ["released", if in_release { "released" } else { "sealed" }];
        scene.until(if taken["state"] == "released" { ends[0] } else { ends[1] }, &second)
    };
    let state = finished["state"].as_str().unwrap().to_owned();
    let (epoch, blocklist) = (site.epoch(), site.blocklist());
    first.process().cont().unwrap();
    let why = first.wait_until_deposed(&second);
    verb.killed();
    assert_eq!(site.blocklist(), blocklist, "the old leader changed it, epoch {epoch}");
    assert_eq!(scene.fence(), finished, "the old leader changed it");
    scene.writes_alone("second");
    if state == "sealed" {
        second.until("the fence", |status| status["fences"][0]["state"] == "sealed");
        scene.is_sealed(&finished);
        second.verb(&release).expect(0);
    }
    scene.is_released(&scene.fence());
    let at = instant.map_or(at, |instant| {
        format!("{instant:?} into the {}", if in_release { "release" } else { "fence" })
    });
    println!(
        "stopped {at}, {} in the ledger: {state} by the second; the first: {why}; {}",
        left["state"].as_str().unwrap_or("nothing"),
        scene.nothing_was_done_twice()
    );
    first.kill();
    second.kill();
}

/// `GUARDIAN_ROUNDS` rounds (2), drawn from `GUARDIAN_SEED`.
#[test]
fn inv7_a_leader_stopped_past_its_lease_does_nothing_when_it_is_continued() {
    let mut dice = Dice::from_env();
    let site = site();
    for number in 1..=number_from_env("GUARDIAN_ROUNDS", 2) {
        print!("{number}: ");
        round(&site, &mut dice);
    }
}
