//! Judges a sweep by a full reading of Incus that began after the sweep had ended: otherwise instances could move between
//! the two. It tells whether anybody outside of the fence uses a fenced member's images, which locks its clients left, and
//! who uses an image that belongs to another member's instance.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::fence::waiting::some;
use crate::guardian::ceph_readings::Sweep;
use crate::guardian::context::Ctx;
use crate::guardian::found::FoundImages;
use crate::guardian::io::{Effect, StaleLock};
use crate::guardian::lanes::Lane;
use crate::guardian::report::{Alarm, Level, Reports};
use crate::guardian::schedule::Schedule;
use crate::model::addr::{ClientAddr, Entry};
use crate::model::blocklist::Blocklist;
use crate::model::fence_id::FenceId;
use crate::model::image_users::ImageUse;
use crate::model::member::Members;
use crate::model::osdmap::OsdMap;
use crate::model::volume::Expected;
use crate::mutants::{self, Mutant};
use crate::rules::single_writer::{self, Conflict, SingleWriterFacts};
use crate::rules::unread::Unread;

/// A second user of an image is reported when a sweep that begins this much later still sees it: copying an instance to
/// another member opens its image there for a moment, and instances move between a sweep and a reading.
const LOOKS_AGAIN: Duration = Duration::from_secs(1);

/// What the sweeps so far have shown.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct SweepJudgement {
    /// When the sweep that was judged last began: each is judged once.
    judged: Option<Duration>,
    /// The sweep for which a full reading of Incus was requested.
    asked_for: Option<Duration>,
    conflicts: Vec<Conflict>,
    /// The conflicts of the last sweep, reported or not.
    seen_before: Vec<Conflict>,
    /// Clients that were stale in the sweep before.
    stale_before: BTreeSet<ClientAddr>,
    /// Locks of fenced clients that are still to break.
    stale_locks: BTreeSet<StaleLock>,
}

/// What a sweep shows for one fence.
pub(super) struct FenceSighting {
    pub(super) id: FenceId,
    /// Why it is not sure that nobody outside of the fence uses the member's images, in words.
    unclear: Vec<String>,
    outside: BTreeSet<ClientAddr>,
    /// Images of the member that were not found; `None` once the fence is clear.
    unfound: Option<Vec<String>>,
}

impl FenceSighting {
    pub(super) fn give_to(self, fence: &mut Fence) {
        fence.note_sweep(self.unclear, self.outside, self.unfound);
    }
}

impl SweepJudgement {
    /// Does the last sweep show anything new?
    pub(super) fn is_news(&self, ctx: Ctx<'_>) -> bool {
        let waits = |fence: &Fence| !fence.is_clear() && fence.sealed_at().is_some();
        let began = ctx.ceph.sweep.as_ref().map(|sweep| sweep.began);
        began.is_some()
            && ctx.incus.view().is_some()
            && ctx.map().is_some()
            && (self.judged != began || ctx.fences.all().any(waits))
    }

    /// How many images have a user that should not have them.
    pub(super) fn conflicts(&self) -> usize {
        self.conflicts.len()
    }

    /// Can the last sweep be judged now, and was it not yet?
    pub(super) fn may_judge(&self, ctx: Ctx<'_>) -> bool {
        let Some(sweep) = ctx.ceph.sweep.as_ref() else { return false };
        let judges = |whole| whole >= sweep.ended || mutants::is(Mutant::EarlierListing);
        let whole = ctx.incus.whole_began.is_some_and(judges);
        whole && self.judged != Some(sweep.began)
    }

    /// What the last sweep shows for each fence that was sealed before it began.
    pub(super) fn judge_fences(
        &mut self,
        ctx: Ctx<'_>,
        found: &FoundImages,
        members: &Members,
    ) -> Vec<FenceSighting> {
        let (Some(sweep), Some(map)) = (ctx.ceph.sweep.as_ref(), ctx.map()) else { return Vec::new() };
        let guarded = ctx.settings.policy.guarded.pools(map);
        let pools: BTreeSet<&str> = guarded.values().map(|pool| pool.name.as_str()).collect();
        let judge = FenceJudge {
            ctx,
            map,
            sweep,
            not_read: Unread::new(&sweep.unread),
            owners: ctx.book.clients(),
            members,
        };
        let mut all = Vec::new();
        for fence in ctx.fences.all() {
            let judges = |sealed| sweep.began >= sealed || mutants::is(Mutant::SweepOfBefore);
            let since = fence.sealed_at().is_some_and(judges);
            let epoch = fence.record().proofs.iter().map(|proof| proof.epoch).max();
            if !since || epoch.is_none_or(|epoch| map.epoch < epoch) || ctx.incus.whole_began.is_none() {
                continue;
            }
            let unfound = (!fence.is_clear()).then(|| found.unfound(ctx, fence, &pools));
            let (unclear, outside) = judge.users(fence);
            self.stale_locks.extend(judge.stale_locks(fence));
            all.push(FenceSighting { id: fence.id().clone(), unclear, outside, unfound });
        }
        all
    }

