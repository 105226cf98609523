//! `status`: members and their fences. Nothing but the blocklist remembers a fence, so its proof is made anew.

mod text;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rbd_guardian_core::guardian::status::AddressStatus;
use rbd_guardian_core::model::addr::Entry;
use rbd_guardian_core::model::barrier::{PoolProof, PoolToProve};
use rbd_guardian_core::model::fence_id::{FenceContent, FenceId};
use rbd_guardian_core::model::listed::Listed;
use rbd_guardian_core::model::member::Member;
use rbd_guardian_core::model::osdmap::OsdMap;
use rbd_guardian_core::model::record::{self, FenceState, Records};
use rbd_guardian_core::rules::entry_origin::{self, EntryOrigin, OtherEntry};
use serde::Serialize;
use serde_json::{Value, json};

use super::answer::{Cell, EntryAnswer, barrier_text, table};
use super::context::{Context, print};
use super::error::CliError;
use super::output::tell;
use super::progress::Progress;
use super::seen::{AnswerSource, Memory, core, is_more_than_storage, memory, who_leads};
use super::{Common, Exit, Format, StatusArgs};
use crate::ceph::barrier::{Probes, barrier};
use crate::ceph::osdmap;
use crate::cli::dispatch::{VerbStart, daemon_status};
use crate::cli::output::{self, say};
use crate::cli::standalone;
use crate::clock;
use crate::control::protocol::ProvedPool;
use crate::shown::outlook::severity;
use crate::shown::{self, FenceShown};
use rbd_guardian_core::model::epoch::OsdEpoch;

/// What the storage alone shows.
struct StorageStatus {
    /// Why the ledger could not be read: then it is unknown whose the entries are, and none is to be removed.
    ledger_unread: Option<String>,
    epoch: OsdEpoch,
    members: Vec<MemberFound>,
    /// Entries of no member that is fenced.
    others: Vec<OtherFound>,
    /// Whether every PG enforces this epoch's entries; empty if no member is fenced.
    barrier: Vec<ProvedPool>,
}

/// An entry that no fence accounts for.
#[derive(Serialize)]
struct OtherFound {
    entry: Listed,
    until: Timestamp,
    /// Whose it looks like; `null` if the ledger could not be read.
    origin: Option<EntryOrigin>,
    member: Option<String>,
}

