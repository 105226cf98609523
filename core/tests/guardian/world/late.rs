//! PGs that answer late: each has the map of before until it has answered an operation that carried a newer one.

use std::time::Duration;

use rbd_guardian_core::model::barrier::{PoolProof, PoolToProve};
use rbd_guardian_core::model::epoch::OsdEpoch;
use rbd_guardian_core::model::osdmap::PoolId;

use super::state::World;

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct LatePg {
    /// How long each of its answers takes.
    delay: Duration,
    /// The map it had when it became slow.
    epoch: OsdEpoch,
    /// The operations it was sent: when, and with which epoch.
    asked: Vec<(Duration, OsdEpoch)>,
}

impl LatePg {
    /// The map it has at this time.
    fn epoch(&self, now: Duration) -> OsdEpoch {
        self.told(now).max(self.epoch)
    }

    /// The newest that it has told anybody.
    fn told(&self, now: Duration) -> OsdEpoch {
        let answered = self.asked.iter().filter(|(at, _)| *at + self.delay <= now);
        answered.map(|(_, epoch)| *epoch).max().unwrap_or_default()
    }

    /// When it will have answered an operation of this epoch; asked now where it was not before.
    fn answers(&mut self, epoch: OsdEpoch, now: Duration) -> Duration {
        if !self.asked.iter().any(|(_, asked)| *asked >= epoch) {
            self.asked.push((now, epoch));
        }
        let known = self.asked.iter().filter(|(_, asked)| *asked >= epoch);
        known.map(|(at, _)| *at + self.delay).min().unwrap_or(now)
    }
}

impl World {
    /// A PG becomes slow, unless it answers nobody.
    pub(crate) fn slows(&mut self, pool: PoolId, pg: u32, delay: Duration) {
        if self.stuck.contains_key(&(pool, pg)) {
            return;
        }
        let (epoch, asked) = (self.map().epoch, Vec::new());
        self.late_pgs.entry((pool, pg)).or_insert(LatePg { delay, epoch, asked });
    }

    /// A PG answers nobody any more, and keeps the map that it has.
    pub(crate) fn sticks(&mut self, pool: PoolId, pg: u32) {
        let late = self.late_pgs.remove(&(pool, pg)).map(|late| late.epoch(self.boot));
        let epoch = late.unwrap_or(self.map().epoch);
        self.stuck.entry((pool, pg)).or_insert(epoch);
    }

    /// PGs that do not have the newest map, and which they have.
    pub(crate) fn behind(&self) -> impl Iterator<Item = ((PoolId, u32), OsdEpoch)> {
        let late = self.late_pgs.iter().map(|(pg, late)| (*pg, late.epoch(self.boot)));
        self.stuck.iter().map(|(pg, epoch)| (*pg, *epoch)).chain(late)
    }

    /// Asks PGs with this epoch and waits at most so long: what is proved then, and when that is.
    pub(crate) fn asks_pgs(
        &mut self,
        pools: Vec<PoolToProve>,
        epoch: OsdEpoch,
        within: Duration,
    ) -> (Duration, Vec<PoolProof>) {
        let now = self.boot;
        let mut after = self.faults.lag;
        let mut proofs = Vec::new();
        for pool in pools {
            let mut pending: Vec<u32> =
                self.stuck.keys().filter(|(id, _)| *id == pool.id).map(|(_, pg)| *pg).collect();
            let late = self.late_pgs.iter_mut().filter(|((id, pg), _)| *id == pool.id && *pg < pool.pg_num);
            for ((id, pg), late) in late {
                let takes = late.answers(epoch, now).saturating_sub(now);
                if takes > within {
                    pending.push(*pg);
                    let told = late.told(now);
                    self.told.entry((*id, *pg)).and_modify(|epoch| *epoch = told.max(*epoch)).or_insert(told);
                } else {
                    after = after.max(takes);
                }
            }
            for pg in (0..pool.pg_num).filter(|pg| !pending.contains(pg)) {
                let told = self.told.entry((pool.id, pg)).or_default();
                *told = epoch.max(*told);
            }
            proofs.push(PoolProof { pending: pending.into_iter().collect(), pool, trouble: None });
        }
        let all = proofs.iter().all(PoolProof::is_complete);
        (if all { after } else { within }, proofs)
    }
}
