//! The barrier: one read operation per PG that carries an epoch in which the target is blocklisted.
//!
//! The operation waits in its PG until the PG has the sender's epoch (`PrimaryLogPG::do_request`,
//! docs/facts/ceph.md#where-an-entry-is-enforced), so an answer from the PG proves that the PG enforces that epoch, and a PG that cannot
//! answer is exactly one that might still take a stale write.
//!
//! A PG may need a minute for its answer. So what was asked stays asked when a call of [`barrier`] ends ([`Probes`]), and
//! what its answer proves counts for every later call that needs no newer epoch: the map of a PG only moves forward.
//! Operations on the guardian's own connection end after 15 s; those on its patient one do not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rbd_guardian_core::model::barrier::{PoolProof, PoolToProve};
use rbd_guardian_core::model::osdmap::PoolId;

use super::lane;
use crate::ceph::rados::cluster::Cluster;
use crate::ceph::rados::completion::Completed;
use crate::ceph::rados::errno::{BLOCKLISTED, ErrnoMeaning, meaning};
use crate::ceph::rados::ioctx::IoCtx;
use crate::deadline::Deadline;
use crate::{clock, descriptors};
use rbd_guardian_core::model::epoch::OsdEpoch;

/// Probes under way at once; the connection admits more (`objecter_inflight_ops`), so silent PGs never stop others.
const WINDOW: usize = 16_384;
/// Probes of one PG under way at once, on one connection: one of before, and one that carries the epoch needed now.
const OF_ONE: u8 = 2;

/// How long a probe that failed waits before it is sent again.
const RETRY: Duration = Duration::from_millis(100);
/// A PG that is silent for longer is asked on the patient connection as well.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long that connection is waited for before silent PGs are looked at again.
const CONNECT: Duration = Duration::from_secs(2);

/// Asks every PG of the pools and returns when all have answered to an operation that carried this epoch or a later one,
/// or at the deadline with those that have not. `progress` is told now and then what is still missing.
///
/// The caller has read a map of this epoch, and must read the map again before it believes the result: for a pool
/// deleted meanwhile the client makes up an ENOENT of its own, and PGs may have been split.
pub fn barrier(
    cluster: &Cluster,
    pools: &[PoolToProve],
    epoch: OsdEpoch,
    probes: &mut Probes,
    deadline: &Deadline,
    progress: &mut dyn FnMut(&[PoolProof]),
) -> Vec<PoolProof> {
    probes.belong_to(cluster);
    probes.note_answers();
    let began = clock::monotonic();
    let mut troubles = PoolTroubles::default();
    let mut patient = PatientConnection::NotAsked;
    let mut missing: usize = pools.iter().map(|pool| probes.pending(pool, epoch).len()).sum();
    if missing > 0 {
        match latest(cluster, deadline) {
            Ok(()) => probes.ask(cluster, pools, epoch, ProbeConnection::Own, &mut troubles),
            Err(why) => troubles.all = Some(why),
        }
    }
    while troubles.all.is_none() && missing > 0 {
        match deadline.at_most(RETRY).receive(&probes.answers) {
            Ok(Some(done)) => {
                missing -= usize::from(probes.take(&done, epoch, pools, &mut troubles));
                while let Ok(done) = probes.answers.try_recv() {
                    missing -= usize::from(probes.take(&done, epoch, pools, &mut troubles));
                }
            }
            Ok(None) => break,
            Err(_) if deadline.left().is_err() => break,
            Err(_) => {
                probes.ask(cluster, pools, epoch, ProbeConnection::Own, &mut troubles);
                if clock::monotonic().duration_since(began) > PATIENCE || probes.is_slow() {
                    patient = patient.go_on(cluster, deadline);
                    if let PatientConnection::There(other) = &patient {
                        probes.ask(other, pools, epoch, ProbeConnection::Patient, &mut troubles);
                    }
                }
                progress(&probes.proofs(pools, epoch, &troubles));
                continue;
            }
        }
        // Where not all fit at once.
        if probes.under_way < WINDOW / 2 && probes.left_out {
            probes.ask(cluster, pools, epoch, ProbeConnection::Own, &mut troubles);
        }
    }
    probes.proofs(pools, epoch, &troubles)
}

/// Gets the newest osdmap, whose epoch all probes will carry. May block without limit while there is no quorum.
fn latest(cluster: &Cluster, deadline: &Deadline) -> Result<(), String> {
    loop {
        let cluster = cluster.clone();
        match lane::one(move || cluster.wait_for_latest_osdmap(), deadline) {
            // An earlier attempt still waits for the monitors.
            Ok(Err(Errno::EBUSY)) if deadline.pause(RETRY).is_ok() => {}
            Ok(Err(Errno::EBUSY)) | Err(_) => {
                return Err("the monitors did not give the newest osdmap in time".to_owned());
            }
            Ok(got) => return got.map_err(trouble),
        }
    }
}

