//! The lab's Incus: what the tests of the guardian's daemon take for granted.

#![allow(clippy::disallowed_methods, clippy::print_stderr)] // A test runs programs and tells how long things take.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::incus::POOL;
use lab::{Topology, WriteLog as _};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_cluster_comes_up() -> Result<()> {
    let began = Instant::now();
    let lab = Topology::apart().start()?;
    eprintln!("Ceph: {:.1?}", began.elapsed());
    let cluster = lab.incus(&["n1", "n2", "n3"])?;
    eprintln!("Incus: {:.1?}", began.elapsed());
    let container = cluster.launch("c1", "n1")?;
    eprintln!("container: {:.1?}", began.elapsed());
    let writer = container.wait_for_writer("n1", SOON)?;
    writer.wait_for_acks(100, SOON)?;
    eprintln!("100 writes: {:.1?}", began.elapsed());
    let watchers = lab.watchers(POOL.1, &container.image())?;
    ensure!(watchers.len() == 1, "{watchers:?}");
    Ok(())
}
