//! What must hold in every world, after everything that happens there: at every refused client and every image.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use rbd_guardian_core::fence::step::Step;
use rbd_guardian_core::guardian::io::Effect;
use rbd_guardian_core::model::addr::{ClientAddr, Entry};
use rbd_guardian_core::model::epoch::GateEpoch;
use rbd_guardian_core::model::fence_id::FenceId;
use rbd_guardian_core::model::gate_keys::GateContents;
use rbd_guardian_core::model::incus_snapshot::{InstanceId, MemberStatus};
use rbd_guardian_core::model::osdmap::OsdMap;
use rbd_guardian_core::model::policy::minority;
use rbd_guardian_core::model::record::{FenceRecord, FenceState};
use rbd_guardian_core::model::target::Coverage;
use rbd_guardian_core::model::volume::ImageName;

use super::facets::{Facet, on};
use super::state::{Client, World};

/// INV-3: in responsive time, from a removal to the entry put back.
const LIFTED: Duration = Duration::from_secs(12);
/// In responsive time, from a removal to the fence proved again.
const TAMPERED: Duration = Duration::from_secs(20);
/// A member that has answered for so long was asked, where its answer takes no time.
const ANSWERS: Duration = Duration::from_secs(2);
/// Where readings take longer a guardian that takes over goes on before it knows where the images are.
const LAG: Duration = Duration::from_secs(1);
/// A first entry rests on what was seen no longer ago: a look that was made for its sake (7 s), the interfaces that live
/// members told since (2 s), and the time for which their judgement counts (5 s).
const JUDGED: Duration = Duration::from_secs(15);
/// In responsive time, from the last PG's answer to the seal.
const COUNTED: Duration = Duration::from_secs(20);
/// After this an alarm says what is waited for.
const SILENT: Duration = Duration::from_secs(60);

impl World {
    pub(crate) fn breaks(&mut self, what: String) {
        let time = self.time();
        self.broken.get_or_insert(format!("{time:?}: {what}"));
    }

    /// What an effect relies on is there.
    pub(crate) fn before(&mut self, effect: &Effect) {
        match effect {
            Effect::Record { changes, .. } => self.inv8_new_ids(changes),
            Effect::PutGate { contents, epoch, .. } => self.inv2_inv8_opening(contents, *epoch),
            Effect::Fence(id, Step::Add(entries)) => {
                self.inv8_recorded(id, entries);
                self.inv6_target(id, entries);
                self.inv6_active_daemons(id, entries);
            }
            Effect::Fence(id, Step::Remove(entries)) => self.inv8_recorded(id, entries),
            Effect::Release(id, Step::Remove(entries)) => self.inv5_inv8_release(id, entries),
            Effect::Retire(id, entries) => {
                let record = &self.ledger.fences[id];
                let dead = |entry: &Entry| entry.client().is_some_and(|client| record.dead.contains(&client));
                if record.state != FenceState::Released || !entries.iter().all(dead) {
                    self.breaks(format!("INV-4: {id} retires what is not dead: {entries:?}"));
                }
                for entry in entries {
                    self.own.remove(entry);
                }
            }
            _ => {}
        }
    }

    /// What holds at any time.
    pub(crate) fn holds(&mut self) {
        self.inv1_inv9_sealed();
        self.inv3_no_lapse();
        self.inv4_the_dead();
        self.inv6_friends();
        self.waits_are_alarms();
        self.inv1_answers_count();
        if !self.is_prompt() {
            self.prompt_since = self.boot;
        }
    }

    /// What stays closed, pending or unreleased for a minute is an alarm.
    fn waits_are_alarms(&mut self) {
        if !on(Facet::WaitsAreAlarms) || !self.settings.platform {
            self.silent_since = None;
            return;
        }
        let waits = |fence: &&FenceRecord| match fence.state {
            FenceState::Sealed | FenceState::Released => false,
            FenceState::Intended
            | FenceState::Committed
            | FenceState::Pending
            | FenceState::Breached
            | FenceState::Releasing => true,
        };
        let closed = self.lost().into_iter().find(|member| !self.is_open(member));
        let waits =
            closed.or_else(|| self.ledger.fences.values().find(waits).map(|fence| fence.id.to_string()));
        match waits {
            Some(what) if self.alarms().is_empty() => {
                let since = *self.silent_since.get_or_insert(self.boot);
                if self.boot.saturating_sub(since) > SILENT {
                    self.breaks(format!("silent: {what} waits for {SILENT:?}, and there is no alarm"));
                }
            }
            Some(_) | None => self.silent_since = None,
        }
    }

