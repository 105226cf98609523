//! The hold on a real cluster: entries of other tools, who removed one, clients that appear later.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{LIMIT, Site, Underway};
use lab::{Errno, Pool, Role, Topology, wait_for};
use serde_json::{Value, json};

/// Five years, as `ceph-csi` and the guardian add entries.
const YEARS: f64 = 157_784_760.0;

/// A guardian's daemon on the host `guard`.
struct Led<'s> {
    site: &'s Site,
    daemon: Underway,
}

impl<'s> Led<'s> {
    /// Configured for these members, with more lines, and leading.
    fn start(site: &'s Site, members: &[&str], more: &str) -> Self {
        let socket = site.lab.dir().join("guard.sock");
        let own =
            format!("[daemon]\nname = \"guard\"\nsocket = {socket:?}\nlog = \"json\"\nlease = \"4s\"\n");
        site.configure(members, &format!("{more}\n{own}"));
        let daemon = site.start_guardian(&["run"]);
        let led = Self { site, daemon };
        led.until("leading", |status| status["stage"] == "leading");
        led
    }

    fn status(&self) -> Value {
        self.site.guardian(&["status"]).json
    }

    /// Waits until its status is like this.
    #[track_caller]
    fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = wait_for(what, LIMIT, || {
            last = self.status();
            Ok(is(&last).then(|| last.clone()))
        });
        found.unwrap_or_else(|error| panic!("{error:#}: {last:#}\n{}", self.daemon.stderr()))
    }

    /// Waits for so many lines of its log with this code; the last.
    #[track_caller]
    fn hears(&self, code: &str, count: usize) -> String {
        let found = wait_for(&format!("{count} of {code} in the log"), LIMIT, || {
            let log = self.daemon.stderr();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let found: Vec<Value> = lines.filter(|line| line["code"] == code).collect();
            Ok(found.get(count - 1).map(|line| line["message"].as_str().unwrap_or_default().to_owned()))
        });
        found.unwrap_or_else(|error| panic!("{error:#}: {}", self.daemon.stderr()))
    }

    /// The only fence in the ledger.
    fn record(&self) -> Value {
        let ledger = self.site.guardian(&["ledger"]).expect(0).json;
        ledger["fences"][0].clone()
    }
}

