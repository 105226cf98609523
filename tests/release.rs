//! INV-4: the dead stay dead. A release frees a host and never one of the client instances it had.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use common::history::changes;
use common::{Answer, Site};
use lab::{Errno, IdleClient, Pool, Role, Topology};
use serde_json::json;

const POOL: &str = "images";
const REASON: &str = "the test killed it";
const MONS: [&str; 3] = ["a", "b", "c"];

/// Three monitors; a member `n1`, and a host `free` that is nobody's.
fn site() -> Site {
    let topology = Topology::new()
        .host("m1", &[Role::Mon("a"), Role::Mgr("x"), Role::Osd(0)])
        .host("m2", &[Role::Mon("b"), Role::Osd(1)])
        .host("m3", &[Role::Mon("c"), Role::Osd(2)]);
    let topology =
        ["n1", "n2", "free", "guard"].into_iter().fold(topology, |topology, host| topology.host(host, &[]));
    let site = Site::start(topology, &["n1", "n2"]);
    site.lab.pool(POOL, Pool::replicated(16, 2)).unwrap();
    site
}

fn idle(site: &Site, host: &str) -> IdleClient {
    site.lab.host(host).idle_client(POOL).unwrap()
}

/// Which monitor holds the session of each client of an IP.
fn sessions(site: &Site, ip: &str) -> BTreeMap<String, &'static str> {
    let mut of = BTreeMap::new();
    for mon in MONS {
        let all = site.lab.ceph_json(&json!({"target": mon, "prefix": "sessions"})).unwrap();
        for session in all.as_array().unwrap() {
            for addr in session["addrs"]["addrvec"].as_array().unwrap() {
                let client = format!("{}/{}", addr["addr"].as_str().unwrap(), addr["nonce"]);
                if client.starts_with(&format!("{ip}:0/")) {
                    of.insert(client, mon);
                }
            }
        }
    }
    of
}

/// New idle clients of a host, until every monitor has the session of one of them.
fn one_per_mon(site: &Site, host: &str) -> Vec<IdleClient> {
    let mut clients: Vec<IdleClient> = Vec::new();
    loop {
        let sessions = sessions(site, &site.ip(host));
        let mon = |client: &IdleClient| sessions.get(client.address());
        let mons: BTreeSet<_> = clients.iter().filter_map(mon).collect();
        if mons.len() == MONS.len() {
            return clients;
        }
        assert!(clients.len() < 30, "thirty clients, and all on {mons:?}");
        clients.push(idle(site, host));
    }
}

fn refused(client: &mut IdleClient) {
    assert_eq!(client.try_write("refused").unwrap(), Err(Errno::ESHUTDOWN), "{}", client.address());
}

fn fence(site: &Site, words: &[&str]) -> Answer {
    let answer = site.guardian(&[&["fence"], words].concat()).expect(0);
    assert_eq!(answer.json["state"], "sealed");
    answer
}

fn release(site: &Site, words: &[&str]) -> Answer {
    let assertion = ["--assert-powered-off", "--reason", REASON];
    let answer = site.guardian(&[&["release"], words, &assertion].concat()).expect(0);
    assert_eq!(answer.json["state"], "released");
    answer
}

/// INV-4: clients that only the host entry refused, on every monitor and without a watch, are refused after it is gone.
#[test]
fn inv4_clients_known_only_through_the_host_entry_stay_refused_after_release() {
    let site = site();
    let host = format!("{}:0/0", site.ip("n1"));
    let mut early = one_per_mon(&site, "n1");
    let fenced = fence(&site, &["n1"]);
    let mut late = one_per_mon(&site, "n1");
    for client in early.iter_mut().chain(&mut late) {
        refused(client);
    }
    let short = late[0].address().to_owned();
    let before = site.add_short(&short, 60.0);
    let entries = &site.newest().entries;
    for client in late.iter().skip(1) {
        assert!(!entries.contains_key(client.address()), "{}", client.address());
    }

    let id = fenced.json["fence"].as_str().unwrap();
    let released = release(&site, &["--fence", id]);
    assert_eq!(released.json["member"], "n1");
    assert_eq!(released.json["removed"], json!([host]));
    assert_eq!(released.json["reason"], REASON);

    // In each epoch on the way, and with a long entry of its own in each without the host's.
    let history = site.history(before);
    let (mut with_host, mut without) = (0, 0);
    for epoch in &history {
        let free_host = !epoch.entries.contains_key(&host) && epoch.ranges.is_empty();
        for client in early.iter().chain(&late) {
            assert!(epoch.refuses(client.address()), "{} in {epoch:#?}", client.address());
            assert!(!free_host || epoch.stands_long(client.address()), "{} in {epoch:#?}", client.address());
        }
        if free_host {
            without += 1;
        } else {
            with_host += 1;
        }
    }
    assert!(without > 0, "{history:#?}");
    for client in early.iter_mut().chain(&mut late) {
        refused(client);
    }
    let mut newcomer = idle(&site, "n1");
    assert_eq!(newcomer.try_write("newcomer").unwrap(), Ok(()));
    println!(
        "{} clients known to the fence and {} only to its host entry: refused in {with_host} epochs with it and {without} without; \
         {short} ended in 60 s, now after {}; a new client may write",
        early.len(),
        late.len(),
        history.last().unwrap().entries[&short]
    );
}

