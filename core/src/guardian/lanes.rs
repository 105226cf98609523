//! How often an effect is asked for again: the one place that decides it for all of them.
//!
//! Effects of one lane never overlap. One that failed rests before it is asked for again, each time for longer, whatever
//! wants it: a question that fails at once would otherwise be asked as fast as it fails. The pause counts from when the
//! last try began, so that a question that took long to fail is asked again at once.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::step::{Sent, Step, StepOutcome};
use crate::guardian::io::{Effect, Input, Now, Recorded};
use crate::model::fence_id::FenceId;
use crate::model::pairs;

/// Effects of one lane never overlap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Lane {
    View,
    Maps,
    Audit,
    Retire,
    Look,
    Sweep,
    Find,
    Record,
    Gate,
    Push,
    Lock,
    Start,
    State(String),
    Networks(String),
    Ping(String),
    /// Of all fences and releases together.
    Map,
    /// Of all fences together.
    Barrier,
    FailOver(FenceId),
    Daemons(FenceId),
    Add(FenceId),
    Remove(FenceId),
    Clients(FenceId),
}

/// Tries of an effect that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FailedEffect {
    /// When the last one began.
    began: Duration,
    /// How many in a row.
    times: u32,
}

/// The pause after the first failure; each further one doubles it.
const FIRST: Duration = Duration::from_millis(250);

impl Lane {
    /// Where an effect belongs.
    pub(super) fn of(effect: &Effect) -> Self {
        match effect {
            Effect::ReadView { .. } => Self::View,
            Effect::ReadMemberState(name) => Self::State(name.clone()),
            Effect::ReadNetworks(name) => Self::Networks(name.clone()),
            Effect::Ping(name) => Self::Ping(name.clone()),
            Effect::Look => Self::Look,
            Effect::ReadMaps { .. } => Self::Maps,
            Effect::ReadAudit(_) => Self::Audit,
            Effect::Sweep(_) => Self::Sweep,
            Effect::Find(_) => Self::Find,
            Effect::Record { .. } => Self::Record,
            Effect::Fence(id, step) | Effect::Release(id, step) => Self::of_step(id, step),
            Effect::Retire(..) => Self::Retire,
            Effect::PutGate { .. } => Self::Gate,
            Effect::PushGate => Self::Push,
            Effect::BreakLock(_) => Self::Lock,
            Effect::Start(_) => Self::Start,
        }
    }

    /// Where a step of a fence belongs.
    pub(super) fn of_step(id: &FenceId, step: &Step) -> Self {
        match step {
            Step::FailOver(_) => Self::FailOver(id.clone()),
            Step::ReadDaemons => Self::Daemons(id.clone()),
            Step::Add(_) => Self::Add(id.clone()),
            Step::Remove(_) => Self::Remove(id.clone()),
            Step::ReadMap => Self::Map,
            Step::Barrier { .. } => Self::Barrier,
            Step::ReadClients => Self::Clients(id.clone()),
        }
    }

    /// Where the step belonged of which this came.
    fn of_outcome(id: &FenceId, outcome: &StepOutcome) -> Self {
        match outcome {
            StepOutcome::FailedOver(..) => Self::FailOver(id.clone()),
            StepOutcome::Daemons(_) => Self::Daemons(id.clone()),
            StepOutcome::Added(_) => Self::Add(id.clone()),
            StepOutcome::Removed(_) => Self::Remove(id.clone()),
            StepOutcome::Map(_) => Self::Map,
            StepOutcome::Proved(_) => Self::Barrier,
            StepOutcome::Clients(_) | StepOutcome::Unread(_) => Self::Clients(id.clone()),
        }
    }

    /// Whose end an input tells, and whether it failed.
    pub(super) fn ended(input: &Input) -> Option<(Self, bool)> {
        Some(match input {
            Input::Tick | Input::Notice(_) | Input::Request(..) | Input::Deposed(_) => return None,
            Input::View { view, .. } => (Self::View, view.is_err()),
            Input::MemberState(name, state) => (Self::State(name.clone()), state.is_err()),
            Input::Answered(name) => (Self::State(name.clone()), false),
            Input::Networks(name, networks) => (Self::Networks(name.clone()), networks.is_err()),
            Input::Pinged(name, answered) => (Self::Ping(name.clone()), answered.is_err()),
            Input::Looked(world) => (Self::Look, world.is_err()),
            Input::Maps(maps) => (Self::Maps, maps.is_err()),
            Input::Audit(_, removals) => (Self::Audit, removals.is_err()),
            // What could not be read of it is told, and read with the next one.
            Input::Swept { .. } => (Self::Sweep, false),
            Input::Found { unread, .. } => (Self::Find, !unread.is_empty()),
            Input::Recorded(recorded) => (Self::Record, matches!(recorded, Recorded::Not { .. })),
            // Daemons are asked for again only until a standby is active.
            Input::Step(id, outcome) => {
                let has_failed = outcome.has_failed() || matches!(outcome, StepOutcome::Daemons(_));
                (Self::of_outcome(id, outcome), has_failed)
            }
            Input::Retired(_, sent) => {
                (Self::Retire, sent.iter().any(|(_, sent)| *sent != Sent::Acknowledged))
            }
            Input::GatePut(failed) => (Self::Gate, !failed.is_empty()),
            Input::GatePushed(pushed) => (Self::Push, pushed.is_err()),
            Input::LockBroken(_, broken) => (Self::Lock, broken.is_err()),
            Input::Started(_, started) => (Self::Start, started.is_err()),
        })
    }

