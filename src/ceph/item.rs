//! One item of a list in an answer of the storage.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An item, each understood by itself: one of another shape costs no other.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Item<T> {
    /// As expected.
    Known(T),
    /// Of another shape.
    Other(Value),
}

impl<T> Item<T> {
    /// The item, if it was understood.
    pub(super) fn known(&self) -> Option<&T> {
        match self {
            Self::Known(known) => Some(known),
            Self::Other(_) => None,
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Item<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(T::deserialize(&value).map_or(Self::Other(value), Self::Known))
    }
}

/// The longest text of an item that is shown.
const SHOWN: usize = 200;

impl<T: fmt::Display> fmt::Display for Item<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(known) => write!(f, "'{known}'"),
            Self::Other(value) => f.write_str(&shown(value)),
        }
    }
}

/// Its text, cut where it is long.
pub(super) fn shown(value: &Value) -> String {
    value.to_string().chars().take(SHOWN).collect()
}
