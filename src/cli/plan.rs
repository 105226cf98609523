//! `plan`: what a fence would do. Reads, decides, prints; changes nothing.

use rbd_guardian_core::guardian::io::{Input, Now};
use rbd_guardian_core::model::ceph_snapshot::CephSnapshot;
use rbd_guardian_core::model::fence_id::FenceContent;
use rbd_guardian_core::model::overrides::{self, Overrides};
use rbd_guardian_core::model::target::Target;
use rbd_guardian_core::rules::plan::{Plan, PlanRequest, plan};
use rbd_guardian_core::rules::refusal::Refusal;
use serde::Serialize;

use super::answer::{CoverageAnswer, EntryAnswer, coverage_text, entries_table};
use super::context::Context;
use super::error::CliError;
use super::seen::{AnswerSource, known};
use super::{Exit, Format};
use crate::cli::dispatch;
use crate::cli::output::say;
use crate::clock;
use crate::control::protocol::Reason;

#[derive(Serialize)]
struct PlanAnswer {
    fence: FenceContent,
    member: Option<String>,
    state: &'static str,
    /// What the plan rests on.
    source: AnswerSource,
    /// What the guardian that leads would do by itself now, and why.
    why: Vec<String>,
    /// Rules that stand against it and are gone over.
    #[serde(flatten, with = "overrides::rules")]
    overrides: Overrides,
    /// `until` is set for entries that are there already.
    entries: Vec<EntryAnswer>,
    fail_over: Vec<String>,
    coverage: CoverageAnswer,
    pools: Vec<String>,
}

pub(super) fn run(context: &Context, request: &PlanRequest) -> Result<Exit, CliError> {
    // First, as it takes longer than a reading of Incus stays fresh.
    let world = context.look()?;
    let Some((mut core, _)) = known(context)? else {
        let planned = plan(request, &context.config.members, &world, &context.config.policy);
        return show(context, request, planned, &world, AnswerSource::Ceph, Vec::new());
    };
    core.handle(Now { boot: clock::boot(), wall: clock::wall() }, Input::Looked(Ok(world.clone())));
    let PlanRequest { target, overrides, .. } = request;
    let why = match target {
        Target::Member(name) => core.why(name),
        Target::Addresses(_) => Vec::new(),
    };
    let planned = core.plan(target.clone(), *overrides).unwrap_or_else(|| Err(Vec::new()));
    show(context, request, planned, &world, AnswerSource::Ledger, why)
}

fn show(
    context: &Context,
    request: &PlanRequest,
    planned: Result<Plan, Vec<Refusal>>,
    world: &CephSnapshot,
    source: AnswerSource,
    why: Vec<String>,
) -> Result<Exit, CliError> {
    let plan = match planned {
        Ok(plan) => plan,
        Err(refusals) => {
            for line in &why {
                say(line);
            }
            return refuse(context.format, &request.target, &refusals);
        }
    };
    let there = |entry| (entry, world.map.blocklist.until(entry));
    let answer = PlanAnswer {
        fence: plan.fence.clone(),
        member: plan.member.clone(),
        state: "planned",
        source,
        why,
        overrides: plan.overrides,
        entries: plan.entries.iter().copied().map(there).map(EntryAnswer::new).collect(),
        fail_over: plan.fail_over.iter().map(ToString::to_string).collect(),
        coverage: CoverageAnswer::new(&plan),
        pools: plan.guarded.pools(&world.map).values().map(|pool| pool.name.clone()).collect(),
    };
    context.print(&answer, |answer| text(answer, &plan))?;
    Ok(Exit::Done)
}

fn text(answer: &PlanAnswer, plan: &Plan) -> String {
    let mut text = answer.why.iter().map(|line| format!("{line}\n")).collect::<String>();
    text.push_str(&format!("`fence` would fence {} so (nothing is changed now):\n", name(plan)));
    if plan.overrides.any_rule() {
        text.push_str(&format!("going over {}\n", plan.overrides.words()));
    }
    for daemon in &answer.fail_over {
        text.push_str(&format!("first fail over {daemon} to a standby elsewhere\n"));
    }
    text.push_str(&format!("{}\n{}", entries_table(&answer.entries), coverage_text(&answer.coverage)));
    text.push_str(&format!("to prove: every PG of {}\n", answer.pools.join(", ")));
    text
}

/// The member, or what stands in for one.
pub(super) fn name(plan: &Plan) -> String {
    plan.member
        .clone()
        .unwrap_or_else(|| plan.fence.entries.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

/// Prints every reason, and that nothing was changed.
pub(super) fn refuse(format: Format, target: &Target, refusals: &[Refusal]) -> Result<Exit, CliError> {
    let member = match target {
        Target::Member(name) => Some(name.clone()),
        Target::Addresses(_) => None,
    };
    dispatch::refuse(format, member, refusals.iter().map(Reason::from))
}
