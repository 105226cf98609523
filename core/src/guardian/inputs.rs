//! Inputs that concern several parts: which part takes in what of them, and what one says for the next.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::fence::GUARDIAN;
use crate::fence::step::StepOutcome;
use crate::guardian::address_book::{ForeignClients, Sightings};
use crate::guardian::fences::{FenceRequest, ReleaseRequest};
use crate::guardian::found::LIST_AGAIN;
use crate::guardian::io::Recorded;
use crate::guardian::report::{Level, Outcome};
use crate::guardian::{Guardian, breach_audit, disarm, interfaces, new_clients, returned};
use crate::model::ceph_snapshot::CephSnapshot;
use crate::model::fence_id::FenceId;
use crate::model::gate_keys;
use crate::model::image_users::ImageUse;
use crate::model::incus_snapshot::{IncusSnapshot, MemberState, Notice};
use crate::model::operator_request::Request;
use crate::model::osdmap::{DataPools, MAPS_AT_ONCE, OsdMap};
use crate::model::overrides::reason;
use crate::model::record::{Change, Record, Records, Removal};
use crate::mutants::{self, Mutant};
use crate::rules::reboot_proof::NotProved;
use crate::rules::refusal::Refusal;

impl Guardian {
    pub(super) fn handle_notice(&mut self, notice: Notice) {
        let now = self.now;
        match notice {
            Notice::Healing { member } => {
                let view = self.incus.view().map(Arc::as_ref);
                self.members.handle_healing(now, member.as_deref(), view);
                self.schedule.view = now.boot;
            }
            Notice::Refused { member, healing } => {
                if healing {
                    self.members.handle_heal_refused(now, &member);
                }
                self.schedule.view = now.boot;
            }
            Notice::NotPlaced { why } => self.placements.handle_refusal(now, &why, &mut self.reports),
            Notice::Changed => self.schedule.changed(context!(self)),
            Notice::Missed => self.schedule.whole = now.boot,
        }
    }

    pub(super) fn handle_view(&mut self, began: Duration, view: Result<IncusSnapshot, String>) {
        let (now, reports) = (self.now, &mut self.reports);
        let view = match view {
            Ok(view) => view,
            Err(why) => {
                // Whoever answers next is asked for everything: until then nobody knows which images there are.
                if self.incus.handle_failure(why, reports) {
                    self.schedule.whole = now.boot;
                }
                return;
            }
        };
        let open = context!(self).open();
        let change = self.incus.handle_view(now, began, view, &self.settings.storage, reports);
        let Some(view) = self.incus.view().cloned() else { return };
        self.members.handle_view(now, began, &view, change.moved, |member| open.contains(member));
        for (name, member) in &view.members {
            if let Ok(ips) = &member.addresses {
                self.book.operator(name, ips, &self.settings.members);
            }
        }
        self.interfaces.end(|name| view.members.contains_key(name));
        self.guard_what_is_named(&view);
        if change.whole {
            self.schedule.note_listing(now.boot.saturating_sub(began));
            self.found.handle_listing(&self.incus.images, &self.settings.policy.guarded.except);
            self.judge_found();
        }
        let ctx = context!(self);
        // Records of members that were removed from the cluster: one that is added under the name is another machine.
        let known = |name: &str| view.members.contains_key(name) || ctx.keeps_record(name);
        let stay: BTreeSet<String> = self.book.members.keys().filter(|name| known(name)).cloned().collect();
        self.book.end(|name| stay.contains(name));
        self.gate.handle_view(context!(self), &mut self.reports);
        self.judge_sweep();
    }

    pub(super) fn handle_state(&mut self, name: &str, state: Result<MemberState, String>, asked: Duration) {
        self.members.handle_state(asked, name, &state);
        if let Ok(state) = &state {
            if let Some(id) = self.fences.of(name).map(|fence| fence.id().clone()) {
                self.judge_return(&id, name, state, asked);
            } else if self.incus.is_online(self.now, name) {
                returned::remember(self.now, &mut self.book, name, state);
                let is_known = returned::machine_of(context!(self), name).is_known();
                self.members.note_identity(name, is_known);
            }
        }
        self.members.keep_state(asked, name, state);
    }

    fn judge_return(&mut self, id: &FenceId, name: &str, state: &MemberState, asked: Duration) {
        let ctx = context!(self);
        match self.fences.get(id).and_then(|fence| returned::judge(ctx, fence, name, state, asked)) {
            None => {}
            Some(Ok(why)) => {
                self.members.note_return(name, None);
                if self.settings.auto_release {
                    if let Some(fence) = self.fences.get_mut(id) {
                        fence.let_go(GUARDIAN.to_owned(), why.clone());
                    }
                    self.reports.log(Level::Info, "rebooted", Some(name), format!("{why}: it is released"));
                }
            }
            Some(Err(not)) => {
                if let NotProved::SameBoot { .. } = not {
                    returned::remember_longer(self.now, &mut self.book, name, state);
                }
                let text = not.to_string();
                if self.members.note_return(name, Some(not)) {
                    self.reports.log(Level::Error, "returned-stale", Some(name), text);
                }
            }
        }
    }

