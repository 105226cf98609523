//! What the demo tells its reader.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

use anyhow::Result;
use comfy_table::{Table, presets};
use serde_json::Value;

use crate::half::{Files, Fsck, Outcome};

/// Lines of evidence quoted from one source.
const QUOTED: usize = 3;

pub(crate) fn introduce() -> Result<()> {
    let ceph = Command::new("ceph-osd").arg("--version").output()?;
    println!("{}", String::from_utf8_lossy(&ceph.stdout).trim());
    println!(
        "An ext4 on an RBD image, mounted on host n1. n1 is cut off and keeps writing; n2 takes the disk over;"
    );
    println!(
        "then the cable of n1 is plugged in again. Twice at once: without rbd-guardian, and with it. (Hosts are network\nnamespaces of this machine; rbd-fuse with a loop device maps the image, as krbd would.)\n"
    );
    Ok(())
}

/// Prints both halves side by side, and judges them.
pub(crate) fn compare(without: &Outcome, with: &Outcome) -> ExitCode {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["", "without rbd-guardian", "with rbd-guardian"]);
    let mut row = |what: &str, tell: fn(&Outcome) -> String| {
        table.add_row([what.to_owned(), tell(without), tell(with)]);
    };
    row("the fence", |half| half.fence.as_ref().map_or_else(|| "none".to_owned(), evidence));
    row("n1 after its return", stale);
    row("e2fsck -fn", fsck);
    row("files n1 synced", |half| files(&half.first));
    row("files n2 synced", |half| files(&half.second));
    println!("\n{table}\n");
    let (damaged, protected) = (without.damaged(), with.protected());
    println!(
        "{}",
        if damaged { "without: the disk is damaged" } else { "without: no damage, by luck; run it again" }
    );
    println!("with:    {}", if protected { "sealed, refused, intact" } else { "NOT as it should be" });
    if damaged && protected { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What `fence --json` printed, for people.
fn evidence(fence: &Value) -> String {
    let list = |key: &str| fence[key].as_array().cloned().unwrap_or_default();
    let count = |pool: &Value, key: &str| pool[key].as_u64().unwrap_or(0);
    let (mut pgs, mut proved) = (0, 0);
    for pool in list("barrier") {
        pgs += count(&pool, "pgs");
        proved += count(&pool, "proved");
    }
    let entries: Vec<_> =
        list("entries").iter().map(|entry| format!("\n{}", text(&entry["entry"]))).collect();
    let times = &fence["timings_ms"];
    format!(
        "{} in osdmap epoch {}\n{} entries:{}\n{proved} of {pgs} PGs proved that they refuse\n{} ms: commit {}, barrier {}",
        text(&fence["state"]),
        fence["epoch"],
        entries.len(),
        entries.concat(),
        times["total"],
        times["commit"],
        times["barrier"]
    )
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn stale(half: &Outcome) -> String {
    let mut kinds = BTreeMap::new();
    for error in &half.stale_errors {
        *kinds.entry(error).or_insert(0) += 1;
    }
    let kinds: Vec<_> = kinds.iter().map(|(error, count)| format!("{error} × {count}")).collect();
    let errors = if kinds.is_empty() { "no error".to_owned() } else { kinds.join(", ") };
    format!("{} new files written and synced\n{errors}", half.stale_writes)
}

fn fsck(half: &Outcome) -> String {
    let Fsck { exit, complaints, seen } = &half.fsck;
    if *exit == 0 {
        return "exit code 0: clean".to_owned();
    }
    format!("exit code {exit}: {complaints} complaints{}", quoted(seen))
}

fn files(files: &Files) -> String {
    if files.intact() {
        return format!("{}: all intact", files.synced);
    }
    let Files { synced, lost, garbled, seen } = files;
    format!("{synced}: {lost} lost, {garbled} garbled{}", quoted(seen))
}

fn quoted(lines: &[String]) -> String {
    lines.iter().take(QUOTED).map(|line| format!("\n  {}", short(line))).collect()
}

/// As much of a line as a column takes.
fn short(line: &str) -> String {
    const WIDTH: usize = 48;
    if line.chars().count() <= WIDTH {
        return line.to_owned();
    }
    line.chars().take(WIDTH - 1).chain(['…']).collect()
}
