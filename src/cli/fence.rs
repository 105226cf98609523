//! `fence`: blocklist and prove.

use serde::Serialize;

use super::answer::{CoverageAnswer, EntryAnswer, PoolAnswer, barrier_text, coverage_text, entries_table};
use super::context::Context;
use super::drive::{self, Timings};
use super::error::Fault;
use super::{Exit, FenceArgs, plan as plan_verb};
use crate::deadline::Late;
use crate::domain::fence::{Fence, State};
use crate::domain::fence_id::FenceId;
use crate::domain::plan::plan;

#[derive(Serialize)]
struct FenceAnswer {
    fence: FenceId,
    member: Option<String>,
    state: State,
    epoch: Option<u32>,
    entries: Vec<EntryAnswer>,
    coverage: CoverageAnswer,
    barrier: Vec<PoolAnswer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    deleted_pools: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    timings_ms: Timings,
}

pub(super) fn run(context: &Context, args: &FenceArgs) -> Result<Exit, Fault> {
    let request = args.target.request(args.accept_incomplete);
    let world = context.look()?;
    let plan = match plan(&request, &context.config.members, &world, &context.config.policy) {
        Ok(plan) => plan,
        Err(refusals) => return plan_verb::refuse(context, &request, &refusals),
    };
    let mut fence = Fence::new(plan);
    let (timings, ended) = drive::fence(context, &mut fence)?;
    let answer = FenceAnswer {
        fence: fence.plan().fence.clone(),
        member: fence.plan().member.clone(),
        state: fence.state(),
        epoch: fence.committed(),
        entries: fence.entries().map(EntryAnswer::new).collect(),
        coverage: CoverageAnswer::new(fence.plan()),
        barrier: fence.proofs().map(PoolAnswer::new).collect(),
        deleted_pools: fence.deleted_pools().to_vec(),
        reason: args.reason.clone(),
        timings_ms: timings,
    };
    context.print(&answer, |answer| text(answer, &fence))?;
    let (exit, word) = end(&fence, ended);
    if let Some(word) = word {
        eprintln!("rbd-guardian: {word}");
    }
    Ok(exit)
}

/// The exit code, and what to tell where it is not 0.
fn end(fence: &Fence, ended: Result<(), Late>) -> (Exit, Option<String>) {
    if let Some(failure) = fence.failure() {
        return (Exit::Failed, Some(failure.to_string()));
    }
    let Err(late) = ended else {
        return (Exit::Done, None);
    };
    match fence.state() {
        State::Intended | State::Breached => {
            let word = format!(
                "{late} before the entries were seen in the osdmap: they may be there or come yet; run it again"
            );
            (Exit::CannotTell, Some(word))
        }
        State::Committed | State::Pending => {
            let why = if fence.reads_paused() {
                " (reads are paused: `ceph osd unpause`)".to_owned()
            } else {
                drive::troubles(fence.proofs())
            };
            let word =
                format!("{late}: committed, but not every PG has proved that it refuses{why}; run it again");
            (Exit::Pending, Some(word))
        }
        State::Sealed => {
            let word =
                format!("{late}: sealed, but short entries beneath it are not replaced yet; run it again");
            (Exit::Failed, Some(word))
        }
    }
}

fn text(answer: &FenceAnswer, fence: &Fence) -> String {
    let state = match answer.state {
        State::Sealed => "SEALED: the storage refuses every write of it",
        State::Pending | State::Committed => "PENDING: committed, but some PGs might still take a write",
        State::Intended => "NOT COMMITTED",
        State::Breached => "BREACHED: an entry was removed by somebody else",
    };
    let mut text = format!("{}  {state}\n", plan_verb::name(fence.plan()));
    text.push_str(&format!("{}\n{}", entries_table(&answer.entries), coverage_text(&answer.coverage)));
    text.push_str(&format!("{}\n", barrier_text(&answer.barrier)));
    for pool in &answer.deleted_pools {
        text.push_str(&format!("pool {pool} was deleted meanwhile: nothing is proved about it\n"));
    }
    if let Some(epoch) = answer.epoch {
        text.push_str(&format!("osdmap epoch {epoch}; {}\n", answer.timings_ms));
    }
    text.push_str(&format!("fence {}\n", answer.fence));
    text
}
