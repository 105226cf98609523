//! Guardians that die, stand still or cannot record in the middle of a write of the gate, on real Incus: one container, lost
//! with its member again and again.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use crate::common::dice::Dice;
use crate::common::guarded::{Guarded, MEMBERS, SOON, member};
use crate::common::guardian::{Guardian, leader};
use crate::gate_eye::{Sample, nobody_unsealed_was_open, watched};
use crate::manual::{not_sealed, seal_key, writes_anew};
use crate::story::usable;
use jiff::Timestamp;
use lab::incus::{Container, ContainerWriter};
use lab::{Topology, WriteLog as _, monotonic, wait_for};
use serde_json::{Value, json};

/// Where a leader ends. `MEMBER` stands for the one that takes the instance: between the reading of its keys and their write,
/// with the other members written, or not.
const STEPS: [&str; 6] = [
    "before:record-gate",
    "after:record-gate",
    "before:gate",
    "before:gate-write-MEMBER",
    "before:gate-write-LOST",
    "after:gate",
];

const A_WHILE: Duration = Duration::from_secs(3);

/// Who goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Successor {
    Another,
    Itself,
}

type Kill = (&'static str, Successor);

/// A cluster with two guardians and a container, which is on `lost`, about to be lost, and is to run on `taker` then.
struct Scene<'s> {
    site: &'s Guarded,
    both: [&'s Guardian; 2],
    container: Container<'s>,
    lost: &'static str,
    taker: &'static str,
}

/// One loss: from a healthy cluster to a healthy cluster.
impl<'s> Scene<'s> {
    /// Whoever leads Incus is neither, so that one always does.
    fn new(site: &'s Guarded, both: [&'s Guardian; 2]) -> Self {
        site.cluster.wait_until_online().unwrap();
        let container = site.cluster.container("c1");
        let location = container.location().unwrap();
        let spared = site.cluster.leader().unwrap();
        let lost = MEMBERS.into_iter().find(|name| *name == location).unwrap();
        let taker = MEMBERS.into_iter().find(|name| *name != lost && *name != spared).unwrap();
        Self { site, both, container, lost, taker }
    }

    /// Whoever leads, on a fresh reading like this.
    fn leads(&self, what: &str, is: impl Fn(&Value) -> bool) -> &'s Guardian {
        let found = wait_for(what, SOON * 2, || {
            let Some(leader) = leader(&self.both) else { return Ok(None) };
            let status = leader.status().unwrap_or_default();
            Ok((status["platform"]["fresh"] == true && is(&status)).then_some(leader))
        });
        found.unwrap_or_else(|error| panic!("{error:#}: {}", self.logs()))
    }

    fn other(&self, than: &Guardian) -> &'s Guardian {
        self.both.into_iter().find(|guardian| guardian.name() != than.name()).unwrap()
    }

    fn logs(&self) -> String {
        let log = |guardian: &&Guardian| format!("{}:\n{}\n", guardian.name(), guardian.log_text());
        self.both.iter().map(log).collect()
    }

    fn step(&self, step: &str) -> String {
        step.replace("MEMBER", self.taker).replace("LOST", self.lost)
    }

    /// A member's configuration, by one that is not lost.
    fn config(&self, of: &str) -> Value {
        let path = format!("/1.0/cluster/members/{of}");
        self.site.cluster.member(self.taker).query(&path).unwrap()["config"].take()
    }

    /// As a tool writes it that keeps a member's configuration as a whole.
    fn put_back(&self, of: &str, config: &Value) {
        let (path, asked) = (format!("/1.0/cluster/members/{of}"), self.site.cluster.member(self.taker));
        let mut object = asked.query(&path).unwrap();
        object["config"] = config.clone();
        asked.request("PUT", &path, &object).unwrap();
    }

    fn entry(&self) -> String {
        format!("{}:0/0", self.site.site.ip(self.lost))
    }

    /// The member is cut off, and the leader waits for somebody to say more.
    fn is_lost(&self) -> &'s Guardian {
        let (lost, ip) = (self.lost, self.site.site.ip(self.lost));
        // It may have been the last one that was lost.
        usable(self.site, self.taker, self.taker, true);
        self.leads("all to be watched, and the member's address", |status| {
            let addresses = member(status, lost)["addresses"].clone();
            let known = addresses.as_array().into_iter().flatten().any(|address| address["address"] == *ip);
            status["gate"]["state"] == "installed" && member(status, lost)["state"] == "watching" && known
        });
        self.site.lab().cut(lost).unwrap();
        self.leads("the member to be lost", |status| member(status, lost)["status"] == "Offline")
    }

    /// An operator fences it; the leader halts there.
    fn fence_until(&self, leader: &Guardian, step: &str) {
        leader.halt_at(&self.step(step));
        let mut verb = leader.command(&["fence", self.lost]);
        let mut verb = verb.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        leader.wait_until_halted();
        // Nobody waits for the answer.
        verb.kill().unwrap();
        verb.wait().unwrap();
    }

    /// The leader is killed, and somebody goes on.
    fn killed(&self, leader: &'s Guardian, successor: Successor) -> &'s Guardian {
        let other = self.other(leader);
        match successor {
            Successor::Another => {
                leader.kill();
                other.wait_until_leading(SOON);
                leader.start();
                other
            }
            Successor::Itself => {
                other.stop();
                leader.kill();
                leader.start();
                leader.wait_until_leading(SOON);
                other.start();
                leader
            }
        }
    }

    fn is_open(&self, status: &Value) -> bool {
        status["gate"]["open"] == json!([self.lost]) && member(status, self.lost)["state"] == "sealed"
    }

    fn waits_until_open(&self, leader: &Guardian) {
        leader.wait_for_status("the gate to be open", SOON * 2, |status| self.is_open(status));
    }

    /// The instance runs at the taker, and nowhere else.
    fn is_taken(&self, stale: &ContainerWriter) {
        let live = self.site.cluster.member(self.taker);
        live.incus(&["move", self.container.name(), "--target", self.taker]).unwrap();
        let began = monotonic();
        live.incus(&["start", self.container.name()]).unwrap();
        writes_anew(&self.container, self.taker, began);
        assert_eq!(stale.taken_after(began, 1).unwrap(), 0, "two writers");
    }

    /// Its cable is back, and it boots: that is its release, at a step of which the leader halts.
    fn returns_until(&self, leader: &Guardian, step: &str) {
        leader.halt_at(&self.step(step));
        self.returns();
        leader.wait_until_halted();
    }

    /// Uptimes are told in seconds: a boot in the very second in which it was sealed again would be no proof.
    fn returns(&self) {
        let sealed = self.both.iter().flat_map(|guardian| guardian.logged("sealed"));
        let sealed = sealed.map(|line| Guarded::instant(&line)).max().unwrap();
        wait_for("seconds after the seal", SOON, || Ok((monotonic() > sealed + A_WHILE).then_some(())))
            .unwrap();
        self.site.lab().heal(self.lost).unwrap();
        self.site.cluster.member(self.lost).reboot().unwrap();
    }

    /// Whoever leads then: who has not seen Incus for seconds yields.
    fn is_released(&self) {
        self.leads("the release", |status| {
            member(status, self.lost)["state"] == "watching" && status["gate"]["open"] == json!([])
        });
        assert!(!self.site.site.blocklist().contains_key(&self.entry()), "{}", self.logs());
        for name in MEMBERS {
            assert!(self.config(name)[seal_key(self.lost)].is_null(), "{name} has its key");
        }
    }

    fn stale(&self) -> ContainerWriter {
        self.container.wait_for_writer(self.lost, SOON).unwrap()
    }

    /// What was seen meanwhile.
    fn judge(&self, what: &str, from: u64, samples: &[Sample]) {
        let open = nobody_unsealed_was_open(self.site, self.lost, from, samples);
        println!(
            "{what}: {} looks at the members' keys, {open} of them open, each while it was refused",
            samples.len()
        );
        assert!(samples.len() > 20, "{}", self.logs());
    }
}

