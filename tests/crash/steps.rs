//! A guardian killed after each single step of a fence and a release, and who goes on from there.

use std::collections::BTreeMap;
use std::fmt;

use crate::common::Site;
use crate::common::dice::Dice;
use crate::guard::{ASSERTED, Guard};
use crate::scene::{MEMBERS, Scene, site};

/// Who finishes what the killed one began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Successor {
    Another,
    Itself,
}

/// A step as a dry run took it: the so-many-th of its kind.
#[derive(Clone, PartialEq, Eq)]
struct Step {
    kind: String,
    of_kind: u32,
    in_release: bool,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.of_kind)
    }
}

fn guards(site: &Site) -> [Guard<'_>; 2] {
    [Guard::new(site, "first", "guard", &MEMBERS), Guard::new(site, "second", "spare", &MEMBERS)]
}

fn release() -> Vec<&'static str> {
    [&["release", "n1"], ASSERTED.as_slice()].concat()
}

/// Every step of a fence and its release, with nobody killed.
fn dry_run(site: &Site) -> Vec<Step> {
    let scene = Scene::new(site, 1);
    let [mut first, _] = guards(site);
    first.start();
    first.wait_until_leading();
    first.verb(&["fence", "n1"]).expect(0);
    scene.is_sealed(&scene.fence());
    let fence = first.steps().len();
    first.verb(&release()).expect(0);
    scene.is_released(&scene.fence());
    let steps = first.steps();
    first.kill();
    println!("nobody killed: {}", scene.nothing_was_done_twice());
    let mut seen = BTreeMap::new();
    let numbered = steps.into_iter().enumerate().map(|(number, kind)| {
        let of_kind = *seen.entry(kind.clone()).and_modify(|count| *count += 1).or_insert(1);
        Step { kind, of_kind, in_release: number >= fence }
    });
    numbered.collect()
}

/// The leader is killed after this step, and its successor finishes.
fn killed_after(site: &Site, step: &Step, successor: Successor) {
    let scene = Scene::new(site, 1);
    let [mut first, mut second] = guards(site);
    first.start_halting(&format!("after:{step}"));
    first.wait_until_leading();
    let verb = if step.in_release {
        first.verb(&["fence", "n1"]).expect(0);
        first.start_verb(&release())
    } else {
        first.start_verb(&["fence", "n1"])
    };
    first.wait_until_stopped();
    let left = scene.fence();
    scene.legal(&left);
    first.kill();
    verb.killed();
    let next = match successor {
        Successor::Another => &mut second,
        Successor::Itself => &mut first,
    };
    next.start();
    if step.in_release {
        let released = scene.until("released", next);
        scene.is_released(&released);
    } else {
        if scene.fence().is_null() {
            // It looked before the intent was recorded: the operator, who had no answer, asks again.
            next.verb(&["fence", "n1"]).expect(0);
        }
        let sealed = scene.until("sealed", next);
        scene.is_sealed(&sealed);
        // As long as it takes to hold it: what was sealed is proved anew first.
        next.until("the fence", |status| status["fences"][0]["state"] == "sealed");
        next.verb(&release()).expect(0);
        scene.is_released(&scene.fence());
    }
    next.kill();
    println!(
        "killed after {step}, {} in the ledger; {successor:?}: {}",
        left["state"].as_str().unwrap_or("nothing"),
        scene.nothing_was_done_twice()
    );
}

/// All steps with `GUARDIAN_STEPS=all`, else three, drawn from `GUARDIAN_SEED`.
#[test]
fn inv3_inv8_a_leader_killed_after_any_step_leaves_a_fence_that_its_successor_finishes() {
    let mut dice = Dice::from_env();
    let site = site();
    let steps = dry_run(&site);
    println!("{} steps: {}", steps.len(), steps.iter().map(Step::to_string).collect::<Vec<_>>().join(", "));
    let mut rounds: Vec<(&Step, Successor)> = steps
        .iter()
        .flat_map(|step| [Successor::Another, Successor::Itself].map(|successor| (step, successor)))
        .collect();
    if std::env::var("GUARDIAN_STEPS").as_deref() != Ok("all") {
        let drawn = (0..3).map(|_| rounds.swap_remove(dice.below(rounds.len() as u64).try_into().unwrap()));
        rounds = drawn.collect();
    }
    for (step, successor) in rounds {
        killed_after(&site, step, successor);
    }
}
