//! `osd dump` as typed data.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use jiff::fmt::strtime::BrokenDownTime;
use nix::errno::Errno;
use rbd_guardian_core::model::addr::EntityAddr;
use rbd_guardian_core::model::blocklist::Blocklist;
use rbd_guardian_core::model::osdmap::{MAPS_AT_ONCE, OsdMap, Pool, PoolId};
use serde::Deserialize;

use super::command::{CephReadError, read};
use super::item::{Item, shown};
use super::lane;
use crate::ceph::rados::cluster::Cluster;
use crate::clock;
use crate::deadline::Deadline;
use rbd_guardian_core::model::epoch::OsdEpoch;

/// An osdmap and where its OSDs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsdDump {
    /// What decisions need.
    pub map: OsdMap,
    /// Number and address of each OSD that has one.
    pub osds: Vec<(i64, EntityAddr)>,
    /// OSDs whose place was not understood, each in words.
    pub unplaced: Vec<String>,
}

/// Maps of past epochs asked for at once: of a cluster that slept over hundreds of them, in seconds.
const ABREAST: usize = 8;

/// Reads the newest osdmap. Linearizable: it shows every change acknowledged before the call.
///
/// # Errors
/// See [`CephReadError`].
pub fn dump(cluster: &Cluster) -> Result<OsdDump, CephReadError> {
    parse(&read(cluster, &serde_json::json!({"prefix": "osd dump", "format": "json"}))?)
}

/// Reads the maps after this epoch, oldest first, at most [`MAPS_AT_ONCE`] of them, so that a cluster that made thousands
/// meanwhile is caught up with in bounded memory: fewer means that the newest is among them, or that the time was over.
/// None where there is none after it, which monitors are asked before they send a whole map. With 0 the newest alone.
///
/// # Errors
/// See [`CephReadError`]. Maps that the monitors trimmed are left out: the first map that they have follows. One that was not
/// answered ends the list; it is an error where nothing else was read.
pub fn since(cluster: &Cluster, after: OsdEpoch, deadline: &Deadline) -> Result<Vec<OsdMap>, CephReadError> {
    if after != OsdEpoch::default() && newest_epoch(cluster)? == Some(after) {
        return Ok(Vec::new());
    }
    let newest = dump(cluster)?.map;
    since_by(newest, after, deadline, {
        let cluster = cluster.clone();
        move |epoch| at(&cluster, epoch)
    })
}

/// The epoch of the newest map, as linearizable as the map itself; `None` where the answer has another form.
fn newest_epoch(cluster: &Cluster) -> Result<Option<OsdEpoch>, CephReadError> {
    let json = read(cluster, &serde_json::json!({"prefix": "osd stat", "format": "json"}))?;
    Ok(stat_epoch(&json))
}

fn stat_epoch(json: &[u8]) -> Option<OsdEpoch> {
    #[derive(Deserialize)]
    struct Stat {
        epoch: OsdEpoch,
    }
    serde_json::from_slice::<Stat>(json).ok().map(|stat| stat.epoch)
}

fn since_by<F>(
    newest: OsdMap,
    after: OsdEpoch,
    deadline: &Deadline,
    at: F,
) -> Result<Vec<OsdMap>, CephReadError>
where
    F: Fn(OsdEpoch) -> Result<Option<OsdMap>, CephReadError> + Clone + Send + 'static,
{
    let silent = || CephReadError::NoAnswer { command: "osd dump".to_owned() };
    let (mut first, end) = (after.later(1).0, newest.epoch.0);
    if after == OsdEpoch::default() || first >= end {
        return Ok(vec![newest]);
    }
    let one = |epoch: u32| {
        let at = at.clone();
        lane::one(move || at(OsdEpoch(epoch)), deadline).map_err(|_| silent())?
    };
    // What is trimmed is trimmed from the oldest on.
    if one(first)?.is_none() {
        let mut kept = end;
        while kept - first > 1 {
            let middle = first + (kept - first) / 2;
            if one(middle)?.is_none() { first = middle } else { kept = middle }
        }
        first = kept;
    }
    let last = end.min(first.saturating_add(u32::try_from(MAPS_AT_ONCE).unwrap_or(u32::MAX)));
    let between = first..last;
    let calls = between.clone().map(|epoch| {
        let at = at.clone();
        move || at(OsdEpoch(epoch))
    });
    let answers = lane::each(calls.collect(), ABREAST);
    let mut maps: Vec<Option<Result<Option<OsdMap>, CephReadError>>> = Vec::new();
    maps.resize_with(between.len(), || None);
    let mut answered = 0;
    while answered < between.len() {
        match deadline.receive(&answers) {
            Ok(Some((index, map))) => maps[index] = Some(map),
            Ok(None) | Err(_) => break,
        }
        answered += 1;
    }
    let mut read = Vec::new();
    for map in maps {
        match map {
            Some(Ok(map)) => read.extend(map),
            // What comes after it would hide that it was not read.
            Some(Err(_)) | None if !read.is_empty() => return Ok(read),
            Some(Err(error)) => return Err(error),
            None => return Err(silent()),
        }
    }
    if read.len() < MAPS_AT_ONCE {
        read.push(newest);
    }
    Ok(read)
}