/// A fence's ID is all a release needs, whatever was fenced.
#[test]
fn a_fence_of_bare_addresses_is_released_by_its_id() {
    let site = site();
    let mut old = idle(&site, "free");
    let fenced = fence(&site, &["--address", &site.ip("free")]);
    refused(&mut old);
    let released = release(&site, &["--fence", fenced.json["fence"].as_str().unwrap()]);
    assert_eq!(released.json["removed"], json!([format!("{}:0/0", site.ip("free"))]));
    assert_eq!(released.json["kept"][0]["entry"], old.address());
    refused(&mut old);
    let mut new = idle(&site, "free");
    assert_eq!(new.try_write("new").unwrap(), Ok(()));

    // A fence of one client has no host entry that could go.
    let fenced = fence(&site, &["--address", new.address()]);
    let before = site.epoch();
    let released = release(&site, &["--fence", fenced.json["fence"].as_str().unwrap()]);
    assert_eq!(released.json["removed"], json!([]));
    assert_eq!(changes(&site.history(before)), 0);
    refused(&mut new);
}

/// INV-5: without proof or assertion nothing is released; and a release that does not apply changes nothing.
#[test]
fn inv5_a_release_without_assertion_or_with_a_wrong_name_changes_nothing() {
    let site = site();
    let fenced = fence(&site, &["n1"]);
    let id = fenced.json["fence"].as_str().unwrap();
    let garbled = id.replacen("F-A", "F-B", 1);
    let asserted = ["--assert-powered-off", "--reason", REASON];
    let before = site.epoch();
    let cases: [(&[&str], &[&str], i32, &str); 7] = [
        (&["n1"], &[], 4, "--assert-powered-off"),
        (&["--fence", id], &["--reason", REASON], 4, "--assert-powered-off"),
        (&["n1"], &["--assert-powered-off"], 2, "--reason"),
        (&["--fence", &garbled], &asserted, 2, "not a fence ID"),
        (&["n9"], &asserted, 4, "the configuration knows n1"),
        (&[], &asserted, 2, "MEMBER"),
        (&["n2"], &asserted, 0, ""),
    ];
    for (target, options, exit, says) in cases {
        let words = [&["release"], target, options].concat();
        let answer = site.guardian(&words).expect(exit);
        assert!(answer.stderr.contains(says), "{words:?}: {answer:#?}");
        println!("release {target:?} {options:?}: {exit} {}", answer.stderr.trim());
        if exit == 0 {
            assert_eq!(answer.json["removed"], json!([]));
        }
    }
    let told = as_table(&site.command("guard", &[&["release", "n2"], &asserted[..]].concat()));
    assert!(told.contains("there was no host entry to remove"), "{told}");
    assert_eq!(changes(&site.history(before)), 0, "the blocklist changed");
    assert!(site.newest().stands_long(&format!("{}:0/0", site.ip("n1"))));
}

/// What a verb tells people, given the command line of a test.
fn as_table(json: &Command) -> String {
    let mut table = Command::new(json.get_program());
    table.args(json.get_args().filter(|word| *word != "--json"));
    table.envs(json.get_envs().filter_map(|(name, value)| Some((name, value?))));
    String::from_utf8(table.output().unwrap().stdout).unwrap()
}
