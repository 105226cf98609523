//! Faults drawn at random while a member with a container is lost and comes back, on real Incus and real Ceph, with a
//! checker: INV-1, INV-2, INV-3, INV-7.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::checker::{Checker, Seen};
use crate::common::dice::{Dice, number_from_env};
use crate::common::fault::{Fault, Stage, pass, span, told};
use crate::common::guarded::{Guarded, MEMBERS, SOON, member};
use crate::common::guardian::{Guardian, leader};
use crate::story::{check_disk, restored, usable};
use lab::incus::Container;
use lab::{Lab, Links, ObjectStore, Topology, WriteLog as _, monotonic, wait_for};
use serde_json::{Value, json};

const MONS: [&str; 3] = ["mon.a", "mon.b", "mon.c"];
const OSDS: [&str; 3] = ["osd.0", "osd.1", "osd.2"];
const LINKS: [Links; 3] = [Links::Incus, Links::Ceph, Links::Both];
/// After the last fault everything has to come to rest, through two reboots if need be.
const REST: Duration = Duration::from_secs(400);
/// A machine takes longer to boot.
const BOOTS: Duration = Duration::from_secs(3);
/// A member that is lost stays so until its container runs elsewhere, but no longer: another one may have been fenced
/// first, and only one is at a time.
const LOST: Duration = Duration::from_secs(150);

/// What happens in a round.
struct Draw {
    lost: &'static str,
    cut: Links,
    /// When the cut ends; `None`: when the container runs elsewhere.
    back: Option<Duration>,
    faults: Vec<Fault>,
    /// The cut comes before this fault.
    during: usize,
    /// As soon as a fence has begun, each after so long: when it is decided what is safe.
    late: Vec<(Duration, Fault)>,
}

impl Draw {
    fn new(dice: &mut Dice) -> Self {
        let (lost, cut) = (dice.one(&MEMBERS), dice.one(&[Links::Incus, Links::Both]));
        let back = (dice.below(3) == 0).then(|| span(dice) * 7);
        let faults: Vec<Fault> = (0..=dice.below(4)).map(|_| fault(dice)).collect();
        let during = usize::try_from(dice.below(faults.len() as u64)).unwrap();
        let late = (0..=dice.below(3)).map(|_| (dice.millis(1500), fault(dice))).collect();
        Self { lost, cut, back, faults, during, late }
    }
}

fn fault(dice: &mut Dice) -> Fault {
    let (time, which) = (span(dice), usize::try_from(dice.below(3)).unwrap());
    let links = dice.one(&LINKS);
    dice.one(&[
        Fault::KillGuardian(which),
        Fault::StopGuardian(which, time),
        Fault::Kill(MONS[which], time),
        Fault::Kill(OSDS[which], time),
        Fault::Stop(OSDS[which], time),
        Fault::Flap(MEMBERS[which], links, time),
        Fault::KillIncus(MEMBERS[which], time),
    ])
}

/// The site under its faults.
struct Stricken<'s> {
    site: &'s Guarded,
    guardians: [&'s Guardian; 3],
    /// The member that is lost, and how.
    lost: Option<(&'static str, Links)>,
}

impl Stage for Stricken<'_> {
    fn lab(&self) -> &Lab {
        self.site.lab()
    }

    fn kill_guardian(&mut self, which: usize) {
        self.guardians[which].kill();
        self.guardians[which].start();
    }

    fn stop_guardian(&mut self, which: usize, stopped: bool) {
        self.guardians[which]
            .with_daemon(|daemon| if stopped { daemon.stop() } else { daemon.cont() })
            .unwrap();
    }

    fn kill_incus(&mut self, member: &str, killed: bool) {
        let member = self.site.cluster.member(member);
        if killed { member.kill_daemon() } else { member.start_daemon() }.unwrap();
    }

    /// The flap of one that is lost is a moment in which it is back.
    fn pull(&mut self, host: &str, links: Links, pulled: bool) {
        let lost = self.lost.filter(|(name, _)| *name == host);
        let (links, pulled) = lost.map_or((links, pulled), |(_, cut)| (cut, !pulled));
        if pulled { self.lab().cut_links(host, links) } else { self.lab().heal_links(host, links) }.unwrap();
    }
}

