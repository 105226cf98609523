//! Placements that the gate refused for good, as Incus tells them: shown for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::guardian::report::{Alarm, Level, Reports};
use crate::model::now::Now;

/// How long one is shown: healing tries again within a minute.
const LASTS: Duration = Duration::from_secs(90);
/// How many are shown.
const SHOWN: usize = 50;

/// What was refused, in words, and when.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct RefusedPlacements(BTreeMap<String, Duration>);

impl RefusedPlacements {
    pub(super) fn handle_refusal(&mut self, now: Now, why: &str, reports: &mut Reports) {
        if self.0.insert(why.to_owned(), now.boot).is_none_or(|told| now.boot >= told + LASTS) {
            reports.log(Level::Warn, "not-placed", None, why.to_owned());
        }
        if self.0.len() > SHOWN {
            let oldest = self.0.iter().min_by_key(|(_, at)| **at).map(|(why, _)| why.clone());
            self.0.retain(|why, _| oldest.as_ref() != Some(why));
        }
    }

    pub(super) fn update(&mut self, now: Now) {
        self.0.retain(|_, at| now.boot.saturating_sub(*at) < LASTS);
    }

    pub(super) fn alarms(&self) -> Vec<Alarm> {
        self.0.keys().map(|why| Alarm::new("not-placed", None, why.clone(), Vec::new())).collect()
    }
}
