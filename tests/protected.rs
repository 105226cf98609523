//! INV-6, no friendly fire: what may not be fenced, what is moved out of the way first, and what goes on beside a fence.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::time::Duration;

use common::Site;
use common::dice::{Dice, number_from_env};
use lab::{Errno, Lab, Pool, Role, Topology, WriteLog as _, monotonic, wait_for};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

#[test]
fn inv6_a_protected_address_is_refused_with_both_values_and_nothing_is_added() {
    let topology = Topology::new()
        .host("store", &[Role::Mon("a"), Role::Osd(0), Role::Osd(1)])
        .host("h1", &[Role::Mgr("x")])
        .host("h2", &[Role::Mgr("y")])
        .host("n1", &[])
        .host("n2", &[])
        .host("guard", &[]);
    let members = ["h1", "h2", "n1", "n2"];
    let site = Site::start(topology, &members);
    let lab = &site.lab;
    lab.pool("images", Pool::replicated(8, 2)).unwrap();
    lab.image("images", "disk", 16).unwrap();
    wait_for("a standby", SOON, || Ok(mgr_dump(lab)["standbys"][0].is_object().then_some(()))).unwrap();
    let (n1, n2, store) = (site.ip("n1"), site.ip("n2"), site.ip("store"));
    let ours = format!("{n1}:0/0 is this guardian's own address ({n1}:0/");

    refused(&site, "n1", &["fence", "n1"], "own-address", &[&ours]);
    refused(&site, "n1", &["fence", "--address", &n1], "own-address", &[&ours]);
    refused(&site, "guard", &["fence", "n9"], "unknown-member", &["'n9'", "h1, h2, n1 and n2"]);
    let daemons = [store.as_str(), "mon.a", "osd.0", "osd.1"];
    refused(&site, "guard", &["fence", "--address", &store], "daemons-at-address", &daemons);

    let (mgr, host) = active_mgr(lab);
    let address = site.ip(&host);
    let daemon = format!("mgr.{mgr}");
    let bare = ["fence", "--address", address.as_str()];
    refused(&site, "guard", &bare, "daemons-at-address", &[&address, &daemon]);
    let own = mgr_clients(lab).remove(0);
    let client = ["fence", "--address", own.as_str()];
    refused(&site, "guard", &client, "daemon-client", &[&own, &daemon]);

    site.configure(&members, "[policy]\nfail_over = false");
    let forbidden = [address.as_str(), &daemon, "policy.fail_over"];
    refused(&site, "guard", &["fence", &host], "active-daemon", &forbidden);

    site.configure(&members, &format!("[[member]]\nname = \"twin\"\naddresses = [\"{n1}\"]"));
    refused(&site, "guard", &["fence", "n1"], "shared-address", &[&n1, "'n1'", "'twin'"]);

    site.configure(&members, "[policy]\nprotected = [\"10.77.0.0/24\"]");
    refused(&site, "guard", &["fence", "n1"], "protected", &[&n1, "10.77.0.0/24"]);

    site.configure(&["n1", "n2", "h1"], "");
    site.guardian(&["fence", "n1"]).expect(0);
    refused(&site, "guard", &["fence", "n2"], "storm-brake", &["n1", "at most 1", "--over-brake"]);
    let silent = site.guardian(&["fence", "n2", "--over-brake"]).expect(2).stderr;
    assert!(silent.contains("--reason"), "{silent}");
    site.guardian(&["fence", "n2", "--over-brake", "--reason", "the rack burnt"]).expect(0);
    assert!(site.blocklist().contains_key(&format!("{n2}:0/0")));
    site.configure(&["n1", "n2", "h1"], "[policy]\nmax_fenced_members = 2");
    site.guardian(&["fence", "n2"]).expect(0);
    assert!(site.blocklist().contains_key(&format!("{n2}:0/0")));
}

