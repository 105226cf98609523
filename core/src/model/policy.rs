//! What the operator allows.

use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::osdmap::Guarded;

/// Rules every fence keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)] // For recordings of before.
pub struct Policy {
    /// How long a new entry stands. At most five years: 16.2 is not known to cap longer ones (docs/facts/ceph.md#blocklist-entries).
    pub expire: Duration,
    /// An entry that ends sooner than this from now is short: it could end before its fence does.
    pub min_remaining: Duration,
    /// Client entries of a released fence are removed so long after the release, if their clients are proved dead; zero:
    /// they stay until they end.
    pub retain_client_entries: Duration,
    /// May an active mgr or mds on the target be failed over to a standby elsewhere?
    pub fail_over: bool,
    /// How many members may be fenced at once, the target included; `None`: a minority of the cluster.
    pub max_fenced_members: Option<usize>,
    /// Addresses nothing may fence.
    pub protected: Vec<IpNet>,
    /// The pools a seal covers.
    pub guarded: Guarded,
}

/// Five years, as ceph-csi uses (157,784,760 s).
pub const DEFAULT_EXPIRE: Duration = Duration::from_secs(157_784_760);

/// Four years: leaves a year to notice and replace a short entry.
pub const DEFAULT_MIN_REMAINING: Duration = Duration::from_secs(4 * 31_556_952);

/// Ninety days: nothing that still has a use for the storage sleeps for so long.
pub const DEFAULT_RETAIN: Duration = Duration::from_secs(90 * 86_400);

impl Default for Policy {
    fn default() -> Self {
        Self {
            expire: DEFAULT_EXPIRE,
            min_remaining: DEFAULT_MIN_REMAINING,
            retain_client_entries: DEFAULT_RETAIN,
            fail_over: true,
            max_fenced_members: None,
            protected: Vec::new(),
            guarded: Guarded::default(),
        }
    }
}

impl Policy {
    /// How many members of a cluster of so many may be fenced at once.
    pub fn max_fenced(&self, members: usize) -> usize {
        self.max_fenced_members.unwrap_or_else(|| minority(members))
    }

    /// Until when an entry must stand, judged now. Time beyond what can be represented is never required.
    pub fn required_until(&self, now: Timestamp) -> Timestamp {
        now.checked_add(self.min_remaining).unwrap_or(Timestamp::MAX)
    }
}

/// The largest number of members that is less than half; of one or two, one.
pub fn minority(members: usize) -> usize {
    (members.saturating_sub(1) / 2).max(1)
}

#[cfg(test)]
mod tests {
    use crate::model::policy::minority;

    #[test]
    fn a_minority_is_less_than_half_but_never_nobody() {
        let expected = [1, 1, 1, 1, 1, 2, 2, 3];
        assert_eq!((0..8).map(minority).collect::<Vec<_>>(), expected);
    }
}
