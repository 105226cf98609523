//! What readings of the platform and the storage say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::fence::GUARDIAN;
use crate::guardian::effects::NETWORKS_OFTEN;
use crate::guardian::gate::{self, GateState};
use crate::guardian::io::StaleLock;
use crate::guardian::pace::Lane;
use crate::guardian::report::Level;
use crate::guardian::sightings::{ForeignClients, Sightings};
use crate::guardian::{Guardian, known, waits};
use crate::model::addr::ClientAddr;
use crate::model::epoch::GateEpoch;
use crate::model::fence_id::FenceId;
use crate::model::image_users::ImageUse;
use crate::model::incus_snapshot::{IncusSnapshot, MemberState, Notice, OperationKind};
use crate::model::osdmap::{DataPools, Guarded, MAPS_AT_ONCE, OsdMap};
use crate::model::record::{FenceState, Records, UptimeSample};
use crate::model::volume::{Expected, images};
use crate::rules::loss_evidence::LossEvidence;
use crate::rules::reboot_proof::{self, Baseline, NotProved};
use crate::rules::single_writer::{self, Conflict};
use crate::rules::unread::Unread;

/// A refused placement is shown so long: healing tries again within a minute.
pub(super) const NOT_PLACED_LASTS: Duration = Duration::from_secs(90);

/// What a sweep finds amiss is told when one that begins so much later still finds it: a copy of an instance to another
/// member opens its image there for a moment, and instances move between a sweep and a reading.
const LOOKS_AGAIN: Duration = Duration::from_secs(1);

/// So many placements that the gate refused for good are shown.
const NOT_PLACED: usize = 50;

/// The last sweep.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Sweep {
    /// When it began.
    pub(super) began: Duration,
    /// When it had ended: what a reading that began earlier says of places may be out of date.
    pub(super) ended: Duration,
    /// Images with their users.
    pub(super) uses: Vec<ImageUse>,
    /// What could not be read.
    pub(super) unread: Vec<String>,
}

impl Guardian {
    /// The pools that a seal covers, and that sweeps go through.
    pub fn guarded(&self) -> &Guarded {
        &self.settings.policy.guarded
    }

    /// INV-1: what the platform names is guarded, whatever its tags say; what comes to be named is proved first.
    pub(super) fn guard_what_is_named(&mut self) {
        let Some(view) = self.view.as_ref().filter(|view| view.pools.is_some()) else { return };
        let named = gate::named(view, &self.settings.storage);
        if named != self.settings.policy.guarded.named {
            self.settings.policy.guarded.named = named;
            for fence in self.fences.values_mut() {
                fence.guard(&self.settings.policy.guarded);
            }
        }
    }

    /// INV-1: the data of an image is guarded where its header says that it lies.
    pub(super) fn guard_data(&mut self, found: &DataPools, complete: bool) {
        let guarded = &mut self.settings.policy.guarded;
        let before = guarded.data.clone();
        guarded.note_data(found, complete);
        if guarded.data != before {
            for fence in self.fences.values_mut() {
                fence.guard(&self.settings.policy.guarded);
            }
        }
    }

    /// Until a sweep has read every header, what a guardian before this one proved for a fence stays guarded.
    pub(super) fn guard_what_was_proved(&mut self, records: &Records) {
        let held = records.fences.values().filter(|fence| fence.state.stands());
        let proved: BTreeSet<_> = held.flat_map(|fence| &fence.proofs).map(|proof| proof.id).collect();
        if !proved.is_empty() {
            self.settings.policy.guarded.note_data(&[(String::new(), proved)].into(), false);
        }
    }

