//! Performs what the machines ask for, until they are done or the time is over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::context::Context;
use super::error::Fault;
use super::progress::Progress;
use crate::ceph::barrier::{ProbeNames, barrier};
use crate::ceph::blocklist::{self, Change, change};
use crate::ceph::look::CLIENTS_WITHIN;
use crate::ceph::{daemons, lane, look, osdmap};
use crate::clock;
use crate::deadline::Deadline;
use crate::domain::addr::{ClientAddr, Entry};
use crate::domain::barrier::PoolProof;
use crate::domain::fence::{Effect, Fence, Sent, State};
use crate::domain::map::OsdMap;
use crate::domain::release::{self, Release};
use crate::domain::world::Daemon;

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
    let mut names = ProbeNames::default();
    while let Some(effect) = fence.next_effect() {
        let ended = match effect {
            Effect::FailOver(daemon) => {
                drive.fail_over(&daemon).map(|sent| fence.handle_failed_over(&daemon, sent))
            }
            Effect::ReadDaemons => drive.daemons().map(|all| fence.handle_daemons(&all)),
            Effect::Add(entries) => {
                fence.handle_added(drive.add(&entries));
                Ok(())
            }
            Effect::Remove(entries) => {
                fence.handle_removed(drive.remove(&entries));
                Ok(())
            }
            Effect::ReadMap => drive.map().map(|map| fence.handle_map(map)),
            Effect::Barrier { pools } => {
                let asked = clock::monotonic();
                let progress = &mut |proofs: &[PoolProof]| drive.progress.say(|| unproved(proofs));
                let round = drive.deadline.at_most(ROUND);
                let proofs = barrier(&context.cluster, &pools, &mut names, &round, progress);
                timings.barrier += millis(asked);
                drive.read_last = false;
                let complete = proofs.iter().all(PoolProof::is_complete);
                fence.handle_barrier(proofs);
                if complete { Ok(()) } else { drive.deadline.pause(PACE).map_err(Fault::from) }
            }
        };
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
    use release::Effect;
    let mut drive = Drive::new(context);
    while let Some(effect) = release.next_effect() {
        let ended = match effect {
            Effect::ReadMap => drive.map().map(|map| release.handle_map(map)),
            Effect::ReadClients => drive.clients().map(|clients| release.handle_clients(clients)),
            Effect::Add(entries) => {
                release.handle_added(drive.add(&entries));
                Ok(())
            }
            Effect::Remove(entries) => {
                release.handle_removed(drive.remove(&entries));
                Ok(())
            }
        };
        if let Err(fault) = ended.and_then(|()| Ok(drive.deadline.left().map(|_| ())?)) {
            return if release.is_done() { Ok(()) } else { Err(drive.why(fault)) };
        }
    }
    Ok(())
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
    /// The command's, except between the removal of a short client entry and the moment it stands again.
    deadline: Deadline,
    progress: Progress,
    /// The last effect read the map, too: pace the next one.
    read_last: bool,
    /// What could not be read when clients were asked for last.
    unread: Vec<String>,
}

impl<'c> Drive<'c> {
    fn new(context: &'c Context) -> Self {
        let deadline = context.deadline.clone();
        Self { context, deadline, progress: Progress::new(), read_last: false, unread: Vec::new() }
    }

    fn fail_over(&mut self, daemon: &Daemon) -> Result<Sent, Fault> {
        eprintln!("rbd-guardian: failing over {daemon}");
        let command = format!("{} fail", daemon.kind);
        let (cluster, daemon) = (self.context.cluster.clone(), daemon.clone());
        let answer = lane::one(move || daemons::fail_over(&cluster, &daemon), &self.deadline)?;
        Ok(match answer {
            Ok(()) => Sent::Acknowledged,
            Err(error) => blocklist::sent(&error, &command),
        })
    }

    fn daemons(&mut self) -> Result<Vec<Daemon>, Fault> {
        self.progress.say(|| "waiting for a standby elsewhere to become active".to_owned());
        let all = self.context.read_within(&self.deadline, |cluster| {
            let mut all = daemons::mgrs(cluster)?;
            all.extend(daemons::mdss(cluster)?);
            Ok(all)
        })?;
        self.deadline.pause(PACE)?;
        Ok(all)
    }

    fn add(&mut self, entries: &[Entry]) -> Vec<(Entry, Sent)> {
        let seconds = self.context.config.policy.expire.as_secs_f64();
        self.read_last = false;
        let sent = change(&self.context.cluster, entries, Change::Add { seconds }, &self.deadline);
        if sent.iter().all(|(_, sent)| *sent == Sent::Acknowledged) {
            self.deadline = self.context.deadline.clone();
        }
        sent
    }

    /// A short client entry that was removed is known to nobody until it stands again: neither Ctrl-C nor the time
    /// ends the command in between.
    fn remove(&mut self, entries: &[Entry]) -> Vec<(Entry, Sent)> {
        self.read_last = false;
        let sent = change(&self.context.cluster, entries, Change::Remove, &self.deadline);
        if entries.iter().any(|entry| !entry.is_host()) {
            self.deadline = Deadline::after(REPLACE_WITHIN, Arc::default());
        }
        sent
    }

    /// `None` if the monitors did not answer: the machine asks again.
    fn map(&mut self) -> Result<Option<OsdMap>, Fault> {
        self.progress.say(|| "reading the osdmap back".to_owned());
        if std::mem::replace(&mut self.read_last, true) {
            self.deadline.pause(PACE)?;
        }
        match self.context.read_within(&self.deadline, osdmap::dump) {
            Ok(dump) => Ok(Some(dump.map)),
            Err(Fault::Read(error)) if error.is_transient() => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// `None` if a source did not answer: a client it knows must not be forgotten.
    fn clients(&mut self) -> Result<Option<BTreeSet<ClientAddr>>, Fault> {
        let guarded = self.context.config.policy.guarded.clone();
        let within = self.deadline.at_most(CLIENTS_WITHIN);
        let (clients, unread) = self.context.read_within(&self.deadline, move |cluster| {
            let (map, mons) = (osdmap::dump(cluster)?.map, daemons::mons(cluster)?);
            let (clients, unread) = look::clients(cluster, &mons.quorum, &guarded.pools(&map), &within);
            Ok((clients.into_keys().collect(), unread))
        })?;
        self.unread = unread;
        if self.unread.is_empty() {
            return Ok(Some(clients));
        }
        self.progress.say(|| format!("not every client is known yet: {}", self.unread.join("; ")));
        self.deadline.pause(PACE)?;
        Ok(None)
    }

    /// A time-out tells what it waited for.
    fn why(&self, fault: Fault) -> Fault {
        if let (Fault::Late(late), false) = (&fault, self.unread.is_empty()) {
            return Fault::Unread { late: *late, unread: self.unread.join("; ") };
        }
        fault
    }
}