/// INV-6 where nothing can take over from the active mgr: refused, or only the clients that are known.
#[test]
fn inv6_a_member_with_the_only_mgr_keeps_it_and_loses_only_its_known_clients() {
    let topology = Topology::new()
        .host("store", &[Role::Mon("a"), Role::Osd(0), Role::Osd(1)])
        .host("h1", &[Role::Mgr("x")])
        .host("guard", &[]);
    let site = Site::start(topology, &["h1"]);
    let lab = &site.lab;
    lab.pool("images", Pool::replicated(8, 2)).unwrap();
    lab.image("images", "disk", 16).unwrap();
    let writer = lab.host("h1").writer("images", "disk", 2).unwrap();
    let h1 = site.ip("h1");

    let stuck = [h1.as_str(), "mgr.x", "no standby"];
    refused(&site, "guard", &["fence", "h1"], "active-daemon", &stuck);

    let fenced = site.guardian(&["fence", "h1", "--accept-incomplete"]).expect(0);
    let sealed_at = monotonic();
    assert_eq!(fenced.json["state"], "sealed");
    assert_eq!(fenced.json["coverage"]["verdict"], "known-clients");
    println!("{:#}", fenced.json["coverage"]);
    assert_eq!(writer.wait_for_error(sealed_at, SOON).unwrap(), Errno::ESHUTDOWN);
    let blocklist = site.blocklist();
    assert!(blocklist.contains_key(writer.client_address()));
    assert!(!blocklist.contains_key(&format!("{h1}:0/0")));
    let clients = mgr_clients(lab);
    assert!(clients.iter().all(|client| !blocklist.contains_key(client)));
    println!("{} clients of mgr.x itself untouched", clients.len());
    mgr_works(lab);
}

/// INV-6 where standbys can take over: they do, and then the whole host is fenced.
#[test]
fn inv6_an_active_mgr_and_mds_are_failed_over_before_their_host_is_fenced() {
    let topology = Topology::new()
        .host("store", &[Role::Mon("a"), Role::Osd(0), Role::Osd(1)])
        .host("h1", &[Role::Mgr("x"), Role::Mds("a")])
        .host("h2", &[Role::Mgr("y"), Role::Mds("b")])
        .host("guard", &[]);
    let site = Site::start(topology, &["h1", "h2"]);
    let lab = &site.lab;
    lab.pool("images", Pool::replicated(8, 2)).unwrap();
    lab.image("images", "disk", 16).unwrap();
    let (mgr, host) = active_mgr(lab);
    let mds = if host == "h1" { "a" } else { "b" };
    wait_for("mgr and mds on one host, standbys on the other", SOON, || {
        let (active, standbys) = mdss(lab);
        if active != [mds] && standbys == [mds] {
            lab.ceph(&["mds", "fail", &active[0]]).ok();
        }
        let ready = active == [mds] && !standbys.is_empty() && mgr_dump(lab)["standbys"][0].is_object();
        Ok(ready.then_some(()))
    })
    .unwrap();
    let writer = lab.host(&host).writer("images", "disk", 2).unwrap();

    let fenced = site.guardian(&["fence", &host]).expect(0);
    let sealed_at = monotonic();
    println!("{}{}", fenced.stderr, fenced.json["timings_ms"]);
    assert_eq!(fenced.json["state"], "sealed");
    assert_eq!(fenced.json["coverage"]["verdict"], "whole-host");
    for daemon in [format!("mgr.{mgr}"), format!("mds.{mds}")] {
        assert!(fenced.stderr.contains(&format!("failing over {daemon}")), "{}", fenced.stderr);
    }
    assert!(site.blocklist().contains_key(&format!("{}:0/0", site.ip(&host))));
    let (now, elsewhere) = active_mgr(lab);
    let mds_now = wait_for("the other mds to be active", SOON, || Ok(mdss(lab).0.pop())).unwrap();
    println!("mgr.{mgr} and mds.{mds} on {host}, then mgr.{now} on {elsewhere} and mds.{mds_now}");
    assert_ne!(elsewhere, host);
    assert_ne!(mds_now, mds);
    mgr_works(lab);
    assert_eq!(writer.wait_for_error(sealed_at, SOON).unwrap(), Errno::ESHUTDOWN);
    assert_eq!(writer.taken_after(sealed_at, 2).unwrap(), 0);
}

