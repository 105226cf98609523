//! What is left of the container's disk, and of what its writers were told.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use lab::WriteLog as _;
use lab::incus::ContainerWriter;

use crate::scene::Scene;

/// The writer's ring, as in `tests/lab/incus/writer.c`.
const SLOTS: u64 = 256;

/// How it ended.
pub(crate) struct Ending {
    /// The exit status of `e2fsck -fn` after the journal was replayed: 0 clean, 4 damaged.
    pub(crate) status: i32,
    /// What it would mend.
    pub(crate) complaints: usize,
    /// One line of each kind.
    pub(crate) kinds: Vec<String>,
    /// Blocks that the writers were told are safe, and that nothing of theirs has replaced.
    pub(crate) safe: usize,
    /// Those of them that are not there.
    pub(crate) lost: usize,
    /// Files that hold something else than what was written to them.
    pub(crate) foreign: usize,
}

impl Ending {
    /// Looks at the disk of a container that nobody runs any more.
    pub(crate) fn of(scene: &Scene<'_>) -> Result<Self> {
        let disk = scene.lab.disk(&scene.container)?;
        let (mut safe, mut lost) = (0, 0);
        for writer in scene.container.writers()? {
            let wanted = last_ring(&writer)?;
            let found = disk.blocks.get(&writer.id());
            safe += wanted.len();
            lost += wanted.iter().filter(|number| !found.is_some_and(|found| found.contains(number))).count();
        }
        // It asks before each repair, and answers itself.
        let complaints = disk.report.lines().filter(|line| line.ends_with("? no")).count();
        let (kinds, foreign) = (kinds(&disk.report), disk.torn.len());
        Ok(Self { status: disk.status, complaints, kinds, safe, lost, foreign })
    }

    pub(crate) fn is_intact(&self) -> bool {
        self.status == 0 && self.safe > 0 && self.lost == 0 && self.foreign == 0
    }
}

/// The acknowledged blocks whose slots no later write may have taken, the one under way included.
fn last_ring(writer: &ContainerWriter) -> Result<BTreeSet<u64>> {
    let acked = writer.acked_numbers()?;
    let last = acked.last().copied().unwrap_or(0);
    Ok(acked.into_iter().filter(|number| number + SLOTS > last + 1).collect())
}

/// The first line of each kind that tells something of an inode, a block or a group by its number.
fn kinds(report: &str) -> Vec<String> {
    let about = ["inode", "block", "group"];
    let tells = |line: &&str| {
        let lower = line.to_lowercase();
        let counted = line.contains(|c: char| c.is_ascii_digit());
        let summary = line.starts_with("Pass ") || line.starts_with('(') || line.contains(" files (");
        counted && !summary && about.iter().any(|what| lower.contains(what))
    };
    let kind = |line: &str| line.split(|c: char| c.is_ascii_digit()).next().map(str::to_owned);
    let mut first = BTreeMap::new();
    for (position, line) in report.lines().enumerate().filter(|(_, line)| tells(line)) {
        first.entry(kind(line)).or_insert((position, line.trim().to_owned()));
    }
    let mut lines: Vec<_> = first.into_values().collect();
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}
