//! The gate's keys in each member's own configuration: what the scriptlet reads at each placement.
//!
//! They are rows of the database alone, so that a lost member's can be written as well, and a write takes no longer
//! where there are many instances. In a project it would: Incus loads them all before it writes a key
//! (permissions.go:1028), over 30 s with 1,000 of them, and no heartbeat is recorded meanwhile (seen on 6.0.4).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rbd_guardian_core::model::gate_keys::{EPOCH, GateContents, KEYS, LOCAL, is_own, is_plausible};
use rbd_guardian_core::model::volume::StoragePool;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::incus::api::{self, Keys, MemberObject, Project};
use crate::incus::client::Client;
use crate::incus::error::{IncusError, RequestError};
use crate::incus::path::ApiPath;
use crate::incus::read::{own_keys, project_keys};
use rbd_guardian_core::model::epoch::GateEpoch;

const PROJECT: &str = "/1.0/projects/default";
const MEMBERS: &str = "/1.0/cluster/members?recursion=1";
/// Incus gives each try 30 s (db/query/transaction.go), and tries twice.
const PATIENCE: Duration = Duration::from_secs(65);
const PRECONDITION_FAILED: u16 = 412;

/// How a write of the keys ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeysWrite {
    /// Done, and read back.
    Applied,
    /// Another writer changed the keys meanwhile: read everything again.
    Changed,
    /// Keys of a later epoch are there: whoever asked for this is no longer the leader.
    Stale { found: GateEpoch },
    /// Not sent: whoever asked for this took it back meanwhile.
    Withheld,
    /// Surely not done.
    Refused(IncusError),
    /// Unknown (INV-9): the write may have been done, or may still be done.
    Unknown(IncusError),
}

/// The guardian's keys of each member, and the keys in project `default` that are named like them.
///
/// # Errors
/// Members or project cannot be read.
pub async fn read(client: &Client) -> Result<(BTreeMap<String, Keys>, Keys), IncusError> {
    let members: Vec<api::Member> = client.get(MEMBERS).await?;
    let project: Project = client.get(PROJECT).await?;
    let keys = members.into_iter().map(|member| (member.server_name, own_keys(&member.config)));
    Ok((keys.collect(), project_keys(project.config)))
}

/// Tells a member this, with a later epoch, in one write on the condition that nothing of the member has changed since
/// it was read; then reads it back. Keys of others stay. `may_send` is asked last, between the reading and the write.
pub async fn put_keys(
    client: &Client,
    member: &str,
    contents: &GateContents,
    epoch: GateEpoch,
    may_send: impl Fn() -> bool,
) -> KeysWrite {
    let path = path(member);
    let (mut object, etag) = match client.get_with_etag::<MemberObject>(&path).await {
        Ok(read) => read,
        Err(error) => return KeysWrite::Refused(error),
    };
    let found = object.config.get(EPOCH).and_then(|epoch| epoch.parse().ok()).map(GateEpoch);
    // An epoch too high for any guardian to have written is overwritten: otherwise no guardian could write any more.
    if let Some(found) = found.filter(|found| *found >= epoch && is_plausible(*found, epoch)) {
        return KeysWrite::Stale { found };
    }
    object.config = with_keys(object.config, &contents.keys(epoch));
    if !may_send() {
        return KeysWrite::Withheld;
    }
    write(client, &path, &object, &etag, |object| own_keys(&object.config)).await
}

/// Removes them from every member, and everything of that name from project `default`, the override too: for when the
/// gate goes. The first that fails is told.
pub async fn remove_keys(client: &Client) -> KeysWrite {
    let (members, project) = match read(client).await {
        Ok(read) => read,
        Err(error) => return KeysWrite::Refused(error),
    };
    for name in members.into_iter().filter(|(_, keys)| !keys.is_empty()).map(|(name, _)| name) {
        let path = path(&name);
        let (mut object, etag) = match client.get_with_etag::<MemberObject>(&path).await {
            Ok(read) => read,
            Err(error) => return KeysWrite::Refused(error),
        };
        object.config = with_keys(object.config, &Keys::new());
        let written = write(client, &path, &object, &etag, |object| own_keys(&object.config)).await;
        if written != KeysWrite::Applied {
            return written;
        }
    }
    if project.is_empty() {
        return KeysWrite::Applied;
    }
    let (mut project, etag) = match client.get_with_etag::<Project>(PROJECT).await {
        Ok(read) => read,
        Err(error) => return KeysWrite::Refused(error),
    };
    project.config.retain(|key, _| !key.starts_with(KEYS));
    // Where there are many instances this takes long.
    let patient = client.within(PATIENCE.max(client.timeout()));
    write(&patient, PROJECT, &project, &etag, |project| project_keys(project.config.clone())).await
}

