//! INV-3 under monitors whose wall clock steps: entries end by it, whatever anybody else's says.

use std::ffi::OsString;
use std::fs;

use jiff::Timestamp;
use lab::{Pool, Topology, WriteLog as _, monotonic, own_clock, wait_for};
use serde_json::Value;

use crate::breach::made;
use crate::common::{LIMIT, Site};
use crate::guard::{ASSERTED, Guard, at};
use crate::scene::{MEMBERS, POOL, Scene};

const YEAR: i64 = 31_556_952;

/// Waits until the fence was seen to end, and is sealed again; how many writes of the stale client were taken meanwhile.
fn mended(scene: &Scene<'_>, guard: &Guard<'_>, breaches: usize) -> Value {
    let breached = guard.hears("breached", breaches);
    let message = breached["message"].as_str().unwrap();
    assert!(message.contains("by the monitors' clock"), "{message}");
    let sealed = wait_for("the seal", LIMIT, || {
        Ok(guard.logged("sealed").into_iter().find(|line| at(line) > at(&breached)))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", guard.log()));
    println!("{message}\nsealed again after {:#}", at(&sealed).duration_since(at(&breached)));
    let record = wait_for("the seal in the ledger", LIMIT, || {
        let record = scene.fence();
        Ok((record["state"] == "sealed").then_some(record))
    });
    record.unwrap_or_else(|error| panic!("{error:#}\n{}", guard.log()))
}

/// Sets the clock, and waits until the monitors go by it.
fn step(site: &Site, years: i64) {
    let before = years_off(site);
    site.lab.step_mon_clocks(years * YEAR).unwrap();
    if years < before {
        // It waits for its last commit to be long enough ago before it proposes anything (`PaxosService::should_propose`),
        // which takes years now: whoever sets a clock back starts the monitors anew.
        let mut mon = site.lab.daemon("mon.a");
        mon.kill().unwrap();
        mon.start().unwrap();
    }
    let mut number = 0;
    wait_for("the monitors to go by it", LIMIT, || {
        number += 1;
        // Each changes the map, which tells when.
        site.lab.ceph(&["osd", "blocklist", "add", &format!("192.0.2.1:0/{number}")])?;
        Ok((years_off(site) == years).then_some(()))
    })
    .unwrap();
}

/// How far the clock is off by which the newest osdmap was made, to the year.
fn years_off(site: &Site) -> i64 {
    let off = made(site, site.epoch()).duration_since(Timestamp::now());
    (off.as_secs() + YEAR / 2).div_euclid(YEAR)
}

#[test]
fn inv3_a_clock_of_the_monitors_that_steps_never_ends_a_fence_unseen() {
    let topology = Topology::small(&["n1", "n2", "guard", "spare"]).own_mon_clocks();
    let site = Site::start(topology, &MEMBERS);
    site.lab.pool(POOL, Pool::replicated(16, 2)).unwrap();
    MEMBERS.iter().for_each(|member| site.lab.image(POOL, member, 8).unwrap());
    let scene = Scene::new(&site, 4);
    let mut guard = Guard::new(&site, "first", "guard", &MEMBERS);
    guard.start();
    guard.wait_until_leading();
    guard.verb(&["fence", "n1"]).expect(0);
    scene.is_sealed(&scene.fence());

    // Past the end of every entry.
    let before = monotonic();
    step(&site, 6);
    let record = mended(&scene, &guard, 1);
    println!("{} stale writes were taken meanwhile", scene.writer.acks_after(before).unwrap());
    scene.is_sealed(&record);
    assert!(guard.logged("breached-by").is_empty(), "nobody removed anything: {}", guard.log());
    let after = monotonic();

    // Back: what was added meanwhile stands for longer than is asked for.
    step(&site, 0);
    scene.is_sealed(&scene.fence());

    // Before the time at which the guardian believes to be, which releases and fences by the monitors' time.
    step(&site, -6);
    guard.verb(&[&["release", "n1"], ASSERTED.as_slice()].concat()).expect(0);
    guard.verb(&["fence", "n1"]).expect(0);
    let record = scene.fence();
    println!("{:#}", record["entries"]);
    assert_eq!(record["state"], "sealed", "{record:#}");

    // And to the right time: what was added then is long over.
    step(&site, 0);
    let record = mended(&scene, &guard, 2);
    scene.is_sealed(&record);
    assert_eq!(scene.writer.taken_after(after, 4).unwrap(), 0, "its own entry stood all the time");
    println!("{}", scene.trail());
}

/// The guardian's own host: what it holds stands, and it releases and fences, whatever its wall clock says and however it
/// got there. Tickets of cephx end by that clock too.
#[test]
fn inv3_inv4_a_guardian_whose_clock_is_set_holds_releases_and_fences() {
    let site = Site::small();
    site.lab.pool(POOL, Pool::replicated(16, 2)).unwrap();
    MEMBERS.iter().for_each(|member| site.lab.image(POOL, member, 8).unwrap());
    let scene = Scene::new(&site, 4);
    let mut guard = Guard::new(&site, "first", "guard", &MEMBERS);
    let file = site.lab.dir().join("guardian.clock");
    fs::write(&file, "+0").unwrap();
    guard.within(own_clock(&file).into_iter().map(OsString::from).collect(), "[daemon]\n");
    guard.start();
    guard.wait_until_leading();
    guard.verb(&["fence", "n1"]).expect(0);
    scene.is_sealed(&scene.fence());
    for seconds in [2 * YEAR, -2 * YEAR, 900, 0] {
        let next = file.with_extension("next");
        fs::write(&next, format!("{seconds:+}")).unwrap();
        fs::rename(&next, &file).unwrap();
        let mut rounds = 0;
        let record = wait_for("a fence by that clock", LIMIT, || {
            rounds += 1;
            guard.verb(&[&["release", "n1"], ASSERTED.as_slice()].concat()).expect(0);
            guard.verb(&["fence", "n1"]).expect(0);
            let record = scene.fence();
            let since: Timestamp = record["since"].as_str().unwrap().parse()?;
            Ok(((since.duration_since(Timestamp::now()).as_secs() - seconds).abs() < 60).then_some(record))
        });
        let record = record.unwrap_or_else(|error| panic!("{seconds} s: {error:#}\n{}", guard.log()));
        scene.is_sealed(&record);
        println!("{seconds:+} s: sealed, {rounds} fences until it went by that clock");
    }
    assert!(guard.logged("breached").is_empty() && guard.logged("deposed").is_empty(), "{}", guard.log());
}
