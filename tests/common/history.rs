//! What the blocklist said, epoch by epoch. A PG goes from epoch to epoch, so what holds in each of them held at
//! every instant, however short.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::fmt::strtime::BrokenDownTime;
use serde_json::{Value, json};

use super::Site;

/// The blocklist of one osdmap epoch.
#[derive(Debug)]
pub struct Epoch {
    pub number: u64,
    /// When the monitors made it.
    pub modified: Timestamp,
    /// Entries and ranges as `osd dump` prints them, each until when.
    pub entries: BTreeMap<String, Timestamp>,
    pub ranges: BTreeMap<String, Timestamp>,
}

impl Epoch {
    /// Whether any key of it names this client instance.
    pub fn refuses(&self, client: &str) -> bool {
        let ip = ip_of(client);
        self.entries.contains_key(client)
            || self.entries.contains_key(&format!("{ip}:0/0"))
            || self.ranges.contains_key(&range_of(client))
    }

    /// Whether this very entry stands for four years or more from now.
    pub fn stands_long(&self, entry: &str) -> bool {
        self.entries.get(entry).is_some_and(|until| *until >= in_four_years())
    }
}

impl Site {
    /// Every epoch from this one to the newest.
    pub fn history(&self, from: u64) -> Vec<Epoch> {
        (from..=self.epoch()).map(|number| self.epoch_of(number)).collect()
    }

    /// The newest epoch.
    pub fn newest(&self) -> Epoch {
        self.epoch_of(self.epoch())
    }

    fn epoch_of(&self, number: u64) -> Epoch {
        let dump = self.lab.ceph_json(&json!({"prefix": "osd dump", "epoch": number})).unwrap();
        Epoch {
            number,
            modified: time(&dump["modified"]),
            entries: times(&dump["blocklist"]),
            ranges: times(&dump["range_blocklist"]),
        }
    }

    /// Adds an entry for so many seconds, as somebody else would, and returns the epoch in which it is there.
    pub fn add_short(&self, entry: &str, seconds: f64) -> u64 {
        let add = json!({"prefix": "osd blocklist", "blocklistop": "add", "addr": entry, "expire": seconds});
        self.lab.ceph_json(&add).unwrap();
        let newest = self.newest();
        assert!(newest.entries.contains_key(entry), "{entry} in {newest:?}");
        newest.number
    }
}

/// How often the blocklist changed.
pub fn changes(history: &[Epoch]) -> usize {
    let changed =
        |pair: &&[Epoch]| (&pair[0].entries, &pair[0].ranges) != (&pair[1].entries, &pair[1].ranges);
    history.windows(2).filter(changed).count()
}

/// The range that covers a client's host, as `osd dump` prints it.
pub fn range_of(client: &str) -> String {
    format!("cidr:{}:0/32", ip_of(client))
}

pub fn ip_of(client: &str) -> &str {
    client.rsplit_once(":0/").unwrap().0
}

fn time(at: &Value) -> Timestamp {
    BrokenDownTime::parse("%Y-%m-%dT%H:%M:%S%.f%z", at.as_str().unwrap())
        .and_then(|time| time.to_timestamp())
        .unwrap()
}

fn times(map: &Value) -> BTreeMap<String, Timestamp> {
    map.as_object().unwrap().iter().map(|(entry, until)| (entry.clone(), time(until))).collect()
}

fn in_four_years() -> Timestamp {
    Timestamp::now() + std::time::Duration::from_secs(4 * 365 * 24 * 3600)
}
