//! INV-2 by hand: what an operator does to a healthy cluster is not noticed, and to a lost member's instances is refused
//! until it is fenced.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lab::incus::{Container, ContainerWriter, IMAGE, POOL, Watch};
use lab::{Topology, World, WriteLog as _, monotonic, wait_for};
use rbd_guardian::incus::gate::refusal::{RefusalReason, refusal};
use serde_json::{Value, json};

use crate::common::guarded::{Guarded, MEMBERS, SOON, alarm, fence, member};

/// An owner that nobody fenced is waited for longer than this before its lock is broken (docs/facts/ceph.md#the-exclusive-lock: 27 s).
const TAKEN_OVER: Duration = Duration::from_secs(15);
const EPOCH: &str = "user.rbd-guardian.epoch";

/// A member that is lost, and one that is not. Nothing heals by itself here.
struct Roles {
    lost: &'static str,
    other: &'static str,
}

#[test]
fn inv2_a_lost_members_instances_are_moved_by_hand_only_after_its_fence() {
    let site = Guarded::without_daemon(Topology::apart());
    site.cluster.set(&[("cluster.healing_threshold", "0")]).unwrap();
    site.configure("[guard]\nevery = \"1s\"\n");
    site.guardian(&["gate", "install"]).expect(0);
    site.start_daemon();
    site.wait_until_watching();
    let leader = site.cluster.leader().unwrap();
    let [lost, other] =
        MEMBERS.into_iter().filter(|name| *name != leader).collect::<Vec<_>>().try_into().unwrap();
    let roles = Roles { lost, other };

    let before = site.site.blocklist();
    witnessed(&site, || a_healthy_cluster(&site, &roles));
    assert_eq!(site.site.blocklist(), before, "nobody was fenced");

    a_lost_member(&site, &roles);
    a_member_written_from_an_old_copy(&site, &roles);
    a_key_in_the_project_is_without_effect(&site, &roles);
}

