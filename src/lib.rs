//! Makes a Ceph cluster refuse a lost Incus member's clients, and proves it PG by PG.
//!
//! [`rbd_guardian_core`] decides and is pure: inputs in, effects out, time as an argument. [`ceph`] performs effects on a
//! real cluster. [`cli`] turns verbs into requests and answers into text or JSON. What is guaranteed, and by
//! which test, is in `docs/guarantees.md`.

pub mod ceph;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod daemon;
pub mod deadline;
pub mod descriptors;
pub mod incus;
pub mod ledger;
pub mod printable;
mod serve;
mod shown;

/// Of this program.
pub use rbd_guardian_core::VERSION;
