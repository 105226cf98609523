//! The barrier: one read operation per PG that carries an epoch in which the target is blocklisted.
//!
//! The operation waits in its PG until the PG has the sender's epoch (`PrimaryLogPG::do_request`,
//! facts/ceph.md §2.2), so an answer from the PG proves that the PG enforces that epoch, and a PG that cannot
//! answer is exactly one that might still take a stale write.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::errno::Errno;

use super::cluster::Cluster;
use super::completion::Done;
use super::errno::{BLOCKLISTED, Meaning, meaning};
use super::ioctx::IoCtx;
use super::lane;
use crate::deadline::Deadline;
use crate::domain::barrier::{PoolProof, PoolToProve};
use crate::domain::map::PoolId;

/// Probes under way at once; the connection admits more (`objecter_inflight_ops`), so silent PGs never stop others.
const WINDOW: usize = 16_384;

/// How long a probe that failed waits before it is sent again.
const RETRY: Duration = Duration::from_millis(100);

/// Asks every PG of the pools and returns when all have answered, or at the deadline with those that have not.
/// `progress` is told now and then what is still missing.
///
/// The caller must read the map again before it believes the result: for a pool deleted meanwhile the client
/// makes up an ENOENT of its own, and PGs may have been split.
pub fn barrier(
    cluster: &Cluster,
    pools: &[PoolToProve],
    names: &mut ProbeNames,
    deadline: &Deadline,
    progress: &mut dyn FnMut(&[PoolProof]),
) -> Vec<PoolProof> {
    let mut proofs: Vec<PoolProof> = pools.iter().map(unproved).collect();
    let handles = match open(cluster, pools, deadline) {
        Ok(handles) => handles,
        Err(why) => {
            proofs.iter_mut().for_each(|proof| proof.trouble = Some(why.clone()));
            return proofs;
        }
    };
    let mut run = Run::new(handles, &mut proofs, names);
    while run.has_pending() {
        run.submit();
        let slice = deadline.at_most(RETRY);
        match slice.receive(&run.answers) {
            Ok(Some(done)) => run.take(&done),
            Ok(None) => break,
            Err(_) => {
                if deadline.left().is_err() {
                    break;
                }
                run.requeue_failed();
                progress(run.proofs);
            }
        }
    }
    proofs
}

/// Gets the newest osdmap, whose epoch all probes will carry, and then a handle of each pool. Both may block without
/// limit while there is no quorum.
fn open(
    cluster: &Cluster,
    pools: &[PoolToProve],
    deadline: &Deadline,
) -> Result<Vec<Result<IoCtx, Errno>>, String> {
    let (cluster, ids) = (cluster.clone(), pools.iter().map(|pool| pool.id).collect::<Vec<_>>());
    let open = move || {
        cluster.wait_for_latest_osdmap()?;
        Ok(ids.into_iter().map(|id| cluster.pool(id)).collect())
    };
    match lane::one(open, deadline) {
        Ok(handles) => handles.map_err(trouble),
        Err(_) => Err("the monitors did not give the newest osdmap in time".to_owned()),
    }
}

fn unproved(pool: &PoolToProve) -> PoolProof {
    PoolProof { pool: pool.clone(), pending: (0..pool.pg_num).collect(), trouble: None }
}

struct Run<'a> {
    proofs: &'a mut [PoolProof],
    handles: Vec<Option<(IoCtx, Vec<String>)>>,
    to_send: Vec<(usize, u32)>,
    failed: Vec<(usize, u32)>,
    under_way: usize,
    submit_to: Sender<Done<()>>,
    answers: Receiver<Done<()>>,
}

impl<'a> Run<'a> {
    fn new(opened: Vec<Result<IoCtx, Errno>>, proofs: &'a mut [PoolProof], names: &mut ProbeNames) -> Self {
        let (submit_to, answers) = channel();
        let mut handles = Vec::new();
        let mut to_send = Vec::new();
        for (index, (io, proof)) in opened.into_iter().zip(proofs.iter_mut()).enumerate() {
            let handle = io.and_then(|io| {
                let names = names.of(&io, &proof.pool)?;
                Ok((io, names))
            });
            match &handle {
                Ok(_) => to_send.extend((0..proof.pool.pg_num).map(|pg| (index, pg))),
                Err(errno) => proof.trouble = Some(trouble(*errno)),
            }
            handles.push(handle.ok());
        }
        to_send.reverse();
        Self { proofs, handles, to_send, failed: Vec::new(), under_way: 0, submit_to, answers }
    }

    /// Pools that could not be opened stay pending, but nothing is to be waited for.
    fn has_pending(&self) -> bool {
        self.under_way + self.to_send.len() + self.failed.len() > 0
    }

