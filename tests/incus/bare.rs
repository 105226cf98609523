//! A guardian without `[incus]` beside real Incus and a gate that others wrote: it leads only while no other one is ready,
//! and releases nobody whose gate is open. And how often a gate is probed meanwhile, by the logs of Incus itself.

use std::fs;
use std::time::Duration;

use crate::common::Answer;
use crate::common::guarded::{Guarded, MEMBERS, SOON, fence, member};
use crate::common::guardian::{Guardian, leader};
use lab::{Links, Topology, World, monotonic, wait_for};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

const OFTEN: &str = "[guard]\nevery = \"1s\"\n";
/// For how long a release is watched that has to wait.
const WAITS: &str = "10s";

fn release(guardian: &Guardian, lost: &str) -> Answer {
    let words = ["release", lost, "--assert-powered-off", "--reason", "pulled the plug", "--timeout", WAITS];
    guardian.verb(&words)
}

/// Does this member take the lost one's instances?
fn opened(site: &Guarded, at: &str, lost: &str) -> bool {
    let live = site.cluster.live().unwrap();
    let config = live.query(&format!("/1.0/cluster/members/{at}")).unwrap()["config"].clone();
    !config[format!("user.rbd-guardian.seal.{lost}")].is_null()
}

/// The warnings of this member about probes of the gate: each is a create that the gate refuses. Incus 6.0 writes none, 7.0 does.
fn probes(site: &Guarded, name: &str) -> usize {
    let text = fs::read_to_string(site.path(&format!("log/incusd-{name}.out"))).unwrap();
    text.lines().filter(|line| line.contains("rbd-guardian-probe")).count()
}

/// By the operator; again where what is known is not whole yet.
#[track_caller]
pub(crate) fn fenced(site: &Guarded, lost: &str) -> Value {
    let answer = wait_for("the fence", SOON, || {
        let answer = site.guardian(&["fence", lost, "--reason", "cable"]);
        anyhow::ensure!(answer.exit == 0, "{}", answer.stderr);
        Ok(Some(answer.json))
    });
    answer.unwrap_or_else(|error| panic!("{error:#}\n{}", site.log_text()))
}

fn told(status: &Value, code: &str) -> bool {
    status["alarms"].as_array().into_iter().flatten().any(|alarm| alarm["code"] == code)
}

#[test]
fn inv2_inv6_a_guardian_without_incus_leads_beside_none_that_sees_and_releases_nobody_whose_gate_is_open() {
    let site = Guarded::without_daemon(Topology::apart().linked("spare", &[]));
    site.configure(OFTEN);
    site.guardian(&["gate", "install"]).expect(0);
    site.start_daemon();
    site.wait_until_watching();
    let guard = site.first();
    let bare = Guardian::new(&site.site, "spare", "spare");
    bare.configure("", "");
    let probed = MEMBERS.map(|name| probes(&site, name));
    bare.start();
    bare.wait_until_standby("guard");
    it_leads_only_while_no_other_is_ready(&site, guard, &bare);

    let leads = site.cluster.leader().unwrap();
    let [lost, other] =
        MEMBERS.into_iter().filter(|name| *name != leads).collect::<Vec<_>>().try_into().unwrap();
    let container = site.cluster.launch("c1", lost).unwrap();
    container.wait_for_writer(lost, SOON).unwrap();
    site.wait_until_known(lost);
    site.cluster.set(&[("cluster.healing_threshold", "0")]).unwrap();
    site.lab().cut_links(lost, Links::Both).unwrap();
    site.cluster.wait_for_status(lost, "Offline", SOON).unwrap();
    site.wait_for_state(lost, "suspect", SOON);
    fenced(&site, lost);
    site.wait_for_status("the gate to be open", SOON, |status| status["gate"]["open"] == json!([lost]));
    assert!(opened(&site, other, lost));
    let now = MEMBERS.map(|name| probes(&site, name));
    println!("warnings about probes: {probed:?} at the beginning, {now:?} after a takeover and an opening");
    for (before, after) in probed.into_iter().zip(now) {
        assert!(after <= before + 1, "one at a takeover, none for a key");
        assert_eq!(before > 0, World::from_env() == World::Newest, "as Incus writes them");
    }

    // Both have none now: one by its configuration, the other by what it was told to read again.
    guard.configure("", "");
    guard.with_daemon(|daemon| kill(daemon.pid(), Signal::SIGHUP)).unwrap();
    guard.hears("reloaded", |_| true);
    nobody_is_released(&site, [guard, &bare], lost, other);

    // Who sees Incus closes the gate first.
    site.configure(OFTEN);
    site.start_daemon();
    guard.wait_until_leading(SOON);
    let began = monotonic();
    let words = ["release", lost, "--assert-powered-off", "--reason", "pulled the plug"];
    let released = site.insist(&words).json;
    println!("released by one that sees Incus after {:.1?}: {}", monotonic() - began, released["state"]);
    assert!(!opened(&site, other, lost), "closed before it");
    assert!(!site.site.blocklist().contains_key(&format!("{}:0/0", site.site.ip(lost))));
}

fn it_leads_only_while_no_other_is_ready(site: &Guarded, guard: &Guardian, bare: &Guardian) {
    guard.stop();
    bare.wait_until_leading(SOON);
    let status = bare.wait_for_status("to say that it holds", SOON, |status| {
        status["holds"].as_str().is_some_and(|why| why.contains("it has no [incus]"))
    });
    println!("alone: {}", status["holds"]);
    site.start_daemon();
    let started = monotonic();
    guard.wait_until_leading(SOON);
    println!("one that sees leads {:.1?} after its start", monotonic() - started);
    bare.wait_until_standby("guard");
    let yields = bare.hears("yields", |_| true);
    assert!(yields["message"].as_str().unwrap().contains("it has no [incus]"), "{yields:?}");
    site.wait_until_watching();
    // It goes on so: the one that waits is never ready.
    let until = monotonic() + Duration::from_secs(10);
    wait_for("time to go by", SOON, || {
        assert_eq!(guard.status().unwrap()["stage"], "leading", "{}", bare.log_text());
        Ok((monotonic() > until).then_some(()))
    })
    .unwrap();
}

/// Neither by a daemon that leads nor by a command where none runs.
fn nobody_is_released(site: &Guarded, both: [&Guardian; 2], lost: &str, other: &str) {
    let held = |what: &str| {
        let entries = site.site.blocklist();
        assert!(entries.contains_key(&format!("{}:0/0", site.site.ip(lost))), "{what}: {entries:?}");
        assert!(opened(site, other, lost), "{what}: the gate is as it was");
    };
    let one = wait_for("one to lead", SOON, || Ok(leader(&both))).unwrap();
    let answer = release(one, lost);
    println!("release by {}: exit {}, {} {}", one.name(), answer.exit, answer.json, answer.stderr);
    assert_ne!(answer.exit, 0);
    held("asked of a daemon");
    let status = wait_for("the alarm", SOON, || {
        let status = leader(&both).and_then(Guardian::status);
        Ok(status.filter(|status| told(status, "gate-unseen")))
    })
    .unwrap();
    println!("{}: {}", member(&status, lost)["state"], fence(&status, lost)["waits"]);

    for guardian in both {
        guardian.stop();
    }
    let answer = release(both[1], lost);
    println!("release without a daemon: exit {}, {} {}", answer.exit, answer.json, answer.stderr);
    assert_ne!(answer.exit, 0);
    held("asked of a command");
}