    /// The fence it is a step of.
    fn fence(&self) -> Option<&FenceId> {
        match self {
            Self::FailOver(id) | Self::Daemons(id) | Self::Add(id) | Self::Remove(id) | Self::Clients(id) => {
                Some(id)
            }
            Self::View
            | Self::Maps
            | Self::Audit
            | Self::Retire
            | Self::Look
            | Self::Sweep
            | Self::Find
            | Self::Record
            | Self::Gate
            | Self::Push
            | Self::Lock
            | Self::Start
            | Self::State(_)
            | Self::Networks(_)
            | Self::Ping(_)
            | Self::Map
            | Self::Barrier => None,
        }
    }

    /// The longest pause: what a fence waits for, or what keeps one held, is tried each second.
    fn longest(&self) -> Duration {
        Duration::from_secs(match self {
            Self::View
            | Self::Maps
            | Self::Audit
            | Self::Record
            | Self::Gate
            | Self::State(_)
            | Self::Networks(_)
            | Self::Ping(_)
            | Self::Map
            | Self::Barrier
            | Self::FailOver(_)
            | Self::Daemons(_)
            | Self::Add(_)
            | Self::Remove(_) => 1,
            // Each goes through every monitor and image.
            Self::Look | Self::Sweep | Self::Find => 2,
            // A release holds nobody up but its member.
            Self::Clients(_) | Self::Push | Self::Lock | Self::Start | Self::Retire => 30,
        })
    }
}

impl FailedEffect {
    /// How long after the last try began the next one may begin.
    fn pause(self, lane: &Lane) -> Duration {
        let factor = 1_u32 << self.times.saturating_sub(1).min(16);
        FIRST.saturating_mul(factor).min(lane.longest())
    }
}

/// What is on its way, and what failed last and is to rest before it is tried again.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Lanes {
    #[serde(with = "pairs")]
    busy: BTreeMap<Lane, Duration>,
    #[serde(default, with = "pairs")]
    failed: BTreeMap<Lane, FailedEffect>,
}

impl Lanes {
    /// When the effect of this lane began that is on its way.
    pub(super) fn began(&self, lane: &Lane) -> Option<Duration> {
        self.busy.get(lane).copied()
    }

    /// Is nothing of this lane on its way, and the pause after its last failure over?
    pub(super) fn may_begin(&self, now: Now, lane: &Lane) -> bool {
        !self.busy.contains_key(lane) && !self.rests(now, lane)
    }

    /// Did it fail, and is it to rest?
    pub(super) fn rests(&self, now: Now, lane: &Lane) -> bool {
        self.failed.get(lane).is_some_and(|failed| now.boot < failed.began + failed.pause(lane))
    }

    /// An effect begins.
    pub(super) fn begin(&mut self, now: Now, effect: &Effect) {
        self.busy.insert(Lane::of(effect), now.boot);
    }

    /// Takes note of what this input ends; when that was asked for.
    pub(super) fn end(&mut self, now: Now, input: &Input) -> Duration {
        let Some((lane, has_failed)) = Lane::ended(input) else { return now.boot };
        let began = self.busy.remove(&lane).unwrap_or(now.boot);
        if has_failed {
            let times = self.failed.get(&lane).map_or(0, |failed| failed.times).saturating_add(1);
            self.failed.insert(lane, FailedEffect { began, times });
        } else {
            self.failed.remove(&lane);
        }
        began
    }

    /// Forgets the steps of fences that are over, and questions to members that are gone.
    pub(super) fn forget_failures(
        &mut self,
        is_fence: impl Fn(&FenceId) -> bool,
        is_member: impl Fn(&str) -> bool,
    ) {
        self.failed.retain(|lane, _| {
            if let Lane::State(name) | Lane::Networks(name) | Lane::Ping(name) = lane {
                return is_member(name);
            }
            lane.fence().is_none_or(&is_fence)
        });
    }
}
