//! What `status` shows: everything the guardian knows, in one piece.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use crate::fence::Fence;
use crate::guardian::disarm::disarmed;
use crate::guardian::foreign_entries::ForeignEntries;
use crate::guardian::report::Alarm;
use crate::guardian::restarts::stranded;
use crate::guardian::settings::Trigger;
use crate::guardian::waits::{Parts, Waits};
use crate::model::epoch::{GateEpoch, OsdEpoch};
use crate::model::fence_id::FenceId;
use crate::model::gate_keys::{self, GateState};
use crate::model::incus_snapshot::MemberStatus;
use crate::model::now::Now;
use crate::model::record::{DisarmRecord, FenceRecord, FenceState, Source};
use crate::rules::entry_origin::OtherEntry;
use crate::rules::loss_evidence::{Health, LossEvidence};

/// The whole picture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// The name of this guardian.
    pub guardian: String,
    /// Why it decides nothing, if it does not lead.
    pub deposed: Option<String>,
    /// The cluster of members.
    pub platform: ReadingStatus,
    pub storage: ReadingStatus,
    /// Who may begin a fence: `auto`, `manual`; `none` where no cluster of members is watched, so operators alone.
    pub trigger: &'static str,
    /// An operator lets no fence begin by itself for a while.
    pub disarmed: Option<DisarmRecord>,
    /// Why nothing can be recorded, if so.
    pub cannot_record: Option<String>,
    /// The newest osdmap epoch that was examined.
    pub epoch: Option<OsdEpoch>,
    pub gate: GateStatus,
    /// Members, by name.
    pub members: Vec<MemberLine>,
    /// Fences in force.
    pub fences: Vec<FenceStatus>,
    /// Entries of the blocklist that no fence accounts for.
    pub others: Vec<OtherEntry>,
    /// What is not as it should be.
    pub alarms: Vec<Alarm>,
}

/// Whether a source of readings answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReadingStatus {
    /// It answered within the last seconds.
    pub fresh: bool,
    /// How old the last good reading is, in whole seconds.
    pub age_s: Option<u64>,
    /// Why the last one failed.
    pub trouble: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GateStatus {
    /// Where it stands.
    #[serde(flatten)]
    pub state: GateState,
    /// The last epoch that was written or read.
    pub epoch: GateEpoch,
    /// Members whose instances may be placed elsewhere, as it says now at one member or more.
    pub open: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemberLine {
    pub name: String,
    /// As its cluster says.
    pub status: Option<MemberStatus>,
    /// What the evidence comes to.
    pub health: Health,
    /// `watching`, or the state of its fence, or `returned-stale`, `stranded`, `suspect`, `refused`.
    pub state: &'static str,
    /// Its addresses, and what says so.
    pub addresses: Vec<AddressStatus>,
    pub fence: Option<FenceId>,
    /// Why it is not fenced yet though it is about to be healed, in words.
    pub waits: Option<String>,
}

/// An address of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AddressStatus {
    pub address: IpAddr,
    /// What says so.
    pub sources: BTreeSet<Source>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FenceStatus {
    /// As it should be in the ledger.
    #[serde(flatten)]
    pub record: FenceRecord,
    /// PGs that have not answered.
    pub pending: Vec<String>,
    /// What it waits for, in words.
    pub waits: Option<String>,
}

/// The parts that the picture is made of.
#[derive(Clone, Copy)]
pub(super) struct StatusContext<'a> {
    pub(super) parts: Parts<'a>,
    pub(super) waits: &'a Waits,
    pub(super) others: &'a ForeignEntries,
}

