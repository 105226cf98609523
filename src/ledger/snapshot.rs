//! The ledger as it was read last: every record, and the bytes each was read as.

use std::collections::BTreeMap;

use rbd_guardian_core::model::record::{Change, Key, Record, Records, VERSION};
use serde::de::IgnoredAny;

use super::codec::{
    AUDIT, Decoded, LEADER, LONGEST, META, Meta, REQUEST, TRAIL, Trail, decode, decode_record,
};
use super::error::LedgerWriteError;
use crate::ceph::rados::omap::OmapWrite;

/// Everything but the audit trail, at one moment. A write compares with it and, once done, brings it up to date.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    raw: BTreeMap<String, Vec<u8>>,
    records: Records,
    trail: Trail,
    unread: BTreeMap<String, String>,
    /// By key; only forms newer than ours.
    newer: BTreeMap<String, u32>,
}

impl Snapshot {
    #[cfg(test)]
    fn new(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let mut snapshot = Self::default();
        snapshot.extend(entries);
        snapshot
    }

    /// Takes what was read.
    pub(super) fn extend(&mut self, entries: impl IntoIterator<Item = (String, Vec<u8>)>) {
        for (key, bytes) in entries {
            self.set(key, bytes);
        }
    }

    /// What was understood. Of a record of a newer form, what this guardian knows of it.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Keys whose values are not understood, and why. Nothing is written over them.
    pub fn unread(&self) -> &BTreeMap<String, String> {
        &self.unread
    }

    /// The newest form found, if it is newer than this guardian's: it writes nothing then.
    pub fn newer(&self) -> Option<u32> {
        self.newer.values().max().copied()
    }

    /// How many entries the audit trail has.
    pub fn trail_entries(&self) -> u64 {
        self.trail.next.saturating_sub(self.trail.first)
    }

    /// How many keys there are, the trail's too.
    pub fn keys(&self) -> u64 {
        self.raw.len() as u64 + self.trail_entries()
    }

    /// How long all keys and understood values are together.
    pub fn bytes(&self) -> usize {
        self.raw.iter().map(|(key, value)| key.len() + value.len()).sum()
    }

    /// Is nothing in it?
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// The bytes of a key; empty if it is absent, which is how the OSD compares it.
    pub(super) fn raw(&self, key: &str) -> &[u8] {
        self.raw.get(key).map_or(&[], Vec::as_slice)
    }

    pub(super) fn trail(&self) -> Trail {
        self.trail
    }

