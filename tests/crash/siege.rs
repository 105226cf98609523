//! The guardians' own bodies under siege while a fence is held and others begin and end: INV-1, INV-3, INV-7. What one
//! of them writes to hangs or is full, what it asks does not answer, and it has no processor, no descriptors or no key.
//! After each fault somebody fences within [`SOON`], and no guardian is bigger than before.

mod hour;

use std::time::{Duration, Instant};

use lab::{Host, Pool, Role, Topology, WriteLog as _, monotonic, wait_for};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::Site;
use crate::common::body::{Body, Size};
use crate::common::dice::{Dice, drawn, number_from_env};
use crate::common::fault::pass;
use crate::common::siege::{Besieged, KINDS, Kind};
use crate::guard::{ASSERTED, Guard};
use crate::scene::{MEMBERS, POOL, Scene};

/// Within this somebody has to fence, where anybody can.
const SOON: Duration = Duration::from_secs(15);
/// Within this a guardian that runs answers what its status is, whatever it waits for: less than a call to the ledger may take.
const ANSWERS: Duration = Duration::from_secs(3);
/// What was begun in a fault may wait for Ceph's own times before it ends.
const REST: Duration = Duration::from_secs(90);
/// More descriptors and threads than at the beginning that are nobody's fault: a second connection for PGs that were silent, one to
/// look whether the key is good, and their sockets.
const SPARE: usize = 24;

struct Siege<'s> {
    site: &'s Site,
    scene: Scene<'s>,
    /// They are besieged.
    guards: [Guard<'s>; 2],
    bodies: [Body; 2],
    /// Asks through the ledger: no daemon runs here, so that one of the two leads. Its host has no fault of its own.
    third: Guard<'s>,
}

impl<'s> Siege<'s> {
    fn begin(site: &'s Site) -> Self {
        let scene = Scene::new(site, 4);
        let mut guards = [("first", "guard"), ("second", "spare")]
            .map(|(name, host)| Guard::new(site, name, host, &MEMBERS));
        let bodies = [true, false].map(|journald| {
            let guard = &guards[usize::from(!journald)];
            Body::new(site.lab.dir(), &guard.name, journald)
        });
        for (guard, body) in guards.iter_mut().zip(&bodies) {
            guard.within(body.words(), &lines(&body.config()));
            guard.start();
        }
        let mut third = Guard::new(site, "third", "third", &MEMBERS);
        third.within(Vec::new(), &lines(""));
        guards[0].until("somebody to lead", |status| !status["leader"].is_null());
        Self { site, scene, guards, bodies, third }
    }

    /// The logs, for whoever reads a failure.
    fn logs(&self) -> String {
        let bodies: Vec<_> = self.bodies.iter().map(Body::log).collect();
        bodies.join("\n")
    }

    /// Somebody fences within this, and releases.
    fn fences(&self, when: &str, within: Duration) {
        let began = Instant::now();
        let insist = |words: &[&str], within: Duration| {
            let mut last = None;
            wait_for(&format!("{when}: {words:?} to be done"), within, || {
                let answer = self.third.verb(&[words, &["--timeout", "15s"]].concat());
                // One that was not answered in time may have been done all the same.
                let released = words[0] == "release" && answer.json["refusals"][0]["code"] == "not-held";
                let done = answer.exit == 0 || released;
                last = Some(answer);
                Ok(done.then_some(()))
            })
            .unwrap_or_else(|error| panic!("{error:#}: {last:#?}\n{}", self.logs()));
        };
        insist(&["fence", "n2"], within);
        let took = began.elapsed();
        assert!(took <= within, "{when}: a fence took {took:.1?}\n{}", self.logs());
        insist(&[&["release", "n2"], ASSERTED.as_slice()].concat(), REST);
        println!("  {when}: fenced after {took:.1?}, released after {:.1?}", began.elapsed());
    }

    /// Which of the two leads, if one does; else the first.
    fn leader(&self) -> usize {
        let leads = |guard: &Guard<'_>| guard.status().is_some_and(|status| status["stage"] == "leading");
        self.guards.iter().position(leads).unwrap_or_default()
    }

