//! The table, in Markdown and in JSON.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// One line: what the guardian needs, what else one would run, and what was promised.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) ours: String,
    pub(crate) theirs: String,
    pub(crate) ratio: String,
    pub(crate) target: String,
    pub(crate) met: bool,
}

/// Prints them with the machine, and writes both to `target/bench.json`.
pub(crate) fn report(rows: &[Row]) -> Result<()> {
    let machine = machine()?;
    println!("\n{machine}\n");
    print(rows);
    let line = |Row { what, ours, theirs, ratio, target, met }: &Row| json!({"what": what, "rbd_guardian": ours, "instead": theirs, "ratio": ratio, "target": target, "met": met});
    let lines: Vec<Value> = rows.iter().map(line).collect();
    let folder = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    std::fs::write(folder.join("bench.json"), format!("{:#}\n", json!({"machine": machine, "rows": lines})))?;
    Ok(())
}

fn print(rows: &[Row]) {
    println!("| what | rbd-guardian | instead | ratio | target | |\n|---|---|---|---|---|---|");
    for Row { what, ours, theirs, ratio, target, met } in rows {
        let verdict = if *met { "met" } else { "**missed**" };
        println!("| {what} | {ours} | {theirs} | {ratio} | {target} | {verdict} |");
    }
}

/// Cores, memory, kernel, Ceph.
fn machine() -> Result<String> {
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
