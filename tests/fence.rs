//! `plan`, `fence`, `status` and `release` on a real cluster.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use common::Site;
use lab::Pool;

#[test]
fn a_member_is_planned_fenced_shown_and_released() {
    let site = Site::small();
    site.lab.pool("images", Pool::replicated(16, 2)).unwrap();
    site.lab.image("images", "disk", 16).unwrap();
    let writer = site.lab.host("n1").writer("images", "disk", 1).unwrap();
    let entry = format!("{}:0/0", site.ip("n1"));

    let planned = site.guardian(&["plan", "n1"]).expect(0);
    println!("{:#}", planned.json);
    assert!(
        site.blocklist()
            .keys()
            .all(|key| !key.starts_with(&site.ip("n1"))),
        "plan changes nothing"
    );

    let fenced = site.guardian(&["fence", "n1"]).expect(0);
    println!("{:#}{}", fenced.json, fenced.stderr);
    assert_eq!(fenced.json["state"], "sealed");
    assert!(site.blocklist().contains_key(&entry));
    assert!(site.blocklist().contains_key(writer.client_address()));

    let status = site.guardian(&["status"]).expect(0);
    println!("{:#}", status.json);
    let watchers = site.guardian(&["watchers"]).expect(0);
    println!("{:#}", watchers.json);
    let doctor = site.guardian(&["doctor"]);
    println!("{:#}{}", doctor.json, doctor.stderr);

    let released = site
        .guardian(&["release", "n1", "--assert-powered-off", "--reason", "test"])
        .expect(0);
    println!("{:#}", released.json);
    assert!(!site.blocklist().contains_key(&entry));
    assert!(
        site.blocklist().contains_key(writer.client_address()),
        "INV-4: the client stays refused"
    );
}
