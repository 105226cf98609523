//! `release`: a host may use the storage again, its old client instances never.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Serialize;

use super::answer::{EntryAnswer, entries_table};
use super::context::Context;
use super::error::Fault;
use super::{Exit, ReleaseArgs, drive};
use crate::clock;
use crate::domain::addr::Entry;
use crate::domain::fence_id::FenceId;
use crate::domain::release::Release;

#[derive(Serialize)]
struct ReleaseAnswer {
    fence: FenceId,
    member: Option<String>,
    state: &'static str,
    removed: Vec<Entry>,
    kept: Vec<EntryAnswer>,
    reason: Option<String>,
}

pub(super) fn run(context: &Context, args: &ReleaseArgs) -> Result<Exit, Fault> {
    let fence = named(context, args)?;
    if !args.assert_powered_off {
        return Err(Fault::NotAsserted);
    }
    let ips: BTreeSet<IpAddr> = fence.entries.iter().map(|entry| entry.ip()).collect();
    let hosts_only = fence.entries.iter().any(|entry| entry.is_host());
    let policy = &context.config.policy;
    let mut release =
        Release::new(if hosts_only { ips } else { BTreeSet::new() }, policy.required_until(clock::wall()));
    let ended = drive::release(context, &mut release)?;
    let done = release.is_done();
    let answer = ReleaseAnswer {
        member: fence.member.clone(),
        fence,
        state: if done { "released" } else { "releasing" },
        removed: release.removed().iter().copied().collect(),
        kept: release.kept().map(EntryAnswer::new).collect(),
        reason: args.reason.clone(),
    };
    context.print(&answer, text)?;
    if let Some(failure) = release.failure() {
        eprintln!("rbd-guardian: {failure}");
        return Ok(Exit::Failed);
    }
    if let Err(late) = ended {
        eprintln!("rbd-guardian: {late} before the host entries were seen to be gone; run it again");
        return Ok(Exit::CannotTell);
    }
    Ok(if done { Exit::Done } else { Exit::CannotTell })
}

fn named(context: &Context, args: &ReleaseArgs) -> Result<FenceId, Fault> {
    if let Some(id) = &args.fence {
        return Ok(id.parse()?);
    }
    let name = args.member.clone().unwrap_or_default();
    let members = &context.config.members;
    let Some(member) = members.get(&name) else {
        let known = members.0.iter().map(|member| member.name.clone()).collect::<Vec<_>>().join(", ");
        return Err(Fault::NoMember { name, known });
    };
    Ok(FenceId::new(Some(&name), &member.addresses.iter().copied().map(Entry::Host).collect()))
}

fn text(answer: &ReleaseAnswer) -> String {
    let what = answer.member.clone().unwrap_or_else(|| answer.fence.to_string());
    let mut text = format!("{what}  {}\n", answer.state.to_uppercase());
    if answer.removed.is_empty() {
        text.push_str("no host entry was there to remove\n");
    }
    for entry in &answer.removed {
        text.push_str(&format!("removed {entry}\n"));
    }
    if !answer.kept.is_empty() {
        text.push_str(&format!("its old client instances stay refused:\n{}\n", entries_table(&answer.kept)));
    }
    text
}