    pub(super) fn note(&mut self, notice: &Notice) {
        let now = self.now.boot;
        match notice {
            Notice::Healing { member } => {
                // Unless it is named, it is one whose heartbeat is old enough.
                let due = |name: &String| {
                    let view = self.view.as_ref()?;
                    Some(view.members.get(name)?.heartbeat_age? >= view.thresholds.healing?)
                };
                for (name, evidence) in &mut self.evidence {
                    if member.is_none() && evidence.is_lost() && due(name) == Some(true) {
                        evidence.healing = Some(now);
                    }
                }
                if let Some(member) = member {
                    self.evidence.entry(member.clone()).or_default().healing = Some(now);
                }
                self.schedule.view = now;
            }
            Notice::Refused { member, healing } => {
                if *healing {
                    self.evidence.entry(member.clone()).or_default().heal_refused = Some(now);
                }
                self.schedule.view = now;
            }
            Notice::NotPlaced { why } => {
                if self.not_placed.insert(why.clone(), now).is_none_or(|told| now >= told + NOT_PLACED_LASTS)
                {
                    self.log(Level::Warn, "not-placed", None, why.clone());
                }
                if self.not_placed.len() > NOT_PLACED {
                    let oldest =
                        self.not_placed.iter().min_by_key(|(_, at)| **at).map(|(why, _)| why.clone());
                    self.not_placed.retain(|why, _| oldest.as_ref() != Some(why));
                }
            }
            Notice::Changed => self.schedule.changed(now),
            Notice::Missed => self.schedule.whole = now,
        }
    }

    pub(super) fn read_view(&mut self, began: Duration, view: Result<IncusSnapshot, String>) {
        let view = match view {
            Ok(view) => view,
            Err(why) => {
                if self.view_failed.is_none() {
                    self.log(
                        Level::Warn,
                        "view-lost",
                        None,
                        format!("no member answers with a quorum behind it: {why}"),
                    );
                }
                self.view_failed = Some(why);
                // Whoever answers next is asked for everything: until then nobody knows which images there are.
                if self.whole_asked {
                    self.schedule.whole = self.now.boot;
                }
                return;
            }
        };
        if self.view_failed.take().is_some() {
            self.log(Level::Info, "view-back", None, format!("{} answers for the cluster", view.from));
        }
        let whole = view.volumes.is_some() && view.instances.is_some();
        if self.whole_asked {
            self.note_listing(&view);
        }
        let before = self.view.take();
        self.note_moves(before.as_deref(), &view);
        let mut merged = merge(before.map(Arc::unwrap_or_clone), view);
        if whole {
            self.whole_began = Some(began);
            self.images = images(&merged, &self.settings.storage);
            // All that is wanted of them.
            merged.volumes = None;
        }
        let healing =
            merged.operations.iter().flatten().any(|operation| operation.kind == OperationKind::Heal);
        for (name, member) in &merged.members {
            let evidence = self.evidence.entry(name.clone()).or_default();
            evidence.note_status(&member.status, began);
            evidence.note_evacuation(&member.status, healing || merged.operations.is_none(), began);
            let due = merged.thresholds.healing.zip(member.heartbeat_age).is_some_and(|(at, age)| age >= at);
            if healing && due && evidence.is_lost() {
                evidence.healing = Some(self.now.boot);
            }
            if let Ok(ips) = &member.addresses {
                self.book.operator(name, ips, &self.settings.members);
            }
        }
        self.evidence.retain(|name, _| merged.members.contains_key(name));
        self.networks_read.retain(|name, _| merged.members.contains_key(name));
        self.unidentified.retain(|name| merged.members.contains_key(name));
        let starts = |kind: OperationKind| match kind {
            OperationKind::Heal | OperationKind::Migrate | OperationKind::Start => true,
            OperationKind::Evacuate | OperationKind::Other => false,
        };
        let starting = merged.operations.iter().flatten().filter(|operation| starts(operation.kind));
        self.starting = starting.map(|operation| operation.id.clone()).collect();
        self.starting_known = merged.operations.is_some();
        self.view = Some(Arc::new(merged));
        self.guard_what_is_named();
        if whole {
            self.listed();
        }
        self.view_began = began;
        self.end_records();
        self.note_foreign_keys();
        self.swept();
    }

    /// An instance that left a lost member: nobody asked the gate, or it let it go.
    fn note_moves(&mut self, before: Option<&IncusSnapshot>, after: &IncusSnapshot) {
        let (Some(before), Some(after)) = (before.and_then(|view| view.instances.as_ref()), &after.instances)
        else {
            return;
        };
        for (id, instance) in after {
            let Some(old) = before.get(id).filter(|old| old.location != instance.location) else { continue };
            let sealed = self.is_open(&old.location);
            if let Some(evidence) = self.evidence.get_mut(&old.location)
                && evidence.is_lost()
                && !sealed
            {
                evidence.moved = Some(id.to_string());
            }
        }
    }