/// The leader ends at a step of the opening, and the next one at a step of the closing. Between the two somebody removes
/// entries.
fn killed_at(scene: &Scene<'_>, opening: Kill, closing: Kill) {
    let from = scene.site.site.epoch();
    let stale = scene.stale();
    let (next, samples) = watched(scene.site, || {
        let leader = scene.is_lost();
        scene.fence_until(leader, opening.0);
        let next = scene.killed(leader, opening.1);
        scene.waits_until_open(next);
        next
    });
    scene.judge(&format!("killed {opening:?} of the opening"), from, &samples);
    for words in [&["rm", &scene.entry()], ["clear"].as_slice()] {
        breached(scene, next, words);
    }
    let from = scene.site.site.epoch();
    let ((), samples) = watched(scene.site, || {
        scene.is_taken(&stale);
        scene.returns_until(next, closing.0);
        scene.killed(next, closing.1);
        scene.is_released();
    });
    scene.judge(&format!("killed {closing:?} of the closing"), from, &samples);
}

/// Somebody removes entries while the gate is open: they are put back and it is closed at the same time, and it is opened
/// when both are done and the fence is sealed again.
fn breached(scene: &Scene<'_>, leader: &Guardian, words: &[&str]) {
    let at = |line: &Value| line["timestamp"].as_str().unwrap().parse::<Timestamp>().unwrap();
    let from = scene.site.site.epoch();
    let ((), samples) = watched(scene.site, || {
        let before = leader.logged("breached").len();
        scene.site.lab().ceph(&[&["osd", "blocklist"], words].concat()).unwrap();
        leader.wait_for_status("the breach, and the gate to be open again", SOON, |status| {
            leader.logged("breached").len() > before && scene.is_open(status)
        });
    });
    let history = scene.site.site.history(from);
    let stands = |number: usize| history[number].entries.contains_key(&scene.entry());
    let gone = (0..history.len()).find(|number| !stands(*number)).unwrap();
    let back = (gone..history.len()).find(|number| stands(*number)).unwrap();
    let [gone, back] = [gone, back].map(|number| history[number].modified);
    let breached = at(leader.logged("breached").last().unwrap());
    let next = |code: &str| at(&leader.hears(code, |line| at(line) >= breached));
    let [closed, sealed, opened] = ["gate-closed", "sealed", "gate-open"].map(next);
    let sent = at(leader.steps("fence-add").iter().find(|line| at(line) > breached).unwrap());
    assert!(
        breached <= sent && breached <= closed && sent.max(closed) < sealed && sealed <= opened,
        "{}",
        leader.log_text()
    );
    // As others see it.
    let after = || samples.iter().filter(|sample| sample.from >= gone);
    let seen = after().find(|sample| !sample.opens(scene.lost)).unwrap();
    assert!(seen.from < sealed, "never seen to be closed before it was sealed again: {seen:?}");
    let early =
        after().find(|sample| sample.opens(scene.lost) && sample.from > seen.from && sample.to <= sealed);
    assert!(early.is_none(), "open again, and not sealed yet: {early:?}");
    let again = after().find(|sample| sample.from > seen.from && sample.opens(scene.lost)).unwrap();
    assert!(again.to > sealed);
    let since = |time: Timestamp| (time.duration_since(gone).as_millis_f64() / 1000.0).max(0.0);
    println!(
        "blocklist {words:?}: breached after {:.2} s, to be closed {:.2}, seen closed {:.2}, put back {:.2}, sealed {:.2}, \
         seen open {:.2}",
        since(breached),
        since(closed),
        since(seen.to),
        since(back),
        since(sealed),
        since(again.to)
    );
}

