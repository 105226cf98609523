//! Fences, members and the whole status, in the one form that every verb prints and the daemon serves.

pub(crate) mod outlook;
pub(crate) mod parts;

use std::collections::BTreeSet;

use ipnet::IpNet;
use jiff::Timestamp;
use rbd_guardian_core::guardian::status::AddressStatus;
use rbd_guardian_core::model::addr::{ClientAddr, Entry};
use rbd_guardian_core::model::epoch::{LeaderEpoch, OsdEpoch};
use rbd_guardian_core::model::fence_id::FenceId;
use rbd_guardian_core::model::listed::Listed;
use rbd_guardian_core::model::overrides::{self, Overrides};
use rbd_guardian_core::model::record::{
    Breach, FenceRecord, FenceState, Leader, MemberRecord, Proof, Removal, RequestRecord,
};
use serde::Serialize;
use serde_json::{Value, json};

use parts::{CoverageAnswer, EntryAnswer};

/// A fence: what `status` and `ledger` list, and `fence` prints of one that is not sealed yet. `null` is unknown, or has
/// not happened.
#[derive(Serialize)]
pub(crate) struct FenceShown {
    pub(crate) fence: FenceId,
    pub(crate) member: Option<String>,
    pub(crate) state: FenceState,
    pub(crate) since: Option<Timestamp>,
    sealed: Option<Timestamp>,
    released: Option<Timestamp>,
    pub(crate) by: Option<String>,
    pub(crate) reason: Option<String>,
    /// The operator accepted that it covers known clients only.
    accepted: Option<bool>,
    #[serde(flatten)]
    rules: Option<Rules>,
    /// The osdmap epoch that every PG had reached at the last seal.
    epoch: Option<OsdEpoch>,
    pub(crate) entries: Vec<EntryAnswer>,
    coverage: Option<CoverageAnswer>,
    evidence: Vec<String>,
    /// What each pool proved at the last seal.
    proofs: Vec<Proof>,
    /// PGs that have not answered; `null` where nobody was asked.
    pending: Option<Vec<String>>,
    /// What it waits for, in words.
    waits: Option<String>,
    pub(crate) in_doubt: BTreeSet<Entry>,
    breaches: Vec<Breach>,
    removals: Vec<Removal>,
    /// Client instances that appeared after the seal.
    seen: BTreeSet<ClientAddr>,
    /// Client instances that its release proved, or an operator asserted, dead.
    dead: BTreeSet<ClientAddr>,
    refused_by: BTreeSet<Listed>,
}

/// The rules that the operator went over, as a plan shows them.
#[derive(Serialize)]
#[serde(transparent)]
struct Rules(#[serde(serialize_with = "overrides::rules::serialize")] Overrides);

impl FenceShown {
    /// As the ledger has it.
    pub(crate) fn of(record: FenceRecord) -> Self {
        let coverage = CoverageAnswer::of(&record).without_notes();
        Self {
            member: record.member,
            state: record.state,
            since: Some(record.since),
            sealed: record.sealed,
            released: record.released,
            by: Some(record.by),
            reason: record.reason,
            accepted: Some(record.overrides.accept_incomplete),
            rules: Some(Rules(record.overrides)),
            epoch: record.proofs.iter().map(|proof| proof.epoch).max(),
            entries: record.entries.into_iter().map(EntryAnswer::new).collect(),
            coverage: Some(coverage),
            evidence: record.evidence,
            proofs: record.proofs,
            pending: None,
            waits: None,
            in_doubt: record.in_doubt,
            breaches: record.breaches,
            removals: record.removals,
            seen: record.seen,
            dead: record.dead,
            refused_by: record.refused_by,
            fence: record.id,
        }
    }

    /// As the blocklist shows it, where no record is known.
    pub(crate) fn found(fence: FenceId, member: &str, state: FenceState, entries: &[EntryAnswer]) -> Self {
        Self {
            fence,
            member: Some(member.to_owned()),
            state,
            since: None,
            sealed: None,
            released: None,
            by: None,
            reason: None,
            accepted: None,
            rules: None,
            epoch: None,
            entries: entries.to_vec(),
            coverage: None,
            evidence: Vec::new(),
            proofs: Vec::new(),
            pending: None,
            waits: None,
            in_doubt: BTreeSet::new(),
            breaches: Vec::new(),
            removals: Vec::new(),
            seen: BTreeSet::new(),
            dead: BTreeSet::new(),
            refused_by: BTreeSet::new(),
        }
    }

    pub(crate) fn pending(mut self, pending: Vec<String>) -> Self {
        self.pending = Some(pending);
        self
    }

    /// As JSON; without a record, `null` for what it would tell.
    pub(crate) fn value(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if self.by.is_none() {
            for recorded in RECORDED {
                value[recorded] = Value::Null;
            }
        }
        value
    }
}

/// What only a record tells of a fence.
const RECORDED: [&str; 12] = [
    "over_brake",
    "over_doubt",
    "although_reachable",
    "unknown_address",
    "evidence",
    "proofs",
    "in_doubt",
    "breaches",
    "removals",
    "seen",
    "dead",
    "refused_by",
];

/// Who leads.
#[derive(Serialize)]
pub(crate) struct LeaderShown<'a> {
    pub(crate) epoch: LeaderEpoch,
    pub(crate) guardian: &'a str,
    pub(crate) host: &'a str,
    clients: &'a BTreeSet<ClientAddr>,
    pub(crate) since: Timestamp,
}

