//! The gate's keys in the configuration of project `default`: what the scriptlet reads at each placement.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::domain::guardian::gate::{EPOCH, KEYS, LOCAL, OVERRIDE};
use crate::domain::volume::StoragePool;
use crate::incus::api::{self, Project};
use crate::incus::client::Client;
use crate::incus::error::{Cause, IncusError};

pub(super) const PROJECT: &str = "/1.0/projects/default";
/// Incus reads all instances of a project before it writes one key of it, and gives each try 30 s
/// (permissions.go:1028, db/query/transaction.go); it tries twice.
const PATIENCE: Duration = Duration::from_secs(65);
const PRECONDITION_FAILED: u16 = 412;

/// How a write of the keys ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Done, and read back.
    Applied,
    /// Somebody else wrote meanwhile: read everything again.
    Changed,
    /// Keys of a later epoch are there: whoever asked for this is no longer the leader.
    Stale {
        /// Their epoch.
        found: u64,
    },
    /// Surely not done.
    Refused(IncusError),
    /// Nobody can tell (INV-9): it may be done, or still come.
    Unknown(IncusError),
}

/// Replaces the guardian's keys by these and raises the epoch, in one write on the condition that nothing of the
/// project has changed since it was read; then reads them back. The operator's override and everybody else's keys
/// stay.
pub async fn put_keys(client: &Client, keys: &BTreeMap<String, String>, epoch: u64) -> Written {
    let (project, etag) = match client.get_with_etag::<Project>(PROJECT).await {
        Ok(read) => read,
        Err(error) => return Written::Refused(error),
    };
    if let Some(found) = epoch_of(&project.config).filter(|found| *found >= epoch) {
        return Written::Stale { found };
    }
    let wanted = with_keys(&project, keys, Some(epoch));
    write(client, &wanted, &etag).await
}

/// Removes all of them, the override too: for when the gate goes.
pub async fn remove_keys(client: &Client) -> Written {
    let (mut project, etag) = match client.get_with_etag::<Project>(PROJECT).await {
        Ok(read) => read,
        Err(error) => return Written::Refused(error),
    };
    let before = project.config.len();
    project.config.retain(|key, _| !key.starts_with(KEYS));
    if project.config.len() == before {
        return Written::Applied;
    }
    write(client, &project, &etag).await
}

/// Storage pools local to a member, which healing leaves alone: a scriptlet that refused their instances would keep
/// all others of the member from being healed. They belong to the published pools beside the covered ones.
pub fn local_pools(pools: &BTreeMap<String, StoragePool>) -> BTreeSet<String> {
    let local = pools.iter().filter(|(_, pool)| LOCAL.contains(&pool.driver.as_str()));
    local.map(|(name, _)| name.clone()).collect()
}

pub(super) fn epoch_of(config: &api::Keys) -> Option<u64> {
    config.get(EPOCH)?.parse().ok()
}

fn with_keys(project: &Project, keys: &BTreeMap<String, String>, epoch: Option<u64>) -> Project {
    let mut wanted = project.clone();
    wanted.config.retain(|key, _| !key.starts_with(KEYS) || key == OVERRIDE);
    // Incus takes an empty value for none, and would not show it again.
    let own = keys.iter().filter(|(_, value)| !value.is_empty());
    let own = own.filter(|(key, _)| key.starts_with(KEYS) && key.as_str() != OVERRIDE);
    wanted.config.extend(own.map(|(key, value)| (key.clone(), value.clone())));
    wanted.config.extend(epoch.map(|epoch| (EPOCH.to_owned(), epoch.to_string())));
    wanted
}

async fn write(client: &Client, wanted: &Project, etag: &str) -> Written {
    let put = client.within(PATIENCE).put(PROJECT, wanted, Some(etag)).await;
    if let Err(error) = &put {
        if matches!(error.cause, Cause::Status { code: PRECONDITION_FAILED, .. }) {
            return Written::Changed;
        }
        if error.surely_not_done() {
            return Written::Refused(error.clone());
        }
    }
    let ours = |project: &Project| -> BTreeMap<String, String> {
        let own = project.config.iter().filter(|(key, _)| key.starts_with(KEYS));
        own.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    match (client.get::<Project>(PROJECT).await, put) {
        (Ok(found), _) if ours(&found) == ours(wanted) => Written::Applied,
        (Ok(_), Ok(_)) => Written::Changed,
        (Ok(_), Err(error)) | (Err(error), _) => Written::Unknown(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn only_the_guardians_keys_are_replaced() {
        let there = [
            ("features.images", "true"),
            ("user.rbd-guardian.gate", "off"),
            ("user.rbd-guardian.seal.n1", "sealed"),
            ("user.rbd-guardianship", "no key of ours"),
        ];
        let project = Project { description: "of the site".to_owned(), config: keys(&there) };
        let ours = [
            ("user.rbd-guardian.seal.n2", "sealed"),
            ("user.rbd-guardian.gate", "on"),
            ("limits.cpu", "1"),
            ("user.rbd-guardian.pools", ""),
        ];
        let wanted = with_keys(&project, &keys(&ours), Some(7));
        let expected = [
            ("features.images", "true"),
            ("user.rbd-guardian.gate", "off"),
            ("user.rbd-guardian.seal.n2", "sealed"),
            ("user.rbd-guardian.epoch", "7"),
            ("user.rbd-guardianship", "no key of ours"),
        ];
        assert_eq!(wanted, Project { description: "of the site".to_owned(), config: keys(&expected) });
    }

    #[test]
    fn a_pool_of_many_members_is_not_local() {
        let pool = |driver: &str| StoragePool { driver: driver.to_owned(), osd_pool: None, cluster: None };
        let pools = ["dir", "zfs", "ceph", "cephfs", "lvmcluster", "linstor", "truenas", "unheard-of"];
        let pools = pools.map(|driver| (driver.to_owned(), pool(driver))).into();
        assert_eq!(local_pools(&pools), ["dir".to_owned(), "zfs".to_owned()].into());
    }
}