    /// Finds second users of images. Returns the clients that use only images of instances placed elsewhere, in this sweep and
    /// the one before.
    pub(super) fn judge(
        &mut self,
        ctx: Ctx<'_>,
        members: &Members,
        schedule: &mut Schedule,
    ) -> BTreeSet<Entry> {
        let none = BTreeSet::new();
        let Some(sweep) = ctx.ceph.sweep.as_ref() else { return none };
        let conflicts = self.conflicts_now(ctx, sweep, members);
        if ctx.incus.whole_began.is_none_or(|whole| whole < sweep.ended) {
            self.ask_for_listing(ctx, sweep, &conflicts, schedule);
            return none;
        }
        if self.judged == Some(sweep.began) {
            return none;
        }
        self.judged = Some(sweep.began);
        let stale = single_writer::stale_clients(&sweep.uses, &conflicts);
        let known = |one: &Conflict, before: &[Conflict]| {
            before.iter().any(|known| (&known.image, known.client) == (&one.image, one.client))
        };
        if !conflicts.iter().all(|one| known(one, &self.seen_before)) {
            schedule.sweep = schedule.sweep.min(sweep.began + LOOKS_AGAIN);
        }
        self.conflicts = conflicts.iter().filter(|one| known(one, &self.seen_before)).cloned().collect();
        self.seen_before = conflicts;
        let stale: BTreeSet<ClientAddr> = stale.keys().copied().collect();
        let twice = stale.intersection(&self.stale_before).copied().map(Entry::Client).collect();
        self.stale_before = stale;
        twice
    }

    fn conflicts_now(&self, ctx: Ctx<'_>, sweep: &Sweep, members: &Members) -> Vec<Conflict> {
        let (Some(view), Some(map)) = (ctx.incus.view(), ctx.map()) else { return Vec::new() };
        let facts = SingleWriterFacts {
            images: &ctx.incus.images,
            members,
            clients: &ctx.book.clients(),
            blocklist: &map.blocklist,
            operations: view.operations.as_deref().unwrap_or_default(),
            admin_hosts: &ctx.settings.guard.admin_hosts,
            own: &ctx.settings.guard.own,
        };
        let uses = &sweep.uses;
        let mut conflicts = single_writer::conflicts(uses, facts);
        // INV-9: an image that no answer speaks of may have the same users as before, and so may one of which not every
        // user could be read.
        let stays = |one: &&Conflict| match uses.iter().find(|read| read.image == one.image) {
            None => !sweep.unread.is_empty(),
            Some(read) => !read.unknown.is_empty() && !read.clients().contains(&one.client),
        };
        conflicts.extend(self.conflicts.iter().filter(stays).cloned());
        // Images are read at once, and come in any order.
        conflicts.sort();
        conflicts
    }

    /// Requests a full reading to judge this sweep by, where there are conflicts now, were before, or a new client appeared:
    /// its member may be lost in a moment, and must be known by then.
    fn ask_for_listing(
        &mut self,
        ctx: Ctx<'_>,
        sweep: &Sweep,
        conflicts: &[Conflict],
        schedule: &mut Schedule,
    ) {
        let kept = ctx.book.kept();
        let is_new = |one: &ImageUse| {
            let exclusive = matches!(ctx.incus.images.get(&one.image), Some(Expected::Exclusive { .. }));
            exclusive && one.clients().iter().any(|client| !kept.contains(client))
        };
        let unasked = self.asked_for != Some(sweep.began);
        if unasked && (!conflicts.is_empty() || !self.seen_before.is_empty() || sweep.uses.iter().any(is_new))
        {
            self.asked_for = Some(sweep.began);
            schedule.list_again(ctx.now, LOOKS_AGAIN);
        }
    }