    /// May this guardian write these keys?
    ///
    /// # Errors
    /// What is there is newer, or not understood.
    pub(super) fn writable<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k String>,
    ) -> Result<(), LedgerWriteError> {
        if let Some(found) = self.newer() {
            return Err(LedgerWriteError::NewerLedger { found, known: VERSION });
        }
        for key in keys {
            if let Some(why) = self.unread.get(key) {
                return Err(LedgerWriteError::Damaged { key: key.clone(), why: why.clone() });
            }
        }
        Ok(())
    }

    /// Brings it up to date with a write that was done.
    pub(super) fn apply(&mut self, write: OmapWrite) {
        for key in write.remove {
            self.raw.remove(&key);
            if let Ok(key) = key.parse::<Key>() {
                self.records.apply(Change::Remove(key));
            }
        }
        for (key, bytes) in write.set {
            self.set(key, bytes);
        }
    }

    /// Brings the requests up to date: these are all that there are.
    pub(super) fn renew_requests(&mut self, entries: Vec<(String, Vec<u8>)>) {
        let before = self.raw.keys().filter(|key| key.starts_with(REQUEST));
        for key in before.cloned().collect::<Vec<_>>() {
            self.raw.remove(&key);
            self.unread.remove(&key);
            self.newer.remove(&key);
        }
        self.records.requests.clear();
        self.extend(entries);
    }

    /// Takes what was read of a key. Of what is not a record, only that it is there.
    fn set(&mut self, key: String, bytes: Vec<u8>) {
        if key.starts_with(AUDIT) {
            return;
        }
        if bytes.len() > LONGEST {
            self.not_understood(key, format!("{} bytes long, which no record is", bytes.len()));
            return;
        }
        let (v, understood) = match key.as_str() {
            META => self.keep(decode(&bytes), |_, Meta {}| {}),
            LEADER => self.keep(decode(&bytes), |snapshot, leader| snapshot.records.leader = Some(leader)),
            TRAIL => self.keep(decode(&bytes), |snapshot, trail| snapshot.trail = trail),
            // It may mean more than what is known of it: it is not done. It says nothing of what guardians wrote.
            key if key.starts_with(REQUEST) && decode::<IgnoredAny>(&bytes).v > VERSION => {
                let why = "a request of a newer guardian: it is left alone".to_owned();
                self.not_understood(key.to_owned(), why);
                return;
            }
            _ => match key.parse::<Key>() {
                Ok(name) => self.keep(decode_record(&name, &bytes), |snapshot, record: Record| {
                    snapshot.records.apply(Change::Put(record));
                }),
                Err(error) => (decode::<IgnoredAny>(&bytes).v, Err(error.to_string())),
            },
        };
        if v > VERSION {
            self.newer.insert(key.clone(), v);
        }
        match understood {
            Ok(()) => {
                self.unread.remove(&key);
                self.raw.insert(key, bytes);
            }
            Err(why) if v > VERSION => self.not_understood(key, format!("form {v}: {why}")),
            Err(why) => self.not_understood(key, why),
        }
    }

    /// The bytes are not kept: nothing is ever written over them.
    fn not_understood(&mut self, key: String, why: String) {
        self.unread.insert(key.clone(), why);
        self.raw.insert(key, Vec::new());
    }

    fn keep<T>(&mut self, decoded: Decoded<T>, keep: impl FnOnce(&mut Self, T)) -> (u32, Result<(), String>) {
        (decoded.v, decoded.value.map(|value| keep(self, value)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use rbd_guardian_core::model::target::Coverage;
    use serde_json::{Value, json};

    use super::*;
    use crate::ledger::codec::encode_record;

    /// What a fence's record has, empty.
    const EMPTY: &str =
        r#""member":null,"entries":{},"in_doubt":[],"breaches":[],"seen":[],"since":"2026-01-01T00:00:00Z""#;

    fn snapshot(entries: &[(&str, &str)]) -> Snapshot {
        Snapshot::new(entries.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())))
    }

    #[test]
    fn a_newer_form_is_read_as_far_as_it_is_known_and_not_written() {
        let read = snapshot(&[
            ("meta", r#"{"v":1}"#),
            (
                "member/n1",
                r#"{"v":7,"name":"n1","addresses":{"10.0.0.1":["watcher"]},"clients":[],"colour":"red"}"#,
            ),
            ("member/n2", r#"{"v":7,"identity":"n2"}"#),
        ]);
        assert_eq!(read.records().members["n1"].addresses.len(), 1);
        assert!(read.unread()["member/n2"].contains("name"), "{:?}", read.unread());
        let known = VERSION;
        assert_eq!(read.writable([]), Err(LedgerWriteError::NewerLedger { found: 7, known }));
        assert_eq!(
            snapshot(&[("meta", r#"{"v":3,"x":[]}"#)]).writable([]),
            Err(LedgerWriteError::NewerLedger { found: 3, known })
        );
    }

    #[test]
    fn a_newer_kind_of_record_is_not_written_beside() {
        let read = snapshot(&[("meta", r#"{"v":1}"#), ("promise/n1", r#"{"v":3,"of":"n1"}"#)]);
        assert!(read.unread().contains_key("promise/n1"));
        assert!(matches!(read.writable([]), Err(LedgerWriteError::NewerLedger { found: 3, .. })));
    }

    /// A newer guardian may leave a request for an older leader, which goes on recording.
    #[test]
    fn a_request_of_a_newer_form_is_left_alone_and_stops_nothing() {
        let request = |v: u32| {
            let verb = r#""verb":"release","fence":"n1","assert_powered_off":true,"reason":"off","by":"a","only":"n2""#;
            format!(r#"{{"v":{v},"id":"R-1",{verb},"at":"2026-01-01T00:00:00Z","patience_ms":9000}}"#)
        };
        let (newer, known) = (request(VERSION + 1), request(VERSION));
        let mut read = snapshot(&[("meta", r#"{"v":1}"#), ("request/R-1", &newer)]);
        for _ in 0..2 {
            assert_eq!(read.writable([&"fence/F-1".to_owned()]), Ok(()));
            assert!(read.records().requests.is_empty(), "not done as if it were of this form");
            assert!(read.unread()["request/R-1"].contains("newer"), "{:?}", read.unread());
            assert!(read.writable([&"request/R-1".to_owned()]).is_err(), "nor written over");
            read.renew_requests(vec![("request/R-1".to_owned(), newer.clone().into_bytes())]);
        }
        read.renew_requests(vec![("request/R-1".to_owned(), known.into_bytes())]);
        assert!(read.records().requests.contains_key("R-1") && read.unread().is_empty());
    }

    /// The records of `form-1.json`, without one field of one of them.
    fn without(key: &str, field: &str) -> Snapshot {
        let text = include_str!("../../tests/fixtures/ledger/form-1.json");
        let mut form: BTreeMap<String, Value> = serde_json::from_str(text).unwrap();
        let record = form.iter_mut().find(|(name, _)| name.starts_with(key)).unwrap().1;
        assert!(record.as_object_mut().unwrap().remove(field).is_some(), "{key} has no {field}");
        Snapshot::new(form.into_iter().map(|(key, value)| (key, value.to_string().into_bytes())))
    }

    /// A record that lacks what a protection rests on is not understood; it is neither empty nor written over.
    #[test]
    fn inv9_a_field_that_a_protection_rests_on_is_unknown_where_it_is_absent() {
        for (key, field) in [
            ("gate", "open"),
            ("member/", "addresses"),
            ("member/", "clients"),
            ("fence/", "member"),
            ("fence/", "entries"),
            ("fence/", "in_doubt"),
            ("fence/", "breaches"),
            ("fence/", "seen"),
        ] {
            let read = without(key, field);
            let unread: Vec<_> = read.unread().iter().collect();
            assert!(
                matches!(&unread[..], [(name, why)] if name.starts_with(key) && why.contains(field)),
                "{key} without {field}: {unread:?}"
            );
        }
    }

    /// What may be absent then means what protects: nothing is known, nothing is proved, nothing may go.
    #[test]
    fn inv9_what_may_be_absent_proves_nothing() {
        let member = |field: &str| without("member/", field).records().members["n1"].clone();
        assert_eq!(member("others").others, None);
        assert_eq!(member("interfaces").interfaces, None);
        assert_eq!(member("machine").machine, None);
        assert_eq!(member("uptime").uptime, None);
        assert!(member("interfaces").beside.is_empty(), "it speaks for nothing that is there");
        let fence = |field: &str| {
            let read = without("fence/", field);
            assert!(read.unread().is_empty(), "{field}: {:?}", read.unread());
            read.records().fences.values().next().unwrap().clone()
        };
        assert_eq!(fence("coverage").coverage, Coverage::Incomplete);
        assert!(!fence("accepted").overrides.accept_incomplete);
        assert_eq!(fence("proofs").proofs, []);
        assert!(fence("marks").marks.is_empty(), "no reboot is proved by it");
        assert!(fence("dead").dead.is_empty(), "no client's entry goes");
        for told in ["evidence", "reason", "sealed", "released", "removals"] {
            fence(told);
        }
    }

    /// What a guardian of form 1 left goes on, and is written in the form of now.
    #[test]
    fn a_ledger_of_form_1_is_read_and_its_durations_become_numbers() {
        let text = include_str!("../../tests/fixtures/ledger/form-1.json");
        let form: BTreeMap<String, Value> = serde_json::from_str(text).unwrap();
        let read = Snapshot::new(form.into_iter().map(|(key, value)| (key, value.to_string().into_bytes())));
        assert!(read.unread().is_empty() && read.writable([]).is_ok(), "{:?}", read.unread());
        let Records { leader, gate, members, fences, requests, disarm: _ } = read.records().clone();
        assert_eq!((leader.unwrap().guardian.as_str(), gate.unwrap().epoch.0), ("first", 4));
        let (member, request) = (&members["n1"], &requests["R-4242"]);
        let fence = fences.values().next().unwrap();
        assert_eq!(member.uptime.unwrap().uptime, Duration::from_secs(86_400));
        let mark = fence.marks["b3bed6a4-4211-4d65-8c2b-7def64934ad2"];
        assert_eq!(mark, Duration::from_millis(8_332_195), "as it is kept from now on");
        assert_eq!(request.patience, Duration::from_millis(59_987));
        let written = |record: Record| -> Value {
            let bytes = encode_record(&record).unwrap();
            assert_eq!(
                decode_record(&record.key(), &bytes).value,
                Ok(record),
                "the same after it was written"
            );
            serde_json::from_slice(&bytes).unwrap()
        };
        let member = written(Record::Member(member.clone()));
        assert_eq!((&member["v"], &member["uptime"]["uptime_s"]), (&json!(2), &json!(86_400)), "{member}");
        let fence = written(Record::Fence(fence.clone()));
        assert_eq!(fence["marks_ms"], json!({"b3bed6a4-4211-4d65-8c2b-7def64934ad2": 8_332_195}), "{fence}");
        let request = written(Record::Request(request.clone()));
        assert_eq!(request["patience_ms"], 59_987, "{request}");
        for record in [member, fence, request] {
            assert!(!record.to_string().contains("nanos"), "{record}");
        }
    }

    #[test]
    fn what_is_not_understood_is_kept_and_not_written_over() {
        let read = snapshot(&[
            ("fence/F-1", "no JSON"),
            ("fence/F-2", r#"{"id":"F-2"}"#),
            ("fence/F-3", &format!(r#"{{"v":1,"id":"F-4","state":"sealed","by":"a",{EMPTY}}}"#)),
            ("surprise", "{}"),
        ]);
        assert_eq!(read.unread().len(), 4, "{:?}", read.unread());
        assert!(read.unread()["fence/F-3"].contains("fence/F-4"));
        for key in read.unread().keys() {
            assert!(matches!(read.writable([key]), Err(LedgerWriteError::Damaged { .. })));
        }
        assert_eq!(read.writable([&"fence/F-9".to_owned()]), Ok(()), "other records can be written");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(key in "(meta|leader|trail|gate|(member|fence|request)/x)", value in ".{0,80}") {
            let read = Snapshot::new([(key, value.into_bytes())]);
            prop_assert_eq!(read.keys() > 0, true);
        }
    }
}
