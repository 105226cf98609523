//! What every part of the guardian may read while it decides.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::fence::{Fence, GUARDIAN};
use crate::guardian::address_book::{AddressBook, CameLater, ForeignClients};
use crate::guardian::ceph_readings::CephReadings;
use crate::guardian::fences::{Fences, StepContext};
use crate::guardian::incus_readings::IncusReadings;
use crate::guardian::lanes::{Lane, Lanes};
use crate::guardian::members::MemberEvidence;
use crate::guardian::settings::Settings;
use crate::model::addr::ClientAddr;
use crate::model::ceph_snapshot::{CephSnapshot, SeenAt};
use crate::model::epoch::GateEpoch;
use crate::model::gate_keys::{self, GateState};
use crate::model::member::Members;
use crate::model::now::Now;
use crate::model::osdmap::OsdMap;
use crate::model::record::{GateRecord, Records};
use crate::model::volume::ImageName;
use crate::mutants::{self, Mutant};

/// For how long a member that did not answer counts as silent.
const SILENCE_LASTS: Duration = Duration::from_secs(2);

/// What is known, borrowed from fields of the guardian. No part that decides is among them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ctx<'a> {
    pub(super) now: Now,
    pub(super) settings: &'a Settings,
    /// What the ledger holds.
    pub(super) records: &'a Records,
    pub(super) incus: &'a IncusReadings,
    pub(super) ceph: &'a CephReadings,
    pub(super) members: &'a MemberEvidence,
    pub(super) book: &'a AddressBook,
    /// By member: hosts that appeared at an address of its interfaces after those were last read.
    pub(super) came_later: &'a CameLater,
    pub(super) fences: &'a Fences,
    pub(super) lanes: &'a Lanes,
}

impl<'a> Ctx<'a> {
    pub(super) fn may_begin(&self, lane: &Lane) -> bool {
        self.lanes.may_begin(self.now, lane)
    }