fn list(status: &Value, key: &str) -> Vec<Value> {
    status[key].as_array().cloned().unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn member(status: &Value, name: &str) -> Value {
    list(status, "members").into_iter().find(|member| member["name"] == name).unwrap()
}

/// Entries that no fence accounts for, and whose they look like.
fn origins(status: &Value) -> BTreeMap<String, String> {
    list(status, "others").iter().map(|other| (text(&other["entry"]), text(&other["origin"]))).collect()
}

fn alarms(status: &Value, code: &str) -> Vec<Value> {
    list(status, "alarms").into_iter().filter(|alarm| alarm["code"] == code).collect()
}

#[test]
fn inv3_entries_of_others_are_told_apart_and_who_removed_ours_is_told() {
    let topology = Topology::new()
        .host("store", &[Role::Mon("a"), Role::Osd(0), Role::Osd(1)])
        .host("h1", &[Role::Mgr("x")])
        .host("h2", &[Role::Mgr("y")])
        .host("n1", &[])
        .host("n2", &[])
        .host("guard", &[]);
    let site = Site::start(topology, &[]);
    let lab = &site.lab;
    lab.pool("images", Pool::replicated(8, 2)).unwrap();
    lab.image("images", "disk", 16).unwrap();
    let led = Led::start(&site, &["n1", "n2", "h1", "h2"], "");

    // A fence of ours, and what others add: monitors for a mgr, librbd for a lock, another fencer for a network.
    let stale = lab.host("n2").idle_client("images").unwrap();
    led.site.guardian(&["fence", "n2"]).expect(0);
    lab.rbd(&["feature", "enable", "images/disk", "exclusive-lock"]).unwrap();
    let writer = lab.host("n1").writer("images", "disk", 1).unwrap();
    let before = lab.ceph(&["mgr", "dump"]).unwrap()["active_name"].clone();
    lab.ceph(&["mgr", "fail"]).unwrap();
    wait_for("the other mgr", LIMIT, || {
        let dump = lab.ceph(&["mgr", "dump"])?;
        Ok((dump["available"] == true && dump["active_name"] != before).then_some(()))
    })
    .unwrap();
    let lock = wait_for("a lock", LIMIT, || {
        let locks: Value =
            serde_json::from_str(&lab.rbd(&["lock", "ls", "images/disk", "--format", "json"])?)?;
        Ok(locks.get(0).cloned())
    })
    .unwrap();
    let (lock, owner) = (text(&lock["id"]), text(&lock["locker"]));
    lab.rbd(&["lock", "rm", "images/disk", &lock, &owner]).unwrap();
    for (addr, range) in [("10.99.0.0/16", true), ("10.98.0.1:0/0", false)] {
        let mut add = json!({"prefix": "osd blocklist", "blocklistop": "add", "addr": addr, "expire": YEARS});
        if range {
            add["range"] = json!("range");
        }
        lab.ceph_json(&add).unwrap();
    }

    let client = writer.client_address().to_owned();
    let status = led.until("all told", |status| {
        let origins = origins(status);
        ["10.99.0.0/16", "10.98.0.1:0/0", &client].iter().all(|entry| origins.contains_key(*entry))
    });
    let origins = origins(&status);
    println!("{origins:#?}");
    assert_eq!(origins[&client], "lock-break");
    assert_eq!(origins["10.99.0.0/16"], "network");
    assert_eq!(origins["10.98.0.1:0/0"], "leftover");
    let of_mgr: Vec<_> = origins.iter().filter(|(_, origin)| *origin == "daemon").collect();
    assert!(of_mgr.iter().any(|(entry, _)| !entry.contains(":0/")), "its own address: {of_mgr:?}");
    assert!(of_mgr.iter().any(|(entry, _)| entry.contains(":0/")), "its clients: {of_mgr:?}");
    assert_eq!(origins.len(), of_mgr.len() + 3, "nothing else, and none of the fence");
    let orphans = alarms(&status, "orphan-entry");
    assert_eq!(orphans.len(), 1, "{orphans:#?}");
    let advice = text(&orphans[0]["advice"][0]);
    assert_eq!(advice, "if nobody needs it: ceph osd blocklist rm 10.98.0.1:0/0");
    // It works when typed.
    let words: Vec<&str> = advice.rsplit(": ceph ").next().unwrap().split(' ').collect();
    lab.ceph(&words).unwrap();
    led.until("no alarm", |status| list(status, "alarms").is_empty());

    // Somebody removes ours, and then everything.
    let host = format!("{}:0/0", site.ip("n2"));
    for (count, words) in
        [vec!["osd", "blocklist", "rm", &host], vec!["osd", "blocklist", "clear"]].iter().enumerate()
    {
        let began = Instant::now();
        lab.ceph(words).unwrap();
        let sealed = |status: &Value| member(status, "n2")["state"] == "sealed";
        led.hears("breached", count + 1);
        led.until("sealed again", sealed);
        let again = began.elapsed();
        assert!(site.blocklist().contains_key(&host));
        let told = led.hears("breached-by", count + 1);
        println!("{words:?}: sealed again after {again:?}, told after {:?}: {told}", began.elapsed());
        assert!(
            told.contains("client.admin at ") && told.contains(&format!("{}:0/", site.ip("admin"))),
            "{told}"
        );
        let what = if count == 0 { host.as_str() } else { "every entry" };
        assert!(told.contains(&format!("removed {what}")), "{told}");
        let recorded = wait_for("recorded", LIMIT, || {
            let removals = led.record()["removals"].clone();
            Ok(removals.get(count).cloned())
        })
        .unwrap();
        assert_eq!((&recorded["entity"], recorded["entry"].is_null()), (&json!("client.admin"), count == 1));
    }
    let tampered = alarms(&led.status(), "tampered");
    assert!(tampered.len() == 1 && text(&tampered[0]["text"]).contains("2 times"), "{tampered:#?}");
    assert!(site.blocklist().contains_key(stale.address()));
}

/// Where only known clients may be fenced, one that appears later is fenced when it does.
#[test]
fn inv1_a_client_that_appears_on_a_member_whose_host_may_not_be_fenced_is_chased() {
    let topology = Topology::new()
        .host("store", &[Role::Mon("a"), Role::Osd(0), Role::Osd(1)])
        .host("h1", &[Role::Mgr("x")])
        .host("guard", &[]);
    let site = Site::start(topology, &[]);
    let lab = &site.lab;
    lab.pool("images", Pool::replicated(8, 2)).unwrap();
    let mut first = lab.host("h1").idle_client("images").unwrap();
    let led = Led::start(&site, &["h1"], "");
    let fence = site.guardian(&["fence", "h1", "--accept-incomplete"]).expect(0).json;
    assert_eq!((&fence["state"], &fence["coverage"]["verdict"]), (&json!("sealed"), &json!("known-clients")));
    assert_eq!(first.try_write("after").unwrap(), Err(Errno::ESHUTDOWN));

    for round in 1..=2 {
        let began = Instant::now();
        let mut late = lab.host("h1").idle_client("images").unwrap();
        let entry = late.address().to_owned();
        wait_for("its entry", LIMIT, || Ok(site.blocklist().contains_key(&entry).then_some(()))).unwrap();
        let entered = began.elapsed();
        led.until("sealed with it", |status| {
            let fence = &list(status, "fences")[0];
            let mut entries = fence["entries"].as_array().into_iter().flatten();
            fence["state"] == "sealed"
                && entries.any(|known| known["entry"] == entry && known["until"].is_string())
        });
        println!("round {round}: refused after {entered:?}, proved after {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(30), "it is looked for every 5 s");
        assert_eq!(late.try_write("late").unwrap(), Err(Errno::ESHUTDOWN));
        let told = led.hears("chased", round);
        assert!(told.contains(&entry), "{told}");
    }
    let clients = lab.ceph(&["mgr", "dump"]).unwrap()["active_clients"].clone();
    let blocklist = site.blocklist();
    for client in clients.as_array().unwrap() {
        let one = &client["addrvec"][0];
        let address = format!("{}/{}", text(&one["addr"]), one["nonce"]);
        assert!(!blocklist.contains_key(&address), "the mgr's own client {address}");
    }
    // A module of it that needs the storage works.
    wait_for("an answer of the mgr", LIMIT, || lab.ceph(&["rbd", "task", "list"]).map(Some)).unwrap();
    let record = led.record();
    assert_eq!(
        (&record["state"], record["seen"].as_array().unwrap().len()),
        (&json!("sealed"), 2),
        "{record:#}"
    );
    assert_eq!(record["removals"], json!([]), "no breach");
}

/// INV-4 in the long run, with a time that a test can wait for.
#[test]
fn inv4_client_entries_of_a_released_member_go_after_their_time() {
    let site = Site::small();
    let lab = &site.lab;
    lab.pool("images", Pool::replicated(8, 2)).unwrap();
    let known = lab.host("n1").idle_client("images").unwrap();
    let led = Led::start(&site, &["n1", "n2"], "[policy]\nretain_client_entries = \"8s\"\n");
    let fence = site.guardian(&["fence", "n1"]).expect(0).json["fence"].clone();
    // One that appears under the host entry gets its own with the release, which proves nothing of it.
    let late = lab.host("n1").idle_client("images").unwrap();
    let (known_entry, late_entry) = (known.address().to_owned(), late.address().to_owned());
    let asserted = ["--assert-powered-off", "--reason", "the test says so"];
    site.guardian(&[&["release", "--fence", fence.as_str().unwrap()], asserted.as_slice()].concat())
        .expect(0);
    let released = Instant::now();
    let both = [&known_entry, &late_entry];
    assert!(both.iter().all(|entry| site.blocklist().contains_key(*entry)), "{both:?}");
    drop(known);
    wait_for("its removal", LIMIT, || Ok((!site.blocklist().contains_key(&known_entry)).then_some(())))
        .unwrap();
    println!("removed {:?} after the release", released.elapsed());
    assert!(released.elapsed() >= Duration::from_secs(7), "not before its time");
    let record = wait_for("the record to say so", LIMIT, || {
        let record = led.record();
        Ok((record["dead"] == json!([])).then_some(record))
    })
    .unwrap();
    assert_eq!(
        record["entries"].as_array().unwrap().iter().map(|entry| &entry["entry"]).collect::<Vec<_>>(),
        [&late_entry],
        "{record:#}"
    );
    assert_eq!(record["in_doubt"], json!([]));
    assert!(site.blocklist().contains_key(&late_entry));
    let trail = site.guardian(&["ledger", "audit"]).expect(0).json;
    let told: Vec<String> = trail.as_array().unwrap().iter().map(|entry| text(&entry["what"])).collect();
    assert!(told.iter().any(|what| what.ends_with("removes 1 client entries")), "{told:#?}");
}