    /// INV-7: what somebody else writes to the gate, the ledger does not back: a deposed guardian, or a tool that
    /// writes back an old copy of a member's configuration. It is written again.
    fn note_foreign_keys(&mut self) {
        let Some(gate) = self.view.as_ref().and_then(|view| view.gate.as_ref()) else { return };
        if self.view_began <= self.desk.ended || self.busy.contains_key(&Lane::Gate) {
            return;
        }
        if self.gate_state() == GateState::Absent {
            if gate.members.values().all(|keys| !keys.keys().any(|key| gate::is_own(key))) {
                self.desk.removing = None;
            }
            // The operator took it out, and its keys; or is about to put it there.
            self.desk.told.clear();
            self.desk.missed.clear();
            return;
        }
        // A write whose end nobody knew, and that is there: it was done (INV-9).
        let sent = &self.desk.sent;
        let (done, missed) = std::mem::take(&mut self.desk.missed)
            .into_iter()
            .partition::<BTreeSet<_>, _>(|name| gate.members.get(name) == Some(sent));
        self.desk.told.extend(done.into_iter().map(|name| (name, sent.clone())));
        self.desk.missed = missed;
        let recorded = self.recorded_gate_epoch().max(self.desk.epoch);
        let removing = self.gate_is_being_removed();
        let backed = self.records.gate.as_ref().map(|gate| gate.open.clone()).unwrap_or_default();
        let mut foreign = Vec::new();
        for (name, found) in &gate.members {
            let told = self.desk.told.get(name);
            // What a guardian before this one wrote is known by what it recorded; what became of a write that
            // failed, by nothing.
            let logged = self.desk.foreign.get(name) == Some(found);
            if logged || told == Some(found) || (told.is_none() && self.desk.epoch > GateEpoch::default()) {
                continue;
            }
            // The operator's command takes them away, member by member.
            if removing && !found.keys().any(|key| gate::is_own(key)) {
                continue;
            }
            let expected = told.map_or_else(|| backed.clone(), gate::seals);
            let seals: Vec<String> = gate::seals(found).difference(&expected).cloned().collect();
            let epoch = gate::epoch(found);
            if !seals.is_empty() {
                let text = format!(
                    "{name} has a seal key for {} that the ledger does not back: it is removed",
                    seals.join(", ")
                );
                foreign.push((name.clone(), text));
            } else if !gate::is_plausible(epoch, recorded) {
                let text = format!("{name} has epoch {epoch}, the ledger {recorded}: it is written again");
                foreign.push((name.clone(), text));
            } else if told.is_some() {
                let text = format!("somebody else changed the gate's keys at {name}: they are written again");
                foreign.push((name.clone(), text));
            }
        }
        self.desk.told.retain(|name, _| gate.members.contains_key(name));
        for (name, _) in &foreign {
            self.desk.told.remove(name);
            self.desk
                .foreign
                .extend(gate.members.get_key_value(name).map(|(name, keys)| (name.clone(), keys.clone())));
        }
        for (name, text) in foreign {
            self.log(Level::Error, "gate-foreign-write", Some(name), text);
        }
    }

    pub(super) fn read_member_state(
        &mut self,
        name: &str,
        state: Result<MemberState, String>,
        asked: Duration,
    ) {
        let held = self.fence_of(name).map(|fence| fence.id().clone());
        let evidence = self.evidence.entry(name.to_owned()).or_default();
        match &state {
            Ok(_) if evidence.is_asked_on() => evidence.note_answer(asked),
            Ok(_) => {}
            Err(_) => evidence.note_silence(asked),
        }
        if let Ok(state) = &state {
            match &held {
                Some(id) => self.judge_reboot(&id.clone(), name, state, asked),
                None if self.is_online(name) => self.remember(name, state),
                None => {}
            }
        } else {
            self.returned.remove(name);
        }
        self.evidence.entry(name.to_owned()).or_default().state = Some((asked, state));
    }

