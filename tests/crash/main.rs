//! Guardians killed and stopped wherever it hurts, and what is left of their fences: on real Ceph.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "../common/mod.rs"]
mod common;

mod breach;
mod clock;
mod faults;
mod guard;
mod late;
mod scene;
mod siege;
mod steps;
mod stopped;
mod unrecorded;
