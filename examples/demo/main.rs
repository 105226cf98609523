//! The demo: what becomes of a container's disk when its member is lost and Incus heals it, without rbd-guardian and
//! with it.
//!
//! A real cluster of three Incus members on a real Ceph, in namespaces of this machine (`tests/lab`). Exit code 0 only
//! if the disk without the guardian was damaged, and the one with it was not. Run it with `make demo`.
// It is a program for people, on the tests' lab.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

#[path = "../../tests/common/mod.rs"]
mod common;

mod account;
mod ending;
mod interrupt;
mod scene;
mod teller;
mod with;
mod without;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::teller::Teller;

/// A real Incus cluster loses a member and heals its container elsewhere; then the member's cables are plugged in
/// again. First without rbd-guardian: two writers on one disk. Then with it.
///
/// Takes about six minutes, most of them waiting for Incus, which looks for lost members once a minute. Needs root,
/// and what `tests/lab/setup` installs. Ctrl-C ends it and leaves nothing behind.
#[derive(Parser)]
#[command(bin_name = "demo")]
struct Args {
    /// Only the half with rbd-guardian
    #[arg(long)]
    with: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    interrupt::end_with_ctrl_c()?;
    account::introduce()?;
    let teller = Teller::new();
    let without = if args.with { None } else { Some(without::play(&teller.of("without"))?) };
    let with = with::play(&teller.of("with"))?;
    Ok(account::compare(without.as_ref(), &with))
}
