//! Why a fence is refused. Each names both values: what was asked, and what stands against it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::addr::{ClientAddr, Entry};

/// One reason; a plan lists all that apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// No member of that name is configured.
    #[error("no member '{name}': the configuration knows {}", list(.known))]
    UnknownMember {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The member has no address, so nobody knows what to fence.
    #[error("member '{member}' has no known address: give it `addresses` in the configuration")]
    NoAddress { member: String },
    /// INV-6: the guardian would fence itself.
    #[error("{entry} is this guardian's own address ({own}): run the fence from another host")]
    OwnAddress {
        /// The entry asked for.
        entry: Entry,
        /// The guardian's address.
        own: String,
    },
    /// The guardian is on the lost side itself.
    #[error("this guardian ({own}) is blocklisted itself: run the fence from a host that is not fenced")]
    FencedItself { own: String },
    /// INV-6: two members share the address.
    #[error("{ip} of member '{member}' is also an address of '{other}': fencing one would fence both")]
    SharedAddress {
        ip: IpAddr,
        member: String,
        /// The other member.
        other: String,
    },
    /// INV-6: an active mgr or mds lives there and cannot be moved away.
    #[error("{ip} is the address of the active {daemon}, {why}")]
    ActiveDaemon {
        ip: IpAddr,
        /// `mgr.x`.
        daemon: String,
        /// Why it cannot be failed over.
        why: String,
    },
    /// INV-6: a bare address where daemons run.
    #[error("{ip} is also the address of {}: name the member it belongs to, if it is a member's", list(.daemons))]
    DaemonsAt {
        ip: IpAddr,
        /// `mon.a`, `osd.3`.
        daemons: Vec<String>,
    },
    /// INV-6: a client instance that is a daemon's own.
    #[error("{client} is a client instance of {daemon}, not of a guest")]
    DaemonClient { client: ClientAddr, daemon: String },
    /// INV-6: a client instance that may be a daemon's own.
    #[error(
        "{client} may be a client instance of {daemon}, which does not list its own, and no monitor knows it as another's: \
         fence the member by its name, or fail {daemon} over first"
    )]
    MayBeDaemonClient { client: ClientAddr, daemon: String },
    /// The operator's list.
    #[error("{ip} lies in {network}, which the configuration protects (policy.protected)")]
    Protected {
        ip: IpAddr,
        /// The protected network.
        network: IpNet,
    },
    /// INV-6: the member answers, so it is not lost.
    #[error(
        "member '{member}' {seen}{}: a fence would cut it off from its storage at once, and each guest with a disk there \
         would fail; if it must be fenced all the same: --although-reachable --reason TEXT",
        running(.runs.as_deref())
    )]
    Reachable {
        member: String,
        /// What shows that it answers.
        seen: String,
        /// The instances it runs, where they are known.
        runs: Option<Vec<String>>,
    },
    /// A host address at which nothing is known.
    #[error(
        "no member, client, watcher or lock is known at {ip}{}: a fence would refuse every client that ever comes from \
         there; if the address is right: --unknown-address --reason TEXT",
        not_read(.unread)
    )]
    UnknownAddress {
        ip: IpAddr,
        /// What was not read, so that something may be there.
        unread: Vec<String>,
    },
    /// INV-2: the gate holds up what a fence has not proved yet, or keeps a seal's own record.
    #[error(
        "{} fenced: without the gate Incus re-places instances of lost members although their storage may still take \
         writes, and a fence that is pending or breached holds nothing up any more; release first, or remove it all the \
         same: --force --reason TEXT",
        are(.members)
    )]
    GateNeeded {
        /// Members whose fences are held, or that the gate names.
        members: Vec<String>,
    },
    /// Whether the gate is needed is not known.
    #[error(
        "whether a member is fenced is unknown ({why}): without the gate Incus re-places instances of lost members \
         although their storage may still take writes; to remove it all the same: --force --reason TEXT"
    )]
    FencesUnknown {
        /// What was not read.
        why: String,
    },
    /// A rule is gone over without a word why.
    #[error("{} needs a reason, which is recorded: --reason TEXT", list(.flags))]
    NoReason {
        /// What was permitted.
        flags: Vec<String>,
    },
    /// INV-5: nothing proves that the member rebooted.
    #[error(
        "{what} is {state}, and nothing proves that it rebooted since it was sealed{}: the guardian releases it by itself \
         once there is a proof; if you know that it was powered off or rebooted after the fence: --assert-powered-off \
         --reason TEXT",
        because(.why.as_deref())
    )]
    NotProved {
        /// The member, or the fence.
        what: String,
        /// Where its fence stands.
        state: String,
        /// What the member says that is no proof.
        why: Option<String>,
    },
    /// There is nothing to release.
    #[error("no fence of {fence} is held; held are: {}", list(.held))]
    NotHeld {
        /// What was named.
        fence: String,
        held: Vec<String>,
    },
    /// It is being released, and cannot be fenced meanwhile.
    #[error("{member} is being released: wait until it is, then fence it again")]
    Releasing { member: String },
    /// The storm brake.
    #[error(
        "storm brake: {} already fenced, and at most {max} at once are allowed (policy.max_fenced_members): \
         release one first, raise the limit, or go over it for this fence alone with --over-brake --reason TEXT",
        list(.held)
    )]
    Brake {
        /// Who is fenced.
        held: Vec<String>,
        max: usize,
    },
    /// Not all sources answered and no host entry is possible.
    #[error("coverage is incomplete ({}): repeat, or fence what is known with --accept-incomplete", list(.unread))]
    Incomplete {
        /// What was not read.
        unread: Vec<String>,
    },
    /// Operations to the pool go elsewhere, so its own PGs cannot be asked.
    #[error("pool '{pool}' is overlaid by the cache tier '{tier}': its PGs cannot be proved while it is")]
    CacheTier { pool: String, tier: String },
    /// INV-7: no form of the host entry can be relied on.
    #[error(
        "a removal of {entry} was sent and never answered, and no other form of the entry is free of doubt: restart \
         every other guardian, or cut its power, and say so with `fence --over-doubt --reason TEXT`; or fence the \
         member's clients"
    )]
    InDoubt { entry: Entry },
    /// There is nothing to prove.
    #[error("there is no pool that could hold images, so a seal would prove nothing")]
    NoPools,
    /// An entry that ends too soon cannot be replaced without freeing the client for a moment.
    #[error(
        "{entry} is blocklisted only until {until}, {required} is required, and it cannot be replaced: {why}"
    )]
    ShortEntry {
        entry: Entry,
        /// When it ends.
        until: Timestamp,
        /// When it may end at the earliest.
        required: Timestamp,
        /// What stands against a cover.
        why: String,
    },
}

