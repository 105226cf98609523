//! What is really on an image, read through a client of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

use crate::lab::Lab;
use crate::process::describe;

pub(crate) const BLOCK: usize = 4096;
const MAGIC: &[u8] = b"lab-blok";

/// An image, as read back from the host `admin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// SHA-256 of the whole image.
    pub hash: [u8; 32],
    /// The numbers of the whole blocks that are there, for each writer that has any.
    pub blocks: BTreeMap<u32, BTreeSet<u64>>,
    /// The slots that hold neither zeros nor a whole block that belongs there.
    pub torn: Vec<u64>,
}

impl Lab {
    /// Reads an image and sorts its numbered blocks, see [`crate::Writer`].
    ///
    /// # Errors
    /// It can't be read, or not within a minute.
    pub fn content(&self, pool: &str, image: &str) -> Result<Content> {
        let spec = format!("{pool}/{image}");
        let mut export = self
            .bounded("rbd")
            .args(["export", "--no-progress", &spec, "-"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let content = Content::read(BufReader::new(export.stdout.take().context("no pipe")?));
        let output = export.wait_with_output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "rbd export {spec}: {}: {}", describe(output.status), errors.trim());
        content
    }

    /// The SHA-256 of an image.
    ///
    /// # Errors
    /// As [`Lab::content`].
    pub fn content_hash(&self, pool: &str, image: &str) -> Result<[u8; 32]> {
        Ok(self.content(pool, image)?.hash)
    }
}

impl Content {
    fn read(mut image: impl Read) -> Result<Content> {
        let mut hasher = Sha256::new();
        let mut slots = Vec::new();
        let mut buffer = [0; BLOCK];
        loop {
            let mut filled = 0;
            while filled < BLOCK {
                match image.read(&mut buffer[filled..])? {
                    0 => break,
                    more => filled += more,
                }
            }
            if filled == 0 {
                break;
            }
            hasher.update(&buffer[..filled]);
            slots.push(Slot::of(&buffer[..filled]));
        }
        let mut content =
            Content { hash: hasher.finalize().into(), blocks: BTreeMap::new(), torn: Vec::new() };
        let count = slots.len() as u64;
        for (position, slot) in (0..).zip(slots) {
            match slot {
                Slot::Zeros => {}
                Slot::Block { writer, number } if number % count == position => {
                    content.blocks.entry(writer).or_default().insert(number);
                }
                Slot::Block { .. } | Slot::Torn => content.torn.push(position),
            }
        }
        Ok(content)
    }

    /// The highest block number of a writer.
    #[must_use]
    pub fn newest(&self, writer: u32) -> Option<u64> {
        self.blocks.get(&writer)?.last().copied()
    }
}

pub(crate) enum Slot {
    Zeros,
    Block { writer: u32, number: u64 },
    Torn,
}

impl Slot {
    pub(crate) fn of(bytes: &[u8]) -> Slot {
        if bytes.iter().all(|byte| *byte == 0) {
            return Slot::Zeros;
        }
        Slot::block(bytes).unwrap_or(Slot::Torn)
    }

    /// The layout is that of `writer.py`.
    fn block(bytes: &[u8]) -> Option<Slot> {
        let (body, sum) = bytes.split_last_chunk::<4>()?;
        let head = body.strip_prefix(MAGIC)?;
        let (writer, rest) = head.split_first_chunk::<4>()?;
        let number = rest.first_chunk::<8>()?;
        let whole = bytes.len() == BLOCK && crc32fast::hash(body) == u32::from_le_bytes(*sum);
        whole
            .then(|| Slot::Block { writer: u32::from_le_bytes(*writer), number: u64::from_le_bytes(*number) })
    }
}