    pub(super) fn next_effect(&self, ctx: Ctx<'_>) -> Option<Effect> {
        let lock = self.stale_locks.first()?;
        ctx.may_begin(&Lane::Lock).then(|| Effect::BreakLock(lock.clone()))
    }

    pub(super) fn handle_lock_broken(
        &mut self,
        lock: &StaleLock,
        broken: Result<(), String>,
        reports: &mut Reports,
    ) {
        let name = &lock.image;
        match broken {
            Ok(()) => {
                let text = format!("{name}: lock of {} broken", lock.owner);
                reports.log(Level::Info, "lock-broken", None, text);
            }
            Err(why) => reports.log(Level::Warn, "lock-not-broken", None, format!("{name}: {why}")),
        }
        self.stale_locks.remove(lock);
    }

    pub(super) fn alarms(&self) -> Vec<Alarm> {
        let alarm = |conflict: &Conflict| {
            let member = conflict.member.as_deref();
            let placed = conflict.placed.iter().cloned().collect::<Vec<_>>().join(", ");
            let whose = member.map_or_else(|| "no known member".to_owned(), |name| format!("member {name}"));
            let text = format!(
                "{} is used by {} of {whose}, and is placed on {placed}",
                conflict.image, conflict.client
            );
            let advice = match member {
                Some(_) => vec![format!("rbd-guardian fence --address {}", conflict.client)],
                None => ways_to_tell_whose(conflict),
            };
            Alarm::new("second-writer", member, text, advice)
        };
        self.conflicts.iter().map(alarm).collect()
    }
}

/// A sweep, as each fence is judged by it.
struct FenceJudge<'a> {
    ctx: Ctx<'a>,
    map: &'a OsdMap,
    sweep: &'a Sweep,
    not_read: Unread<'a>,
    owners: BTreeMap<ClientAddr, &'a str>,
    members: &'a Members,
}

