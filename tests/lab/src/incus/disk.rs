//! What a container has left on its image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use crate::conf::run;
use crate::content::{BLOCK, Slot};
use crate::incus::cluster::POOL;
use crate::incus::container::Container;
use crate::lab::Lab;

/// The slots of a ring, as in `writer.c`.
const SLOTS: u64 = 256;

/// A container's root file system, as read from a copy of its image after its journal was replayed: what the next start would find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The exit status of `e2fsck -fn`: 0 clean, 4 damaged.
    pub status: i32,
    /// What that said.
    pub report: String,
    /// The whole blocks in the ring and in the files of each writer, by number.
    pub blocks: BTreeMap<u32, BTreeSet<u64>>,
    /// The files in which anything else stands where a block of theirs should.
    pub torn: Vec<String>,
}

impl Lab {
    /// Reads a container's image. It leaves no watch on it, whether anybody writes or not; while somebody does, it shows an instant that
    /// never was.
    ///
    /// # Errors
    /// The image can't be read, or its file system not at all.
    pub fn disk(&self, container: &Container<'_>) -> Result<Disk> {
        let folder = TempDir::new_in(self.dir())?;
        let copy = folder.path().join("image");
        let copy = copy.to_str().context("an odd folder")?;
        self.rbd(&["export", "--no-progress", &format!("{}/{}", POOL.1, container.image()), copy])?;
        // Status 1 for what it has put right.
        let replay = self.bounded("e2fsck").args(["-y", "-E", "journal_only", copy]).output()?;
        ensure!(replay.status.code().is_some_and(|status| status < 8), "no journal to replay: {replay:?}");
        let check = self.bounded("e2fsck").args(["-fn", copy]).output()?;
        let report =
            String::from_utf8_lossy(&check.stdout).into_owned() + &String::from_utf8_lossy(&check.stderr);
        let Some(status @ ..8) = check.status.code() else { bail!("e2fsck failed: {report}") };
        run(self
            .bounded("debugfs")
            .arg("-R")
            .arg(format!("rdump /rootfs/writes {}", folder.path().display()))
            .arg(copy))?;
        let mut disk = Disk { status, report, blocks: BTreeMap::new(), torn: Vec::new() };
        // debugfs says nothing by its exit status; a folder that damage has eaten is not there.
        let writes = folder.path().join("writes");
        if writes.is_dir() {
            disk.read(&writes)?;
        } else {
            disk.torn.push("/writes".to_owned());
        }
        Ok(disk)
    }
}

impl Disk {
    fn read(&mut self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                self.read(&path)?;
                continue;
            }
            let bytes = fs::read(&path)?;
            let slots = bytes.chunks(BLOCK).map(Slot::of);
            let belongs = |position: u64, writer: u32, number: u64| match Owner::of(&path) {
                Some(Owner::Ring(id)) => writer == id && number % SLOTS == position,
                Some(Owner::File(id, name)) => writer == id && number == name && position == 0,
                None => false,
            };
            let mut whole = true;
            for (position, slot) in (0..).zip(slots) {
                match slot {
                    // Of the ring: not yet written.
                    Slot::Zeros => whole &= matches!(Owner::of(&path), Some(Owner::Ring(_))),
                    Slot::Block { writer, number } if belongs(position, writer, number) => {
                        self.blocks.entry(writer).or_default().insert(number);
                    }
                    Slot::Block { .. } | Slot::Torn => whole = false,
                }
            }
            if !whole {
                self.torn.push(path.display().to_string());
            }
        }
        Ok(())
    }
}

/// Whose blocks a file may hold.
enum Owner {
    /// `ring.WRITER`
    Ring(u32),
    /// `WRITER/NUMBER`
    File(u32, u64),
}

impl Owner {
    fn of(path: &Path) -> Option<Owner> {
        let name = path.file_name()?.to_str()?;
        if let Some(id) = name.strip_prefix("ring.") {
            return Some(Owner::Ring(id.parse().ok()?));
        }
        let folder = path.parent()?.file_name()?.to_str()?;
        Some(Owner::File(folder.parse().ok()?, name.parse().ok()?))
    }
}
