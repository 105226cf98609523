//! The load of a guardian that comes back: how long until it holds what it held, and what that takes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{Process, wait_for};
use rbd_guardian::ceph::rados::cluster::Cluster;
use rbd_guardian::ceph::{lane, osdmap};
use rbd_guardian::deadline::Deadline;
use rbd_guardian::ledger::{Bid, Ledger, LedgerConfig, TrailEntry};
use rbd_guardian_core::model::addr::{ClientAddr, Entry};
use rbd_guardian_core::model::fence_id::FenceContent;
use rbd_guardian_core::model::osdmap::Guarded;
use rbd_guardian_core::model::policy::DEFAULT_EXPIRE;
use rbd_guardian_core::model::record::{Change, FenceRecord, Record};
use serde_json::{Value, json};

use crate::common::Site;
use crate::rest::{Meter, resident, spawn, status};
use crate::{LIMIT, Row};

const FENCES: u32 = 200;
const CLIENTS: u32 = 25;
/// Monitor commands at the same time, so that few commits take them all.
const ABREAST: usize = 512;

/// Starts a guardian on a ledger with so many fences, whose entries stand.
pub(crate) fn load(site: &Site, volumes: u32, sweeps: Duration) -> Result<Row> {
    let began = Instant::now();
    let daemon = spawn(site, "load")?;
    let held = wait_for("the guardian to hold its fences", LIMIT, || {
        let Some(status) = status(site) else { return Ok(None) };
        let fences = status["fences"].as_array().map(Vec::as_slice).unwrap_or_default();
        let sealed = fences.iter().filter(|fence| fence["state"] == "sealed").count();
        let ready = sealed == FENCES as usize && status["platform"]["fresh"] == true;
        Ok((ready && status["epoch"].is_u64()).then_some(status))
    })?;
    let ready = began.elapsed().as_secs_f64();
    let (before, end) = (Meter::read(site, &daemon)?, Instant::now() + sweeps);
    let mut most = 0.0_f64;
    wait_for("sweeps", 2 * sweeps, || {
        most = most.max(resident(daemon.pid())?);
        Ok((Instant::now() >= end).then_some(()))
    })?;
    let core = Meter::read(site, &daemon)?.core_since(&before);
    let after = status(site).context("no status")?;
    let renewed = after["leader"]["epoch"] == held["leader"]["epoch"] && after["leader"]["epoch"].is_u64();
    Ok(Row {
        what: format!("restart with {FENCES} fences, {} client entries, {volumes} volumes", FENCES * CLIENTS),
        ours: format!(
            "ready in {ready:.1} s, then at most {:.0} MiB resident ({:.0} at the start), {core:.1} % of a core, the lead {}",
            most / 1024.0,
            peak(&daemon)? / 1024.0,
            if renewed { "kept" } else { "lost" }
        ),
        theirs: "nothing".to_owned(),
        ratio: "—".to_owned(),
        target: "< 5 s, < 60 MB".to_owned(),
        met: ready < 5.0 && most * 1024.0 < 60e6 && renewed,
    })
}

/// The most it ever had resident, in KiB.
fn peak(daemon: &Process) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Puts the fences into the blocklist and the ledger, as a guardian would have left them.
pub(crate) fn fill(cluster: &Cluster, deadline: &Deadline) -> Result<Value> {
    let client = |fence: u32, number: u32| {
        let ip = std::net::Ipv4Addr::from_bits(0xc612_0000 + fence).into();
        Entry::Client(ClientAddr { ip, nonce: fence * 1000 + number + 1 })
    };
    let fences: Vec<BTreeSet<Entry>> =
        (1..=FENCES).map(|fence| (0..CLIENTS).map(|number| client(fence, number)).collect()).collect();
    let calls = fences.iter().flatten().map(|entry| {
        let (cluster, addr) = (cluster.clone(), entry.to_string());
        let expire = DEFAULT_EXPIRE.as_secs_f64();
        move || {
            cluster.mon_command(
                &json!({"prefix": "osd blocklist", "blocklistop": "add", "addr": addr, "expire": expire}),
            )
        }
    });
    for (_, answer) in lane::each(calls.collect(), ABREAST) {
        answer?;
    }
    let map = osdmap::dump(cluster)?.map;
    let proofs: Vec<Value> = Guarded::default()
        .pools(&map)
        .values()
        .map(|pool| json!({"pool": pool.name, "pgs": pool.pg_num, "epoch": map.epoch}))
        .collect();
    let ledger = Ledger::open(cluster, &LedgerConfig::default(), deadline)?;
    let mut snapshot = ledger.read(deadline)?;
    let at = map.modified;
    let bid = Bid { guardian: "bench".to_owned(), host: "guard".to_owned(), addresses: BTreeSet::new(), at };
    let leadership = ledger.lead(&mut snapshot, &bid, "a load", deadline)?;
    let records: Vec<Change> = fences
        .iter()
        .map(|entries| {
            let until: std::collections::BTreeMap<String, _> =
                entries.iter().map(|entry| (entry.to_string(), map.blocklist.until(*entry))).collect();
            let record = json!({
                "id": FenceContent::new(None, entries).to_string(), "member": null, "state": "sealed", "entries": until,
                "coverage": "known-clients", "in_doubt": [], "proofs": proofs, "by": "root@guard", "since": at, "sealed": at,
                "breaches": [], "seen": [],
            });
            Ok(Change::Put(Record::Fence(serde_json::from_value::<FenceRecord>(record)?)))
        })
        .collect::<Result<_>>()?;
    for some in records.chunks(50) {
        let deed = TrailEntry { at, what: "fences".to_owned(), why: "a load".to_owned() };
        ledger.write(&leadership, &mut snapshot, some, &deed, deadline)?;
    }
    let deadline = Deadline::after(LIMIT, Arc::default());
    let fences = ledger.read(&deadline)?.records().fences.len();
    ensure!(fences == FENCES as usize);
    Ok(json!({"fences": fences, "entries": map.blocklist.entries.len()}))
}
