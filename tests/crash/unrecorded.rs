//! INV-8 with a ledger that does not answer: its PG's OSDs are stopped.

use lab::wait_for;
use serde_json::Value;

use crate::common::{LIMIT, Site};
use crate::guard::{ASSERTED, Guard};
use crate::scene::{MEMBERS, Scene, site};

/// The OSDs that keep the ledger, as `osd.0`.
fn keepers(site: &Site) -> Vec<String> {
    let ledger = site.lab.ceph(&["osd", "map", "rbd-guardian", "ledger"]).unwrap();
    ledger["acting"].as_array().unwrap().iter().map(|osd| format!("osd.{osd}")).collect()
}

fn stop(site: &Site) {
    keepers(site).iter().for_each(|osd| site.lab.daemon(osd).stop().unwrap());
}

fn cont(site: &Site, osds: &[String]) {
    osds.iter().for_each(|osd| site.lab.daemon(osd).cont().unwrap());
}

/// Its status while nothing can be recorded.
fn cannot_record(guard: &Guard<'_>) -> Value {
    guard.until("cannot record", |status| status["cannot_record"].is_string())
}

#[test]
fn inv8_without_the_ledger_nothing_is_fenced_or_released() {
    let site = site();
    let scene = Scene::new(&site, 1);
    let mut guard = Guard::new(&site, "first", "guard", &MEMBERS);
    guard.start();
    guard.wait_until_leading();
    let osds = keepers(&site);

    // Nothing is fenced, nobody is told that it was, and status says why.
    stop(&site);
    let fence = guard.verb(&["fence", "n1", "--timeout", "20s"]).expect(5);
    println!("fence: {}", fence.stderr);
    let status = cannot_record(&guard);
    println!("status: {} / {}", status["cannot_record"], status["trouble"]);
    assert!(site.blocklist().is_empty(), "{:#?}", site.blocklist());
    cont(&site, &osds);
    guard.wait_until_leading();
    assert!(site.blocklist().is_empty() || scene.fence().is_object());
    guard.verb(&["fence", "n1"]).expect(0);
    scene.is_sealed(&scene.fence());

    // Nothing is released either.
    stop(&site);
    let release =
        guard.verb(&[&["release", "n1", "--timeout", "20s"], ASSERTED.as_slice()].concat()).expect(5);
    println!("release: {}", release.stderr);
    cannot_record(&guard);
    let blocklist = site.newest();
    assert!(blocklist.stands_long(&scene.host) && blocklist.stands_long(&scene.client), "{blocklist:#?}");
    cont(&site, &osds);
    guard.wait_until_leading();
    // The write that was not answered may have been done late: then the release goes on by itself.
    if scene.fence()["state"] == "sealed" {
        guard.until("the fence", |status| status["fences"][0]["state"] == "sealed");
        guard.verb(&[&["release", "n1"], ASSERTED.as_slice()].concat()).expect(0);
    }
    let released = scene.until("released", &guard);
    scene.is_released(&released);
    println!("{}", scene.nothing_was_done_twice());
    guard.kill();

    // What was begun goes on by itself.
    let scene = Scene::new(&site, 1);
    guard.start_halting("after:record-intended");
    guard.wait_until_leading();
    let verb = guard.start_verb(&["fence", "n1"]);
    guard.wait_until_stopped();
    stop(&site);
    guard.process().cont().unwrap();
    cannot_record(&guard);
    cont(&site, &osds);
    let sealed = wait_for("the seal in the ledger", LIMIT, || {
        let record = scene.fence();
        Ok((record["state"] == "sealed").then_some(record))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", guard.log()));
    scene.is_sealed(&sealed);
    verb.killed();
    println!("begun, interrupted, finished: {}", scene.trail());
}