    /// INV-1 is of use only where it is reached: a fence is sealed soon after each PG has answered once since the entries
    /// stand, however late, whatever maps come meanwhile, and though some answer nobody any more.
    fn inv1_answers_count(&mut self) {
        let waits = |fence: &&FenceRecord| matches!(fence.state, FenceState::Committed | FenceState::Pending);
        let waiting: Vec<FenceRecord> = self.ledger.fences.values().filter(waits).cloned().collect();
        let told = |fence: &&FenceRecord| {
            let stands =
                |map: &&OsdMap| fence.entries.keys().all(|entry| map.blocklist.until(*entry).is_some());
            let since = self.maps.iter().rev().take_while(stands).last().map(|map| map.epoch);
            let pools = self.guardian.guarded().pools(self.map());
            let mut pgs = pools.iter().flat_map(|(id, pool)| (0..pool.pg_num).map(|pg| (*id, pg)));
            // Since when they stood before it took over a guardian does not know.
            let since = since.map(|since| since.max(self.epoch_at_takeover));
            since.is_some_and(|since| pgs.all(|pg| self.told.get(&pg).is_some_and(|told| *told >= since)))
        };
        let told: Vec<FenceId> = waiting.iter().filter(told).map(|fence| fence.id.clone()).collect();
        self.all_told_since.retain(|id, _| told.contains(id));
        for id in told {
            let since = *self.all_told_since.entry(id.clone()).or_insert(self.responsive);
            if self.responsive.saturating_sub(since) > COUNTED {
                let state = self.ledger.fences[&id].state;
                self.breaks(format!(
                    "never sealed: {id} is {state:?}, and every PG has answered {COUNTED:?} ago"
                ));
            }
        }
    }

    /// INV-1, INV-9: where a fence is reported sealed, every client of the member that the guardian ever saw at its
    /// images is refused by the map of every PG that could take a write of it.
    fn inv1_inv9_sealed(&mut self) {
        if self.guardian.held_fences().is_empty() {
            return;
        }
        let status = self.guardian.status(self.now());
        for fence in status.fences.iter().filter(|fence| fence.record.state == FenceState::Sealed) {
            let record = &fence.record;
            if record.overrides.accept_incomplete || self.tampered_lately(TAMPERED) {
                continue;
            }
            let Some(member) = record.member.as_deref() else { continue };
            let mut refused = Vec::new();
            let guarded = self.guarded_pools();
            let clients: Vec<&Client> = self.known_clients(member).filter(|client| client.alive).collect();
            for client in clients {
                match self.may_write_to(&guarded, client.addr) {
                    Some(why) => {
                        let text = format!("INV-1: {} of {member} is sealed, and {why}", record.id);
                        self.breaks(text);
                        return;
                    }
                    None => refused.push(client.addr),
                }
            }
            self.clients.iter_mut().filter(|one| refused.contains(&one.addr)).for_each(|one| one.dead = true);
            let boots = self.hosts.get(member).map_or(0, |host| host.boots);
            self.boots_at_seal.entry(record.id.clone()).or_insert(boots);
        }
    }

    fn tampered_lately(&self, bound: Duration) -> bool {
        self.tampered.is_some_and(|at| self.responsive.saturating_sub(at) < bound)
    }

    /// INV-2, INV-8: a gate opens for members whose seal is recorded, and nobody who used an image of theirs before
    /// the seal can write.
    fn inv2_inv8_opening(&mut self, contents: &GateContents, epoch: GateEpoch) {
        let recorded = self.ledger.gate.as_ref().map(|gate| (gate.epoch, &gate.open));
        if recorded != Some((epoch, &contents.open)) {
            self.breaks(format!("INV-8: gate epoch {epoch} is written before it is recorded"));
        }
        if contents.pools.contains("away") {
            self.breaks("INV-2: a storage pool of another Ceph cluster is told to be covered".to_owned());
        }
        if self.cluster_shape.wrong_cluster && contents.pools.contains("remote") && !contents.open.is_empty()
        {
            let text = format!("INV-2: the gate opens for {:?}, whose images are not here", contents.open);
            self.breaks(text);
        }
        for member in &contents.open {
            let of_it = |fence: &&FenceRecord| {
                fence.member.as_deref() == Some(member) && fence.state == FenceState::Sealed
            };
            let Some(fence) = self.ledger.fences.values().find(of_it).cloned() else {
                self.breaks(format!("INV-2: the gate opens for {member}, whose seal is not recorded"));
                continue;
            };
            if fence.coverage != Coverage::WholeHost && !fence.overrides.accept_incomplete {
                self.breaks(format!("INV-2: the gate opens for {member}: {:?}", fence.coverage));
            }
            if self.is_open(member) || self.tampered_lately(TAMPERED) {
                continue;
            }
            // What is not covered is placed nowhere.
            if contents.pools.contains("remote") {
                self.free_user(member, &fence);
            }
            self.lacks_image(member, &fence);
        }
    }

