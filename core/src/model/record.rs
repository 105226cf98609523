//! What guardians remember together, one record for each thing: who leads, the members' address book, fences, the
//! gate, requests, and the trail of what was done.
//!
//! A record is kept as it is here, with the version of its form; whatever is added later must be read by older
//! guardians as if it were not there, or the version goes up. A field that a protection rests on has no default: where it
//! is absent the record is not understood, or the field itself says `None`, unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::addr::{ClientAddr, Entry};
use crate::model::epoch::{GateEpoch, LeaderEpoch, OsdEpoch};
use crate::model::fence_id::FenceId;
use crate::model::listed::Listed;
use crate::model::operator_request::Request;
use crate::model::osdmap::PoolId;
use crate::model::overrides::{self, Overrides};
use crate::model::span::{millis, named_millis, seconds};
use crate::model::target::Coverage;

/// The form of records that this guardian writes; it reads all up to this one. 2: durations are numbers whose unit the
/// field's name says, which a guardian that knows 1 cannot read.
pub const VERSION: u32 = 2;

/// Who decides. Every write is conditional on this record (INV-7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Raised by each takeover.
    pub epoch: LeaderEpoch,
    /// The guardian's name.
    pub guardian: String,
    /// The host it runs on.
    pub host: String,
    /// Its own addresses as a client of the storage.
    pub addresses: BTreeSet<ClientAddr>,
    /// When it took over, by its own clock.
    pub since: Timestamp,
}

/// Where an address of a member was learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A watcher of an image that is placed there.
    Watcher,
    /// The owner of a lock on an image that is placed there.
    Locker,
    /// A session with a monitor.
    Session,
    /// An interface of the member.
    Network,
    /// The operator: configuration, or a key of the member.
    Operator,
}

/// What is known of a member, learnt while it was healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    pub name: String,
    /// Its identity IPs, and what says so.
    pub addresses: BTreeMap<IpAddr, BTreeSet<Source>>,
    /// The client instances seen of it, whatever their IP.
    pub clients: BTreeSet<ClientAddr>,
    /// Client instances that use its images and that nothing shows to be anybody's. `None`: an older guardian recorded it,
    /// which did not keep them.
    #[serde(default)]
    pub others: Option<BTreeSet<ClientAddr>>,
    /// The addresses of its own interfaces, with their networks, as it told them last. `None`: it never did.
    #[serde(default)]
    pub interfaces: Option<BTreeSet<IpNet>>,
    /// What else lived at those addresses before it told them, and lives there since: daemons of the storage (`osd.3`) and
    /// clients of others. For what came later its interfaces do not speak; nor for
    /// anything where an older guardian kept nothing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<IpAddr, BTreeSet<String>>,
    /// What tells one machine from another of the same name ([`Machine`](crate::model::machine::Machine)); an older version
    /// recorded the `system.uuid` alone.
    #[serde(default)]
    pub machine: Option<String>,
    /// The last uptime it told while healthy.
    #[serde(default)]
    pub uptime: Option<UptimeSample>,
}

impl MemberRecord {
    /// Do its own interfaces show this address?
    pub fn shows(&self, ip: IpAddr) -> bool {
        self.interfaces.iter().flatten().any(|network| network.addr() == ip)
    }

    /// Did the operator name this address?
    pub fn is_said(&self, ip: IpAddr) -> bool {
        self.addresses.get(&ip).is_some_and(|sources| sources.contains(&Source::Operator))
    }

    /// Such addresses are not known from this source any more.
    pub fn forget(&mut self, source: Source, which: impl Fn(&IpAddr) -> bool) {
        self.addresses.retain(|ip, sources| {
            if which(ip) {
                sources.remove(&source);
            }
            !sources.is_empty()
        });
    }
}

/// An uptime and when it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UptimeSample {
    /// Since the member booted, in whole seconds.
    #[serde(rename = "uptime_s", alias = "uptime", with = "seconds")]
    pub uptime: Duration,
    /// When it said so, by the guardian's clock.
    pub at: Timestamp,
}

/// Where a fence stands (docs/design.md#states).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceState {
    /// Recorded; nothing is known to be in the blocklist.
    Intended,
    /// The entries were read back.
    Committed,
    /// Some PGs have not answered.
    Pending,
    /// Every PG of every guarded pool refuses the target.
    Sealed,
    /// Sealed once, then an entry vanished; being re-asserted.
    Breached,
    /// Its entries are being removed.
    Releasing,
    /// Its host entries are gone; client entries stay.
    Released,
}

