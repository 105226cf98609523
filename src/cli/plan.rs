//! `plan`: what a fence would do. Reads, decides, prints; changes nothing.

use serde::Serialize;

use super::answer::{CoverageAnswer, EntryAnswer, coverage_text, entries_table};
use super::context::Context;
use super::error::Fault;
use super::{Exit, Format, served};
use crate::daemon::wire::Reason;
use crate::domain::fence_id::FenceId;
use crate::domain::plan::{Plan, Request, Target, plan};
use crate::domain::refusal::Refusal;

#[derive(Serialize)]
struct PlanAnswer {
    fence: FenceId,
    member: Option<String>,
    state: &'static str,
    /// `until` is set for entries that are there already.
    entries: Vec<EntryAnswer>,
    fail_over: Vec<String>,
    coverage: CoverageAnswer,
    pools: Vec<String>,
}

pub(super) fn run(context: &Context, request: &Request) -> Result<Exit, Fault> {
    let world = context.look()?;
    let plan = match plan(request, &context.config.members, &world, &context.config.policy) {
        Ok(plan) => plan,
        Err(refusals) => return refuse(context.format, &request.target, &refusals),
    };
    let there = |entry| (entry, world.map.blocklist.until(entry));
    let answer = PlanAnswer {
        fence: plan.fence.clone(),
        member: plan.member.clone(),
        state: "planned",
        entries: plan.entries.iter().copied().map(there).map(EntryAnswer::new).collect(),
        fail_over: plan.fail_over.iter().map(ToString::to_string).collect(),
        coverage: CoverageAnswer::new(&plan),
        pools: plan.guarded.pools(&world.map).values().map(|pool| pool.name.clone()).collect(),
    };
    context.print(&answer, |answer| text(answer, &plan))?;
    Ok(Exit::Done)
}

fn text(answer: &PlanAnswer, plan: &Plan) -> String {
    let mut text = format!("would fence {}, changing nothing now:\n", name(plan));
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
pub(super) fn refuse(format: Format, target: &Target, refusals: &[Refusal]) -> Result<Exit, Fault> {
    let member = match target {
        Target::Member(name) => Some(name.clone()),
        Target::Addresses(_) => None,
    };
    served::refuse(format, member, refusals.iter().map(Reason::from))
}