    /// A client that used an image of the member before the seal, and may write.
    fn free_user(&mut self, member: &str, fence: &FenceRecord) {
        let Some(sealed) = fence.sealed else { return };
        let sealed =
            self.boot.saturating_sub(Duration::try_from(self.now().wall - sealed).unwrap_or_default());
        let its = |guest: &&InstanceId| {
            self.guests[*guest].location == member && self.guests[*guest].pool != "away"
        };
        let images: Vec<_> = self.guests.keys().filter(its).flat_map(|guest| self.images_of(guest)).collect();
        let uses = |client: &&Client| {
            let watches = self.watches(client) && images.iter().any(|image| client.images.contains(image));
            // What opens an image later is a second writer's, and has an alarm.
            let opened = |image: &ImageName| {
                client.opened.get(image).is_some_and(|at| *at + Duration::from_secs(1) < sealed)
            };
            let before = images.iter().any(opened);
            let own = client.known && client.host == member && client.alive;
            let shown = !images.iter().any(|image| self.faults.unreadable.contains(image));
            own || (watches && before && shown && !fence.overrides.accept_incomplete)
        };
        let covered = |client: &&Client| {
            !fence.overrides.accept_incomplete || fence.entries.contains_key(&Entry::Client(client.addr))
        };
        let free = self.clients.iter().filter(uses).filter(covered).find_map(|client| {
            let why = self.may_write_to(&self.pools_of_images(), client.addr)?;
            Some(format!(
                "INV-2: the gate opens for {member}; a client on {} uses its images: {why}",
                client.host
            ))
        });
        if let Some(text) = free {
            self.breaks(text);
        }
    }

    /// The gate opens for a member with an image that was removed before its seal, and no operator accepted that.
    fn lacks_image(&mut self, member: &str, fence: &FenceRecord) {
        let Some(sealed) =
            fence.sealed.filter(|_| !fence.overrides.accept_incomplete && self.tampered.is_none())
        else {
            return;
        };
        let sealed =
            self.boot.saturating_sub(Duration::try_from(self.now().wall - sealed).unwrap_or_default());
        let its = |guest: &&InstanceId| self.guests[*guest].location == member;
        let images = self.guests.keys().filter(its).flat_map(|guest| self.images_of(guest));
        // A second of its own: times of records are whole ones.
        let gone =
            |image: &ImageName| self.gone.get(image).is_some_and(|at| *at + Duration::from_secs(1) < sealed);
        if let Some(image) = images.into_iter().find(gone) {
            self.breaks(format!("INV-2: the gate opens for {member}, and its image {image} is not there"));
        }
    }

    /// INV-2: the platform places an instance elsewhere, and no client of the lost member may write its images.
    pub(crate) fn placed_elsewhere(&mut self, member: &str, guest: &InstanceId) {
        if !self.gate || self.tampered_lately(TAMPERED) {
            return;
        }
        let images = self.images_of(guest);
        let accepted = self
            .ledger
            .fences
            .values()
            .any(|fence| fence.member.as_deref() == Some(member) && fence.overrides.accept_incomplete);
        let writes =
            |client: &&Client| client.alive && images.iter().any(|image| client.ever.contains(image));
        let elsewhere = self.clients.iter().filter(|one| one.host == member && self.is_elsewhere(one));
        let elsewhere = elsewhere
            .filter(writes)
            .find_map(|client| self.may_write_to(&self.pools_of_images(), client.addr));
        if let Some(why) = elsewhere {
            self.breaks(format!("INV-2: {} of {member} starts elsewhere, and {why}", guest.name));
            return;
        }
        let free = self
            .known_clients(member)
            .filter(writes)
            .find_map(|client| self.may_write_to(&self.pools_of_images(), client.addr));
        if let (Some(why), false) = (free, accepted) {
            self.breaks(format!("INV-2: {} of {member} starts elsewhere, and {why}", guest.name));
        }
    }

