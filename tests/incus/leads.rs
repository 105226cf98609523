//! Several guardians on real Incus and real Ceph: who leads when one sees no Incus, when nobody does, and when the
//! leader is lost together with the member.

use std::time::Duration;

use crate::common::dice::number_from_env;
use crate::common::guarded::{Guarded, HEALED, MEMBERS, SOON, fence, member};
use crate::common::guardian::{Guardian, leader, leads};
use crate::story::{Monitor, restored, sealed_at, usable};
use lab::{Links, Topology, monotonic, wait_for};
use serde_json::{Value, json};

/// From the first refused attempt to heal to the seal (issue C).
const BOUND: Duration = Duration::from_secs(15);

/// Waits until a member is sealed by whoever leads; who that is, and its status.
#[track_caller]
fn sealed<'g>(guardians: &[&'g Guardian], lost: &str) -> (&'g Guardian, Value) {
    let found = wait_for(&format!("{lost} to be sealed"), HEALED, || {
        let Some(leader) = leader(guardians) else { return Ok(None) };
        let status = leader.status().unwrap_or_default();
        Ok((member(&status, lost)["state"] == "sealed").then_some((leader, status)))
    });
    found.unwrap_or_else(|error| panic!("{error:#}: {}", logs(guardians)))
}

fn logs(guardians: &[&Guardian]) -> String {
    guardians.iter().map(|guardian| format!("{}:\n{}\n", guardian.name(), guardian.log_text())).collect()
}

/// From the first refused attempt to heal to the seal; none where the seal came first.
fn refused_to_sealed(monitor: &Monitor, after: Duration, status: &Value, lost: &str) -> Duration {
    let sealed = sealed_at(&fence(status, lost));
    let refused = monitor.said(after, |line| line.to_string().contains("is not sealed"));
    refused.into_iter().min().map_or(Duration::ZERO, |refused| sealed.saturating_sub(refused))
}

#[test]
fn inv3_who_sees_incus_leads_and_when_nobody_does_one_holds() {
    let site = Guarded::start(Topology::apart().linked("spare", &[]));
    let (guard, spare) = (site.first(), site.another("spare", "spare"));
    let both = [guard, &spare];
    spare.start();
    spare.wait_until_standby("guard");
    let container = site.cluster.launch("c1", "n1").unwrap();
    container.wait_for_writer("n1", SOON).unwrap();
    site.wait_until_known("n1");

    the_leader_loses_its_link_with_the_member(&site, both);
    nobody_sees_incus(&site, both);
    who_sees_first_leads(&site, both);
}

/// Its link to Ceph stays.
fn the_leader_loses_its_link_with_the_member(site: &Guarded, [guard, spare]: [&Guardian; 2]) {
    let monitor = Monitor::start(site, "n2");
    let before = monotonic();
    site.lab().cut_links("guard", Links::Incus).unwrap();
    site.lab().cut_links("n1", Links::Both).unwrap();
    spare.wait_until_leading(SOON);
    println!("the one that sees leads {:.1?} after the leader's link was cut", monotonic() - before);
    let standby = guard.wait_until_standby("spare");
    assert!(
        guard.hears("yields", |_| true)["message"].as_str().unwrap().contains("it sees no Incus"),
        "{standby:#}"
    );
    let (leads, status) = sealed(&[guard, spare], "n1");
    assert_eq!(leads.name(), "spare");
    let took = refused_to_sealed(&monitor, before, &status, "n1");
    println!("sealed {took:.2?} after the first heal was refused");
    assert!(took < BOUND, "{}", spare.log_text());
    site.lab().heal_links("guard", Links::Incus).unwrap();
}