    fn submit(&mut self) {
        while self.under_way < WINDOW {
            let Some((index, pg)) = self.to_send.pop() else {
                return;
            };
            let Some((io, names)) = &self.handles[index] else {
                continue;
            };
            let name = usize::try_from(pg).ok().and_then(|pg| names.get(pg));
            let sent = name.map_or(Err(Errno::EINVAL), |name| io.stat(name, tag(index, pg), &self.submit_to));
            match sent {
                Ok(()) => self.under_way += 1,
                Err(errno) => self.fail(index, pg, errno),
            }
        }
    }

    fn take(&mut self, done: &Done<()>) {
        self.under_way -= 1;
        let (index, pg) = untag(done.tag);
        match done.result {
            Ok(()) | Err(Errno::ENOENT) => {
                self.proofs[index].pending.remove(&pg);
                if self.proofs[index].pending.is_empty() {
                    self.proofs[index].trouble = None;
                }
            }
            Err(errno) => self.fail(index, pg, errno),
        }
    }

    fn fail(&mut self, index: usize, pg: u32, errno: Errno) {
        self.proofs[index].trouble = Some(trouble(errno));
        self.failed.push((index, pg));
    }

    fn requeue_failed(&mut self) {
        self.to_send.append(&mut self.failed);
    }
}

/// Why something else than an answer of the PG came back.
fn trouble(errno: Errno) -> String {
    match meaning(errno) {
        Meaning::MadeUp => "the pool has the eio flag: its PGs are not asked at all".to_owned(),
        Meaning::Denied => "the key lacks osd `allow r object_prefix rbd-guardian.` (deploy/ceph)".to_owned(),
        Meaning::Blocklisted => BLOCKLISTED.to_owned(),
        Meaning::Silence => "no answer".to_owned(),
        Meaning::Rejected | Meaning::Other => errno.to_string(),
    }
}

fn tag(index: usize, pg: u32) -> u64 {
    (u64::try_from(index).unwrap_or(u64::MAX) << u32::BITS) | u64::from(pg)
}

#[allow(clippy::cast_possible_truncation)] // Both halves were made by `tag` from values that fit.
fn untag(tag: u64) -> (usize, u32) {
    ((tag >> u32::BITS) as usize, tag as u32)
}

/// An object name for each PG of a pool, found by trying; the same names serve as long as `pg_num` stays.
#[derive(Debug, Default)]
pub struct ProbeNames(BTreeMap<(PoolId, u32), Vec<String>>);

impl ProbeNames {
    fn of(&mut self, io: &IoCtx, pool: &PoolToProve) -> Result<Vec<String>, Errno> {
        match self.0.entry((pool.id, pool.pg_num)) {
            Entry::Occupied(known) => Ok(known.get().clone()),
            Entry::Vacant(new) => Ok(new.insert(find_names(pool.pg_num, |name| io.pg_of(name))?).clone()),
        }
    }
}

/// Tries names until each PG has one. With random placement n PGs need about n·ln n names; a map in which the
/// pool has another number of PGs by now never yields some of them, so the number of tries is bounded.
fn find_names(pg_num: u32, mut pg_of: impl FnMut(&str) -> Result<u32, Errno>) -> Result<Vec<String>, Errno> {
    let mut names: BTreeMap<u32, String> = BTreeMap::new();
    let mut missing: BTreeSet<u32> = (0..pg_num).collect();
    let tries = 1000 + 40 * u64::from(pg_num);
    for attempt in 0..tries {
        if missing.is_empty() {
            break;
        }
        let name = format!("rbd-guardian.probe.{attempt:x}");
        let pg = pg_of(&name)?;
        if missing.remove(&pg) {
            names.insert(pg, name);
        }
    }
    if missing.is_empty() { Ok(names.into_values().collect()) } else { Err(Errno::EAGAIN) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_name_for_each_pg() {
        let hash = |name: &str| Ok(crc32fast::hash(name.as_bytes()) % 256);
        let names = find_names(256, hash).unwrap();
        for (pg, name) in names.iter().enumerate() {
            assert_eq!(hash(name), Ok(u32::try_from(pg).unwrap()));
        }
    }

    #[test]
    fn gives_up_on_a_pg_that_no_name_reaches() {
        assert_eq!(find_names(8, |name| Ok(crc32fast::hash(name.as_bytes()) % 4)), Err(Errno::EAGAIN));
    }

    #[test]
    fn tags_carry_pool_and_pg() {
        assert_eq!(untag(tag(3, 0xffff_fffe)), (3, 0xffff_fffe));
    }
}
