//! Faults drawn at random under a fence, with a checker: INV-1, INV-3, INV-7.

use std::time::Duration;

use lab::{Lab, Links, Pool, Role, Topology, WriteLog as _, monotonic, wait_for};

use crate::common::Site;
use crate::common::dice::{Dice, number_from_env};
use crate::common::fault::{Fault, Stage, pass, span, told};
use crate::guard::{ASSERTED, Guard};
use crate::scene::{MEMBERS, POOL, Scene};

const MONS: [&str; 3] = ["mon.a", "mon.b", "mon.c"];
const OSDS: [&str; 3] = ["osd.0", "osd.1", "osd.2"];
/// Hosts whose link may flap: the fenced member's, and those of two of the three guardians.
const LINKS: [&str; 3] = ["n1", "guard", "spare"];
/// After the last fault everything has to come to rest.
const REST: Duration = Duration::from_secs(120);

fn draw(dice: &mut Dice) -> Fault {
    let time = span(dice);
    let target = usize::try_from(dice.below(3)).unwrap();
    dice.one(&[
        Fault::KillGuardian(target),
        Fault::StopGuardian(target, time),
        Fault::Stop(MONS[target], time),
        Fault::Kill(MONS[target], time),
        Fault::Stop(OSDS[target], time),
        Fault::Flap(LINKS[target], Links::Ceph, time),
    ])
}

/// The storage, and its guardians.
struct Storage<'g, 's> {
    lab: &'s Lab,
    guards: &'g mut [Guard<'s>; 3],
}

impl Stage for Storage<'_, '_> {
    fn lab(&self) -> &Lab {
        self.lab
    }

    fn kill_guardian(&mut self, which: usize) {
        self.guards[which].kill();
        self.guards[which].start();
    }

    fn stop_guardian(&mut self, which: usize, stopped: bool) {
        let process = self.guards[which].process();
        if stopped { process.stop() } else { process.cont() }.unwrap();
    }

    fn kill_incus(&mut self, member: &str, _: bool) {
        panic!("no Incus runs on {member}");
    }
}

/// Asks for it until it is done: whoever asks may be cut off, and whoever leads may be gone.
fn insist(guard: &Guard<'_>, words: &[&str]) {
    let mut last = None;
    wait_for(&format!("{words:?} to be done"), REST, || {
        let answer = guard.verb(&[words, &["--timeout", "20s"]].concat());
        let done = answer.exit == 0;
        last = Some(answer);
        Ok(done.then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {last:#?}\n{}", guard.log()));
}

fn run(site: &Site, dice: &mut Dice) {
    let depth = 4;
    let scene = Scene::new(site, depth);
    let hosts = [("first", "guard"), ("second", "spare"), ("third", "third")];
    let mut guards = hosts.map(|(name, host)| Guard::new(site, name, host, &MEMBERS));
    guards.iter_mut().for_each(Guard::start);
    guards[2].until("somebody to lead", |status| !status["leader"].is_null());

    // Faults before, during and after the fence; the third guardian's host has no fault of its own link, and asks.
    let faults: Vec<Fault> = (0..2 + dice.below(4)).map(|_| draw(dice)).collect();
    let during = dice.below(faults.len() as u64 + 1);
    println!("{}; fence before fault {during}", told(&faults));
    let mut sealed = None;
    for (fault, number) in faults.iter().zip(0..) {
        if number == during {
            let words = ["fence", "n1", "--timeout", "10s"];
            let _ = guards[2].verb(&words);
        }
        fault.befall(&mut Storage { lab: &site.lab, guards: &mut guards });
        pass(dice.millis(1500));
        let record = scene.fence();
        scene.legal(&record);
        if record["state"] == "sealed" && sealed.is_none() {
            sealed = Some((monotonic(), site.epoch()));
        }
    }

    // It ends sealed, whatever happened.
    insist(&guards[2], &["fence", "n1"]);
    let (since, epoch) = sealed.unwrap_or_else(|| (monotonic(), site.epoch()));
    let record = scene.until("sealed", &guards[2]);
    scene.is_sealed(&record);
    assert_eq!(scene.writer.taken_after(since, depth).unwrap(), 0, "INV-1: a write was taken after the seal");
    let epochs = scene.refused_since(epoch);
    insist(&guards[2], &[&["release", "n1"], ASSERTED.as_slice()].concat());
    scene.is_released(&scene.fence());
    scene.refused_since(epoch);
    println!("refused in {epochs} epochs; {}", scene.trail());
    guards.iter_mut().for_each(Guard::kill);
}

/// `GUARDIAN_ROUNDS` runs (4), drawn from `GUARDIAN_SEED`.
#[test]
fn inv1_inv3_inv7_no_fault_lets_a_fenced_write_through() {
    let mut dice = Dice::from_env();
    let topology = Topology::new()
        .host("m1", &[Role::Mon("a"), Role::Mgr("x"), Role::Osd(0)])
        .host("m2", &[Role::Mon("b"), Role::Osd(1)])
        .host("m3", &[Role::Mon("c"), Role::Osd(2)]);
    let hosts = ["n1", "n2", "guard", "spare", "third"];
    let site = Site::start(hosts.iter().fold(topology, |topology, host| topology.host(host, &[])), &MEMBERS);
    site.lab.pool(POOL, Pool::replicated(16, 2)).unwrap();
    MEMBERS.iter().for_each(|member| site.lab.image(POOL, member, 8).unwrap());
    for number in 1..=number_from_env("GUARDIAN_ROUNDS", 4) {
        print!("{number}: ");
        run(&site, &mut dice);
    }
}
