//! How a pool keeps what is written to it.

use serde::Deserialize;

use super::command::{CephReadError, read};
use crate::ceph::rados::cluster::Cluster;

/// What matters to whoever stores something in a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolProtection {
    /// The pool's number.
    pub id: i64,
    /// Copies of each object, or `false`: erasure-coded, which has no omap in any release so far (docs/facts/ceph.md#librados).
    pub replicated: bool,
    /// How many copies.
    pub size: u32,
    /// With how many copies left it still takes writes.
    pub min_size: u32,
    /// What it was enabled for.
    pub applications: Vec<String>,
}

/// Looks a pool up by its name; `None` if there is none.
///
/// # Errors
/// See [`CephReadError`].
pub fn keeping(cluster: &Cluster, name: &str) -> Result<Option<PoolProtection>, CephReadError> {
    parse(&read(cluster, &serde_json::json!({"prefix": "osd dump", "format": "json"}))?, name)
}

fn parse(json: &[u8], name: &str) -> Result<Option<PoolProtection>, CephReadError> {
    /// `pg_pool_t::TYPE_REPLICATED` (`osd/osd_types.h`).
    const REPLICATED: u32 = 1;
    let raw: RawPools =
        serde_json::from_slice(json).map_err(|e| CephReadError::unreadable("osd dump", &e))?;
    let pool = raw.pools.into_iter().find(|pool| pool.pool_name == name);
    Ok(pool.map(|pool| PoolProtection {
        id: pool.pool,
        replicated: pool.kind == REPLICATED,
        size: pool.size,
        min_size: pool.min_size,
        applications: pool.application_metadata.into_iter().map(|(name, _)| name).collect(),
    }))
}

#[derive(Deserialize)]
struct RawPools {
    pools: Vec<RawPoolProtection>,
}

#[derive(Deserialize)]
struct RawPoolProtection {
    pool: i64,
    pool_name: String,
    #[serde(rename = "type")]
    kind: u32,
    size: u32,
    min_size: u32,
    #[serde(default)]
    application_metadata: serde_json::Map<String, serde_json::Value>,
}
