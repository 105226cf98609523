//! INV-3 under somebody who lifts a fence by hand while its member writes: what is seen, and how soon it is mended.

use std::time::Duration;

use jiff::Timestamp;
use lab::{WriteLog as _, wait_for};
use serde_json::json;

use crate::common::{LIMIT, Site};
use crate::guard::{Guard, at};
use crate::scene::{MEMBERS, Scene, site};

/// From the osdmap's change to the seal, on a machine that does other things as well. The guarantee is 3 s.
const SOON: Duration = Duration::from_secs(10);

fn fenced<'s>(scene: &Scene<'s>, guard: &mut Guard<'s>) {
    guard.start();
    guard.wait_until_leading();
    guard.verb(&["fence", "n1"]).expect(0);
    scene.wait_until_long();
    scene.is_sealed(&scene.fence());
}

/// When an osdmap epoch was made, by the monitor's clock.
pub(crate) fn made(site: &Site, epoch: u64) -> Timestamp {
    let dump = site.lab.ceph_json(&json!({"prefix": "osd dump", "epoch": epoch})).unwrap();
    jiff::fmt::strtime::parse("%Y-%m-%dT%H:%M:%S%.f%z", dump["modified"].as_str().unwrap())
        .unwrap()
        .to_timestamp()
        .unwrap()
}

/// Waits for the fence to be sealed again, and checks what is told of it.
fn mended(scene: &Scene<'_>, guard: &Guard<'_>, breaches: usize, how: &str) {
    let breached = guard.hears("breached", breaches);
    let sealed = wait_for("the seal", LIMIT, || {
        Ok(guard.logged("sealed").into_iter().find(|line| at(line) > at(&breached)))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", guard.log()));
    let record = wait_for("the breach in the ledger", LIMIT, || {
        let record = scene.fence();
        let told = record["breaches"].as_array().map_or(0, Vec::len);
        Ok((told == breaches && record["state"] == "sealed").then_some(record))
    })
    .unwrap();
    let breach = &record["breaches"][breaches - 1];
    let epoch = |field: &str| breach[field].as_u64().unwrap_or_else(|| panic!("{field}: {record:#}"));
    let (held, gone, committed) = (epoch("held"), epoch("gone"), epoch("committed"));
    assert!(held < gone && gone <= committed, "{record:#}");
    let (change, again) = (made(scene.site, gone), made(scene.site, committed));
    let took = at(&sealed).duration_since(change);
    // Writes the storage took from the first epoch without the entry to the seal: heard of in between.
    let ago = |time: Timestamp| {
        lab::monotonic() - Duration::try_from(Timestamp::now().duration_since(time)).unwrap()
    };
    let stale =
        scene.writer.acks_after(ago(change)).unwrap() - scene.writer.acks_after(ago(at(&sealed))).unwrap();
    println!(
        "{how}: breached after {:#}, sealed after {took:#}; open from epoch {gone} to {committed} ({:#}), {stale} stale writes taken",
        at(&breached).duration_since(change),
        again.duration_since(change),
    );
    assert!(took < SOON.try_into().unwrap(), "{took:#}");
    scene.wait_until_long();
    scene.is_sealed(&record);
}

/// With a writer on the fenced member that never stops trying.
#[test]
fn inv3_entries_removed_by_hand_are_seen_asserted_and_proved_again() {
    let site = site();
    let scene = Scene::new(&site, 4);
    let mut guard = Guard::new(&site, "first", "guard", &MEMBERS);
    fenced(&scene, &mut guard);
    let remove = |entry: &str| drop(site.lab.ceph(&["osd", "blocklist", "rm", entry]).unwrap());

    // Its own entry refuses the client still, but the host's, which holds newcomers, is gone.
    remove(&scene.host);
    mended(&scene, &guard, 1, "the host entry removed");
    site.lab.ceph(&["osd", "blocklist", "clear"]).unwrap();
    mended(&scene, &guard, 2, "all entries cleared");

    // Between two looks: the daemon stands still meanwhile, for less than its lease.
    guard.process().stop().unwrap();
    remove(&scene.host);
    site.add_short(&scene.host, 5.0 * 365.0 * 24.0 * 3600.0);
    guard.process().cont().unwrap();
    mended(&scene, &guard, 3, "removed and added again between two looks");

    // Somebody's short entry in the place of the fence's: it is seen, and its end ends nothing.
    guard.process().stop().unwrap();
    remove(&scene.host);
    let epoch = site.add_short(&scene.host, 8.0);
    guard.process().cont().unwrap();
    mended(&scene, &guard, 4, "a short entry in its place");
    wait_for("the end of the short entry", LIMIT, || {
        let end = site.history(epoch)[0].entries[&scene.host];
        Ok((Timestamp::now() > end + Duration::from_secs(6)).then_some(()))
    })
    .unwrap();
    assert!(site.history(epoch).iter().all(|epoch| epoch.refuses(&scene.client)));
    scene.is_sealed(&scene.fence());
    scene.trail();
}

/// Somebody's entry that ends soon was there first.
#[test]
fn inv3_a_short_foreign_entry_that_was_there_first_never_ends_a_fence() {
    let site = site();
    let scene = Scene::new(&site, 1);
    let mut guard = Guard::new(&site, "first", "guard", &MEMBERS);
    let epoch = site.add_short(&scene.host, 12.0);
    site.add_short(&scene.client, 12.0);
    fenced(&scene, &mut guard);
    let ends = site.history(epoch)[0].entries[&scene.host];
    // The monitors drop what is over at each of their ticks, 5 s apart (`OSDMonitor::tick`, mon_tick_interval).
    wait_for("the end of the foreign entries", LIMIT, || {
        Ok((Timestamp::now() > ends + Duration::from_secs(8)).then_some(()))
    })
    .unwrap();
    scene.is_sealed(&scene.fence());
    println!("refused in {} epochs", scene.refused_since(epoch));
    assert!(guard.logged("breached").is_empty(), "{}", guard.log());
    scene.trail();
}
