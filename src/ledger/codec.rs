//! Records as bytes: JSON with the version of its form.

use std::ffi::CStr;

use rbd_guardian_core::model::record::{Key, Record, VERSION};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ceph::rados::pages::LONG;

pub const OBJECT: &str = "ledger";
/// The namespace that the guardian's key may write to.
pub const NAMESPACE: &str = "rbd-guardian";

/// The version of the ledger's form.
pub(super) const META: &str = "meta";
/// The leader record.
pub(super) const LEADER: &str = "leader";
/// The bounds of the trail.
pub(super) const TRAIL: &str = "trail";
/// Before the number of each entry of the trail.
pub(super) const AUDIT: &str = "audit/";
/// Before the ID of each request.
pub(super) const REQUEST: &str = "request/";
/// Before the first of them.
pub(super) const BEFORE_REQUESTS: &CStr = c"request/";
/// Behind each entry of the trail, and before every other key.
pub(super) const AFTER_AUDIT: &CStr = c"audit/~";

/// Behind the records that may be many or large, and before all others.
pub(super) const AFTER_FENCES: &CStr = c"fence/~";

/// A value that is longer is not understood, whatever it says, and not kept; nor is it written. A fence of 1,000 entries has
/// some 100 KB.
pub(super) const LONGEST: usize = LONG;

/// `{"v":2}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {}

/// Which entries of the trail exist: `first..next`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trail {
    pub(super) first: u64,
    pub(super) next: u64,
}

/// The key of an entry of the trail: digits enough for every number, so that keys sort as numbers.
pub(super) fn audit_key(seq: u64) -> String {
    format!("{AUDIT}{seq:020}")
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    v: u32,
    #[serde(flatten)]
    record: &'a T,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

/// A value and the version of its form; unknown fields are left out.
pub(super) struct Decoded<T> {
    pub(super) v: u32,
    /// The record, or why it is not understood.
    pub(super) value: Result<T, String>,
}

/// The bytes of a value.
///
/// # Errors
/// It is longer than [`LONGEST`], or has no JSON form; none of our types is like that.
pub(super) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>, String> {
    let bytes = serde_json::to_vec(&Versioned { v: VERSION, record }).map_err(|error| error.to_string())?;
    if bytes.len() > LONGEST {
        return Err(format!("a record of {} bytes, of {LONGEST} at most", bytes.len()));
    }
    Ok(bytes)
}

/// A value from its bytes.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Decoded<T> {
    let value = serde_json::from_slice(bytes).map_err(|error| error.to_string());
    match serde_json::from_slice::<Version>(bytes) {
        Ok(Version { v }) => Decoded { v, value },
        Err(error) => Decoded { v: 0, value: value.and(Err(error.to_string())) },
    }
}

/// The bytes of a record.
///
/// # Errors
/// As [`encode`].
pub(super) fn encode_record(record: &Record) -> Result<Vec<u8>, String> {
    match record {
        Record::Gate(gate) => encode(gate),
        Record::Disarm(disarm) => encode(disarm),
        Record::Member(member) => encode(member),
        Record::Fence(fence) => encode(fence),
        Record::Request(request) => encode(request),
    }
}

/// A record from its bytes.
pub(super) fn decode_record(key: &Key, bytes: &[u8]) -> Decoded<Record> {
    fn kind<T: DeserializeOwned>(bytes: &[u8], record: impl FnOnce(T) -> Record) -> Decoded<Record> {
        let Decoded { v, value } = decode(bytes);
        Decoded { v, value: value.map(record) }
    }
    let decoded = match key {
        Key::Gate => kind(bytes, Record::Gate),
        Key::Disarm => kind(bytes, Record::Disarm),
        Key::Member(_) => kind(bytes, Record::Member),
        Key::Fence(_) => kind(bytes, Record::Fence),
        Key::Request(_) => kind(bytes, Record::Request),
    };
    let named = |record: Record| {
        let name = record.key();
        if name == *key { Ok(record) } else { Err(format!("it says that it is {name}")) }
    };
    Decoded { v: decoded.v, value: decoded.value.and_then(named) }
}
