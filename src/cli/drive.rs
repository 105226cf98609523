//! Performs what the machines ask for, until they are done or the time is over.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::context::Context;
use super::error::Fault;
use super::progress::Progress;
use crate::ceph::barrier::{ProbeNames, barrier};
use crate::ceph::blocklist::{self, Change, change};
use crate::ceph::{daemons, lane, look, osdmap, watchers};
use crate::clock;
use crate::deadline::Late;
use crate::domain::addr::{ClientAddr, Entry};
use crate::domain::barrier::PoolProof;
use crate::domain::fence::{Effect, Fence, Sent, State};
use crate::domain::map::OsdMap;
use crate::domain::release::{self, Release};
use crate::domain::world::{Clients, Daemon};

/// Between two looks at something that changes by itself.
const PACE: Duration = Duration::from_millis(100);

/// How long silent PGs are waited for before the map is read again: pools come and go, and entries must still stand.
const ROUND: Duration = Duration::from_secs(5);

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

/// Drives a fence. `Err` is a time-out or Ctrl-C: the fence tells how far it came.
pub(super) fn fence(context: &Context, fence: &mut Fence) -> Result<(Timings, Result<(), Late>), Fault> {
    let mut drive = Drive::new(context);
    let began = clock::monotonic();
    let mut timings = Timings::default();
    let mut names = ProbeNames::default();
    while let Some(effect) = fence.next_effect() {
        let ended = match effect {
            Effect::FailOver(daemon) => {
                drive.fail_over(&daemon).map(|sent| fence.handle_failed_over(&daemon, sent))
            }
            Effect::ReadDaemons => drive.daemons()?.map(|all| fence.handle_daemons(&all)),
            Effect::Add(entries) => {
                fence.handle_added(drive.add(&entries));
                Ok(())
            }
            Effect::Remove(entries) => {
                fence.handle_removed(drive.remove(&entries));
                Ok(())
            }
            Effect::ReadMap => drive.map()?.map(|map| fence.handle_map(map)),
            Effect::Barrier { pools, .. } => {
                let asked = clock::monotonic();
                let progress = &mut |proofs: &[PoolProof]| drive.progress.say(|| unproved(proofs));
                let round = context.deadline.at_most(ROUND);
                let proofs = barrier(&context.cluster, &pools, &mut names, &round, progress);
                let proofs = proofs.unwrap_or_default();
                timings.barrier += millis(asked);
                let complete = proofs.iter().all(PoolProof::is_complete);
                fence.handle_barrier(proofs);
                if complete { Ok(()) } else { context.deadline.pause(PACE) }
            }
        };
        if timings.commit == 0 && fence.committed().is_some() {
            timings.commit = millis(began);
        }
        if timings.total == 0 && fence.state() == State::Sealed {
            timings.total = millis(began);
        }
        if let Err(late) = ended.and_then(|()| context.deadline.left().map(|_| ())) {
            timings.total = millis(began);
            return Ok((timings, if fence.is_done() { Ok(()) } else { Err(late) }));
        }
    }
    Ok((timings, Ok(())))
}

/// Drives a release.
pub(super) fn release(context: &Context, release: &mut Release) -> Result<Result<(), Late>, Fault> {
    use release::Effect;
    let mut drive = Drive::new(context);
    while let Some(effect) = release.next_effect() {
        let ended = match effect {
            Effect::ReadMap => drive.map()?.map(|map| release.handle_map(map)),
            Effect::ReadClients => drive.clients()?.map(|clients| release.handle_clients(clients)),
            Effect::Add(entries) => {
                release.handle_added(drive.add(&entries));
                Ok(())
            }
            Effect::Remove(entries) => {
                release.handle_removed(drive.remove(&entries));
                Ok(())
            }
        };
        if let Err(late) = ended.and_then(|()| context.deadline.left().map(|_| ())) {
            return Ok(if release.is_done() { Ok(()) } else { Err(late) });
        }
    }
    Ok(Ok(()))
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
    progress: Progress,
}

impl<'c> Drive<'c> {
    fn new(context: &'c Context) -> Self {
        Self { context, progress: Progress::new() }
    }

    fn fail_over(&mut self, daemon: &Daemon) -> Result<Sent, Late> {
        eprintln!("rbd-guardian: failing over {daemon}");
        let command = format!("{} fail", daemon.kind);
        let (cluster, daemon) = (self.context.cluster.clone(), daemon.clone());
        let answer = lane::one(move || daemons::fail_over(&cluster, &daemon), &self.context.deadline)?;
        Ok(match answer {
            Ok(()) => Sent::Acknowledged,
            Err(error) => blocklist::sent(&error, &command),
        })
    }

    fn daemons(&mut self) -> Result<Result<Vec<Daemon>, Late>, Fault> {
        self.progress.say(|| "waiting for a standby elsewhere to become active".to_owned());
        let read = self.context.read(|cluster| {
            let mut all = daemons::mgrs(cluster)?;
            all.extend(daemons::mdss(cluster)?);
            Ok(all)
        });
        match read {
            Ok(all) => Ok(self.context.deadline.pause(PACE).map(|()| all)),
            Err(Fault::Late(late)) => Ok(Err(late)),
            Err(fault) => Err(fault),
        }
    }

    fn add(&self, entries: &[Entry]) -> Vec<(Entry, Sent)> {
        let seconds = self.context.config.policy.expire.as_secs_f64();
        change(&self.context.cluster, entries, Change::Add { seconds }, &self.context.deadline)
    }

    fn remove(&self, entries: &[Entry]) -> Vec<(Entry, Sent)> {
        change(&self.context.cluster, entries, Change::Remove, &self.context.deadline)
    }

    /// `None` if the monitors did not answer: the machine asks again.
    fn map(&mut self) -> Result<Result<Option<OsdMap>, Late>, Fault> {
        self.progress.say(|| "reading the osdmap back".to_owned());
        match self.context.read(osdmap::dump) {
            Ok(dump) => Ok(Ok(Some(dump.map))),
            Err(Fault::Late(late)) => Ok(Err(late)),
            Err(Fault::Read(error)) if error.is_transient() => {
                Ok(self.context.deadline.pause(PACE).map(|()| None))
            }
            Err(fault) => Err(fault),
        }
    }

    /// `None` if a source did not answer: a client it knows must not be forgotten.
    fn clients(&mut self) -> Result<Result<Option<BTreeSet<ClientAddr>>, Late>, Fault> {
        let (guarded, deadline) = (self.context.config.policy.guarded.clone(), self.context.deadline.clone());
        let read = self.context.read(move |cluster| {
            let (map, mons) = (osdmap::dump(cluster)?.map, daemons::mons(cluster)?);
            let mut clients = Clients::new();
            let mut unread = look::clients_of_mons(cluster, &mons.quorum, &deadline, &mut clients);
            let scope = watchers::Scope::of(&guarded.pools(&map));
            unread.extend(watchers::sweep(cluster, &scope, &deadline, &mut |image| {
                look::note(&image, &mut clients)
            }));
            Ok((clients.into_keys().collect(), unread))
        });
        match read {
            Ok((clients, unread)) if unread.is_empty() => Ok(Ok(Some(clients))),
            Ok((_, unread)) => {
                self.progress.say(|| format!("not every client is known yet: {}", unread.join("; ")));
                Ok(self.context.deadline.pause(PACE).map(|()| None))
            }
            Err(Fault::Late(late)) => Ok(Err(late)),
            Err(fault) => Err(fault),
        }
    }
}
