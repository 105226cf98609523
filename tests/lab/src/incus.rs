//! Real Incus in a lab: a cluster of real daemons on the lab's hosts, with a Ceph storage pool and containers that run on RBD.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use lab::{Links, Topology};
//! let lab = Topology::apart().start()?;
//! let cluster = lab.incus(&["n1", "n2", "n3"])?;
//! let container = cluster.launch("c1", "n1")?;
//! lab.cut_links("n1", Links::Incus)?;
//! # Ok(())
//! # }
//! ```
//!
//! Needs Debian's Incus and what `tests/lab/setup` makes of the files in `tests/lab/incus`.

mod cluster;
mod container;
mod disk;
mod member;
mod watch;

pub use crate::incus::cluster::{Cluster, IMAGE, POOL};
pub use crate::incus::container::{Container, ContainerWriter};
pub use crate::incus::disk::Disk;
pub use crate::incus::member::Member;
pub use crate::incus::watch::{Sighting, Watch};
