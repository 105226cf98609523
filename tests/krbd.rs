//! INV-4 on the kernel's own rbd driver, which is what Incus users have: what was fenced stays dead, whatever becomes of its host.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::thread;
use std::time::Duration;

use common::{Site, prepared};
use lab::vm::{KrbdHost, Outcome};
use lab::{Errno, Pool, Topology, WriteLog as _, monotonic, wait_for};

const SOON: Duration = Duration::from_secs(60);
const POOL: &str = "images";
const IMAGE_MIB: u32 = 8;
/// As somebody would add it by hand.
const PLAIN_SECONDS: f64 = 20.0;

/// The machine boots on `n1`. `None` where it cannot be had.
fn site(topology: Topology, feature: &str) -> Option<Site> {
    prepared(KrbdHost::available())?;
    let site = Site::start(topology, &["n1", "n2"]);
    site.lab.pool(POOL, Pool::replicated(16, 2)).unwrap();
    let feature = format!("--image-feature={feature}");
    site.lab.image_with(POOL, "disk", IMAGE_MIB, &[&feature]).unwrap();
    Some(site)
}

fn small() -> Topology {
    Topology::small(&["n1", "n2", "guard"])
}

fn unwatched(site: &Site) {
    wait_for("no watcher of the image", SOON, || {
        Ok(site.lab.watchers(POOL, "disk")?.is_empty().then_some(()))
    })
    .unwrap();
}

/// Refused at the seal, and for long after the release of its host: longer than any watch or time-out lasts. Only a
/// machine that booted anew gets in, as another client.
#[test]
fn inv4_a_kernel_client_that_was_fenced_stays_refused_after_its_host_is_released() {
    const EVERY: Duration = Duration::from_secs(5);
    let watched = Duration::from_secs(if std::env::var_os("GUARDIAN_SOAK").is_some() { 300 } else { 90 });
    let Some(site) = site(small(), "layering") else {
        return;
    };
    let host = KrbdHost::boot(&site.lab, "n1").unwrap();
    let disk = host.map(POOL, "disk").unwrap();
    let writer = disk.start_writer().unwrap();
    writer.wait_for_acks(50, SOON).unwrap();

    let fenced = site.guardian(&["fence", "n1"]).expect(0);
    let sealed = monotonic() + host.clock_error();
    assert_eq!(fenced.json["state"], "sealed");
    assert_eq!(fenced.json["coverage"]["known_clients"], 1);
    let hash = site.lab.content_hash(POOL, "disk").unwrap();
    assert_eq!(writer.wait_for_error(sealed, SOON).unwrap(), Errno::EIO);
    unwatched(&site);

    let release = ["release", "n1", "--assert-powered-off", "--reason", "a test says so"];
    site.guardian(&release).expect(0);
    let released = monotonic();
    let kept = site.newest();
    assert!(!kept.entries.contains_key(&format!("{}:0/0", site.ip("n1"))));
    assert!(kept.stands_long(disk.client_address()), "{kept:?}");

    let mut attempts = 0;
    while monotonic() - released < watched {
        attempts += 1;
        let outcome = disk.write_direct(attempts, SOON).unwrap();
        assert_eq!(outcome, Outcome::Refused(Errno::EIO), "attempt {attempts}");
        assert_eq!(site.lab.watchers(POOL, "disk").unwrap(), []);
        // Not a wait for anything: the time in between is what is watched.
        thread::sleep(EVERY);
    }
    let lasted = monotonic() - released;
    assert_eq!(writer.wait_for_error(released + watched, SOON).unwrap(), Errno::EIO);
    assert_eq!(writer.taken_after(sealed, 1).unwrap(), 0);
    assert!(site.lab.content_hash(POOL, "disk").unwrap() == hash, "the image changed after the seal");
    println!(
        "Linux {}: {} writes acknowledged before the seal (clocks compared to {:.1?}), 0 after it, {} refused with EIO; for {lasted:.0?} \
         after the release of its host no watch, {attempts} of {attempts} more writes refused, the image unchanged",
        host.kernel(),
        writer.acked().unwrap(),
        host.clock_error(),
        writer.errors().unwrap().len(),
    );

    let old = disk.client_address().to_owned();
    drop(host);
    let host = KrbdHost::boot(&site.lab, "n1").unwrap();
    let disk = host.map(POOL, "disk").unwrap();
    assert_ne!(disk.client_address(), old);
    assert_eq!(disk.write_direct(1, SOON).unwrap(), Outcome::Acknowledged);
    println!("power cut and booted anew: {} writes", disk.client_address());
}

