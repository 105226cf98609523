//! Pools and images.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::wait::wait_for;

/// How long the PGs of a pool may take to become clean.
const CLEAN: Duration = Duration::from_secs(120);

/// What kind of pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Number of PGs.
    pub pg_num: u32,
    /// How many copies, or how coded.
    pub kind: PoolKind,
}

/// How a pool keeps its objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolKind {
    /// So many copies.
    Replicated(u32),
    /// k = 2, m = 1, with overwrites: a data pool for images (`--data-pool`). It needs three OSDs.
    ErasureCoded,
}

impl Pool {
    /// So many PGs, and so many copies of each.
    #[must_use]
    pub fn replicated(pg_num: u32, size: u32) -> Pool {
        Pool { pg_num, kind: PoolKind::Replicated(size) }
    }

    /// So many PGs, erasure-coded.
    #[must_use]
    pub fn erasure_coded(pg_num: u32) -> Pool {
        Pool { pg_num, kind: PoolKind::ErasureCoded }
    }
}

impl Lab {
    /// Creates a pool for RBD and waits until all its PGs are active and clean.
    ///
    /// # Errors
    /// The monitors refuse it, or its PGs are not clean after two minutes.
    pub fn pool(&self, name: &str, pool: Pool) -> Result<()> {
        self.quickly(|| {
            let pg_num = pool.pg_num;
            let mut create =
                json!({"prefix": "osd pool create", "pool": name, "pg_num": pg_num, "pgp_num": pg_num});
            match pool.kind {
                PoolKind::Replicated(size) => {
                    create["pool_type"] = json!("replicated");
                    create["size"] = json!(size);
                    self.ceph_json(&create)?;
                }
                PoolKind::ErasureCoded => {
                    self.ceph(&[
                        "osd",
                        "erasure-code-profile",
                        "set",
                        "lab",
                        "k=2",
                        "m=1",
                        "crush-failure-domain=osd",
                    ])?;
                    create["pool_type"] = json!("erasure");
                    create["erasure_code_profile"] = json!("lab");
                    self.ceph_json(&create)?;
                    self.ceph(&["osd", "pool", "set", name, "allow_ec_overwrites", "true"])?;
                }
            }
            match pool.kind {
                // Takes the snapshot test that the first `rbd create` would have to make.
                PoolKind::Replicated(_) => self.rbd(&["pool", "init", name]).map(drop),
                PoolKind::ErasureCoded => {
                    self.ceph(&["osd", "pool", "application", "enable", name, "rbd"]).map(drop)
                }
            }
        })?;
        self.wait_until_clean(name)
    }

    /// Waits until all PGs of a pool are there, active and clean.
    ///
    /// # Errors
    /// They are not after two minutes; with the states seen last.
    pub fn wait_until_clean(&self, pool: &str) -> Result<()> {
        wait_for(&format!("clean PGs of {pool}"), CLEAN, || {
            let wanted = self.ceph(&["osd", "pool", "get", pool, "pg_num"])?["pg_num"]
                .as_u64()
                .context("no pg_num")?;
            let listed = self.ceph(&["pg", "ls-by-pool", pool])?;
            let pgs = listed["pg_stats"].as_array().context("no pg_stats")?;
            let states: Vec<_> = pgs.iter().filter_map(|pg| pg["state"].as_str()).collect();
            let clean = states.iter().filter(|state| **state == "active+clean").count() as u64;
            ensure!(clean == wanted, "{clean} of {wanted} are: {:?}", &states[..states.len().min(8)]);
            Ok(Some(()))
        })
    }

    /// Creates an image of so many MiB with the feature `layering` only: nothing but the storage keeps two writers apart.
    ///
    /// # Errors
    /// That of `rbd create`.
    pub fn image(&self, pool: &str, name: &str, mebibytes: u32) -> Result<()> {
        self.image_with(pool, name, mebibytes, &["--image-feature=layering"])
    }

    /// As [`Lab::image`], with other options of `rbd create`: `--image-feature=exclusive-lock`, `--data-pool=ec`.
    ///
    /// # Errors
    /// That of `rbd create`.
    pub fn image_with(&self, pool: &str, name: &str, mebibytes: u32, options: &[&str]) -> Result<()> {
        let (size, spec) = (format!("--size={mebibytes}"), format!("{pool}/{name}"));
        let words = [&["create", spec.as_str(), size.as_str()], options].concat();
        self.rbd(&words).map(drop)
    }
}

/// Somebody who has an image open, as `rbd status` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watcher {
    /// The client instance: `10.77.0.12:0/525740053`.
    pub address: String,
    /// The `N` of `client.N`.
    pub client: u64,
}

impl Lab {
    /// Who watches an image.
    ///
    /// # Errors
    /// There is no such image.
    pub fn watchers(&self, pool: &str, image: &str) -> Result<Vec<Watcher>> {
        let status: Value =
            serde_json::from_str(&self.rbd(&["status", "--format=json", &format!("{pool}/{image}")])?)?;
        let listed = status["watchers"].as_array().context("no watchers")?;
        let read = |entry: &Value| {
            Some(Watcher {
                address: entry["address"].as_str()?.to_owned(),
                client: entry["client"].as_u64()?,
            })
        };
        listed.iter().map(|entry| read(entry).with_context(|| format!("unreadable: {entry}"))).collect()
    }
}
