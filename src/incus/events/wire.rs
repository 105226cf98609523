//! One event as Incus writes it, and what is kept of it.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use ring::digest::{Context, SHA256};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{Event, EventHash, EventKind, Lifecycle, LogMessage};
use crate::incus::api::Operation;
use crate::incus::path::{decode, parts, project_of};

/// The longest text of an event that is kept.
pub(super) const TEXT: usize = 16 * 1024;

#[derive(Deserialize)]
struct WireEvent<'a> {
    #[serde(rename = "type")]
    kind: String,
    timestamp: Timestamp,
    #[serde(default)]
    location: String,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WireLifecycle {
    action: String,
    source: String,
    name: Option<String>,
    project: Option<String>,
}

/// An event and what tells it from others; `None` for what is not kept: other types, and chatter of the log.
pub(super) fn parse(text: &[u8]) -> Result<Option<(Event, EventHash)>, serde_json::Error> {
    let WireEvent { kind, timestamp: at, location, metadata } = serde_json::from_slice(text)?;
    let metadata = metadata.map_or("null", RawValue::get);
    let what = match kind.as_str() {
        "lifecycle" => {
            EventKind::Lifecycle(Lifecycle::from(serde_json::from_str::<WireLifecycle>(metadata)?))
        }
        "operation" => EventKind::Operation(Operation {
            // What it is about is read, where it matters.
            resources: BTreeMap::new(),
            ..serde_json::from_str(metadata)?
        }),
        "logging" => EventKind::Logging(serde_json::from_str(metadata)?),
        _ => return Ok(None),
    };
    // A member told to log all it does would fill the queue with it.
    if matches!(&what, EventKind::Logging(log) if ["debug", "trace"].contains(&log.level.as_str())) {
        return Ok(None);
    }
    let mut hash = Context::new(&SHA256);
    for part in [at.to_string().as_str(), &location, metadata] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let mut key = EventHash::default();
    key.copy_from_slice(&hash.finish().as_ref()[..size_of::<EventHash>()]);
    Ok(Some((Event { at, location: short(location), what: what.short() }, key)))
}

impl EventKind {
    /// Without the length that somebody else may give it.
    fn short(self) -> Self {
        match self {
            Self::Lifecycle(what) => Self::Lifecycle(Lifecycle {
                action: short(what.action),
                source: short(what.source),
                project: short(what.project),
                name: short(what.name),
            }),
            Self::Operation(what) => Self::Operation(Operation {
                id: short(what.id),
                description: short(what.description),
                status: short(what.status),
                err: short(what.err),
                location: short(what.location),
                resources: what.resources,
            }),
            Self::Logging(what) => Self::Logging(LogMessage {
                level: short(what.level),
                message: short(what.message),
                context: what.context,
            }),
        }
    }
}

fn short(mut text: String) -> String {
    if text.len() > TEXT {
        let end = (0..=TEXT).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default());
    }
    // What it was cut from is not held either.
    text.shrink_to_fit();
    text
}

/// The fields of a logged line that are used: `server` and `name`, and what the gate said.
pub(super) fn context<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    struct Fields;
    impl<'de> Visitor<'de> for Fields {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the fields of a line")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut kept = BTreeMap::new();
            while let Some(key) = map.next_key::<String>()? {
                let Field(value) = map.next_value()?;
                let named = ["server", "name"].contains(&key.as_str());
                if (named || value.contains(GATE)) && kept.len() < FIELDS {
                    kept.insert(short(key), short(value));
                }
            }
            Ok(kept)
        }
    }
    deserializer.deserialize_any(Fields)
}

/// How the gate signs what it refuses.
const GATE: &str = "rbd-guardian:";
/// How many fields of a logged line are kept.
const FIELDS: usize = 8;

