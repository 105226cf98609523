//! Connections lost and made anew, and OSDs that hang, for an hour: what a cycle leaves behind, an hour makes visible.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lab::Lab;
use nix::unistd::Pid;

use super::{REST, SOON, Siege, site};
use crate::common::body::{Body, Size};
use crate::common::dice::number_from_env;
use crate::common::fault::monitors_are_cut;
use crate::guard::{ASSERTED, Guard};

/// Connections to Ceph that a guardian ever has at once: the one it uses and two that it replaced, each with one for PGs that were
/// silent, and a log-in that is tried.
const MOST: usize = 7;
/// The same once all is calm: the one it uses, and one for PGs that were silent.
const CALM: usize = 2;
/// What an hour may leave over its first quarter. It left 24 while the daemon itself asked single monitors (docs/facts/ceph.md#sessions).
const LEFT_MIB: usize = 4;
/// What is told apart in what the test prints.
const PART: Duration = Duration::from_secs(600);

/// The smallest and the biggest that was seen.
#[derive(Debug, Clone, Copy)]
struct Extent {
    least: [usize; 5],
    most: [usize; 5],
}

impl Extent {
    fn nothing() -> Self {
        Self { least: [usize::MAX; 5], most: [0; 5] }
    }

    fn note(&mut self, size: &Size) {
        let values = [size.files, size.threads, size.connections, size.resident_mib, size.own_mib];
        for (at, value) in values.into_iter().enumerate() {
            self.least[at] = self.least[at].min(value);
            self.most[at] = self.most[at].max(value);
        }
    }

    fn words(&self) -> String {
        let names = ["descriptors", "threads", "connections", "resident MiB", "own MiB"];
        let words = names.iter().zip(self.least.iter().zip(self.most));
        let words: Vec<_> = words.map(|(name, (least, most))| format!("{name} {least} to {most}")).collect();
        words.join(", ")
    }
}

/// Looks all the time how big guardians are.
struct Sampler {
    seen: Arc<Mutex<Extent>>,
    ends: Arc<AtomicBool>,
    looks: Option<JoinHandle<()>>,
}

impl Sampler {
    fn start(pids: Vec<Pid>) -> Self {
        let (seen, ends) = (Arc::new(Mutex::new(Extent::nothing())), Arc::new(AtomicBool::new(false)));
        let looks = {
            let (seen, ends) = (Arc::clone(&seen), Arc::clone(&ends));
            thread::spawn(move || {
                while !ends.load(Ordering::SeqCst) {
                    let sizes = pids.iter().filter_map(|pid| Body::measure(*pid).ok());
                    sizes.for_each(|size| seen.lock().unwrap().note(&size));
                    // Not a wait for anything: how often it looks.
                    thread::sleep(Duration::from_millis(100));
                }
            })
        };
        Self { seen, ends, looks: Some(looks) }
    }

    /// Since the last call.
    fn take(&self) -> Extent {
        std::mem::replace(&mut *self.seen.lock().unwrap(), Extent::nothing())
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        self.looks.take().map(JoinHandle::join);
    }
}

/// What was seen in a part of the hour.
struct Part {
    calm: Extent,
    slowest: Duration,
    cycles: usize,
}

impl Part {
    fn new() -> Self {
        Self { calm: Extent::nothing(), slowest: Duration::ZERO, cycles: 0 }
    }

    fn tell(&self, until: Duration, always: &Extent) {
        println!("until minute {:.0}, {} cycles:", until.as_secs_f64() / 60.0, self.cycles);
        println!("  between cycles: {}; so again after {:.1?} at most", self.calm.words(), self.slowest);
        println!("  at any time: {}", always.words());
    }
}

/// The leader loses the monitors, an OSD hangs while a fence is to be proved, and all comes back.
fn cycle(siege: &Siege<'_>, lab: &Lab, number: usize) {
    let host = siege.guards[siege.leader()].host().clone();
    monitors_are_cut(&host, true);
    siege.fences("cut", SOON);
    monitors_are_cut(&host, false);
    let osd = format!("osd.{}", number % 3);
    lab.daemon(&osd).stop().unwrap();
    siege.third.start_verb(&["fence", "n2", "--timeout", "8s"]).ended();
    lab.daemon(&osd).cont().unwrap();
    let _ = siege.third.verb(&[&["release", "n2", "--timeout", "20s"], ASSERTED.as_slice()].concat());
    siege.fences("healed", REST);
}

/// For `GUARDIAN_BODY_MINUTES` minutes (1).
#[test]
fn a_guardian_is_no_bigger_after_an_hour_of_lost_connections_and_hung_osds() {
    let minutes = number_from_env("GUARDIAN_BODY_MINUTES", 1);
    let site = site();
    let mut siege = Siege::begin(&site);
    siege.third.verb(&["fence", "n1"]).expect(0);
    siege.fences("before", SOON);
    let began = Instant::now();
    // A second connection, for PGs that were silent, comes to stay.
    let [files, threads] = siege.size();
    let than = [files + 20, threads + 14];
    let pids: Vec<Pid> = siege.guards.iter().map(|guard| guard.process().pid()).collect();
    let sampler = Sampler::start(pids);
    let (mut biggest, mut part, mut ends) = (Vec::new(), Part::new(), PART);
    for number in 1.. {
        println!("cycle {number} at {:.0?}", began.elapsed());
        cycle(&siege, &site.lab, number);
        let healed = Instant::now();
        let sizes = siege.is_no_bigger(&format!("cycle {number}"), than, REST);
        part.slowest = part.slowest.max(healed.elapsed());
        part.cycles += 1;
        sizes.iter().for_each(|size| part.calm.note(size));
        biggest.push(sizes.iter().map(|size| size.own_mib).max().unwrap());
        let over = number >= 2 && began.elapsed() >= Duration::from_secs(60 * minutes);
        if over || began.elapsed() >= ends {
            let always = sampler.take();
            part.tell(began.elapsed(), &always);
            assert!(always.most[2] <= MOST, "{}", always.words());
            assert!(part.calm.most[2] <= CALM, "{}", part.calm.words());
            (part, ends) = (Part::new(), ends + PART);
        }
        if over {
            break;
        }
    }
    let early = biggest[..biggest.len().div_ceil(4)].iter().max().unwrap();
    let last = biggest.last().unwrap();
    println!("{} cycles in {:.0?}; own MiB: {biggest:?}", biggest.len(), began.elapsed());
    assert!(*last <= early + LEFT_MIB, "own MiB: {biggest:?}");
    assert_eq!(siege.scene.fence()["state"], "sealed");
    siege.guards.iter_mut().for_each(Guard::kill);
}
