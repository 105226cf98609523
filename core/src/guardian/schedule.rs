//! When Incus, the osdmap and the watchers are read again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::guardian::context::Ctx;
use crate::guardian::io::Effect;
use crate::guardian::lanes::Lane;
use crate::guardian::sweep_turns::SweepTurns;
use crate::model::now::Now;
use crate::model::record::FenceState;

/// When each reading is due, by the boot clock.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Schedule {
    pub(super) view: Duration,
    pub(super) whole: Duration,
    /// When instances, pools and volumes were asked for last.
    #[serde(default)]
    whole_asked: Option<Duration>,
    /// How long that took.
    #[serde(default)]
    listing_took: Duration,
    maps: Option<Duration>,
    pub(super) sweep: Duration,
    /// When an instance was started last, or could be again: readings that began before say nothing of it.
    pub(super) started: Duration,
}

/// Members, gate and operations are read so often; a reading is trusted for some of these.
const VIEW_EVERY: Duration = Duration::from_secs(2);
/// The same while something is lost or fenced.
const VIEW_OFTEN: Duration = Duration::from_millis(1000);
/// Instances and volumes are read so often when nothing is announced.
const WHOLE_EVERY: Duration = Duration::from_secs(60);
/// After a listing took some time, the next one that an announcement causes waits this many times as long, and at most
/// `RESTS_AT_MOST`.
const RESTS: u32 = 20;
const RESTS_AT_MOST: Duration = Duration::from_secs(5);
/// The osdmap at rest.
const MAPS_EVERY: Duration = Duration::from_secs(10);
/// The osdmap while a fence is held: a removed entry must not stay unnoticed.
const MAPS_OFTEN: Duration = Duration::from_secs(1);
/// Sweeps while a gate waits for one.
const SWEEP_OFTEN: Duration = Duration::from_secs(1);

impl Schedule {
    /// Something was announced: what else comes with it is read together. While nothing is lost or fenced, listings rest in
    /// between for many times as long as the last one took: whatever is announced, they cost Incus a small share of its time.
    pub(super) fn changed(&mut self, ctx: Ctx<'_>) {
        let now = ctx.now.boot;
        self.view = self.view.min(now + Duration::from_millis(200));
        let soon = now + Duration::from_millis(500);
        let rested =
            self.whole_asked.map_or(soon, |asked| asked + (self.listing_took * RESTS).min(RESTS_AT_MOST));
        let at = if is_busy(ctx) { soon } else { soon.max(rested) };
        self.whole = self.whole.min(at);
    }

    /// A listing of everything ended; `took`: how long Incus needed for it.
    pub(super) fn note_listing(&mut self, took: Duration) {
        self.listing_took = took;
    }

    /// Everything is to be listed again, not sooner than so long after the last time: a listing that fails may cost much.
    pub(super) fn list_again(&mut self, now: Now, rest: Duration) {
        let again = self.whole_asked.map_or(now.boot, |asked| asked + rest).max(now.boot);
        self.whole = self.whole.min(again);
    }

    /// Osdmaps are to be read at once.
    pub(super) fn read_maps(&mut self) {
        self.maps = None;
    }

    /// The next reading of Incus, and whether it is of everything.
    pub(super) fn next_view(&mut self, ctx: Ctx<'_>) -> Option<(Effect, bool)> {
        let now = ctx.now.boot;
        let whole = now >= self.whole;
        if !ctx.settings.platform || !(whole || now >= self.view) || !ctx.may_begin(&Lane::View) {
            return None;
        }
        self.view = now + if is_busy(ctx) { VIEW_OFTEN } else { VIEW_EVERY };
        if whole {
            self.whole = now + WHOLE_EVERY;
            self.whole_asked = Some(now);
        }
        Some((Effect::ReadView { whole }, whole))
    }

    /// Begins a reading of osdmaps, if one is due.
    pub(super) fn begin_maps(&mut self, ctx: Ctx<'_>) -> bool {
        let now = ctx.now.boot;
        let every = if ctx.fences.is_empty() { MAPS_EVERY } else { MAPS_OFTEN };
        let due = self.maps.is_none_or(|last| now >= last + every) && ctx.may_begin(&Lane::Maps);
        if due {
            self.maps = Some(now);
        }
        due
    }

    pub(super) fn next_sweep(&mut self, ctx: Ctx<'_>, turns: &mut SweepTurns) -> Option<Effect> {
        let now = ctx.now.boot;
        let sealed = |fence: &Fence| {
            fence.record().state == FenceState::Sealed && !fence.is_clear() && fence.member().is_some()
        };
        let is_due = now >= self.sweep;
        let begins = is_due || (ctx.fences.all().any(sealed) && sweep_is_old(ctx));
        if ctx.map().is_none() || !begins || !ctx.may_begin(&Lane::Sweep) {
            return None;
        }
        if is_due {
            self.sweep = now + ctx.settings.guard.every;
        }
        Some(Effect::Sweep(turns.begin(ctx, is_due)))
    }
}

/// Is anything lost or fenced?
fn is_busy(ctx: Ctx<'_>) -> bool {
    !ctx.fences.is_empty() || ctx.members.is_any_lost()
}

/// Does a gate wait for a sweep that began after its fence was sealed?
fn sweep_is_old(ctx: Ctx<'_>) -> bool {
    let unclear = ctx.fences.all().filter(|fence| !fence.is_clear());
    let Some(sealed) = unclear.filter_map(Fence::sealed_at).max() else { return false };
    let began = ctx.ceph.sweep.as_ref().map(|sweep| sweep.began);
    began.is_none_or(|began| began < sealed || ctx.now.boot.saturating_sub(began) >= SWEEP_OFTEN)
}
