//! What a guardian does about what it does not cover: members it knows no address of, storage that no seal reaches, and
//! members that may heal without asking the gate.

use std::time::Duration;

use crate::common::guarded::{Guarded, HEALED, MEMBERS, SOON, alarm, fence, member};
use lab::incus::{Container, ContainerWriter, IMAGE, POOL};
use lab::{Links, Pool, Topology, WriteLog as _, monotonic, wait_for};
use serde_json::{Value, json};

/// A storage pool whose OSD pool the operator left out.
const APART: &str = "apart";

/// The leader, and the two others.
fn roles(site: &Guarded) -> [&'static str; 3] {
    let leader = site.cluster.leader().unwrap();
    let others = || MEMBERS.into_iter().filter(|name| *name != leader);
    let leader = MEMBERS.into_iter().find(|name| *name == leader).unwrap();
    [leader, others().next().unwrap(), others().next_back().unwrap()]
}

/// Waits until a container is placed elsewhere and writes there.
#[track_caller]
fn healed(container: &Container<'_>, lost: &str) -> ContainerWriter {
    let what = format!("{} to write elsewhere", container.name());
    let found = wait_for(&what, HEALED, || {
        let owner = container.location()?;
        (owner != lost).then(|| container.wait_for_writer(&owner, Duration::ZERO)).transpose()
    });
    let writer = found.unwrap();
    writer.wait_for_acks(10, SOON).unwrap();
    writer
}

#[test]
fn inv2_who_cannot_be_fenced_is_not_healed_and_what_no_seal_covers_stays() {
    let site = Guarded::without_daemon(Topology::apart());
    let [_, lost, other] = roles(&site);
    site.configure(&format!("[ceph]\nexcept_pools = [\"{APART}\"]\n[guard]\nevery = \"1s\"\n"));
    site.lab().pool(APART, Pool::replicated(8, 2)).unwrap();
    let live = site.cluster.live().unwrap();
    let create =
        |words: &[&str]| live.incus(&[&["storage", "create", APART, "ceph"], words].concat()).unwrap();
    for name in MEMBERS {
        create(&[&format!("source={APART}"), "--target", name]);
    }
    create(&["volume.size=64MiB"]);
    let covered = site.cluster.launch("a-covered", lost).unwrap();
    let stale = covered.wait_for_writer(lost, SOON).unwrap();
    live.incus(&["launch", IMAGE, "b-apart", "--storage", APART, "--target", lost]).unwrap();
    site.cluster.container("b-apart").wait_for_writer(lost, SOON).unwrap();
    site.guardian(&["gate", "install"]).expect(0);
    let watch = site.lab().watch(POOL.1).unwrap();

    // No guardian ran while it was healthy: nobody knows its address.
    let cut = monotonic();
    site.lab().cut(lost).unwrap();
    site.cluster.wait_for_status(lost, "Offline", SOON).unwrap();
    site.start_daemon();
    let status = site.wait_for_state(lost, "refused", HEALED);
    println!("refused {:?} after the cut: {}", monotonic() - cut, alarm(&status, "refused", lost));
    let told = alarm(&status, "refused", lost)["text"].to_string();
    assert!(told.contains("not fenced") && told.contains("address"), "{told}");
    site.hears("refused", lost);
    let refused = site.guardian(&["fence", lost]).expect(4).json;
    let codes: Vec<_> = refused["refusals"].as_array().unwrap().iter().map(|one| &one["code"]).collect();
    println!("by hand: {codes:?}");
    assert!(codes.contains(&&json!("no-address")), "{refused:#}");
    assert!(site.site.blocklist().is_empty(), "nobody is fenced");
    let status = site.status().unwrap();
    assert_eq!((&status["gate"]["open"], fence(&status, lost)), (&json!([]), Value::Null), "{status:#}");
    assert_eq!(site.listed("a-covered"), lost);

    // The operator tells it, at the member.
    let addresses = format!("user.rbd-guardian.ceph-addresses={}", site.site.ip(lost));
    site.cluster.member(other).incus(&["cluster", "set", lost, &addresses]).unwrap();
    let told = monotonic();
    site.wait_for_state(lost, "sealed", HEALED);
    let seal = Guarded::instant(&site.hears("sealed", lost));
    println!("sealed {:?} after its address was told", seal.saturating_sub(told));
    let owner = healed(&covered, lost);
    println!("healed {:?} after the seal", owner.log().unwrap()[0].at.saturating_sub(seal));
    let ip = site.lab().host(owner.member()).ip();
    let first = wait_for("the new watch", SOON, || watch.first_from(&covered.image(), ip, cut)).unwrap();
    println!("margin: {:?}", first.after.saturating_sub(seal));
    assert!(first.after > seal, "sealed at {seal:?}, used {first:?}");

    // What lies on storage that was left out is not re-placed: neither by healing, nor by hand.
    let not_placed = |status: &Value| {
        let alarms = status["alarms"].as_array().cloned().unwrap_or_default();
        let texts = alarms.into_iter().filter(|alarm| alarm["code"] == "not-placed");
        texts.map(|alarm| alarm["text"].to_string()).find(|text| text.contains("b-apart"))
    };
    let status =
        site.wait_for_status("what is not placed to be told", HEALED, |status| not_placed(status).is_some());
    let told = not_placed(&status).unwrap();
    println!("{told}");
    assert!(told.contains(&format!("disk on {APART}")) && told.contains(lost), "{told}");
    site.first().hears("not-placed", |line| line["message"].as_str().unwrap().contains("b-apart"));
    let moved = site.cluster.member(other).incus(&["move", "b-apart", "--target", other]);
    let error = format!("{:#}", moved.expect_err("refused by the gate"));
    assert!(error.contains(&format!("disk on {APART}")), "{error}");
    assert_eq!(site.listed("b-apart"), lost);

    // Nobody knows for how long it was up before: only an operator can vouch for its reboot.
    site.lab().heal(lost).unwrap();
    stale.wait_for_error(cut, SOON).unwrap();
    assert_eq!(stale.taken_after(seal, 1).unwrap(), 0, "INV-1");
    site.cluster.member(lost).reboot().unwrap();
    let status = site.wait_for_status("its boot to be no proof", SOON, |status| {
        member(status, lost)["status"] == "Online" && !alarm(status, "returned-stale", lost).is_null()
    });
    let told = alarm(&status, "returned-stale", lost)["text"].to_string();
    assert!(told.contains("no uptime of it was recorded"), "{told}");
    site.insist(&["release", lost, "--assert-powered-off", "--reason", "seen to boot"]);
    site.wait_for_state(lost, "watching", SOON);
}

