//! How often effects are asked for: one that fails rests before it is tried again, each time for longer, and none is asked
//! for without end.

use std::collections::BTreeMap;
use std::time::Duration;

use rbd_guardian_core::fence::step::Step;
use rbd_guardian_core::guardian::io::{Effect, Input, Recorded};

use super::state::World;

/// The pause after a first failure, at least, from one begin to the next; each further failure doubles it.
const FIRST: Duration = Duration::from_millis(250);
/// No pause needs to be longer.
const LONGEST: Duration = Duration::from_secs(1);
/// Within [`SPAN`] none is asked for more often, whether it fails or not.
const MOST: usize = 60;
/// See there.
const SPAN: Duration = Duration::from_secs(10);

/// When each kind of effect was asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pace {
    /// The last ones.
    begun: BTreeMap<String, Vec<Duration>>,
    /// How often it failed in a row.
    failed: BTreeMap<String, u32>,
}

/// What rests together.
fn kind(effect: &Effect) -> String {
    match effect {
        Effect::ReadView { .. } => "view".to_owned(),
        Effect::ReadMaps { .. } => "maps".to_owned(),
        Effect::Record { .. } => "record".to_owned(),
        Effect::ReadAudit(_) => "audit".to_owned(),
        Effect::Fence(_, Step::ReadMap) | Effect::Release(_, Step::ReadMap) => "map".to_owned(),
        Effect::Fence(_, Step::Barrier { .. }) => "barrier".to_owned(),
        Effect::Fence(id, Step::Add(_)) | Effect::Release(id, Step::Add(_)) => {
            format!("add {id}")
        }
        Effect::Fence(id, Step::Remove(_)) | Effect::Release(id, Step::Remove(_)) => {
            format!("remove {id}")
        }
        // Something else may be written at once.
        Effect::PutGate { contents, .. } => format!("gate {contents:?}"),
        Effect::BreakLock(_) => "lock".to_owned(),
        other => format!("{other:?}"),
    }
}

fn fails(input: &Input) -> bool {
    match input {
        Input::View { view, .. } => view.is_err(),
        Input::MemberState(_, state) => state.is_err(),
        Input::Networks(_, networks) => networks.is_err(),
        Input::Looked(world) => world.is_err(),
        Input::Maps(maps) => maps.is_err(),
        Input::Recorded(recorded) => matches!(recorded, Recorded::Not { .. }),
        Input::Step(_, outcome) => outcome.has_failed(),
        Input::GatePut(failed) => !failed.is_empty(),
        _ => false,
    }
}

impl World {
    /// An effect is asked for.
    pub(crate) fn paced(&mut self, effect: &Effect) {
        let (kind, now) = (kind(effect), self.boot);
        let failed = self.pace.failed.get(&kind).copied().unwrap_or_default();
        let begun = self.pace.begun.entry(kind.clone()).or_default();
        begun.retain(|at| now.saturating_sub(*at) < SPAN);
        let pause = FIRST.saturating_mul(1 << failed.saturating_sub(1).min(8)).min(LONGEST);
        let rested = begun.last().is_none_or(|last| failed == 0 || now.saturating_sub(*last) >= pause);
        begun.push(now);
        let often = begun.len();
        if !rested {
            self.breaks(format!(
                "pace: {kind} failed {failed} times and is asked for again within {pause:?}"
            ));
        } else if often > MOST {
            self.breaks(format!("pace: {kind} is asked for {often} times within {SPAN:?}"));
        }
    }

    /// What became of it.
    pub(crate) fn paced_answer(&mut self, effect: &Effect, input: &Input) {
        let failed = self.pace.failed.entry(kind(effect)).or_default();
        *failed = if fails(input) { failed.saturating_add(1) } else { 0 };
    }
}