    fn befall(&mut self, kind: Kind, dice: &mut Dice) {
        // Whoever leads has the most to lose.
        let which = if dice.below(4) == 0 { usize::try_from(dice.below(2)).unwrap() } else { self.leader() };
        let time = Duration::from_secs(1) + dice.millis(19_000);
        println!("{kind:?} of {which} for {time:.1?}");
        let when = format!("{kind:?}");
        let asking = self.third.start_verb(&["fence", "n2", "--timeout", "20s"]);
        let began = Instant::now();
        let hogs = kind.begin(self, which, dice);
        if kind.spares_others() {
            self.fences(&format!("during {when}"), SOON);
        }
        let mut slowest = Duration::ZERO;
        while began.elapsed() < time && !matches!(kind, Kind::Stopped | Kind::FewFiles) {
            let asked = Instant::now();
            let status = self.guards[which].status();
            assert!(status.is_some(), "{when}: it does not answer\n{}", self.logs());
            slowest = slowest.max(asked.elapsed());
            pass(Duration::from_millis(100));
        }
        // Its loop waits for no log, disk, monitor or OSD.
        assert!(slowest < ANSWERS, "{when}: its status took {slowest:.1?}\n{}", self.logs());
        pass(time.saturating_sub(began.elapsed()));
        kind.end(self, which, hogs);
        asking.ended();
        // It may have fenced by then: what is to be shown is a whole fence.
        let _ = self.third.verb(&[&["release", "n2", "--timeout", "5s"], ASSERTED.as_slice()].concat());
        self.fences(&format!("after {when}"), SOON);
        let record = self.scene.fence();
        self.scene.legal(&record);
        assert_eq!(record["state"], "sealed", "{when}: n1's fence is held: {record:#}\n{}", self.logs());
    }

    /// No guardian is bigger than this many descriptors and threads, or too big at all.
    fn is_no_bigger(&self, after: &str, than: [usize; 2], within: Duration) -> [Size; 2] {
        [0, 1].map(|which| {
            let process = self.guards[which].process().pid();
            let mut seen = Value::Null;
            let small = wait_for("the guardian to be as small as before", within, || {
                let body = Body::measure(process)?;
                seen = serde_json::json!(body);
                Ok((body.files <= than[0] && body.threads <= than[1]).then_some(body))
            });
            let body = small.unwrap_or_else(|error| {
                panic!("{after}: {error:#}: {seen:#}, at most {than:?}\n{}", self.logs())
            });
            println!("  {}: {body:?}", self.guards[which].name);
            assert!(body.peak_mib < 512, "{after}: {body:?}");
            body
        })
    }

    /// The biggest of the two.
    fn size(&self) -> [usize; 2] {
        let bodies = self.guards.iter().map(|guard| Body::measure(guard.process().pid()).unwrap());
        bodies.fold([0, 0], |[files, threads], body| [files.max(body.files), threads.max(body.threads)])
    }
}

impl Besieged for Siege<'_> {
    fn site(&self) -> &Site {
        self.site
    }

    fn pid(&self, which: usize) -> Pid {
        self.guards[which].process().pid()
    }

    fn host(&self, which: usize) -> Host {
        self.guards[which].host().clone()
    }

    fn body(&self, which: usize) -> &Body {
        &self.bodies[which]
    }
}

/// Two of the two members may be fenced at once.
fn lines(more: &str) -> String {
    format!("[policy]\nmax_fenced_members = 2\n[daemon]\n{more}")
}

fn site() -> Site {
    let topology = Topology::new()
        .host("m1", &[Role::Mon("a"), Role::Mgr("x"), Role::Osd(0)])
        .host("m2", &[Role::Mon("b"), Role::Osd(1)])
        .host("m3", &[Role::Mon("c"), Role::Osd(2)]);
    let hosts = ["n1", "n2", "guard", "spare", "third"];
    let topology = hosts.iter().fold(topology, |topology, host| topology.host(host, &[])).own_osd_clocks();
    let site = Site::start(topology, &MEMBERS);
    site.lab.pool(POOL, Pool::replicated(16, 2)).unwrap();
    MEMBERS.iter().for_each(|member| site.lab.image(POOL, member, 8).unwrap());
    site
}

/// `GUARDIAN_FAULTS` faults (5), drawn from `GUARDIAN_SEED`; 11 and more are each kind at least once.
#[test]
fn inv1_inv3_inv7_besieged_guardians_hold_fence_and_release() {
    let mut dice = Dice::from_env();
    let site = site();
    let mut siege = Siege::begin(&site);
    siege.third.verb(&["fence", "n1"]).expect(0);
    let (since, epoch) = (monotonic(), site.epoch());
    siege.scene.is_sealed(&siege.scene.fence());
    siege.fences("before", SOON);
    let than = siege.size().map(|most| most + SPARE);

    let count = usize::try_from(number_from_env("GUARDIAN_FAULTS", 5)).unwrap();
    let kinds = drawn(&KINDS, count, &mut dice);
    for kind in &kinds {
        siege.befall(*kind, &mut dice);
        siege.is_no_bigger(&format!("{kind:?}"), than, REST);
    }

    assert_eq!(
        siege.scene.writer.taken_after(since, 4).unwrap(),
        0,
        "INV-1: a write was taken after the seal"
    );
    let epochs = siege.scene.refused_since(epoch);
    siege.third.verb(&[&["release", "n1"], ASSERTED.as_slice()].concat()).expect(0);
    siege.scene.is_released(&siege.scene.fence());
    siege.scene.refused_since(epoch);
    println!("refused in {epochs} epochs; {}", siege.scene.trail());
    for (guard, body) in siege.guards.iter_mut().zip(&siege.bodies) {
        assert!(body.has_no_parts(guard.process().pid()), "unfinished recordings");
        guard.kill();
    }
}
