//! Three numbers that only grow, each of another thing: a type each, so that none is compared with another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of a version of the osdmap. 0 is before the first one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OsdEpoch(pub u32);

/// Raised by each takeover, so that no two leaders have the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaderEpoch(pub u64);

/// Raised by each write of the gate's keys. 0 is before the first one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GateEpoch(pub u64);

impl OsdEpoch {
    /// The epoch `count` later, or the last one there can be.
    #[must_use]
    pub fn later(self, count: u32) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// The epoch `count` earlier, or 0.
    #[must_use]
    pub fn earlier(self, count: u32) -> Self {
        Self(self.0.saturating_sub(count))
    }
}

impl LeaderEpoch {
    /// That of the next takeover.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl GateEpoch {
    /// That of the next write.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for OsdEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for LeaderEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for GateEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
