//! Whose an entry of the blocklist is. Other tools and the storage itself add entries too; their form and how long
//! they stand give most of them away (docs/facts/ceph.md#who-else-adds-entries).

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::model::addr::Entry;
use crate::model::blocklist::Blocklist;
use crate::model::listed::Listed;
use crate::model::member::Members;

/// Who adds entries of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryOrigin {
    /// The monitors, of a mgr or mds that was failed over and of the clients it had: for a day
    /// (`mon_mgr_blocklist_interval`, `mon_mds_blocklist_interval`). All of one daemon end at the same moment.
    Daemon,
    /// librbd, krbd or an mds, of a client whose lock was broken or that was evicted: without an end of their own these
    /// get that of `mon_osd_blocklist_default_expire`, an hour.
    LockBreak,
    /// Another fencer, of a network: csi-addons' `NetworkFence` adds ranges, for five years.
    Network,
    /// A guardian, for its end is as far as that of a fence; but no record has it.
    Leftover,
    /// Nobody who gives himself away.
    Unknown,
}

/// An entry that no fence accounts for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherEntry {
    pub entry: Listed,
    /// When the monitors will drop it.
    pub until: Timestamp,
    /// Whose it looks like.
    pub origin: EntryOrigin,
    /// The member it refuses, whole or a client of it.
    pub member: Option<String>,
}

/// Ends are compared with a clock that may be behind the monitors'.
const LOCK_BREAK: SignedDuration = SignedDuration::from_secs(3600 + 300);

/// Every entry that is not `ours`. One that ends at `required_until` or later is as long as a fence's.
pub fn others(
    blocklist: &Blocklist,
    ours: impl Fn(Entry) -> bool,
    members: &Members,
    now: Timestamp,
    required_until: Timestamp,
) -> Vec<OtherEntry> {
    let daemons: BTreeSet<Timestamp> =
        blocklist.entries.iter().filter(|(addr, _)| addr.port != 0).map(|(_, until)| *until).collect();
    let addresses = blocklist.entries.iter().map(|(addr, until)| (Listed::Address(*addr), *until));
    let ranges = blocklist.ranges.iter().map(|(range, until)| (Listed::Range(*range), *until));
    let foreign = addresses.chain(ranges).filter(|(listed, _)| !listed.entry().is_some_and(&ours));
    let other = |(entry, until): (Listed, Timestamp)| {
        let hit = |ip: &IpAddr| entry.names(*ip);
        let member = members.0.iter().find(|member| member.addresses.iter().any(hit));
        let long = until >= required_until;
        let origin = match entry.entry() {
            None if matches!(entry, Listed::Address(_)) => EntryOrigin::Daemon,
            None => EntryOrigin::Network,
            // The guardian takes this form of members only, and for a moment as a cover.
            Some(Entry::HostRange(_)) if member.is_none() => EntryOrigin::Network,
            Some(Entry::Client(_)) if daemons.contains(&until) => EntryOrigin::Daemon,
            Some(_) if long => EntryOrigin::Leftover,
            Some(Entry::Client(_)) if until.duration_since(now) <= LOCK_BREAK => EntryOrigin::LockBreak,
            Some(_) => EntryOrigin::Unknown,
        };
        OtherEntry { entry, until, origin, member: member.map(|member| member.name.clone()) }
    };
    foreign.map(other).collect()
}

impl fmt::Display for EntryOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Daemon => "a mgr or mds that was failed over, or a client of it",
            Self::LockBreak => "a client whose lock was broken, or that was evicted",
            Self::Network => "another fencer's, by network",
            Self::Leftover => "as long as a guardian's, and in no record",
            Self::Unknown => "unknown",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ipnet::IpNet;

    use super::*;
    use crate::model::member::Member;
    use crate::model::policy::Policy;

    const YEAR: u64 = 31_556_952;

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn judged(entries: &[(&str, u64)]) -> Vec<(String, EntryOrigin, Option<String>)> {
        let until = |seconds: u64| now() + Duration::from_secs(seconds);
        let mut blocklist = Blocklist::default();
        for (text, seconds) in entries {
            match text.parse::<IpNet>() {
                Ok(range) => blocklist.ranges.extend([(range, until(*seconds))]),
                Err(_) => blocklist.entries.extend([(text.parse().unwrap(), until(*seconds))]),
            }
        }
        let members =
            Members(vec![Member { name: "n1".to_owned(), addresses: vec!["10.0.0.1".parse().unwrap()] }]);
        let required = Policy::default().required_until(now());
        let ours = |entry: Entry| entry.to_string() == "10.0.0.1:0/77";
        let all = others(&blocklist, ours, &members, now(), required);
        all.into_iter().map(|other| (other.entry.to_string(), other.origin, other.member)).collect()
    }

    #[test]
    fn each_tool_gives_itself_away() {
        let n1 = || Some("n1".to_owned());
        let one = |text: &str, seconds| {
            judged(&[(text, seconds)]).pop().map(|(_, origin, member)| (origin, member))
        };
        assert_eq!(one("10.0.0.1:0/77", 5 * YEAR), None, "a record has it");
        assert_eq!(one("10.0.0.1:6800/9", 86_400), Some((EntryOrigin::Daemon, n1())));
        assert_eq!(one("10.0.0.1:0/5", 3600), Some((EntryOrigin::LockBreak, n1())));
        assert_eq!(one("10.0.0.9:0/5", 60), Some((EntryOrigin::LockBreak, None)));
        assert_eq!(one("10.0.0.0/24", 5 * YEAR), Some((EntryOrigin::Network, n1())));
        assert_eq!(one("10.0.0.9/32", 5 * YEAR), Some((EntryOrigin::Network, None)));
        assert_eq!(one("10.0.0.1/32", 5 * YEAR), Some((EntryOrigin::Leftover, n1())));
        assert_eq!(one("10.0.0.1:0/0", 5 * YEAR), Some((EntryOrigin::Leftover, n1())));
        assert_eq!(
            one("10.0.0.9:0/0", 5 * YEAR),
            Some((EntryOrigin::Leftover, None)),
            "a cover that was left"
        );
        assert_eq!(one("10.0.0.1:0/5", 5 * YEAR), Some((EntryOrigin::Leftover, n1())), "a late add");
        assert_eq!(one("10.0.0.1:0/5", 86_400), Some((EntryOrigin::Unknown, n1())));
        assert_eq!(one("10.0.0.1:0/0", 3600), Some((EntryOrigin::Unknown, n1())), "by hand");
    }

    #[test]
    fn the_clients_of_a_failed_over_mgr_end_with_it() {
        let all = judged(&[("10.0.0.1:6800/9", 80_000), ("10.0.0.1:0/5", 80_000), ("10.0.0.1:0/6", 80_001)]);
        let origins: Vec<EntryOrigin> = all.into_iter().map(|(_, origin, _)| origin).collect();
        assert_eq!(origins, [EntryOrigin::Daemon, EntryOrigin::Unknown, EntryOrigin::Daemon]);
    }

    #[test]
    fn the_command_that_lifts_it_knows_ranges() {
        let range = Listed::Range("10.0.0.1/32".parse().unwrap());
        assert_eq!(range.removal(), "ceph osd blocklist range rm 10.0.0.1/32");
        let host = Listed::Address("10.0.0.1:0/0".parse().unwrap());
        assert_eq!(host.removal(), "ceph osd blocklist rm 10.0.0.1:0/0");
    }
}