/// INV-6: mon and OSD of a fenced host go on; they are no clients.
#[test]
fn inv6_mon_and_osd_of_a_fenced_host_go_on() {
    let site = three_mons();
    let lab = &site.lab;
    lab.image("images", "stale", 16).unwrap();
    lab.image("images", "disk", 16).unwrap();
    let stale = lab.host("m1").writer("images", "stale", 2).unwrap();
    let writer = lab.host("n1").writer("images", "disk", 2).unwrap();

    let fenced = site.guardian(&["fence", "m1"]).expect(0);
    let sealed_at = monotonic();
    assert_eq!(fenced.json["state"], "sealed");
    assert_eq!(fenced.json["coverage"]["verdict"], "whole-host");
    assert_eq!(stale.wait_for_error(sealed_at, SOON).unwrap(), Errno::ESHUTDOWN);

    writer.wait_for_acks(50, SOON).unwrap();
    // It misses writes, and has to boot and recover under the entry.
    lab.daemon("osd.0").stop().unwrap();
    lab.ceph(&["osd", "down", "0"]).unwrap();
    writer.wait_for_acks(50, SOON).unwrap();
    lab.daemon("osd.0").cont().unwrap();
    lab.wait_until_up().unwrap();
    lab.wait_until_clean("images").unwrap();
    let quorum = lab.ceph(&["quorum_status"]).unwrap()["quorum_names"].clone();
    println!(
        "osd.0 up again and clean, quorum {quorum}, {} writes acknowledged elsewhere, {} on the fenced host",
        writer.acks_after(sealed_at).unwrap(),
        stale.taken_after(sealed_at, 2).unwrap()
    );
    assert!(quorum.as_array().unwrap().contains(&"a".into()));
    assert_eq!(stale.taken_after(sealed_at, 2).unwrap(), 0);
    assert!(site.blocklist().contains_key(&format!("{}:0/0", site.ip("m1"))));
}

/// INV-9: whatever is lost with the mon leader is unknown until it is read back.
#[test]
fn inv9_a_fence_whose_mon_leader_is_killed_or_stopped_is_sealed_or_cannot_tell() {
    let rounds = number_from_env("GUARDIAN_ROUNDS", 5);
    let mut dice = Dice::from_env();
    let site = three_mons();
    let lab = &site.lab;
    let mut ends = [0, 0];
    for round in 1..=rounds {
        let leader = lab.mon_leader().unwrap();
        // A stopped leader costs its lease, and its clients half a minute until they look for another one.
        let stopped = round % 4 == 0;
        let through_leader = dice.below(2) == 0;
        let after = dice.millis(1500);
        let mut client = lab.host("n1").idle_client("images").unwrap();
        let entry = client.address().to_owned();
        assert_eq!(client.try_write("before").unwrap(), Ok(()));

        let mut words = vec!["fence", "--timeout", "45s", "--address", &entry];
        let conf = lab.dir().join("leader.conf");
        if through_leader {
            std::fs::write(&conf, conf_of_one_mon(&site, &leader)).unwrap();
            words.extend(["--conf", conf.to_str().unwrap()]);
        }
        let fence = site.start_guardian(&words);
        std::thread::sleep(after);
        if stopped {
            lab.daemon(&leader).stop().unwrap();
        } else {
            lab.daemon(&leader).kill().unwrap();
        }
        let answer = fence.answer();
        let way = if stopped { "stopped" } else { "killed" };
        let session = if through_leader { ", with the session" } else { "" };
        println!(
            "round {round}: {leader} {way} after {after:?}{session}: exit {}, {} {}",
            answer.exit,
            answer.json["state"],
            answer.stderr.trim()
        );
        match answer.exit {
            0 => {
                assert_eq!(answer.json["state"], "sealed", "{answer:#?}");
                assert!(site.blocklist().contains_key(&entry));
                assert_eq!(client.try_write("after").unwrap(), Err(Errno::ESHUTDOWN));
                ends[0] += 1;
            }
            5 => {
                assert_ne!(answer.json["state"], "sealed");
                ends[1] += 1;
            }
            _ => panic!("neither sealed nor `cannot tell`: {answer:#?}"),
        }
        if stopped {
            lab.daemon(&leader).cont().unwrap();
        } else {
            lab.daemon(&leader).start().unwrap();
        }
        lab.wait_until_up().unwrap();
    }
    println!("{rounds} rounds: {} sealed and confirmed, {} cannot tell", ends[0], ends[1]);
}