/// The map of an epoch; `None` if it was trimmed, which the monitors tell with ENOENT (`OSDMonitor.cc`).
fn at(cluster: &Cluster, epoch: OsdEpoch) -> Result<Option<OsdMap>, CephReadError> {
    let command = serde_json::json!({"prefix": "osd dump", "format": "json", "epoch": epoch});
    match cluster.mon_command(&command) {
        Ok(json) => Ok(Some(parse(&json)?.map)),
        Err(error) if error.errno == Errno::ENOENT => Ok(None),
        Err(error) => Err(CephReadError::new(&command, &error)),
    }
}

/// From the monitors' answer. An item that is not understood costs no other: it is noted, and where it matters stands for the
/// worst it can mean.
///
/// # Errors
/// It is no osdmap.
pub fn parse(json: &[u8]) -> Result<OsdDump, CephReadError> {
    // As it should be first: item by item takes three times as long.
    let raw = match serde_json::from_slice::<RawOsdMap<RawPool, RawOsd, String>>(json) {
        Ok(raw) => raw.by_item(),
        Err(_) => serde_json::from_slice::<RawOsdMap<Item<RawPool>, Item<RawOsd>, Item<String>>>(json)
            .map_err(|e| CephReadError::unreadable("osd dump", &e))?,
    };
    let mut not_understood = Vec::new();
    // An entry that is there refuses its client, whatever its end. One whose end is unknown may end at any time.
    let mut end = |what: &str, until: &Item<String>| {
        let understood = until.known().and_then(|until| time(until));
        if understood.is_none() {
            not_understood.push(format!("the end of the blocklist entry '{what}': {until}"));
        }
        understood.unwrap_or(Timestamp::MIN)
    };
    let mut blocklist = Blocklist::default();
    let mut strange = Vec::new();
    for (addr, until) in &raw.blocklist {
        match addr.parse() {
            Ok(entry) => drop(blocklist.entries.insert(entry, end(addr, until))),
            Err(_) => strange.push(format!("the blocklist entry '{addr}' (until {until})")),
        }
    }
    for (range, until) in raw.range_blocklist.iter().flatten() {
        match network(range) {
            Some(network) => drop(blocklist.ranges.insert(network, end(range, until))),
            None => strange.push(format!("the blocklisted range '{range}' (until {until})")),
        }
    }
    not_understood.extend(strange);
    let mut pools = BTreeMap::new();
    for item in raw.pools {
        let (id, pool) = pool(item);
        not_understood.extend(pool.unclear.iter().map(|why| format!("pool '{}': {why}", pool.name)));
        pools.insert(id, pool);
    }
    let modified = raw.modified.known().and_then(|text| time(text));
    if modified.is_none() {
        not_understood.push(format!("the time of the osdmap: {}", raw.modified));
    }
    let map = OsdMap {
        epoch: raw.epoch,
        // Without the monitors' clock this host's is the only one there is.
        modified: modified.unwrap_or_else(clock::wall),
        blocklist,
        knows_ranges: raw.range_blocklist.is_some(),
        reads_paused: has(&raw.flags, "pauserd"),
        not_understood,
        pools,
    };
    let mut osds = Vec::new();
    let mut unplaced = Vec::new();
    for item in raw.osds {
        match item {
            Item::Known(osd) => {
                unplaced
                    .extend(osd.public_addrs.strange().map(|addr| format!("osd.{} at '{addr}'", osd.osd)));
                let placed = osd.public_addrs.addresses().filter(|addr| !addr.ip.is_unspecified());
                osds.extend(placed.map(|addr| (osd.osd, addr)));
            }
            Item::Other(value) => unplaced.push(format!("an OSD: {}", shown(&value))),
        }
    }
    Ok(OsdDump { map, osds, unplaced })
}

