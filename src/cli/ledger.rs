//! `ledger`: what guardians remember together. Reads only.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::Timestamp;
use rbd_guardian_core::model::addr::EntityAddr;
use rbd_guardian_core::model::record::{Audit, DisarmRecord, GateRecord, Records, VERSION};
use serde::Serialize;

use super::answer::{Rows, table};
use super::context::Context;
use super::error::CliError;
use super::output::tell;
use super::{Exit, LedgerArgs, LedgerVerb};
use crate::ceph::rados::lock::LeaseHolder;
use crate::cli::output::say;
use crate::ledger::{Ledger, Snapshot};
use crate::shown::{FenceShown, LeaderShown, MemberKnown, RequestShown};

#[derive(Serialize)]
struct LedgerAnswer<'a> {
    pool: &'a str,
    /// The newest form found, if it is newer than this guardian's: then it writes nothing.
    newer: Option<u32>,
    lease: Option<LeaseAnswer>,
    leader: Option<LeaderShown<'a>>,
    gate: Option<&'a GateRecord>,
    /// Also when its time is over and no guardian has removed it yet.
    disarmed: Option<&'a DisarmRecord>,
    members: Vec<MemberKnown<'a>>,
    fences: Vec<FenceShown>,
    requests: Vec<RequestShown<'a>>,
    unread: &'a BTreeMap<String, String>,
    audit_entries: u64,
}

#[derive(Serialize)]
struct LeaseAnswer {
    client: String,
    cookie: String,
    address: EntityAddr,
}

pub(super) fn run(context: &Context, args: &LedgerArgs) -> Result<Exit, CliError> {
    let ledger = Ledger::open(&context.cluster, &context.config.ledger, &context.deadline)?;
    let snapshot = ledger.read(&context.deadline)?;
    match args.what {
        None | Some(LedgerVerb::Show) => show(context, &ledger, &snapshot)?,
        Some(LedgerVerb::Audit { last }) => {
            let trail = ledger.trail(&snapshot, last.unwrap_or(u64::MAX), &context.deadline)?;
            context.print(&trail, |trail| audit_text(trail))?;
        }
    }
    for note in ledger.notes() {
        say(note);
    }
    if let Some(newer) = snapshot.newer() {
        tell!(
            "rbd-guardian: the ledger has form {newer} and this guardian knows {VERSION}: it shows what it \
             understands and writes nothing; update it"
        );
    }
    Ok(Exit::Done)
}

fn show(context: &Context, ledger: &Ledger, snapshot: &Snapshot) -> Result<(), CliError> {
    let lease = ledger.holder(&context.deadline)?;
    let Records { leader, gate, disarm, members, fences, requests } = snapshot.records();
    let answer = LedgerAnswer {
        pool: &context.config.ledger.pool,
        newer: snapshot.newer(),
        lease: lease.map(|LeaseHolder { client, cookie, address }| LeaseAnswer { client, cookie, address }),
        leader: leader.as_ref().map(LeaderShown::of),
        gate: gate.as_ref(),
        disarmed: disarm.as_ref(),
        members: members.values().map(MemberKnown::of).collect(),
        fences: fences.values().cloned().map(FenceShown::of).collect(),
        requests: requests.values().map(RequestShown::of).collect(),
        unread: snapshot.unread(),
        audit_entries: snapshot.trail_entries(),
    };
    context.print(&answer, text)?;
    Ok(())
}

fn text(answer: &LedgerAnswer<'_>) -> String {
    let mut text = String::new();
    let mut line = |what: &str, said: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{what:<9}{said}");
    };
    line("ledger", format!("pool {}, {} entries in the audit trail", answer.pool, answer.audit_entries));
    line(
        "leader",
        answer.leader.as_ref().map_or_else(
            || "nobody has led yet".to_owned(),
            |leader| {
                let (guardian, host) = (&leader.guardian, &leader.host);
                format!("{guardian} on {host}, epoch {}, since {}", leader.epoch, seconds(leader.since))
            },
        ),
    );
    line(
        "lease",
        answer.lease.as_ref().map_or_else(
            || "nobody holds it".to_owned(),
            |lease| format!("{} ({} at {})", lease.cookie, lease.client, lease.address),
        ),
    );
    line(
        "gate",
        answer.gate.map_or_else(
            || "never written".to_owned(),
            |gate| {
                let open: Vec<&str> = gate.open.iter().map(String::as_str).collect();
                let open = if open.is_empty() { "nobody".to_owned() } else { open.join(", ") };
                format!("epoch {}, open for {open}", gate.epoch)
            },
        ),
    );
    let mut member_rows = table(["MEMBER", "ADDRESSES", "CLIENTS", "MACHINE"]);
    for member in &answer.members {
        let addresses: Vec<String> = member.addresses.iter().map(|known| known.address.to_string()).collect();
        member_rows.add_row([
            member.name.to_owned(),
            addresses.join(" "),
            member.clients.len().to_string(),
            member.machine.unwrap_or_default().to_owned(),
        ]);
    }
    let mut fence_rows = table(["FENCE", "MEMBER", "STATE", "ENTRIES", "IN DOUBT", "SINCE", "BY", "REASON"]);
    for fence in &answer.fences {
        fence_rows.add_row(fence_row(fence));
    }
    let mut request_rows = table(["REQUEST", "WHAT", "BY", "AT", "TAKEN", "ANSWER"]);
    for asked in &answer.requests {
        let taken = asked.taken.map_or_else(|| "not yet".to_owned(), |epoch| format!("by epoch {epoch}"));
        let answered = if asked.answered { "waits to be fetched" } else { "none yet" };
        let RequestShown { request, what, by, at, .. } = asked;
        request_rows.add_row([*request, what, by, &seconds(*at), &taken, answered]);
    }
    for rows in [member_rows, fence_rows, request_rows] {
        section(&mut text, &rows);
    }
    for (key, why) in answer.unread {
        let _ = write!(text, "\nnot understood, and not written over: {key}: {why}");
    }
    text
}

fn fence_row(fence: &FenceShown) -> [String; 8] {
    let in_doubt: Vec<String> = fence.in_doubt.iter().map(ToString::to_string).collect();
    [
        fence.fence.to_string(),
        fence.member.clone().unwrap_or_default(),
        fence.state.to_string(),
        fence.entries.len().to_string(),
        in_doubt.join(" "),
        fence.since.map(seconds).unwrap_or_default(),
        fence.by.clone().unwrap_or_default(),
        fence.reason.clone().unwrap_or_default(),
    ]
}

/// A table that has rows, behind an empty line.
fn section(text: &mut String, rows: &Rows) {
    if !rows.is_empty() {
        let _ = writeln!(text, "\n{rows}");
    }
}

fn audit_text(trail: &[Audit]) -> String {
    let mut rows = table(["SEQ", "AT", "WHO", "HOST", "WHAT", "WHY"]);
    for audit in trail {
        let Audit { seq, at, who, host, what, why } = audit;
        rows.add_row([&seq.to_string(), &seconds(*at), who, host, what, why]);
    }
    rows.to_string()
}

/// Whole seconds: more is noise to a reader.
fn seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}
