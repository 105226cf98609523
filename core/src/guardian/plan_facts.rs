//! What a plan, a seal and a gate need to know of a member beside its addresses: its clients, the addresses that may be
//! another host's, and whether it answers. One that answers is not lost, and a fence of it would be a mistake (INV-6).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::guardian::address_book::ForeignClients;
use crate::guardian::context::Ctx;
use crate::guardian::found::FoundImages;
use crate::model::ceph_snapshot::CephSnapshot;
use crate::model::incus_snapshot::MemberStatus;
use crate::mutants::{self, Mutant};
use crate::rules::plan::{KnownClients, MemberAnswer};

/// How long an operator's fence waits for a reading of Incus that tells whether the member answers. An Incus that hangs
/// must not hold up a fence.
const WAITS: Duration = Duration::from_secs(3);
/// How long a member's own answer counts where Incus does not say whether it is reachable: healthy members are asked
/// once a minute.
const ANSWER_LASTS: Duration = Duration::from_secs(65);
/// The same where Incus counts it as offline.
const ANSWER_STANDS: Duration = Duration::from_secs(10);

/// What is known of a member, with what this look shows at its images.
pub(super) fn known_of(ctx: Ctx<'_>, found: &FoundImages, name: &str, world: &CephSnapshot) -> KnownClients {
    let single = single_addresses(ctx, name, world);
    let record = ctx.book.members.get(name);
    let mut known = KnownClients {
        clients: record.map(|record| record.clients.clone()).unwrap_or_default(),
        single,
        ..KnownClients::default()
    };
    if record.is_some_and(|record| record.others.is_none()) {
        let text = "a guardian of an earlier version recorded it, which kept only some of its clients";
        known.unknown.push(text.to_owned());
    }
    known.unknown.extend(found.lost_pools_of(ctx, name));
    let owners = ctx.book.clients();
    let holders = ctx.book.holders(&ctx.settings.members);
    let strangers = ForeignClients { daemons: &world.daemons, ..ctx.strangers() };
    let before = record.into_iter().flat_map(|record| record.others.iter().flatten());
    for client in before.filter(|client| !strangers.has(client)) {
        known.others.insert(*client, format!("used an image of {name} when that was healthy"));
    }
    for (client, image) in ctx.users_of(name, world).filter(|(client, _)| !strangers.has(client)) {
        let holder = holders.get(&client.ip);
        match owners.get(&client) {
            Some(owner) if *owner == name => drop(known.clients.insert(client)),
            // A second writer, or the new owner: its own member's.
            Some(_) if mutants::is(Mutant::UsersAreTargets) => drop(known.clients.insert(client)),
            Some(_) => {}
            None if mutants::is(Mutant::UsersAreTargets) => drop(known.clients.insert(client)),
            None if holder.is_some_and(|holders| holders.len() == 1) => {
                if holder.is_some_and(|holders| holders.contains(name)) {
                    known.clients.insert(client);
                }
            }
            None => drop(known.others.insert(client, format!("uses {image}"))),
        }
    }
    known
}

