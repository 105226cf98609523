//! Which images a sweep reads.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use serde::{Deserialize, Serialize};

use crate::model::volume::ImageName;

/// What of the guarded pools a sweep reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SweepPart {
    /// Every image.
    Whole,
    /// Images that may be in use.
    InUse,
    /// These, and the others whose turn it is.
    Turn {
        turn: u32,
        /// How many turns go by until each image was read.
        of: u32,
    },
}

/// The images of a part. By digests of their names, as those of a large cluster take more: two names with one digest cost one
/// more read.
#[derive(Debug, Clone)]
pub struct SweepSelection {
    part: SweepPart,
    /// Of images that may be in use, in order.
    in_use: Vec<u64>,
}

impl SweepSelection {
    pub fn new<'a>(part: SweepPart, in_use: impl Iterator<Item = &'a ImageName>) -> Self {
        let digests = in_use.map(|image| digest(&image.pool, &image.namespace, &image.name));
        let mut in_use: Vec<u64> = if part == SweepPart::Whole { Vec::new() } else { digests.collect() };
        in_use.sort_unstable();
        Self { part, in_use }
    }

    /// Does it include this image?
    pub fn has(&self, pool: &str, namespace: &str, name: &str) -> bool {
        let digest = digest(pool, namespace, name);
        let in_use = || self.in_use.binary_search(&digest).is_ok();
        match self.part {
            SweepPart::Whole => true,
            SweepPart::InUse => in_use(),
            SweepPart::Turn { turn, of } => digest % u64::from(of.max(1)) == u64::from(turn) || in_use(),
        }
    }
}

fn digest(pool: &str, namespace: &str, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (pool, namespace, name).hash(&mut hasher);
    hasher.finish()
}
