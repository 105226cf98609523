//! Real Incus and real Ceph, the guardian between them. One program, so that two labs at a time share its waits for healing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "../common/mod.rs"]
mod common;

mod addresses;
mod bare;
mod besieged;
mod checker;
mod coverage;
mod false_api;
mod faults;
mod found;
mod gate;
mod gate_alone;
mod gate_eye;
mod gate_steps;
mod leads;
mod live;
mod manual;
mod no_candidate;
mod rebalance;
mod returns;
mod second_writer;
mod siege;
mod story;
mod thousand;
mod wrong_view;

use std::fs::File;

use lab::{Host, World};
use nix::sched::{CloneFlags, setns};

/// Only there a third Incus cluster is not too much beside the others: `tests/run` and `make soak` name that world.
fn in_the_newest_world() -> bool {
    let is_asked = std::env::var("GUARDIAN_WORLD").as_deref() == Ok("newest");
    let is_there = is_asked && common::prepared(World::Newest.folder()).is_some();
    if !is_there {
        println!("skipped: GUARDIAN_WORLD=newest runs it");
    }
    is_there
}

/// Runs on a thread that sees the network of this host.
fn from<T: Send>(host: &Host, run: impl FnOnce() -> T + Send) -> T {
    let net = host.root().parent().unwrap().join("ns/net");
    std::thread::scope(|scope| {
        let inside = move || {
            setns(File::open(net).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            run()
        };
        scope.spawn(inside).join().unwrap()
    })
}
