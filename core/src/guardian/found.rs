//! Whether the images that Incus lists are in the pools that are guarded.
//!
//! Incus names a Ceph cluster by a name that most clusters have (`ceph`), and another cluster may have pools of the same
//! names. A seal in this one stops no write there. So the gate of a member opens only when each of its images was found in
//! the directory of its pool after the seal (INV-2), and a pool that lacks most of the images that were looked for
//! counts as covered no longer. A look is judged by a listing of Incus that began after it: instances are made and
//! deleted meanwhile. A guardian that takes over begins no fence by itself before its first look was judged (INV-6).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::guardian::context::Ctx;
use crate::guardian::io::Effect;
use crate::guardian::lanes::Lane;
use crate::guardian::report::{Alarm, Level, Reports};
use crate::model::now::Now;
use crate::model::record::FenceState;
use crate::model::volume::{Expected, ImageName, Images};
use crate::mutants::{self, Mutant};
use crate::rules::unread::Unread;

/// Images of each pool that are looked for while no gate waits.
const SAMPLE: usize = 16;
/// How often they are looked for.
const FIND_EVERY: Duration = Duration::from_secs(600);
/// The same while a pool lacks them, or a pool was never looked into. A pool that lacks them for so long has an alarm.
const FIND_AGAIN: Duration = Duration::from_secs(10);
/// The same while a gate waits for an image that was not found.
const FIND_OFTEN: Duration = Duration::from_secs(1);
/// A listing that failed is not asked for again sooner.
pub(super) const LIST_AGAIN: Duration = Duration::from_secs(1);
/// For so long the automatic fences of a guardian that took over wait for that judgement, all together: where nobody can
/// read the directories, guarding goes on, and the gate stays closed.
const JUDGED_WITHIN: Duration = Duration::from_secs(10);

/// What is known of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct FoundImages {
    /// What is looked for while no gate waits.
    sample: BTreeSet<ImageName>,
    /// What the look that is on its way asks for, and when it was sent.
    asking: BTreeSet<ImageName>,
    asked_at: Option<Duration>,
    last: Option<ImageSearch>,
    /// OSD pools that lack most of the images that were looked for.
    absent: BTreeMap<String, MissingImages>,
    /// OSD pools of which a look was judged at least once.
    #[serde(default)]
    judged: BTreeSet<String>,
    /// Since when an automatic fence waits for that, or waited.
    #[serde(default)]
    waited: Option<Duration>,
}

/// One look into the directories of pools.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ImageSearch {
    began: Duration,
    ended: Duration,
    asked: BTreeSet<ImageName>,
    missing: BTreeSet<ImageName>,
    /// What could not be read, as a sweep says it.
    unread: Vec<String>,
}

/// A pool that lacks images.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct MissingImages {
    since: Duration,
    asked: usize,
    missing: usize,
    /// One of those that are missing.
    example: ImageName,
}

impl FoundImages {
    /// Pools that do not count as covered: those that lack images, and those of which no look was judged yet while the gate is
    /// open by an operator's word. A guardian that takes over does not know what the one before found; of other fences that
    /// one had found each image.
    pub(super) fn uncovered<'a>(&'a self, ctx: Ctx<'a>) -> BTreeSet<&'a str> {
        if mutants::is(Mutant::OtherClusterCovered) {
            return BTreeSet::new();
        }
        // Before it has read a whole listing, each pool that Incus names may have images.
        let is_unlisted = ctx.incus.whole_began.is_none() && !mutants::is(Mutant::UnlistedCovered);
        let named = ctx.settings.policy.guarded.named.iter().map(String::as_str).filter(|_| is_unlisted);
        let unjudged = self.sample.iter().map(|image| image.pool.as_str()).chain(named);
        let mut unjudged = unjudged.filter(|pool| !self.judged.contains(*pool)).peekable();
        let accepted = |fence: &Fence| fence.record().overrides.accept_incomplete && ctx.opens_gate(fence);
        let opens = unjudged.peek().is_some() && ctx.fences.all().any(accepted);
        self.absent.keys().map(String::as_str).chain(unjudged.filter(|_| opens)).collect()
    }