    /// INV-3: a fence that was sealed is not lifted for longer than it takes to notice and to mend.
    fn inv3_no_lapse(&mut self) {
        let held: Vec<(FenceId, String)> = self
            .ledger
            .fences
            .values()
            .filter(|fence| {
                matches!(fence.state, FenceState::Sealed | FenceState::Breached)
                    && !self.asserted.contains(&fence.id)
            })
            .filter_map(|fence| Some((fence.id.clone(), fence.member.clone()?)))
            .collect();
        let hangs = self.faults.incus_hangs.is_some() && !on(Facet::HangingIncus);
        let mut free = BTreeSet::new();
        for (id, member) in held {
            let blocklist = &self.map().blocklist;
            for entry in self.ledger.fences[&id].entries.keys() {
                let stands = match entry {
                    Entry::Client(client) => blocklist.until(Entry::Client(*client)).is_some(),
                    // Either form of a host holds it.
                    Entry::Host(ip) | Entry::HostRange(ip) => blocklist.hosts(*ip).next().is_some(),
                };
                if !stands {
                    free.insert((id.clone(), *entry));
                }
            }
            for client in self.clients.iter().filter(|one| one.dead && one.alive && one.host == member) {
                if !self.map().blocklist.refuses(client.addr) {
                    free.insert((id.clone(), Entry::Client(client.addr)));
                }
            }
        }
        self.free_since.retain(|one, _| free.contains(one));
        let alarms = if free.is_empty() { BTreeSet::new() } else { self.alarms() };
        for one in free {
            let since = *self.free_since.entry(one.clone()).or_insert(self.responsive);
            // Doubt about every form of an entry is the operator's to end.
            let told = alarms.contains("fence-trouble");
            if self.responsive.saturating_sub(since) > LIFTED && !hangs && !told {
                let state = self.ledger.fences[&one.0].state;
                self.breaks(format!(
                    "INV-3: {} is {state:?} and {} is not refused for {LIFTED:?}",
                    one.0, one.1
                ));
            }
        }
    }

    /// INV-4: a client that was refused under a seal is refused as long as it lives.
    fn inv4_the_dead(&mut self) {
        if self.tampered.is_some() {
            return;
        }
        let map = &self.map().blocklist;
        let free = self.clients.iter().find(|one| one.dead && one.alive && !map.refuses(one.addr));
        if let Some(client) = free {
            self.breaks(format!("INV-4: {} of {} was fenced and can write again", client.addr, client.host));
        }
    }

    /// INV-6: no entry of the guardian's own refuses a client that its fence was not for.
    fn inv6_friends(&mut self) {
        let hit = self.clients.iter().filter(|client| client.alive).find_map(|client| {
            let (entry, own) = self.own_entry(client.addr)?;
            let later = self.moved_unseen(&own.fence, client.addr.ip, own.at);
            let friend = own.member.as_ref().is_some_and(|member| *member != client.host);
            (friend && !later).then(|| {
                format!("INV-6: {entry} of {} refuses {} of {}", own.fence, client.addr, client.host)
            })
        });
        if let Some(text) = hit {
            self.breaks(text);
        }
    }

    /// The guardian's own entry that refuses this client, if one stands.
    fn own_entry(&self, client: ClientAddr) -> Option<(Entry, &super::state::Own)> {
        let forms = [Entry::Client(client), Entry::Host(client.ip), Entry::HostRange(client.ip)];
        let blocklist = &self.map().blocklist;
        let stands = forms.into_iter().filter(|entry| blocklist.until(*entry).is_some());
        stands.filter_map(|entry| Some((entry, self.own.get(&entry)?))).next()
    }

    /// Had this address moved so lately that whoever sent the first entry of this fence then cannot have known it: a moment
    /// before the intent or after it, and no longer before the entry than a judgement counts?
    pub(crate) fn moved_unseen(&self, id: &FenceId, ip: IpAddr, sent: Duration) -> bool {
        let Some(record) = self.ledger.fences.get(id) else { return false };
        let since = Duration::try_from(self.now().wall - record.since).unwrap_or_default();
        // Times of records are whole seconds.
        let intended = self.boot.saturating_sub(since);
        let lately =
            |at: &Duration| *at + Duration::from_secs(1) > intended && *at + JUDGED + self.faults.lag > sent;
        self.moved_at.get(&ip).is_some_and(lately)
    }

