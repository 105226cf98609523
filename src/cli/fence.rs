//! `fence`: blocklist and prove.

use std::time::Duration;

use rbd_guardian_core::fence::sealing::{Sealing, SealingState};
use rbd_guardian_core::model::addr::Entry;
use rbd_guardian_core::model::epoch::OsdEpoch;
use rbd_guardian_core::model::fence_id::FenceId;
use rbd_guardian_core::model::operator_request;
use rbd_guardian_core::model::record::{FenceRecord, FenceState};
use rbd_guardian_core::rules::plan::plan;
use serde::Serialize;

use super::answer::{CoverageAnswer, EntryAnswer, barrier_text, coverage_text, entries_table};
use super::context::{Context, print};
use super::error::CliError;
use super::output::tell;
use super::{Common, Exit, FenceArgs, plan as plan_verb};
use crate::cli::dispatch::{VerbOutcome, VerbStart, operator, otherwise};
use crate::cli::standalone::{self, Timings};
use crate::clock;
use crate::control::protocol::{ControlLine, ProvedPool};
use crate::shown::FenceShown;

/// What became of a fence: the same whether a daemon, another guardian or this command carried it out.
#[derive(Serialize)]
struct FenceAnswer {
    fence: FenceId,
    member: Option<String>,
    state: FenceState,
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

impl FenceAnswer {
    /// By the guardian that leads, with what the ledger says.
    fn served(fence: FenceRecord, barrier: Vec<ProvedPool>, took: Duration) -> Self {
        Self {
            epoch: fence.proofs.iter().map(|proof| proof.epoch).max(),
            entries: fence.entries.iter().map(|(entry, until)| EntryAnswer::new((*entry, *until))).collect(),
            coverage: CoverageAnswer::of(&fence),
            barrier,
            deleted_pools: Vec::new(),
            covers: Vec::new(),
            state: fence.state,
            reason: fence.reason,
            fence: fence.id,
            member: fence.member,
            timings_ms: Timings::of_total(took),
        }
    }

    /// By this command.
    fn alone(fence: &Sealing, reason: Option<String>, timings_ms: Timings) -> Self {
        Self {
            fence: FenceId::from(&fence.plan().fence),
            member: fence.plan().member.clone(),
            state: fence.state().into(),
            epoch: fence.committed(),
            entries: fence.entries().map(EntryAnswer::new).collect(),
            coverage: CoverageAnswer::new(fence.plan()),
            barrier: fence.proofs().map(ProvedPool::from).collect(),
            deleted_pools: fence.deleted_pools().to_vec(),
            covers: fence.standing_covers(),
            reason,
            timings_ms,
        }
    }
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
            tell!("rbd-guardian: {why}: {what} is {}, and {on}{waits}", fence.state);
            print(common.format(), &FenceShown::of(*fence).pending(pending), |_| String::new())?;
            Ok(Exit::Pending)
        }
        VerbOutcome::Answered(ControlLine::Sealed { fence, barrier }) => {
            let took = clock::monotonic().duration_since(began);
            print(common.format(), &FenceAnswer::served(*fence, barrier, took), text)?;
            Ok(Exit::Done)
        }
        VerbOutcome::Answered(line) => otherwise(common, args.target.member.clone(), line),
    }
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
    let answer = FenceAnswer::alone(&fence, args.permits.reason.clone(), timings);
    context.print(&answer, text)?;
    let (exit, word) = end(&fence, ended);
    if let Some(word) = word {
        tell!("rbd-guardian: {word}");
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

fn text(answer: &FenceAnswer) -> String {
    let state = match answer.state {
        FenceState::Sealed => "SEALED: the storage refuses all its writes",
        FenceState::Pending | FenceState::Committed => {
            "PENDING: the entries are in the osdmap, but some PGs may still accept a write"
        }
        FenceState::Intended => "NOT COMMITTED: no osdmap shows the entries yet",
        FenceState::Breached => "BREACHED: somebody else removed an entry",
        FenceState::Releasing => "RELEASING",
        FenceState::Released => "RELEASED",
    };
    let name = answer.member.clone().unwrap_or_else(|| {
        let entries = answer.entries.iter().map(|entry| entry.entry.to_string());
        entries.collect::<Vec<_>>().join(", ")
    });
    let mut text = format!("{name}  {state}\n");
    text.push_str(&format!("{}\n{}", entries_table(&answer.entries), coverage_text(&answer.coverage)));
    text.push_str(&format!("{}\n", barrier_text(&answer.barrier)));
    for pool in &answer.deleted_pools {
        text.push_str(&format!("pool {pool} was deleted meanwhile: it was not proved\n"));
    }
    for cover in &answer.covers {
        text.push_str(&format!("cover {cover} is still in place: every client of that host is refused\n"));
    }
    if let Some(epoch) = answer.epoch {
        text.push_str(&format!("osdmap epoch {epoch}; {}\n", answer.timings_ms));
    }
    text.push_str(&format!("fence {}\n", answer.fence));
    text
}
