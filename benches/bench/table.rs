//! The table, in Markdown.

use std::process::Command;

use anyhow::{Context as _, Result};

/// One line: what the guardian needs, what else one would run, and what was promised.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) ours: String,
    pub(crate) theirs: String,
    pub(crate) ratio: String,
    pub(crate) target: String,
    pub(crate) met: bool,
}

pub(crate) fn print(rows: &[Row]) {
    println!("| what | rbd-guardian | instead | ratio | target | |\n|---|---|---|---|---|---|");
    for Row { what, ours, theirs, ratio, target, met } in rows {
        let verdict = if *met { "met" } else { "**missed**" };
        println!("| {what} | {ours} | {theirs} | {ratio} | {target} | {verdict} |");
    }
}

/// Cores, memory, kernel, Ceph.
pub(crate) fn machine() -> Result<String> {
    let cores = std::thread::available_parallelism()?;
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let kib: u64 = memory.split_whitespace().nth(1).context("no MemTotal")?.parse()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let ceph = Command::new("ceph-osd").arg("--version").output()?;
    let ceph = String::from_utf8_lossy(&ceph.stdout);
    let release = ceph.split(' ').nth(2).unwrap_or("?");
    let (gib, kernel) = (kib >> 20, kernel.trim());
    Ok(format!(
        "{cores} cores, {gib} GiB, Linux {kernel}; Ceph {release}: 1 mon, 1 mgr, 3 OSDs in memory on the same cores"
    ))
}
