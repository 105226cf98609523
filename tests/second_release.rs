//! The fence against the daemons of the second Ceph release, with the client libraries of this machine's own.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use common::history::range_of;
use common::pending::pending_until_all_answer;
use common::round::{Cut, Draw, prepare, round};
use common::short_first::{POOL, ShortFirst, host_entry, writer};
use common::{Site, prepared};
use lab::{Errno, Topology, World, WriteLog as _};
use std::time::Duration;

/// `None` where the release cannot be had.
fn site() -> Option<Site> {
    prepared(World::Second.folder())?;
    let topology = Topology::small(&["n1", "n2", "free", "guard"]).world(World::Second);
    let site = Site::start(topology, &["n1", "n2"]);
    let versions = site.lab.ceph(&["versions"]).unwrap();
    println!("{}", versions["overall"]);
    Some(site)
}

#[test]
fn inv1_second_release_takes_no_write_after_sealed() {
    let Some(site) = site() else { return };
    prepare(&site, 4);
    for (writers, cut) in [(1, Cut::Never), (4, Cut::Before)] {
        let draw = Draw { writers, depth: 4, cut, healed_after: Duration::ZERO };
        println!("{draw}: {}", round(&site, &draw));
    }
}

#[test]
fn inv1_second_release_silent_pgs_are_pending_until_they_answer() {
    let Some(site) = site() else { return };
    pending_until_all_answer(&site);
}

/// INV-3, INV-4, and what `watchers` sees.
#[test]
fn inv3_inv4_second_release_replaces_short_entries_and_keeps_client_entries() {
    let Some(site) = site() else { return };
    site.lab.pool(POOL, lab::Pool::replicated(16, 2)).unwrap();

    // Why a short entry is replaced at all: adding it again does not lengthen it.
    let free = writer(&site, "free", "free");
    let client = free.client_address();
    site.add_short(client, 600.0);
    let before = site.newest();
    site.lab.ceph(&["osd", "blocklist", "add", client, "86400"]).unwrap();
    let after = site.newest();
    assert_eq!(after.entries[client], before.entries[client]);
    println!("added again for a day, {client} still ends at {}", after.entries[client]);
    drop(free);

    watchers_and_locks(&site);
    let short = ShortFirst::new(&site, "n1", "short", false);
    let fenced = site.guardian(&["fence", "n1"]).expect(0);
    assert_eq!(fenced.json["state"], "sealed");
    let mut idle = site.lab.host("n1").idle_client(POOL).unwrap();
    assert_eq!(idle.try_write("idle").unwrap(), Err(Errno::ESHUTDOWN));

    let release = ["release", "n1", "--assert-powered-off", "--reason", "a test says so"];
    site.guardian(&release).expect(0);
    let history = short.never_free();
    let last = history.last().unwrap();
    let host = host_entry(short.client());
    assert!(!last.entries.contains_key(&host) && !last.ranges.contains_key(&range_of(&host)));
    for client in [short.client(), idle.address()] {
        assert!(last.stands_long(client), "{client} in {last:?}");
    }
    assert_eq!(idle.try_write("idle").unwrap(), Err(Errno::ESHUTDOWN));
    let mut newcomer = site.lab.host("n1").idle_client(POOL).unwrap();
    assert_eq!(newcomer.try_write("newcomer").unwrap(), Ok(()));
    println!(
        "released: {} and {} are refused, {} may write",
        short.client(),
        idle.address(),
        newcomer.address()
    );
}

/// `watchers` shows who watches an image and who holds its lock.
fn watchers_and_locks(site: &Site) {
    let plain = writer(site, "n2", "plain");
    let exclusive = ["--image-feature=exclusive-lock"];
    site.lab.image_with(POOL, "locked", 8, &exclusive).unwrap();
    let locking = site.lab.host("n2").writer(POOL, "locked", 1).unwrap();
    locking.wait_for_acks(1, Duration::from_secs(60)).unwrap();
    let images = site.guardian(&["watchers"]).expect(0).json;
    let image = |name: &str| {
        let mut all = images.as_array().unwrap().iter();
        all.find(|image| image["image"] == name).unwrap()
    };
    for (name, client, owner) in [
        ("plain", plain.client_address(), None),
        ("locked", locking.client_address(), Some(locking.client_address())),
    ] {
        let image = image(name);
        println!("{image}");
        assert_eq!(image["watchers"][0]["address"], client);
        assert_eq!(image["lock"]["address"].as_str(), owner);
        assert_eq!(image["member"], "n2");
    }
}
