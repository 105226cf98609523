//! Deliberate errors of the protocol (`core/src/mutants.rs`): drawn worlds find each.
//!
//! `GUARDIAN_MUTANT_WORLDS` says how many histories are drawn for each at most.

use std::panic;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rbd_guardian_core::mutants::{self, Mutant};

use super::{History, number};

/// What a history breaks with this error made.
fn breaks(mutant: Mutant, seed: u64) -> Option<String> {
    let history = History::draw(seed);
    mutants::switch(Some(mutant));
    let ran = panic::catch_unwind(|| history.run());
    mutants::switch(None);
    match ran {
        Ok(ran) => ran.err().map(|(broken, _)| broken),
        Err(_) => Some("panicked".to_owned()),
    }
}

/// The first history of those drawn that breaks something.
fn found(mutant: Mutant, worlds: u64) -> Option<(u64, String)> {
    let (next, found) = (AtomicU64::new(0), Mutex::new(None::<(u64, String)>));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let seed = next.fetch_add(1, Ordering::Relaxed)
                    && seed < worlds
                    && found.lock().unwrap().is_none()
                {
                    if let Some(broken) = breaks(mutant, seed) {
                        let mut found = found.lock().unwrap();
                        if found.as_ref().is_none_or(|(before, _)| seed < *before) {
                            *found = Some((seed, broken));
                        }
                    }
                }
            });
        }
    });
    found.into_inner().unwrap()
}

#[test]
#[ignore = "some minutes"]
fn each_deliberate_error_is_found_by_worlds_drawn_at_random() {
    let worlds = number("GUARDIAN_MUTANT_WORLDS", 600);
    let mut alive = Vec::new();
    for mutant in Mutant::ALL {
        match found(*mutant, worlds) {
            Some((seed, broken)) => println!("{mutant:?}: seed {seed}: {broken}"),
            None => {
                println!("{mutant:?}: not found");
                alive.push(*mutant);
            }
        }
    }
    assert!(alive.is_empty(), "not found in {worlds} histories each: {alive:?}");
}
