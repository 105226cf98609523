//! Real Ceph, real clients and real partitions on one machine: what rbd-guardian's tests, demo and benchmarks stand on.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use lab::Topology;
//! let lab = Topology::small(&["n1", "n2"]).start()?;
//! lab.ceph(&["osd", "dump"])?;
//! lab.cut("n1")?;
//! # Ok(())
//! # }
//! ```
//!
//! Needs root, Linux, Debian's Ceph packages, iproute2 and util-linux. All of a lab lives in one pid namespace and ends with the process
//! that made it, whatever way that ends; no address of it exists outside of its network namespaces, so labs do not meet.

// The lab is a test tool: it runs programs, looks at the clock, polls, and speaks to whoever runs the tests. What the workspace
// forbids here, it forbids to the guardian.
#![allow(clippy::disallowed_methods, clippy::expect_used, clippy::print_stderr)]

mod agent;
mod cache;
mod cage;
mod conf;
mod content;
mod daemon;
mod disk;
mod host;
mod idle;
pub mod incus;
mod lab;
mod network;
mod pool;
mod process;
pub mod systemd;
mod topology;
pub mod vm;
mod wait;
mod world;
mod writer;

pub use crate::content::Content;
pub use crate::daemon::{Daemon, own_clock};
pub use crate::disk::Device;
pub use crate::host::Host;
pub use crate::idle::IdleClient;
pub use crate::lab::Lab;
pub use crate::network::Links;
pub use crate::pool::{Pool, PoolKind, Watcher};
pub use crate::process::Process;
pub use crate::topology::{ObjectStore, Role, Topology};
pub use crate::wait::{monotonic, wait_for};
pub use crate::world::World;
pub use crate::writer::{Entry, WriteLog, Writer};
pub use nix::errno::Errno;
