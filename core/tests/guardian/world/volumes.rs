//! Custom volumes that profiles attach to VMs, and names that are given again: of instances and their images, of clients'
//! nonces, never of fences.

use std::net::IpAddr;
use std::time::Duration;

use rbd_guardian_core::model::incus_snapshot::{InstanceId, InstanceKind};
use rbd_guardian_core::model::record::{Change, FenceRecord, Record};
use rbd_guardian_core::model::volume::{Content, ImageName, Volume, VolumeKind};

use super::state::{Guest, World, image_of};

/// The first nonce at each address: clients of different hosts have the same ones.
const FIRST_NONCE: u32 = 1001;

impl World {
    /// The nth instance of the member.
    pub(crate) fn guest_at(&self, member: &str, nth: usize) -> Option<InstanceId> {
        let here = |(_, guest): &(&InstanceId, &Guest)| guest.location == member && guest.pool != "away";
        let here: Vec<_> = self.guests.iter().filter(here).map(|(name, _)| name.clone()).collect();
        here.get(nth % here.len().max(1)).cloned()
    }

    /// The image of the volume that a profile attaches to this VM, where profiles do.
    pub(crate) fn attached(&self, guest: &InstanceId) -> Option<ImageName> {
        let is_vm = self.guests[guest].kind == InstanceKind::VirtualMachine;
        (is_vm && self.cluster_shape.profiles)
            .then(|| image_of(&format!("custom_default_{}.block", guest.name)))
    }

    /// As Incus lists them. Where its profiles cannot be read their users are unknown.
    pub(crate) fn volumes(&self) -> Vec<Volume> {
        let volume = |(name, guest): (&InstanceId, &Guest)| Volume {
            pool: guest.pool.clone(),
            project: name.project.clone(),
            name: name.name.clone(),
            kind: VolumeKind::Instance(guest.kind),
            content: match guest.kind {
                InstanceKind::Container => Content::Filesystem,
                InstanceKind::VirtualMachine => Content::Block,
            },
            shared: false,
            used_by: [].into(),
            unknown: Vec::new(),
        };
        let of_profile = |(name, guest): (&InstanceId, &Guest)| {
            let (used_by, unknown) = match self.faults.no_profiles {
                true => ([].into(), vec![format!("profile {}", name.name)]),
                false => ([name.clone()].into(), Vec::new()),
            };
            let (kind, content) = (VolumeKind::Custom, Content::Block);
            self.attached(name).map(|_| Volume { kind, content, used_by, unknown, ..volume((name, guest)) })
        };
        let all = self.guests.iter();
        all.clone().map(volume).chain(all.filter_map(of_profile)).collect()
    }

    /// While nobody can tell whose a volume is, a foreign host has it open; it closes it before anybody can.
    pub(crate) fn exports(&mut self, guest: &InstanceId) {
        let attached = self.attached(guest).filter(|image| !self.gone.contains_key(image));
        let Some(image) = attached.filter(|_| self.faults.no_profiles) else { return };
        let client = self.new_client("backup", 0);
        self.opens(client, image);
        self.clients[client].until = Some(Duration::MAX);
    }

    /// Profiles are read again.
    pub(crate) fn ends_exports(&mut self) {
        let (now, exports) = (self.boot, self.clients.iter_mut());
        exports.filter(|one| one.until == Some(Duration::MAX)).for_each(|one| one.until = Some(now));
    }

    /// The instance is deleted with its images, and one of the same name is made on another member.
    pub(crate) fn made_anew(&mut self, guest: &InstanceId) {
        let location = self.guests[guest].location.clone();
        let may = |name: &String| {
            self.answers(name) && self.held(name).is_none() && self.members[name].maintenance.is_none()
        };
        let target = self.members.keys().find(|name| **name != location && may(name)).cloned();
        let (Some(target), true, Some(_)) = (target, may(&location), self.leader()) else { return };
        if self.is_moving(guest) {
            return;
        }
        self.stops(guest);
        for image in self.images_of(guest) {
            self.gone.remove(&image);
            self.locks.remove(&image);
            for client in &mut self.clients {
                client.images.remove(&image);
                // What used the old image has nothing to write to.
                client.ever.remove(&image);
            }
        }
        self.guests.get_mut(guest).unwrap().location = target;
        self.starts(guest);
        self.announced();
    }

    /// The nonce of the next client at this address.
    pub(crate) fn nonce_at(&self, ip: IpAddr) -> u32 {
        let there = self.clients.iter().filter(|client| client.addr.ip == ip);
        there.map(|client| client.addr.nonce + 1).max().unwrap_or(FIRST_NONCE)
    }

    /// INV-8: an ID names one fence for good.
    pub(crate) fn inv8_new_ids(&mut self, changes: &[Change]) {
        let fence = |change: &Change| match change {
            Change::Put(Record::Fence(fence)) => Some(fence.clone()),
            Change::Put(_) | Change::Remove(_) => None,
        };
        for FenceRecord { id, since, .. } in changes.iter().filter_map(fence) {
            let first = *self.fences_began.entry(id.clone()).or_insert(since);
            if first != since {
                self.breaks(format!(
                    "INV-8: {id} names the fence of {first}, and is given to that of {since}"
                ));
            }
        }
    }
}
