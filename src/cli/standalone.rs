//! Performs what the machines ask for, until they are done or the time is over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rbd_guardian_core::fence::releasing::Release;
use rbd_guardian_core::fence::sealing::{Fence, Sent, State};
use rbd_guardian_core::model::barrier::PoolProof;
use rbd_guardian_core::model::osdmap::OsdMap;
use serde::Serialize;

use crate::ceph::barrier::Probes;
use crate::ceph::look::CLIENTS_WITHIN;
use crate::ceph::perform::{Outcome, Step, Storage, Unread};
use crate::cli::context::Context;
use crate::cli::error::Fault;
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
pub(super) fn fence(context: &Context, fence: &mut Fence) -> (Timings, Result<(), Fault>) {
    let mut drive = Drive::new(context);
    let began = clock::monotonic();
    let mut timings = Timings::default();
    while let Some(effect) = fence.next_effect() {
        let asked = clock::monotonic();
        let ended = drive.perform(Step::from(effect)).and_then(|outcome| match outcome {
            Outcome::FailedOver(daemon, sent) => {
                fence.handle_failed_over(&daemon, sent);
                Ok(())
            }
            Outcome::Daemons(all) => {
                fence.handle_daemons(&all?);
                drive.pause()
            }
            Outcome::Added(sent) => {
                fence.handle_added(sent);
                Ok(())
            }
            Outcome::Removed(sent) => {
                fence.handle_removed(sent);
                Ok(())
            }
            Outcome::Map(map) => {
                fence.handle_map(later(map)?.map(Arc::new));
                Ok(())
            }
            Outcome::Proved(proofs) => {
                timings.barrier += millis(asked);
                let complete = proofs.iter().all(PoolProof::is_complete);
                fence.handle_barrier(proofs);
                if complete { Ok(()) } else { drive.pause() }
            }
            // A fence asks for no clients.
            Outcome::Clients(_) => Ok(()),
        });
        if timings.commit == 0 && fence.committed().is_some() {
            timings.commit = millis(began);
        }
        if timings.total == 0 && fence.state() == State::Sealed {
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
pub(super) fn release(context: &Context, release: &mut Release) -> Result<(), Fault> {
    let mut drive = Drive::new(context);
    while let Some(effect) = release.next_effect() {
        let ended = drive.perform(Step::from(effect)).and_then(|outcome| match outcome {
            Outcome::Map(map) => {
                release.handle_map(later(map)?);
                Ok(())
            }
            Outcome::Clients(read) => {
                let (clients, unread) = read?;
                let complete = unread.is_empty();
                drive.unread = unread;
                release.handle_clients(complete.then_some(clients));
                if complete { Ok(()) } else { drive.wait_for_sources() }
            }
            Outcome::Added(sent) => {
                release.handle_added(sent);
                Ok(())
            }
            Outcome::Removed(sent) => {
                release.handle_removed(sent);
                Ok(())
            }
            // A release asks for none of these.
            Outcome::FailedOver(..) | Outcome::Daemons(_) | Outcome::Proved(_) => Ok(()),
        });
        if let Err(fault) = ended.and_then(|()| Ok(drive.deadline.left().map(|_| ())?)) {
            return if release.is_done() { Ok(()) } else { Err(drive.why(fault)) };
        }
    }
    Ok(())
}

/// `None` if the monitors did not answer: the machine asks again.
fn later(map: Result<OsdMap, Unread>) -> Result<Option<OsdMap>, Fault> {
    match map {
        Ok(map) => Ok(Some(map)),
        Err(Unread::Read(error)) if error.is_transient() => Ok(None),
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

struct Drive<'c> {
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

impl<'c> Drive<'c> {
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

    fn perform(&mut self, step: Step) -> Result<Outcome, Fault> {
        let again = std::mem::replace(&mut self.read_last, step == Step::ReadMap);
        let mut within = self.deadline.clone();
        match &step {
            Step::FailOver(daemon) => eprintln!("rbd-guardian: failing over {daemon}"),
            Step::ReadDaemons => {
                self.progress.say(|| "waiting for a standby elsewhere to become active".to_owned());
            }
            Step::ReadMap => {
                self.progress.say(|| "reading the osdmap back".to_owned());
                if again {
                    self.pause()?;
                }
            }
            Step::Barrier(..) => within = self.deadline.at_most(ROUND),
            Step::ReadClients => within = self.deadline.at_most(self.clients_within),
            Step::Add(_) | Step::Remove(_) => {}
        }
        let removed_client = matches!(&step, Step::Remove(entries) if entries.iter().any(|e| !e.is_host()));
        let progress = &mut |proofs: &[PoolProof]| self.progress.say(|| unproved(proofs));
        let outcome = self.storage.perform(step, &mut self.names, &within, progress);
        match &outcome {
            Outcome::Added(sent) if sent.iter().all(|(_, sent)| *sent == Sent::Acknowledged) => {
                self.deadline = self.context.deadline.clone();
            }
            // A short client entry that was removed is known to nobody until it stands again: neither Ctrl-C nor the
            // time ends the command in between.
            Outcome::Removed(_) if removed_client => {
                self.deadline = Deadline::after(REPLACE_WITHIN, Arc::default());
            }
            Outcome::Added(_)
            | Outcome::Removed(_)
            | Outcome::FailedOver(..)
            | Outcome::Daemons(_)
            | Outcome::Map(_)
            | Outcome::Proved(_)
            | Outcome::Clients(_) => {}
        }
        Ok(outcome)
    }

    fn pause(&self) -> Result<(), Fault> {
        Ok(self.deadline.pause(PACE)?)
    }

    fn wait_for_sources(&mut self) -> Result<(), Fault> {
        // One that answers late would never be heard.
        self.clients_within *= 2;
        self.progress.say(|| format!("not every client is known yet: {}", self.unread.join("; ")));
        self.pause()
    }

    /// A time-out tells what it waited for.
    fn why(&self, fault: Fault) -> Fault {
        if let (Fault::Late(late), false) = (&fault, self.unread.is_empty()) {
            return Fault::Unread { late: *late, unread: self.unread.join("; ") };
        }
        fault
    }
}