struct MemberFound {
    name: String,
    addresses: Vec<AddressStatus>,
    state: MemberFenceState,
    fence: Option<FenceContent>,
    entries: Vec<EntryAnswer>,
    notes: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MemberFenceState {
    /// No address of it is fenced.
    Watching,
    /// Fenced, and proved just now.
    Sealed,
    /// Fenced; some PGs did not answer.
    Pending,
    /// Some of its addresses are fenced and others are not.
    Breached,
}

/// How long PGs may take to answer before they are shown as pending.
const PROVE_WITHIN: Duration = Duration::from_secs(2);
const REPEAT: Duration = Duration::from_secs(2);

/// Looks repeated when the cluster changed under the proof.
const ROUNDS: usize = 3;
/// As the daemon knows it, where one leads on this host; else as the blocklist shows it.
pub(super) fn run(common: &Common, args: &StatusArgs) -> Result<Exit, CliError> {
    loop {
        let opening = VerbStart::new(common)?;
        let status = match opening.status()? {
            Some(mut status) if status["stage"] == "leading" => {
                set(&mut status, "source", &AnswerSource::Leader);
                shown::status(status)
            }
            status @ (Some(_) | None) => return alone(opening.context()?, status, args),
        };
        let shown = picture(common.format(), args, &status, |status| text::served(status, clock::wall()))?;
        if args.check {
            return Ok(check(&status));
        }
        if !(args.watch && shown) || opening.deadline.anew(common.timeout).pause(REPEAT).is_err() {
            return Ok(Exit::Done);
        }
    }
}

/// Prints one picture; of `--watch` in the place of the last one, of `--check` its first lines alone.
fn picture(
    format: Format,
    args: &StatusArgs,
    status: &Value,
    whole: impl FnOnce(&Value) -> String,
) -> Result<bool, CliError> {
    let watched = args.watch && format == Format::Table;
    if watched && !output::clear()? {
        return Ok(false);
    }
    let heading = if watched { text::heading(REPEAT.as_secs(), clock::wall()) } else { String::new() };
    print(format, status, |status| if args.check { text::checked(status) } else { heading + &whole(status) })
}

/// For monitoring: 0 only if a lost member would be fenced and nobody must act at once.
fn check(status: &Value) -> Exit {
    let alarms = status["alarms"].as_array().into_iter().flatten();
    let critical = alarms.filter_map(|alarm| alarm["code"].as_str()).any(|code| severity(code) == "critical");
    match status["outlook"]["word"].as_str() {
        Some("armed") if !critical => Exit::Done,
        Some("blind") | None => Exit::CannotTell,
        Some(_) => Exit::Failed,
    }
}

fn set(status: &mut Value, key: &str, value: &impl Serialize) {
    if let Some(fields) = status.as_object_mut() {
        fields.insert(key.to_owned(), serde_json::to_value(value).unwrap_or_default());
    }
}

fn alone(mut context: Context, mut standby: Option<Value>, args: &StatusArgs) -> Result<Exit, CliError> {
    let mut names = Probes::default();
    loop {
        let shown = show(&context, &mut names, standby.take(), args);
        match shown {
            Ok((true, _)) if args.watch && !args.check => {}
            // A monitor election is no reason to stop watching.
            Err(fault) if args.watch && fault.exit() == Exit::CannotTell => {
                tell!("rbd-guardian: {fault}")
            }
            Ok((_, exit)) => return Ok(exit),
            Err(fault) => return Err(fault),
        }
        context.restart();
        if context.deadline.pause(REPEAT).is_err() {
            return Ok(Exit::Done);
        }
        standby = daemon_status(&context.config, &context.deadline)?;
    }
}

fn show(
    context: &Context,
    names: &mut Probes,
    standby: Option<Value>,
    args: &StatusArgs,
) -> Result<(bool, Exit), CliError> {
    let memory = memory(context);
    if let Memory::Ledger(records) = memory {
        return known(context, *records, standby, args);
    }
    if is_more_than_storage(context, &memory) && memory.unread().is_none() {
        return known(context, Records::default(), standby, args);
    }
    let unread = memory.unread().map(str::to_owned);
    let (map, proofs) = prove(context, names)?;
    let now = map.clock(clock::wall());
    let proved = !proofs.is_empty() && proofs.iter().all(PoolProof::is_complete);
    let members = context.config.members.0.iter();
    let members: Vec<MemberFound> = members
        .map(|member| describe(member, &map, context.config.policy.required_until(now), proved))
        .collect();
    let found = StorageStatus {
        epoch: map.epoch,
        others: others(context, &map, now, &members, unread.is_none()),
        members,
        ledger_unread: unread,
        barrier: proofs.iter().map(ProvedPool::from).collect(),
    };
    let answer = shown::status(found.value(context, standby.as_ref(), &proofs));
    let whole = |answer: &Value| format!("{}\n{}", text::health_line(answer), found_text(&found));
    let shown = picture(context.format, args, &answer, whole)?;
    let exit = if args.check { check(&answer) } else { Exit::Done };
    let Some(why) = &found.ledger_unread else { return Ok((shown, exit)) };
    say(&format!(
        "the ledger cannot be read: it is not known whose these entries are; do not remove any ({why})"
    ));
    Ok((shown, Exit::CannotTell))
}

/// By the ledger's records, and Incus and Ceph as they are now: what a leader would show.
fn known(
    context: &Context,
    records: Records,
    standby: Option<Value>,
    args: &StatusArgs,
) -> Result<(bool, Exit), CliError> {
    let leads = who_leads(context, records.leader.as_ref());
    let leader = records.leader.clone();
    let (core, now) = core(context, records)?;
    let mut status = serde_json::to_value(core.status(now)).unwrap_or_default();
    set(&mut status, "source", &AnswerSource::Ledger);
    set(&mut status, "leader", &leader);
    set(&mut status, "leads", &leads);
    set(&mut status, "here", &here(context, standby.as_ref()));
    // This command records nothing: recordings are the daemon's.
    for key in shown::HERE {
        set(&mut status, key, &standby.as_ref().map(|standby| &standby[key]));
    }
    let status = shown::status(status);
    let shown = picture(context.format, args, &status, |status| text::served(status, clock::wall()))?;
    Ok((shown, if args.check { check(&status) } else { Exit::Done }))
}

/// What the guardian of this host does, in words.
fn here(context: &Context, standby: Option<&Value>) -> String {
    let Some(standby) = standby else {
        return format!("NO GUARDIAN RUNS ON THIS HOST ({})", context.config.daemon.socket.display());
    };
    standby["here"].as_str().unwrap_or("the guardian of this host does not lead").to_owned()
}

impl StorageStatus {
    /// With every field that a leader would show: `null` for what the storage does not tell.
    fn value(&self, context: &Context, standby: Option<&Value>, proofs: &[PoolProof]) -> Value {
        let pending: Vec<String> = proofs.iter().flat_map(PoolProof::pending_names).collect();
        let fences = self.members.iter().filter_map(|member| {
            let state = member.state.of_fence()?;
            let fence = FenceShown::found(
                FenceId::from(member.fence.as_ref()?),
                &member.name,
                state,
                &member.entries,
            );
            Some(fence.pending(pending.clone()).value())
        });
        let member = |member: &MemberFound| {
            let MemberFound { name, addresses, state, fence, notes, .. } = member;
            json!({"name": name, "addresses": addresses, "state": state.word(), "fence": fence, "notes": notes})
        };
        let mut value = json!({
            "source": AnswerSource::Ceph,
            "here": here(context, standby),
            "leader": standby.map(|standby| &standby["leader"]),
            "ledger_unread": self.ledger_unread,
            "trigger": context.config.incus.endpoints.is_empty().then_some("none"),
            "storage": {"fresh": true, "age_s": 0, "trouble": null},
            "epoch": self.epoch,
            "members": self.members.iter().map(member).collect::<Vec<_>>(),
            "fences": fences.collect::<Vec<_>>(),
            "others": self.others,
        });
        for key in shown::HERE {
            set(&mut value, key, &standby.map(|standby| &standby[key]));
        }
        value
    }
}

impl MemberFenceState {
    fn word(self) -> &'static str {
        match self {
            Self::Watching => "watching",
            Self::Sealed => "sealed",
            Self::Pending => "pending",
            Self::Breached => "breached",
        }
    }

