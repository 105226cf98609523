//! How verbs on the same host talk to the daemon.

pub mod protocol;
pub mod socket;