impl Refusal {
    /// A stable word for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownMember { .. } => "unknown-member",
            Self::NoAddress { .. } => "no-address",
            Self::OwnAddress { .. } => "own-address",
            Self::FencedItself { .. } => "fenced-itself",
            Self::SharedAddress { .. } => "shared-address",
            Self::ActiveDaemon { .. } => "active-daemon",
            Self::DaemonsAt { .. } => "daemons-at-address",
            Self::DaemonClient { .. } => "daemon-client",
            Self::MayBeDaemonClient { .. } => "may-be-daemon-client",
            Self::Protected { .. } => "protected",
            Self::Reachable { .. } => "reachable",
            Self::UnknownAddress { .. } => "unknown-address",
            Self::GateNeeded { .. } => "gate-needed",
            Self::FencesUnknown { .. } => "fences-unknown",
            Self::NoReason { .. } => "no-reason",
            Self::NotProved { .. } => "not-proved",
            Self::NotHeld { .. } => "not-held",
            Self::Releasing { .. } => "releasing",
            Self::Brake { .. } => "storm-brake",
            Self::Incomplete { .. } => "incomplete",
            Self::CacheTier { .. } => "cache-tier",
            Self::InDoubt { .. } => "in-doubt",
            Self::NoPools => "no-pools",
            Self::ShortEntry { .. } => "short-entry",
        }
    }
}

fn running(runs: Option<&[String]>) -> String {
    match runs {
        None => " (which instances it runs is not known)".to_owned(),
        Some([]) => " and runs no instance".to_owned(),
        Some(names) => format!(" and runs {}", list(names)),
    }
}

fn not_read(unread: &[String]) -> String {
    if unread.is_empty() { String::new() } else { format!(" (not read: {})", unread.join("; ")) }
}

fn because(why: Option<&str>) -> String {
    why.map_or_else(String::new, |why| format!(" ({why})"))
}

fn are(members: &[String]) -> String {
    format!("{} {}", list(members), if members.len() == 1 { "is" } else { "are" })
}

/// May the gate be taken out of Incus? `named` are the members that its keys name, `held` those whose fences the ledger
/// has, or why that is unknown.
///
/// # Errors
/// What stands against it.
pub fn gate_removal(
    named: &BTreeSet<String>,
    held: Result<&BTreeSet<String>, &str>,
    force: bool,
    reason: Option<&str>,
) -> Result<(), Refusal> {
    let refusal = match held {
        Ok(held) if held.is_empty() && named.is_empty() => return Ok(()),
        Err(why) if named.is_empty() => Refusal::FencesUnknown { why: why.to_owned() },
        Ok(held) => Refusal::GateNeeded { members: named.union(held).cloned().collect() },
        Err(_) => Refusal::GateNeeded { members: named.iter().cloned().collect() },
    };
    match (force, crate::model::overrides::reason(reason)) {
        (true, Some(_)) => Ok(()),
        (true, None) => Err(Refusal::NoReason { flags: vec!["--force".to_owned()] }),
        (false, _) => Err(refusal),
    }
}

/// Names for people: `a, b and c`.
fn list(items: &[String]) -> String {
    match items {
        [] => "none".to_owned(),
        [one] => one.clone(),
        [rest @ .., last] => format!("{} and {last}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inv2_the_gate_stays_while_a_member_is_fenced_or_nobody_knows_whether_one_is() {
        let none = BTreeSet::new();
        let one = BTreeSet::from(["n2".to_owned()]);
        assert_eq!(gate_removal(&none, Ok(&none), false, None), Ok(()));
        let code =
            |named, held, force, reason| gate_removal(named, held, force, reason).map_err(|r| r.code());
        for (named, held, refused) in [
            (&none, Ok(&one), "gate-needed"),
            (&one, Ok(&none), "gate-needed"),
            (&one, Err("silence"), "gate-needed"),
            (&none, Err("silence"), "fences-unknown"),
        ] {
            assert_eq!(code(named, held, false, Some("why")), Err(refused));
            assert_eq!(code(named, held, true, Some(" ")), Err("no-reason"));
            assert_eq!(code(named, held, true, Some("why")), Ok(()));
        }
    }
}