/// The connection whose operations are not given up, as far as one call of the barrier has come with it.
enum PatientConnection {
    NotAsked,
    There(Cluster),
    /// It cannot be had, or does not have the newest map: the next call tries again.
    Missing,
}

impl PatientConnection {
    fn go_on(self, cluster: &Cluster, deadline: &Deadline) -> Self {
        match self {
            Self::NotAsked => {}
            Self::There(_) | Self::Missing => return self,
        }
        let deadline = deadline.at_most(CONNECT);
        let cluster = cluster.clone();
        match lane::one(move || cluster.patient(), &deadline) {
            Ok(Ok(Some(patient))) if latest(&patient, &deadline).is_ok() => Self::There(patient),
            Ok(_) | Err(_) => Self::Missing,
        }
    }
}

/// Which connection a probe goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProbeConnection {
    Own,
    Patient,
}

/// Why PGs do not answer, where something else than silence is known.
#[derive(Debug, Default)]
struct PoolTroubles {
    all: Option<String>,
    pools: BTreeMap<PoolId, String>,
}

/// What was asked and what was answered, over all calls on one connection.
#[derive(Debug)]
pub struct Probes {
    cluster: Option<Cluster>,
    /// An object name for each PG, found by trying; the same serve as long as `pg_num` stays.
    names: BTreeMap<(PoolId, u32), Arc<Vec<String>>>,
    pools: BTreeMap<(PoolId, u32), AskedPg>,
    /// By tag: which PG, with which epoch, on which way, since when.
    sent: BTreeMap<u64, Probe>,
    next_tag: u64,
    under_way: usize,
    /// Some were not sent because enough are under way.
    left_out: bool,
    submit_to: Sender<Completed<()>>,
    answers: Receiver<Completed<()>>,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    pool: (PoolId, u32),
    pg: u32,
    epoch: OsdEpoch,
    way: ProbeConnection,
    since: Instant,
}

/// One pool with so many PGs.
#[derive(Debug, Default)]
struct AskedPg {
    own: Option<IoCtx>,
    patient: Option<IoCtx>,
    pgs: Vec<Pg>,
}

/// What is known of one PG.
#[derive(Debug, Clone, Copy, Default)]
struct Pg {
    /// It answered to an operation with this epoch.
    proved: OsdEpoch,
    /// The newest epoch that an operation under way carries, and how many are.
    own: (OsdEpoch, u8),
    patient: (OsdEpoch, u8),
}

impl Pg {
    fn on(&mut self, way: ProbeConnection) -> &mut (OsdEpoch, u8) {
        match way {
            ProbeConnection::Own => &mut self.own,
            ProbeConnection::Patient => &mut self.patient,
        }
    }
}

impl Default for Probes {
    fn default() -> Self {
        let (submit_to, answers) = channel();
        Self {
            cluster: None,
            names: BTreeMap::new(),
            pools: BTreeMap::new(),
            sent: BTreeMap::new(),
            next_tag: 0,
            under_way: 0,
            left_out: false,
            submit_to,
            answers,
        }
    }
}

impl Probes {
    /// Another connection may be to another cluster: nothing that was answered counts there.
    fn belong_to(&mut self, cluster: &Cluster) {
        if !self.cluster.as_ref().is_some_and(|known| known.is(cluster)) {
            *self = Self { cluster: Some(cluster.clone()), ..Self::default() };
        }
    }

    /// Answers that came since the last call.
    fn note_answers(&mut self) {
        let mut none = PoolTroubles::default();
        while let Ok(done) = self.answers.try_recv() {
            self.take(&done, OsdEpoch::default(), &[], &mut none);
        }
    }

    fn pending(&self, pool: &PoolToProve, epoch: OsdEpoch) -> BTreeSet<u32> {
        let asked = self.pools.get(&(pool.id, pool.pg_num));
        // An epoch of 0 would be proved by nothing.
        let proved = |pg: u32| {
            let known = asked.and_then(|asked| asked.pgs.get(usize::try_from(pg).ok()?));
            known.is_some_and(|known| known.proved >= epoch.max(OsdEpoch(1)))
        };
        (0..pool.pg_num).filter(|pg| !proved(*pg)).collect()
    }

    /// Is a probe under way that was sent long ago, by this call or one before?
    fn is_slow(&self) -> bool {
        let now = clock::monotonic();
        self.sent.values().any(|probe| now.duration_since(probe.since) > PATIENCE)
    }

