//! INV-6: a view of Incus that is wrong, old or nobody's fences nobody, is told as what it is, and ends by itself.

use std::fs;
use std::time::{Duration, Instant};

use crate::common::guarded::{Guarded, HEALED, MEMBERS, SOON, fence, member};
use crate::false_api::{ENDPOINT, FalseApi, Mode, Pair};
use lab::{Links, Topology, WriteLog as _, monotonic, wait_for};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

/// For what Incus would heal by then, if it could: its threshold is 15 s in the lab.
const PAST_HEALING: u64 = 20;

/// The alarm of this code that is about no member.
fn alarm<'s>(status: &'s Value, code: &str) -> &'s str {
    let mut alarms = status["alarms"].as_array().into_iter().flatten();
    let found = alarms.find(|alarm| alarm["code"] == code && alarm["member"].is_null());
    found.and_then(|alarm| alarm["text"].as_str()).unwrap_or_default()
}

/// Nothing is fenced, and nothing was.
#[track_caller]
fn nothing_is_fenced(site: &Guarded, why: &str) {
    assert!(site.site.blocklist().is_empty(), "{why}: {:?}\n{}", site.site.blocklist(), site.log_text());
    for word in ["intended", "committed", "sealed"] {
        assert!(MEMBERS.iter().all(|name| site.logged(word, name).is_empty()), "{why}: {}", site.log_text());
    }
}

/// Waits until it watches again, and it is still the same process.
#[track_caller]
fn recovers(site: &Guarded, from: &str) {
    let began = Instant::now();
    let status = site.wait_until_watching();
    assert_eq!(alarm(&status, "view-lost"), "", "{status:#}");
    assert!(site.with_daemon(lab::Process::is_running), "it ended");
    println!("{from}: watching again after {:.1} s", began.elapsed().as_secs_f64());
}

/// Has the daemon read a configuration where the first lines of this start are others.
fn reconfigure(site: &Guarded, lines: &[(&str, String)]) {
    site.configure("");
    let path = site.path("guard.toml");
    let text = fs::read_to_string(&path).unwrap();
    let other = |line: &str| {
        let found = lines.iter().find(|(key, _)| line.starts_with(&format!("{key} = ")));
        found.map_or_else(|| line.to_owned(), |(key, value)| format!("{key} = {value}"))
    };
    fs::write(&path, text.lines().map(other).collect::<Vec<_>>().join("\n")).unwrap();
    reload(site);
}

fn reload(site: &Guarded) {
    let reloads = |text: &str| text.matches("\"reloaded\"").count();
    let before = reloads(&site.log_text());
    site.with_daemon(|daemon| kill(daemon.pid(), Signal::SIGHUP)).unwrap();
    wait_for("the configuration to be read again", SOON, || {
        Ok((reloads(&site.log_text()) > before).then_some(()))
    })
    .unwrap();
}

#[test]
fn inv6_a_wrong_view_fences_nobody_and_ends_by_itself() {
    let site = Guarded::start(Topology::apart());
    let c = site.cluster.launch("c1", "n1").unwrap();
    let writer = c.wait_for_writer("n1", SOON).unwrap();
    site.wait_until_known("n1");

    the_guardian_is_cut_off(&site);
    the_api_is_wrong(&site);
    the_certificate_was_replaced(&site);
    incus_has_no_quorum(&site);

    assert_eq!(writer.errors().unwrap().len(), 0);
    let now = monotonic();
    wait_for("c1 to go on", SOON, || Ok((writer.acks_after(now)? > 10).then_some(()))).unwrap();
    site.stop_daemon();
}