/// Every incusd is gone: what is fenced is held, an operator fences more, and one leads all the time.
fn nobody_sees_incus(site: &Guarded, both: [&Guardian; 2]) {
    let before = leads(&both);
    for name in MEMBERS {
        site.cluster.member(name).kill_daemon().unwrap();
    }
    let holds = wait_for("one to lead to hold", SOON, || {
        let Some(leader) = leader(&both) else { return Ok(None) };
        let holds = leader.status().unwrap_or_default()["holds"].clone();
        Ok(holds.as_str().is_some_and(|why| why.contains("sees no Incus")).then_some(leader))
    });
    let holds = holds.unwrap_or_else(|error| panic!("{error:#}: {}", logs(&both)));

    let entry = format!("{}:0/0", site.site.ip("n1"));
    for round in 1..=3 {
        let breached = holds.logged("breached").len();
        site.lab().ceph(&["osd", "blocklist", "rm", &entry]).unwrap();
        let removed = monotonic();
        holds.wait_for_status("the breach to be seen, and to be sealed again", SOON, |status| {
            holds.logged("breached").len() > breached && member(status, "n1")["state"] == "sealed"
        });
        assert!(site.site.blocklist().contains_key(&entry));
        println!(
            "blind, round {round}: sealed again {:.1?} after the entry was removed",
            monotonic() - removed
        );
    }
    let other = site.lab().spare_address(9).to_string();
    let words = ["fence", "--address", &other, "--unknown-address", "--reason", "an operator knows more"];
    let told = holds.insist(&words).json;
    assert_eq!(told["state"], "sealed", "{told:#}");
    // Past the time after which a lead that is lost would have been taken, several times over; `GUARDIAN_BLIND` seconds.
    let blind = Duration::from_secs(number_from_env("GUARDIAN_BLIND", 20));
    let until = monotonic() + blind;
    wait_for("time to go by with one that leads", blind + SOON, || {
        assert!(leader(&both).is_some(), "nobody leads: {}", logs(&both));
        Ok((monotonic() > until).then_some(()))
    })
    .unwrap();
    let changes = leads(&both) - before;
    println!("blind for {blind:?} more: the lead changed {changes} times");
    // And what is held is held to the end.
    site.lab().ceph(&["osd", "blocklist", "rm", &entry]).unwrap();
    let removed = monotonic();
    wait_for("the entry to be back", SOON, || Ok(site.site.blocklist().contains_key(&entry).then_some(())))
        .unwrap_or_else(|error| panic!("{error:#}: {}", logs(&both)));
    println!("blind: put back {:.1?} after it was removed", monotonic() - removed);
    assert!(changes <= 1, "{}", logs(&both));
    assert!(fence(&holds.status().unwrap(), "n2").is_null());
}

/// The leader stays blind, and the other one sees.
fn who_sees_first_leads(site: &Guarded, both: [&Guardian; 2]) {
    let holds = leader(&both).unwrap();
    let other = both.into_iter().find(|guardian| guardian.name() != holds.name()).unwrap();
    site.lab().cut_links(holds.host().name(), Links::Incus).unwrap();
    for name in ["n2", "n3"] {
        site.cluster.member(name).start_daemon().unwrap();
    }
    for name in ["n2", "n3"] {
        site.cluster.member(name).wait_for_daemon().unwrap();
    }
    let sees = monotonic();
    other.wait_until_leading(SOON);
    println!("the one that sees leads {:.1?} after Incus was through with its start", monotonic() - sees);
    let status = other.wait_for_status("a fresh reading, and n1 held", SOON, |status| {
        status["platform"]["fresh"] == true && member(status, "n1")["state"] == "sealed"
    });
    assert_eq!(status["holds"], Value::Null, "{status:#}");
    let standby = holds.wait_until_standby(other.name());
    assert_eq!(standby["leader"]["host"], json!(status["host"]), "{standby:#}");
}