/// A member that was down while the gate was installed may run none, and would heal without asking once it leads.
#[test]
fn inv2_while_a_member_may_heal_without_the_gate_the_lost_are_fenced_before_healing() {
    let site = Guarded::without_daemon(Topology::apart());
    let [_, lost, ungated] = roles(&site);
    site.cluster.set(&[("cluster.healing_threshold", "0")]).unwrap();
    site.configure("[guard]\nevery = \"1s\"\n");
    let container = site.cluster.launch("c1", lost).unwrap();
    let stale = container.wait_for_writer(lost, SOON).unwrap();
    site.lab().cut_links(ungated, Links::Incus).unwrap();
    site.cluster.wait_for_status(ungated, "Offline", SOON).unwrap();
    site.guardian(&["gate", "install"]).expect(3);

    // It comes back, and the guardian cannot ask it what it runs.
    let address = site.lab().host(ungated).incus_ip().unwrap().to_string();
    let route = |verb: &str| {
        let mut ip = site.lab().host("guard").command("ip");
        assert!(ip.args(["route", verb, "blackhole", &address]).status().unwrap().success());
    };
    route("add");
    site.lab().heal_links(ungated, Links::Incus).unwrap();
    site.cluster.wait_until_online().unwrap();
    site.start_daemon();
    site.wait_until_known(lost);
    let status = site.wait_for_status("the gate to be partial", SOON, |status| {
        status["gate"]
            == json!({"state": "partial", "missing": [ungated], "open": [], "epoch": status["gate"]["epoch"]})
    });
    let mut alarms = status["alarms"].as_array().unwrap().iter();
    let told = |alarm: &Value| alarm["code"] == "gate-partial" && alarm["text"].to_string().contains(ungated);
    assert!(alarms.any(told), "{status:#}");
    leads(&site, ungated);

    site.cluster.set(&[("cluster.healing_threshold", "15")]).unwrap();
    let watch = site.lab().watch(POOL.1).unwrap();
    let cut = monotonic();
    site.lab().cut(lost).unwrap();
    let status = site.wait_for_state(lost, "sealed", SOON);
    let seal = Guarded::instant(&site.hears("sealed", lost));
    println!("sealed {:?} after the cut: {}", seal - cut, fence(&status, lost)["evidence"][0]);
    let why = fence(&status, lost)["evidence"][0].to_string();
    assert!(why.contains("no heartbeat for") && why.contains("healing is near"), "{why}");
    let owner = healed(&container, lost);
    let ip = site.lab().host(owner.member()).ip();
    let first = wait_for("the new watch", SOON, || watch.first_from(&container.image(), ip, cut)).unwrap();
    println!("margin: {:?} from the seal to the new owner", first.after.saturating_sub(seal));
    assert!(first.after > seal, "sealed at {seal:?}, used {first:?}");
    assert_eq!(stale.taken_after(seal, 1).unwrap(), 0, "INV-1");

    let reached = monotonic();
    route("del");
    site.wait_for_status("the gate in place", SOON, |status| status["gate"]["state"] == "installed");
    println!("in place {:?} after {ungated} could be reached", monotonic() - reached);
    let shown = site.guardian(&["gate", "show"]).json;
    assert_eq!(shown["members"][ungated], "runs it", "{shown:#}");
}

/// Has this member lead: whoever does instead is started anew.
fn leads(site: &Guarded, wanted: &str) {
    let began = monotonic();
    wait_for(&format!("{wanted} to lead"), 2 * HEALED, || {
        let leader = site.cluster.leader()?;
        if leader == wanted {
            return Ok(Some(()));
        }
        let member = site.cluster.member(&leader);
        member.kill_daemon()?;
        wait_for("another leader", SOON, || Ok((site.cluster.leader()? != leader).then_some(())))?;
        member.start_daemon()?;
        member.wait_for_daemon()?;
        site.cluster.wait_until_online()?;
        Ok(None)
    })
    .unwrap();
    println!("{wanted} leads after {:?}", monotonic() - began);
}
