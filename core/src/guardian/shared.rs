//! Steps that serve many fences at once: reading the map, and the barrier.
//!
//! What one of them finds holds for every fence that asked before it began. So one of a kind is on its way at a time,
//! whoever asks meanwhile waits for the next, and a guardian that takes over hundreds of fences proves them all with one
//! barrier.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::fence::step::Step;
use crate::guardian::io::Effect;
use crate::model::barrier::{PoolProof, PoolToProve};
use crate::model::epoch::OsdEpoch;
use crate::model::fence_id::FenceId;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct SharedSteps {
    map: SharedStep,
    barrier: SharedStep,
}

/// One kind: who is served by the step that is on its way, and who waits; each with what it asks for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct SharedStep {
    served: BTreeMap<FenceId, Effect>,
    waiting: BTreeMap<FenceId, Effect>,
}

impl SharedSteps {
    /// Lets an effect wait for the turn of its kind; gives back one that serves nobody else.
    pub(super) fn join(&mut self, effect: Effect) -> Option<Effect> {
        if let Effect::Fence(id, Step::ReadMap) | Effect::Release(id, Step::ReadMap) = &effect {
            self.map.waiting.insert(id.clone(), effect);
        } else if let Effect::Fence(id, Step::Barrier { .. }) = &effect {
            self.barrier.waiting.insert(id.clone(), effect);
        } else {
            return Some(effect);
        }
        None
    }

    /// The next step, for all who wait for it, unless one of its kind is on its way or rests.
    pub(super) fn next(&mut self, map: bool, barrier: bool) -> Option<Effect> {
        if let Some((_, effect)) = map.then(|| self.map.begin()).flatten() {
            return Some(effect);
        }
        let (id, _) = barrier.then(|| self.barrier.begin()).flatten()?;
        let mut pools: Vec<PoolToProve> = Vec::new();
        for pool in self.barrier.served.values().flat_map(pools_of) {
            if !pools.contains(pool) {
                pools.push(pool.clone());
            }
        }
        // Whose entries stand since the latest epoch needs it of every PG; for the others it is as good.
        let epoch = self.barrier.served.values().map(epoch_of).max().unwrap_or_default();
        Some(Effect::Fence(id, Step::Barrier { pools, epoch }))
    }

    /// A map was read: for whom.
    pub(super) fn map_read(&mut self) -> impl Iterator<Item = FenceId> + use<> {
        std::mem::take(&mut self.map.served).into_keys()
    }

    /// PGs were asked: for whom, and what that tells of the pools each asked for.
    pub(super) fn proved(&mut self, proofs: &[PoolProof]) -> Vec<(FenceId, Vec<PoolProof>)> {
        let served = std::mem::take(&mut self.barrier.served).into_iter();
        let of = |effect: &Effect| {
            let asked = |proof: &&PoolProof| pools_of(effect).contains(&proof.pool);
            proofs.iter().filter(asked).cloned().collect()
        };
        served.map(|(id, effect)| (id, of(&effect))).collect()
    }
}

impl SharedStep {
    fn begin(&mut self) -> Option<(FenceId, Effect)> {
        if !self.served.is_empty() {
            return None;
        }
        self.served = std::mem::take(&mut self.waiting);
        self.served.first_key_value().map(|(id, effect)| (id.clone(), effect.clone()))
    }
}

fn pools_of(effect: &Effect) -> &[PoolToProve] {
    if let Effect::Fence(_, Step::Barrier { pools, .. }) = effect { pools } else { &[] }
}

fn epoch_of(effect: &Effect) -> OsdEpoch {
    if let Effect::Fence(_, Step::Barrier { epoch, .. }) = effect { *epoch } else { OsdEpoch::default() }
}