    pub(super) fn handle_networks(&mut self, name: &str, networks: Result<BTreeSet<IpNet>, String>) {
        let Ok(networks) = networks else { return self.interfaces.handle_failure(name) };
        let before = self.book.contradictions();
        let beside = self.interfaces.handle_networks(context!(self), name, &networks);
        self.book.networks(name, &networks, beside);
        self.came_later = interfaces::came_later(context!(self));
        self.book.judge(self.ceph.daemons(), &self.ceph.client_ips(), &self.settings.members);
        // The others' own interfaces settle what these contradict.
        let new = self.book.contradictions().into_iter().filter(|one| !before.contains(one));
        for other in new.flat_map(|one| one.members).filter(|other| other != name) {
            self.interfaces.read_at_once(&other);
        }
        for (ip, before, now) in self.book.moved(|name| self.members.is_lost(name)) {
            let text =
                format!("{ip} is on an interface of {now} now: it is an address of {before} no longer");
            self.reports.log(Level::Warn, "address-moved", Some(&before), text);
        }
    }

    pub(super) fn handle_look(&mut self, world: Result<CephSnapshot, String>, began: Duration) {
        let world = match world {
            Ok(world) => world,
            Err(why) => return self.ceph.handle_no_look(why),
        };
        self.note_map(&Arc::new(world.map.clone()));
        self.guard_data(&world.data_pools, false);
        self.members.handle_look(began, &world, &self.book);
        let before = self.ceph.handle_look(began, world);
        self.book.judge(self.ceph.daemons(), &self.ceph.client_ips(), &self.settings.members);
        interfaces::forget_what_left(&mut self.book, self.ceph.daemons());
        self.came_later = interfaces::came_later(context!(self));
        self.interfaces.read_again(self.now, |name| self.came_later.contains_key(name));
        for sighting in new_clients::sightings(context!(self), &self.found, &before) {
            if let Some(fence) = self.fences.get_mut(&sighting.id) {
                sighting.give_to(fence, &mut self.reports);
            }
        }
        for (id, ghosts) in self.new_clients.handle_look(context!(self)) {
            if let Some(fence) = self.fences.get_mut(&id) {
                new_clients::refuse_ghosts(fence, ghosts, &mut self.reports);
            }
        }
        self.trigger.handle_look(began);
    }

    pub(super) fn handle_maps(&mut self, maps: Result<Vec<OsdMap>, String>) {
        let maps = match maps {
            Ok(maps) => maps,
            Err(why) => return self.ceph.handle_no_maps(why, &mut self.reports),
        };
        self.ceph.handle_maps(&maps, &mut self.reports);
        if maps.len() >= MAPS_AT_ONCE {
            // There are more.
            self.schedule.read_maps();
        }
        let mut maps: Vec<_> = maps.into_iter().map(Arc::new).collect();
        // None came after the newest one that is known: that one was read once more.
        if maps.is_empty() {
            maps.extend(self.ceph.map.clone());
        }
        maps.iter().for_each(|map| self.note_map(map));
        for id in self.breach_audit.handle_maps() {
            if let Some(fence) = self.fences.get_mut(&id) {
                fence.date_breaches(&maps);
            }
        }
    }

    /// A step of a fence ended, perhaps for others that wait for the same.
    pub(super) fn handle_outcome(&mut self, id: FenceId, outcome: StepOutcome) {
        if let StepOutcome::Map(Some(map)) = &outcome {
            self.note_map(map);
        }
        self.fences.handle_outcome(id, outcome);
    }

    pub(super) fn handle_audit(&mut self, id: &FenceId, removals: Result<Vec<Removal>, String>) {
        let found = self.breach_audit.handle_audit(context!(self), id, removals, &mut self.reports);
        if let Some(fence) = self.fences.get_mut(id) {
            fence.note_removals(&found, breach_audit::KEPT);
        }
    }

    pub(super) fn handle_recorded(&mut self, recorded: Recorded) {
        let reports = &mut self.reports;
        match recorded {
            Recorded::Written => {
                for change in self.journal.handle_written(reports) {
                    if let Change::Put(Record::Fence(record)) = &change
                        && let Some(fence) = self.fences.get_mut(&record.id)
                        && fence.note_recorded(self.now.boot)
                    {
                        self.schedule.view = self.now.boot;
                    }
                    self.records.apply(change);
                }
            }
            Recorded::Deposed(by) => {
                self.journal.handle_not_written(None, reports);
                self.deposed = Some(format!("{by} leads"));
            }
            Recorded::Not { why, holds } => {
                self.journal.handle_not_written(Some(why), reports);
                if let Some(holds) = holds {
                    self.hold(*holds);
                }
            }
        }
    }

