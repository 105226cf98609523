//! What each verb prints as JSON is what docs/json.md says, and the same thing has the same form everywhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::collections::BTreeSet;

use common::guardian::Guardian;
use common::json::{is_a_documented_part, is_as_documented};
use common::{LIMIT, Site};
use lab::Pool;
use serde_json::{Value, json};

const ASSERTED: [&str; 3] = ["--assert-powered-off", "--reason", "the test says so"];

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value:#}")).keys().map(String::as_str).collect()
}

/// Each verb, with the storage alone, through a leader, and by the ledger while nobody leads.
#[test]
fn every_verb_prints_what_the_page_says_and_a_thing_has_one_form() {
    let site = Site::small();
    site.lab.pool("images", Pool::replicated(16, 2)).unwrap();
    site.lab.image("images", "disk", 16).unwrap();
    let _writer = site.lab.host("n1").writer("images", "disk", 1).unwrap();
    let alone = |words: &[&str], exit| site.guardian(words).expect(exit).json;
    for (verb, exit) in [("plan", 0), ("fence", 0)] {
        is_as_documented(verb, &alone(&[verb, "n1"], exit));
    }
    is_as_documented("watchers", &alone(&["watchers"], 0));
    is_as_documented("doctor", &site.guardian(&["doctor"]).json);
    let by_ceph = alone(&["status"], 0);
    is_as_documented("status", &by_ceph);
    assert_eq!(by_ceph["source"], "ceph");
    assert_eq!((&by_ceph["alarms"], &by_ceph["fences"][0]["breaches"]), (&Value::Null, &Value::Null));
    is_as_documented("ledger", &alone(&["ledger"], 0));
    is_as_documented("release", &alone(&[&["release", "n1"], ASSERTED.as_slice()].concat(), 0));

    // Through the guardian that leads.
    let guard = Guardian::new(&site, "one", "guard");
    let member = |name| format!("[[member]]\nname = \"{name}\"\naddresses = [\"{}\"]\n", site.ip(name));
    guard.configure("", &["n1", "n2"].map(member).concat());
    guard.start();
    guard.wait_until_leading(LIMIT);
    let verb = |words: &[&str], exit| guard.verb(words).expect(exit).json;
    is_as_documented("plan", &verb(&["plan", "n1"], 0));
    let fenced = verb(&["fence", "n1", "--reason", "cable"], 0);
    is_as_documented("fence", &fenced);
    assert_eq!(keys(&verb(&["release", "n1"], 4)), ["member", "refusals", "state"].into());
    let by_leader = verb(&["status"], 0);
    is_as_documented("status", &by_leader);
    let ledger = verb(&["ledger"], 0);
    is_as_documented("ledger", &ledger);
    is_as_documented("ledger audit", &verb(&["ledger", "audit"], 0));

    // One that cannot be proved in time is printed as it would be listed.
    let ledgers = site.lab.ceph(&["osd", "map", "rbd-guardian", "ledger"]).unwrap();
    let acting = ledgers["acting"].as_array().unwrap();
    let silent = (0..3).find(|osd| !acting.contains(&json!(osd))).unwrap();
    let osd = site.lab.daemon(&format!("osd.{silent}"));
    osd.stop().unwrap();
    let over = ["fence", "n2", "--over-brake", "--reason", "x", "--timeout", "6s"];
    let pending = verb(&over, 3);
    osd.cont().unwrap();
    is_a_documented_part("fence", "fences", &pending);

    // And while nobody leads.
    guard.kill();
    let by_ledger = verb(&["status"], 0);
    is_as_documented("status", &by_ledger);
    assert_eq!((&by_leader["source"], &by_ledger["source"]), (&json!("leader"), &json!("ledger")));

    // One form: of a status whatever its source, of a fence, a member and an address wherever they are listed.
    for other in [&by_leader, &by_ledger] {
        assert_eq!(keys(other), keys(&by_ceph));
        for list in ["fences", "members"] {
            assert_eq!(keys(&other[list][0]), keys(&by_ceph[list][0]), "{list}");
        }
        assert_eq!(keys(&other["fences"][0]), keys(&ledger["fences"][0]));
        assert_eq!(keys(&other["fences"][0]), keys(&pending));
        let sealed = other["fences"].as_array().unwrap().iter().find(|fence| fence["member"] == "n1");
        assert_eq!(sealed.unwrap()["entries"], fenced["entries"]);
    }
    let address = json!([{"address": site.ip("n1"), "sources": ["operator"]}]);
    for status in [&by_ceph, &by_leader, &by_ledger] {
        assert_eq!(status["members"][0]["addresses"], address, "{status:#}");
    }
}