/// A fence: what it rests on, what is proved, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceRecord {
    pub id: FenceId,
    /// The member, if one was named. Of a fence that names none no gate is closed: absent is not `null`.
    #[serde(deserialize_with = "Option::deserialize")]
    pub member: Option<String>,
    /// Where it stands.
    pub state: FenceState,
    /// Its entries, and until when each stood when it was last read back.
    pub entries: BTreeMap<Entry, Option<Timestamp>>,
    /// How much it covers.
    #[serde(default = "unknown_coverage")]
    pub coverage: Coverage,
    /// What the operator accepted, and the rules that stood against it and that the operator went over for the reason given.
    #[serde(flatten, with = "overrides::recorded")]
    pub overrides: Overrides,
    /// Entries whose removal was sent and never answered: it may still arrive, so nothing is built on them (INV-7).
    pub in_doubt: BTreeSet<Entry>,
    /// What was seen that led to it.
    #[serde(default)]
    pub evidence: Vec<String>,
    /// Why, in the operator's or the policy's words.
    #[serde(default)]
    pub reason: Option<String>,
    /// What each guarded pool proved at the last seal.
    #[serde(default)]
    pub proofs: Vec<Proof>,
    /// Who asked for it.
    pub by: String,
    /// When it was recorded first.
    pub since: Timestamp,
    /// When it was sealed first.
    #[serde(default)]
    pub sealed: Option<Timestamp>,
    /// When somebody lifted it; the newest, at most [`BREACHES`].
    pub breaches: Vec<Breach>,
    /// By boot ID of each guardian's host: its time since boot when that guardian first knew of the seal. The time
    /// since the seal can so be told without a wall clock.
    #[serde(default, rename = "marks_ms", alias = "marks", with = "named_millis")]
    pub marks: BTreeMap<String, Duration>,
    /// Client instances of the fenced addresses that appeared after the seal: those of the old life and, once the host
    /// has booted, of the new one. Each gets an entry of its own, at the latest before the release.
    pub seen: BTreeSet<ClientAddr>,
    /// When it was released.
    #[serde(default)]
    pub released: Option<Timestamp>,
    /// Client instances that were fenced before the seal and so are proved, or asserted, dead by what released it. Their
    /// entries may go; those of other clients stay until they end.
    #[serde(default)]
    pub dead: BTreeSet<ClientAddr>,
    /// Who removed entries of it while it was held, the last ones.
    #[serde(default)]
    pub removals: Vec<Removal>,
    /// When guardians sent removals for it themselves, by the monitors' clock; the last ones, so that nobody else is named
    /// for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sent: BTreeMap<Entry, Timestamp>,
    /// Entries of other fences and of others that refused its hosts still when it was released.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub refused_by: BTreeSet<Listed>,
}

/// How many of [`FenceRecord::sent`] are kept.
const SENT: usize = 128;

impl FenceRecord {
    /// Greater for the fence that was recorded later, whatever the clock said then: the time in an ID is later than those
    /// of all fences that the ledger held. In milliseconds since 1970; of an ID without one, when it was recorded.
    pub fn order(&self) -> u64 {
        let made = self.id.read().ok().and_then(|id| id.made);
        made.unwrap_or_else(|| u64::try_from(self.since.as_millisecond()).unwrap_or_default())
    }

    /// Of the fences that match, the one that was recorded last.
    pub fn newest(fences: &BTreeMap<FenceId, Self>, matches: impl Fn(&Self) -> bool) -> Option<&Self> {
        fences.values().filter(|fence| matches(fence)).max_by_key(|fence| fence.order())
    }

    /// The member; of a fence of bare addresses its ID.
    pub fn name(&self) -> &str {
        self.member.as_deref().unwrap_or(self.id.as_str())
    }

    /// A guardian is about to send the removal of this entry, at this time of the monitors' clock.
    pub fn note_sent(&mut self, entry: Entry, at: Timestamp) {
        self.sent.insert(entry, at);
        while self.sent.len() > SENT {
            let oldest = self.sent.iter().min_by_key(|(_, at)| **at).map(|(entry, _)| *entry);
            oldest.map(|oldest| self.sent.remove(&oldest));
        }
    }
}

/// A command that removed an entry of the blocklist, as the monitors logged it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// When, by the clock of the monitor.
    pub at: Timestamp,
    /// The key it was sent with: `client.admin`.
    pub entity: String,
    /// The address it came from, as the monitor saw it.
    pub address: String,
    /// What was removed; `None` for everything (`osd blocklist clear`).
    pub entry: Option<Entry>,
}

impl Removal {
    /// Did it remove this entry?
    pub fn removes(&self, entry: Entry) -> bool {
        self.entry.is_none_or(|removed| removed == entry)
    }