impl Stricken<'_> {
    fn status(&self) -> Option<Value> {
        leader(&self.guardians)?.status()
    }

    /// How many fences were begun so far.
    fn begun(&self) -> usize {
        let begun = |guardian: &&Guardian| guardian.log_text().matches("\"code\":\"intended\"").count();
        self.guardians.iter().map(begun).sum()
    }

    fn logs(&self) -> String {
        let log = |guardian: &&Guardian| format!("{}:\n{}\n", guardian.name(), guardian.log_text());
        self.guardians.iter().map(log).collect()
    }

    /// Everybody is a member like the others: nobody is fenced, nothing is open, and the gate is in place.
    fn is_quiet(status: &Value) -> bool {
        let members = status["members"].as_array().map(Vec::as_slice).unwrap_or_default();
        status["fences"] == json!([])
            && status["platform"]["fresh"] == true
            && status["gate"]["state"] == "installed"
            && members.len() == MEMBERS.len()
            && members.iter().all(|member| member["state"] == "watching")
    }

    #[track_caller]
    fn wait_until_quiet(&self) -> Value {
        let mut last = Value::Null;
        let quiet = wait_for("the guardians to be quiet", REST, || {
            last = self.status().unwrap_or_default();
            Ok(Self::is_quiet(&last).then(|| last.clone()))
        });
        quiet.unwrap_or_else(|error| panic!("{error:#}: {last:#}\n{}", self.logs()))
    }

    /// All faults are over: whoever was fenced is rebooted, which is all that an operator has to do. Who that was.
    #[track_caller]
    fn come_to_rest(&self) -> BTreeMap<String, Duration> {
        let mut rebooted = BTreeMap::new();
        let mut last = Value::Null;
        let quiet = wait_for("the guardians to be quiet", REST, || {
            last = self.status().unwrap_or_default();
            for fence in last["fences"].as_array().into_iter().flatten() {
                // A fence that is not sealed yet proves nothing by a reboot of now, nor, as uptimes are whole seconds, one that
                // was sealed this very moment: no machine boots as fast as these.
                let name = fence["member"].as_str().unwrap_or_default();
                let marks = fence["marks_ms"].as_object().into_iter().flatten();
                let sealed = marks.filter_map(|(_, mark)| mark.as_u64()).max().map(Duration::from_millis);
                let due = |sealed: Duration| {
                    monotonic() > sealed + BOOTS && rebooted.get(name).is_none_or(|at| *at <= sealed)
                };
                if fence["state"] == "sealed" && sealed.is_some_and(due) {
                    self.site.cluster.member(name).reboot()?;
                    rebooted.insert(name.to_owned(), monotonic());
                }
            }
            Ok(Self::is_quiet(&last).then_some(()))
        });
        quiet.unwrap_or_else(|error| panic!("{error:#}, rebooted {rebooted:?}: {last:#}\n{}", self.logs()));
        rebooted
    }

    /// It writes, somewhere. One that a healing left half way, for who led it died, is brought back as the alarm advises.
    #[track_caller]
    fn runs(&self, container: &Container<'_>) {
        let now = monotonic();
        let writes = || {
            container.writers()?.iter().map(|writer| writer.acks_after(now)).sum::<anyhow::Result<usize>>()
        };
        let runs = wait_for("the container to write", SOON * 2, || Ok((writes()? > 10).then_some(())));
        if let Err(error) = runs {
            let at = container.location().unwrap();
            let status = self.site.cluster.status(&at).unwrap();
            assert_eq!(
                status,
                "Evacuated",
                "{error:#}: it is on {at}, and nobody evacuates that\n{}",
                self.logs()
            );
            println!("a healing that died left it on {at}: restored by hand");
            self.restore(&at);
            wait_for("the container to write", SOON * 2, || Ok((writes()? > 10).then_some(()))).unwrap();
        }
    }

    fn restore(&self, name: &str) {
        let other = MEMBERS.into_iter().find(|other| *other != name).unwrap();
        restored(self.site, other, name).unwrap_or_else(|error| panic!("{error:#}\n{}", self.logs()));
    }
}