    /// A whole listing says which images there are: some of each pool are looked for, spread evenly by their names.
    pub(super) fn handle_listing(&mut self, images: &Images, except: &[String]) {
        let mut pools: BTreeMap<&str, Vec<&ImageName>> = BTreeMap::new();
        let exclusive = images.iter().filter(|(_, expected)| matches!(expected, Expected::Exclusive { .. }));
        for (image, _) in exclusive.filter(|(image, _)| !except.contains(&image.pool)) {
            pools.entry(&image.pool).or_default().push(image);
        }
        let some = |images: Vec<&ImageName>| {
            let step = images.len().div_ceil(SAMPLE).max(1);
            images.into_iter().step_by(step).cloned().collect::<Vec<_>>()
        };
        self.sample = pools.into_values().flat_map(some).collect();
    }

    /// Are there pools that the last look did not go to?
    fn has_new_pools(&self) -> bool {
        let Some(last) = &self.last else { return !self.sample.is_empty() };
        let looked = |pool: &str| {
            // The images of a pool lie beside each other.
            let from = ImageName { pool: pool.to_owned(), namespace: String::new(), name: String::new() };
            last.asked.range(from..).next().is_some_and(|image| image.pool == pool)
        };
        let mut pools: Vec<&str> = self.sample.iter().map(|image| image.pool.as_str()).collect();
        pools.dedup();
        !pools.into_iter().all(looked)
    }

    pub(super) fn handle_found(
        &mut self,
        now: Now,
        began: Duration,
        missing: BTreeSet<ImageName>,
        unread: Vec<String>,
    ) {
        let asked = std::mem::take(&mut self.asking);
        self.last = Some(ImageSearch { began, ended: now.boot, asked, missing, unread });
    }

    /// Judges the last look by a listing that began after it. Does it have to wait for a newer one?
    pub(super) fn judge(&mut self, ctx: Ctx<'_>) -> bool {
        let (images, listed, now) = (&ctx.incus.images, ctx.incus.whole_began, ctx.now.boot);
        let Some(search) = &self.last else { return false };
        let unread = Unread::new(&search.unread);
        let mut pools: BTreeMap<&str, (usize, Vec<&ImageName>)> = BTreeMap::new();
        for image in search.asked.iter().filter(|image| unread.of(image).is_none()) {
            if !matches!(images.get(image), Some(Expected::Exclusive { .. })) {
                continue;
            }
            let (asked, missing) = pools.entry(&image.pool).or_default();
            *asked += 1;
            missing.extend(search.missing.contains(image).then_some(image));
        }
        // What is there needs no listing to be believed.
        for (pool, _) in pools.iter().filter(|(_, (_, missing))| missing.is_empty()) {
            self.judged.insert((*pool).to_owned());
            self.absent.remove(*pool);
        }
        if listed.is_none_or(|listed| listed < search.ended) {
            return pools.values().any(|(_, missing)| !missing.is_empty());
        }
        for (pool, (asked, missing)) in pools {
            self.judged.insert(pool.to_owned());
            match missing.first() {
                Some(example) if missing.len() * 2 > asked => {
                    let since = self.absent.get(pool).map_or(now, |before| before.since);
                    let (missing, example) = (missing.len(), (*example).clone());
                    self.absent.insert(pool.to_owned(), MissingImages { since, asked, missing, example });
                }
                Some(_) | None => drop(self.absent.remove(pool)),
            }
        }
        let sample = &self.sample;
        self.absent.retain(|pool, _| sample.iter().any(|image| image.pool == *pool));
        false
    }

