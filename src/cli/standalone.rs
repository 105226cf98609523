//! Performs what the machines ask for, until they are done or the time is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rbd_guardian_core::fence::releasing::Release;
use rbd_guardian_core::fence::sealing::{Sealing, SealingState};
use rbd_guardian_core::fence::step::{Step, StepMachine, StepOutcome};
use rbd_guardian_core::model::barrier::PoolProof;
use serde::Serialize;

use super::output::tell;
use crate::ceph::barrier::Probes;
use crate::ceph::look::CLIENTS_WITHIN;
use crate::ceph::perform::{PACE, Performed, ROUND, StepReadError, Storage};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::progress::Progress;
use crate::clock;
use crate::deadline::Deadline;

/// How long a short entry that was removed may take to stand again, whatever the command's own time.
const REPLACE_WITHIN: Duration = Duration::from_secs(30);

/// How long each part took, in whole milliseconds, from the decision on; what another process did is known as a whole.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Timings {
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    barrier: Option<u128>,
    total: u128,
}

impl Timings {
    pub(super) fn of_total(took: Duration) -> Self {
        Self { commit: None, barrier: None, total: took.as_millis() }
    }
}

impl std::fmt::Display for Timings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (part, took) in [("commit", self.commit), ("barrier", self.barrier)] {
            if let Some(took) = took {
                write!(f, "{part} {took} ms, ")?;
            }
        }
        write!(f, "total {} ms", self.total)
    }
}

/// Drives a fence. An error in the result (time-out, Ctrl-C, a monitor's answer) ends it where it is: the fence tells
/// how far it came.
pub(super) fn fence(context: &Context, fence: &mut Sealing) -> (Timings, Result<(), CliError>) {
    let began = clock::monotonic();
    let mut timings = Timings { commit: Some(0), barrier: Some(0), total: 0 };
    let ended = StandaloneExecutor::new(context).drive(fence, |fence, asked, was_barrier| {
        if was_barrier {
            timings.barrier = timings.barrier.map(|took| took + millis(asked));
        }
        if timings.commit == Some(0) && fence.committed().is_some() {
            timings.commit = Some(millis(began));
        }
        if timings.total == 0 && fence.state() == SealingState::Sealed {
            timings.total = millis(began);
        }
    });
    if ended.is_err() {
        timings.total = millis(began);
    }
    (timings, ended)
}

/// Drives a release, in the same way.
pub(super) fn release(context: &Context, release: &mut Release) -> Result<(), CliError> {
    StandaloneExecutor::new(context).drive(release, |_, _, _| {})
}

fn millis(since: Instant) -> u128 {
    clock::monotonic().duration_since(since).as_millis().max(1)
}

/// What a barrier still waits for, for people.
pub(super) fn unproved(proofs: &[PoolProof]) -> String {
    let pending: Vec<String> = proofs.iter().flat_map(PoolProof::pending_names).collect();
    let shown = pending.iter().take(8).cloned().collect::<Vec<_>>().join(" ");
    let more = if pending.len() > 8 { " …" } else { "" };
    let why = troubles(proofs);
    format!("waiting for {} PGs that do not answer: {shown}{more}{why}", pending.len())
}

/// ` (POOL: what stands in the way)`, where more than silence is known.
pub(super) fn troubles<'p>(proofs: impl IntoIterator<Item = &'p PoolProof>) -> String {
    let pending = proofs.into_iter().filter(|proof| !proof.is_complete());
    let known = pending.filter_map(|proof| Some(format!("{}: {}", proof.pool.name, proof.trouble.as_ref()?)));
    let known = known.collect::<Vec<_>>().join("; ");
    if known.is_empty() { known } else { format!(" ({known})") }
}

struct StandaloneExecutor<'c> {
    context: &'c Context,
    storage: Storage,
    names: Probes,
    /// The command's, except between the removal of a short client entry and the moment it stands again.
    deadline: Deadline,
    progress: Progress,
    /// The last effect read the map, too: pace the next one.
    read_last: bool,
    /// What could not be read when clients were asked for last.
    unread: Vec<String>,
    /// How long they are asked for.
    clients_within: Duration,
}

