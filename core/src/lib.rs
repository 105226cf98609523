//! What rbd-guardian decides, without performing anything: no I/O, no clock, no thread.
//!
//! Inputs go in with the time as an argument, effects come out as plain data, and what became of an effect is another
//! input. The same core runs in the daemon, in verbs that run alone, and in tests. This package knows no runtime, no
//! librados and no HTTP: its `Cargo.toml` says so. `docs/design.md` describes the protocol.

pub mod fence;
pub mod guardian;
pub mod model;
pub mod mutants;
pub mod recording;
pub mod rules;

/// Of the program, which has one version for all its packages.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
