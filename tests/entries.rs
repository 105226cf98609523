//! Blocklist entries: short ones that were there first, many at once, the same again, and a fence that was interrupted.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::time::Duration;

use common::history::{Epoch, changes, range_of};
use common::short_first::{POOL, SHORT_SECONDS, ShortFirst, host_entry, writer};
use common::{Answer, Site};
use lab::{Errno, IdleClient, Pool, Topology, WriteLog as _, monotonic, wait_for};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(60);

/// A member `n1`, and hosts that belong to nobody.
fn site() -> Site {
    let hosts = ["n1", "free1", "free2", "guard"];
    let site = Site::start(Topology::small(&hosts), &["n1"]);
    site.lab.pool(POOL, Pool::replicated(16, 2)).unwrap();
    site
}

fn idle(site: &Site, host: &str, count: usize) -> Vec<IdleClient> {
    (0..count).map(|_| site.lab.host(host).idle_client(POOL).unwrap()).collect()
}

fn sealed(answer: Answer) -> Answer {
    let answer = answer.expect(0);
    assert_eq!(answer.json["state"], "sealed", "{answer:#?}");
    answer
}

fn was_in(history: &[Epoch], key: &str) -> bool {
    history.iter().any(|epoch| epoch.entries.contains_key(key) || epoch.ranges.contains_key(key))
}

/// INV-1, INV-3: an entry that ends soon is replaced by one that does not, and its client is not free for an instant.
#[test]
fn inv3_a_short_entry_is_replaced_under_a_cover() {
    let site = site();

    // The member's host entry is the cover.
    let short = ShortFirst::new(&site, "n1", "under-host", false);
    sealed(site.guardian(&["fence", "n1"]));
    let history = short.never_free();
    let last = history.last().unwrap();
    assert!(last.stands_long(short.client()) && last.stands_long(&host_entry(short.client())));
    drop(short);

    // A bare client: its host's entry covers it, and goes.
    let short = ShortFirst::new(&site, "free1", "bare", false);
    sealed(site.guardian(&["fence", "--address", short.client()]));
    let history = short.never_free();
    let (last, cover) = (history.last().unwrap(), host_entry(short.client()));
    assert!(last.stands_long(short.client()));
    assert!(was_in(&history, &cover) && !last.entries.contains_key(&cover) && last.ranges.is_empty());
    let mut neighbour = idle(&site, "free1", 1).remove(0);
    assert_eq!(neighbour.try_write("neighbour").unwrap(), Ok(()));
    drop(neighbour);

    // A cover would shut out a neighbour: refused, and nothing is touched.
    let other = idle(&site, "free1", 1).remove(0);
    let another = writer(&site, "free1", "refused");
    site.add_short(another.client_address(), SHORT_SECONDS);
    let before = site.newest();
    let refused = site.guardian(&["fence", "--address", another.client_address()]).expect(4);
    assert_eq!(refused.json["refusals"][0]["code"], "short-entry");
    let reason = refused.json["refusals"][0]["reason"].as_str().unwrap();
    assert!(reason.contains(another.client_address()) && reason.contains(other.address()), "{reason}");
    println!("refused: {reason}");
    let after = site.newest();
    assert_eq!((before.entries, before.ranges), (after.entries, after.ranges));
    drop((other, another));

    // A whole host: the range form covers it, and goes.
    let short = ShortFirst::new(&site, "free2", "whole-host", true);
    let host = host_entry(short.client());
    sealed(site.guardian(&["fence", "--address", &host]));
    let history = short.never_free();
    let (last, cover) = (history.last().unwrap(), range_of(short.client()));
    assert!(last.stands_long(&host) && last.stands_long(short.client()));
    assert!(was_in(&history, &cover) && last.ranges.is_empty(), "{history:#?}");
}

/// All entries of a fence are committed together, and a second run of it changes nothing.
#[test]
fn sixteen_clients_are_fenced_in_two_epochs_and_the_same_again_in_none() {
    let site = site();
    let known = idle(&site, "n1", 16);
    let bare = idle(&site, "free1", 16);
    let mut addresses = vec!["fence", "--address"];
    addresses.extend(bare.iter().map(IdleClient::address));
    for words in [vec!["fence", "n1"], addresses] {
        let before = site.epoch();
        let first = sealed(site.guardian(&words));
        let entries = first.json["entries"].as_array().unwrap().len();
        let epochs = changes(&site.history(before));
        println!("{entries} entries in {epochs} epochs");
        assert!(entries >= 16 && (1..=2).contains(&epochs));
        let newest = site.newest();
        for entry in first.json["entries"].as_array().unwrap() {
            assert!(newest.stands_long(entry["entry"].as_str().unwrap()), "{entry}");
        }

        let again = sealed(site.guardian(&words));
        assert_eq!(changes(&site.history(newest.number)), 0, "the same fence again changed the blocklist");
        assert_eq!(again.json["fence"], first.json["fence"]);
        assert_eq!(again.json["entries"], first.json["entries"]);
    }
    drop(known);
}

/// INV-9: whatever an interrupted fence left, the same command goes on from there.
#[test]
fn an_interrupted_fence_is_sealed_by_running_it_again() {
    let site = site();

    // Ctrl-C while PGs do not answer: committed, not proved.
    let writer = writer(&site, "n1", "pending");
    let host = host_entry(writer.client_address());
    site.lab.ceph(&["osd", "set", "nodown"]).unwrap();
    site.lab.daemon("osd.0").stop().unwrap();
    let fence = site.start_guardian(&["fence", "n1"]);
    wait_for("the entries", SOON, || Ok(site.newest().entries.contains_key(&host).then_some(()))).unwrap();
    fence.signal(Signal::SIGINT);
    let interrupted = fence.answer().expect(3);
    assert!(interrupted.stderr.contains("interrupted"), "{interrupted:#?}");
    println!("SIGINT: {}, {}", interrupted.json["state"], interrupted.stderr.trim());
    site.lab.daemon("osd.0").cont().unwrap();
    sealed(site.guardian(&["fence", "n1"]));
    let at = monotonic();
    writer.wait_for_error(at, SOON).unwrap();
    assert_eq!(writer.acks_after(at).unwrap(), 0);
    drop(writer);

    // Killed between the removal of a short entry and its addition, when only the cover stands.
    let short = ShortFirst::new(&site, "free2", "killed", true);
    let host = host_entry(short.client());
    let words = ["fence", "--address", host.as_str()];
    let fence = site.start_guardian(&words);
    wait_for("the removal of the short entry", SOON, || {
        Ok((!site.newest().entries.contains_key(&host)).then_some(()))
    })
    .unwrap();
    fence.signal(Signal::SIGKILL);
    fence.killed();
    let left = site.newest();
    println!("SIGKILL: left {:?} and {:?}", left.entries, left.ranges);
    sealed(site.guardian(&words));
    let history = short.never_free();
    let last = history.last().unwrap();
    assert!(last.stands_long(&host) && last.stands_long(short.client()));
    assert_eq!(Errno::ESHUTDOWN, short.writer.wait_for_error(monotonic(), SOON).unwrap());
}