/// Three hosts with a mon and an OSD each, all of them members with `n1`, and a mgr apart.
fn three_mons() -> Site {
    let topology = Topology::new()
        .host("m1", &[Role::Mon("a"), Role::Osd(0)])
        .host("m2", &[Role::Mon("b"), Role::Osd(1)])
        .host("m3", &[Role::Mon("c"), Role::Osd(2)])
        .host("store", &[Role::Mgr("x")])
        .host("n1", &[])
        .host("guard", &[]);
    let site = Site::start(topology, &["m1", "m2", "m3", "n1"]);
    site.lab.pool("images", Pool::replicated(8, 3)).unwrap();
    site
}

/// Asserts that a verb is refused for this one reason, which names these values, and that it changed nothing.
#[track_caller]
fn refused(site: &Site, on: &str, words: &[&str], code: &str, values: &[&str]) {
    let (epoch, blocklist) = (site.epoch(), Value::Object(site.blocklist()));
    let answer = site.guardian_on(on, words).expect(4);
    // The map may change for other reasons: then no epoch of it has another blocklist.
    for epoch in epoch..=site.epoch() {
        let dump = site.lab.ceph(&["osd", "dump", &epoch.to_string()]).unwrap();
        assert_eq!(dump["blocklist"], blocklist, "{words:?}, epoch {epoch}");
    }
    assert_eq!(answer.json["state"], "refused");
    let refusals = answer.json["refusals"].as_array().unwrap();
    assert_eq!(refusals.len(), 1, "{refusals:#?}");
    assert_eq!(refusals[0]["code"], code);
    let reason = refusals[0]["reason"].as_str().unwrap();
    println!("{code}: {reason}");
    for value in values {
        assert!(reason.contains(value), "{reason:?} names {value:?}");
    }
}

fn mgr_dump(lab: &Lab) -> Value {
    lab.ceph(&["mgr", "dump"]).unwrap()
}

/// Name and host of the active mgr.
fn active_mgr(lab: &Lab) -> (String, String) {
    wait_for("an active mgr", SOON, || {
        let dump = mgr_dump(lab);
        let name = dump["active_name"].as_str().unwrap_or_default().to_owned();
        if dump["available"] != true || name.is_empty() {
            return Ok(None);
        }
        let host = lab.daemon(&format!("mgr.{name}")).host().name().to_owned();
        Ok(Some((name, host)))
    })
    .unwrap()
}

/// The client instances of the active mgr's modules, as the blocklist would name them.
fn mgr_clients(lab: &Lab) -> Vec<String> {
    wait_for("clients of the active mgr", SOON, || {
        let dump = mgr_dump(lab);
        let clients = dump["active_clients"].as_array().unwrap().iter();
        let instance = |addrs: &Value| {
            let addr = &addrs["addrvec"][0];
            let place = addr["addr"].as_str().unwrap();
            format!("{place}/{}", addr["nonce"])
        };
        let clients: Vec<String> = clients.map(instance).collect();
        Ok((!clients.is_empty()).then_some(clients))
    })
    .unwrap()
}

/// The active mgr answers, with a module that needs the storage.
fn mgr_works(lab: &Lab) {
    wait_for("an answer of the mgr", SOON, || lab.ceph(&["rbd", "task", "list"]).map(Some)).unwrap();
}

/// Names of the active metadata servers, and of those that stand by.
fn mdss(lab: &Lab) -> (Vec<String>, Vec<String>) {
    let dump = lab.ceph(&["fs", "dump"]).unwrap();
    let info = dump["filesystems"][0]["mdsmap"]["info"].as_object().unwrap();
    let active = info.values().filter(|mds| mds["state"] == "up:active");
    let standbys = dump["standbys"].as_array().unwrap().iter();
    let name = |mds: &Value| mds["name"].as_str().unwrap().to_owned();
    (active.map(name).collect(), standbys.map(name).collect())
}

/// The lab's ceph.conf as a client has it that knows this monitor only, until it is told of the others.
fn conf_of_one_mon(site: &Site, mon: &str) -> String {
    let ip = site.lab.daemon(mon).host().ip();
    let conf = std::fs::read_to_string(site.lab.conf()).unwrap();
    let lines = conf.lines().map(|line| {
        if line.starts_with("mon host") {
            format!("mon host = [v2:{ip}:3300,v1:{ip}:6789]")
        } else {
            line.to_owned()
        }
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}
