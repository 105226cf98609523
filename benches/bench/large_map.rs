//! An osdmap of a large cluster, made here: how long the daemon takes from the monitors' answer to its judgement.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use jiff::Timestamp;
use rbd_guardian::ceph::osdmap;
use rbd_guardian_core::guardian::Guardian;
use rbd_guardian_core::guardian::io::{Input, Now};
use rbd_guardian_core::guardian::settings::Settings;
use rbd_guardian_core::model::member::Members;
use rbd_guardian_core::model::policy::Policy;
use rbd_guardian_core::model::record::Records;
use serde_json::{Value, json};

use crate::table::Row;
use crate::{median, shown};

const OSDS: u32 = 5_000;
const POOLS: u32 = 200;
const ENTRIES: u32 = 10_000;
const ROUNDS: usize = 9;
const TARGET: f64 = 0.040;

pub(crate) fn row() -> Result<Row> {
    let dump = dump().to_string();
    let mut seconds = Vec::new();
    let mut read = Vec::new();
    for _ in 0..ROUNDS {
        let now = Now { boot: Duration::from_secs(1000), wall: Timestamp::now() };
        let settings = Settings::new("g1", "boot-1", Policy::default(), Members::default());
        let mut guardian = Guardian::new(settings, Records::default(), now);
        let began = Instant::now();
        let parsed = osdmap::parse(dump.as_bytes())?;
        read.push(began.elapsed().as_secs_f64());
        // Each OSD has two addresses.
        let read_whole = (2 * OSDS as usize, ENTRIES as usize);
        let counts = (parsed.osds.len(), parsed.map.blocklist.entries.len());
        ensure!(counts == read_whole, "OSD addresses and blocklist entries: {counts:?}");
        guardian.handle(now, Input::Maps(Ok(vec![parsed.map])));
        while guardian.next_effect(now).is_some() {}
        seconds.push(began.elapsed().as_secs_f64());
    }
    let (whole, read) = (median(&seconds), median(&read));
    Ok(Row {
        what: format!(
            "an osdmap of {OSDS} OSDs, {POOLS} pools, {ENTRIES} blocklist entries, read and judged"
        ),
        ours: format!("{}, of these {} to read {} KiB", shown(whole), shown(read), dump.len() / 1024),
        theirs: String::new(),
        ratio: String::new(),
        target: "< 40 ms".to_owned(),
        met: whole < TARGET,
    })
}

/// With the fields that `osd dump` has on 16.2.
fn dump() -> Value {
    let addrs = |n: u32, port: u32| {
        let addr = |kind: &str, port: u32| json!({"type": kind, "addr": format!("{}:{port}", ip(n)), "nonce": n + 1});
        json!({"addrvec": [addr("v2", port), addr("v1", port + 1)]})
    };
    let osd = |n: u32| {
        json!({
            "osd": n, "uuid": format!("7c0b1b2e-0000-4000-8000-{n:012x}"), "up": 1, "in": 1, "weight": 1,
            "primary_affinity": 1, "last_clean_begin": 0, "last_clean_end": 0, "up_from": 5, "up_thru": 17, "down_at": 0,
            "lost_at": 0, "public_addrs": addrs(n, 6800), "cluster_addrs": addrs(n, 6802),
            "heartbeat_back_addrs": addrs(n, 6804), "heartbeat_front_addrs": addrs(n, 6806),
            "public_addr": format!("{}:6801/{}", ip(n), n + 1), "cluster_addr": format!("{}:6803/{}", ip(n), n + 1),
            "heartbeat_back_addr": format!("{}:6805/{}", ip(n), n + 1),
            "heartbeat_front_addr": format!("{}:6807/{}", ip(n), n + 1), "state": ["exists", "up"],
        })
    };
    let extra = |n: u32| {
        json!({"osd": n, "down_stamp": "0.000000", "laggy_probability": 0, "laggy_interval": 0,
               "features": 4_540_138_297_136_906_239_u64, "old_weight": 0, "last_purged_snaps_scrub": "0.000000", "dead_epoch": 0})
    };
    let pool = |n: u32| {
        json!({
            "pool": n + 1, "pool_name": format!("pool-{n}"), "create_time": "2026-11-28T00:00:00.000000+0000",
            "flags": 8193, "flags_names": "hashpspool,selfmanaged_snaps", "type": 1, "size": 3, "min_size": 2, "crush_rule": 0,
            "object_hash": 2, "pg_autoscale_mode": "on", "pg_num": 256, "pg_placement_num": 256,
            "pg_placement_num_target": 256, "pg_num_target": 256, "pg_num_pending": 256,
            "last_pg_merge_meta": {"source_pgid": "0.0", "ready_epoch": 0, "last_epoch_started": 0},
            "auid": 0, "snap_mode": "selfmanaged", "snap_seq": 3, "snap_epoch": 12, "pool_snaps": [],
            "removed_snaps": "[]", "quota_max_bytes": 0, "quota_max_objects": 0, "tiers": [], "tier_of": -1,
            "read_tier": -1, "write_tier": -1, "cache_mode": "none", "stripe_width": 0, "options": {},
            "application_metadata": {"rbd": {}},
        })
    };
    let until = |n: u32| format!("2031-11-28T00:{:02}:{:02}.{:06}+0000", n / 60 % 60, n % 60, n);
    let blocklist: serde_json::Map<String, Value> =
        (0..ENTRIES).map(|n| (format!("{}:0/{}", ip(n / 4), 4_000_000 + n), json!(until(n)))).collect();
    json!({
        "epoch": 4711, "fsid": "7c0b1b2e-0000-4000-8000-000000000000", "modified": "2026-11-28T00:00:00.000000+0000",
        "flags": "sortbitwise,recovery_deletes,purged_snapdirs,pglog_hardlimit",
        "pools": (0..POOLS).map(pool).collect::<Vec<_>>(),
        "osds": (0..OSDS).map(osd).collect::<Vec<_>>(),
        "osd_xinfo": (0..OSDS).map(extra).collect::<Vec<_>>(),
        "pg_upmap_items": (0..OSDS).map(|n| json!({"pgid": format!("{}.{:x}", n % POOLS + 1, n / POOLS),
            "mappings": [{"from": n, "to": n + 1}]})).collect::<Vec<_>>(),
        "blocklist": blocklist, "range_blocklist": {},
    })
}

fn ip(n: u32) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from(0x0a00_0001 + n)
}
