//! Entries of the blocklist that no fence accounts for, and whose they are.

use std::cell::LazyCell;
use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::guardian::context::Ctx;
use crate::guardian::report::Alarm;
use crate::guardian::trigger::FenceTrigger;
use crate::model::addr::{ClientAddr, Entry};
use crate::model::image_users::ImageUse;
use crate::model::listed::Listed;
use crate::model::member::Member;
use crate::rules::entry_origin::{EntryOrigin, OtherEntry, others};

/// Those of the last map; `None` until they were told apart.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct ForeignEntries(Option<Vec<OtherEntry>>);

impl ForeignEntries {
    pub(super) fn all(&self) -> &[OtherEntry] {
        self.0.as_deref().unwrap_or_default()
    }

    pub(super) fn handle_map(&mut self) {
        self.0 = None;
    }

    /// Tells whose the entries are that no fence accounts for.
    pub(super) fn update(&mut self, ctx: Ctx<'_>) {
        let Some(map) = ctx.map().filter(|_| self.0.is_none()) else { return };
        let recorded: BTreeSet<Entry> =
            ctx.records.fences.values().flat_map(|fence| fence.entries.keys().copied()).collect();
        let ours = |entry: Entry| {
            recorded.contains(&entry) || ctx.fences.all().any(|fence| fence.accounts_for(entry))
        };
        let clock = map.clock(ctx.now.wall);
        let required = ctx.settings.policy.required_until(clock);
        self.0 = Some(others(&map.blocklist, ours, &ctx.addresses(), clock, required));
    }

    /// Entries that may refuse somebody who should not be: whole hosts that are members, or that look like a guardian's;
    /// and clients that look like a guardian's and are alive. What others add is theirs.
    pub(super) fn alarms(&self, ctx: Ctx<'_>, trigger: &FenceTrigger) -> Vec<Alarm> {
        // A network refuses members that no fence is held on, whoever else it refuses.
        let members = LazyCell::new(|| ctx.addresses());
        let refused = |range: &IpNet| {
            let hit = |member: &&Member| member.addresses.iter().any(|ip| range.contains(ip));
            members.0.iter().filter(hit).any(|member| ctx.fences.of(&member.name).is_none())
        };
        let swept = || ctx.ceph.uses().iter().flat_map(ImageUse::clients);
        let alive = LazyCell::new(|| swept().collect::<BTreeSet<ClientAddr>>());
        let orphaned = |other: &&OtherEntry| {
            let leftover = other.origin == EntryOrigin::Leftover;
            match other.entry.entry() {
                Some(Entry::Host(_) | Entry::HostRange(_)) => {
                    other.member.as_ref().map_or(leftover, |name| !trigger.wants_member(name))
                }
                Some(Entry::Client(client)) => leftover && alive.contains(&client),
                None => matches!(other.entry, Listed::Range(range) if refused(&range)),
            }
        };
        let alarm = |other: &OtherEntry| {
            let member = other.member.as_deref();
            let whom = member.unwrap_or("a host that is no member");
            let text =
                format!("{} refuses {whom}, and no fence is held on it ({})", other.entry, other.origin);
            let advice = vec![format!("if nobody needs it: {}", other.entry.removal())];
            Alarm::new("orphan-entry", member, text, advice)
        };
        self.all().iter().filter(orphaned).map(alarm).collect()
    }
}
