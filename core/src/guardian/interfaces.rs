//! When each member is asked for its interfaces, and what else lives at the addresses that they show.
//!
//! Interfaces are read every few minutes. Meanwhile a member may be renumbered, and its old address given to another host.
//! So a reading speaks for a daemon of the storage, or for a client of somebody else, only if that was seen at the address
//! before the reading began, and in every look since. One that is seen there first later may be another host's: until the
//! interfaces are read again the address gets no host entry (INV-6). The ledger keeps what a reading speaks for, so that a
//! guardian that takes over knows no more than the one before.
//!
//! Addresses move: a floating one goes to another member at the very moment at which its own is lost. So while a
//! member is lost, the guardian often asks the online members for their interfaces, and plans a fence by their answers. An
//! answer from before the plan does not show an address that moved a moment ago, however young the answer is. So the guardian
//! asks each of them once more after the plan, while it records the intent, and the first entry waits for the answers. If they
//! contradict the plan, the fence is withdrawn and planned again. A member that does not answer in its time does not hold the
//! fence up: its addresses stay as they were known.
//!
//! A host that runs no daemon and uses no image cannot be told from the member.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::guardian::address_book::{AddressBook, Beside, CameLater};
use crate::guardian::context::Ctx;
use crate::guardian::lanes::Lane;
use crate::model::ceph_snapshot::{Daemon, SeenAt};
use crate::model::incus_snapshot::{MemberStatus, OperationKind};
use crate::model::now::Now;
use crate::model::record::MemberRecord;
use crate::model::volume::{Expected, ImageName};

/// What was seen at each address, each with the members whose own it may be.
type SeenThere<'a> = BTreeMap<IpAddr, Vec<(String, BTreeSet<&'a str>)>>;

/// Interfaces are read after a look at the storage that is no older: what it shows is what the reading speaks for.
const LOOKED: Duration = Duration::from_secs(60);

/// How often a member is asked for its interfaces.
const READ_EVERY: Duration = Duration::from_secs(600);
/// The same while a member is lost and not fenced: a floating address may have moved to another one.
const READ_OFTEN: Duration = Duration::from_secs(20);

/// A member that has not told its interfaces for this long is not waited for.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// The readings of interfaces.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Interfaces {
    /// When each member was asked for its interfaces.
    networks_read: BTreeMap<String, Duration>,
    /// What the readings of interfaces that are on their way will speak for.
    #[serde(default)]
    networks_ask: BTreeMap<String, Beside>,
}

impl Interfaces {
    /// Is this member to be asked now?
    pub(super) fn are_due(&self, ctx: Ctx<'_>, name: &str) -> bool {
        let lost = ctx.members.evidence.iter().filter(|(_, evidence)| evidence.is_lost());
        let mut unfenced = lost.filter(|(name, _)| ctx.fences.of(name).is_none());
        let every = if unfenced.next().is_some() { READ_OFTEN } else { READ_EVERY };
        let awaited = ctx.fences.all().filter_map(Fence::confirms_since).max();
        let old = |read: Duration| ctx.now.boot >= read + every || awaited.is_some_and(|since| read < since);
        self.networks_read.get(name).is_none_or(|read| old(*read))
    }

