//! What an operator asks of the guardian that leads, through its socket or the ledger.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::overrides::Overrides;
use crate::model::target::Target;

/// What an operator may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase")]
pub enum Request {
    Fence {
        target: Target,
        /// What the operator permits.
        #[serde(flatten)]
        overrides: Overrides,
        reason: Option<String>,
        /// Who asks (`root@host`).
        by: String,
    },
    Release {
        /// Which: its ID, or its member.
        fence: String,
        /// When that fence was recorded first, as far as who asks could read it: a later one of the same name is
        /// another fence.
        #[serde(default)]
        since: Option<Timestamp>,
        /// The operator asserts that the host was powered off or rebooted.
        assert_powered_off: bool,
        /// What the operator saw.
        reason: Option<String>,
        /// Who asks.
        by: String,
    },
    /// Let no fence begin by itself until then.
    Disarm { until: Timestamp, reason: Option<String>, by: String },
    /// End a disarm before its time.
    Arm { reason: Option<String>, by: String },
    /// Record in the trail what an operator does beside the guardian.
    Note { what: String, reason: Option<String>, by: String },
}

impl Request {
    /// What is asked, for people.
    pub fn what(&self) -> String {
        match self {
            Self::Fence { target: Target::Member(name), .. } => format!("fence {name}"),
            Self::Fence { target: Target::Addresses(entries), .. } => {
                let entries: Vec<String> = entries.iter().map(ToString::to_string).collect();
                format!("fence {}", entries.join(" "))
            }
            Self::Release { fence, .. } => format!("release {fence}"),
            Self::Disarm { until, .. } => format!("disarm until {until}"),
            Self::Arm { .. } => "arm".to_owned(),
            Self::Note { what, .. } => format!("record: {what}"),
        }
    }

    /// Who asks.
    pub fn by(&self) -> &str {
        match self {
            Self::Fence { by, .. }
            | Self::Release { by, .. }
            | Self::Disarm { by, .. }
            | Self::Arm { by, .. }
            | Self::Note { by, .. } => by,
        }
    }

    /// Why, in the asker's words.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Fence { reason, .. }
            | Self::Release { reason, .. }
            | Self::Disarm { reason, .. }
            | Self::Arm { reason, .. }
            | Self::Note { reason, .. } => reason.as_deref(),
        }
    }
}
