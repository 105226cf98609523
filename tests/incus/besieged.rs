//! Guardians besieged on real Incus while a member's fence is held and another one's begin and end: floods of events, huge commands and
//! other certificates of Incus, each together with a fault of their own bodies. INV-1, INV-2, INV-3, INV-7.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::{Host, Topology, monotonic, wait_for};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::checker::Checker;
use crate::common::Site;
use crate::common::body::Body;
use crate::common::dice::{Dice, drawn, number_from_env};
use crate::common::fault::pass;
use crate::common::guarded::{self, Guarded, MEMBERS, member};
use crate::common::guardian::{Guardian, leader};
use crate::common::siege::{Besieged, KINDS, Kind};
use crate::false_api::Pair;
use crate::siege::{announce, exec, update};

/// Within this somebody has to fence, where anybody can.
const SOON: Duration = Duration::from_secs(15);
/// Within this a guardian that runs answers what its status is, while Incus takes the processors.
const ANSWERS: Duration = Duration::from_secs(5);
/// What was begun in a fault may wait for Ceph's own times before it ends.
const REST: Duration = Duration::from_secs(90);
/// More descriptors and threads than at the beginning that are nobody's fault: a second connection for PGs that were silent, one to
/// look whether the key is good, and their sockets.
const SPARE: usize = 24;
const REASON: [&str; 2] = ["--reason", "the siege"];

/// What Incus does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Storm {
    /// As many events as it can make.
    Events,
    /// Each is an event of megabytes for every listener, and one is too long for a websocket.
    HugeCommands,
    /// Another certificate, which was announced.
    Certificate,
    /// Another one, which was not: nobody sees Incus until it is appended.
    Unannounced,
}

const STORMS: [Storm; 4] = [Storm::Events, Storm::HugeCommands, Storm::Certificate, Storm::Unannounced];

struct Siege<'s> {
    site: &'s Guarded,
    /// They are besieged.
    guards: [Guardian; 2],
    bodies: [Body; 2],
    /// Asks through the ledger: no daemon runs here, so that one of the two leads.
    third: Guardian,
    certificates: i32,
}

impl Besieged for Siege<'_> {
    fn site(&self) -> &Site {
        &self.site.site
    }

    fn pid(&self, which: usize) -> Pid {
        self.guards[which].with_daemon(|daemon| daemon.pid())
    }

    fn host(&self, which: usize) -> Host {
        self.guards[which].host().clone()
    }

    fn body(&self, which: usize) -> &Body {
        &self.bodies[which]
    }
}

impl<'s> Siege<'s> {
    fn begin(site: &'s Guarded) -> Self {
        let policy = "[policy]\nmax_fenced_members = 2\n";
        let bodies = [("one", true), ("two", false)]
            .map(|(name, journald)| Body::new(site.lab().dir(), name, journald));
        let third = site.another_with("third", "third", policy);
        // A member that was slow for moments does not run it yet: again once it is reachable, as the verb says.
        site.cluster.wait_until_online().unwrap();
        let mut last = None;
        let whole = wait_for("the gate on all members", REST, || {
            let answer = third.verb(&["gate", "install"]);
            let done = answer.exit == 0;
            last = Some(answer);
            Ok(done.then_some(()))
        });
        whole.unwrap_or_else(|error| panic!("{error:#}: {last:#?}"));
        let besieged = |name, host, body: &Body| {
            let mut guard = site.another_with(name, host, &format!("{}{policy}", body.config()));
            guard.within(body.words());
            guard.start();
            guard
        };
        let guards = [besieged("one", "guard", &bodies[0]), besieged("two", "spare", &bodies[1])];
        Self { site, guards, bodies, third, certificates: 0 }
    }

    /// The logs, for whoever reads a failure.
    fn logs(&self) -> String {
        let bodies: Vec<_> = self.bodies.iter().map(Body::log).collect();
        bodies.join("\n")
    }

    fn status(&self) -> Option<Value> {
        leader(&self.guards.each_ref())?.status()
    }

