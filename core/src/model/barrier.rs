//! What a barrier asks and what it found.
//!
//! A PG enforces its own copy of the osdmap, so only an answer of the PG itself, to an operation that carries
//! the epoch, proves it (`PrimaryLogPG::do_request`, docs/facts/ceph.md#where-an-entry-is-enforced).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::model::osdmap::{Pool, PoolId};

/// One pool to be proved, as a map describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolToProve {
    pub id: PoolId,
    /// Its name, for people.
    pub name: String,
    /// Its PGs are 0 to this, exclusive.
    pub pg_num: u32,
}

impl PoolToProve {
    /// All its PGs.
    pub fn new(id: PoolId, pool: &Pool) -> Self {
        Self { id, name: pool.name.clone(), pg_num: pool.pg_num }
    }
}

/// What a barrier found out about one pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolProof {
    /// Which, and with how many PGs.
    pub pool: PoolToProve,
    /// PGs that did not answer.
    pub pending: BTreeSet<u32>,
    /// Why they did not, where something else than silence is known.
    pub trouble: Option<String>,
}

impl PoolProof {
    /// Did every PG answer?
    pub fn is_complete(&self) -> bool {
        self.pending.is_empty()
    }

    /// How many PGs are proved.
    pub fn proved(&self) -> usize {
        usize::try_from(self.pool.pg_num).unwrap_or(usize::MAX).saturating_sub(self.pending.len())
    }

    /// Unproved PGs as the storage prints them: `2.1f`.
    pub fn pending_names(&self) -> Vec<String> {
        self.pending.iter().map(|pg| format!("{}.{pg:x}", self.pool.id)).collect()
    }
}
