//! A PG that does not answer keeps a fence pending.

use std::collections::BTreeSet;
use std::time::Duration;

use lab::{Errno, Lab, Pool, WriteLog as _, monotonic, wait_for};
use serde_json::Value;

use super::{Answer, Site};

const SOON: Duration = Duration::from_secs(60);
const TWO_FENCES: &str = "[policy]\nmax_fenced_members = 2";

/// INV-1: exactly the PGs of a stopped OSD are pending, for people too, and the same command seals when they answer.
pub fn pending_until_all_answer(site: &Site) {
    site.configure(&["n1", "n2"], TWO_FENCES);
    site.lab.ceph(&["osd", "set", "nodown"]).unwrap();
    // Else PGs that have the stopped OSD only as a replica fall silent too, 16 s later.
    let lease = ["config", "set", "osd", "osd_pool_default_read_lease_ratio", "30"];
    site.lab.ceph(&lease).unwrap();
    site.lab.pool("single", Pool::replicated(16, 1)).unwrap();
    site.lab.pool("double", Pool::replicated(8, 2)).unwrap();
    site.lab.image("single", "disk", 16).unwrap();
    let writer = site.lab.host("n1").writer("single", "disk", 4).unwrap();
    writer.wait_for_acks(10, SOON).unwrap();
    let silent = pgs_led_by(&site.lab, 1);

    site.lab.daemon("osd.1").stop().unwrap();
    let pending = site.guardian(&["fence", "n1", "--timeout", "12s"]).expect(3);
    assert_eq!(pending.json["state"], "pending");
    assert_eq!(pending_pgs(&pending), silent);
    println!("osd.1 stopped: {} of 24 PGs pending, exactly those it leads: {silent:?}", silent.len());
    for pool in pending.json["barrier"].as_array().unwrap() {
        let unproved = pool["pending"].as_array().unwrap().len() as u64;
        assert_eq!(pool["proved"].as_u64().unwrap() + unproved, pool["pgs"].as_u64().unwrap());
    }

    // The ledger's PG may be one of the silent ones: then whose the entries are is not known.
    let status = site.guardian(&["status"]);
    let exit = if status.json["ledger_unread"].is_null() { 0 } else { 5 };
    let status = status.expect(exit).json;
    assert_eq!(status["members"][0]["state"], "pending", "{status:#}");
    let checks = site.guardian(&["doctor", "--timeout", "30s"]).expect(1).json;
    let told = |pg: &String| {
        checks.as_array().unwrap().iter().any(|check| check["detail"].as_str().unwrap().contains(pg))
    };
    assert!(
        silent.iter().all(told),
        "what cannot be asked is a finding, not the end of the report: {checks:#}"
    );

    let waiting = site.start_guardian(&["fence", "n2", "--timeout", "90s"]);
    let count = format!("waiting for {} PGs that do not answer", silent.len());
    let line = wait_for("a line that names the PGs", SOON, || {
        let said = waiting.stderr();
        Ok(said.lines().find(|line| line.contains(&count)).map(str::to_owned))
    })
    .unwrap();
    println!("for people: {line}");
    assert!(
        silent.iter().take(8).all(|pg| line.split(' ').any(|word| word == pg)),
        "{line} names {silent:?}"
    );

    site.lab.daemon("osd.1").cont().unwrap();
    let sealed = waiting.answer().expect(0);
    assert_eq!(sealed.json["state"], "sealed");
    assert_eq!(pending_pgs(&sealed), BTreeSet::new());

    let again = site.guardian(&["fence", "n1"]).expect(0);
    let sealed_at = monotonic();
    assert_eq!(again.json["state"], "sealed");
    assert_eq!(again.json["fence"], pending.json["fence"]);
    assert_eq!(writer.wait_for_error(sealed_at, SOON).unwrap(), Errno::ESHUTDOWN);
    let late = writer.taken_after(sealed_at, 4).unwrap();
    println!("{late} writes acknowledged after `sealed`");
    assert_eq!(late, 0);
}

/// Has this OSD lead all PGs of a pool but those of these objects.
pub fn lead(lab: &Lab, osd: u32, pool: &str, but: &[&str]) {
    lab.ceph(&["osd", "set-require-min-compat-client", "luminous"]).unwrap();
    let of = |object: &&str| lab.ceph(&["osd", "map", pool, object]).unwrap()["pgid"].clone();
    let kept: Vec<Value> = but.iter().map(of).collect();
    let wanted = || {
        let listed = lab.ceph(&["pg", "ls-by-pool", pool]).unwrap();
        let mut pgs = listed["pg_stats"].as_array().unwrap().clone();
        pgs.retain(|pg| !kept.contains(&pg["pgid"]));
        pgs
    };
    for pg in wanted() {
        let acting = pg["acting"].as_array().unwrap().iter().map(|osd| osd.as_u64().unwrap());
        let copies = acting.clone().count();
        let others = acting.filter(|other| *other != u64::from(osd)).take(copies - 1);
        let all: Vec<String> =
            std::iter::once(u64::from(osd)).chain(others).map(|osd| osd.to_string()).collect();
        let words = ["osd", "pg-upmap", pg["pgid"].as_str().unwrap()].into_iter();
        lab.ceph(&words.chain(all.iter().map(String::as_str)).collect::<Vec<_>>()).unwrap();
    }
    wait_for(&format!("{pool} on osd.{osd}"), SOON, || {
        Ok(wanted().iter().all(|pg| pg["acting_primary"] == osd).then_some(()))
    })
    .unwrap();
    lab.wait_until_clean(pool).unwrap();
}

/// The PGs an OSD is the primary of, as the storage prints them.
pub fn pgs_led_by(lab: &Lab, osd: u32) -> BTreeSet<String> {
    listed(lab, "ls-by-primary", osd)
}

/// The PGs an OSD has, as the primary or not.
pub fn pgs_on(lab: &Lab, osd: u32) -> BTreeSet<String> {
    listed(lab, "ls-by-osd", osd)
}

fn listed(lab: &Lab, list: &str, osd: u32) -> BTreeSet<String> {
    let listed = lab.ceph(&["pg", list, &format!("osd.{osd}")]).unwrap();
    let pgs = listed["pg_stats"].as_array().unwrap().iter();
    let pgs = pgs.map(|pg| pg["pgid"].as_str().unwrap().to_owned());
    // The first pool of every site is the ledger's, which no fence has to prove.
    pgs.filter(|pg| !pg.starts_with("1.")).collect()
}

/// The PGs an answer names as pending.
pub fn pending_pgs(answer: &Answer) -> BTreeSet<String> {
    let pools = answer.json["barrier"].as_array().unwrap().iter();
    let pgs = pools.flat_map(|pool| pool["pending"].as_array().unwrap());
    pgs.map(|pg| pg.as_str().unwrap().to_owned()).collect()
}
