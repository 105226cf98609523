//! The storage, as the guardian uses it: read, ask, and ask it to refuse.
//!
//! [`rados`] has the handles of librados, and all `unsafe` code of this folder; the rest is built on them.

pub mod apart;
pub mod audit;
pub mod barrier;
pub mod blocklist;
pub mod command;
pub mod daemons;
mod item;
pub mod lane;
pub mod locks;
pub mod look;
pub mod osdmap;
pub mod perform;
pub mod pools;
pub mod rados;
pub mod sessions;
pub mod stale;
pub mod watchers;