fn has(flags: &str, flag: &str) -> bool {
    flags.split(',').any(|f| f == flag)
}

/// A pool, by its number. Of one that is not understood what can be read is kept: it may hold images, until its tags say
/// otherwise.
fn pool(item: Item<RawPool>) -> (PoolId, Pool) {
    match item {
        Item::Known(pool) => {
            let overlay = [pool.read_tier, pool.write_tier].into_iter().find(|tier| *tier >= 0);
            let applications = pool.application_metadata.into_keys().collect();
            let eio = has(&pool.flags_names, "eio");
            let (name, pg_num) = (pool.pool_name, pool.pg_num);
            (pool.pool, Pool { name, pg_num, overlay, eio, unclear: None, applications })
        }
        Item::Other(value) => {
            // No pool has a negative number: two without any would be one otherwise.
            let id = value["pool"]
                .as_i64()
                .unwrap_or_else(|| -1 - i64::from(crc32fast::hash(value.to_string().as_bytes())));
            let name = value["pool_name"].as_str().map_or_else(|| format!("number {id}"), str::to_owned);
            let tags = value["application_metadata"].as_object();
            let applications = tags.into_iter().flat_map(|tags| tags.keys().cloned()).collect();
            let unclear =
                Some(RawPool::deserialize(&value).err().map_or_else(String::new, |e| e.to_string()));
            (id, Pool { name, pg_num: 0, overlay: None, eio: false, unclear, applications })
        }
    }
}

/// Before this a time is printed as seconds: `utime_t` takes it for a duration (`include/utime.h`). So do monitors print
/// all their times whose clock was never set.
const TEN_YEARS: i64 = 10 * 365 * 24 * 60 * 60;

/// `2031-11-21T10:00:00.123456+0000`: in the monitor's local zone, with its offset. Or seconds: `3915.123456`.
pub(super) fn time(text: &str) -> Option<Timestamp> {
    let date =
        BrokenDownTime::parse("%Y-%m-%dT%H:%M:%S%.f%z", text).ok().and_then(|time| time.to_timestamp().ok());
    date.or_else(|| {
        let (seconds, micros) = text.split_once('.')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(seconds) || !digits(micros) || micros.len() > 6 {
            return None;
        }
        let seconds = seconds.parse().ok().filter(|seconds| *seconds <= TEN_YEARS)?;
        let micros: i32 = format!("{micros:0<6}").parse().ok()?;
        Timestamp::new(seconds, micros * 1000).ok()
    })
}

/// `cidr:10.0.0.5:0/32`, `cidr:[fd77::5]:0/128`: a network printed as an address, with port 0.
fn network(text: &str) -> Option<IpNet> {
    let (place, bits) = text.strip_prefix("cidr:").unwrap_or(text).rsplit_once('/')?;
    let addr: EntityAddr = place.parse().ok()?;
    IpNet::new(addr.ip, bits.parse().ok()?).ok()
}

/// With `P`, `O` and `T` as pools, OSDs and times are given, or each as an [`Item`].
#[derive(Deserialize)]
struct RawOsdMap<P, O, T> {
    epoch: OsdEpoch,
    modified: T,
    /// Only for words: a paused PG does not answer.
    #[serde(default)]
    flags: String,
    pools: Vec<P>,
    /// Where OSDs live nothing foreign is fenced (INV-6): without them nothing is known of that.
    osds: Vec<O>,
    blocklist: BTreeMap<String, T>,
    /// Absent in releases without ranges.
    range_blocklist: Option<BTreeMap<String, T>>,
}