    /// Sends a probe to each PG that is pending and has none under way that would prove it.
    fn ask(
        &mut self,
        cluster: &Cluster,
        pools: &[PoolToProve],
        epoch: OsdEpoch,
        way: ProbeConnection,
        troubles: &mut PoolTroubles,
    ) {
        self.left_out = false;
        // Of a pool that was split or merged the old number tells nothing any more.
        let stale = |key: &(PoolId, u32)| pools.iter().any(|pool| pool.id == key.0 && pool.pg_num != key.1);
        self.pools.retain(|key, _| !stale(key));
        self.names.retain(|key, _| !stale(key));
        for pool in pools {
            let pending = self.pending(pool, epoch);
            if pending.is_empty() {
                continue;
            }
            if let Err(errno) = self.ask_pool(cluster, pool, &pending, epoch, way)
                && way == ProbeConnection::Own
            {
                troubles.pools.insert(pool.id, trouble(errno));
            }
        }
    }

    fn ask_pool(
        &mut self,
        cluster: &Cluster,
        pool: &PoolToProve,
        pending: &BTreeSet<u32>,
        epoch: OsdEpoch,
        way: ProbeConnection,
    ) -> Result<(), Errno> {
        let key = (pool.id, pool.pg_num);
        let asked = self.pools.entry(key).or_default();
        asked.pgs.resize(usize::try_from(pool.pg_num).unwrap_or(usize::MAX), Pg::default());
        let io = match way {
            ProbeConnection::Own => &mut asked.own,
            ProbeConnection::Patient => &mut asked.patient,
        };
        let io = match io {
            Some(io) => io,
            None => io.insert(IoCtx::open(cluster, pool.id)?),
        };
        let names = match self.names.get(&key) {
            Some(names) => Arc::clone(names),
            None => {
                let found = Arc::new(find_names(pool.pg_num, |name| io.pg_of(name))?);
                self.names.insert(key, Arc::clone(&found));
                found
            }
        };
        for pg in pending {
            let Some((name, known)) =
                usize::try_from(*pg).ok().and_then(|at| Some((names.get(at)?, asked.pgs.get_mut(at)?)))
            else {
                continue;
            };
            let (newest, count) = known.on(way);
            if (*count > 0 && *newest >= epoch) || *count >= OF_ONE {
                continue;
            }
            if self.under_way >= WINDOW && way == ProbeConnection::Own {
                self.left_out = true;
                break;
            }
            let tag = self.next_tag;
            io.stat(name, tag, &self.submit_to)?;
            (*newest, *count) = (epoch, *count + 1);
            self.sent.insert(tag, Probe { pool: key, pg: *pg, epoch, way, since: clock::monotonic() });
            self.next_tag += 1;
            self.under_way += usize::from(way == ProbeConnection::Own);
        }
        Ok(())
    }

    /// Does it prove, for the first time, what these pools are to be proved for?
    fn take(
        &mut self,
        done: &Completed<()>,
        epoch: OsdEpoch,
        pools: &[PoolToProve],
        troubles: &mut PoolTroubles,
    ) -> bool {
        let Some(probe) = self.sent.remove(&done.tag) else { return false };
        self.under_way -= usize::from(probe.way == ProbeConnection::Own);
        let known = self.pools.get_mut(&probe.pool);
        // `None`: the pool was split since.
        let Some(known) = known.and_then(|asked| asked.pgs.get_mut(usize::try_from(probe.pg).ok()?)) else {
            return false;
        };
        known.on(probe.way).1 -= 1;
        match done.result {
            Ok(()) | Err(Errno::ENOENT) => {
                let before = known.proved;
                known.proved = before.max(probe.epoch.max(OsdEpoch(1)));
                let counts = before < epoch.max(OsdEpoch(1)) && known.proved >= epoch.max(OsdEpoch(1));
                counts && pools.iter().any(|pool| (pool.id, pool.pg_num) == probe.pool)
            }
            Err(errno) => {
                troubles.pools.insert(probe.pool.0, trouble(errno));
                false
            }
        }
    }

    fn proofs(&self, pools: &[PoolToProve], epoch: OsdEpoch, troubles: &PoolTroubles) -> Vec<PoolProof> {
        let exhausted = descriptors::exhausted();
        let proof = |pool: &PoolToProve| {
            let pending = self.pending(pool, epoch);
            let why = || {
                let known = troubles.all.as_ref().or_else(|| troubles.pools.get(&pool.id));
                exhausted.clone().or_else(|| known.cloned())
            };
            let trouble = if pending.is_empty() { None } else { why() };
            PoolProof { pool: pool.clone(), pending, trouble }
        };
        pools.iter().map(proof).collect()
    }
}

/// Why something else than an answer of the PG came back.
fn trouble(errno: Errno) -> String {
    match meaning(errno) {
        ErrnoMeaning::MadeUp => {
            "the pool has the eio flag: clients do not ask its PGs, so nothing can be proved".to_owned()
        }
        ErrnoMeaning::Denied => {
            "the key lacks osd `allow r object_prefix rbd-guardian.` (deploy/ceph)".to_owned()
        }
        ErrnoMeaning::Blocklisted => BLOCKLISTED.to_owned(),
        ErrnoMeaning::Silence => "no answer".to_owned(),
        ErrnoMeaning::Rejected | ErrnoMeaning::Other => errno.to_string(),
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
}
