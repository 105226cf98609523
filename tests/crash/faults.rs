//! Faults drawn at random under a fence, with a checker: INV-1, INV-3, INV-7.

use std::time::Duration;
use std::{fmt, thread};

use lab::{Pool, Role, Topology, WriteLog as _, monotonic, wait_for};

use crate::common::Site;
use crate::common::dice::{Dice, number_from_env};
use crate::guard::{ASSERTED, Guard};
use crate::scene::{MEMBERS, POOL, Scene};

const MONS: [&str; 3] = ["mon.a", "mon.b", "mon.c"];
const OSDS: [&str; 3] = ["osd.0", "osd.1", "osd.2"];
/// Hosts whose link may flap: the fenced member's, and those of two of the three guardians.
const LINKS: [&str; 3] = ["n1", "guard", "spare"];
/// After the last fault everything has to come to rest.
const REST: Duration = Duration::from_secs(120);

/// What goes wrong, and for how long.
#[derive(Debug, Clone, Copy)]
enum Fault {
    KillGuardian(usize),
    StopGuardian(usize, Duration),
    StopMon(&'static str, Duration),
    KillMon(&'static str, Duration),
    StopOsd(&'static str, Duration),
    Flap(&'static str, Duration),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillGuardian(guard) => write!(f, "guardian {guard} killed"),
            Self::StopGuardian(guard, time) => write!(f, "guardian {guard} stopped for {time:.1?}"),
            Self::StopMon(daemon, time) | Self::StopOsd(daemon, time) => {
                write!(f, "{daemon} stopped for {time:.1?}")
            }
            Self::KillMon(daemon, time) => write!(f, "{daemon} killed for {time:.1?}"),
            Self::Flap(host, time) => write!(f, "{host} cut off for {time:.1?}"),
        }
    }
}

fn one<T: Copy>(dice: &mut Dice, of: &[T]) -> T {
    of[usize::try_from(dice.below(of.len() as u64)).unwrap()]
}

fn draw(dice: &mut Dice) -> Fault {
    let guard = usize::try_from(dice.below(3)).unwrap();
    // Links flap for 0.1 to 10 s; who is stopped is stopped past a lease, or not.
    let time = Duration::from_millis(100) + dice.millis(9_900);
    match dice.below(6) {
        0 => Fault::KillGuardian(guard),
        1 => Fault::StopGuardian(guard, time),
        2 => Fault::StopMon(one(dice, &MONS), time),
        3 => Fault::KillMon(one(dice, &MONS), time),
        4 => Fault::StopOsd(one(dice, &OSDS), time),
        _ => Fault::Flap(one(dice, &LINKS), time),
    }
}

/// Lets drawn time pass: nothing is waited for.
fn pass(time: Duration) {
    thread::sleep(time);
}

/// One fault, from its beginning to its end.
fn befall(site: &Site, guards: &mut [Guard<'_>; 3], fault: Fault) {
    match fault {
        Fault::KillGuardian(guard) => {
            guards[guard].kill();
            guards[guard].start();
        }
        Fault::StopGuardian(guard, time) => {
            guards[guard].process().stop().unwrap();
            pass(time);
            guards[guard].process().cont().unwrap();
        }
        Fault::StopMon(daemon, time) | Fault::StopOsd(daemon, time) => {
            site.lab.daemon(daemon).stop().unwrap();
            pass(time);
            site.lab.daemon(daemon).cont().unwrap();
        }
        Fault::KillMon(daemon, time) => {
            site.lab.daemon(daemon).kill().unwrap();
            pass(time);
            site.lab.daemon(daemon).start().unwrap();
        }
        Fault::Flap(host, time) => {
            site.lab.cut(host).unwrap();
            pass(time);
            site.lab.heal(host).unwrap();
        }
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
    println!(
        "{}; fence before fault {during}",
        faults.iter().map(Fault::to_string).collect::<Vec<_>>().join(", ")
    );
    let mut sealed = None;
    for (fault, number) in faults.iter().zip(0..) {
        if number == during {
            let words = ["fence", "n1", "--timeout", "10s"];
            let _ = guards[2].verb(&words);
        }
        befall(site, &mut guards, *fault);
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

/// `GUARDIAN_ROUNDS` runs (3), drawn from `GUARDIAN_SEED`.
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
    for number in 1..=number_from_env("GUARDIAN_ROUNDS", 3) {
        print!("{number}: ");
        run(&site, &mut dice);
    }
}
