//! Several guardians on a real cluster: a verb anywhere reaches the one that leads, and what it asks is done once,
//! whoever dies meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::time::{Duration, Instant};

use common::fault::monitors_are_cut;
use common::guarded::SOON;
use common::guardian::Guardian;
use common::json::is_as_documented;
use common::{LIMIT, Site, Underway};
use jiff::Timestamp;
use jiff::fmt::strtime::BrokenDownTime;
use lab::{Pool, Topology, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const ASSERTED: [&str; 3] = ["--assert-powered-off", "--reason", "no client of it ever ran"];
const FENCE: [&str; 4] = ["fence", "n1", "--reason", "cable"];
const RELEASE: [&str; 5] = ["release", "n1", ASSERTED[0], ASSERTED[1], ASSERTED[2]];

fn guardian(site: &Site, name: &str) -> Guardian {
    let guardian = Guardian::new(site, name, name);
    let member = |name| format!("[[member]]\nname = \"{name}\"\naddresses = [\"{}\"]\n", site.ip(name));
    guardian.configure("", &["n1", "n2"].map(member).concat());
    guardian
}

/// What a verb printed, without how long it took.
fn printed(mut answer: Value) -> Value {
    if let Some(fields) = answer.as_object_mut() {
        fields.remove("timings_ms");
    }
    answer
}

fn requests(guardian: &Guardian) -> Vec<Value> {
    let ledger = guardian.verb(&["ledger"]).expect(0).json;
    ledger["requests"].as_array().unwrap().clone()
}

/// What the trail says was done, of this kind.
fn done(guardian: &Guardian, what: &str) -> usize {
    let trail = guardian.verb(&["ledger", "audit"]).expect(0).json;
    let deeds = trail.as_array().unwrap().iter();
    deeds.filter(|deed| deed["what"].as_str().unwrap().starts_with(what)).count()
}

/// Starts a verb and waits until its request is in the ledger, taken or not.
fn asks(site: &Site, guardian: &Guardian, words: &[&str], taken: bool) -> Underway {
    let asking = site.start_command(guardian.command(words), words);
    wait_for("the request in the ledger", LIMIT, || {
        Ok(requests(guardian).iter().any(|request| request["taken"].is_number() == taken).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {}", asking.stderr()));
    asking
}

#[test]
fn inv8_a_verb_reaches_the_leader_from_every_host_and_is_done_once() {
    let site = Site::start(Topology::small(&["n1", "n2", "one", "two", "far"]), &[]);
    site.lab.pool("images", Pool::replicated(16, 2)).unwrap();
    let [one, two, far] = ["one", "two", "far"].map(|name| guardian(&site, name));
    one.start();
    one.wait_until_leading(LIMIT);
    two.start();
    two.wait_until_standby("one");

    the_answer_is_the_same_everywhere(&one, &two, &far);
    what_nobody_took_is_taken_back(&site, &one, &two, &far);
    a_leader_dies_before_it_takes_a_request(&site, &one, &two, &far);
    a_leader_dies_before_it_answers(&site, &one, &two, &far);
    what_was_taken_is_said_to_go_on(&site, &one, &far);
    every_leader_dies(&site, &one, &two, &far);
}

/// `two` waits, and on the host of `far` no daemon runs.
fn the_answer_is_the_same_everywhere(one: &Guardian, two: &Guardian, far: &Guardian) {
    let status = two.verb(&["status"]).expect(0).json;
    assert_eq!((&status["stage"], &status["leader"]["guardian"]), (&json!("standby"), &json!("one")));

    let began = Instant::now();
    let told = two.verb(&FENCE).expect(0);
    println!("a fence through the ledger took {:.1?}", began.elapsed());
    assert!(told.stderr.contains("one on ") && told.stderr.contains("through the ledger"), "{told:#?}");
    assert_eq!(told.json["state"], "sealed", "{told:#?}");
    is_as_documented("fence", &told.json);
    let own = one.verb(&FENCE).expect(0).json;
    for other in [told.json, far.verb(&FENCE).expect(0).json] {
        assert_eq!(printed(other), printed(own.clone()));
    }

    let own = one.verb(&["fence", "n2"]).expect(4).json;
    assert_eq!(own["refusals"][0]["code"], "storm-brake", "{own:#}");
    assert_eq!([two, far].map(|other| other.verb(&["fence", "n2"]).expect(4).json), [own.clone(), own]);
    // One view: what is fenced, by which fence, and what the next one would be, is the same on every host.
    let shown = |guardian: &Guardian| {
        let status = guardian.verb(&["status"]).expect(0).json;
        let pick = |list: &str, keys: [&str; 3]| -> Vec<Value> {
            let rows = status[list].as_array().unwrap().iter();
            rows.map(|row| json!(keys.map(|key| row[key].clone()))).collect()
        };
        let (members, fences) =
            (pick("members", ["name", "state", "fence"]), pick("fences", ["fence", "state", "member"]));
        (
            members,
            fences,
            status["others"].clone(),
            status["source"].clone(),
            status["leader"]["guardian"].clone(),
        )
    };
    let (members, fences, others, source, leader) = shown(one);
    assert_eq!((source, &leader), (json!("leader"), &json!("one")));
    assert_eq!(fences.len(), 1);
    for other in [two, far] {
        assert_eq!(
            shown(other),
            (members.clone(), fences.clone(), others.clone(), json!("ledger"), leader.clone())
        );
    }
    for planner in [one, two, far] {
        let plan = planner.verb(&["plan", "n2"]).expect(4).json;
        assert_eq!(plan["refusals"][0]["code"], "storm-brake", "{plan:#}");
        let over = ["plan", "n2", "--over-brake", "--reason", "x"];
        let plan = planner.verb(&over).expect(0).json;
        assert_eq!(plan["over_brake"], true);
        is_as_documented("plan", &plan);
    }
    let own = one.verb(&["release", "n1"]).expect(4).json;
    assert_eq!(own["refusals"][0]["code"], "not-proved", "{own:#}");
    assert_eq!([two, far].map(|other| other.verb(&["release", "n1"]).expect(4).json), [own.clone(), own]);
    let released = far.verb(&RELEASE).expect(0).json;
    is_as_documented("release", &released);
    assert_eq!((&released["state"], &released["member"]), (&json!("released"), &json!("n1")));
    assert_eq!(requests(one), Vec::<Value>::new(), "each is removed by who asked");
    assert_eq!(done(one, "takes request"), done(one, "answers request"));
    assert_eq!(one.logged("leading").len(), 1, "{}", one.log_text());
    assert_eq!(two.logged("leading").len(), 0, "{}", two.log_text());
}

fn what_nobody_took_is_taken_back(site: &Site, one: &Guardian, two: &Guardian, far: &Guardian) {
    two.stop();
    let taken = done(one, "takes request");
    one.with_daemon(|daemon| daemon.stop()).unwrap();
    let late = far.verb(&[FENCE.as_slice(), &["--timeout", "3s"]].concat()).expect(5);
    assert!(late.stderr.contains("nothing was begun"), "{late:#?}");
    assert_eq!(requests(far), Vec::<Value>::new());
    one.with_daemon(|daemon| daemon.cont()).unwrap();
    one.wait_until_leading(LIMIT);

    one.with_daemon(|daemon| daemon.stop()).unwrap();
    let asking = asks(site, far, &FENCE, false);
    asking.signal(Signal::SIGINT);
    let interrupted = asking.answer().expect(5);
    assert!(interrupted.stderr.contains("interrupted"), "{interrupted:#?}");
    assert_eq!(requests(far), Vec::<Value>::new());
    one.with_daemon(|daemon| daemon.cont()).unwrap();
    one.wait_until_leading(LIMIT);
    two.start();
    two.wait_until_standby("one");
    assert_eq!(done(one, "takes request"), taken, "nobody took any of them");
    assert!(site.blocklist().keys().all(|entry| !entry.ends_with(":0/0")), "{:?}", site.blocklist());
}

fn a_leader_dies_before_it_takes_a_request(site: &Site, one: &Guardian, two: &Guardian, far: &Guardian) {
    one.with_daemon(|daemon| daemon.stop()).unwrap();
    let asking = asks(site, far, &FENCE, false);
    one.kill();
    let killed = Instant::now();
    let told = asking.answer().expect(0);
    println!("answered {:.1?} after the leader was killed that had not taken it", killed.elapsed());
    assert_eq!(told.json["state"], "sealed");
    assert!(told.stderr.contains("two on "), "{told:#?}");
    two.hears("leading", |_| true);
    two.verb(&RELEASE).expect(0);
    one.start();
    one.wait_until_standby("two");
}

/// With an OSD silent that the ledger does not need, so that the seal waits.
fn a_leader_dies_before_it_answers(site: &Site, one: &Guardian, two: &Guardian, far: &Guardian) {
    let ledger = site.lab.ceph(&["osd", "map", "rbd-guardian", "ledger"]).unwrap();
    let acting = ledger["acting"].as_array().unwrap();
    let silent = (0..3).find(|osd| !acting.contains(&json!(osd))).unwrap();
    let silent = site.lab.daemon(&format!("osd.{silent}"));
    let (taken, intended) = (done(two, "takes request"), two.logged("intended").len());
    silent.stop().unwrap();
    let asking = asks(site, far, &FENCE, true);
    two.wait_for_status("the entries to stand", LIMIT, |status| {
        let mut fences = status["fences"].as_array().into_iter().flatten();
        fences.any(|fence| fence["member"] == "n1" && fence["state"] == "pending")
    });
    two.kill();
    one.wait_until_leading(LIMIT);
    silent.cont().unwrap();
    let told = asking.answer().expect(0);
    assert_eq!(told.json["state"], "sealed", "{told:#?}");
    assert!(told.stderr.contains("one on "), "{told:#?}");
    assert_eq!(done(one, "takes request"), taken + 1, "taken once");
    assert_eq!(two.logged("intended").len(), intended + 1);
    assert_eq!(one.logged("intended").len(), 1, "only of the first round: {}", one.log_text());
    assert_eq!(printed(one.verb(&FENCE).expect(0).json), printed(told.json));
    one.verb(&RELEASE).expect(0);
}

/// INV-9: Ctrl-C ends the wait and nothing else, on the leader's host as well as elsewhere.
fn what_was_taken_is_said_to_go_on(site: &Site, one: &Guardian, far: &Guardian) {
    let ledger = site.lab.ceph(&["osd", "map", "rbd-guardian", "ledger"]).unwrap();
    let acting = ledger["acting"].as_array().unwrap();
    let silent = (0..3).find(|osd| !acting.contains(&json!(osd))).unwrap();
    let silent = site.lab.daemon(&format!("osd.{silent}"));
    silent.stop().unwrap();
    let elsewhere = asks(site, far, &FENCE, true);
    one.wait_for_status("the entries to stand", LIMIT, |status| {
        let mut fences = status["fences"].as_array().into_iter().flatten();
        fences.any(|fence| fence["member"] == "n1" && fence["state"] == "pending")
    });
    let asked = || one.log_text().matches("asks to fence n1").count();
    let before = asked();
    let here = site.start_command(one.command(&FENCE), &FENCE);
    wait_for("the verb on the leader's host to wait", LIMIT, || Ok((asked() > before).then_some(())))
        .unwrap();
    for asking in [elsewhere, here] {
        asking.signal(Signal::SIGINT);
        let told = asking.answer().expect(3);
        assert!(told.stderr.contains("interrupted: n1 is "), "{told:#?}");
        assert!(told.stderr.contains("the leading guardian continues with it"), "{told:#?}");
    }
    silent.cont().unwrap();
    one.wait_for_status("sealed all the same", LIMIT, |status| {
        let mut fences = status["fences"].as_array().into_iter().flatten();
        fences.any(|fence| fence["member"] == "n1" && fence["state"] == "sealed")
    });
    one.verb(&RELEASE).expect(0);
    // On the leader's host with the leader stopped: it may be done when the leader goes on, and that is said.
    one.with_daemon(|daemon| daemon.stop()).unwrap();
    let told = one.verb(&[FENCE.as_slice(), &["--timeout", "2s"]].concat()).expect(5);
    assert!(told.stderr.contains("has the request and goes on with it"), "{told:#?}");
    assert!(!told.stderr.contains("nothing"), "{told:#?}");
    one.with_daemon(|daemon| daemon.cont()).unwrap();
    one.wait_until_leading(LIMIT);
    one.verb(&FENCE).expect(0);
    one.verb(&RELEASE).expect(0);
}

#[test]
fn a_key_that_was_replaced_is_told_while_the_connection_stands_and_the_new_one_is_taken() {
    let site = Site::start(Topology::small(&["n1", "n2", "one", "two"]), &[]);
    site.lab.pool("images", Pool::replicated(16, 2)).unwrap();
    let one = guardian(&site, "one");
    one.start();
    one.wait_until_leading(LIMIT);
    one.verb(&FENCE).expect(0);

    site.rotate_key(false);
    let told = one.wait_for_status("to tell of the key", LIMIT, |status| status["ceph_trouble"].is_string());
    let why = told["ceph_trouble"].as_str().unwrap();
    assert!(why.contains("ceph auth get client.guardian"), "{why}");
    assert_eq!(told["stage"], "leading");
    one.hears("key-refused", |_| true);
    assert_eq!(one.logged("key-refused").len(), 1);

    // The connection breaks, and comes back with the new key alone.
    site.lab.daemon("mon.a").kill().unwrap();
    site.lab.daemon("mon.a").start().unwrap();
    one.wait_for_status("to hold", LIMIT, |status| {
        status["holds"].as_str().is_some_and(|why| why.contains("no monitor has answered"))
    });
    site.publish_key();
    let published = Instant::now();
    one.wait_for_status("to be fit again", SOON, |status| {
        status["stage"] == "leading" && status["holds"].is_null() && status["ceph_trouble"].is_null()
    });
    println!("fit {:.1?} after the keyring was written", published.elapsed());
    one.verb(&RELEASE).expect(0);
    assert_eq!(one.verb(&FENCE).expect(0).json["state"], "sealed");
}

/// Whoever asks takes the lead when nobody has had it for a while.
fn every_leader_dies(site: &Site, one: &Guardian, two: &Guardian, far: &Guardian) {
    one.with_daemon(|daemon| daemon.stop()).unwrap();
    let asking = asks(site, far, &FENCE, false);
    one.kill();
    let killed = Instant::now();
    let told = asking.answer().expect(0);
    println!("answered {:.1?} after the only leader was killed", killed.elapsed());
    assert_eq!(told.json["state"], "sealed");
    assert!(told.stderr.contains("nobody leads"), "{told:#?}");
    let ledger = far.verb(&["ledger"]).expect(0).json;
    assert_eq!((&ledger["leader"]["guardian"], &ledger["lease"]), (&json!("far"), &Value::Null));
    // The answer that an interrupted verb did not wait for stays until its time is over.
    let mut waiting = ledger["requests"].as_array().unwrap().iter();
    assert!(waiting.all(|request| request["answered"] == true), "{}", ledger["requests"]);
    two.start();
    two.wait_until_leading(LIMIT);
}

#[test]
fn inv3_a_leader_that_no_monitor_answers_leaves_the_lead_to_one_that_they_answer() {
    let site = Site::start(Topology::small(&["n1", "n2", "one", "two"]), &[]);
    site.lab.pool("images", Pool::replicated(16, 2)).unwrap();
    let [one, two] = ["one", "two"].map(|name| guardian(&site, name));
    one.start();
    one.wait_until_leading(LIMIT);
    two.start();
    two.wait_until_standby("one");
    one.verb(&FENCE).expect(0);

    monitors_are_cut(one.host(), true);
    let cut = Instant::now();
    two.wait_until_leading(SOON);
    println!("the one that the monitors answer leads {:.1?} after the cut", cut.elapsed());
    let why = one.hears("yields", |_| true)["message"].as_str().unwrap().to_owned();
    assert!(why.contains("no monitor has answered"), "{why}");
    two.verb(&RELEASE).expect(0);
    assert_eq!(two.verb(&FENCE).expect(0).json["state"], "sealed");
    one.wait_until_standby("two");

    // Nobody hears them: one goes on, to hold, and there is no ping-pong.
    monitors_are_cut(two.host(), true);
    two.wait_for_status("to hold", SOON, |status| {
        status["holds"].as_str().is_some_and(|why| why.contains("no monitor has answered"))
    });
    assert_eq!((one.logged("leading").len(), two.logged("leading").len()), (1, 1));
    // Who hears first leads.
    monitors_are_cut(one.host(), false);
    one.wait_until_leading(SOON);
    monitors_are_cut(two.host(), false);
    two.wait_until_standby("one");
    assert_eq!(one.verb(&["status"]).expect(0).json["holds"], Value::Null);
}

/// A lease ends by the clock of the OSD that keeps it.
#[test]
fn a_dead_leaders_lease_ends_in_time_whatever_its_osds_clock_says() {
    let site = Site::start(Topology::small(&["n1", "n2", "one", "two"]).own_osd_clocks(), &[]);
    site.lab.pool("images", Pool::replicated(16, 2)).unwrap();
    let mut guards = ["one", "two"].map(|name| guardian(&site, name));
    guards.iter().for_each(Guardian::start);
    guards[0].wait_for_status("somebody to lead", LIMIT, |status| !status["leader"].is_null());

    site.lab.step_osd_clocks(600).unwrap();
    let far = wait_for("a renewal by that clock", LIMIT, || {
        let words = "-p rbd-guardian -N rbd-guardian --format json lock info ledger leader";
        let told = site.lab.host("admin").bounded("rados", LIMIT).args(words.split(' ')).output()?;
        let lock: Value = serde_json::from_slice(&told.stdout)?;
        let until = lock["lockers"][0]["expiration"].as_str().unwrap_or_default().to_owned();
        let until = BrokenDownTime::parse("%Y-%m-%dT%H:%M:%S%.f%z", until)?.to_timestamp()?;
        let left = until.duration_since(Timestamp::now());
        let leads = |guard: &&Guardian| guard.status().is_some_and(|status| status["stage"] == "leading");
        let leading: Vec<_> = guards.iter().filter(leads).collect();
        // For a moment the one that lost its lease by that clock may not know it yet.
        let [leader] = leading[..] else { return Ok(None) };
        Ok((left.as_secs() > 300).then(|| (leader.name().to_owned(), left)))
    });
    let (leader, left) = far.unwrap();
    if guards[1].name() == leader {
        guards.reverse();
    }
    guards[0].kill();
    site.lab.step_osd_clocks(0).unwrap();
    let killed = Instant::now();
    guards[1].wait_until_leading(LIMIT);
    println!("leads {:.1?} after the end of one whose lease lasted {left:#}", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(30), "{}", guards[1].log_text());
    assert_eq!(guards[1].verb(&FENCE).expect(0).json["state"], "sealed");
}