    /// Images of a sealed member in these pools that no look since the seal has found, in words.
    pub(super) fn unfound(&self, ctx: Ctx<'_>, fence: &Fence, guarded: &BTreeSet<&str>) -> Vec<String> {
        let (Some(member), Some(sealed)) = (fence.member(), fence.sealed_at()) else { return Vec::new() };
        if mutants::is(Mutant::OtherClusterCovered) {
            return Vec::new();
        }
        let its = ctx.incus.images_of(member).filter(|image| guarded.contains(image.pool.as_str()));
        let Some(search) = self.last.as_ref().filter(|search| search.began >= sealed) else {
            let mut its = its;
            let wait = "a look into the directories of its pools that began after the seal".to_owned();
            return its.next().map(|_| wait).into_iter().collect();
        };
        let not_read = Unread::new(&search.unread);
        // What an operator goes on without: an image that is not there can be written by nobody. Where it is another
        // cluster's, its pool is not covered, and that is known once a listing judged the look.
        let listed = ctx.incus.whole_began.is_some_and(|listed| listed >= search.ended);
        let accepted = fence.record().overrides.accept_incomplete && listed;
        let (mut words, mut missing) = (BTreeSet::new(), BTreeMap::<&str, Vec<&ImageName>>::new());
        let mut found: BTreeSet<&str> = BTreeSet::new();
        for image in its {
            if !search.asked.contains(image) {
                words.insert(format!("image {image} was not looked for yet"));
            } else if let Some(why) = not_read.of(image) {
                words.insert(why.to_owned());
            } else if !search.missing.contains(image) {
                found.insert(&image.pool);
            } else if !accepted {
                missing.entry(&image.pool).or_default().push(image);
            }
        }
        for (pool, images) in missing {
            let count = images.len();
            if count > 1 && !found.contains(pool) {
                words.insert(format!(
                    "pool '{pool}' has none of the {count} images that Incus lists there, {} among them",
                    images[0]
                ));
            } else {
                let lacks =
                    |image: &ImageName| format!("pool '{pool}' has no image {image}, which Incus lists");
                words.extend(images.into_iter().map(lacks));
            }
        }
        words.into_iter().collect()
    }

    /// Are images to be looked for now?
    pub(super) fn next_effect(&mut self, ctx: Ctx<'_>) -> Option<Effect> {
        let now = ctx.now.boot;
        if ctx.map().is_none() || !ctx.may_begin(&Lane::Find) || ctx.incus.whole_began.is_none() {
            return None;
        }
        let last = self.last.as_ref();
        let again = last.is_none_or(|last| now >= last.began + FIND_OFTEN);
        let waits = |fence: &&Fence| {
            let new = fence.sealed_at().is_some_and(|sealed| last.is_none_or(|last| last.began < sealed));
            let sealed = fence.record().state == FenceState::Sealed && fence.member().is_some();
            sealed && !fence.is_clear() && (new || (again && !fence.unfound().is_empty()))
        };
        let waiting: BTreeSet<&str> = ctx.fences.all().filter(waits).filter_map(Fence::member).collect();
        let rested = |every| self.asked_at.is_none_or(|asked| now >= asked + every);
        let absent = !self.absent.is_empty() || self.has_new_pools();
        let unread = last.is_some_and(|last| !last.unread.is_empty()) && self.fences_wait(ctx);
        let due = rested(FIND_EVERY) || (absent && rested(FIND_AGAIN)) || (unread && rested(FIND_OFTEN));
        if waiting.is_empty() && !due {
            return None;
        }
        let mut asked = self.sample.clone();
        asked.extend(waiting.iter().flat_map(|member| ctx.incus.images_of(member)).cloned());
        self.asked_at = Some(now);
        if asked.is_empty() {
            return None;
        }
        self.asking.clone_from(&asked);
        Some(Effect::Find(asked.into_iter().collect()))
    }