impl FenceJudge<'_> {
    fn is_refused(&self, client: ClientAddr) -> bool {
        self.map.blocklist.refuses(client)
    }

    /// The images of the member of this fence that have a user.
    fn its(&self, fence: &Fence) -> impl Iterator<Item = &ImageUse> {
        let (member, images) = (fence.member().unwrap_or_default().to_owned(), &self.ctx.incus.images);
        self.sweep
            .uses
            .iter()
            .filter(move |one| images.get(&one.image).is_some_and(|image| image.is_at(&member)))
    }

    /// Why it is not sure that nobody outside of the fence uses its member's images, and which clients do.
    fn users(&self, fence: &Fence) -> (Vec<String>, BTreeSet<ClientAddr>) {
        let member = fence.member().unwrap_or_default();
        // A user that could not be read may be anybody. A lock without an address and without a watch is no user:
        // whoever opens the image breaks it.
        let outside = |one: &&ImageUse| {
            (!one.unknown.is_empty() && !mutants::is(Mutant::UnreadHasNoUsers))
                || one.clients().iter().any(|client| !self.is_refused(*client))
        };
        // Once it was clear the gate opens, and then the new owners are there.
        let seen = self.its(fence).filter(outside);
        let mut unclear: Vec<String> =
            seen.map(|one| used_outside(one, &self.map.blocklist, self.members)).collect();
        if !mutants::is(Mutant::UnknownOwnerIsNobody) {
            unclear.extend(self.of_unknown_owner(member));
        }
        if !fence.is_clear() {
            unclear.extend(self.not_swept(member));
        }
        // What cannot be read elsewhere says nothing of this member's images.
        if !self.sweep.unread.is_empty() && !mutants::is(Mutant::UnreadHasNoUsers) {
            let silent = self.ctx.incus.images_of(member).filter_map(|image| self.not_read.of(image));
            unclear.extend(silent.collect::<BTreeSet<_>>().into_iter().map(str::to_owned));
        }
        // Who is known to be a client of the member, or of nobody at its images, and shows in no sweep any more.
        let hidden = self.hidden(fence);
        unclear.extend(
            hidden.iter().map(|client| format!("{client}, seen at {member}'s images before, is not refused")),
        );
        let free = self.its(fence).flat_map(ImageUse::clients).filter(|client| !self.is_refused(*client));
        (unclear, free.chain(hidden).collect())
    }

    /// Users of a volume whose instances Incus did not name: a client of no other member may be one of this member.
    fn of_unknown_owner(&self, member: &str) -> Vec<String> {
        let anothers = |client: &ClientAddr| {
            let owner = self.owners.get(client).copied();
            let of_address = || self.members.owner(client.ip).map(|owner| owner.name.as_str());
            owner.or_else(of_address).is_some_and(|owner| owner != member)
        };
        let its = |client: &ClientAddr| !self.is_refused(*client) && !anothers(client);
        let images = &self.ctx.incus.images;
        let unknown =
            self.sweep.uses.iter().filter_map(|one| Some((one, images.get(&one.image)?.unknown()?)));
        let words = unknown.filter_map(|(one, why)| {
            let free: Vec<String> =
                one.clients().iter().filter(|client| its(client)).map(ToString::to_string).collect();
            let users: Vec<String> = free.into_iter().chain(one.unknown.iter().cloned()).collect();
            let text = || {
                let users = users.join(", ");
                format!("image {} is used by {users}, and whose it is is unknown: {why}", one.image)
            };
            (!users.is_empty()).then(text)
        });
        words.collect()
    }

    /// An image of the member, or one whose instances nobody knows, that this sweep did not read: it was not placed so when the
    /// sweep began.
    fn not_swept(&self, member: &str) -> Option<String> {
        let asked = self.sweep.asked.as_ref()?;
        let awaited = |expected: &Expected| expected.unknown().is_some() || expected.is_at(member);
        let mut all = self.ctx.incus.images.iter().filter(|(_, expected)| awaited(expected));
        let (image, _) = all.find(|(image, _)| !asked.contains(image))?;
        Some(format!("image {image} was not swept yet"))
    }

    /// Clients of a fenced member, or of nobody at its images, that no entry refuses. Their watch may have lapsed, so that no
    /// sweep shows them, and they write again when their path to Ceph heals. Clients of nobody count only until an operator
    /// accepts the fence as it is.
    fn hidden(&self, fence: &Fence) -> BTreeSet<ClientAddr> {
        let record = fence.member().and_then(|name| self.ctx.book.members.get(name));
        let Some(record) = record else { return BTreeSet::new() };
        let accepted = fence.record().overrides.accept_incomplete;
        let others = record.others.iter().flatten().filter(|_| !accepted);
        let strangers = self.ctx.strangers();
        let free = |client: &&ClientAddr| !self.is_refused(**client) && !strangers.has(client);
        record.clients.iter().chain(others).filter(free).copied().collect()
    }

    /// Locks of refused clients at the member's images.
    fn stale_locks(&self, fence: &Fence) -> Vec<StaleLock> {
        let locks = self.its(fence).flat_map(|one| one.locks.iter().map(move |lock| (one, lock)));
        let locks = locks.filter_map(|(one, lock)| {
            let address = lock.address?.client().filter(|client| self.is_refused(*client))?;
            let (owner, cookie) = (lock.owner.clone(), lock.cookie.clone());
            Some(StaleLock { image: one.image.clone(), owner, cookie, address })
        });
        locks.collect()
    }
}

/// Who uses an image of a fenced member and is not refused.
fn used_outside(one: &ImageUse, blocklist: &Blocklist, members: &Members) -> String {
    let free = one.clients().into_iter().filter(|client| !blocklist.refuses(*client));
    let named = free.map(|client| {
        members.owner(client.ip).map_or_else(
            || format!("{client} of no known member"),
            |member| format!("{client} of member {}", member.name),
        )
    });
    let users: Vec<String> = named.chain(one.unknown.iter().cloned()).collect();
    format!("image {} is used by {}", one.image, some(&users))
}

/// What to do about a client of no known member: it may be a second client of the member itself.
fn ways_to_tell_whose(conflict: &Conflict) -> Vec<String> {
    let ip = conflict.client.ip;
    let own = |name: &String| {
        format!(
            "if it is a client of {name} as well: set user.rbd-guardian.ceph-addresses of {name} to all its addresses, {ip} \
             among them"
        )
    };
    let other = format!("if {ip} is a host that may use any image: add it to guard.admin_hosts");
    conflict.placed.iter().map(own).chain([other]).collect()
}
