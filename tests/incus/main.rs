//! Real Incus and real Ceph, the guardian between them. One program, so that two labs at a time share its waits for healing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "../common/mod.rs"]
mod common;

mod coverage;
mod false_api;
mod gate;
mod live;
mod manual;
mod returns;
mod second_writer;
mod story;
mod wrong_view;
