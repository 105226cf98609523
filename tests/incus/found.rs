//! Images that Incus lists and that are not in their pool, on a real cluster: all of them, as where Incus uses another Ceph
//! cluster of the same name, and one.

use std::time::Duration;

use crate::common::guarded::{Guarded, HEALED, MEMBERS, SOON, alarm};
use lab::incus::POOL;
use lab::{Topology, WriteLog as _, monotonic, wait_for};
use serde_json::{Value, json};

/// At rest images are looked for each ten minutes, and each 10 s while a pool lacks them.
const LOOKED: Duration = Duration::from_secs(60);

fn wrong(status: &Value) -> Option<String> {
    let mut alarms = status["alarms"].as_array().into_iter().flatten();
    let alarm = alarms.find(|alarm| alarm["code"] == "wrong-cluster")?;
    alarm["text"].as_str().map(str::to_owned)
}

/// The storage that the gate at this member takes for covered.
fn covers(site: &Guarded, member: &str) -> bool {
    let members = site.cluster.live().unwrap().query("/1.0/cluster/members?recursion=1").unwrap();
    let mut members = members.as_array().into_iter().flatten();
    let one = members.find(|one| one["server_name"] == member).unwrap();
    let pools = one["config"]["user.rbd-guardian.pools"].as_str().unwrap_or_default();
    pools.split(',').any(|pool| pool == POOL.0)
}

/// What the doctor says of Incus's images, and its verdict.
fn diagnosed(site: &Guarded) -> (String, String) {
    // Other rows speak of the lost member.
    let checks = site.guardian(&["doctor"]).json;
    let mut checks = checks.as_array().unwrap().iter();
    let row = checks.find(|check| check["check"] == "images of Incus").unwrap();
    println!("doctor: {row}");
    (row["verdict"].as_str().unwrap().to_owned(), row["detail"].as_str().unwrap().to_owned())
}

#[test]
fn inv2_no_gate_opens_for_images_that_are_not_in_this_cluster() {
    let site = Guarded::start(Topology::apart());
    let leader = site.cluster.leader().unwrap();
    let others = || MEMBERS.into_iter().filter(|name| *name != leader);
    let (lost, other) = (others().next().unwrap(), others().next_back().unwrap());
    let first = site.cluster.launch("c1", lost).unwrap();
    let second = site.cluster.launch("c2", lost).unwrap();
    let stale = first.wait_for_writer(lost, SOON).unwrap();
    second.wait_for_writer(lost, SOON).unwrap();
    site.wait_until_known(lost);
    let rename = |from: &str, to: &str| {
        let path = |name: &str| format!("{}/{name}", POOL.1);
        site.lab().rbd(&["mv", &path(from), &path(to)]).unwrap();
    };
    assert_eq!(diagnosed(&site).0, "ok");

    // As the guardian of another cluster with a pool of that name sees it: none of the names is there.
    let names = ["container_c1", "container_c2"];
    site.stop_daemon();
    names.iter().for_each(|name| rename(name, &format!("hidden_{name}")));
    site.start_daemon();
    let began = monotonic();
    let status =
        site.wait_for_status("the wrong cluster to be told", LOOKED, |status| wrong(status).is_some());
    let told = wrong(&status).unwrap();
    println!("{:?} after the start: {told}", monotonic() - began);
    assert!(told.contains("lacks 2 of 2") && told.contains("incus/container_c1"), "{told}");
    wait_for("the storage to be covered no more", SOON, || Ok((!covers(&site, other)).then_some(())))
        .unwrap();
    let (verdict, detail) = diagnosed(&site);
    assert!(verdict == "fail" && detail.contains("fsid"), "{detail}");
    let began = monotonic();
    names.iter().for_each(|name| rename(&format!("hidden_{name}"), name));
    site.wait_for_status("it to be over", LOOKED, |status| wrong(status).is_none());
    wait_for("the storage to be covered", SOON, || Ok(covers(&site, other).then_some(()))).unwrap();
    println!("covered again {:?} after", monotonic() - began);

    // One of two is gone when its member is lost: sealed, and nothing is placed elsewhere.
    rename(names[0], "hidden");
    site.lab().cut(lost).unwrap();
    let status = site.wait_for_status("the gate to wait", HEALED, |status| {
        alarm(status, "gate-waits", lost)["text"].to_string().contains("container_c1")
    });
    println!("{}", alarm(&status, "gate-waits", lost));
    assert_eq!((&status["gate"]["open"], wrong(&status)), (&json!([]), None), "{status:#}");
    let (verdict, detail) = diagnosed(&site);
    assert!(verdict == "warn" && detail.contains("incus/container_c1"), "{detail}");
    let refusals = || site.log_text().matches("\"not-placed\"").count();
    println!("{} placements refused meanwhile", refusals());
    let moved = site.cluster.member(other).incus(&["move", "c2", "--target", other]);
    moved.expect_err("the gate is closed");
    assert_eq!((site.listed("c1"), site.listed("c2")), (lost.to_owned(), lost.to_owned()));

    // It is found: the gate opens, and both are healed.
    let back = monotonic();
    rename("hidden", names[0]);
    site.wait_for_status("the gate to open", SOON, |status| status["gate"]["open"] == json!([lost]));
    println!("open {:?} after the image was back", monotonic() - back);
    let owner = wait_for("c1 to write elsewhere", HEALED, || {
        let owner = first.location()?;
        (owner != lost).then(|| first.wait_for_writer(&owner, SOON)).transpose()
    });
    owner.unwrap().wait_for_acks(10, SOON).unwrap();
    let seal = Guarded::instant(&site.hears("sealed", lost));
    assert_eq!(stale.taken_after(seal, 1).unwrap(), 0, "INV-1");
}
