//! For which lost members the gate waits within a healing, and how often it looks meanwhile (docs/gate.md#waiting).
//!
//! Incus makes its attempts to heal without a pause and begins again a minute later, so a gate that refuses at once costs
//! the instance that minute. A wait that ends in vain costs Incus's leader some seconds in each attempt. So the key is there
//! only from the loss of the member on and while a fence that nobody has to ask for can be sealed soon, and is not written
//! again for a loss that was waited for in vain.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::guardian::context::Ctx;
use crate::guardian::disarm::disarmed;
use crate::guardian::journal::Journal;
use crate::guardian::settings::Trigger;
use crate::guardian::trigger::{FenceTrigger, doubtful};
use crate::model::gate_keys::GateState;
use crate::model::record::FenceState;
use crate::model::target::{Coverage, Target};

/// A healing that was announced longer ago than this waits no more. The scriptlet has no clock, and Incus ends it after 5 s
/// (docs/facts/incus.md#the-placement-scriptlet), of which it needs some for its own, and the rest may be for one of the site's.
const WAITS: Duration = Duration::from_millis(3500);
/// How often the gate looks at most: more often than fits into that, as a look costs the leader some 5 ms on a small machine.
/// Only where no guardian is left to take it back the wait ends by this, or by Incus's limit.
const LOOKS: u32 = 999;
/// How often the storage is looked at while a fence may have to begin any moment. Each question makes the monitors commit a
/// line of their log, and for a second after a commit an entry has to wait.
const PREPARE_EVERY: Duration = Duration::from_secs(5);
/// For how long such a look serves a fence. What appeared since is found as it is for every fence: new clients by the look
/// that chases them, users of images by the sweep that the gate waits for.
const PREPARED_LASTS: Duration = Duration::from_secs(7);

/// Lost members, and whether their seals are waited for: `false` where no wait is worth it any more for this loss.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AwaitedSeals(BTreeMap<String, bool>);

impl AwaitedSeals {
    /// Takes note of which seals are worth waiting for.
    pub(super) fn update(&mut self, ctx: Ctx<'_>, trigger: &FenceTrigger, journal: &Journal) {
        self.0.retain(|name, _| ctx.members.is_lost(name));
        if !ctx.members.is_any_lost() {
            return;
        }
        let may_come = |name: &str| journal.failure().is_none() && seal_may_come(ctx, trigger, name);
        for (name, evidence) in ctx.members.evidence.iter().filter(|(_, evidence)| evidence.is_lost()) {
            let announced = evidence.healing_since.max(evidence.heal_refused);
            let over = announced.is_some_and(|at| ctx.now.boot >= at + WAITS);
            match self.0.get(name) {
                None if !over && may_come(name) => {
                    self.0.insert(name.clone(), true);
                }
                Some(true) if over || !may_come(name) => {
                    if announced.is_some() {
                        self.0.insert(name.clone(), false);
                    } else {
                        self.0.remove(name);
                    }
                }
                Some(_) | None => {}
            }
        }
    }

    /// Is the storage to be looked at for the sake of a fence that may have to begin any moment? A monitor or a PG that is
    /// silent holds a look up for seconds (docs/design.md#when-to-fence).
    pub(super) fn is_look_due(&self, ctx: Ctx<'_>) -> bool {
        let awaited = self.named().any(|name| ctx.fences.of(name).is_none());
        awaited && ctx.ceph.looked_at.is_none_or(|at| ctx.now.boot >= at + PREPARE_EVERY)
    }

    /// The members that the gate waits for, each with the number of looks. A member whose gate is open needs no wait.
    pub(super) fn at_gate(&self, ctx: Ctx<'_>) -> BTreeMap<String, u32> {
        let closed = self.named().filter(|name| !ctx.is_open(name));
        closed.map(|name| (name.clone(), LOOKS)).collect()
    }

    fn named(&self) -> impl Iterator<Item = &String> {
        self.0.iter().filter(|(_, waits)| **waits).map(|(name, _)| name)
    }
}

/// Was the storage looked at lately, since this member is lost?
pub(super) fn is_prepared(ctx: Ctx<'_>, target: &Target) -> bool {
    let Target::Member(name) = target else { return false };
    let lost = ctx.members.get(name).and_then(|evidence| evidence.offline_since);
    let (Some(lost), Some(looked), None) = (lost, ctx.ceph.looked_at, &ctx.ceph.look_failed) else {
        return false;
    };
    ctx.ceph.world.is_some() && looked >= lost && ctx.now.boot < looked + PREPARED_LASTS
}

/// Can a fence of this lost member be sealed within seconds, once its healing is announced, without an operator?
fn seal_may_come(ctx: Ctx<'_>, trigger: &FenceTrigger, name: &str) -> bool {
    let Some(view) = ctx.incus.view() else { return false };
    let gated = matches!(ctx.gate_state(), GateState::Installed | GateState::Partial { .. });
    let heals = view.thresholds.healing.is_some() && view.members.contains_key(name);
    let storage_answers = ctx.ceph.look_failed.is_none() && ctx.ceph.map_failed.is_none();
    if !gated || !heals || !storage_answers {
        return false;
    }
    if let Some(fence) = ctx.fences.of(name) {
        return is_about_to_open(fence);
    }
    let others = ctx.fences.all().filter(|fence| fence.member().is_some()).count();
    // One without instances is healed without a question, and stays evacuated.
    !ctx.members.was_healed(ctx.now, name)
        && ctx.settings.trigger == Trigger::Auto
        && disarmed(ctx).is_none()
        && doubtful(ctx).is_empty()
        && !trigger.refused_member(name)
        && others < ctx.settings.policy.max_fenced(view.members.len())
        && trigger.cools_down(ctx).is_zero()
}

/// Is nothing known that keeps it from being sealed and its gate from opening soon? Beyond that an operator is needed, or
/// storage that is silent.
fn is_about_to_open(fence: &Fence) -> bool {
    let state = fence.record().state;
    let sealing = matches!(state, FenceState::Intended | FenceState::Committed | FenceState::Sealed);
    let accepted =
        fence.record().coverage == Coverage::WholeHost || fence.record().overrides.accept_incomplete;
    sealing && accepted && fence.release().is_none() && fence.trouble().is_none()
}
