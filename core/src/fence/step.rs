//! A step of a fence or of its release, for the guardian to emit as an effect.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use crate::fence::{releasing, sealing};
use crate::model::addr::Entry;

/// A step of one fence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// On the way to the seal, or to keep it.
    Fence(sealing::SealingEffect),
    /// On the way to the release.
    Release(releasing::ReleasingEffect),
}

impl Step {
    /// Entries that it removes.
    pub fn removals(&self) -> &[Entry] {
        match self {
            Self::Fence(sealing::SealingEffect::Remove(entries))
            | Self::Release(releasing::ReleasingEffect::Remove(entries)) => entries,
            Self::Fence(_) | Self::Release(_) => &[],
        }
    }

    /// Does it change the storage?
    pub fn changes_storage(&self) -> bool {
        self.changes_entries() || matches!(self, Self::Fence(sealing::SealingEffect::FailOver(_)))
    }

    /// Does it change the blocklist?
    pub fn changes_entries(&self) -> bool {
        match self {
            Self::Fence(effect) => {
                matches!(effect, sealing::SealingEffect::Add(_) | sealing::SealingEffect::Remove(_))
            }
            Self::Release(effect) => {
                matches!(effect, releasing::ReleasingEffect::Add(_) | releasing::ReleasingEffect::Remove(_))
            }
        }
    }
}

/// Reads also what a recording of before holds, where a step had the fence's ID beside it.
pub(super) fn earlier<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Step>, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum WithId {
        Fence(IgnoredAny, sealing::SealingEffect),
        Release(IgnoredAny, releasing::ReleasingEffect),
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Step(Step),
        WithId(WithId),
    }
    Ok(Option::<Either>::deserialize(deserializer)?.map(|read| match read {
        Either::Step(step) => step,
        Either::WithId(WithId::Fence(_, effect)) => Step::Fence(effect),
        Either::WithId(WithId::Release(_, effect)) => Step::Release(effect),
    }))
}