    /// A healthy member's uptime and identity, for the proof of a reboot. Kept unless it changed by much: a smaller
    /// sample only makes the proof stricter.
    fn remember(&mut self, name: &str, state: &MemberState) {
        let at = self.now.wall;
        let member = self.book.of(name);
        let known = member.uptime.map(|sample| sample.uptime);
        if known.is_none_or(|known| state.uptime < known || state.uptime > known * 3 / 2) {
            member.uptime = Some(UptimeSample { uptime: state.uptime, at });
        }
        if state.machine.is_some() {
            member.machine.clone_from(&state.machine);
        }
        self.note_identity(name);
    }

    /// The uptime of a machine that is known to be the same, fenced as it is: an uptime below it shows a reboot since, also
    /// where the member was fenced soon after a boot.
    fn remember_longer(&mut self, name: &str, state: &MemberState) {
        let at = self.now.wall;
        let sample = &mut self.book.of(name).uptime;
        if sample.is_some_and(|known| state.uptime > known.uptime * 3 / 2) {
            *sample = Some(UptimeSample { uptime: state.uptime, at });
        }
    }

    /// The interfaces of a member, by its own word.
    pub(super) fn read_networks(&mut self, name: &str, networks: &BTreeSet<IpNet>) {
        let before = self.book.contradictions();
        let beside = self.spoken_for(name, networks);
        self.book.networks(name, networks, beside);
        self.note_came_later();
        self.judge_addresses();
        // The others' own interfaces settle what these contradict.
        let new = self.book.contradictions().into_iter().filter(|one| !before.contains(one));
        for other in new.flat_map(|one| one.members).filter(|other| other != name) {
            self.networks_read.remove(&other);
        }
        let lost = |name: &str| self.evidence.get(name).is_some_and(LossEvidence::is_lost);
        for (ip, before, now) in self.book.moved(lost) {
            let text =
                format!("{ip} is on an interface of {now} now: it is an address of {before} no longer");
            self.log(Level::Warn, "address-moved", Some(before), text);
        }
    }

    /// Tells which interfaces are addresses of the storage, by the newest look and sweep.
    pub(super) fn judge_addresses(&mut self) {
        let swept = self.sweep.iter().flat_map(|sweep| &sweep.uses).flat_map(ImageUse::clients);
        let looked = self.world.iter().flat_map(|world| world.clients.keys().copied());
        let clients = swept.chain(looked).map(|client| client.ip).collect();
        let daemons = self.world.as_ref().map(|world| world.daemons.as_slice()).unwrap_or_default();
        self.book.judge(daemons, &clients, &self.settings.members);
    }

    /// Is a member's record kept though its cluster does not have it?
    pub(super) fn stays_in_book(&self, name: &str) -> bool {
        self.settings.members.get(name).is_some() || self.fence_of(name).is_some()
    }

    /// Records of members that were removed from the cluster: one that is added under the name is another machine.
    fn end_records(&mut self) {
        let Some(view) = self.view.clone() else { return };
        let gone = self.book.members.keys().filter(|name| !view.members.contains_key(*name));
        let gone: BTreeSet<String> = gone.filter(|name| !self.stays_in_book(name)).cloned().collect();
        self.book.end(|name| !gone.contains(name));
    }

    /// Refused placements are shown for a while.
    pub(super) fn forget_placements(&mut self) {
        let now = self.now.boot;
        self.not_placed.retain(|_, at| now.saturating_sub(*at) < NOT_PLACED_LASTS);
    }