impl RawOsdMap<RawPool, RawOsd, String> {
    fn by_item(self) -> RawOsdMap<Item<RawPool>, Item<RawOsd>, Item<String>> {
        let times = |times: BTreeMap<String, String>| {
            times.into_iter().map(|(key, time)| (key, Item::Known(time))).collect()
        };
        RawOsdMap {
            epoch: self.epoch,
            modified: Item::Known(self.modified),
            flags: self.flags,
            pools: self.pools.into_iter().map(Item::Known).collect(),
            osds: self.osds.into_iter().map(Item::Known).collect(),
            blocklist: times(self.blocklist),
            range_blocklist: self.range_blocklist.map(times),
        }
    }
}

#[derive(Deserialize)]
struct RawPool {
    pool: i64,
    pool_name: String,
    pg_num: u32,
    read_tier: i64,
    write_tier: i64,
    /// A pool with `eio` is only told sooner by it: its PGs never answer.
    #[serde(default)]
    flags_names: String,
    /// Without a tag a pool is guarded.
    #[serde(default)]
    application_metadata: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct RawOsd {
    osd: i64,
    public_addrs: AddrVec,
}

/// An `entity_addrvec_t` in JSON: address and nonce apart.
#[derive(Debug, Default, Deserialize)]
pub(super) struct AddrVec {
    addrvec: Vec<RawAddr>,
}

#[derive(Debug, Deserialize)]
struct RawAddr {
    addr: String,
    nonce: u32,
}

impl AddrVec {
    /// Each IP once.
    pub(super) fn ips(&self) -> BTreeSet<IpAddr> {
        self.addresses().map(|addr| addr.ip).collect()
    }

    /// The addresses in the list; a daemon that was never up has `-`.
    pub(super) fn addresses(&self) -> impl Iterator<Item = EntityAddr> {
        self.addrvec.iter().filter_map(|raw| {
            let addr: EntityAddr = raw.addr.parse().ok()?;
            Some(EntityAddr { nonce: raw.nonce, ..addr })
        })
    }

