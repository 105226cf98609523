//! Durations in records: whole numbers, and the field's name says of what. Records up to form 1 have an object of seconds
//! and nanoseconds in their place; both are read to the same precision, so that a record is the same after it was written.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Parts(Duration),
}

impl Written {
    fn seconds(self) -> Duration {
        match self {
            Self::Number(seconds) => Duration::from_secs(seconds),
            Self::Parts(parts) => Duration::from_secs(parts.as_secs()),
        }
    }

    fn millis(self) -> Duration {
        match self {
            Self::Number(millis) => Duration::from_millis(millis),
            Self::Parts(parts) => whole_millis(parts),
        }
    }
}

/// Without what a record does not keep.
pub fn whole_millis(span: Duration) -> Duration {
    Duration::from_millis(millis_of(span))
}

fn millis_of(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// For `#[serde(rename = "…_s", with = "seconds")]`.
pub mod seconds {
    use crate::model::span::Deserialize;
    use crate::model::span::Deserializer;
    use crate::model::span::Duration;
    use crate::model::span::Serializer;
    use crate::model::span::Written;

    /// Whole seconds.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(span.as_secs())
    }

    /// A number of seconds, or the older form.
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Ok(Written::deserialize(deserializer)?.seconds())
    }
}

/// For `#[serde(rename = "…_ms", with = "millis")]`.
pub mod millis {
    use crate::model::span::Deserialize;
    use crate::model::span::Deserializer;
    use crate::model::span::Duration;
    use crate::model::span::Serializer;
    use crate::model::span::Written;
    use crate::model::span::millis_of;

    /// Whole milliseconds.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(millis_of(*span))
    }

    /// A number of milliseconds, or the older form.
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Ok(Written::deserialize(deserializer)?.millis())
    }
}

/// The same for durations by name.
pub mod named_millis {
    use crate::model::span::BTreeMap;
    use crate::model::span::Deserialize;
    use crate::model::span::Deserializer;
    use crate::model::span::Duration;
    use crate::model::span::Serialize;
    use crate::model::span::Serializer;
    use crate::model::span::Written;
    use crate::model::span::millis_of;

    /// Whole milliseconds.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(
        spans: &BTreeMap<String, Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let spans: BTreeMap<&String, u64> =
            spans.iter().map(|(name, span)| (name, millis_of(*span))).collect();
        spans.serialize(serializer)
    }

    /// Numbers of milliseconds, or the older form.
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, Duration>, D::Error> {
        let spans = BTreeMap::<String, Written>::deserialize(deserializer)?;
        Ok(spans.into_iter().map(|(name, span)| (name, span.millis())).collect())
    }
}
