//! `release`: a host may use the storage again, its old client instances never.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rbd_guardian_core::fence::releasing::Release;
use rbd_guardian_core::fence::step::StepMachine as _;
use rbd_guardian_core::model::addr::Entry;
use rbd_guardian_core::model::fence_id::{FenceContent, FenceId};
use rbd_guardian_core::model::listed::Listed;
use rbd_guardian_core::model::operator_request;
use rbd_guardian_core::model::record::FenceState;
use rbd_guardian_core::rules::refusal::Refusal;
use serde::Serialize;

use super::answer::{EntryAnswer, entries_table};
use super::context::{Context, print};
use super::error::CliError;
use super::output::tell;
use super::{Common, Exit, ReleaseArgs};
use crate::ceph::osdmap;
use crate::cli::dispatch::{self, VerbOutcome, VerbStart, operator, otherwise};
use crate::cli::standalone;
use crate::clock;
use crate::config::Config;
use crate::control::protocol::{ControlLine, Reason};

/// What became of a release: the same whether a daemon, another guardian or this command carried it out.
#[derive(Serialize)]
struct ReleaseAnswer {
    fence: FenceId,
    member: Option<String>,
    state: FenceState,
    /// `None` where another process removed them.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<Vec<Entry>>,
    kept: Vec<EntryAnswer>,
    in_doubt: BTreeSet<Entry>,
    /// Entries of others that still refuse its host.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    refused_by: BTreeSet<Listed>,
    reason: Option<String>,
}

pub(super) fn run(common: &Common, args: &ReleaseArgs) -> Result<Exit, CliError> {
    if let Some(id) = &args.fence {
        id.parse::<FenceContent>()?;
    }
    let request = operator_request::Request::Release {
        // Who leads knows the member's fence, and addresses of it that this configuration may not know.
        fence: args.fence.clone().or_else(|| args.member.clone()).unwrap_or_default(),
        since: None,
        assert_powered_off: args.assert_powered_off,
        reason: args.reason.clone(),
        by: operator(),
    };
    match VerbStart::new(common)?.request(request)? {
        VerbOutcome::Alone(context) => alone(&context, args),
        // Told of fences only.
        VerbOutcome::Underway { .. } => Ok(Exit::CannotTell),
        VerbOutcome::Answered(ControlLine::Released { fence }) => {
            let entries = fence.entries.iter().filter(|(entry, _)| !entry.is_host());
            let answer = ReleaseAnswer {
                removed: None,
                kept: entries.map(|(entry, until)| EntryAnswer::new((*entry, *until))).collect(),
                in_doubt: fence.in_doubt,
                state: fence.state,
                refused_by: fence.refused_by,
                reason: args.reason.clone(),
                fence: fence.id,
                member: fence.member,
            };
            print(common.format(), &answer, text)?;
            Ok(end(&answer.refused_by))
        }
        VerbOutcome::Answered(line) => otherwise(common, args.member.clone(), line),
    }
}

