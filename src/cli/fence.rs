//! `fence`: blocklist and prove.

use rbd_guardian_core::fence::sealing::{Sealing, SealingState};
use rbd_guardian_core::model::addr::Entry;
use rbd_guardian_core::model::fence_id::{FenceContent, FenceId};
use rbd_guardian_core::model::operator_request;
use rbd_guardian_core::model::record::FenceState;
use rbd_guardian_core::rules::plan::plan;
use serde::Serialize;

use super::answer::{CoverageAnswer, EntryAnswer, barrier_text, coverage_text, entries_table};
use super::context::{Context, print};
use super::error::CliError;
use super::{Common, Exit, FenceArgs, plan as plan_verb};
use crate::cli::dispatch::{VerbOutcome, VerbStart, operator, otherwise};
use crate::cli::standalone::{self, Timings};
use crate::clock;
use crate::control::protocol::{ControlLine, ProvedPool};
use crate::shown::FenceShown;
use rbd_guardian_core::model::epoch::OsdEpoch;

#[derive(Serialize)]
struct FenceAnswer {
    fence: FenceContent,
    member: Option<String>,
    state: SealingState,
    epoch: Option<OsdEpoch>,
    entries: Vec<EntryAnswer>,
    coverage: CoverageAnswer,
    barrier: Vec<ProvedPool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    deleted_pools: Vec<String>,
    /// Whole-host entries put up while a short one is replaced, and left by an interruption.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    covers: Vec<Entry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    timings_ms: Timings,
}

/// What a daemon answers with, in the same words.
#[derive(Serialize)]
struct FenceServedAnswer {
    fence: FenceId,
    member: Option<String>,
    state: FenceState,
    epoch: Option<OsdEpoch>,
    entries: Vec<EntryAnswer>,
    coverage: CoverageAnswer,
    barrier: Vec<ProvedPool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    timings_ms: ServedTimings,
}

#[derive(Serialize)]
struct ServedTimings {
    total: u128,
}

pub(super) fn run(common: &Common, args: &FenceArgs) -> Result<Exit, CliError> {
    let overrides = args.permits.overrides();
    let request = operator_request::Request::Fence {
        target: args.target.target(),
        overrides,
        reason: args.permits.reason.clone(),
        by: operator(),
    };
    let began = clock::monotonic();
    match VerbStart::new(common)?.request(request)? {
        VerbOutcome::Alone(context) => alone(&context, args),
        VerbOutcome::Underway { fence, pending, why, on } => {
            let what = args.target.member.as_deref().unwrap_or(fence.id.as_str());
            let waits = if pending.is_empty() {
                String::new()
            } else {
                format!("; waiting for {} PGs: {}", pending.len(), pending.join(" "))
            };
            eprintln!("rbd-guardian: {why}: {what} is {}, and {on}{waits}", fence.state);
            print(common.format(), &FenceShown::of(*fence).pending(pending), |_| String::new())?;
            Ok(Exit::Pending)
        }
        VerbOutcome::Answered(ControlLine::Sealed { fence, barrier }) => {
            let took = clock::monotonic().duration_since(began).as_millis();
            let answer = FenceServedAnswer {
                epoch: fence.proofs.iter().map(|proof| proof.epoch).max(),
                entries: fence
                    .entries
                    .iter()
                    .map(|(entry, until)| EntryAnswer::new((*entry, *until)))
                    .collect(),
                coverage: CoverageAnswer::of(&fence),
                barrier,
                state: fence.state,
                reason: fence.reason,
                fence: fence.id,
                member: fence.member,
                timings_ms: ServedTimings { total: took },
            };
            print(common.format(), &answer, served_text)?;
            Ok(Exit::Done)
        }
        VerbOutcome::Answered(line) => otherwise(common, args.target.member.clone(), line),
    }
}