fn the_guardian_is_cut_off(site: &Guarded) {
    site.lab().cut_links("guard", Links::Incus).unwrap();
    let status = site.wait_for_status("the view to be lost", SOON, |status| {
        let why = alarm(status, "view-lost");
        why.contains("no answer within") || why.contains("cannot connect")
    });
    println!("cut from Incus: {}", alarm(&status, "view-lost"));
    assert_eq!((&status["stage"], &status["platform"]["fresh"]), (&json!("leading"), &json!(false)));
    assert!(MEMBERS.iter().all(|name| member(&status, name)["health"] == "unknown"), "{status:#}");
    let told = site.guardian(&["status"]).expect(0).json;
    assert_ne!(alarm(&told, "view-lost"), "", "{told:#}");
    nothing_is_fenced(site, "cut from Incus");
    site.lab().heal_links("guard", Links::Incus).unwrap();
    recovers(site, "cut from Incus");

    for links in [Links::Ceph, Links::Both] {
        site.lab().cut_links("guard", links).unwrap();
        let status = site.wait_for_status("the lead to be lost", SOON, |status| {
            status["stage"] != "leading" && status["trouble"].as_str().is_some_and(|why| why.contains("Ceph"))
        });
        println!("cut from {links:?}: {}: {}", status["stage"], status["trouble"]);
        site.lab().heal_links("guard", links).unwrap();
        recovers(site, &format!("cut from {links:?}"));
        nothing_is_fenced(site, "cut from Ceph");
    }
}

fn the_api_is_wrong(site: &Guarded) {
    let pid = site.with_daemon(|daemon| daemon.pid().as_raw());
    let api = FalseApi::start(pid, site.cluster.member("n1").socket());
    let endpoints = ("endpoints", format!("[{ENDPOINT:?}]"));
    reconfigure(site, std::slice::from_ref(&endpoints));
    recovers(site, "another endpoint");

    let wrong = [
        (Mode::Garbage, "the answer is not understood"),
        (Mode::Failing, "answered 500: database is locked"),
        (Mode::Empty, "the answer is not understood"),
        (Mode::Hanging, "no answer within 5s"),
    ];
    for (mode, words) in wrong {
        api.turn(mode);
        let status = site.wait_for_status("the view to be lost", SOON, |status| {
            status["platform"]["fresh"] == false && alarm(status, "view-lost").contains(words)
        });
        println!("{mode:?}: {}", alarm(&status, "view-lost"));
        assert!(MEMBERS.iter().all(|name| member(&status, name)["state"] == "watching"), "{status:#}");
        nothing_is_fenced(site, &format!("{mode:?}"));
        api.turn(Mode::Through);
        recovers(site, &format!("{mode:?}"));
    }

    // What it is known by has expired: no name, no key, its time alone.
    let pinned = site.path("expired.crt");
    fs::write(&pinned, &api.expired.certificate).unwrap();
    api.turn(Mode::Expired);
    reconfigure(site, &[endpoints, ("cluster_certificate", format!("{pinned:?}"))]);
    let status = site.wait_for_status("the certificate to be told", SOON, |status| {
        alarm(status, "view-lost").contains("the cluster certificate has expired")
    });
    println!("Expired: {}", alarm(&status, "view-lost"));
    nothing_is_fenced(site, "expired");
    reconfigure(site, &[]);
    recovers(site, "expired");
}

fn the_certificate_was_replaced(site: &Guarded) {
    let new = Pair::valid_until(2999);
    let [certificate, key] = ["new.crt", "new.key"].map(|name| site.path(name));
    fs::write(&certificate, &new.certificate).unwrap();
    fs::write(&key, &new.key).unwrap();
    let [certificate, key] = [certificate, key].map(|path| path.display().to_string());
    let words = ["cluster", "update-certificate", &certificate, &key];
    site.cluster.live().unwrap().incus(&words).unwrap();
    let status = site.wait_for_status("another certificate to be told", SOON, |status| {
        alarm(status, "view-lost").contains("presents the certificate")
    });
    let told = alarm(&status, "view-lost");
    println!("replaced: {told}");
    assert!(told.contains("enroll again with --force"), "{told}");
    nothing_is_fenced(site, "replaced");

    // As it says.
    let token = site.cluster.trust("rbd-guardian-again").unwrap();
    site.guardian(&["incus", "enroll", "--force", &token]).expect(0);
    reload(site);
    recovers(site, "replaced");
}