impl<'c> StandaloneExecutor<'c> {
    fn new(context: &'c Context) -> Self {
        let storage = Storage {
            cluster: context.cluster.clone(),
            guarded: context.config.policy.guarded.clone(),
            expire: context.config.policy.expire,
        };
        Self {
            context,
            storage,
            names: Probes::default(),
            deadline: context.deadline.clone(),
            progress: Progress::new(),
            read_last: false,
            unread: Vec::new(),
            clients_within: CLIENTS_WITHIN,
        }
    }

    /// `observe` is called after each outcome, with when its step was asked for and whether that was a barrier.
    fn drive<M: StepMachine>(
        &mut self,
        machine: &mut M,
        mut observe: impl FnMut(&M, Instant, bool),
    ) -> Result<(), CliError> {
        while let Some(step) = machine.next_step() {
            let asked = clock::monotonic();
            let is_barrier = matches!(step, Step::Barrier { .. });
            let ended = self.perform(step).and_then(|outcome| {
                let is_asked_again = outcome.is_asked_again();
                if let StepOutcome::Unread(unread) = &outcome {
                    self.wait_longer_for(unread);
                }
                machine.handle(outcome);
                observe(machine, asked, is_barrier);
                if is_asked_again { self.pause() } else { Ok(()) }
            });
            if let Err(fault) = ended.and_then(|()| Ok(self.deadline.left().map(|_| ())?)) {
                return if machine.is_done() { Ok(()) } else { Err(self.why(fault)) };
            }
        }
        Ok(())
    }

    fn perform(&mut self, step: Step) -> Result<StepOutcome, CliError> {
        let again = std::mem::replace(&mut self.read_last, step == Step::ReadMap);
        let mut within = self.deadline.clone();
        match &step {
            Step::FailOver(daemon) => tell!("rbd-guardian: failing over {daemon}"),
            Step::ReadDaemons => {
                self.progress.say(|| "waiting for a standby elsewhere to become active".to_owned());
            }
            Step::ReadMap => {
                self.progress.say(|| "reading the osdmap back".to_owned());
                if again {
                    self.pause()?;
                }
            }
            Step::Barrier { .. } => within = self.deadline.at_most(ROUND),
            Step::ReadClients => within = self.deadline.at_most(self.clients_within),
            Step::Add(_) | Step::Remove(_) => {}
        }
        let removed_client = matches!(&step, Step::Remove(entries) if entries.iter().any(|e| !e.is_host()));
        let progress = &mut |proofs: &[PoolProof]| self.progress.say(|| unproved(proofs));
        let is_read = matches!(step, Step::ReadMap);
        let Performed { outcome, error } = self.storage.perform(step, &mut self.names, &within, progress);
        match error {
            // Monitors that do not answer now may answer when they are asked for the map again.
            Some(StepReadError::Read(error)) if is_read && error.is_transient() => {}
            Some(error) => return Err(error.into()),
            None => {}
        }
        match &outcome {
            StepOutcome::Added(_) if !outcome.has_failed() => self.deadline = self.context.deadline.clone(),
            // A short client entry that was removed is known to nobody until it stands again: neither Ctrl-C nor the
            // time ends the command in between.
            StepOutcome::Removed(_) if removed_client => {
                self.deadline = Deadline::after(REPLACE_WITHIN, Arc::default());
            }
            StepOutcome::Clients(_) => self.unread.clear(),
            StepOutcome::Added(_)
            | StepOutcome::Removed(_)
            | StepOutcome::FailedOver(..)
            | StepOutcome::Daemons(_)
            | StepOutcome::Map(_)
            | StepOutcome::Proved(_)
            | StepOutcome::Unread(_) => {}
        }
        Ok(outcome)
    }

    fn pause(&self) -> Result<(), CliError> {
        Ok(self.deadline.pause(PACE)?)
    }

    fn wait_longer_for(&mut self, unread: &[String]) {
        self.unread = unread.to_vec();
        // Otherwise a monitor that answers late would never be heard.
        self.clients_within *= 2;
        self.progress.say(|| format!("not every client is known yet: {}", unread.join("; ")));
    }

    /// A time-out tells what it waited for.
    fn why(&self, fault: CliError) -> CliError {
        if let (CliError::Late(late), false) = (&fault, self.unread.is_empty()) {
            return CliError::Unread { late: *late, unread: self.unread.join("; ") };
        }
        fault
    }
}