impl<'a> LeaderShown<'a> {
    pub(crate) fn of(leader: &'a Leader) -> Self {
        let Leader { epoch, guardian, host, addresses, since } = leader;
        Self { epoch: *epoch, guardian, host, clients: addresses, since: *since }
    }
}

/// What the ledger knows of a member.
#[derive(Serialize)]
pub(crate) struct MemberKnown<'a> {
    pub(crate) name: &'a str,
    pub(crate) addresses: Vec<AddressStatus>,
    pub(crate) clients: &'a BTreeSet<ClientAddr>,
    others: Option<&'a BTreeSet<ClientAddr>>,
    interfaces: Option<&'a BTreeSet<IpNet>>,
    pub(crate) machine: Option<&'a str>,
    uptime_s: Option<u64>,
    uptime_at: Option<Timestamp>,
}

impl<'a> MemberKnown<'a> {
    pub(crate) fn of(member: &'a MemberRecord) -> Self {
        let address =
            |(ip, sources): (&_, &BTreeSet<_>)| AddressStatus { address: *ip, sources: sources.clone() };
        Self {
            name: &member.name,
            addresses: member.addresses.iter().map(address).collect(),
            clients: &member.clients,
            others: member.others.as_ref(),
            interfaces: member.interfaces.as_ref(),
            machine: member.machine.as_deref(),
            uptime_s: member.uptime.map(|sample| sample.uptime.as_secs()),
            uptime_at: member.uptime.map(|sample| sample.at),
        }
    }
}

/// What somebody on another host asked for.
#[derive(Serialize)]
pub(crate) struct RequestShown<'a> {
    pub(crate) request: &'a str,
    pub(crate) what: String,
    pub(crate) by: &'a str,
    reason: Option<&'a str>,
    pub(crate) at: Timestamp,
    patience_ms: u128,
    /// The epoch of the leader that took it.
    pub(crate) taken: Option<LeaderEpoch>,
    pub(crate) answered: bool,
}

impl<'a> RequestShown<'a> {
    pub(crate) fn of(record: &'a RequestRecord) -> Self {
        Self {
            request: &record.id,
            what: record.request.what(),
            by: record.request.by(),
            reason: record.request.reason(),
            at: record.at,
            patience_ms: record.patience.as_millis(),
            taken: record.taken,
            answered: record.answer.is_some(),
        }
    }
}

/// What the guardian of a host says of itself in `status`.
pub(crate) const HERE: [&str; 9] = [
    "guardian",
    "host",
    "version",
    "stage",
    "trouble",
    "ceph_trouble",
    "incus_trouble",
    "deposed",
    "cannot_record",
];
/// With these, every field of `status`: each is there whatever its source, and `null` where the source does not know it.
const STATUS: [&str; 16] = [
    "source",
    "leads",
    "here",
    "leader",
    "holds",
    "ledger_unread",
    "trigger",
    "disarmed",
    "epoch",
    "platform",
    "storage",
    "gate",
    "members",
    "fences",
    "others",
    "alarms",
];
/// The same of a member in it.
const MEMBER: [&str; 8] = ["name", "status", "health", "state", "addresses", "fence", "waits", "notes"];

/// The one form of `status`, from what the core of a leader or of this command says, or the storage alone.
pub(crate) fn status(mut status: Value) -> Value {
    let found = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let fences = found(&status["fences"]).into_iter().map(fence).collect::<Vec<_>>();
    let members = found(&status["members"]).into_iter().map(member).collect::<Vec<_>>();
    let others = found(&status["others"]).into_iter().map(other).collect::<Vec<_>>();
    let leader = serde_json::from_value::<Leader>(status["leader"].clone()).ok();
    let leader = leader.map_or(status["leader"].clone(), |leader| json!(LeaderShown::of(&leader)));
    if let Some(gate) = status["gate"].as_object_mut() {
        gate.entry("missing").or_insert_with(|| json!([]));
    }
    let Some(fields) = status.as_object_mut() else { return status };
    for (key, value) in [
        ("fences", json!(fences)),
        ("members", json!(members)),
        ("others", json!(others)),
        ("leader", leader),
    ] {
        fields.insert(key.to_owned(), value);
    }
    for key in STATUS.into_iter().chain(HERE) {
        fields.entry(key).or_insert(Value::Null);
    }
    status["outlook"] = json!(outlook::outlook(&status));
    status
}

/// A record with what is known beside it; anything else has the form already.
fn fence(found: Value) -> Value {
    let Ok(record) = serde_json::from_value::<FenceRecord>(found.clone()) else { return found };
    let mut shown = FenceShown::of(record);
    shown.pending = serde_json::from_value(found["pending"].clone()).ok();
    shown.waits = found["waits"].as_str().map(str::to_owned);
    shown.value()
}

fn member(mut member: Value) -> Value {
    if let Some(fields) = member.as_object_mut() {
        fields.entry("notes").or_insert_with(|| json!([]));
        for key in MEMBER {
            fields.entry(key).or_insert(Value::Null);
        }
    }
    member
}

fn other(mut other: Value) -> Value {
    if let Ok(listed) = serde_json::from_value::<Listed>(other["entry"].clone()) {
        other["kind"] = json!(listed.kind());
    }
    if let Some(until) = other["until"].as_str().and_then(|until| until.parse::<Timestamp>().ok()) {
        other["until"] = json!(Timestamp::from_second(until.as_second()).unwrap_or(until));
    }
    other
}