fn served_text(answer: &FenceServedAnswer) -> String {
    let what = answer.member.as_deref().unwrap_or(answer.fence.as_str());
    let mut text = format!("{what}  SEALED: the storage refuses every write of it\n");
    text.push_str(&format!("{}\n{}", entries_table(&answer.entries), coverage_text(&answer.coverage)));
    text.push_str(&format!("{}\n", barrier_text(&answer.barrier)));
    if let Some(epoch) = answer.epoch {
        text.push_str(&format!("osdmap epoch {epoch}; total {} ms\n", answer.timings_ms.total));
    }
    text.push_str(&format!("fence {}\n", answer.fence));
    text
}

/// With the storage alone: nothing but the blocklist remembers the fence.
fn alone(context: &Context, args: &FenceArgs) -> Result<Exit, CliError> {
    let request = args.target.request(args.permits.overrides());
    let world = context.look()?;
    let plan = match plan(&request, &context.config.members, &world, &context.config.policy) {
        Ok(plan) => plan,
        Err(refusals) => return plan_verb::refuse(context.format, &request.target, &refusals),
    };
    let mut fence = Sealing::new(plan);
    let (timings, ended) = standalone::fence(context, &mut fence);
    let answer = FenceAnswer {
        fence: fence.plan().fence.clone(),
        member: fence.plan().member.clone(),
        state: fence.state(),
        epoch: fence.committed(),
        entries: fence.entries().map(EntryAnswer::new).collect(),
        coverage: CoverageAnswer::new(fence.plan()),
        barrier: fence.proofs().map(ProvedPool::from).collect(),
        deleted_pools: fence.deleted_pools().to_vec(),
        covers: fence.standing_covers(),
        reason: args.permits.reason.clone(),
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
fn end(fence: &Sealing, ended: Result<(), CliError>) -> (Exit, Option<String>) {
    if let Some(failure) = fence.failure() {
        return (Exit::Failed, Some(failure.to_string()));
    }
    let Err(fault) = ended else {
        return (Exit::Done, None);
    };
    let cause = fault.cause();
    let (exit, word) = match fence.state() {
        SealingState::Intended | SealingState::Breached => {
            let word =
                "before the entries were seen in the osdmap: they may be there or come yet; run it again";
            (fault.exit(), format!("{cause} {word}"))
        }
        SealingState::Committed | SealingState::Pending => {
            let why = if fence.reads_paused() {
                " (reads are paused: `ceph osd unpause`)".to_owned()
            } else {
                standalone::troubles(fence.proofs())
            };
            let word = "committed, but not every PG has proved that it refuses";
            (Exit::Pending, format!("{cause}: {word}{why}; run it again"))
        }
        // The seal rests on whole-host entries; what is missing beneath them is needed before a release only.
        SealingState::Sealed if fence.standing_covers().is_empty() && !fence.plan().hosts().is_empty() => (
            Exit::Done,
            format!("{cause}: sealed; short entries beneath the host entry are replaced by running it again"),
        ),
        SealingState::Sealed => {
            (Exit::Pending, format!("{cause}: sealed under a cover that is to be dropped; run it again"))
        }
    };
    (exit, Some(word))
}

fn text(answer: &FenceAnswer, fence: &Sealing) -> String {
    let state = match answer.state {
        SealingState::Sealed => "SEALED: the storage refuses every write of it",
        SealingState::Pending | SealingState::Committed => {
            "PENDING: committed, but some PGs might still take a write"
        }
        SealingState::Intended => "NOT COMMITTED",
        SealingState::Breached => "BREACHED: an entry was removed by somebody else",
    };
    let mut text = format!("{}  {state}\n", plan_verb::name(fence.plan()));
    text.push_str(&format!("{}\n{}", entries_table(&answer.entries), coverage_text(&answer.coverage)));
    text.push_str(&format!("{}\n", barrier_text(&answer.barrier)));
    for pool in &answer.deleted_pools {
        text.push_str(&format!("pool {pool} was deleted meanwhile: nothing is proved about it\n"));
    }
    for cover in &answer.covers {
        text.push_str(&format!("cover {cover} stands: every client of it is refused\n"));
    }
    if let Some(epoch) = answer.epoch {
        text.push_str(&format!("osdmap epoch {epoch}; {}\n", answer.timings_ms));
    }
    text.push_str(&format!("fence {}\n", answer.fence));
    text
}
