//! INV-1 covers every pool a client can write: which those are, what they become while a fence is under way, and what cannot be proved.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Answer, Site, Underway};
use lab::{Errno, Lab, Pool, WriteLog as _, monotonic, wait_for};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn inv1_every_pool_a_client_can_write_is_proved_and_no_other() {
    let site = Site::small();
    let policy = "[ceph]\nexcept_pools = [\"vouched\"]\n[policy]\nmax_fenced_members = 2";
    site.configure(&["n1", "n2"], policy);
    let lab = &site.lab;
    lab.pool("images", Pool::replicated(8, 2)).unwrap();
    lab.pool("coded", Pool::erasure_coded(8)).unwrap();
    lab.pool("one", Pool::replicated(1, 2)).unwrap();
    lab.pool("many", Pool::replicated(256, 2)).unwrap();
    lab.pool("vouched", Pool::replicated(1, 2)).unwrap();
    create(lab, "untagged", 2, None);
    create(lab, "stats", 1, Some("mgr"));
    lab.image_with("images", "disk", 16, &["--image-feature=layering", "--data-pool=coded"]).unwrap();
    let writer = lab.host("n1").writer("images", "disk", 8).unwrap();
    writer.wait_for_acks(20, SOON).unwrap();

    let sealed = site.guardian(&["fence", "n1"]).expect(0);
    let sealed_at = monotonic();
    assert_eq!(sealed.json["state"], "sealed");
    let expected = [("coded", 8), ("images", 8), ("many", 256), ("one", 1), ("untagged", 2)];
    assert_eq!(proved(&sealed), BTreeMap::from(expected.map(|(name, pgs)| (name.to_owned(), (pgs, pgs)))));
    println!("proved: {:?}; timings {}", proved(&sealed), sealed.json["timings_ms"]);

    let hash = lab.content_hash("images", "disk").unwrap();
    assert_eq!(writer.wait_for_error(sealed_at, SOON).unwrap(), Errno::ESHUTDOWN);
    let late = writer.taken_after(sealed_at, 8).unwrap();
    println!(
        "on the erasure-coded data pool: {} writes before, {late} after `sealed`",
        writer.acked().unwrap()
    );
    assert_eq!(late, 0);
    assert_eq!(lab.content_hash("images", "disk").unwrap(), hash);

    create(lab, "cache", 1, None);
    lab.ceph(&["osd", "tier", "add", "one", "cache"]).unwrap();
    lab.ceph_json(&json!({"prefix": "osd tier cache-mode", "pool": "cache", "mode": "writeback"})).unwrap();
    lab.ceph(&["osd", "tier", "set-overlay", "one", "cache"]).unwrap();
    let before = (site.epoch(), site.blocklist());
    let refused = site.guardian(&["fence", "n2"]).expect(4);
    println!("{}", refused.json["refusals"]);
    assert_eq!(refused.json["refusals"][0]["code"], "cache-tier");
    let reason = refused.json["refusals"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("'one'") && reason.contains("'cache'"), "{reason}");
    assert_eq!((site.epoch(), site.blocklist()), before);
}

/// INV-1 while a silent OSD holds the barrier open: what the pools are in the end is what was proved.
#[test]
fn inv1_pools_that_split_join_or_go_under_the_barrier_are_proved_as_they_are_in_the_end() {
    let site = Site::small();
    site.configure(&["n1", "n2"], "[policy]\nmax_fenced_members = 2");
    let lab = &site.lab;
    lab.ceph(&["osd", "set", "nodown"]).unwrap();
    lab.pool("stays", Pool::replicated(16, 1)).unwrap();
    lab.pool("splits", Pool::replicated(8, 1)).unwrap();
    lab.pool("goes", Pool::replicated(8, 1)).unwrap();

    lab.daemon("osd.1").stop().unwrap();
    let fence = site.start_guardian(&["fence", "n1", "--timeout", "100s"]);
    wait_until_held_open(&fence);
    let begun = [("goes", 8), ("splits", 8), ("stays", 16)];
    split(lab, "splits", 16);
    delete(lab, "goes");
    create(lab, "joins", 4, Some("rbd"));
    lab.daemon("osd.1").cont().unwrap();
    let sealed = fence.answer().expect(0);
    println!(
        "{begun:?} at first, {:?} proved in the end, deleted {}",
        proved(&sealed),
        sealed.json["deleted_pools"]
    );
    assert_eq!(sealed.json["state"], "sealed");
    let expected = [("joins", 4), ("splits", 16), ("stays", 16)];
    assert_eq!(proved(&sealed), BTreeMap::from(expected.map(|(name, pgs)| (name.to_owned(), (pgs, pgs)))));
    assert_eq!(sealed.json["deleted_pools"], json!(["goes"]));

    // The client itself makes up an answer for each PG of a deleted pool: it must not be counted while others are silent either.
    lab.daemon("osd.1").stop().unwrap();
    let fence = site.start_guardian(&["fence", "n2", "--timeout", "30s"]);
    wait_until_held_open(&fence);
    delete(lab, "joins");
    let pending = fence.answer().expect(3);
    lab.daemon("osd.1").cont().unwrap();
    println!("held open to the end: {:?}, deleted {}", proved(&pending), pending.json["deleted_pools"]);
    assert_eq!(pending.json["state"], "pending");
    assert!(!proved(&pending).contains_key("joins"), "{:#}", pending.json);
    assert_eq!(pending.json["deleted_pools"], json!(["joins"]));
}

