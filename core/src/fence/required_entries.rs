//! Entries that must stand, and how to get there from what the blocklist holds, without a moment in which a
//! target may write.
//!
//! Adding an entry that exists changes nothing, whatever the reply says: the map keeps the earlier end
//! (`OSDMap::apply_incremental`, docs/facts/ceph.md#adding-an-entry-again-does-not-extend-it). A short entry is therefore removed and added again, and
//! meanwhile another key that names the same client holds it: its *cover*. No barrier is needed between these
//! steps, because a PG's map only moves forward: whichever epoch it has reached, one of the two keys is in it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::addr::{Entry, host_keys};
use crate::model::blocklist::Blocklist;
use crate::model::osdmap::{OsdMap, free_cover};
use crate::mutants::{self, Mutant};

/// The entries a fence or a release needs, each until at least a given time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedEntries {
    /// What must stand in the end.
    pub targets: BTreeSet<Entry>,
    /// An entry that ends before this is short.
    pub required_until: Timestamp,
    /// IPs all of whose clients may be refused for a moment, by a cover.
    coverable: BTreeSet<IpAddr>,
    /// Covers this run added, to be dropped when every target stands by itself.
    covers: BTreeSet<Entry>,
    /// What other fences rest on: it is not removed for good.
    #[serde(default)]
    pub kept: BTreeSet<Entry>,
}

impl WantedEntries {
    /// Nothing is sent yet.
    pub fn new(targets: BTreeSet<Entry>, coverable: BTreeSet<IpAddr>, required_until: Timestamp) -> Self {
        Self { targets, required_until, coverable, covers: BTreeSet::new(), kept: BTreeSet::new() }
    }

    /// Entries to be added now, all at once: absent targets, and a cover for each short one that has none.
    pub fn to_add(&mut self, map: &OsdMap) -> Vec<Entry> {
        let absent = self.targets.iter().copied().filter(|t| map.blocklist.until(*t).is_none());
        let mut add: BTreeSet<Entry> = absent.collect();
        if mutants::is(Mutant::AddedToExtend) {
            add.extend(self.targets.iter().copied().filter(|t| self.is_short(&map.blocklist, *t)));
            return add.into_iter().collect();
        }
        let short = self.targets.iter().copied().filter(|t| self.is_short(&map.blocklist, *t));
        let uncovered =
            short.filter(|t| !add.iter().any(|a| covers(*a, *t)) && !self.covered(&map.blocklist, *t));
        let allowed = uncovered.filter(|t| self.coverable.contains(&t.ip()));
        let needed: BTreeSet<Entry> = allowed.filter_map(|t| free_cover(map, t)).collect();
        self.covers.extend(needed.difference(&self.targets));
        add.extend(needed);
        add.into_iter().collect()
    }

    /// Short targets that may be removed, to be added again with a later end, because a cover holds.
    pub fn to_replace(&self, map: &OsdMap) -> Vec<Entry> {
        let replaceable = |t: &Entry| self.is_short(&map.blocklist, *t) && self.covered(&map.blocklist, *t);
        self.targets.iter().copied().filter(replaceable).collect()
    }

    /// A target that ends too soon and that nothing covers. If nothing is to be added, nothing can.
    pub fn uncovered(&self, map: &OsdMap) -> Option<Entry> {
        let bare = |t: &Entry| self.is_short(&map.blocklist, *t) && !self.covered(&map.blocklist, *t);
        self.targets.iter().copied().find(bare)
    }

    /// Did this run put it up as a cover?
    pub fn is_cover(&self, entry: Entry) -> bool {
        self.covers.contains(&entry)
    }

    /// Covers of this run that stand.
    pub fn standing_covers(&self, blocklist: &Blocklist) -> impl Iterator<Item = Entry> {
        self.covers.iter().copied().filter(|cover| blocklist.until(*cover).is_some())
    }

    /// Covers of this run that are no longer needed.
    pub fn to_drop(&self, map: &OsdMap) -> Vec<Entry> {
        if !self.targets.iter().all(|t| self.stands(&map.blocklist, *t)) {
            return Vec::new();
        }
        self.standing_covers(&map.blocklist).filter(|cover| !self.kept.contains(cover)).collect()
    }

    /// Is every target refused for long enough, by its own key or by a cover?
    pub fn held(&self, blocklist: &Blocklist) -> bool {
        self.targets.iter().all(|t| self.stands(blocklist, *t) || self.covered(blocklist, *t))
    }

    /// Was every target held by one and the same entry in both? If not, it may have been free in between: an
    /// entry that was removed and added again ends at another time.
    pub fn continuous(&self, before: &Blocklist, after: &Blocklist) -> bool {
        let same = |key: Entry| {
            let until = before.until(key);
            let is_same =
                until == after.until(key) || (mutants::is(Mutant::GapNotSeen) && after.until(key).is_some());
            is_same && until.is_some_and(|until| until >= self.required_until)
        };
        self.targets.iter().all(|t| keys(*t).into_iter().any(same))
    }

    fn stands(&self, blocklist: &Blocklist, entry: Entry) -> bool {
        let lasts = |until| until >= self.required_until || mutants::is(Mutant::EndNotRead);
        blocklist.until(entry).is_some_and(lasts)
    }

    fn is_short(&self, blocklist: &Blocklist, entry: Entry) -> bool {
        blocklist.until(entry).is_some() && !self.stands(blocklist, entry)
    }

    fn covered(&self, blocklist: &Blocklist, entry: Entry) -> bool {
        keys(entry).into_iter().any(|key| key != entry && self.stands(blocklist, key))
    }
}

fn covers(cover: Entry, entry: Entry) -> bool {
    cover != entry && keys(entry).contains(&cover)
}

/// Every key under which an OSD refuses what the entry names.
fn keys(entry: Entry) -> Vec<Entry> {
    let mut keys = host_keys(entry).to_vec();
    if !entry.is_host() {
        keys.push(entry);
    }
    keys
}