    /// The members that are online, have not told their interfaces in answer to a question since then, and have time left. A
    /// member that failed to tell them a moment ago rests, and without a reading of Incus nobody can be asked.
    pub(super) fn not_told_since<'a>(&self, ctx: Ctx<'a>, since: Duration) -> Vec<&'a str> {
        let in_time = ctx.now.boot.saturating_sub(since) < TOLD_WITHIN;
        let view = ctx.incus.fresh(ctx.now).filter(|_| in_time && ctx.settings.platform);
        let members = view.into_iter().flat_map(|view| &view.members);
        let online = members.filter(|(_, member)| member.status == MemberStatus::Online);
        let told = |name: &str| {
            let lane = Lane::Networks(name.to_owned());
            let read = self.networks_read.get(name).is_some_and(|read| *read >= since);
            ctx.lanes.rests(ctx.now, &lane) || (read && ctx.lanes.began(&lane).is_none())
        };
        online.map(|(name, _)| name.as_str()).filter(|name| !told(name)).collect()
    }

    /// Does a reading of interfaces that is due wait for a look at the storage?
    pub(super) fn wait_for_look(&self, ctx: Ctx<'_>) -> bool {
        let Some(view) = ctx.incus.fresh(ctx.now) else { return false };
        let online = view.members.iter().filter(|(_, member)| member.status == MemberStatus::Online);
        !has_looked_lately(ctx) && online.into_iter().any(|(name, _)| self.are_due(ctx, name))
    }

    /// A reading of a member's interfaces begins now: what was seen before it.
    pub(super) fn begin(&mut self, ctx: Ctx<'_>, member: &str) {
        self.networks_read.insert(member.to_owned(), ctx.now.boot);
        let names = |all: Vec<(String, BTreeSet<&str>)>| all.into_iter().map(|(what, _)| what).collect();
        let seen = seen(ctx).into_iter().map(|(ip, all)| (ip, names(all))).collect();
        self.networks_ask.insert(member.to_owned(), seen);
    }

    pub(super) fn handle_failure(&mut self, member: &str) {
        self.networks_ask.remove(member);
        self.networks_read.remove(member);
    }

    /// What a reading speaks for, now that it ended and showed these: what was seen there before it began, and still is.
    pub(super) fn handle_networks(
        &mut self,
        ctx: Ctx<'_>,
        member: &str,
        networks: &BTreeSet<IpNet>,
    ) -> Beside {
        let before = self.networks_ask.remove(member).unwrap_or_default();
        let now = seen(ctx);
        let still = |ip: &IpAddr, what: &String| {
            now.get(ip).is_some_and(|now| now.iter().any(|(seen, _)| seen == what))
        };
        let shown = |ip: &IpAddr| networks.iter().any(|network| network.addr() == *ip);
        let mut beside: Beside = before.into_iter().filter(|(ip, _)| shown(ip)).collect();
        for (ip, all) in &mut beside {
            all.retain(|what| still(ip, what));
        }
        beside.retain(|_, all| !all.is_empty());
        beside
    }

    /// What these members told is in question: they are asked again soon.
    pub(super) fn read_again(&mut self, now: Now, is_in_question: impl Fn(&str) -> bool) {
        self.networks_read.retain(|name, read| !is_in_question(name) || now.boot < *read + READ_OFTEN);
    }

    /// What this member told contradicts another: it is asked again at once.
    pub(super) fn read_at_once(&mut self, member: &str) {
        self.networks_read.remove(member);
    }

    /// Members that are gone.
    pub(super) fn end(&mut self, stays: impl Fn(&str) -> bool) {
        self.networks_read.retain(|name, _| stays(name));
    }
}

/// Was the storage looked at so lately that a reading of interfaces may begin?
pub(super) fn has_looked_lately(ctx: Ctx<'_>) -> bool {
    let age = ctx.ceph.looked_at.map(|looked| ctx.now.boot.saturating_sub(looked));
    ctx.ceph.world.as_ref().is_some() && age.is_some_and(|age| age < LOOKED)
}