    /// A pool with images of a member that no look of this guardian has judged yet, in words.
    fn unjudged(&self, ctx: Ctx<'_>, name: &str) -> Option<String> {
        if ctx.incus.whole_began.is_none() {
            return Some("a listing of instances and volumes".to_owned());
        }
        let except = &ctx.settings.policy.guarded.except;
        let pools = ctx.incus.images_of(name).map(|image| &image.pool);
        let pool = pools.filter(|pool| !except.contains(pool)).find(|pool| !self.judged.contains(*pool))?;
        Some(format!("a look into the directory of pool '{pool}' that shows whether it has {name}'s images"))
    }

    /// What an automatic fence of a member waits for before it may begin, in words.
    pub(super) fn waits_for_judgement(&self, ctx: Ctx<'_>, name: &str) -> Option<String> {
        let over = |since: Duration| ctx.now.boot >= since + JUDGED_WITHIN;
        if self.waited.is_some_and(over) { None } else { self.unjudged(ctx, name) }
    }

    fn fences_wait(&self, ctx: Ctx<'_>) -> bool {
        self.waited.is_some_and(|since| ctx.now.boot < since + JUDGED_WITHIN)
    }

    /// May an automatic fence of this member begin, as far as the place of its images is concerned? The first that has
    /// to wait says so.
    pub(super) fn may_judge_place(&mut self, ctx: Ctx<'_>, name: &str, reports: &mut Reports) -> bool {
        let Some(what) = self.unjudged(ctx, name) else { return true };
        let since = *self.waited.get_or_insert(ctx.now.boot);
        let over = ctx.now.boot >= since + JUDGED_WITHIN;
        if over {
            let text = format!(
                "no answer in {} s to {what}: its fence goes on without it, its gate does not",
                JUDGED_WITHIN.as_secs()
            );
            reports.log(Level::Warn, "not-judged", Some(name), text);
        }
        over
    }

    /// Pools that lack what Incus lists there.
    pub(super) fn alarms(&self, ctx: Ctx<'_>) -> Vec<Alarm> {
        let lasting = |absent: &MissingImages| ctx.now.boot.saturating_sub(absent.since) >= FIND_AGAIN;
        let storage = &ctx.settings.storage;
        let alarm = |(pool, absent): (&String, &MissingImages)| Alarm {
            code: "wrong-cluster",
            member: None,
            text: format!(
                "pool '{pool}' lacks {} of {} images that Incus lists there, {} among them: Incus keeps them in another Ceph \
                 cluster of the same name, or they were removed. Nothing in it is covered, and no instance on it is placed \
                 elsewhere",
                absent.missing, absent.asked, absent.example
            ),
            about: None,
            advice: vec![
                format!("compare `ceph --cluster {storage} fsid` here and on a member"),
                format!("rbd ls {pool}"),
                "rbd-guardian doctor".to_owned(),
            ],
        };
        self.absent.iter().filter(|(_, absent)| lasting(absent)).map(alarm).collect()
    }

    /// Pools with images of a member that lack what Incus lists there, in words.
    pub(super) fn lost_pools_of(&self, ctx: Ctx<'_>, name: &str) -> Vec<String> {
        if self.absent.is_empty() {
            return Vec::new();
        }
        let pools: BTreeSet<&str> = ctx.incus.images_of(name).map(|image| image.pool.as_str()).collect();
        let absent = self.absent.iter().filter(|(pool, _)| pools.contains(pool.as_str()));
        let words = |(pool, absent): (&String, &MissingImages)| {
            let MissingImages { since, asked, missing, .. } = absent;
            if ctx.now.boot.saturating_sub(*since) < FIND_AGAIN {
                return format!(
                    "{missing} of {asked} images that Incus lists in pool '{pool}' have not been seen there yet, as right after \
                     an instance was created: they are looked for again within {} s",
                    FIND_AGAIN.as_secs()
                );
            }
            format!(
                "pool '{pool}' lacks {missing} of {asked} images that Incus lists there: Incus may use another Ceph cluster of \
                 the same name"
            )
        };
        absent.map(words).collect()
    }
}