/// Runs `work` with an eye on the guardian: nobody is suspected, and no second writer seen.
fn witnessed(site: &Guarded, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    let (alarms, looks) = thread::scope(|scope| {
        let eye = scope.spawn(|| {
            let (mut alarms, mut looks) = (BTreeSet::new(), 0);
            let watched = wait_for("the end of it", SOON * 10, || {
                let status = site.status().unwrap_or_default();
                looks += u32::from(status["stage"] == "leading");
                alarms.extend(status["alarms"].as_array().into_iter().flatten().map(Value::to_string));
                let suspects = status["members"].as_array().into_iter().flatten();
                alarms.extend(suspects.filter(|m| m["state"] != "watching").map(Value::to_string));
                Ok(done.load(Ordering::Relaxed).then_some(()))
            });
            watched.unwrap();
            (alarms, looks)
        });
        // The eye has to close however the work ends.
        let _ends = Ends(&done);
        work();
        drop(_ends);
        eye.join().unwrap()
    });
    println!("looked {looks} times");
    assert!(looks > 50 && alarms.is_empty(), "{looks} looks: {alarms:#?}\n{}", site.log_text());
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// As if there was no gate.
fn a_healthy_cluster(site: &Guarded, Roles { lost, other }: &Roles) {
    let began = monotonic();
    let live = site.cluster.live().unwrap();
    let incus = |words: &[&str]| live.incus(words).unwrap();
    let bystander = site.cluster.launch("bystander", other).unwrap();
    let unmoved = bystander.wait_for_writer(other, SOON).unwrap();

    incus(&["create", IMAGE, "free"]);
    let c1 = site.cluster.launch("c1", lost).unwrap();
    incus(&["copy", "c1", "copied", "--target", other]);
    incus(&["snapshot", "create", "c1", "s1"]);
    incus(&["snapshot", "delete", "c1", "s1"]);
    incus(&["move", "free", "--target", lost]);
    assert_eq!(site.cluster.container("free").location().unwrap(), *lost);
    // A running one is stopped for it: the lab's containers cannot be migrated live.
    incus(&["stop", "c1", "--force"]);
    incus(&["move", "c1", "--target", other]);
    incus(&["start", "c1"]);
    writes_anew(&c1, other, monotonic());
    incus(&["start", "free"]);

    incus(&["cluster", "evacuate", lost, "--force"]);
    site.cluster.wait_for_status(lost, "Evacuated", SOON).unwrap();
    assert_ne!(site.cluster.container("free").location().unwrap(), *lost, "evacuated");
    incus(&["cluster", "restore", lost, "--force"]);
    site.cluster.wait_for_status(lost, "Online", SOON).unwrap();
    assert_eq!(site.cluster.container("free").location().unwrap(), *lost, "restored");
    for name in ["free", "copied"] {
        incus(&["delete", name, "--force"]);
    }

    assert_eq!(unmoved.errors().unwrap(), [], "a bystander never noticed");
    incus(&["delete", "bystander", "--force"]);
    println!("a healthy cluster: {:.1} s", (monotonic() - began).as_secs_f64());
}

/// Waits until a writer that started on this member after an instant has had ten writes acknowledged.
#[track_caller]
pub(crate) fn writes_anew(container: &Container<'_>, member: &str, after: Duration) -> ContainerWriter {
    let found = wait_for(&format!("{} to write on {member}", container.name()), SOON, || {
        let writer = container.wait_for_writer(member, Duration::ZERO)?;
        Ok((writer.acks_after(after)? >= 10).then_some(writer))
    });
    found.unwrap()
}

fn a_lost_member(site: &Guarded, roles: &Roles) {
    let Roles { lost, other } = *roles;
    let live = site.cluster.member(other);
    let container = site.cluster.container("c1");
    live.incus(&["stop", "c1", "--force"]).unwrap();
    live.incus(&["move", "c1", "--target", lost]).unwrap();
    live.incus(&["start", "c1"]).unwrap();
    let started = monotonic();
    let stale = writes_anew(&container, lost, started);
    // One whose image has an exclusive lock: its owner holds it after it was cut off.
    live.incus(&["create", IMAGE, "locked", "--target", lost]).unwrap();
    let locked = site.cluster.container("locked");
    let image = format!("{}/{}", POOL.1, locked.image());
    site.lab().rbd(&["feature", "enable", &image, "exclusive-lock"]).unwrap();
    live.incus(&["start", "locked"]).unwrap();
    writes_anew(&locked, lost, started);
    assert!(!lockers(site, &image).is_empty(), "its owner has the lock");
    site.wait_until_known(lost);

    // The guardian that is to fence begins after the loss: it goes by what the ledger remembers.
    site.stop_daemon();
    let watch = site.lab().watch(POOL.1).unwrap();
    let cut = monotonic();
    site.lab().cut(lost).unwrap();
    site.cluster.wait_for_status(lost, "Offline", SOON).unwrap();
    site.start_daemon();
    let status = site.wait_for_status("the gate and the lost member seen", SOON, |status| {
        status["gate"]["state"] == "installed" && member(status, lost)["state"] == "suspect"
    });
    println!("{lost} is {}", member(&status, lost)["health"]);

    let refused = |name: &str| {
        let error = live.incus(&["move", name, "--target", other]).expect_err("refused by the gate");
        not_sealed(&error, lost);
    };
    refused("c1");
    refused("locked");
    let status = site.status().unwrap();
    assert_eq!(fence(&status, lost), Value::Null, "it fences nothing by itself: {status:#}");

    let asked = monotonic();
    let sealed = site.insist(&["fence", lost, "--reason", "its cable was pulled"]).json;
    println!("fence: {:?}", monotonic() - asked);
    assert_eq!((&sealed["state"], &sealed["member"]), (&json!("sealed"), &json!(lost)), "{sealed:#}");
    assert_eq!(sealed["coverage"]["verdict"], "whole-host", "{sealed:#}");
    let seal = Guarded::instant(&site.hears("sealed", lost));
    let open = site.wait_for_status("the gate to be open", SOON, |status| {
        status["gate"]["open"].as_array().is_some_and(|open| open.contains(&json!(lost)))
    });
    println!("the gate was open {:?} after the seal", monotonic() - seal);
    assert_eq!(member(&open, lost)["state"], "sealed", "{open:#}");
    wait_for("the stale lock to be broken", SOON, || Ok(lockers(site, &image).is_empty().then_some(())))
        .unwrap();
    println!("its lock was gone {:?} after the seal", monotonic() - seal);

    for container in [&container, &locked] {
        live.incus(&["move", container.name(), "--target", other]).unwrap();
        let began = monotonic();
        live.incus(&["start", container.name()]).unwrap();
        let taken = writes_anew(container, other, began);
        let took = taken.log().unwrap()[0].at - began;
        println!("{} took {took:?} to write", container.name());
        assert!(took < TAKEN_OVER, "{took:?}");
    }
    let first = first_use(site, &watch, &container, other, cut);
    println!("margin: {:?} from the seal to the new owner", first.saturating_sub(seal));
    assert!(first > seal, "sealed at {seal:?}, used at {first:?}");

    // The cable is back: what was lost cannot write, and boots.
    site.lab().heal(lost).unwrap();
    stale.wait_for_error(cut, SOON).unwrap();
    assert_eq!(stale.taken_after(seal, 1).unwrap(), 0, "INV-1");
    site.wait_for_state(lost, "returned-stale", SOON);
    let old = config_of(site, other);
    assert_eq!(old[seal_key(lost)], old[EPOCH], "{old:#}");
    let rebooted = monotonic();
    site.cluster.member(lost).reboot().unwrap();
    site.wait_for_state(lost, "watching", SOON);
    println!("released {:?} after its reboot", monotonic() - rebooted);
    site.cluster.wait_until_online().unwrap();
    for name in MEMBERS {
        assert!(config_of(site, name)[seal_key(lost)].is_null(), "released, and {name} has its key");
    }

    a_stale_key_is_removed(site, roles, &old);
}

/// INV-7: a tool that keeps a member's whole configuration writes back what it read while the other was sealed.
fn a_stale_key_is_removed(site: &Guarded, Roles { lost, other }: &Roles, old: &Value) {
    let told = foreign_writes(site).len();
    let written = monotonic();
    put_config(site, other, old);
    wait_for("the stale key to be removed", SOON, || {
        let now = config_of(site, other);
        Ok((now[seal_key(lost)].is_null() && is_newer(&now, old)).then_some(()))
    })
    .unwrap();
    println!("a stale seal key stood for {:?}", monotonic() - written);
    wait_for("who wrote it in the log", SOON, || {
        let named = foreign_writes(site).split_off(told).into_iter().find(|line| {
            let text = line["message"].as_str().unwrap_or_default();
            line["member"] == *other && text.contains(lost) && text.contains("seal key")
        });
        Ok(named)
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", site.log_text()));
}

/// The same with a copy from before the gate was installed: it has none of the guardian's keys.
fn a_member_written_from_an_old_copy(site: &Guarded, Roles { lost, other }: &Roles) {
    let before = config_of(site, other);
    let ours = |key: &str| key.starts_with("user.rbd-guardian.");
    put_config(site, other, &json!({"user.of-the-site": "kept"}));
    let own = |config: &Value| {
        let keys = config.as_object().unwrap().clone();
        keys.into_iter().filter(|(key, _)| ours(key) && key != EPOCH)
    };
    let now = wait_for("the keys to be written again", SOON, || {
        let now = config_of(site, other);
        Ok(own(&now).eq(own(&before)).then_some(now))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:#}\n{}", config_of(site, other), site.log_text()));
    assert!(is_newer(&now, &before), "{now:#}");
    assert_eq!(now["user.of-the-site"], "kept");
    let status = site.status().unwrap();
    assert_eq!(member(&status, lost)["state"], "watching", "{status:#}");
    assert_eq!(alarm(&status, "second-writer", lost), Value::Null, "{status:#}");
}

/// And in the project nothing is a key of the gate but the operator's own.
fn a_key_in_the_project_is_without_effect(site: &Guarded, Roles { lost, other }: &Roles) {
    let live = site.cluster.member(other);
    live.incus(&["project", "set", "default", &format!("{}=sealed", seal_key(lost))]).unwrap();
    let stray = |status: &Value| {
        status["alarms"].as_array().into_iter().flatten().any(|alarm| alarm["code"] == "gate-stray-keys")
    };
    let status = site.wait_for_status("the key to be told", SOON, stray);
    assert_eq!(status["gate"]["open"], json!([]), "{status:#}");
    live.incus(&["project", "unset", "default", &seal_key(lost)]).unwrap();
    site.wait_for_status("no key", SOON, |status| !stray(status));
}

fn is_newer(now: &Value, before: &Value) -> bool {
    let epoch = |config: &Value| config[EPOCH].as_str().and_then(|epoch| epoch.parse::<u64>().ok());
    epoch(now) > epoch(before)
}

fn foreign_writes(site: &Guarded) -> Vec<Value> {
    let text = site.log_text();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["code"] == "gate-foreign-write").collect()
}

pub(crate) fn seal_key(member: &str) -> String {
    format!("user.rbd-guardian.seal.{member}")
}

fn config_of(site: &Guarded, member: &str) -> Value {
    let path = format!("/1.0/cluster/members/{member}");
    site.cluster.live().unwrap().query(&path).unwrap()["config"].take()
}

/// As a tool does that knows a member's configuration as a whole.
fn put_config(site: &Guarded, member: &str, config: &Value) {
    let path = format!("/1.0/cluster/members/{member}");
    let live = site.cluster.live().unwrap();
    let mut object = live.query(&path).unwrap();
    object["config"] = config.clone();
    live.request("PUT", &path, &object).unwrap();
}

/// A placement was refused because this member is not sealed. Incus 7 says so by a text of its own, and has the gate's in its log.
#[track_caller]
pub(crate) fn not_sealed(error: &anyhow::Error, member: &str) {
    let error = format!("{error:#}");
    let refusal = refusal(&error).unwrap_or_else(|| panic!("{error}"));
    assert_eq!((refusal.member.as_deref(), refusal.why), (Some(member), RefusalReason::NotSealed), "{error}");
    if World::from_env() != World::Newest {
        assert!(error.contains(&format!("member {member} is not sealed")), "{error}");
        assert!(error.contains(&format!("`rbd-guardian fence {member}`")), "{error}");
    }
}

fn lockers(site: &Guarded, image: &str) -> Vec<Value> {
    let listed = site.lab().rbd(&["lock", "ls", image, "--format", "json"]).unwrap();
    serde_json::from_str::<Value>(&listed).unwrap().as_array().unwrap().clone()
}

/// When this member's host was first seen at a container's image.
fn first_use(site: &Guarded, watch: &Watch, of: &Container<'_>, by: &str, after: Duration) -> Duration {
    let ip = site.lab().host(by).ip();
    let seen = wait_for("the new owner's watch", SOON, || watch.first_from(&of.image(), ip, after)).unwrap();
    seen.after
}