impl StatusContext<'_> {
    pub(super) fn status(&self, now: Now, deposed: Option<String>, alarms: Vec<Alarm>) -> Status {
        let ctx = self.parts.ctx;
        let age = |at: Duration| now.boot.saturating_sub(at);
        let told = |fresh: bool, age: Option<Duration>, trouble: Option<&str>| ReadingStatus {
            fresh,
            age_s: age.map(|age| age.as_secs()),
            trouble: trouble.map(str::to_owned),
        };
        let gate = ctx.incus.gate();
        let last =
            gate.map_or(GateEpoch::default(), |gate| gate_keys::last_epoch(gate, ctx.recorded_gate_epoch()));
        Status {
            guardian: ctx.settings.name.clone(),
            deposed,
            platform: told(
                ctx.is_fresh(),
                ctx.incus.view().map(|_| age(ctx.incus.view_began)),
                ctx.incus.view_failed.as_deref(),
            ),
            storage: told(
                ctx.ceph.map_is_fresh(now),
                ctx.map().map(|_| age(ctx.ceph.map_read)),
                ctx.ceph.map_failed.as_deref(),
            ),
            trigger: match ctx.settings.trigger {
                _ if !ctx.settings.platform => "none",
                Trigger::Auto => "auto",
                Trigger::Manual => "manual",
            },
            disarmed: disarmed(ctx).cloned(),
            cannot_record: self.parts.journal.failure().map(str::to_owned),
            epoch: ctx.map().map(|map| map.epoch),
            gate: GateStatus {
                state: ctx.gate_state(),
                epoch: last.max(self.parts.gate.epoch()),
                open: gate.map(gate_keys::sealed_anywhere).unwrap_or_default(),
            },
            members: self.members(),
            fences: ctx.fences.all().map(|fence| self.fence(fence)).collect(),
            others: self.others.all().to_vec(),
            alarms,
        }
    }

    fn members(&self) -> Vec<MemberLine> {
        let ctx = self.parts.ctx;
        let one = |name: String, ips: Vec<IpAddr>| {
            let evidence = ctx.members.get(&name).cloned().unwrap_or_default();
            let sources = ctx.book.members.get(&name).map(|member| &member.addresses);
            let source = |ip: IpAddr| {
                sources
                    .and_then(|sources| sources.get(&ip))
                    .cloned()
                    .unwrap_or_else(|| [Source::Operator].into())
            };
            let status = ctx.incus.member(&name).map(|member| member.status.clone());
            MemberLine {
                health: evidence.health(status.as_ref(), ctx.is_fresh(), ctx.now.boot),
                status,
                state: self.state_of(&name, &evidence),
                addresses: ips
                    .into_iter()
                    .map(|ip| AddressStatus { address: ip, sources: source(ip) })
                    .collect(),
                fence: ctx.fences.of(&name).map(|fence| fence.id().clone()),
                waits: self.parts.trigger.waits(ctx, &name),
                name,
            }
        };
        ctx.addresses().0.into_iter().map(|member| one(member.name, member.addresses)).collect()
    }

    fn state_of(&self, name: &str, evidence: &LossEvidence) -> &'static str {
        if let Some(fence) = self.parts.ctx.fences.of(name) {
            let sealed = fence.record().state == FenceState::Sealed;
            // Who is stranded is back without a reboot as well; its instances run nowhere, and that comes first.
            return if sealed && !stranded(self.parts.ctx, name).is_empty() {
                "stranded"
            } else if sealed && self.parts.ctx.members.returned(name).is_some() {
                "returned-stale"
            } else {
                fence.record().state.word()
            };
        }
        if self.parts.trigger.refused_member(name) {
            "refused"
        } else if self.parts.trigger.wants_member(name) || evidence.is_lost() {
            "suspect"
        } else {
            "watching"
        }
    }

    fn fence(&self, fence: &Fence) -> FenceStatus {
        let wait = fence.trouble().or_else(|| self.waits.of(fence)).map(|wait| {
            let accepted = fence.record().overrides.accept_incomplete || self.parts.ctx.opens_gate(fence);
            match fence.member().filter(|_| !accepted && wait.starts_with("an operator")) {
                Some(member) => format!("{wait}; `rbd-guardian fence {member} --accept-incomplete`"),
                None => wait.to_owned(),
            }
        });
        FenceStatus { record: fence.record().clone(), pending: fence.pending(), waits: wait }
    }
}