/// Addresses of a member at which other hosts may have clients, and why: no host entry is made of them.
pub(super) fn single_addresses(ctx: Ctx<'_>, name: &str, world: &CephSnapshot) -> BTreeMap<IpAddr, String> {
    let said = ctx.book.said(name, &ctx.settings.members);
    let record = ctx.book.members.get(name);
    let told = record.is_some_and(|record| record.interfaces.is_some());
    let is_online =
        |name: &str| ctx.incus.member(name).is_some_and(|member| member.status == MemberStatus::Online);
    let why = |ip: IpAddr| {
        let shown = record.is_some_and(|record| record.shows(ip));
        let is_said = said.as_ref().is_some_and(|said| said.contains(&ip));
        let live = ctx.book.members.values().filter(|other| other.name != name && is_online(&other.name));
        if let Some(other) = live.filter(|other| other.shows(ip)).map(|other| &other.name).next()
            && !mutants::is(Mutant::LiveInterfaceIgnored)
        {
            return Some(format!("it is on an interface of {other}"));
        }
        if let Some(what) = ctx.came_later.get(name).and_then(|later| later.get(&ip))
            && !mutants::is(Mutant::NewcomersIgnored)
        {
            return Some(format!(
                "{what} is there, and was not when {name} told its interfaces last: it may be another host's address now"
            ));
        }
        let daemon = world.daemons.iter().find(|daemon| daemon.ips.contains(&ip));
        match daemon {
            Some(daemon) if !shown && (told || !is_said) => {
                Some(format!("{daemon} is there, and no interface of {name}"))
            }
            Some(_) | None => (!shown && !is_said).then(|| {
                format!(
                    "no interface of {name} shows it, and user.rbd-guardian.ceph-addresses does not name it"
                )
            }),
        }
    };
    let members = ctx.addresses();
    let addresses = members.get(name).into_iter().flat_map(|member| &member.addresses);
    addresses.filter_map(|ip| Some((*ip, why(*ip)?))).collect()
}

/// Members that answer Incus or the guardian now, and what they run.
pub(super) fn reachable(ctx: Ctx<'_>) -> BTreeMap<String, MemberAnswer> {
    let names = ctx.incus.view().into_iter().flat_map(|view| view.members.keys());
    let answers = |name: &String| {
        let answers = MemberAnswer { seen: answers(ctx, name)?, runs: runs(ctx, name) };
        Some((name.clone(), answers))
    };
    names.filter_map(answers).collect()
}

/// Is it known which members answer, or not to be known soon?
pub(super) fn may_judge_reach(ctx: Ctx<'_>, wanted: Duration) -> bool {
    let waited = ctx.now.boot.saturating_sub(wanted) >= WAITS;
    !ctx.settings.platform || ctx.is_fresh() || ctx.incus.view_failed.as_deref().is_some() || waited
}

fn answers(ctx: Ctx<'_>, name: &str) -> Option<String> {
    let member = ctx.incus.member(name)?;
    let evidence = ctx.members.get(name);
    let state = evidence.and_then(|evidence| evidence.state.as_ref());
    let answered = state.filter(|(_, state)| state.is_ok()).map(|(at, _)| *at);
    let age = |at: Duration| ctx.now.boot.saturating_sub(at);
    let itself = |at: Duration| format!("answered {} s ago when it was asked itself", age(at).as_secs());
    let lost_since = evidence.and_then(|evidence| evidence.offline_since);
    // Asked while its cluster called it lost.
    let at_last = evidence.and_then(|evidence| evidence.answered);
    match &member.status {
        MemberStatus::Online | MemberStatus::Blocked => {
            ctx.is_fresh().then(|| format!("answers Incus ({})", String::from(member.status.clone())))
        }
        // Maintenance states hide whether it is reachable.
        MemberStatus::Evacuating
        | MemberStatus::Evacuated
        | MemberStatus::Restoring
        | MemberStatus::Other(_)
            if lost_since.is_none() =>
        {
            answered.filter(|at| age(*at) < ANSWER_LASTS).map(itself)
        }
        MemberStatus::Offline
        | MemberStatus::Evacuating
        | MemberStatus::Evacuated
        | MemberStatus::Restoring
        | MemberStatus::Other(_) => {
            if let Some(at) = at_last {
                return Some(itself(at));
            }
            let since = lost_since?;
            answered.filter(|at| *at > since && age(*at) < ANSWER_STANDS).map(itself)
        }
    }
}

/// The instances that run there.
fn runs(ctx: Ctx<'_>, name: &str) -> Option<Vec<String>> {
    let instances = ctx.incus.view()?.instances.as_ref()?;
    let here = instances.iter().filter(|(_, instance)| instance.location == name);
    let running =
        here.filter(|(_, instance)| instance.details.as_ref().is_none_or(|details| details.running));
    Some(running.map(|(id, _)| id.to_string()).collect())
}