/// Storage pools local to a member, which healing leaves alone: a scriptlet that refused their instances would keep
/// all others of the member from being healed. They belong to the published pools beside the covered ones.
pub fn local_pools(pools: &BTreeMap<String, StoragePool>) -> BTreeSet<String> {
    let local = pools.iter().filter(|(_, pool)| LOCAL.contains(&pool.driver.as_str()));
    local.map(|(name, _)| name.clone()).collect()
}

fn path(member: &str) -> String {
    ApiPath::of(&["cluster", "members", member]).text()
}

fn with_keys(mut config: Keys, keys: &Keys) -> Keys {
    config.retain(|key, _| !is_own(key));
    config.extend(keys.iter().map(|(key, value)| (key.clone(), value.clone())));
    config
}

async fn write<T: Serialize + DeserializeOwned>(
    client: &Client,
    path: &str,
    wanted: &T,
    etag: &str,
    keys: impl Fn(&T) -> Keys,
) -> KeysWrite {
    let put = client.put(path, wanted, Some(etag)).await;
    if let Err(error) = &put {
        if matches!(error.cause, RequestError::Status { code: PRECONDITION_FAILED, .. }) {
            return KeysWrite::Changed;
        }
        if error.surely_not_done() {
            return KeysWrite::Refused(error.clone());
        }
    }
    match (client.get::<T>(path).await, put) {
        (Ok(found), _) if keys(&found) == keys(wanted) => KeysWrite::Applied,
        (Ok(_), Ok(_)) => KeysWrite::Changed,
        (Ok(_), Err(error)) | (Err(error), _) => KeysWrite::Unknown(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(pairs: &[(&str, &str)]) -> Keys {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn only_the_guardians_keys_are_replaced() {
        let there = [
            ("scheduler.instance", "all"),
            ("user.rbd-guardian.ceph-addresses", "10.0.0.1"),
            ("user.rbd-guardian.seal.n1", "6"),
            ("user.rbd-guardian.epoch", "6"),
            ("user.rbd-guardianship", "no key of ours"),
        ];
        let contents = GateContents { open: ["n2".to_owned()].into(), ..GateContents::default() };
        let expected = [
            ("scheduler.instance", "all"),
            ("user.rbd-guardian.ceph-addresses", "10.0.0.1"),
            ("user.rbd-guardian.seal.n2", "7"),
            ("user.rbd-guardian.epoch", "7"),
            ("user.rbd-guardianship", "no key of ours"),
        ];
        assert_eq!(with_keys(keys(&there), &contents.keys(GateEpoch(7))), keys(&expected));
    }

    #[test]
    fn what_is_put_back_is_all_of_the_member() {
        let text = r#"{"server_name":"n1","roles":["database"],"groups":["default"],"config":{"user.x":"1"},"of_a_newer_version":[1]}"#;
        let object: MemberObject = serde_json::from_str(text).unwrap();
        let back: serde_json::Value = serde_json::to_value(&object).unwrap();
        assert_eq!(back, serde_json::from_str::<serde_json::Value>(text).unwrap());
    }

    #[test]
    fn a_pool_of_many_members_is_not_local() {
        let pool = |driver: &str| StoragePool {
            driver: driver.to_owned(),
            osd_pool: None,
            data_pool: None,
            cluster: None,
        };
        let pools = ["dir", "zfs", "ceph", "cephfs", "lvmcluster", "linstor", "truenas", "unheard-of"];
        let pools = pools.map(|driver| (driver.to_owned(), pool(driver))).into();
        assert_eq!(local_pools(&pools), ["dir".to_owned(), "zfs".to_owned()].into());
    }
}
