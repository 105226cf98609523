//! Volumes that are attached through a profile: Incus names the profile as their user, and the profile its instances.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use rbd_guardian_core::model::incus_snapshot::InstanceId;
use rbd_guardian_core::model::volume::Volume;

use super::api;
use super::client::Client;
use super::error::{IncusError, RequestError};
use super::path::{ApiPath, instance_of, name_of, parts, project_of};

/// Profiles that are asked for at once: each is a connection of its own.
const AT_ONCE: usize = 8;

/// Project and name of a profile.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ProfileId {
    project: String,
    name: String,
}

impl ProfileId {
    /// The profile a path names: `/1.0/profiles/web?project=p1`.
    pub(super) fn of(path: &str) -> Option<Self> {
        Some(Self { project: project_of(parts(path).1), name: name_of(path, "profiles")? })
    }
}

/// A volume, and profiles that use it: their instances do.
pub(super) struct VolumeWithProfiles {
    pub(super) volume: Volume,
    pub(super) profiles: Vec<ProfileId>,
}

impl VolumeWithProfiles {
    pub(super) fn note_user(&mut self, path: &str) {
        if let Some(id) = instance_of(path) {
            self.volume.used_by.insert(id);
        } else if let Some(id) = ProfileId::of(path) {
            self.profiles.push(id);
        } else if parts(path).0 != "/1.0" {
            // `/1.0` is Incus itself, which keeps images or backups there.
            self.volume.unknown.push(format!("used by '{path}'"));
        }
    }
}

/// The volumes with the instances of the profiles that use them. A profile that cannot be read makes the users of its own
/// volumes unknown, costs no other, and is told in `odd`.
pub(super) async fn resolve(
    here: &Client,
    listed: Vec<VolumeWithProfiles>,
    odd: &mut Vec<IncusError>,
) -> Vec<Volume> {
    let named: BTreeSet<ProfileId> = listed.iter().flat_map(|one| &one.profiles).cloned().collect();
    let named: Vec<ProfileId> = named.into_iter().collect();
    let mut users = BTreeMap::new();
    for some in named.chunks(AT_ONCE) {
        let read = join_all(some.iter().map(|id| instances(here, id))).await;
        users.extend(some.iter().zip(read));
    }
    odd.extend(users.values().filter_map(|read| read.as_ref().err().cloned()));
    let of_profiles = |VolumeWithProfiles { mut volume, profiles }: VolumeWithProfiles| {
        for profile in profiles {
            match users.get(&profile) {
                Some(Ok(instances)) => volume.used_by.extend(instances.iter().cloned()),
                Some(Err(error)) => {
                    volume.unknown.push(format!("used by profile {}: {}", profile.name, error.cause));
                }
                None => {}
            }
        }
        volume
    };
    listed.into_iter().map(of_profiles).collect()
}

async fn instances(here: &Client, id: &ProfileId) -> Result<BTreeSet<InstanceId>, IncusError> {
    let path = ApiPath::of(&["profiles", &id.name]).with("project", &id.project).text();
    let profile: api::Profile = match here.get(&path).await {
        Ok(profile) => profile,
        // Deleted since the volumes were listed.
        Err(IncusError { cause: RequestError::Status { code: 404, .. }, .. }) => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    let user = |path: &String| {
        instance_of(path)
            .ok_or_else(|| here.misunderstood(path, format!("'{path}' has the profile {}", id.name)))
    };
    profile.used_by.iter().map(user).collect()
}