    /// INV-6: what is added is for the member alone, and that member does not answer.
    fn inv6_target(&mut self, id: &FenceId, entries: &[Entry]) {
        let Some(record) = self.ledger.fences.get(id).cloned() else { return };
        let Some(member) = record.member.clone() else { return };
        for (name, host) in &self.hosts {
            let hit = |entry: &&Entry| entry.is_host() && host.ips.contains(&entry.ip());
            if let Some(entry) = entries.iter().find(hit)
                && *name != member
                && !self.moved_unseen(id, entry.ip(), self.boot)
                && !matches!(record.state, FenceState::Sealed | FenceState::Breached)
            {
                let text = format!("INV-6: {id} of {member} adds {entry}, an address of {name}");
                self.breaks(text);
                return;
            }
        }
        self.inv6_floating(id, &record, entries);
        // What was sent and not answered may arrive: there is no way back.
        let sent = self.own.values().any(|own| own.fence == *id);
        let first = record.state == FenceState::Intended && record.by == "the guardian" && !sent;
        let Some(host) = self.hosts.get(&member) else { return };
        let answers = host.up
            && host.cluster
            && self.boot.saturating_sub(host.answers_since) > ANSWERS + 3 * self.faults.lag;
        if first && answers && self.faults.incus_hangs.is_none() && on(Facet::Answering) {
            self.breaks(format!("INV-6: {id} begins, and {member} has answered for {ANSWERS:?}"));
        }
        let faults = &self.faults;
        let listed = !faults.no_instances && !faults.no_volumes && faults.incus_hangs.is_none();
        let prompt = listed && faults.lag <= LAG && !faults.monitors_silent;
        if first && prompt && self.cluster_shape.wrong_cluster && on(Facet::SecondCluster) {
            self.breaks(format!("INV-6: {id} begins by itself, and the images of {member} are not here"));
        }
        if first && !record.overrides.brake {
            let stands = |fence: &&FenceRecord| fence.state.stands() || fence.id == *id;
            let held: BTreeSet<_> =
                self.ledger.fences.values().filter(stands).filter_map(|fence| fence.member.clone()).collect();
            if held.len() > minority(self.members.len()) {
                self.breaks(format!("INV-6: {held:?} are fenced at once"));
            }
        }
    }

    /// INV-6: an address that another member had before the intent is not added, where that member could tell.
    fn inv6_floating(&mut self, id: &FenceId, record: &FenceRecord, entries: &[Entry]) {
        let since = Duration::try_from(self.now().wall - record.since).unwrap_or_default();
        // Times of records are whole seconds.
        let intended = self.boot.saturating_sub(since + Duration::from_secs(1));
        let could_tell = |name: &str| {
            let since = self.prompt_since.max(self.hosts[name].answers_since);
            self.is_prompt() && self.status(name) == MemberStatus::Online && since + ANSWERS < intended
        };
        let hit = self.hosts.iter().find_map(|(name, host)| {
            let there = |entry: &&Entry| entry.is_host() && host.floating.contains(&entry.ip());
            let entry = entries.iter().find(there)?;
            let moved = self.moved_at.get(&entry.ip()).copied().unwrap_or_default();
            (record.member.as_ref() != Some(name) && moved < intended && could_tell(name))
                .then(|| format!("INV-6: {id} adds {entry}, which is on an interface of {name}"))
        });
        if let Some(text) = hit.filter(|_| !matches!(record.state, FenceState::Sealed | FenceState::Breached))
        {
            self.breaks(text);
        }
    }

    /// Does Incus answer soon enough to be waited for?
    fn is_prompt(&self) -> bool {
        let faults = &self.faults;
        let answers = self.settings.platform && faults.incus_hangs.is_none() && self.leader().is_some();
        answers && faults.lag < LAG
    }

    /// INV-8: an intent is recorded before anything is sent.
    fn inv8_recorded(&mut self, id: &FenceId, entries: &[Entry]) {
        let Some(record) = self.ledger.fences.get(id) else {
            self.breaks(format!("INV-8: {id} is not recorded"));
            return;
        };
        let hosts: BTreeSet<_> =
            record.entries.keys().filter(|entry| entry.is_host()).map(|e| e.ip()).collect();
        let covers = |entry: &&Entry| {
            record.entries.contains_key(entry)
                || record.in_doubt.contains(entry)
                || hosts.contains(&entry.ip())
        };
        let unrecorded = entries.iter().find(|entry| !covers(entry) && entry.client().is_some());
        if let Some(entry) = unrecorded {
            self.breaks(format!("INV-8: {entry} of {id} is not recorded"));
        }
    }

