//! `osd dump` as typed data.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use jiff::fmt::strtime::BrokenDownTime;
use nix::errno::Errno;
use serde::Deserialize;

use super::cluster::Cluster;
use super::command::{ReadError, read};
use super::lane;
use crate::deadline::Deadline;
use crate::domain::addr::EntityAddr;
use crate::domain::blocklist::Blocklist;
use crate::domain::map::{OsdMap, Pool};

/// An osdmap and where its OSDs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// What decisions need.
    pub map: OsdMap,
    /// Number and address of each OSD that has one.
    pub osds: Vec<(i64, EntityAddr)>,
}

/// Maps of past epochs asked for at once: of a cluster that slept over hundreds of them, in seconds.
const ABREAST: usize = 8;

/// Reads the newest osdmap. Linearizable: it shows every change acknowledged before the call.
///
/// # Errors
/// See [`ReadError`].
pub fn dump(cluster: &Cluster) -> Result<Dump, ReadError> {
    parse(&read(cluster, &serde_json::json!({"prefix": "osd dump", "format": "json"}))?)
}

/// Reads every map after this epoch that the monitors still have, oldest first; with 0, or where there is none after
/// it, the newest alone. The newest is always the last.
///
/// # Errors
/// See [`ReadError`]. A map that the monitors trimmed is left out; one that was not answered is an error.
pub fn since(cluster: &Cluster, after: u32, deadline: &Deadline) -> Result<Vec<OsdMap>, ReadError> {
    let newest = dump(cluster)?.map;
    let between = if after == 0 { 0..0 } else { after.saturating_add(1)..newest.epoch };
    let calls = between.clone().map(|epoch| {
        let cluster = cluster.clone();
        move || at(&cluster, epoch)
    });
    let answers = lane::each(calls.collect(), ABREAST);
    let mut maps: Vec<Option<OsdMap>> = Vec::new();
    maps.resize_with(between.len(), || None);
    let mut answered = 0;
    while answered < between.len() {
        match deadline.receive(&answers) {
            Ok(Some((index, map))) => maps[index] = map?,
            Ok(None) | Err(_) => return Err(ReadError::NoAnswer { command: "osd dump".to_owned() }),
        }
        answered += 1;
    }
    Ok(maps.into_iter().flatten().chain([newest]).collect())
}

/// The map of an epoch; `None` if it was trimmed, which the monitors tell with ENOENT (`OSDMonitor.cc`).
fn at(cluster: &Cluster, epoch: u32) -> Result<Option<OsdMap>, ReadError> {
    let command = serde_json::json!({"prefix": "osd dump", "format": "json", "epoch": epoch});
    match cluster.mon_command(&command) {
        Ok(json) => Ok(Some(parse(&json)?.map)),
        Err(error) if error.errno == Errno::ENOENT => Ok(None),
        Err(error) => Err(ReadError::new(&command, &error)),
    }
}

fn parse(json: &[u8]) -> Result<Dump, ReadError> {
    let raw: Raw = serde_json::from_slice(json).map_err(|e| ReadError::unreadable("osd dump", &e))?;
    let bad = |text: &str| ReadError::unreadable("osd dump", &text);
    let mut entries = BTreeMap::new();
    for (addr, until) in &raw.blocklist {
        entries.insert(addr.parse().map_err(|_| bad(addr))?, time(until).ok_or_else(|| bad(until))?);
    }
    let mut ranges = BTreeMap::new();
    for (range, until) in raw.range_blocklist.iter().flatten() {
        ranges.insert(network(range).ok_or_else(|| bad(range))?, time(until).ok_or_else(|| bad(until))?);
    }
    let has = |flags: &str, flag: &str| flags.split(',').any(|f| f == flag);
    let pools = raw.pools.iter().map(|pool| {
        let overlay = [pool.read_tier, pool.write_tier].into_iter().find(|tier| *tier >= 0);
        let applications = pool.application_metadata.keys().cloned().collect();
        let eio = has(&pool.flags_names, "eio");
        (pool.pool, Pool { name: pool.pool_name.clone(), pg_num: pool.pg_num, overlay, eio, applications })
    });
    let map = OsdMap {
        epoch: raw.epoch,
        modified: time(&raw.modified).ok_or_else(|| bad(&raw.modified))?,
        blocklist: Blocklist { entries, ranges },
        knows_ranges: raw.range_blocklist.is_some(),
        reads_paused: has(&raw.flags, "pauserd"),
        pools: pools.collect(),
    };
    let osds = raw.osds.iter().flat_map(|osd| {
        let placed = osd.public_addrs.addresses().filter(|addr| !addr.ip.is_unspecified());
        placed.map(|addr| (osd.osd, addr))
    });
    Ok(Dump { map, osds: osds.collect() })
}

/// `2031-11-21T10:00:00.123456+0000`: in the monitor's local zone, with its offset.
pub(super) fn time(text: &str) -> Option<Timestamp> {
    BrokenDownTime::parse("%Y-%m-%dT%H:%M:%S%.f%z", text).ok()?.to_timestamp().ok()
}

/// `cidr:10.0.0.5:0/32`, `cidr:[fd77::5]:0/128`: a network printed as an address, with port 0.
fn network(text: &str) -> Option<IpNet> {
    let (place, bits) = text.strip_prefix("cidr:").unwrap_or(text).rsplit_once('/')?;
    let addr: EntityAddr = place.parse().ok()?;
    IpNet::new(addr.ip, bits.parse().ok()?).ok()
}

#[derive(Deserialize)]
struct Raw {
    epoch: u32,
    modified: String,
    #[serde(default)]
    flags: String,
    pools: Vec<RawPool>,
    #[serde(default)]
    osds: Vec<RawOsd>,
    blocklist: BTreeMap<String, String>,
    range_blocklist: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawPool {
    pool: i64,
    pool_name: String,
    pg_num: u32,
    read_tier: i64,
    write_tier: i64,
    #[serde(default)]
    flags_names: String,
    #[serde(default)]
    application_metadata: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct RawOsd {
    osd: i64,
    #[serde(default)]
    public_addrs: AddrVec,
}

/// An `entity_addrvec_t` in JSON: address and nonce apart.
#[derive(Debug, Default, Deserialize)]
pub(super) struct AddrVec {
    #[serde(default)]
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

    /// Those that are addresses; a daemon that was never up has `-`.
    pub(super) fn addresses(&self) -> impl Iterator<Item = EntityAddr> {
        self.addrvec.iter().filter_map(|raw| {
            let addr: EntityAddr = raw.addr.parse().ok()?;
            Some(EntityAddr { nonce: raw.nonce, ..addr })
        })
    }
}