/// The ledger falls silent when the gate is about to be opened.
fn unrecorded(scene: &Scene<'_>) {
    let site = scene.site;
    let from = site.site.epoch();
    let stale = scene.stale();
    let ((), samples) = watched(site, || {
        let leader = scene.is_lost();
        scene.fence_until(leader, "before:record-gate");
        let map = site.lab().ceph(&["osd", "map", "rbd-guardian", "ledger"]).unwrap();
        let osds: Vec<String> =
            map["acting"].as_array().unwrap().iter().map(|osd| format!("osd.{osd}")).collect();
        osds.iter().for_each(|osd| site.lab().daemon(osd).stop().unwrap());
        leader.with_daemon(|daemon| daemon.cont()).unwrap();
        let status =
            leader.wait_for_status("cannot record", SOON, |status| status["cannot_record"].is_string());
        println!("the ledger is silent: {}", status["cannot_record"]);
        for name in MEMBERS {
            assert!(
                scene.config(name)[seal_key(scene.lost)].is_null(),
                "{name} has a key that is not recorded"
            );
        }
        osds.iter().for_each(|osd| site.lab().daemon(osd).cont().unwrap());
        let leader = scene.leads("the gate to be open", |status| scene.is_open(status));
        println!("and back: {} goes on by itself", leader.name());
        scene.is_taken(&stale);
        scene.returns();
        scene.is_released();
    });
    scene.judge("the ledger was silent", from, &samples);
}