    fn judge_reboot(&mut self, id: &FenceId, name: &str, state: &MemberState, asked: Duration) {
        let machine = self.machine_of(name).text();
        let Some(fence) = self.fences.get_mut(id) else { return };
        if fence.record().state != FenceState::Sealed || fence.release().is_some() {
            return;
        }
        let member = self.book.members.get(name);
        let mark = fence.record().marks.get(&self.settings.boot_id);
        let baseline = Baseline {
            machine: machine.as_deref(),
            uptime: member.and_then(|member| member.uptime).map(|sample| sample.uptime),
            since_seal: mark.map(|mark| asked.saturating_sub(*mark)),
        };
        match reboot_proof::rebooted(&baseline, state) {
            Ok(()) if self.settings.auto_release => {
                let why = format!(
                    "it booted {} s ago, and was sealed {} s ago",
                    state.uptime.as_secs(),
                    baseline.since_seal.unwrap_or_default().as_secs()
                );
                fence.let_go(GUARDIAN.to_owned(), why.clone());
                self.returned.remove(name);
                self.log(Level::Info, "rebooted", Some(name.to_owned()), format!("{why}: it is released"));
            }
            Ok(()) => drop(self.returned.remove(name)),
            Err(not) => {
                if let NotProved::SameBoot { .. } = not {
                    self.remember_longer(name, state);
                }
                if self.returned.insert(name.to_owned(), not.clone()).is_none() {
                    self.log(Level::Error, "returned-stale", Some(name.to_owned()), not.to_string());
                }
            }
        }
    }

    pub(super) fn read_maps(&mut self, maps: Result<Vec<OsdMap>, String>) {
        match maps {
            Ok(maps) => {
                self.map_failed = None;
                self.tell_trimmed(&maps);
                if maps.len() >= MAPS_AT_ONCE {
                    // There are more.
                    self.schedule.maps = None;
                }
                let maps: Vec<_> = maps.into_iter().map(Arc::new).collect();
                maps.iter().for_each(|map| self.note_map(Arc::clone(map)));
                self.date_breaches(&maps);
            }
            Err(why) => {
                if self.map_failed.is_none() {
                    self.log(
                        Level::Warn,
                        "storage-lost",
                        None,
                        format!("the storage does not answer: {why}"),
                    );
                }
                self.map_failed = Some(why);
            }
        }
    }

    /// Epochs that the monitors do not have any more and that no fence was shown. Whether an entry was gone in one of them
    /// is told by its end, which is another one then (INV-3).
    fn tell_trimmed(&mut self, maps: &[OsdMap]) {
        let (Some(known), Some(first)) = (&self.map, maps.first()) else { return };
        if first.epoch > known.epoch.later(1) {
            let text = format!(
                "the monitors dropped the osdmap epochs {} to {} before this guardian read them: an entry that stands \
                 until another moment than before is taken for one that was gone",
                known.epoch.later(1),
                first.epoch.earlier(1)
            );
            self.log(Level::Warn, "epochs-trimmed", None, text);
        }
    }

    /// Every map that is read is shown to every fence: none may be relied on by a map that it did not see.
    pub(super) fn note_map(&mut self, map: Arc<OsdMap>) {
        let required_until = self.settings.policy.required_until(map.clock(self.now.wall));
        for fence in self.fences.values_mut() {
            fence.observe(&map, required_until);
        }
        if self.map.as_ref().is_none_or(|known| known.epoch <= map.epoch) {
            self.map = Some(map);
            self.others = None;
            self.map_read = self.now.boot;
        }
    }

