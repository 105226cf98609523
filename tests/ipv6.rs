//! A cluster without any IPv4 address: the same fence.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::time::Duration;

use common::Site;
use lab::{Pool, Topology, WriteLog as _, monotonic};

const SOON: Duration = Duration::from_secs(60);

/// INV-1, INV-3 and INV-4 on IPv6: by member, by `--address` of a host and of a client.
#[test]
fn fences_of_ipv6_hosts_and_clients_are_sealed_shown_and_released() {
    let site = Site::start(Topology::small(&["n1", "n2", "guard"]).ipv6(), &["n1", "n2"]);
    site.lab.pool("images", Pool::replicated(16, 2)).unwrap();
    for image in ["one", "two", "three"] {
        site.lab.image("images", image, 16).unwrap();
    }
    let host = |name: &str| format!("[{}]:0/0", site.ip(name));
    let member = site.lab.host("n1").writer("images", "one", 1).unwrap();
    let client = site.lab.host("n2").writer("images", "two", 1).unwrap();
    let other = site.lab.host("n2").writer("images", "three", 1).unwrap();
    println!("clients {} {}", member.client_address(), client.client_address());

    // A short entry for the very client is there first: it is replaced while a whole-host key holds.
    let short = ["osd", "blocklist", "add", member.client_address(), "3600"];
    site.lab.ceph(&short).unwrap();
    let blocked = monotonic();
    member.wait_for_error(blocked, SOON).unwrap();
    let silent_since = monotonic();

    let planned = site.guardian(&["plan", "n1"]).expect(0).json;
    assert_eq!(planned["entries"][0]["entry"], host("n1"));
    let fenced = site.guardian(&["fence", "n1"]).expect(0).json;
    println!("{fenced}");
    assert_eq!((&fenced["state"], &fenced["coverage"]["verdict"]), (&"sealed".into(), &"whole-host".into()));
    let entries = site.blocklist();
    for entry in [host("n1").as_str(), member.client_address()] {
        let until = entries[entry].as_str().unwrap();
        let year: i16 = until[..4].parse().unwrap();
        assert!(
            year >= jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).year() + 4,
            "{entry} until {until}"
        );
    }
    assert_eq!(member.acks_after(silent_since).unwrap(), 0, "free for a moment");
    let status = site.guardian(&["status"]).expect(0).json;
    assert_eq!(
        (&status["members"][0]["state"], &status["members"][1]["state"]),
        (&"sealed".into(), &"watching".into())
    );
    release(&site, &["n1"]);
    assert!(!site.blocklist().contains_key(&host("n1")));

    // One client instance: its neighbour on the same host writes on.
    let fenced = site.guardian(&["fence", "--address", client.client_address()]).expect(0).json;
    assert_eq!(fenced["state"], "sealed");
    client.wait_for_error(Duration::ZERO, SOON).unwrap();
    other.wait_for_acks(10, SOON).unwrap();

    // A short entry of a whole host that nothing else covers: the range `IP/128` holds meanwhile.
    site.lab.ceph(&["osd", "blocklist", "add", &host("n2"), "3600"]).unwrap();
    other.wait_for_error(Duration::ZERO, SOON).unwrap();
    let silent_since = monotonic();
    let fenced = site.guardian(&["fence", "--address", &host("n2")]).expect(0).json;
    println!("{fenced}");
    assert_eq!(fenced["state"], "sealed");
    let until = site.blocklist()[&host("n2")].as_str().unwrap().to_owned();
    println!("{} until {until}", host("n2"));
    assert_eq!(other.acks_after(silent_since).unwrap(), 0, "free for a moment");
    let dump = site.lab.ceph(&["osd", "dump"]).unwrap();
    assert_eq!(dump["range_blocklist"], serde_json::json!({}), "the cover is dropped");
    release(&site, &["--fence", fenced["fence"].as_str().unwrap()]);
    let left = site.blocklist();
    println!("{left:#?}");
    assert!(!left.contains_key(&host("n2")) && left.contains_key(other.client_address()));

    assert_eq!(member.acks_after(silent_since).unwrap() + client.acks_after(silent_since).unwrap(), 0);
    println!("acknowledged after the seal: 0, after the release: 0");
}

fn release(site: &Site, whom: &[&str]) {
    let words = [&["release"], whom, &["--assert-powered-off", "--reason", "test"]].concat();
    let released = site.guardian(&words).expect(0).json;
    println!("{released}");
    assert_eq!(released["state"], "released");
}