    pub(super) fn handle_request(&mut self, number: u64, request: Request) {
        let (ctx, reports) = (context!(self), &mut self.reports);
        let answer = match request {
            Request::Fence { overrides, reason: why, .. }
                if overrides.any_rule() && reason(why.as_deref()).is_none() =>
            {
                Err(Refusal::NoReason { flags: overrides.flags() }.into())
            }
            Request::Fence { target, overrides, reason, by } => {
                let request = FenceRequest { number, target, overrides, reason, by };
                let answer = self.fences.handle_fence_request(&request);
                if answer.is_none() {
                    self.trigger.handle_request(self.now, request);
                }
                answer.unwrap_or(Ok(())).map_err(Outcome::from)
            }
            Request::Note { what, reason, by } => {
                self.journal.handle_note(number, &what, reason, &by, reports);
                self.gate.handle_note(self.now, &what);
                Ok(())
            }
            Request::Disarm { until, reason, by } => {
                disarm::handle_disarm(ctx, until, reason, by).map(|due| self.journal.note(number, due))
            }
            Request::Arm { reason, by } => {
                disarm::handle_arm(ctx, reason, &by).map(|due| self.journal.note(number, due))
            }
            Request::Release { assert_powered_off: true, reason: why, .. }
                if reason(why.as_deref()).is_none() =>
            {
                Err(Refusal::NoReason { flags: vec!["--assert-powered-off".to_owned()] }.into())
            }
            Request::Release { fence, since, assert_powered_off, reason, by } => {
                let request = ReleaseRequest { number, fence, since, assert_powered_off, reason, by };
                self.fences.handle_release_request(request, &self.members).map_err(Outcome::from)
            }
        };
        if let Err(outcome) = answer {
            reports.answer(number, outcome);
        }
    }

    /// INV-1: what Incus names is guarded, whatever its tags say; what comes to be named is proved first.
    fn guard_what_is_named(&mut self, view: &IncusSnapshot) {
        let named = gate_keys::named(view, &self.settings.storage);
        if view.pools.is_some() && named != self.settings.policy.guarded.named {
            self.settings.policy.guarded.named = named;
            self.fences.guard(&self.settings.policy.guarded);
        }
    }

    /// INV-1: the data of an image is guarded where its header says that it lies.
    pub(super) fn guard_data(&mut self, found: &DataPools, complete: bool) {
        if mutants::is(Mutant::HeaderNotRead) {
            return;
        }
        let guarded = &mut self.settings.policy.guarded;
        let before = guarded.data.clone();
        guarded.note_data(found, complete);
        if guarded.data != before {
            self.fences.guard(guarded);
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

    /// A map was read, for whatever reason.
    pub(super) fn note_map(&mut self, map: &Arc<OsdMap>) {
        self.fences.observe(self.now, &self.settings.policy, map);
        if self.ceph.note_map(self.now, map) {
            self.others.handle_map();
        }
    }

    /// Judges the last look for images by the last listing.
    pub(super) fn judge_found(&mut self) {
        if self.found.judge(context!(self)) {
            self.schedule.list_again(self.now, LIST_AGAIN);
        }
    }

    /// Judges the last sweep by the last readings.
    pub(super) fn judge_sweep(&mut self) {
        let ctx = context!(self);
        let (Some(sweep), Some(view)) = (self.ceph.sweep.as_ref(), self.incus.view()) else { return };
        if !self.sweep.is_news(ctx) {
            return;
        }
        let members = ctx.addresses();
        if self.sweep.may_judge(ctx) {
            let guard = &self.settings.guard;
            let daemons = self.ceph.daemons();
            let seen = Sightings {
                uses: &sweep.uses,
                complete: sweep.unread.is_empty() && sweep.uses.iter().all(|one| one.unknown.is_empty()),
                images: &self.incus.images,
                view,
                strangers: ForeignClients { admin_hosts: &guard.admin_hosts, own: &guard.own, daemons },
                configured: &self.settings.members,
                now: self.now.boot,
            };
            let new = self.book.uses(&seen);
            let ips = sweep.uses.iter().flat_map(ImageUse::clients).map(|client| client.ip);
            self.book.judge(daemons, &ips.collect(), &self.settings.members);
            self.interfaces.read_again(self.now, |name| new.contains(name));
        }
        for sighting in self.sweep.judge_fences(context!(self), &self.found, &members) {
            if let Some(fence) = self.fences.get_mut(&sighting.id) {
                sighting.give_to(fence);
            }
        }
        self.members.handle_sweep(sweep.began, &sweep.uses, &members);
        let twice = self.sweep.judge(context!(self), &members, &mut self.schedule);
        self.trigger.handle_stale(context!(self), twice, &mut self.reports);
    }
}
