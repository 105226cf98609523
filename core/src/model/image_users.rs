//! Who uses an image, as one sweep shows it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::model::addr::{ClientAddr, EntityAddr};
use crate::model::volume::ImageName;

/// An image that somebody uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUse {
    pub image: ImageName,
    /// Entity addresses of its watchers.
    pub watchers: Vec<EntityAddr>,
    /// Who holds its lock: several for a shared one.
    #[serde(rename = "lock", deserialize_with = "lockers")]
    pub locks: Vec<Locker>,
    /// Users that were seen there and could not be read, each in words: who they are is not known. A recording of before
    /// has none: such an image was left out as a whole, and said to be unread.
    #[serde(default)]
    pub unknown: Vec<String>,
}

/// An owner of an image's lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locker {
    /// `client.4126`.
    pub owner: String,
    /// Names the lock within the client.
    pub cookie: String,
    /// Its entity address; `None` where the lock has none, and no watcher of the image is the same client.
    pub address: Option<EntityAddr>,
}

/// Older recordings have one lock or none.
fn lockers<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Locker>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Lock {
        One(Locker),
        Several(Vec<Locker>),
    }
    Ok(match Option::<Lock>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Lock::One(one)) => vec![one],
        Some(Lock::Several(several)) => several,
    })
}

impl ImageUse {
    /// The client instances that use it.
    pub fn clients(&self) -> BTreeSet<ClientAddr> {
        let locks = self.locks.iter().filter_map(|lock| lock.address.as_ref());
        self.watchers.iter().chain(locks).filter_map(|addr| addr.client()).collect()
    }
}
