//! Performs what the machines ask for, until they are done or the time is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rbd_guardian_core::fence::releasing::Release;
use rbd_guardian_core::fence::sealing::{Sealing, SealingState, Sent};
use rbd_guardian_core::model::barrier::PoolProof;
use rbd_guardian_core::model::osdmap::OsdMap;
use serde::Serialize;

use crate::ceph::barrier::Probes;
use crate::ceph::look::CLIENTS_WITHIN;
use crate::ceph::perform::{CephOutcome, CephStep, StepReadError, Storage};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::progress::Progress;
use crate::clock;
use crate::deadline::Deadline;

/// Between two looks at something that changes by itself.
const PACE: Duration = Duration::from_millis(100);

/// How long silent PGs are waited for before the map is read again: pools come and go, and entries must still stand.
const ROUND: Duration = Duration::from_secs(5);

/// How long a short entry that was removed may take to stand again, whatever the command's own time.
const REPLACE_WITHIN: Duration = Duration::from_secs(30);

/// How long each part took, in whole milliseconds, from the decision on.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Timings {
    commit: u128,
    barrier: u128,
    total: u128,
}

impl std::fmt::Display for Timings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "commit {} ms, barrier {} ms, total {} ms", self.commit, self.barrier, self.total)
    }
}

/// Drives a fence. An error in the result (time-out, Ctrl-C, a monitor's answer) ends it where it is: the fence tells
/// how far it came.
pub(super) fn fence(context: &Context, fence: &mut Sealing) -> (Timings, Result<(), CliError>) {
    let mut drive = StandaloneExecutor::new(context);
    let began = clock::monotonic();
    let mut timings = Timings::default();
    while let Some(effect) = fence.next_effect() {
        let asked = clock::monotonic();
        let ended = drive.perform(CephStep::from(effect)).and_then(|outcome| match outcome {
            CephOutcome::FailedOver(daemon, sent) => {
                fence.handle_failed_over(&daemon, sent);
                Ok(())
            }
            CephOutcome::Daemons(all) => {
                fence.handle_daemons(&all?);
                drive.pause()
            }
            CephOutcome::Added(sent) => {
                fence.handle_added(sent);
                Ok(())
            }
            CephOutcome::Removed(sent) => {
                fence.handle_removed(sent);
                Ok(())
            }
            CephOutcome::Map(map) => {
                fence.handle_map(later(map)?.map(Arc::new));
                Ok(())
            }
            CephOutcome::Proved(proofs) => {
                timings.barrier += millis(asked);
                let complete = proofs.iter().all(PoolProof::is_complete);
                fence.handle_barrier(proofs);
                if complete { Ok(()) } else { drive.pause() }
            }
            // A fence asks for no clients.
            CephOutcome::Clients(_) => Ok(()),
        });
        if timings.commit == 0 && fence.committed().is_some() {
            timings.commit = millis(began);
        }
        if timings.total == 0 && fence.state() == SealingState::Sealed {
            timings.total = millis(began);
        }
        if let Err(fault) = ended.and_then(|()| Ok(drive.deadline.left().map(|_| ())?)) {
            timings.total = millis(began);
            return (timings, if fence.is_done() { Ok(()) } else { Err(fault) });
        }
    }
    (timings, Ok(()))
}

/// Drives a release, in the same way.
pub(super) fn release(context: &Context, release: &mut Release) -> Result<(), CliError> {
    let mut drive = StandaloneExecutor::new(context);
    while let Some(effect) = release.next_effect() {
        let ended = drive.perform(CephStep::from(effect)).and_then(|outcome| match outcome {
            CephOutcome::Map(map) => {
                release.handle_map(later(map)?);
                Ok(())
            }
            CephOutcome::Clients(read) => {
                let (clients, unread) = read?;
                let complete = unread.is_empty();
                drive.unread = unread;
                release.handle_clients(complete.then_some(clients));
                if complete { Ok(()) } else { drive.wait_for_sources() }
            }
            CephOutcome::Added(sent) => {
                release.handle_added(sent);
                Ok(())
            }
            CephOutcome::Removed(sent) => {
                release.handle_removed(sent);
                Ok(())
            }
            // A release asks for none of these.
            CephOutcome::FailedOver(..) | CephOutcome::Daemons(_) | CephOutcome::Proved(_) => Ok(()),
        });
        if let Err(fault) = ended.and_then(|()| Ok(drive.deadline.left().map(|_| ())?)) {
            return if release.is_done() { Ok(()) } else { Err(drive.why(fault)) };
        }
    }
    Ok(())
}

/// `None` if the monitors did not answer: the machine asks again.
fn later(map: Result<OsdMap, StepReadError>) -> Result<Option<OsdMap>, CliError> {
    match map {
        Ok(map) => Ok(Some(map)),
        Err(StepReadError::Read(error)) if error.is_transient() => Ok(None),
        Err(error) => Err(error.into()),
    }
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

    fn perform(&mut self, step: CephStep) -> Result<CephOutcome, CliError> {
        let again = std::mem::replace(&mut self.read_last, step == CephStep::ReadMap);
        let mut within = self.deadline.clone();
        match &step {
            CephStep::FailOver(daemon) => eprintln!("rbd-guardian: failing over {daemon}"),
            CephStep::ReadDaemons => {
                self.progress.say(|| "waiting for a standby elsewhere to become active".to_owned());
            }
            CephStep::ReadMap => {
                self.progress.say(|| "reading the osdmap back".to_owned());
                if again {
                    self.pause()?;
                }
            }
            CephStep::Barrier(..) => within = self.deadline.at_most(ROUND),
            CephStep::ReadClients => within = self.deadline.at_most(self.clients_within),
            CephStep::Add(_) | CephStep::Remove(_) => {}
        }
        let removed_client =
            matches!(&step, CephStep::Remove(entries) if entries.iter().any(|e| !e.is_host()));
        let progress = &mut |proofs: &[PoolProof]| self.progress.say(|| unproved(proofs));
        let outcome = self.storage.perform(step, &mut self.names, &within, progress);
        match &outcome {
            CephOutcome::Added(sent) if sent.iter().all(|(_, sent)| *sent == Sent::Acknowledged) => {
                self.deadline = self.context.deadline.clone();
            }
            // A short client entry that was removed is known to nobody until it stands again: neither Ctrl-C nor the
            // time ends the command in between.
            CephOutcome::Removed(_) if removed_client => {
                self.deadline = Deadline::after(REPLACE_WITHIN, Arc::default());
            }
            CephOutcome::Added(_)
            | CephOutcome::Removed(_)
            | CephOutcome::FailedOver(..)
            | CephOutcome::Daemons(_)
            | CephOutcome::Map(_)
            | CephOutcome::Proved(_)
            | CephOutcome::Clients(_) => {}
        }
        Ok(outcome)
    }

    fn pause(&self) -> Result<(), CliError> {
        Ok(self.deadline.pause(PACE)?)
    }

    fn wait_for_sources(&mut self) -> Result<(), CliError> {
        // Otherwise a monitor that answers late would never be heard.
        self.clients_within *= 2;
        self.progress.say(|| format!("not every client is known yet: {}", self.unread.join("; ")));
        self.pause()
    }

    /// A time-out tells what it waited for.
    fn why(&self, fault: CliError) -> CliError {
        if let (CliError::Late(late), false) = (&fault, self.unread.is_empty()) {
            return CliError::Unread { late: *late, unread: self.unread.join("; ") };
        }
        fault
    }
}
