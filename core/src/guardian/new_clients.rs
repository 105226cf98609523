//! Client instances that appear on a fenced member after its fence was planned (docs/design.md#hold).
//!
//! Where the whole host is refused they are remembered, so that each has an entry of its own before the host is
//! released. Where only known clients are, they are fenced as they appear, and the gate stays closed meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::fence::chasing::{CHASED, REMEMBERED};
use crate::guardian::context::Ctx;
use crate::guardian::found::FoundImages;
use crate::guardian::plan_facts::{known_of, single_addresses};
use crate::guardian::report::{Alarm, Level, Reports};
use crate::model::addr::ClientAddr;
use crate::model::ceph_snapshot::{CephSnapshot, Clients, DaemonKind, Role, SeenAt};
use crate::model::fence_id::FenceId;
use crate::model::pairs;
use crate::model::record::FenceState;
use crate::model::target::Coverage;
use crate::mutants::{self, Mutant};

/// How often clients are looked for while a client could appear that no entry refuses.
const CHASE_EVERY: Duration = Duration::from_secs(5);
/// The same while entries refuse whole hosts: a monitor forgets a session after five minutes (`mon_session_timeout`). A
/// member that is back without a reboot keeps its old clients until somebody reboots it.
const REMEMBER_EVERY: Duration = Duration::from_secs(60);

/// A client that no monitor has known for this long is gone: a client that changes its monitor has a session again within
/// seconds.
const GHOST: Duration = Duration::from_secs(60);

/// Users of images that no monitor knows, and since when.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct NewClients {
    #[serde(default, with = "pairs")]
    ghosts: BTreeMap<ClientAddr, Duration>,
}

/// Clients that a look showed on a fenced member.
pub(super) struct ClientSighting {
    pub(super) id: FenceId,
    /// Clients that no entry refuses: they are fenced as well.
    free: BTreeSet<ClientAddr>,
    /// Clients that a host entry refuses: they are remembered.
    under: Vec<ClientAddr>,
}

impl ClientSighting {
    pub(super) fn give_to(self, fence: &mut Fence, reports: &mut Reports) {
        let new = fence.chase(self.free.into_iter());
        fence.remember(self.under.into_iter());
        if !new.is_empty() {
            let names = new.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let text = format!(
                "{names} appeared on it after it was fenced: refused as well, and the gate is closed until that is proved"
            );
            reports.log(Level::Warn, "chased", fence.member(), text);
        }
    }
}

impl NewClients {
    pub(super) fn ghosts(&self) -> usize {
        self.ghosts.len()
    }

    /// A watch of a client that ended may stay for ever (Ceph up to 17.2.7 and 18.2.4). What no monitor has a session of,
    /// in looks a minute apart at which every monitor answered, and what uses no image but those of a sealed member, is
    /// refused with that member: should it be alive after all it may not write there.
    pub(super) fn handle_look(&mut self, ctx: Ctx<'_>) -> Vec<(FenceId, Vec<ClientAddr>)> {
        let Some(world) = ctx.ceph.world.as_ref() else { return Vec::new() };
        if !knows_all_sessions(world) {
            self.ghosts.clear();
            return Vec::new();
        }
        let waiting = ctx.fences.all().filter(|fence| !fence.is_clear() && fence.release().is_none());
        let outside: BTreeSet<ClientAddr> =
            waiting.flat_map(|fence| fence.outside().iter().copied()).collect();
        let gone = |client: &ClientAddr| {
            let seen = world.clients.get(client);
            let session = |at: &SeenAt| matches!(at, SeenAt::Session(_));
            let own = world.own.iter().any(|own| own.client() == Some(*client));
            let daemons = world.daemons.iter().any(|daemon| daemon.clients.contains(client));
            !own && !daemons && seen.is_some_and(|seen| !seen.iter().any(session))
        };
        let now = ctx.now.boot;
        let before = std::mem::take(&mut self.ghosts);
        for client in outside.into_iter().filter(gone) {
            self.ghosts.insert(client, before.get(&client).copied().unwrap_or(now));
        }
        let lasting = self.ghosts.iter().filter(|(_, since)| now.saturating_sub(**since) >= GHOST);
        let ghosts: BTreeSet<ClientAddr> = lasting.map(|(client, _)| *client).collect();
        let sealed = |fence: &&Fence| fence.record().state == FenceState::Sealed && !fence.is_clear();
        let mut all = Vec::new();
        for fence in ctx.fences.all().filter(sealed) {
            let Some(member) = fence.member() else { continue };
            let elsewhere = |client: &ClientAddr| {
                let mut its = ctx.ceph.uses().iter().filter(|one| one.clients().contains(client));
                its.any(|one| !ctx.incus.images.get(&one.image).is_some_and(|image| image.is_at(member)))
            };
            let its = fence.outside().intersection(&ghosts).filter(|client| !elsewhere(client));
            all.push((fence.id().clone(), its.copied().collect()));
        }
        all
    }
}

/// Fences with more clients than a fence keeps.
pub(super) fn alarms(ctx: Ctx<'_>) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    for fence in ctx.fences.all() {
        let Some(name) = fence.member() else { continue };
        let mut alarm = |text: String, advice: String| {
            alarms.push(Alarm::new("too-many-clients", Some(name), text, vec![advice]));
        };
        if fence.crowd().is_beyond() {
            let text = format!(
                "more than {CHASED} client instances began on it after it was fenced: the others are not refused, and \
                 the gate is closed"
            );
            alarm(text, format!("stop what starts them on {name}, or cut its power"));
        }
        if fence.crowd().is_forgotten() {
            let text = format!(
                "more than {REMEMBERED} client instances began on it while it is refused: the others get no entry of \
                 their own when it is released"
            );
            alarm(text, format!("reboot {name} before it is released"));
        }
    }
    alarms
}