/// Why an entry must neither end by time (INV-3) nor go with its host's (INV-4).
#[test]
fn without_a_guardian_an_entry_that_ends_hands_the_disk_back_to_a_client_nobody_sees() {
    let Some(site) = site(small(), "layering") else {
        return;
    };
    let host = KrbdHost::boot(&site.lab, "n1").unwrap();
    let disk = host.map(POOL, "disk").unwrap();
    let writer = disk.start_writer().unwrap();
    writer.wait_for_acks(50, SOON).unwrap();

    let before = monotonic();
    site.add_short(disk.client_address(), PLAIN_SECONDS);
    assert_eq!(writer.wait_for_error(before, SOON).unwrap(), Errno::EIO);
    unwatched(&site);
    let refused = site.lab.content(POOL, "disk").unwrap();
    wait_for("the end of the entry", SOON, || {
        Ok((!site.newest().entries.contains_key(disk.client_address())).then_some(()))
    })
    .unwrap();

    let ended = monotonic() + host.clock_error();
    writer.wait_for_acks(50, SOON).unwrap();
    assert_eq!(disk.write_direct(1, SOON).unwrap(), Outcome::Acknowledged);
    let again = writer.acks_after(ended).unwrap();
    let written = site.lab.content(POOL, "disk").unwrap();
    assert!(written.newest(writer.id()) > refused.newest(writer.id()));
    assert_eq!(site.lab.watchers(POOL, "disk").unwrap(), []);
    let images = site.guardian(&["watchers"]).expect(0).json;
    assert_eq!(images[0]["verdict"], "unused");
    println!(
        "Linux {}: a plain entry of {PLAIN_SECONDS} s ended; since then {again} writes of the same mapping, on an image that looks {}",
        host.kernel(),
        images[0]["verdict"]
    );
}

/// INV-1 and a prompt new owner. A watch lasts ten minutes here: whoever had to wait for the old owner's would fail.
#[test]
fn inv1_an_exclusive_lock_of_a_fenced_kernel_client_is_taken_over_without_waiting_for_its_watch() {
    let Some(site) = site(small().conf("osd client watch timeout", "600"), "exclusive-lock") else {
        return;
    };
    let host = KrbdHost::boot(&site.lab, "n1").unwrap();
    let disk = host.map(POOL, "disk").unwrap();
    let old = disk.start_writer().unwrap();
    old.wait_for_acks(50, SOON).unwrap();
    let images = site.guardian(&["watchers"]).expect(0).json;
    assert_eq!(images[0]["lock"]["address"], disk.client_address());

    site.lab.cut("n1").unwrap();
    let fenced = site.guardian(&["fence", "n1"]).expect(0);
    let sealed = monotonic();
    assert_eq!(fenced.json["state"], "sealed");
    let content = site.lab.content(POOL, "disk").unwrap();
    let began = monotonic();
    let new = site.lab.host("n2").writer(POOL, "disk", 2).unwrap();
    new.wait_for_acks(1, SOON).unwrap();
    let first = new.log().unwrap()[0];
    println!("the new owner's first write: {:.2?} after it was started", first.at - began);
    assert_eq!(first.error, None);

    site.lab.heal("n1").unwrap();
    let healed = monotonic();
    assert_eq!(old.wait_for_error(healed, SOON).unwrap(), Errno::EIO);
    new.wait_for_acks(50, SOON).unwrap();
    assert_eq!(new.errors().unwrap(), []);
    // The cut may have held back the answer to a write that was taken before it, and is on the image at the seal.
    let log = old.log().unwrap();
    let late = log.iter().filter(|entry| entry.error.is_none() && entry.at > sealed + host.clock_error());
    let taken = late.filter(|entry| Some(entry.number) > content.newest(old.id()));
    assert_eq!(taken.count(), 0);
    println!("the old owner, healed: 0 writes taken after the seal, {} refused", old.errors().unwrap().len());
}