    /// INV-5, INV-8: a host entry goes when the release is recorded, the gate is closed, and the host has rebooted or
    /// an operator said that it is off.
    fn inv5_inv8_release(&mut self, id: &FenceId, entries: &[Entry]) {
        let record = self.ledger.fences[id].clone();
        let recorded = entries.iter().all(|entry| record.in_doubt.contains(entry));
        if record.state != FenceState::Releasing || !recorded {
            self.breaks(format!("INV-8: {id} removes {entries:?} and that is not recorded"));
        }
        let member = record.member.clone().unwrap_or_default();
        let opens = self.is_open(&member) && (self.settings.platform || on(Facet::WithoutIncus));
        if opens && entries.iter().any(|entry| entry.is_host()) {
            self.breaks(format!("INV-2: {id} is released while the gate is open for {member}"));
        }
        let boots = self.hosts.get(&member).map_or(0, |host| host.boots);
        let rebooted = self.boots_at_seal.get(id).is_none_or(|before| boots > *before);
        if !record.member.is_some_and(|_| rebooted || self.asserted.contains(id))
            && record.by == "the guardian"
        {
            self.breaks(format!("INV-5: {id} is released, and {member} did not reboot"));
        }
        for entry in entries.iter().filter(|entry| entry.is_host()) {
            let others = self.ledger.fences.values().find(|other| {
                other.id != *id
                    && other.entries.contains_key(entry)
                    && matches!(other.state, FenceState::Sealed | FenceState::Pending | FenceState::Committed)
            });
            if let Some(other) = others.filter(|_| on(Facet::TwoFences)) {
                let text = format!("INV-3: the release of {id} removes {entry}, which {} rests on", other.id);
                self.breaks(text);
                return;
            }
        }
        for entry in entries {
            self.own.remove(entry);
        }
    }

    pub(crate) fn alarms(&self) -> BTreeSet<&'static str> {
        self.guardian.alarms().into_iter().map(|alarm| alarm.code).collect()
    }

    /// Once nothing happens any more: what is not as it should be, if anything is; `None` when all is well, or an alarm
    /// says why not.
    pub(crate) fn unsettled(&self) -> Option<String> {
        let alarms = self.alarms();
        if let Some(member) = self.lost().first() {
            let open = self.held(member) == Some(FenceState::Sealed) && self.is_open(member);
            // An address that no client of another host uses holds no fence back.
            let floats = |refused: &str| {
                self.log.iter().rev().take(30).any(|line| line.contains(refused))
                    && !self.clients.iter().any(|client| client.addr.ip == super::state::ip(0, 200))
            };
            if !open && on(Facet::Floating) && floats("10.0.0.200 of member") {
                return Some(format!("{member} is lost, and a floating address holds its fence back"));
            }
            if !open && alarms.is_empty() {
                let state = self.held(member);
                return Some(format!("{member} is lost, its fence {state:?}, the gate closed, and no alarm"));
            }
        }
        let wrong = self.cluster_shape.wrong_cluster;
        // Incus says which images there are only while it has a quorum.
        let listed = self.leader().is_some();
        if on(Facet::SecondCluster) && wrong && listed && !alarms.contains("wrong-cluster") {
            return Some("Incus's images are in another cluster, and no alarm says so".to_owned());
        }
        if !wrong && self.gone.len() < self.guests.len() / 2 && alarms.contains("wrong-cluster") {
            return Some(format!("wrong-cluster, and only {:?} are gone", self.gone));
        }
        for (id, fence) in &self.ledger.fences {
            let Some(member) = fence.member.as_deref() else { continue };
            let boots = self.hosts.get(member).map_or(0, |host| host.boots);
            let rebooted = self.boots_at_seal.get(id).is_some_and(|before| boots > *before);
            let waits = fence.state != FenceState::Released && self.answers(member);
            if waits && (rebooted || fence.state != FenceState::Sealed) && alarms.is_empty() {
                return Some(format!("{id} of {member}, which is back, is {:?}, and no alarm", fence.state));
            }
            if matches!(fence.state, FenceState::Committed | FenceState::Breached | FenceState::Pending)
                && alarms.is_empty()
            {
                return Some(format!("{id} of {member} is {:?}, and no alarm", fence.state));
            }
        }
        None
    }
}