/// What the last look shows at each address, each with the members whose own it may be.
fn seen(ctx: Ctx<'_>) -> SeenThere<'_> {
    let Some(world) = ctx.ceph.world.as_ref() else { return BTreeMap::new() };
    let mut seen = SeenThere::new();
    for daemon in &world.daemons {
        for ip in &daemon.ips {
            seen.entry(*ip).or_default().push((daemon.to_string(), BTreeSet::new()));
        }
    }
    let (owners, strangers) = (ctx.book.clients(), ctx.strangers());
    for (client, at) in world.clients.iter().filter(|(client, _)| !strangers.has(client)) {
        let may_be = match owners.get(client) {
            Some(owner) => Some(BTreeSet::from([*owner])),
            None => users_members(ctx, at),
        };
        seen.entry(client.ip).or_default().extend(may_be.map(|members| (client.to_string(), members)));
    }
    seen
}

/// The members that a client may be of, which the images it uses are placed on; `None` where nothing speaks against
/// its being anybody's.
fn users_members<'a>(ctx: Ctx<'a>, at: &BTreeSet<SeenAt>) -> Option<BTreeSet<&'a str>> {
    // Before everything was listed nobody knows whose an image is, nor while one moves.
    ctx.incus.whole_began?;
    let operations = ctx.incus.view()?.operations.as_ref()?;
    let moves = |kind: OperationKind| match kind {
        OperationKind::Heal | OperationKind::Migrate | OperationKind::Evacuate => true,
        OperationKind::Start | OperationKind::Other => false,
    };
    // One that logged in as a client: a daemon's own log in as the daemon, and a watch without a session tells nothing.
    let as_client = |at: &SeenAt| matches!(at, SeenAt::Session(entity) if entity.starts_with("client."));
    if operations.iter().any(|operation| moves(operation.kind)) || !at.iter().any(as_client) {
        return None;
    }
    let mut members = None;
    for at in at {
        let image = match at {
            SeenAt::Watch(path) | SeenAt::Lock(path) => ImageName::parse(path)?,
            SeenAt::Session(_) | SeenAt::Remembered => continue,
        };
        let members = members.get_or_insert_with(BTreeSet::new);
        match ctx.incus.images.get(&image) {
            Some(Expected::Exclusive { locations, .. }) => {
                members.extend(locations.iter().map(String::as_str));
            }
            Some(Expected::AnyMember | Expected::Unknown { .. }) => return None,
            None => {}
        }
    }
    members
}

/// What the last look shows at the addresses of a member's interfaces and is demonstrably not its own.
fn beside(record: &MemberRecord, seen: &SeenThere<'_>) -> Beside {
    let mut beside = Beside::new();
    for ip in record.interfaces.iter().flatten().map(IpNet::addr) {
        let others =
            seen.get(&ip).into_iter().flatten().filter(|(_, may_be)| !may_be.contains(record.name.as_str()));
        let others: BTreeSet<String> = others.map(|(what, _)| what.clone()).collect();
        if !others.is_empty() {
            beside.insert(ip, others);
        }
    }
    beside
}

/// What was seen at addresses of members' interfaces, and that their last reading does not speak for.
pub(super) fn came_later(ctx: Ctx<'_>) -> CameLater {
    let seen = seen(ctx);
    let later = |record: &MemberRecord| {
        let known = |ip: &IpAddr, what: &String| {
            let known = record.beside.get(ip);
            known.is_some_and(|known| known.contains(what))
        };
        let beside = beside(record, &seen).into_iter();
        let new = beside.filter_map(|(ip, all)| Some((ip, all.into_iter().find(|what| !known(&ip, what))?)));
        (record.name.clone(), new.collect::<BTreeMap<_, _>>())
    };
    ctx.book.members.values().map(later).filter(|(_, later)| !later.is_empty()).collect()
}

/// A look tells what left: should it be back, it came later.
pub(super) fn forget_what_left(book: &mut AddressBook, daemons: &[Daemon]) {
    let mut places: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for daemon in daemons {
        places.entry(daemon.to_string()).or_default().extend(&daemon.ips);
    }
    // One that is down may be shown nowhere.
    let left = |ip: &IpAddr, what: &String| places.get(what).is_some_and(|places| !places.contains(ip));
    for record in book.members.values_mut() {
        for (ip, all) in &mut record.beside {
            all.retain(|what| !left(ip, what));
        }
        record.beside.retain(|_, all| !all.is_empty());
    }
}