    #[track_caller]
    fn until(&self, what: &str, within: Duration, is: impl Fn(&Value) -> bool) {
        let mut last = Value::Null;
        let found = wait_for(what, within, || {
            last = self.status().unwrap_or_default();
            Ok(is(&last).then_some(()))
        });
        found.unwrap_or_else(|error| panic!("{error:#}: {last:#}\n{}", self.logs()));
    }

    /// It has a client, so that its address is known.
    fn until_known(&self, name: &str) {
        let ip = self.site.site.ip(name);
        self.until(&format!("the address of {name}"), REST, |status| {
            let addresses = member(status, name)["addresses"].clone();
            addresses.as_array().into_iter().flatten().any(|known| known["address"] == *ip)
        });
    }

    fn until_it_watches(&self) {
        self.until("the gate and a fresh view", REST, |status| {
            status["platform"]["fresh"] == true && status["gate"]["state"] == "installed"
        });
    }

    fn insist(&self, when: &str, words: &[&str], within: Duration) {
        let mut last = None;
        wait_for(&format!("{when}: {words:?} to be done"), within, || {
            let answer = self.third.verb(&[words, &REASON, &["--timeout", "15s"]].concat());
            let done = answer.exit == 0;
            last = Some(answer);
            Ok(done.then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {last:#?}\n{}", self.logs()));
    }

    /// Somebody fences within this, and releases.
    fn fences(&self, when: &str) {
        let began = Instant::now();
        self.insist(when, &["fence", "n2", "--although-reachable"], SOON);
        let took = began.elapsed();
        assert!(took <= SOON, "{when}: a fence took {took:.1?}\n{}", self.logs());
        self.insist(when, &["release", "n2", "--assert-powered-off"], REST);
        println!("  {when}: fenced after {took:.1?}, released after {:.1?}", began.elapsed());
    }

    fn certificate(&mut self) -> Pair {
        self.certificates += 1;
        Pair::valid_until(2100 + self.certificates)
    }

    /// A fault of the body of one of them, and what Incus does meanwhile.
    fn befall(&mut self, kind: Kind, storm: Storm, dice: &mut Dice) {
        // Whoever leads has the most to lose.
        let leads = leader(&self.guards.each_ref()).is_some_and(|leader| leader.name() == "two");
        let which =
            if dice.below(4) == 0 { usize::try_from(dice.below(2)).unwrap() } else { usize::from(leads) };
        let time = Duration::from_secs(1) + dice.millis(19_000);
        let when = format!("{kind:?}, {storm:?}");
        println!("{when}: of {which} for {time:.1?}");
        let next = matches!(storm, Storm::Certificate | Storm::Unannounced).then(|| self.certificate());
        if let (Storm::Certificate, Some(next)) = (storm, &next) {
            announce(self.site, next);
        }
        let over = AtomicBool::new(false);
        let socket = self.site.cluster.member("n1").socket();
        let said = thread::scope(|scope| {
            let rages = scope.spawn(|| match storm {
                Storm::Events => flood(&socket, &over, 0, usize::MAX),
                Storm::HugeCommands => {
                    flood(&socket, &over, 3_900_000, 12) + flood(&socket, &over, 15_600_000, 1)
                }
                Storm::Certificate | Storm::Unannounced => {
                    next.iter().for_each(|next| update(self.site, next));
                    1
                }
            });
            let began = Instant::now();
            let hogs = kind.begin(self, which, dice);
            if kind.spares_others() && storm != Storm::Unannounced {
                self.fences(&format!("during {when}"));
            }
            if !matches!(kind, Kind::Stopped | Kind::FewFiles) {
                self.answers(which, &when, time.saturating_sub(began.elapsed()));
            }
            pass(time.saturating_sub(began.elapsed()));
            kind.end(self, which, hogs);
            over.store(true, Ordering::SeqCst);
            rages.join().unwrap()
        });
        if let (Storm::Unannounced, Some(next)) = (storm, &next) {
            announce(self.site, next);
        }
        // The one of before goes out of use.
        if let Some(next) = &next {
            fs::write(self.site.incus().cluster_certificate, &next.certificate).unwrap();
        }
        self.fences(&format!("after {when} ({said})"));
        self.until_it_watches();
        let status = self.status().unwrap_or_default();
        assert_eq!(guarded::fence(&status, "n3")["state"], "sealed", "{when}: {status:#}\n{}", self.logs());
    }

    /// Its loop waits for no log, disk, monitor, OSD or Incus.
    fn answers(&self, which: usize, when: &str, time: Duration) {
        let (began, mut slowest) = (Instant::now(), Duration::ZERO);
        while began.elapsed() < time {
            let asked = Instant::now();
            assert!(self.guards[which].status().is_some(), "{when}: it does not answer\n{}", self.logs());
            slowest = slowest.max(asked.elapsed());
            pass(Duration::from_millis(100));
        }
        assert!(slowest < ANSWERS, "{when}: its status took {slowest:.1?}\n{}", self.logs());
    }

    /// No guardian is bigger than this many descriptors and threads, or too big at all.
    fn is_no_bigger(&self, after: &str, than: [usize; 2]) {
        for which in [0, 1] {
            let mut seen = Value::Null;
            let small = wait_for("the guardian to be as small as before", REST, || {
                let body = Body::measure(self.pid(which))?;
                seen = json!(body);
                Ok((body.files <= than[0] && body.threads <= than[1]).then_some(body))
            });
            let body = small.unwrap_or_else(|error| {
                panic!("{after}: {error:#}: {seen:#}, at most {than:?}\n{}", self.logs())
            });
            println!("  {}: {body:?}", self.guards[which].name());
            assert!(body.peak_mib < 512, "{after}: {body:?}");
        }
    }

    /// The biggest of the two.
    fn size(&self) -> [usize; 2] {
        let bodies = [0, 1].map(|which| Body::measure(self.pid(which)).unwrap());
        [
            bodies.iter().map(|body| body.files).max().unwrap(),
            bodies.iter().map(|body| body.threads).max().unwrap(),
        ]
    }
}

/// Runs commands until it is over, at most so many; how many Incus took.
fn flood(socket: &Path, over: &AtomicBool, bytes: usize, most: usize) -> usize {
    let mut taken = 0;
    for _ in 0..most {
        if over.load(Ordering::SeqCst) {
            break;
        }
        taken += usize::from(exec(socket, bytes).is_ok());
    }
    taken
}

/// `GUARDIAN_FAULTS` faults (2), drawn from `GUARDIAN_SEED`; 44 and more are each kind of fault with each of Incus's storms at least once.
#[test]
fn inv1_inv2_inv3_inv7_guardians_besieged_by_incus_hold_fence_and_release() {
    let mut dice = Dice::from_env();
    let topology = Topology::apart().linked("spare", &[]).linked("third", &[]).own_osd_clocks();
    let site = Guarded::without_daemon(topology);
    let mut siege = Siege::begin(&site);
    siege.until_it_watches();
    let [_, second, third] =
        [("c1", "n1"), ("c2", "n2"), ("c3", "n3")].map(|(name, at)| site.cluster.launch(name, at).unwrap());
    third.wait_for_writer("n3", REST).unwrap();
    MEMBERS.iter().for_each(|name| siege.until_known(name));
    site.cluster.live().unwrap().incus(&["delete", second.name(), "--force"]).unwrap();
    let (checker, began) = (Checker::start(&site), monotonic());
    siege.insist("before", &["fence", "n3", "--although-reachable"], REST);
    siege.fences("before");
    let than = siege.size().map(|most| most + SPARE);

    let pairs: Vec<_> = KINDS.iter().flat_map(|kind| STORMS.iter().map(|storm| (*kind, *storm))).collect();
    let count = usize::try_from(number_from_env("GUARDIAN_FAULTS", 2)).unwrap();
    for (kind, storm) in drawn(&pairs, count, &mut dice) {
        siege.befall(kind, storm, &mut dice);
        siege.is_no_bigger(&format!("{kind:?}, {storm:?}"), than);
    }

    println!("{}", checker.check(&site, &third, "n3", began));
    siege.insist("at the end", &["release", "n3", "--assert-powered-off"], REST);
    for which in [0, 1] {
        assert!(siege.bodies[which].has_no_parts(siege.pid(which)), "unfinished recordings");
        siege.guards[which].kill();
    }
}