    fn of_fence(self) -> Option<FenceState> {
        match self {
            Self::Watching => None,
            Self::Sealed => Some(FenceState::Sealed),
            Self::Pending => Some(FenceState::Pending),
            Self::Breached => Some(FenceState::Breached),
        }
    }
}

/// A map, and what PGs prove of it; no proofs if no member is fenced. The map is read again afterwards: what was
/// proved holds only if it shows the same entries and pools.
fn prove(context: &Context, names: &mut Probes) -> Result<(OsdMap, Vec<PoolProof>), CliError> {
    let members = &context.config.members.0;
    let fenced = |map: &OsdMap| {
        let mut ips = members.iter().flat_map(|member| &member.addresses);
        ips.any(|ip| map.blocklist.hosts(*ip).next().is_some())
    };
    let mut map = context.read(osdmap::dump)?.map;
    let mut progress = Progress::new();
    for _ in 0..ROUNDS {
        if !fenced(&map) {
            return Ok((map, Vec::new()));
        }
        let guarded = context.config.policy.guarded.pools(&map);
        let pools: Vec<_> = guarded.into_iter().map(|(id, pool)| PoolToProve::new(id, pool)).collect();
        let within = context.deadline.at_most(PROVE_WITHIN);
        let say = &mut |proofs: &[PoolProof]| progress.say(|| standalone::unproved(proofs));
        let proofs = barrier(&context.cluster, &pools, map.epoch, names, &within, say);
        let after = context.read(osdmap::dump)?.map;
        if after.blocklist == map.blocklist && after.pools == map.pools {
            return Ok((after, proofs));
        }
        map = after;
    }
    Err(CliError::Restless)
}