    pub(super) fn map(&self) -> Option<&'a Arc<OsdMap>> {
        self.ceph.map.as_ref()
    }

    pub(super) fn steps(&self) -> StepContext<'a> {
        StepContext {
            now: self.now,
            clock: self.ceph.clock(self.now),
            policy: &self.settings.policy,
            records: self.records,
            starting: &self.incus.starting,
            lanes: self.lanes,
        }
    }

    /// Is the record of a member kept although Incus no longer has the member?
    pub(super) fn keeps_record(&self, name: &str) -> bool {
        self.settings.members.get(name).is_some() || self.fences.of(name).is_some()
    }

    /// Can the last reading of Incus be trusted now?
    pub(super) fn is_fresh(&self) -> bool {
        self.incus.is_fresh(self.now)
    }

    pub(super) fn is_online(&self, member: &str) -> bool {
        self.incus.is_online(self.now, member)
    }

    pub(super) fn addresses(&self) -> Members {
        self.book.members(&self.settings.members, self.incus.view().map(Arc::as_ref))
    }

    pub(super) fn gate_state(&self) -> GateState {
        // A maintenance state hides that a member is lost; its fence shows it.
        let lost = |name: &str| self.fences.of(name).is_some() || self.members.is_lost(name);
        let state = gate_keys::state(self.incus.view().map(Arc::as_ref), lost);
        let is_partial = matches!(state, GateState::Partial { .. });
        if is_partial && mutants::is(Mutant::UngatedIsGated) { GateState::Installed } else { state }
    }

    pub(super) fn opens_gate(&self, fence: &Fence) -> bool {
        fence.opens_gate(self.records.fences.get(fence.id()), self.map().map(Arc::as_ref))
    }

    /// The members whose instances may be placed elsewhere now.
    pub(super) fn open(&self) -> BTreeSet<String> {
        let open = self.fences.all().filter(|fence| self.opens_gate(fence));
        open.filter_map(|fence| fence.member().map(str::to_owned)).collect()
    }

    pub(super) fn is_open(&self, member: &str) -> bool {
        self.fences.all().any(|fence| fence.member() == Some(member) && self.opens_gate(fence))
    }

    pub(super) fn recorded_gate_epoch(&self) -> GateEpoch {
        self.records.gate.as_ref().map_or(GateEpoch::default(), |gate| gate.epoch)
    }

    /// May the gate name the member of this fence, by the ledger? Also where it was to be closed, as nobody recorded that this
    /// was done.
    pub(super) fn may_be_named(&self, fence: &Fence) -> bool {
        let named = |gate: &GateRecord| fence.member().is_some_and(|member| gate.open.contains(member));
        self.records.gate.as_ref().is_some_and(|gate| named(gate) || gate.closing.contains(fence.id()))
    }

    pub(super) fn answers_since(&self, member: &str, since: Duration) -> Option<bool> {
        let open = self.lanes.began(&Lane::State(member.to_owned()));
        self.members.answers_since(self.now, member, since, open)
    }

    /// Does Incus call the member offline, and has the member itself not answered since?
    pub(super) fn is_silent(&self, member: &str) -> bool {
        let Some(since) = self.members.get(member).and_then(|evidence| evidence.offline_since) else {
            return false;
        };
        let lately = self.now.boot.saturating_sub(SILENCE_LASTS);
        self.answers_since(member, since.max(lately)) == Some(false)
    }

    /// Is a fence that was decided then still to be begun? `None` until both its cluster and the member itself were asked.
    ///
    /// Both are asked after the decision, because an announcement may arrive late: the member may be back since. They are
    /// asked while the intent is recorded.
    pub(super) fn is_lost_since(&self, member: &str, decided: Duration) -> Option<bool> {
        if !self.is_fresh() || self.incus.view_began < decided {
            return None;
        }
        if !self.members.is_lost(member) {
            return Some(false);
        }
        (self.answers_since(member, decided) == Some(false)).then_some(true)
    }

    /// Is this fence, whose intent is in the ledger, still wanted as it was planned, by questions sent since? The member of one
    /// that an operator asked for is not asked whether it is lost.
    pub(super) fn is_still_wanted(&self, fence: &Fence) -> Option<bool> {
        let is_recorded = self.records.fences.contains_key(fence.id());
        let lost = match fence.member() {
            Some(member) if fence.record().by == GUARDIAN => {
                let decided_at = fence.decided_at().filter(|_| is_recorded);
                decided_at.and_then(|decided| self.is_lost_since(member, decided))
            }
            Some(_) | None => Some(true),
        };
        match (lost, fence.is_confirmed()) {
            (Some(false), _) => Some(false),
            (_, Some(false)) => is_recorded.then_some(false),
            (Some(true), Some(true)) => Some(true),
            (Some(true) | None, Some(true) | None) => None,
        }
    }

    /// Clients that belong to no member.
    pub(super) fn strangers(&self) -> ForeignClients<'a> {
        let guard = &self.settings.guard;
        ForeignClients { admin_hosts: &guard.admin_hosts, own: &guard.own, daemons: self.ceph.daemons() }
    }

    /// The clients that use images of a member, each with one of these images.
    pub(super) fn users_of<'w>(
        &self,
        name: &'w str,
        world: &'w CephSnapshot,
    ) -> impl Iterator<Item = (ClientAddr, &'w str)> + use<'a, 'w> {
        let images = &self.incus.images;
        let its = move |path: &str| {
            let image = ImageName::parse(path).and_then(|image| images.get(&image));
            image.is_some_and(|image| image.is_at(name))
        };
        world.clients.iter().filter_map(move |(client, seen)| {
            let image = seen.iter().find_map(|at| match at {
                SeenAt::Watch(path) | SeenAt::Lock(path) => its(path).then_some(path.as_str()),
                SeenAt::Session(_) | SeenAt::Remembered => None,
            });
            image.map(|image| (*client, image))
        })
    }
}