/// With the storage alone: what was fenced is known from the fence's ID or the configuration.
fn alone(context: &Context, args: &ReleaseArgs) -> Result<Exit, CliError> {
    let fence = match named(&context.config, args)? {
        Ok(fence) => fence,
        Err(refusal) => {
            return dispatch::refuse(context.format, args.member.clone(), [Reason::from(&refusal)]);
        }
    };
    if !args.assert_powered_off {
        let what = args.member.clone().unwrap_or_else(|| fence.to_string());
        let refusal =
            Refusal::NotProved { what, state: "fenced by the blocklist alone".to_owned(), why: None };
        return dispatch::refuse(context.format, args.member.clone(), [Reason::from(&refusal)]);
    }
    let hosts = fence.entries.iter().filter(|entry| entry.is_host());
    let ips: BTreeSet<IpAddr> = hosts.map(|entry| entry.ip()).collect();
    let now = context.read(osdmap::dump)?.map.clock(clock::wall());
    let mut release = Release::new(ips, context.config.policy.required_until(now));
    let ended = standalone::release(context, &mut release);
    let done = release.is_done();
    // Client entries belong to instances that are never let back in, also where the fence was of nothing else.
    let clients = fence.entries.iter().filter(|entry| !entry.is_host());
    let kept = clients.map(|entry| (*entry, release.until(*entry))).chain(release.kept());
    let answer = ReleaseAnswer {
        member: fence.member.clone(),
        state: if done { FenceState::Released } else { FenceState::Releasing },
        removed: Some(release.removed().iter().copied().collect()),
        kept: kept.map(EntryAnswer::new).collect(),
        in_doubt: release.in_doubt().clone(),
        refused_by: release.refused_by(),
        reason: args.reason.clone(),
        fence: FenceId::from(&fence),
    };
    context.print(&answer, text)?;
    for entry in release.in_doubt() {
        tell!(
            "rbd-guardian: a removal of {entry} was not acknowledged and may still take effect: do not rely on that entry for some minutes"
        );
    }
    if let Some(failure) = release.failure() {
        tell!("rbd-guardian: {failure}");
        return Ok(Exit::Failed);
    }
    if let Err(fault) = ended {
        tell!(
            "rbd-guardian: {}; the removal of the host entries was not confirmed: run the command again",
            fault.cause()
        );
        return Ok(fault.exit());
    }
    Ok(if done { end(&answer.refused_by) } else { Exit::CannotTell })
}

/// What was asked for is done, and is of use only when no other entry refuses the host.
fn end(refused_by: &BTreeSet<Listed>) -> Exit {
    if refused_by.is_empty() { Exit::Done } else { Exit::Pending }
}

fn still_refused(refused_by: &BTreeSet<Listed>) -> String {
    if refused_by.is_empty() {
        return String::new();
    }
    let mut text = ", AND STILL REFUSED by entries that are not this fence's:".to_owned();
    for entry in refused_by {
        text.push_str(&format!(
            "\n{entry}: of another fence (rbd-guardian status), or if nobody needs it: {}",
            entry.removal()
        ));
    }
    text
}

fn named(config: &Config, args: &ReleaseArgs) -> Result<Result<FenceContent, Refusal>, CliError> {
    if let Some(id) = &args.fence {
        return Ok(Ok(id.parse()?));
    }
    let name = args.member.clone().unwrap_or_default();
    let members = &config.members;
    let Some(member) = members.get(&name) else {
        let known = members.0.iter().map(|member| member.name.clone()).collect();
        return Ok(Err(Refusal::UnknownMember { name, known }));
    };
    Ok(Ok(FenceContent::new(Some(&name), &member.addresses.iter().copied().map(Entry::Host).collect())))
}

fn text(answer: &ReleaseAnswer) -> String {
    let what = answer.member.as_deref().unwrap_or(answer.fence.as_str());
    let is_done = answer.state == FenceState::Released;
    let still = if is_done { still_refused(&answer.refused_by) } else { String::new() };
    let mut text = format!("{what}  {}{still}\n", answer.state.to_string().to_uppercase());
    let Some(removed) = &answer.removed else {
        // By a guardian, which keeps a ledger and sees Incus.
        text.push_str(&format!(
            "{} old client instances stay refused (`rbd-guardian ledger show` lists them)\n",
            answer.kept.len()
        ));
        if let Some(member) = &answer.member {
            text.push_str(&format!(
                "next: wait until `incus storage show POOL --target {member}` says Created, then \
                 `incus cluster restore {member}`\n"
            ));
        }
        return text;
    };
    if removed.is_empty() {
        text.push_str("there was no host entry to remove\n");
    }
    for entry in removed {
        text.push_str(&format!("removed {entry}\n"));
    }
    if !answer.kept.is_empty() {
        text.push_str(&format!("its old client instances stay refused:\n{}\n", entries_table(&answer.kept)));
    }
    text
}