fn describe(member: &Member, map: &OsdMap, required: Timestamp, proved: bool) -> MemberFound {
    let mut entries = Vec::new();
    let mut hosts = BTreeSet::new();
    let mut notes = Vec::new();
    for ip in &member.addresses {
        let fenced: Vec<_> = map.blocklist.hosts(*ip).collect();
        hosts.extend(fenced.iter().map(|(entry, _)| *entry));
        let clients = map.blocklist.clients(*ip).map(|(client, until)| (Entry::Client(client), until));
        let all: Vec<_> = fenced.into_iter().chain(clients).collect();
        for (entry, until) in all.iter().filter(|(_, until)| *until < required) {
            notes.push(format!("{entry} ends at {until}: fence the member again to replace it"));
        }
        entries.extend(all.into_iter().map(|(entry, until)| EntryAnswer::new((entry, Some(until)))));
    }
    let unfenced = member.addresses.iter().filter(|ip| map.blocklist.hosts(**ip).next().is_none());
    let unfenced: Vec<String> = unfenced.map(ToString::to_string).collect();
    let state = if hosts.is_empty() {
        MemberFenceState::Watching
    } else if !unfenced.is_empty() {
        notes.push(format!("not fenced: {}; fence the member again, or release it", unfenced.join(", ")));
        MemberFenceState::Breached
    } else if proved {
        MemberFenceState::Sealed
    } else {
        MemberFenceState::Pending
    };
    let fence = (!hosts.is_empty()).then(|| FenceContent::new(Some(&member.name), &hosts));
    let address = |ip: &IpAddr| AddressStatus { address: *ip, sources: [record::Source::Operator].into() };
    let addresses = member.addresses.iter().map(address).collect();
    MemberFound { name: member.name.clone(), addresses, state, fence, entries, notes }
}

/// Entries of fenced members are shown with their fences.
fn others(
    context: &Context,
    map: &OsdMap,
    now: Timestamp,
    found: &[MemberFound],
    known: bool,
) -> Vec<OtherFound> {
    let required = context.config.policy.required_until(now);
    let fenced = found.iter().filter(|member| member.fence.is_some());
    let told: BTreeSet<Entry> = fenced.flat_map(|member| &member.entries).map(|entry| entry.entry).collect();
    let ours = |entry| told.contains(&entry);
    let others = entry_origin::others(&map.blocklist, ours, &context.config.members, now, required);
    let other = |OtherEntry { entry, until, origin, member }: OtherEntry| {
        let until = Timestamp::from_second(until.as_second()).unwrap_or(until);
        OtherFound { entry, until, origin: Some(origin).filter(|_| known), member }
    };
    others.into_iter().map(other).collect()
}

fn found_text(answer: &StorageStatus) -> String {
    let mut rows = table(["MEMBER", "STATE", "ENTRIES", "FENCE"]);
    for member in &answer.members {
        let state = match member.state {
            MemberFenceState::Watching => "watching",
            MemberFenceState::Sealed => "SEALED",
            MemberFenceState::Pending => "PENDING",
            MemberFenceState::Breached => "BREACHED",
        };
        let entries: Vec<String> = member.entries.iter().map(|entry| entry.entry.to_string()).collect();
        let fence = member.fence.as_ref().map(ToString::to_string).unwrap_or_default();
        rows.add_row([member.name.as_str().into(), state.into(), Cell::lines(entries), fence.into()]);
    }
    let mut text = format!("osdmap epoch {}\n{rows}\n", answer.epoch);
    for (member, note) in
        answer.members.iter().flat_map(|member| member.notes.iter().map(move |note| (member, note)))
    {
        text.push_str(&format!("{}: {note}\n", member.name));
    }
    if answer.members.is_empty() && answer.ledger_unread.is_none() {
        text.push_str("no members are configured: add [[member]] tables to the configuration\n");
    }
    if !answer.barrier.is_empty() {
        text.push_str(&format!("\nproof, made just now:\n{}\n", barrier_text(&answer.barrier)));
    }
    if !answer.others.is_empty() {
        let others: Vec<Value> =
            answer.others.iter().filter_map(|other| serde_json::to_value(other).ok()).collect();
        let title = if answer.ledger_unread.is_some() {
            "entries of unknown origin: do not remove any"
        } else {
            "other entries (no guardian keeps a ledger here, so a fence of addresses is among them)"
        };
        text::others(&others, clock::wall(), title, &mut text);
    }
    text
}
