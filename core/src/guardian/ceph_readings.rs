//! The last readings of Ceph, and how old they are: the osdmap, the look that a plan needs, the sweep.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::guardian::report::{Alarm, Level, Reports};
use crate::model::addr::ClientAddr;
use crate::model::ceph_snapshot::{CephSnapshot, Clients, Daemon};
use crate::model::image_users::ImageUse;
use crate::model::now::Now;
use crate::model::osdmap::OsdMap;
use crate::model::volume::ImageName;

/// How many items an alarm names.
const SHOWN: usize = 5;
/// How long a reading of the osdmap counts as fresh: at rest it is read each 10 s.
const FRESH: Duration = Duration::from_secs(25);

/// The last sweep.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Sweep {
    pub(super) began: Duration,
    /// When the sweep ended: a reading of Incus that began earlier may place instances wrongly.
    pub(super) ended: Duration,
    /// Images with their users.
    pub(super) uses: Vec<ImageUse>,
    pub(super) unread: Vec<String>,
    /// Images a gate may wait for that this sweep read; `None`: it read all images.
    #[serde(default)]
    pub(super) asked: Option<BTreeSet<ImageName>>,
}

/// The last readings of Ceph.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct CephReadings {
    /// Checkpoints keep osdmaps apart (`recording::maps`).
    #[serde(skip)]
    pub(super) map: Option<Arc<OsdMap>>,
    pub(super) map_read: Duration,
    pub(super) map_failed: Option<String>,
    /// Why the last look at the storage failed.
    #[serde(default)]
    pub(super) look_failed: Option<String>,
    pub(super) world: Option<CephSnapshot>,
    /// When the last look that succeeded began.
    pub(super) looked_at: Option<Duration>,
    pub(super) sweep: Option<Sweep>,
}

impl CephReadings {
    /// Did a look that succeeded begin then or later?
    pub(super) fn has_looked_since(&self, since: Duration) -> bool {
        self.looked_at.is_some_and(|at| at >= since)
    }

    pub(super) fn map_is_fresh(&self, now: Now) -> bool {
        self.map.is_some() && now.boot.saturating_sub(self.map_read) < FRESH && self.map_failed.is_none()
    }

    /// The monitors' clock, by which blocklist entries expire.
    pub(super) fn clock(&self, now: Now) -> Timestamp {
        self.map.as_ref().map_or(now.wall, |map| map.clock(now.wall))
    }

    /// Is it longer ago than that? By this host's clock and by the monitors': either may be years off, and be set
    /// meanwhile.
    pub(super) fn is_over(&self, now: Now, at: Timestamp, after: Duration) -> bool {
        let after = SignedDuration::try_from(after).unwrap_or(SignedDuration::MAX);
        [now.wall, self.clock(now)].iter().all(|clock| clock.duration_since(at) >= after)
    }

    pub(super) fn daemons(&self) -> &[Daemon] {
        self.world.as_ref().map(|world| world.daemons.as_slice()).unwrap_or_default()
    }

    /// Images with their users, as the last sweep showed them.
    pub(super) fn uses(&self) -> &[ImageUse] {
        self.sweep.as_ref().map(|sweep| sweep.uses.as_slice()).unwrap_or_default()
    }

    /// The IPs of every client that the last look or sweep showed.
    pub(super) fn client_ips(&self) -> BTreeSet<IpAddr> {
        let swept = self.uses().iter().flat_map(ImageUse::clients);
        let looked = self.world.iter().flat_map(|world| world.clients.keys().copied());
        swept.chain(looked).map(|client: ClientAddr| client.ip).collect()
    }

    /// Keeps a map if it is the newest, and tells whether it is.
    pub(super) fn note_map(&mut self, now: Now, map: &Arc<OsdMap>) -> bool {
        let newest = self.map.as_ref().is_none_or(|known| known.epoch <= map.epoch);
        if newest {
            self.map = Some(Arc::clone(map));
            self.map_read = now.boot;
        }
        newest
    }

    /// Osdmaps were read, oldest first. Epochs that the monitors have dropped cannot be checked: an entry that was gone in one
    /// of them shows by another expiry time (INV-3).
    pub(super) fn handle_maps(&mut self, maps: &[OsdMap], reports: &mut Reports) {
        self.map_failed = None;
        let (Some(known), Some(first)) = (&self.map, maps.first()) else { return };
        if first.epoch > known.epoch.later(1) {
            let text = format!(
                "the monitors dropped the osdmap epochs {} to {} before this guardian read them: an entry that stands \
                 until another moment than before is taken for one that was gone",
                known.epoch.later(1),
                first.epoch.earlier(1)
            );
            reports.log(Level::Warn, "epochs-trimmed", None, text);
        }
    }

    pub(super) fn handle_no_maps(&mut self, why: String, reports: &mut Reports) {
        if self.map_failed.is_none() {
            reports.log(Level::Warn, "storage-lost", None, format!("the storage does not answer: {why}"));
        }
        self.map_failed = Some(why);
    }

    /// Keeps a look, and returns the clients of the look before.
    pub(super) fn handle_look(&mut self, began: Duration, world: CephSnapshot) -> Clients {
        (self.looked_at, self.look_failed) = (Some(began), None);
        self.world.replace(world).map(|before| before.clients).unwrap_or_default()
    }

    pub(super) fn handle_no_look(&mut self, why: String) {
        self.look_failed = Some(why);
    }

    pub(super) fn handle_sweep(&mut self, sweep: Sweep) {
        self.sweep = Some(sweep);
    }

    pub(super) fn alarms(&self) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        if let Some(why) = &self.map_failed {
            let text = format!("the storage does not answer: {why}");
            alarms.push(Alarm::new("storage-lost", None, text, vec!["ceph -s".to_owned()]));
        }
        let map = self.map.iter().flat_map(|map| map.not_understood.iter().cloned());
        let users = |one: &ImageUse| {
            let (image, unknown) = (one.image.clone(), one.unknown.clone());
            unknown.into_iter().map(move |what| format!("image {image}: {what}"))
        };
        let unclear: Vec<String> = map.chain(self.uses().iter().flat_map(users)).collect();
        if !unclear.is_empty() {
            let count = unclear.len();
            let shown = unclear.into_iter().take(SHOWN).collect::<Vec<_>>().join("; ");
            let text = format!("{count} items of the storage's answers are not understood: {shown}");
            let advice = vec!["report them with the Ceph release in use".to_owned()];
            alarms.push(Alarm::new("not-understood", None, text, advice));
        }
        alarms
    }
}
