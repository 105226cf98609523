//! Commands of a deposed leader that arrive after its successor fenced the same host again: INV-7.

use lab::{Errno, WriteLog as _, monotonic, wait_for};

use crate::common::history::range_of;
use crate::common::{LIMIT, Site, Underway};
use crate::guard::{ASSERTED, Guard};
use crate::scene::{MEMBERS, POOL, Scene, site};

fn guards(site: &Site) -> [Guard<'_>; 2] {
    [Guard::new(site, "first", "guard", &MEMBERS), Guard::new(site, "second", "spare", &MEMBERS)]
}

/// The first one is continued, and the monitors hear of what it had to send.
fn removal_arrives(scene: &Scene<'_>, entry: &str, first: &Guard<'_>, second: &Guard<'_>) {
    let before = scene.removals(entry);
    first.process().cont().unwrap();
    wait_for(&format!("the late removal of {entry}"), LIMIT, || {
        Ok((scene.removals(entry) > before).then_some(()))
    })
    .unwrap();
    println!("the late removal of {entry} arrived; the first: {}", first.wait_until_deposed(second));
}

/// The first one fences and releases, and is halted with the removal of the host entry on its way: the second one leads.
/// The release, under way.
fn halted_at_its_removal(first: &mut Guard<'_>, second: &mut Guard<'_>) -> Underway {
    first.start_halting("before:release-rm");
    first.wait_until_leading();
    second.start();
    first.verb(&["fence", "n1"]).expect(0);
    let release = first.start_verb(&[&["release", "n1"], ASSERTED.as_slice()].concat());
    first.wait_until_stopped();
    second.wait_until_leading();
    release
}

/// A release's removal of the host entry.
#[test]
fn inv7_a_late_removal_of_a_host_entry_lifts_no_later_fence() {
    let site = site();
    let scene = Scene::new(&site, 1);
    let [mut first, mut second] = guards(&site);
    let verb = halted_at_its_removal(&mut first, &mut second);
    let released = scene.until("released", &second);
    scene.is_released(&released);
    assert_eq!(released["in_doubt"], serde_json::json!([scene.host]), "{released:#}");

    // It came back to life, and is lost again.
    let writer = site.lab.host("n1").writer(POOL, "n1", 1).unwrap();
    writer.wait_for_acks(20, LIMIT).unwrap();
    let fence = second.verb(&["fence", "n1"]).expect(0).json;
    let (sealed, epoch) = (monotonic(), site.epoch());
    let range = range_of(writer.client_address());
    assert!(site.newest().ranges.contains_key(&range), "{fence:#}\n{:#?}", site.newest());
    removal_arrives(&scene, &scene.host, &first, &second);
    verb.killed();
    assert_eq!(writer.wait_for_error(monotonic(), LIMIT).unwrap(), Errno::ESHUTDOWN);
    assert_eq!(writer.taken_after(sealed, 1).unwrap(), 0);
    for epoch in site.history(epoch) {
        assert!(epoch.refuses(writer.client_address()) && epoch.ranges.contains_key(&range), "{epoch:#?}");
    }
    scene.writes_alone("second");
    assert!(second.logged("breached").is_empty(), "{}", second.log());
}

/// A fence's removal of a client entry that ends too soon.
#[test]
fn inv7_a_late_removal_of_a_replaced_entry_frees_nobody() {
    let site = site();
    for bare in [false, true] {
        let scene = Scene::new(&site, 1);
        let [mut first, mut second] = guards(&site);
        scene.site.add_short(&scene.client, 900.0);
        let epoch = site.epoch();
        first.start_halting("before:fence-rm");
        first.wait_until_leading();
        second.start();
        let target: &[&str] = if bare { &["--address", &scene.client] } else { &["n1"] };
        let verb = first.start_verb(&[&["fence"], target].concat());
        first.wait_until_stopped();
        second.wait_until_leading();
        wait_for("the client's own long entry, and a fence at rest", LIMIT, || {
            let status = second.status().unwrap_or_default();
            let rests = status["fences"][0]["state"] == "sealed";
            Ok((rests && site.newest().stands_long(&scene.client)).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", second.log()));
        second.verb(&[&["fence"], target].concat()).expect(0);
        removal_arrives(&scene, &scene.client, &first, &second);
        verb.killed();
        wait_for("the client's own long entry, again", LIMIT, || {
            Ok(site.newest().stands_long(&scene.client).then_some(()))
        })
        .unwrap();
        println!("bare: {bare}; refused in {} epochs", scene.refused_since(epoch));
        scene.writes_alone("second");
        assert!(second.logged("breached").is_empty(), "{}", second.log());
        first.kill();
        second.kill();
    }
}

/// Two leaders in turn ended with a removal of another form of the host entry on its way: nothing is left to rely on but
/// the operator's word.
#[test]
fn inv7_what_only_doubtful_entries_could_hold_is_fenced_by_the_operators_word() {
    let site = site();
    let scene = Scene::new(&site, 1);
    let [mut first, mut second] = guards(&site);
    second.start();
    second.wait_until_leading();
    for _ in 0..2 {
        second.kill();
        let verb = halted_at_its_removal(&mut first, &mut second);
        // The other form of the entry is another fence.
        let fences = || scene.ledger()["fences"].as_array().cloned().unwrap_or_default();
        let released = || fences().iter().all(|fence| fence["state"] == "released");
        wait_for("its release", LIMIT, || Ok(released().then_some(())))
            .unwrap_or_else(|error| panic!("{error:#}\n{}", second.log()));
        first.kill();
        verb.killed();
    }
    let range = range_of(&scene.client);

    let refused = second.verb(&["fence", "n1", "--reason", "it is dead"]).expect(4);
    let told = &refused.stderr;
    assert!(told.contains(&scene.host) && told.contains("--over-doubt --reason"), "{told}");
    let unsaid = second.verb(&["fence", "n1", "--over-doubt"]).expect(2);
    assert!(unsaid.stderr.contains("--reason"), "{}", unsaid.stderr);
    let newest = site.newest();
    assert!(!newest.entries.contains_key(&scene.host) && !newest.ranges.contains_key(&range), "{newest:#?}");

    let words = ["fence", "n1", "--over-doubt", "--reason", "first was killed"];
    let sealed = second.verb(&words).expect(0).json;
    assert_eq!(sealed["state"], "sealed", "{sealed:#}");
    assert!(site.newest().stands_long(&scene.host), "{:#?}", site.newest());
    let ledger = scene.ledger();
    let record = ledger["fences"].as_array().unwrap().iter().find(|fence| fence["state"] == "sealed");
    let record = record.unwrap_or_else(|| panic!("{ledger:#}"));
    let over = record["evidence"][0].as_str().unwrap();
    assert!(over.contains("goes over a removal in doubt: first was killed"), "{record:#}");
    assert_eq!((&record["over_doubt"], &record["state"]), (&true.into(), &"sealed".into()), "{record:#}");
    let trail = second.verb(&["ledger", "audit"]).expect(0).json;
    assert!(trail.to_string().contains("over a removal in doubt: first was killed"), "{trail:#}");
}