/// A value as text; lists and maps as nothing.
struct Field(String);

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Field;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_str<E>(self, text: &str) -> Result<Field, E> {
                Ok(Field(text.to_owned()))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Field, E> {
                Ok(Field(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Field, E> {
                Ok(Field(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Field, E> {
                Ok(Field(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Field, E> {
                Ok(Field(value.to_string()))
            }

            fn visit_unit<E>(self) -> Result<Field, E> {
                Ok(Field(String::new()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Field, A::Error> {
                while all.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Field(String::new()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Field, A::Error> {
                while all.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Field(String::new()))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

impl From<WireLifecycle> for Lifecycle {
    fn from(wire: WireLifecycle) -> Self {
        let (source, query) = parts(&wire.source);
        let last = || decode(source.rsplit('/').next().unwrap_or_default());
        Self {
            action: wire.action,
            source: source.to_owned(),
            project: wire.project.filter(|project| !project.is_empty()).unwrap_or_else(|| project_of(query)),
            name: wire.name.filter(|name| !name.is_empty()).unwrap_or_else(last),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn started(name: &str, location: &str) -> Value {
        json!({"type": "lifecycle", "timestamp": "2026-08-24T12:00:31.1Z", "project": "default", "location": location,
            "metadata": {"action": "instance-started", "source": format!("/1.0/instances/{name}?project=p1"),
                "requestor": {"username": "x"}}})
    }

    fn command(number: usize, bytes: usize) -> Value {
        json!({"type": "operation", "timestamp": "2026-08-24T12:00:31Z", "location": "m2", "project": "p",
            "metadata": {"id": format!("op-{number}"), "class": "websocket", "description": "Executing command",
                "status": "Running", "resources": {"instances": ["/1.0/instances/c1"]},
                "metadata": {"command": ["x".repeat(bytes)], "environment": {"A": "y".repeat(bytes)}}}})
    }

    #[test]
    fn events_are_read_as_incus_writes_them() {
        let parsed = |event: Value| parse(event.to_string().as_bytes()).unwrap().map(|(event, _)| event);
        let event = parsed(started("c1", "m3")).unwrap();
        assert_eq!(
            (event.at.to_string().as_str(), event.location.as_str()),
            ("2026-08-24T12:00:31.1Z", "m3")
        );
        let what = Lifecycle {
            action: "instance-started".to_owned(),
            source: "/1.0/instances/c1".to_owned(),
            project: "p1".to_owned(),
            name: "c1".to_owned(),
        };
        assert_eq!(event.what, EventKind::Lifecycle(what));
        // Names with any letter, as Incus writes them into a path.
        let mut event = started("b%C3%BCro", "m3");
        event["metadata"]["source"] = json!("/1.0/instances/b%C3%BCro?project=r%26d");
        let EventKind::Lifecycle(what) = parsed(event).unwrap().what else { panic!("no lifecycle") };
        assert_eq!((what.name.as_str(), what.project.as_str()), ("b\u{fc}ro", "r&d"));

        let healing = json!({"type": "operation", "timestamp": "2026-08-24T14:00:31+02:00", "location": "m2",
            "metadata": {"id": "6916", "class": "task", "description": "Healing cluster", "status": "Running",
                "status_code": 103, "resources": {}, "may_cancel": false, "err": "", "location": "m2",
                "metadata": {"evacuation_progress": "Migrating \"c1\" in project \"default\" to \"m3\""}}});
        let EventKind::Operation(operation) = parsed(healing).unwrap().what else { panic!("no operation") };
        assert!(operation.is_under_way());
        assert_eq!(operation.kind(), rbd_guardian_core::model::incus_snapshot::OperationKind::Heal);

        let log = |level: &str| {
            json!({"type": "logging", "timestamp": "2026-08-24T12:00:31Z", "location": "m2", "metadata":
                {"message": "Cluster member isn't responding", "level": level, "context":
                    {"name": "m1", "server": 1, "args": ["x"], "err": "rbd-guardian: not sealed", "other": "x".repeat(9)}}})
        };
        let EventKind::Logging(logged) = parsed(log("warning")).unwrap().what else { panic!("no log") };
        assert_eq!((logged.context["name"].as_str(), logged.context["server"].as_str()), ("m1", "1"));
        assert_eq!(logged.context["err"], "rbd-guardian: not sealed");
        assert_eq!(logged.context.len(), 3, "what is not used is not held");
        assert_eq!(parsed(log("debug")), None);
        assert_eq!(parsed(json!({"type": "network-acl", "timestamp": "2026-08-24T12:00:31Z"})), None);
        assert!(parse(b"{}").is_err());
    }

    #[test]
    fn of_a_command_in_an_instance_nothing_is_held_but_that_it_was() {
        let (event, _) = parse(command(1, 1_000_000).to_string().as_bytes()).unwrap().unwrap();
        assert!(event.weight() < 1000, "{}", event.weight());
        let long = json!({"type": "operation", "timestamp": "2026-08-24T12:00:31Z",
            "metadata": {"id": "1", "description": "x", "err": "z".repeat(1_000_000)}});
        let (event, _) = parse(long.to_string().as_bytes()).unwrap().unwrap();
        assert!(event.weight() < 2 * TEXT, "{}", event.weight());
        let (_, one) = parse(command(1, 10).to_string().as_bytes()).unwrap().unwrap();
        let (_, other) = parse(command(1, 11).to_string().as_bytes()).unwrap().unwrap();
        assert_ne!(one, other);
    }
}