    /// Judges a sweep once a whole reading that began after it is there: instances move between the two otherwise.
    pub(super) fn swept(&mut self) {
        let (Some(sweep), Some(view), Some(map)) = (&self.sweep, &self.view, &self.map) else {
            return;
        };
        let Sweep { began, ended, uses, unread, .. } = sweep;
        let (began, ended) = (*began, *ended);
        if self.judged == Some(began)
            && self.fences.values().all(|fence| fence.is_clear() || fence.sealed_at().is_none())
        {
            return;
        }
        let members = self.book.members(&self.settings.members, Some(view));
        let judged = self.whole_began.filter(|whole| *whole >= ended);
        let strangers = ForeignClients {
            admin_hosts: &self.settings.guard.admin_hosts,
            own: &self.settings.guard.own,
            daemons: self.world.as_ref().map(|world| world.daemons.as_slice()).unwrap_or_default(),
        };
        if judged.is_some() && self.judged != Some(began) {
            let seen = Sightings {
                uses,
                complete: unread.is_empty() && uses.iter().all(|one| one.unknown.is_empty()),
                images: &self.images,
                view,
                strangers,
                configured: &self.settings.members,
                now: self.now.boot,
            };
            let new = self.book.uses(&seen);
            let ips = uses.iter().flat_map(ImageUse::clients).map(|client| client.ip);
            self.book.judge(strangers.daemons, &ips.collect(), &self.settings.members);
            let now = self.now.boot;
            self.networks_read.retain(|name, read| !new.contains(name) || now < *read + NETWORKS_OFTEN);
        }
        let not_read = Unread::new(unread);
        let guarded = self.settings.policy.guarded.pools(map);
        let guarded: BTreeSet<&str> = guarded.values().map(|pool| pool.name.as_str()).collect();
        let owners = self.book.clients();
        for fence in self.fences.values_mut() {
            let since = fence.sealed_at().is_some_and(|sealed| began >= sealed);
            let epoch = fence.record().proofs.iter().map(|proof| proof.epoch).max();
            if !since || epoch.is_none_or(|epoch| map.epoch < epoch) || self.whole_began.is_none() {
                continue;
            }
            let member = fence.member().unwrap_or_default().to_owned();
            let its = |one: &&ImageUse| {
                matches!(self.images.get(&one.image), Some(Expected::Exclusive { locations, .. })
                    if locations.contains(&member))
            };
            // A user that could not be read may be anybody. A lock without an address and without a watch is no user:
            // whoever opens the image breaks it.
            let outside = |one: &ImageUse| {
                !one.unknown.is_empty() || one.clients().iter().any(|client| !map.blocklist.refuses(*client))
            };
            // Once it was clear the gate opens, and then the new owners are there.
            let seen = uses.iter().filter(its).filter(|one| outside(one));
            let mut unclear: Vec<String> =
                seen.map(|one| waits::used_outside(one, &map.blocklist, &members)).collect();
            // Of a volume whose users Incus did not tell, whoever is no other member's client may be this one's.
            let anothers = |client: &ClientAddr| {
                let owner = owners.get(client).copied();
                let of_address = || members.owner(client.ip).map(|owner| owner.name.as_str());
                owner.or_else(of_address).is_some_and(|owner| owner != member)
            };
            for (one, why) in
                uses.iter().filter_map(|one| Some((one, self.images.get(&one.image)?.unknown()?)))
            {
                let its = |client: &ClientAddr| !map.blocklist.refuses(*client) && !anothers(client);
                let free: Vec<String> =
                    one.clients().iter().filter(|client| its(client)).map(ToString::to_string).collect();
                let users: Vec<String> = free.into_iter().chain(one.unknown.iter().cloned()).collect();
                if !users.is_empty() {
                    let users = users.join(", ");
                    unclear.push(format!(
                        "image {} is used by {users}, and whose it is is unknown: {why}",
                        one.image
                    ));
                }
            }
            // What cannot be read elsewhere says nothing of this member's images.
            if !unread.is_empty() {
                let images = self.images.iter().filter(|(_, expected)| {
                    matches!(expected, Expected::Exclusive { locations, .. } if locations.contains(&member))
                });
                let silent: BTreeSet<&str> = images.filter_map(|(image, _)| not_read.of(image)).collect();
                unclear.extend(silent.into_iter().map(str::to_owned));
            }
            // Who is known to be a client of the member, or of nobody at its images, and shows in no sweep any more.
            let hidden = known::unrefused(&self.book, fence, &map.blocklist, strangers);
            unclear.extend(
                hidden
                    .iter()
                    .map(|client| format!("{client}, seen at {member}'s images before, is not refused")),
            );
            let free = |one: &ImageUse| {
                one.clients().into_iter().filter(|client| !map.blocklist.refuses(*client)).collect::<Vec<_>>()
            };
            let outside = uses.iter().filter(its).flat_map(free).chain(hidden).collect();
            let unfound = (!fence.is_clear())
                .then(|| self.found.unfound(fence, &self.images, &guarded, self.whole_began));
            fence.note_sweep(unclear, outside, unfound);
            let locks = uses.iter().filter(its).flat_map(|one| one.locks.iter().map(move |lock| (one, lock)));
            let locks = locks.filter_map(|(one, lock)| {
                let address = lock.address?.client().filter(|client| map.blocklist.refuses(*client))?;
                let (owner, cookie) = (lock.owner.clone(), lock.cookie.clone());
                Some(StaleLock { image: one.image.clone(), owner, cookie, address })
            });
            self.stale_locks.extend(locks);
        }
        let grounds = single_writer::SingleWriterFacts {
            images: &self.images,
            members: &members,
            clients: &owners,
            blocklist: &map.blocklist,
            operations: view.operations.as_deref().unwrap_or_default(),
            admin_hosts: &self.settings.guard.admin_hosts,
            own: &self.settings.guard.own,
        };
        for (name, evidence) in &mut self.evidence {
            let seen = |one: &ImageUse| {
                one.clients().iter().any(|c| members.owner(c.ip).is_some_and(|m| m.name == *name))
            };
            if uses.iter().any(seen) {
                evidence.clients_seen = evidence.clients_seen.max(Some(began));
            }
        }
        let mut conflicts = single_writer::conflicts(uses, grounds);
        if !unread.is_empty() {
            // INV-9: an image that no answer speaks of may have the same users as before.
            let silent = |one: &&Conflict| !uses.iter().any(|read| read.image == one.image);
            let before: Vec<Conflict> = self.conflicts.iter().filter(silent).cloned().collect();
            conflicts.extend(before);
        }
        // INV-9: so may one of which not every user could be read.
        let unclear = |one: &&Conflict| {
            let read = uses.iter().find(|read| read.image == one.image);
            read.is_some_and(|read| !read.unknown.is_empty() && !read.clients().contains(&one.client))
        };
        let before: Vec<Conflict> = self.conflicts.iter().filter(unclear).cloned().collect();
        conflicts.extend(before);
        // Images are read at once, and come in any order.
        conflicts.sort();
        if judged.is_none() {
            // Those that are over are told so at once as well, and do not count as seen in two sweeps in a row.
            // And whose clients are is learnt soon: their member may be lost in a moment.
            let kept = self.book.kept();
            let is_new = |one: &ImageUse| {
                let exclusive = matches!(self.images.get(&one.image), Some(Expected::Exclusive { .. }));
                exclusive && one.clients().iter().any(|client| !kept.contains(client))
            };
            let unasked = self.asked_for != Some(began);
            if unasked && (!conflicts.is_empty() || !self.seen_before.is_empty() || uses.iter().any(is_new)) {
                self.asked_for = Some(began);
                // Not at once again where the last one lacked something: a listing that fails may cost much.
                let again = self.schedule.whole_asked.map_or(self.now.boot, |asked| asked + LOOKS_AGAIN);
                self.schedule.whole = self.schedule.whole.min(again.max(self.now.boot));
            }
            return;
        }
        if self.judged == Some(began) {
            return;
        }
        self.judged = Some(began);
        let stale = single_writer::stale_clients(uses, &conflicts);
        let known = |one: &Conflict, before: &[Conflict]| {
            before.iter().any(|known| (&known.image, known.client) == (&one.image, one.client))
        };
        if !conflicts.iter().all(|one| known(one, &self.seen_before)) {
            self.schedule.sweep = self.schedule.sweep.min(began + LOOKS_AGAIN);
        }
        self.conflicts = conflicts.iter().filter(|one| known(one, &self.seen_before)).cloned().collect();
        self.seen_before = conflicts;
        self.want_stale(&stale.keys().copied().collect());
    }
}

/// What a reading leaves out is what an earlier one said. Instances of members that could not be asked keep the details
/// they had.
fn merge(before: Option<IncusSnapshot>, mut view: IncusSnapshot) -> IncusSnapshot {
    let Some(before) = before else { return view };
    view.pools = view.pools.or(before.pools);
    let Some(instances) = &mut view.instances else {
        view.instances = before.instances;
        return view;
    };
    for (id, old) in before.instances.into_iter().flatten() {
        if let Some(instance) = instances.get_mut(&id)
            && instance.details.is_none()
        {
            instance.details = old.details;
        }
    }
    view
}
