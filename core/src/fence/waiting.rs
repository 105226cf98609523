//! What a fence or a release waits for, as far as it knows itself.

use std::collections::BTreeSet;

use crate::fence::{Fence, FenceStage};
use crate::model::barrier::PoolProof;
use crate::model::record::FenceState;

/// How many of a kind are named.
const NAMED: usize = 4;

impl Fence {
    /// What its entries or its PGs wait for, and the same without what changes with each answer; `None` where every PG has
    /// answered.
    pub(crate) fn waits_for_storage(&self) -> Option<(String, String)> {
        let same = |what: &str| Some((what.to_owned(), what.to_owned()));
        let FenceStage::Fencing(fence) = &self.stage else { return None };
        if !fence.has_looked() {
            return same("an osdmap: the monitors have not answered yet");
        }
        let missing: Vec<String> = fence
            .entries()
            .filter(|(_, until)| until.is_none())
            .map(|(entry, _)| entry.to_string())
            .collect();
        if !missing.is_empty() || fence.committed().is_none() {
            let what = if missing.is_empty() { "its entries".to_owned() } else { some(&missing) };
            let about = "the monitors: no osdmap shows its entries for long enough yet".to_owned();
            return Some((format!("the monitors: no osdmap shows {what} for long enough yet"), about));
        }
        if fence.reads_paused() {
            return same("reads of the whole cluster are paused: ceph osd unpause");
        }
        let silent: Vec<&PoolProof> = fence.proofs().filter(|proof| !proof.is_complete()).collect();
        let pools = silent.iter().map(|proof| {
            let why = proof.trouble.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
            format!(
                "PGs of pool {} that do not answer: {}{why}",
                proof.pool.name,
                some(&proof.pending_names())
            )
        });
        let pools: Vec<String> = pools.collect();
        match &pools[..] {
            [] if fence.proofs().next().is_none() => same("the first answers of the PGs"),
            [] => None,
            _ => {
                let names: Vec<String> = silent.iter().map(|proof| proof.pool.name.clone()).collect();
                Some((pools.join("; "), format!("PGs that do not answer, of {}", names.join(", "))))
            }
        }
    }

    /// What its release waits for, once the gate is closed and the ledger has it, and the same without what changes with
    /// each answer.
    pub(crate) fn release_waits_for(&self, starting: Option<&BTreeSet<String>>) -> Option<(String, String)> {
        let same = |what: &str| Some((what.to_owned(), what.to_owned()));
        match &self.stage {
            FenceStage::Fencing(_) => {
                let Some(now) = starting else {
                    return same("Incus: its operations cannot be read, and one may start an instance");
                };
                let before = self.began_before.as_ref().unwrap_or(now);
                let left: Vec<String> = before.intersection(now).cloned().collect();
                let about = "operations that began before and may start an instance";
                (!left.is_empty()).then(|| (format!("{about}: {}", some(&left)), about.to_owned()))
            }
            FenceStage::Releasing(_) if self.record.state == FenceState::Released => None,
            FenceStage::Releasing(_) if !self.unread.is_empty() => {
                let about = "every client of the host";
                let what = format!("{about}, of which these may know more: {}", some(&self.unread));
                Some((what, about.to_owned()))
            }
            FenceStage::Releasing(_) => same("the monitors' answer to its last request"),
        }
    }

    /// Clients that are to be fenced as well as soon as what is on its way has ended.
    pub(crate) fn chases(&self) -> Vec<String> {
        self.to_chase.iter().map(ToString::to_string).collect()
    }
}

/// The first ones, and how many more there are.
pub(crate) fn some(all: &[String]) -> String {
    let first = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let more = all.len().saturating_sub(NAMED);
    if more == 0 { first } else { format!("{first} and {more} more") }
}
