//! What is measured inside one process on a lab host: the library's own functions, without the start of a program.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rbd_guardian::ceph::barrier::{Probes, barrier};
use rbd_guardian::ceph::look::look;
use rbd_guardian::ceph::osdmap;
use rbd_guardian::ceph::rados::cluster::{Cluster, Options};
use rbd_guardian::ceph::watchers::{SweepScope, all, sweep};
use rbd_guardian::deadline::Deadline;
use rbd_guardian_core::model::barrier::PoolToProve;
use rbd_guardian_core::model::osdmap::Guarded;
use serde_json::{Value, json};

use crate::median;

const LIMIT: Duration = Duration::from_secs(60);
const BARRIERS: usize = 15;
const SWEEPS: usize = 5;

/// Measures what the words say and prints the figures as JSON.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let cluster = Cluster::connect(&Options { timeout: LIMIT, ..Options::default() })?;
    let deadline = Deadline::after(LIMIT, Arc::default());
    let figures = match words {
        ["add", entry] => one_add(&cluster, entry, &deadline)?,
        ["barrier"] => barriers(&cluster, &deadline)?,
        ["fill"] => crate::load::fill(&cluster, &deadline)?,
        ["sweep"] => sweeps(&cluster, &deadline)?,
        _ => bail!("{words:?}"),
    };
    println!("{figures}");
    Ok(())
}

/// What `rados_blocklist_add` does: the command, then the newest map. It looks before, as every decision has to.
fn one_add(cluster: &Cluster, entry: &str, deadline: &Deadline) -> Result<Value> {
    look(cluster, &Guarded::default(), deadline)?;
    let began = Instant::now();
    cluster.mon_command(&json!({"prefix": "osd blocklist", "blocklistop": "add", "addr": entry}))?;
    cluster.wait_for_latest_osdmap()?;
    Ok(json!({"seconds": began.elapsed().as_secs_f64()}))
}

fn barriers(cluster: &Cluster, deadline: &Deadline) -> Result<Value> {
    let map = osdmap::dump(cluster)?.map;
    let guarded = Guarded::default();
    let pools: Vec<_> = guarded
        .pools(&map)
        .into_iter()
        .map(|(id, pool)| PoolToProve { id, name: pool.name.clone(), pg_num: pool.pg_num })
        .collect();
    let mut names = Probes::default();
    let (mut seconds, cpu_before) = (Vec::new(), cpu()?);
    // What was proved stays proved: each round asks for a later epoch.
    for later in (0..).take(BARRIERS) {
        let began = Instant::now();
        let proofs = barrier(cluster, &pools, map.epoch.later(later), &mut names, deadline, &mut |_| ());
        seconds.push(began.elapsed().as_secs_f64());
        ensure!(proofs.iter().all(|proof| proof.is_complete()), "{proofs:?}");
    }
    let pgs: u32 = pools.iter().map(|pool| pool.pg_num).sum();
    Ok(json!({"pgs": pgs, "first": seconds[0], "seconds": median(&seconds), "cpu": cpu()? - cpu_before}))
}

fn sweeps(cluster: &Cluster, deadline: &Deadline) -> Result<Value> {
    let map = osdmap::dump(cluster)?.map;
    let scope = SweepScope::of(&Guarded::default().pools(&map));
    let (mut seconds, cpu_before) = (Vec::new(), cpu()?);
    let (mut images, mut watchers, mut locks) = (0, 0, 0);
    for _ in 0..SWEEPS {
        (images, watchers, locks) = (0, 0, 0);
        let began = Instant::now();
        let unread = sweep(cluster, &scope, &all(), deadline, &mut |image| {
            images += 1;
            watchers += image.watchers.len();
            locks += image.locks.len();
        });
        seconds.push(began.elapsed().as_secs_f64());
        ensure!(unread.is_empty(), "{unread:?}");
    }
    let best = seconds.iter().copied().fold(f64::MAX, f64::min);
    Ok(
        json!({"images": images, "watchers": watchers, "locks": locks, "seconds": median(&seconds), "best": best,
        "cpu": cpu()? - cpu_before, "kib": resident_peak()?}),
    )
}

/// Seconds of a core that this process has used, to see whose share of the time is whose on cores shared with the OSDs.
fn cpu() -> Result<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(") ").next().context("no stat")?;
    let ticks = after_name.split(' ').skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_SECOND)
}

/// The most memory this process ever had resident, in KiB.
fn resident_peak() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