    /// How to take `osd blocklist rm` from the key. The monitors' `profile rbd` may add entries and remove none
    /// (docs/facts/ceph.md#capabilities); `client.admin` may do everything whatever is said of it.
    pub fn advice(&self) -> String {
        let Self { entity, address, .. } = self;
        let caps = "mon 'profile rbd' osd 'profile rbd pool=POOL' mgr 'profile rbd pool=POOL'";
        if entity == "client.admin" {
            return format!(
                "find out who used {entity} at {address}; a member gets a key of its own instead: \
                 ceph auth get-or-create client.incus {caps}"
            );
        }
        format!(
            "if {entity} is a member's key, take `osd blocklist rm` from it: ceph auth caps {entity} {caps}"
        )
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, entity, address, entry } = self;
        match entry {
            Some(entry) => write!(f, "{entity} at {address} removed {entry} ({at})"),
            None => write!(f, "{entity} at {address} removed every entry ({at})"),
        }
    }
}

/// So many breaches of a fence are kept.
pub const BREACHES: usize = 16;

/// Somebody lifted a fence: from [`Breach::gone`] to [`Breach::committed`] its target may have written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breach {
    /// When it was seen.
    pub seen: Timestamp,
    /// The last osdmap epoch that is known to have held it; `None` where an earlier guardian knew it.
    pub held: Option<OsdEpoch>,
    /// The first epoch examined since, in which it was not held, or not without interruption.
    pub gone: OsdEpoch,
    /// Its entry was gone because the monitors' clock had passed this end of it; `None`: somebody removed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// The epoch in which its entries were read back again.
    #[serde(default)]
    pub committed: Option<OsdEpoch>,
    /// When it was sealed again.
    #[serde(default)]
    pub sealed: Option<Timestamp>,
}

fn unknown_coverage() -> Coverage {
    Coverage::Incomplete
}

/// What a pool proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Its number; 0, which no pool has, where an older guardian recorded it.
    #[serde(default)]
    pub id: PoolId,
    pub pool: String,
    /// How many PGs it had: each of them answered.
    pub pgs: u32,
    /// The osdmap epoch that each of them had reached at least.
    pub epoch: OsdEpoch,
}

/// What the gate was last told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateRecord {
    /// Raised by each write to the gate.
    pub epoch: GateEpoch,
    /// Members whose instances may be placed elsewhere, as of that write.
    pub open: BTreeSet<String>,
    /// Fences of members that it was open for and that this write closes it for. Nobody records that it was done: they are
    /// here as long as they are in force.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub closing: BTreeSet<FenceId>,
}

/// An operator lets no fence begin by itself for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisarmRecord {
    /// When it was recorded, by the guardian's clock.
    pub since: Timestamp,
    /// When it ends by itself.
    pub until: Timestamp,
    /// Who asked for it.
    pub by: String,
    pub reason: String,
}

/// What somebody on another host asks the leader to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Chosen by who asks; unique.
    pub id: String,
    #[serde(flatten)]
    pub request: Request,
    /// When, by the asker's clock.
    pub at: Timestamp,
    /// How long whoever asks waits for it to be taken: later nobody does it. In whole milliseconds.
    #[serde(rename = "patience_ms", alias = "patience", with = "millis")]
    pub patience: Duration,
    /// The epoch of the leader that took it. It is not done before this is recorded.
    #[serde(default)]
    pub taken: Option<LeaderEpoch>,
    /// Filled in by the leader: what the control socket would have answered with.
    #[serde(default)]
    pub answer: Option<Value>,
}

/// One thing done, written together with what it changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Counts up without a gap.
    pub seq: u64,
    /// When, by the writer's clock.
    pub at: Timestamp,
    pub who: String,
    /// The host it ran on.
    pub host: String,
    /// What was done.
    pub what: String,
    pub why: String,
}

/// Names a record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Key {
    /// The only [`GateRecord`].
    Gate,
    /// The only [`DisarmRecord`].
    Disarm,
    Member(String),
    Fence(FenceId),
    Request(String),
}

/// A record that a leader may write. Its own is not among them: that is taken, not written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(clippy::large_enum_variant)] // There are never many at once.
pub enum Record {
    Gate(GateRecord),
    Disarm(DisarmRecord),
    Member(MemberRecord),
    Fence(FenceRecord),
    Request(RequestRecord),
}

/// One change of a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(clippy::large_enum_variant)] // A write has a handful of them.
pub enum Change {
    /// Write a record, new or in the place of the one read.
    Put(Record),
    /// Remove the record read.
    Remove(Key),
}

/// All records that were understood.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Records {
    /// Who leads, or led last.
    pub leader: Option<Leader>,
    pub gate: Option<GateRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disarm: Option<DisarmRecord>,
    pub members: BTreeMap<String, MemberRecord>,
    pub fences: BTreeMap<FenceId, FenceRecord>,
    pub requests: BTreeMap<String, RequestRecord>,
}

