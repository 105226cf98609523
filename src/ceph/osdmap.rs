//! `osd dump` as typed data.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use jiff::fmt::strtime::BrokenDownTime;
use serde::Deserialize;

use super::cluster::Cluster;
use super::command::{ReadError, read};
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

/// Reads the newest osdmap. Linearizable: it shows every change acknowledged before the call.
///
/// # Errors
/// See [`ReadError`].
pub fn dump(cluster: &Cluster) -> Result<Dump, ReadError> {
    parse(&read(cluster, &serde_json::json!({"prefix": "osd dump", "format": "json"}))?)
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
fn time(text: &str) -> Option<Timestamp> {
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
