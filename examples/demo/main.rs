//! The demo: what a cut-off host does to a disk that another host has taken over, without rbd-guardian and with it.
//!
//! Real Ceph, a real ext4 on a real RBD image, in network namespaces of this machine (`tests/lab`). Both halves run at
//! the same time, each on a cluster of its own. Exit code 0 only if the disk without the guardian was damaged, and
//! the one with it was not. Run it with `make demo`; Ctrl-C ends it and leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "../../tests/common/mod.rs"]
mod common;

mod account;
mod half;

use std::process::ExitCode;
use std::thread;

use anyhow::{Result, anyhow};
use lab::monotonic;

use crate::half::{Outcome, play};

/// How often the half without the guardian may get away with it.
const TRIES: u32 = 2;

fn main() -> Result<ExitCode> {
    account::introduce()?;
    let began = monotonic();
    let told = |half: &'static str| {
        move |stage: &str| println!("{:6.1} s  {half:<8}  {stage}", (monotonic() - began).as_secs_f64())
    };
    let (without, with) = thread::scope(|scope| {
        let without = scope.spawn(|| until_damaged(told("without")));
        let with = scope.spawn(|| play(true, told("with")));
        (without.join(), with.join())
    });
    let of =
        |half: thread::Result<Result<Outcome>>| half.map_err(|_| anyhow!("a half of the demo panicked"))?;
    let (without, with) = (of(without)?, of(with)?);
    Ok(account::compare(&without, &with))
}

/// Two writers that never touch the same block do no damage: then it is played again.
fn until_damaged(say: impl Fn(&str)) -> Result<Outcome> {
    let mut outcome = play(false, &say)?;
    for _ in 1..TRIES {
        if outcome.damaged() {
            break;
        }
        say("no damage this time, by luck: once more");
        outcome = play(false, &say)?;
    }
    Ok(outcome)
}
