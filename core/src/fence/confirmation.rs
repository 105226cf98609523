//! Whether a plan still holds, by what live members and the storage showed since it was made (INV-6).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::mutants::{self, Mutant};

/// A plan is judged again where its first entry is not sent within this time: addresses move.
const LASTS: Duration = Duration::from_secs(5);

/// The last judgement.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Confirmation {
    /// Would it be planned so again? `None` until that is known.
    #[serde(default, rename = "confirmed")]
    holds: Option<bool>,
    /// When that was judged (boot clock).
    #[serde(default, rename = "confirmed_at")]
    at: Option<Duration>,
    /// When the last judgement became too old for a first entry (boot clock): the next one needs a look at the storage that began
    /// later.
    #[serde(default)]
    looks_since: Option<Duration>,
}

impl Confirmation {
    pub(super) fn holds(&self) -> Option<bool> {
        self.holds
    }

    pub(super) fn looks_since(&self) -> Option<Duration> {
        self.looks_since
    }

    pub(super) fn judge(&mut self, holds: bool, now: Duration) {
        (self.holds, self.at) = (Some(holds), Some(now));
    }

    /// A plan that waited for the ledger or the storage says nothing of who has its addresses by now.
    pub(super) fn expire(&mut self, now: Duration) {
        let is_old = self.at.is_some_and(|at| now >= at + LASTS);
        if is_old && !mutants::is(Mutant::OldPlanCarriedOut) {
            *self = Self { looks_since: Some(now), ..Self::default() };
        }
    }
}