/// Refuses clients that no monitor knows with the member whose images they use.
pub(super) fn refuse_ghosts(fence: &mut Fence, ghosts: Vec<ClientAddr>, reports: &mut Reports) {
    for client in fence.chase(ghosts.into_iter()) {
        let member = fence.member().unwrap_or_default();
        let text = format!(
            "{client} uses an image of {member}, and no monitor has known it for {} s: it is refused with {member}",
            GHOST.as_secs()
        );
        reports.log(Level::Warn, "ghost-watch", Some(member), text);
    }
}

/// Is a look at Ceph due because a fence stands?
pub(super) fn look_is_due(ctx: Ctx<'_>) -> bool {
    let held = |fence: &&Fence| fence.member().is_some() && fence.release().is_none();
    // A gate waits because of a client that may be gone.
    let waits = |fence: &Fence| !fence.is_clear() && !fence.outside().is_empty() && fence.release().is_none();
    let hunts = ctx.fences.all().any(waits);
    let open = |fence: &Fence| hunts || chased_ips(ctx, fence).next().is_some();
    let back = |fence: &Fence| fence.member().is_some_and(|name| ctx.members.returned(name).is_some());
    let every = |fence: &Fence| if open(fence) || back(fence) { CHASE_EVERY } else { REMEMBER_EVERY };
    let Some(every) = ctx.fences.all().filter(held).map(every).min() else { return false };
    ctx.ceph.looked_at.is_none_or(|at| ctx.now.boot >= at + every)
}

/// Addresses of the member that no host entry of the fence refuses, except those that another member claims as well.
fn chased_ips(ctx: Ctx<'_>, fence: &Fence) -> impl Iterator<Item = IpAddr> + use<> {
    let name = fence.member().unwrap_or_default();
    let members = ctx.addresses();
    let hosts = fence.hosts();
    let mut own = members.get(name).map(|member| member.addresses.clone()).unwrap_or_default();
    let single = ctx.ceph.world.as_ref().map(|world| single_addresses(ctx, name, world)).unwrap_or_default();
    own.retain(|ip| !single.contains_key(ip));
    let unshared =
        move |ip: &IpAddr| members.0.iter().filter(|member| member.addresses.contains(ip)).count() == 1;
    own.into_iter().filter(move |ip| !hosts.contains(ip)).filter(unshared)
}

/// The clients of a look, by the fence that they concern; `before` are those of the look before.
pub(super) fn sightings(ctx: Ctx<'_>, found: &FoundImages, before: &Clients) -> Vec<ClientSighting> {
    let Some(world) = ctx.ceph.world.as_ref() else { return Vec::new() };
    if mutants::is(Mutant::NewClientsIgnored) {
        return Vec::new();
    }
    let strangers = ctx.strangers();
    let ours = |client: &ClientAddr| {
        world.own.iter().any(|own| own.client() == Some(*client)) || strangers.has(client)
    };
    // A module of a mgr uses images before the mgr has told the monitors of that client; it has no session as a
    // client. Each command of an agent has one, and is gone at the next look. Both are believed when they are seen again.
    let believed = |client: &ClientAddr, seen: &BTreeSet<SeenAt>| {
        let session = seen.iter().any(|at| matches!(at, SeenAt::Session(_)));
        let uses = seen.iter().any(|at| matches!(at, SeenAt::Watch(_) | SeenAt::Lock(_)));
        (session && uses) || before.contains_key(client)
    };
    let clients: BTreeSet<ClientAddr> = world
        .clients
        .iter()
        .filter(|(client, seen)| !ours(client) && believed(client, seen))
        .map(|(client, _)| *client)
        .collect();
    let mut all = Vec::new();
    for fence in ctx.fences.all() {
        let Some(name) = fence.member() else { continue };
        if fence.release().is_some() || fence.record().state == FenceState::Intended {
            continue;
        }
        let open: BTreeSet<_> = chased_ips(ctx, fence).collect();
        let hosts = fence.hosts();
        let mut free: BTreeSet<ClientAddr> =
            clients.iter().copied().filter(|client| open.contains(&client.ip)).collect();
        // Its clients at other addresses, as its images show them.
        let own = if fence.record().coverage == Coverage::WholeHost {
            ctx.book.members.get(name).map(|record| record.clients.clone()).unwrap_or_default()
        } else {
            known_of(ctx, found, name, world).clients
        };
        free.extend(own.into_iter().filter(|client| !hosts.contains(&client.ip) && !ours(client)));
        let under: Vec<ClientAddr> =
            clients.iter().copied().filter(|client| hosts.contains(&client.ip)).collect();
        all.push(ClientSighting { id: fence.id().clone(), free, under });
    }
    all
}

/// Did every monitor there is tell its sessions, and was nothing of them unclear?
fn knows_all_sessions(world: &CephSnapshot) -> bool {
    let mut mons = world.daemons.iter().filter(|daemon| daemon.kind == DaemonKind::Mon).peekable();
    mons.peek().is_some()
        && mons.all(|mon| mon.role == Role::Plain)
        && !world.unread.iter().any(|what| !what.starts_with("image ") && !what.starts_with("pool "))
}