/// One on each member, which is the storage as well. Who is lost is the member whose monitor leads and whose guardian
/// does.
#[test]
fn inv2_the_leaders_own_host_is_lost_with_its_member_and_the_leading_monitor() {
    let site = Guarded::without_daemon(Topology::hyperconverged());
    let guardians = [("g1", "n1"), ("g2", "n2"), ("g3", "n3")].map(|(name, host)| site.another(name, host));
    site.guardian(&["gate", "install"]).expect(0);
    for guardian in &guardians {
        guardian.start();
    }
    let all = guardians.each_ref();
    let rounds = usize::try_from(number_from_env("GUARDIAN_ROUNDS", 1)).unwrap();
    let mut took: Vec<Duration> = (1..=rounds).map(|number| lost_with_all(&site, all, number)).collect();
    took.sort();
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    println!("first refused heal → sealed by another guardian: median {median:.2?}, worst {worst:.2?}");
}

fn lost_with_all(site: &Guarded, all: [&Guardian; 3], number: usize) -> Duration {
    site.cluster.wait_until_online().unwrap();
    let mon = site.lab().mon_leader().unwrap();
    let at = ["a", "b", "c"].iter().position(|id| mon.ends_with(id)).unwrap();
    let (lost, own) = (MEMBERS[at], all[at]);
    let others: Vec<&Guardian> = all.into_iter().filter(|one| one.name() != own.name()).collect();
    // The others bid only when it leads.
    for guardian in &others {
        guardian.stop();
    }
    own.wait_until_leading(SOON);
    for guardian in &others {
        guardian.start();
        guardian.wait_until_standby(own.name());
    }
    let container = site.cluster.launch(&format!("c{number}"), lost).unwrap();
    container.wait_for_writer(lost, SOON).unwrap();
    let ip = site.site.ip(lost);
    own.wait_for_status("all to be watched, and the member's address", SOON, |status| {
        let addresses = member(status, lost)["addresses"].clone();
        let mut addresses = addresses.as_array().into_iter().flatten();
        status["gate"]["state"] == "installed" && addresses.any(|address| address["address"] == *ip)
    });

    let live = MEMBERS.into_iter().find(|name| *name != lost).unwrap();
    let monitor = Monitor::start(site, live);
    let before = monotonic();
    site.lab().cut_links(lost, Links::Both).unwrap();
    let (leads, status) = sealed(&others, lost);
    let took = refused_to_sealed(&monitor, before, &status, lost);
    println!(
        "{number}: {lost} is lost with {} and {mon}; {} seals it {:.1?} after the cut, {took:.2?} after the first refused heal",
        own.name(),
        leads.name(),
        monotonic() - before
    );
    assert!(took < BOUND, "{}", logs(&all));
    let entry = format!("{ip}:0/0");
    assert!(site.site.blocklist().contains_key(&entry));
    let entries = site.site.blocklist();
    for guardian in &others {
        let own = format!("{}:", guardian.host().ip());
        assert!(entries.keys().all(|entry| !entry.starts_with(&own)), "INV-6: {entries:?}");
    }
    wait_for("it to run elsewhere", HEALED, || Ok((container.location()? != lost).then_some(()))).unwrap();

    // Back, rebooted and released, its guardian is one of three again, over a new connection.
    site.lab().heal_links(lost, Links::Both).unwrap();
    site.cluster.member(lost).reboot().unwrap();
    // Whoever leads does that: while the monitor and the OSD of the host come back, a lease may run out.
    let released = wait_for("its release, and its guardian to be one of three", HEALED, || {
        let Some(leader) = leader(&all) else { return Ok(None) };
        let watching = member(&leader.status().unwrap_or_default(), lost)["state"] == "watching";
        let waits = |status: Value| status["leader"]["guardian"] == leader.name();
        let back = own.name() == leader.name() || own.status().is_some_and(waits);
        Ok((watching && back).then_some(()))
    });
    released.unwrap_or_else(|error| panic!("{error:#}: {}", logs(&all)));
    // Incus counts it as evacuated until its instances are back.
    usable(site, live, lost, true);
    restored(site, live, lost).unwrap();
    site.cluster.member(live).incus(&["delete", "--force", &format!("c{number}")]).unwrap();
    took
}
