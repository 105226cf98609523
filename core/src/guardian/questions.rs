//! Which member is asked next, and what: its state, its interfaces, or its host for a ping.

use std::time::Duration;

use crate::guardian::context::Ctx;
use crate::guardian::interfaces::{Interfaces, has_looked_lately};
use crate::guardian::io::Effect;
use crate::guardian::lanes::Lane;
use crate::guardian::trigger::FenceTrigger;
use crate::model::gate_keys::GateState;
use crate::model::incus_snapshot::MemberStatus;

/// How often a healthy member is asked for its state.
const STATE_EVERY: Duration = Duration::from_secs(60);
/// The same while it is fenced.
const STATE_OFTEN: Duration = Duration::from_secs(2);

pub(super) fn next(ctx: Ctx<'_>, trigger: &FenceTrigger, interfaces: &Interfaces) -> Option<Effect> {
    let view = ctx.incus.fresh(ctx.now)?;
    let now = ctx.now.boot;
    let guarded = ctx.gate_state() == GateState::Installed;
    view.members.iter().find_map(|(name, member)| {
        let evidence = ctx.members.get(name).cloned().unwrap_or_default();
        let held = ctx.fences.of(name).is_some();
        let every = if held { STATE_OFTEN } else { STATE_EVERY };
        let asked = evidence.state.as_ref().map(|(asked, _)| *asked).max(evidence.answered);
        let online = member.status == MemberStatus::Online;
        let states = (held || online) && asked.is_none_or(|asked| now >= asked + every);
        let state = states || trigger.answer_is_due(ctx, name, asked);
        let networks = online && has_looked_lately(ctx) && interfaces.are_due(ctx, name);
        let near = evidence.healing_is_near(member, &view.thresholds, ctx.settings.lead);
        let ping = !guarded && near && evidence.ping_is_due(now);
        let due = [
            state.then(|| Effect::ReadMemberState(name.clone())),
            networks.then(|| Effect::ReadNetworks(name.clone())),
            ping.then(|| Effect::Ping(name.clone())),
        ];
        due.into_iter().flatten().find(|effect| ctx.may_begin(&Lane::of(effect)))
    })
}