/// What the checker saw, and whether the container was healed before its member was back.
fn round(
    site: &Guarded,
    guardians: [&Guardian; 3],
    checker: &Checker,
    number: u64,
    draw: &Draw,
) -> (Seen, bool) {
    let mut stricken = Stricken { site, guardians, lost: None };
    site.cluster.wait_until_online().unwrap();
    stricken.wait_until_quiet();
    let Draw { lost, cut, back, faults, during, late } = draw;
    let ending = back.map_or("until it is healed".to_owned(), |back| format!("for {back:.1?}"));
    println!(
        "{number}: {}; before fault {during} {lost} loses {cut:?} {ending}; when it is fenced {}",
        told(faults),
        told(&late.iter().map(|(_, fault)| *fault).collect::<Vec<_>>())
    );

    let container = site.cluster.launch(&format!("c{number}"), lost).unwrap();
    let ip = site.site.ip(lost);
    wait_for("its address to be known", SOON, || {
        let addresses = member(&stricken.status().unwrap_or_default(), lost)["addresses"].clone();
        Ok(addresses.as_array().into_iter().flatten().any(|address| address["address"] == *ip).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", stricken.logs()));
    let began = monotonic();

    let (mut since, begun) = (began, stricken.begun());
    for (fault, at) in faults.iter().zip(0..) {
        if at == *during {
            site.lab().cut_links(lost, *cut).unwrap();
            (stricken.lost, since) = (Some((*lost, *cut)), monotonic());
        }
        fault.befall(&mut stricken);
    }
    let over = || back.is_some_and(|back| monotonic() > since + back);
    let _ = wait_for("a fence", LOST, || Ok((over() || stricken.begun() > begun).then_some(())));
    if !over() {
        for (after, fault) in late {
            pass(*after);
            fault.befall(&mut stricken);
        }
    }
    let elsewhere =
        wait_for("its end", LOST, || Ok((over() || container.location()? != *lost).then_some(())));
    let stayed = if elsewhere.is_err() { " (nobody healed it)" } else { "" };
    if back.is_none() {
        // The new owner is at work when the old one comes back.
        pass(Duration::from_secs(1));
    }
    site.lab().heal_links(lost, *cut).unwrap();
    stricken.lost = None;
    let lasted = monotonic() - since;
    let rebooted = stricken.come_to_rest();
    stricken.runs(&container);
    let seen = checker.check(site, &container, lost, began);
    println!(
        "{number}: lost for {lasted:.1?}{stayed}, at {} in the end, rebooted {:?}: {seen}",
        container.location().unwrap(),
        rebooted.keys().collect::<Vec<_>>()
    );

    // Undamaged, and as it was told.
    let live = site.cluster.live().unwrap();
    live.incus(&["stop", container.name(), "--force"]).unwrap();
    let fenced: Vec<_> = seen.fenced.iter().map(|(writer, sealed)| (writer, *sealed)).collect();
    check_disk(site, &container, &fenced);
    live.incus(&["delete", container.name()]).unwrap();
    for name in MEMBERS {
        if rebooted.contains_key(name) {
            usable(site, MEMBERS.into_iter().find(|other| *other != name).unwrap(), name, true);
        }
        if site.cluster.status(name).unwrap() == "Evacuated" {
            stricken.restore(name);
        }
    }
    (seen, elsewhere.is_ok())
}

/// `GUARDIAN_ROUNDS` rounds (1) on one cluster, drawn from `GUARDIAN_SEED`.
#[test]
fn inv1_inv2_inv3_inv7_no_fault_lets_a_second_writer_through() {
    let mut dice = Dice::from_env();
    let site = Guarded::without_daemon(Topology::hyperconverged().objectstore(ObjectStore::Bluestore));
    let guardians = [("g1", "n1"), ("g2", "n2"), ("g3", "n3")].map(|(name, host)| site.another(name, host));
    site.guardian(&["gate", "install"]).expect(0);
    guardians.iter().for_each(Guardian::start);
    let checker = Checker::start(&site);
    let (mut lasting, mut healed, mut margins) = (0, 0, Vec::new());
    for number in 1..=number_from_env("GUARDIAN_ROUNDS", 1) {
        let draw = Draw::new(&mut dice);
        let (seen, elsewhere) = round(&site, guardians.each_ref(), &checker, number, &draw);
        if draw.back.is_none() {
            lasting += 1;
            healed += usize::from(elsewhere && !seen.fenced.is_empty());
        }
        margins.extend(seen.margins);
    }
    margins.sort();
    println!(
        "{lasting} losses that lasted: {healed} sealed and healed; margins from {:.1?} to {:.1?}",
        margins.first(),
        margins.last()
    );
    // A fault may put one off past its time, and all of them only if nobody fences any more.
    assert!(lasting < 3 || healed * 3 >= lasting * 2, "{healed} of {lasting}");
}