/// The data pool of an image may be tagged for something else, and be known by the image's header alone.
#[test]
fn inv1_the_pool_that_a_header_names_for_its_data_is_proved() {
    let site = Site::small();
    site.configure(&["n1", "n2"], "[ceph]\nexcept_pools = [\"vouched\"]\n[policy]\nmax_fenced_members = 2");
    let lab = &site.lab;
    lab.pool("images", Pool::replicated(8, 2)).unwrap();
    create(lab, "files", 4, Some("cephfs"));
    create(lab, "vouched", 1, Some("rbd"));
    create(lab, "unused", 1, Some("cephfs"));
    lab.image_with("images", "disk", 16, &["--image-feature=layering", "--data-pool=files"]).unwrap();
    lab.image_with("images", "other", 16, &["--image-feature=layering", "--data-pool=vouched"]).unwrap();
    let writer = lab.host("n1").writer("images", "disk", 8).unwrap();
    writer.wait_for_acks(20, SOON).unwrap();

    let doctor = site.guardian(&["doctor"]);
    let checks = doctor.json.as_array().unwrap();
    let of = |name: &str| {
        let its = checks.iter().filter(|check| check["check"] == name);
        its.map(ToString::to_string).collect::<String>()
    };
    assert!(of("pool files").contains("keep their data there"), "{:#}", doctor.json);
    assert!(of("pool vouched").contains("ceph.except_pools"), "{:#}", doctor.json);

    let sealed = site.guardian(&["fence", "n1"]).expect(0);
    let sealed_at = monotonic();
    let expected = [("files", 4), ("images", 8)];
    assert_eq!(proved(&sealed), BTreeMap::from(expected.map(|(name, pgs)| (name.to_owned(), (pgs, pgs)))));
    assert_eq!(writer.wait_for_error(sealed_at, SOON).unwrap(), Errno::ESHUTDOWN);
    assert_eq!(writer.taken_after(sealed_at, 8).unwrap(), 0);
}

/// A pool made without waiting for its PGs.
fn create(lab: &Lab, name: &str, pg_num: u32, application: Option<&str>) {
    lab.ceph_json(&json!({"prefix": "osd pool create", "pool": name, "pg_num": pg_num, "pgp_num": pg_num}))
        .unwrap();
    if let Some(application) = application {
        lab.ceph(&["osd", "pool", "application", "enable", name, application]).unwrap();
    }
}

/// Raises the number of PGs at once, where the mgr would wait until all are clean.
fn split(lab: &Lab, name: &str, pg_num: u32) {
    for var in ["pg_num", "pg_num_actual"] {
        let set = json!({"prefix": "osd pool set", "pool": name, "var": var, "val": pg_num.to_string(), "yes_i_really_mean_it": true});
        lab.ceph_json(&set).unwrap();
    }
    wait_for(&format!("{pg_num} PGs of {name}"), SOON, || {
        let dump = lab.ceph(&["osd", "dump"])?;
        let mut pools = dump["pools"].as_array().unwrap().iter();
        Ok(pools.find(|pool| pool["pool_name"] == name && pool["pg_num"] == pg_num).map(drop))
    })
    .unwrap();
}

fn delete(lab: &Lab, name: &str) {
    lab.ceph_json(&json!({"prefix": "osd pool delete", "pool": name, "pool2": name, "yes_i_really_really_mean_it": true}))
        .unwrap();
}

fn wait_until_held_open(fence: &Underway) {
    wait_for("silent PGs to hold the barrier open", SOON, || {
        Ok(fence.stderr().contains("PGs that do not answer").then_some(()))
    })
    .unwrap();
}

/// Pool → PGs, PGs proved.
fn proved(answer: &Answer) -> BTreeMap<String, (u64, u64)> {
    let pools = answer.json["barrier"].as_array().unwrap().iter();
    let number = |pool: &Value, key: &str| pool[key].as_u64().unwrap();
    pools
        .map(|pool| {
            let name = pool["pool"].as_str().unwrap().to_owned();
            (name, (number(pool, "pgs"), number(pool, "proved")))
        })
        .collect()
}