    /// Texts that are neither an address nor a blank one (`-`, `:/0`).
    pub(super) fn strange(&self) -> impl Iterator<Item = &str> {
        let blank = |addr: &str| ["-", "", ":/0", "(unrecognized address family 0)"].contains(&addr);
        let all = self.addrvec.iter().map(|raw| raw.addr.as_str());
        all.filter(move |addr| !blank(addr) && addr.parse::<EntityAddr>().is_err())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    /// Of a dump of Ceph 16.2.15 what is read here, and the fields beside it.
    fn captured() -> Value {
        json!({
            "epoch": 48, "fsid": "6f1c0a52-7ed5-4a8e-8a3c-9f0f0d8a4d10",
            "created": "2026-11-24T12:00:01.000001+0100", "modified": "2026-11-24T12:10:02.123456+0100",
            "flags": "sortbitwise,recovery_deletes,purged_snapdirs,pglog_hardlimit", "full_ratio": 0.95,
            "pools": [
                {"pool": 1, "pool_name": "images", "type": 1, "size": 2, "pg_num": 16, "read_tier": -1,
                 "write_tier": -1, "flags_names": "hashpspool,selfmanaged_snaps", "application_metadata": {"rbd": {}}},
                {"pool": 2, "pool_name": "cephfs_data", "type": 1, "size": 2, "pg_num": 8, "read_tier": -1,
                 "write_tier": -1, "flags_names": "hashpspool", "application_metadata": {"cephfs": {}}},
            ],
            "osds": [
                {"osd": 0, "up": 1, "public_addrs": {"addrvec": [
                    {"type": "v2", "addr": "10.77.0.1:6800", "nonce": 42}, {"type": "v1", "addr": "10.77.0.1:6801", "nonce": 42}]}},
                {"osd": 1, "up": 0, "public_addrs": {"addrvec": [{"type": "none", "addr": "-", "nonce": 0}]}},
            ],
            "blocklist": {
                "10.77.0.5:0/0": "2031-11-24T12:10:01.000000+0100",
                "10.77.0.5:0/123": "2031-11-24T12:10:01.000000+0100",
            },
            "range_blocklist": {"cidr:10.77.0.9:0/32": "2031-11-24T12:10:01.000000+0100"},
        })
    }

    fn read(dump: &Value) -> OsdDump {
        parse(dump.to_string().as_bytes()).unwrap()
    }

    fn entry(text: &str) -> rbd_guardian_core::model::addr::Entry {
        text.parse().unwrap()
    }

    #[test]
    fn a_dump_is_read_as_monitors_print_it() {
        let dump = read(&captured());
        assert_eq!((dump.map.epoch.0, dump.map.pools.len(), dump.osds.len()), (48, 2, 2));
        assert_eq!(dump.map.modified.to_string(), "2026-11-24T11:10:02.123456Z");
        assert!(dump.map.blocklist.until(entry("10.77.0.9/32")).is_some());
        assert!(dump.map.not_understood.is_empty() && dump.unplaced.is_empty(), "{dump:?}");
    }

    /// Each of these once cost the whole dump, so a hold went blind.
    #[test]
    fn an_item_that_is_not_understood_is_noted_and_costs_no_other() {
        let strange = json!("2031-11-24T12:10:01.000000+0100");
        for key in ["-", "-:0/0", ":/0", "(unrecognized address family 0)/0", "any:/7"] {
            let mut dump = captured();
            dump["blocklist"][key] = strange.clone();
            let map = read(&dump).map;
            assert!(map.blocklist.until(entry("10.77.0.5:0/0")).is_some(), "{key}");
            assert_eq!((map.blocklist.entries.len(), map.not_understood.len()), (2, 1), "{key}: {map:?}");
            assert!(map.not_understood[0].contains(&format!("'{key}'")), "{:?}", map.not_understood);
        }
        let places: [(&[&str], Value); 7] = [
            (&["range_blocklist", "cidr:-/32"], strange),
            (&["blocklist", "10.77.0.6:0/9"], json!("never")),
            (&["blocklist", "10.77.0.6:0/9"], json!(17)),
            (&["modified"], json!("soon")),
            (&["modified"], Value::Null),
            (&["pools", "1", "pg_num"], json!("many")),
            (&["pools", "1", "pool"], Value::Null),
        ];
        for (path, value) in places {
            let mut dump = captured();
            let place = path.iter().fold(&mut dump, |place, key| match key.parse::<usize>() {
                Ok(index) => &mut place[index],
                Err(_) => &mut place[*key],
            });
            *place = value;
            let map = read(&dump).map;
            assert_eq!(
                (map.epoch.0, map.pools.len(), map.not_understood.len()),
                (48, 2, 1),
                "{path:?}: {map:?}"
            );
            assert!(map.blocklist.until(entry("10.77.0.5:0/123")).is_some(), "{path:?}");
        }
    }

    #[test]
    fn an_end_that_is_not_understood_is_the_soonest_and_the_entry_stands() {
        let mut dump = captured();
        dump["blocklist"]["10.77.0.5:0/0"] = json!("x");
        assert_eq!(read(&dump).map.blocklist.until(entry("10.77.0.5:0/0")), Some(Timestamp::MIN));
    }

    #[test]
    fn a_pool_that_is_not_understood_is_guarded_and_unclear() {
        let mut dump = captured();
        dump["pools"][0]["pg_num"] = Value::Null;
        let map = read(&dump).map;
        let guarded = rbd_guardian_core::model::osdmap::Guarded::default();
        assert!(guarded.pools(&map)[&1].unclear.as_ref().is_some_and(|why| why.contains("u32")), "{map:?}");
        // What its tags say counts all the same.
        dump["pools"][1]["pg_num"] = Value::Null;
        assert!(!guarded.pools(&read(&dump).map).contains_key(&2));
    }

    #[test]
    fn an_osd_whose_place_is_not_understood_is_told() {
        for (at, value) in [("addr", json!("somewhere")), ("nonce", json!("x"))] {
            let mut dump = captured();
            dump["osds"][0]["public_addrs"]["addrvec"][0][at] = value;
            assert_eq!(read(&dump).unplaced.len(), 1, "{at}");
        }
        let mut dump = captured();
        dump["osds"][0].as_object_mut().unwrap().remove("public_addrs");
        assert_eq!(read(&dump).unplaced.len(), 1);
        dump.as_object_mut().unwrap().remove("osds");
        assert!(parse(dump.to_string().as_bytes()).is_err());
    }

    /// A monitor whose clock was never set: `utime_t` prints what is below ten years as seconds.
    #[test]
    fn monitors_without_a_clock_print_seconds() {
        let mut dump = captured();
        dump["modified"] = json!("3915.123456");
        dump["blocklist"] = json!({"10.77.0.5:0/0": "157788675.123456"});
        let map = read(&dump).map;
        assert!(map.not_understood.is_empty(), "{:?}", map.not_understood);
        assert_eq!(map.modified.to_string(), "1970-01-01T01:05:15.123456Z");
        assert_eq!(map.blocklist.until(entry("10.77.0.5:0/0")).unwrap().as_second(), 157_788_675);
        for text in ["", ".", "1.", ".5", "-5.0", "5", "1e3.0", "99999999999.0", "5.1234567"] {
            assert_eq!(time(text), None, "{text}");
        }
    }

    #[test]
    fn the_newest_epoch_is_read_as_monitors_print_it_and_another_form_is_no_epoch() {
        let told = br#"{"epoch":48,"num_osds":3,"num_up_osds":3,"osd_up_since":1795867202,"num_in_osds":3}"#;
        assert_eq!(stat_epoch(told), Some(OsdEpoch(48)));
        for other in [&br#"{"osdmap":{}}"#[..], b"e48: 3 osds", b""] {
            assert_eq!(stat_epoch(other), None);
        }
    }

    /// Asks for what is after this epoch, of a cluster whose newest is `newest` and that has trimmed all before `kept`.
    fn missed(after: u32, kept: u32, newest: u32, silent: Option<u32>) -> Result<Vec<u32>, CephReadError> {
        let map = |epoch| OsdMap { epoch: OsdEpoch(epoch), ..read(&captured()).map };
        let at = move |OsdEpoch(epoch)| match silent {
            Some(silent) if silent == epoch => {
                Err(CephReadError::NoAnswer { command: "osd dump".to_owned() })
            }
            _ => Ok((epoch >= kept).then(|| map(epoch))),
        };
        let deadline = Deadline::after(std::time::Duration::from_secs(30), Arc::default());
        Ok(since_by(map(newest), OsdEpoch(after), &deadline, at)?.iter().map(|map| map.epoch.0).collect())
    }

    /// INV-3: nothing that the monitors still have is skipped, however much was missed, and it comes in parts.
    #[test]
    fn inv3_missed_maps_come_in_parts_without_a_gap() {
        let (mut after, newest) = (7, 7 + 10 * u32::try_from(MAPS_AT_ONCE).unwrap() + 3);
        let mut seen = Vec::new();
        while after < newest {
            let part = missed(after, 1, newest, None).unwrap();
            assert!(!part.is_empty() && part.len() <= MAPS_AT_ONCE, "{part:?}");
            after = *part.last().unwrap();
            seen.extend(part);
        }
        assert_eq!(seen, (8..=newest).collect::<Vec<_>>());
        assert_eq!(missed(newest, 1, newest, None).unwrap(), [newest]);
        assert_eq!(missed(0, 1, newest, None).unwrap(), [newest]);
        assert_eq!(missed(newest - 1, 1, newest, None).unwrap(), [newest]);
    }

    #[test]
    fn what_was_trimmed_is_left_out_and_the_first_that_is_there_follows() {
        for kept in [8, 9, 10, 500, 9_990, 10_000] {
            let part = missed(7, kept, 10_000, None).unwrap();
            assert_eq!(part[0], kept, "{part:?}");
            assert!(part.windows(2).all(|two| two[1] == two[0] + 1), "{part:?}");
        }
    }

    #[test]
    fn what_was_read_before_a_silence_counts_and_nothing_after_it() {
        assert_eq!(missed(7, 1, 100, Some(12)).unwrap(), [8, 9, 10, 11]);
        assert!(missed(7, 1, 100, Some(8)).is_err());
    }
}