impl Record {
    pub fn key(&self) -> Key {
        match self {
            Self::Gate(_) => Key::Gate,
            Self::Disarm(_) => Key::Disarm,
            Self::Member(member) => Key::Member(member.name.clone()),
            Self::Fence(fence) => Key::Fence(fence.id.clone()),
            Self::Request(request) => Key::Request(request.id.clone()),
        }
    }
}

impl Change {
    /// The record it is about.
    pub fn key(&self) -> Key {
        match self {
            Self::Put(record) => record.key(),
            Self::Remove(key) => key.clone(),
        }
    }
}

impl Records {
    /// Makes a change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Put(Record::Gate(gate)) => self.gate = Some(gate),
            Change::Put(Record::Disarm(disarm)) => self.disarm = Some(disarm),
            Change::Put(Record::Member(member)) => drop(self.members.insert(member.name.clone(), member)),
            Change::Put(Record::Fence(fence)) => drop(self.fences.insert(fence.id.clone(), fence)),
            Change::Put(Record::Request(request)) => {
                drop(self.requests.insert(request.id.clone(), request));
            }
            Change::Remove(Key::Gate) => self.gate = None,
            Change::Remove(Key::Disarm) => self.disarm = None,
            Change::Remove(Key::Member(name)) => drop(self.members.remove(&name)),
            Change::Remove(Key::Fence(id)) => drop(self.fences.remove(&id)),
            Change::Remove(Key::Request(id)) => drop(self.requests.remove(&id)),
        }
    }
}

/// Behind the fences, with what is small: a standby reads it with each glance.
const DISARM: &str = "operator/disarm";

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gate => f.write_str("gate"),
            Self::Disarm => f.write_str(DISARM),
            Self::Member(name) => write!(f, "member/{name}"),
            Self::Fence(id) => write!(f, "fence/{id}"),
            Self::Request(id) => write!(f, "request/{id}"),
        }
    }
}

/// The text names no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' names no kind of record that this guardian knows")]
pub struct UnknownKeyError {
    /// What was given.
    pub text: String,
}

impl FromStr for Key {
    type Err = UnknownKeyError;

    fn from_str(text: &str) -> Result<Self, UnknownKeyError> {
        let unknown = || UnknownKeyError { text: text.to_owned() };
        if text == "gate" {
            return Ok(Self::Gate);
        }
        if text == DISARM {
            return Ok(Self::Disarm);
        }
        let (kind, name) = text.split_once('/').ok_or_else(unknown)?;
        let name = name.to_owned();
        match kind {
            "member" => Ok(Self::Member(name)),
            "fence" => Ok(Self::Fence(name.into())),
            "request" => Ok(Self::Request(name)),
            _ => Err(unknown()),
        }
    }
}

impl FenceState {
    /// As in the ledger, in `status`, in the log's codes and in metrics: it never changes.
    pub fn word(self) -> &'static str {
        match self {
            Self::Intended => "intended",
            Self::Committed => "committed",
            Self::Pending => "pending",
            Self::Sealed => "sealed",
            Self::Breached => "breached",
            Self::Releasing => "releasing",
            Self::Released => "released",
        }
    }

    /// Does the fence stand: are entries of it in the blocklist, as far as is known? That is what everybody means by it
    /// (`status`, the service manager, a request that is asked again, the pools that stay guarded).
    pub fn stands(self) -> bool {
        match self {
            Self::Intended | Self::Released => false,
            Self::Committed | Self::Pending | Self::Sealed | Self::Breached | Self::Releasing => true,
        }
    }

    /// Is somebody to care for it: recorded, and not released? An intent is in force, and does not stand yet.
    pub fn is_in_force(self) -> bool {
        self != Self::Released
    }
}

impl fmt::Display for FenceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_printed() {
        let name = || "a/b c".to_owned();
        for key in
            [Key::Gate, Key::Disarm, Key::Member(name()), Key::Fence(name().into()), Key::Request(name())]
        {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
        for text in ["", "gate/", "leader", "member", "audit/00000000000000000001"] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_advice_against_a_removal_prints_no_key_and_takes_no_caps_from_the_admin() {
        let removal = |entity: &str| Removal {
            at: Timestamp::UNIX_EPOCH,
            entity: entity.to_owned(),
            address: "10.0.0.8:0/4711".to_owned(),
            entry: None,
        };
        assert!(removal("client.incus").advice().contains("ceph auth caps client.incus mon 'profile rbd' "));
        assert!(!removal("client.admin").advice().contains("auth caps"));
    }
}
