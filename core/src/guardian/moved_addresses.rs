//! Whether an address of a member that is to be fenced is a live member's by now (INV-6).
//!
//! Addresses move: a floating one goes to another member at the very moment at which its own is lost, and interfaces are
//! read every few minutes, or every 20 s while a member is lost. So once a fence has a plan with a host entry, every member
//! that is online is asked for its interfaces, and the fence is planned again by their answers before its intent is
//! recorded. One that does not answer in its time holds no fence up: its addresses stay as they were known.

use std::time::Duration;

use crate::guardian::Guardian;
use crate::guardian::pace::Lane;
use crate::guardian::wants::FenceCandidate;
use crate::model::incus_snapshot::MemberStatus;

/// Whoever has not told its interfaces for so long is not waited for.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

impl Guardian {
    /// Since when a fence that is wanted waits for the interfaces of live members; of several the last.
    pub(super) fn interfaces_awaited(&self) -> Option<Duration> {
        self.wants.values().filter_map(FenceCandidate::planned).max()
    }

    /// The members that are to tell their interfaces, as asked since then, and have time left. One that could not tell them
    /// a moment ago rests, and without a reading of Incus nobody can be asked.
    pub(super) fn not_told_since(&self, since: Duration) -> Vec<&str> {
        let in_time = self.now.boot.saturating_sub(since) < TOLD_WITHIN;
        let view = self.view.as_ref().filter(|_| in_time && self.settings.platform && self.view_is_fresh());
        let members = view.into_iter().flat_map(|view| &view.members);
        let online = members.filter(|(_, member)| member.status == MemberStatus::Online);
        let told = |name: &str| {
            let lane = Lane::Networks(name.to_owned());
            let read = self.networks_read.get(name).is_some_and(|read| *read >= since);
            self.rests(&lane) || (read && !self.busy.contains_key(&lane))
        };
        online.map(|(name, _)| name.as_str()).filter(|name| !told(name)).collect()
    }
}