/// The opening comes when nobody believes in it any more: the taker's keys are what they were when they were read, and by
/// the ledger the member's fence is lifted. Then the closing comes, to other keys than it was to replace.
fn late(scene: &Scene<'_>) {
    let Scene { site, lost, taker, .. } = *scene;
    let first = scene.is_lost();
    let stale = scene.stale();
    let before = scene.config(taker);
    scene.fence_until(first, "before:gate-write-MEMBER");
    let halted = monotonic();
    let second = scene.other(first);
    second.wait_until_leading(SOON);
    scene.waits_until_open(second);

    // The second puts the entry back and closes the gate, and is stopped before the ledger says that it is sealed again.
    second.halt_at("before:record-sealed");
    site.lab().ceph(&["osd", "blocklist", "rm", &scene.entry()]).unwrap();
    second.wait_until_halted();
    let closed = scene.config(taker);
    assert!(closed[seal_key(lost)].is_null() && site.site.blocklist().contains_key(&scene.entry()));
    scene.put_back(taker, &before);
    first.with_daemon(|daemon| daemon.cont()).unwrap();
    let written = wait_for("the late write", SOON, || {
        let now = scene.config(taker);
        Ok((now != before).then_some(now))
    });
    // It is to do nothing about it yet.
    first.with_daemon(|daemon| daemon.stop()).unwrap();
    let written = written.unwrap_or_else(|error| panic!("{error:#}: {}", scene.logs()));
    println!("late by {:.1?}, to contents that are as they were: {written}", monotonic() - halted);
    assert!(!written[seal_key(lost)].is_null(), "{written:#}");
    let moved = site.cluster.member(taker).incus(&["move", "c1", "--target", taker]);
    not_sealed(&moved.expect_err("opened by a late write"), lost);
    for guardian in [first, second] {
        guardian.with_daemon(|daemon| daemon.cont()).unwrap();
    }
    let leader = scene.leads("the gate to be open by a write of its own", |status| {
        scene.is_open(status) && scene.config(taker) != written
    });
    scene.other(leader).wait_until_standby(leader.name());
    scene.is_taken(&stale);

    scene.returns_until(leader, "before:gate-write-MEMBER");
    let halted = monotonic();
    let next = scene.other(leader);
    next.wait_until_leading(SOON);
    scene.is_released();
    let after = MEMBERS.map(|name| scene.config(name));
    leader.with_daemon(|daemon| daemon.cont()).unwrap();
    let why = leader.hears("gate-not-written", |line| line["member"] == taker);
    println!("late by {:.1?}, to contents of a successor: {}", monotonic() - halted, why["message"]);
    leader.wait_until_standby(next.name());
    assert_eq!(after, MEMBERS.map(|name| scene.config(name)), "a deposed leader wrote");
}

/// Every step with `GUARDIAN_STEPS=all`, else one of the opening and one of the closing, drawn from `GUARDIAN_SEED`.
fn kills() -> Vec<(Kill, Kill)> {
    let mut dice = Dice::from_env();
    let all = |successor| STEPS.map(|step| (step, successor));
    let all = [all(Successor::Another), all(Successor::Itself)].concat();
    if std::env::var("GUARDIAN_STEPS").as_deref() == Ok("all") {
        let closing = all.iter().rev().copied();
        return all.iter().copied().zip(closing).collect();
    }
    let mut one = || all[usize::try_from(dice.below(all.len() as u64)).unwrap()];
    vec![(one(), one())]
}

#[test]
fn inv2_inv7_a_gate_write_that_is_cut_off_or_late_opens_nothing_that_is_not_sealed() {
    let site = Guarded::without_daemon(Topology::apart().linked("spare", &[]));
    // Nothing heals by itself here.
    site.cluster.set(&[("cluster.healing_threshold", "0")]).unwrap();
    site.guardian(&["gate", "install"]).expect(0);
    let spare = site.another("spare", "spare");
    let both = [site.first(), &spare];
    both[0].start();
    both[0].wait_until_leading(SOON);
    both[1].start();
    let spared = site.cluster.leader().unwrap();
    let lost = MEMBERS.into_iter().find(|name| *name != spared).unwrap();
    site.cluster.launch("c1", lost).unwrap();
    let next = || Scene::new(&site, both);
    late(&next());
    unrecorded(&next());
    for (opening, closing) in kills() {
        killed_at(&next(), opening, closing);
    }
    nothing_is_lost(&site);
}

/// Every writer's last acknowledged block is on the disk, which is not damaged.
fn nothing_is_lost(site: &Guarded) {
    let container = site.cluster.container("c1");
    site.cluster.live().unwrap().incus(&["stop", "c1", "--force"]).unwrap();
    let disk = site.lab().disk(&container).unwrap();
    assert!(disk.status == 0 && disk.torn.is_empty(), "{disk:?}");
    let mut lives = BTreeMap::new();
    for writer in container.writers().unwrap() {
        let acked = writer.acked_numbers().unwrap();
        assert!(disk.blocks[&writer.id()].contains(acked.last().unwrap()), "of {writer:?}");
        lives.insert(writer.id(), (writer.member().to_owned(), acked.len()));
    }
    println!("writers, and what they were told was written: {lives:?}");
}