fn incus_has_no_quorum(site: &Guarded) {
    for name in ["n2", "n3"] {
        site.cluster.member(name).kill_daemon().unwrap();
    }
    let status = site.wait_for_status("healing to be overdue", 2 * SOON, |status| {
        status["platform"]["age_s"].as_u64().is_some_and(|age| age > PAST_HEALING)
    });
    println!("no quorum: {}", alarm(&status, "view-lost"));
    assert_ne!(alarm(&status, "view-lost"), "", "{status:#}");
    assert!(MEMBERS.iter().all(|name| member(&status, name)["health"] == "unknown"), "{status:#}");
    nothing_is_fenced(site, "no quorum");
    for name in ["n2", "n3"] {
        site.cluster.member(name).start_daemon().unwrap();
    }
    for name in ["n2", "n3"] {
        site.cluster.member(name).wait_for_daemon().unwrap();
    }
    // Their heartbeats are old until the next ones are written: members look lost, and are not.
    site.cluster.wait_until_online().unwrap();
    recovers(site, "no quorum");
    nothing_is_fenced(site, "after no quorum");
}

#[test]
fn inv6_two_members_of_three_are_lost_at_once() {
    let site = Guarded::start(Topology::apart());
    let c = site.cluster.launch("c1", "n2").unwrap();
    let old = c.wait_for_writer("n2", SOON).unwrap();
    site.wait_until_known("n2");
    let watch = site.lab().watch(lab::incus::POOL.1).unwrap();

    // Incus has no quorum on either side: it heals nothing, and nothing is fenced.
    let cut = monotonic();
    for name in ["n2", "n3"] {
        site.lab().cut_links(name, Links::Incus).unwrap();
    }
    let status = site.wait_for_status("healing to be overdue", 2 * SOON, |status| {
        status["platform"]["age_s"].as_u64().is_some_and(|age| age > PAST_HEALING)
    });
    println!("two of three: {}", alarm(&status, "view-lost"));
    assert_ne!(alarm(&status, "view-lost"), "", "{status:#}");
    nothing_is_fenced(&site, "two of three");

    // One comes back while the guardian sees nothing: Incus may heal the other, the gate refuses, nobody is fenced.
    site.lab().cut_links("guard", Links::Incus).unwrap();
    site.lab().heal_links("n3", Links::Incus).unwrap();
    let refusals = || {
        let logs = ["n1", "n3"].map(|name| site.path(&format!("log/incusd-{name}.out")));
        logs.map(|log| fs::read_to_string(log).unwrap().matches("member n2 is not sealed").count())
    };
    wait_for("the gate to refuse", HEALED, || Ok((refusals() != [0, 0]).then_some(()))).unwrap();
    println!("refused {:.0} s after the cut", (monotonic() - cut).as_secs_f64());
    nothing_is_fenced(&site, "a guardian that sees nothing");
    assert!(c.writers().unwrap().iter().all(|writer| writer.member() == "n2"));

    // It sees again: the one that is still lost is sealed, and its instance runs elsewhere.
    site.lab().heal_links("guard", Links::Incus).unwrap();
    let status = site.wait_for_state("n2", "sealed", HEALED);
    println!("sealed {:.0} s after the cut", (monotonic() - cut).as_secs_f64());
    assert!(fence(&status, "n3").is_null(), "{status:#}");
    let owner = wait_for("another location", HEALED, || {
        let at = c.location()?;
        Ok((at != "n2").then_some(at))
    })
    .unwrap();
    let new = c.wait_for_writer(&owner, SOON).unwrap();
    new.wait_for_acks(10, SOON).unwrap();
    let ip = site.lab().host(&owner).ip();
    let first = watch.first_from(&c.image(), ip, cut).unwrap().unwrap();
    let sealed = Guarded::instant(&site.hears("sealed", "n2"));
    println!("first new watcher {:?} after the seal", first.after.saturating_sub(sealed));
    assert!(sealed < first.by, "INV-2: sealed at {sealed:?}, watched at {first:?}");
    assert_eq!(old.acks_after(sealed + Duration::from_secs(5)).unwrap(), 0, "the old one writes on");
    assert!(site.site.blocklist().keys().all(|entry| entry.starts_with(&site.site.ip("n2"))));
}
