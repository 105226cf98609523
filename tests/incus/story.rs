//! INV-2, the whole story on real Incus and real Ceph: a member is lost, its containers run elsewhere only after it was
//! sealed, the stale ones write nothing any more, and after its reboot it is a member like the others again.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use crate::common::dice::{Dice, number_from_env};
use crate::common::guarded::{Guarded, HEALED, MEMBERS, SOON, alarm, fence};
pub(crate) use crate::common::monitor::Monitor;
use lab::incus::{Container, ContainerWriter, POOL, Watch};
use lab::{Links, Topology, WriteLog as _, monotonic, wait_for};
use serde_json::Value;

/// Ticks of healing are a minute apart; the attempts of one follow each other at once.
const SAME_TICK: Duration = Duration::from_secs(20);

/// What happens in a round.
#[derive(Debug, Clone, Copy)]
struct Draw {
    cut: Links,
    leader: bool,
    /// The active manager of Ceph runs on the member that is lost.
    mgr: bool,
    /// From the moment everything is known to the cut.
    wait: Duration,
    /// From the healed container's first writes to the end of the cut.
    back: Duration,
}

impl fmt::Display for Draw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = if self.leader { "the leader" } else { "a follower" };
        let mgr = if self.mgr { " with the active mgr" } else { "" };
        let Draw { cut, wait, back, .. } = self;
        write!(
            f,
            "{who}{mgr} loses {cut:?}, {wait:.1?} after it was known; the link is back {back:.1?} after the heal"
        )
    }
}

/// The rounds of both layouts. Each layout has half of `GUARDIAN_ROUNDS` (2), and of four every kind is met before any is met again.
static DRAWS: LazyLock<[Vec<Draw>; 2]> = LazyLock::new(|| {
    let mut dice = Dice::from_env();
    let mut kinds = [(Links::Incus, true), (Links::Incus, false), (Links::Both, true), (Links::Both, false)];
    for last in (1..kinds.len()).rev() {
        kinds.swap(last, usize::try_from(dice.below(last as u64 + 1)).unwrap());
    }
    let rounds = usize::try_from(number_from_env("GUARDIAN_ROUNDS", 2)).unwrap().div_ceil(2);
    [0, 1].map(|layout| {
        let kinds = kinds.iter().cycle().skip(layout * 2).take(rounds).enumerate();
        let draw = |(number, (cut, leader)): (usize, &(Links, bool))| Draw {
            cut: *cut,
            leader: *leader,
            mgr: layout == 1 && number % 2 == 0,
            wait: dice.millis(8000),
            back: dice.millis(6000),
        };
        kinds.map(draw).collect()
    })
});

/// What a round has shown.
struct Measured {
    /// From the seal to the last instant at which the new owner had no watcher yet.
    margin: Duration,
    /// From the first refused heal to the seal; `None` where the seal came first.
    refused: Option<Duration>,
    /// From the cut to the new owner's first acknowledged write.
    elsewhere: Duration,
    /// Ticks of healing until then.
    ticks: usize,
    released: Duration,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = self
            .refused
            .map_or("sealed before a heal was refused".to_owned(), |d| format!("refused → sealed {d:.2?}"));
        let Measured { margin, elsewhere, ticks, released, .. } = self;
        write!(
            f,
            "margin (first new watcher − seal) {margin:.2?}, {refused}, cut → running elsewhere {elsewhere:.1?} (heal tick {ticks}), \
             answers again → released {released:.1?}"
        )
    }
}

fn until(instant: Duration) {
    wait_for("a drawn instant", HEALED, || Ok((monotonic() >= instant).then_some(()))).unwrap();
}

/// The member to be lost.
fn lost(site: &Guarded, draw: &Draw) -> &'static str {
    let leader = site.cluster.leader().unwrap();
    let lost = MEMBERS.into_iter().find(|name| (*name == leader) == draw.leader).unwrap();
    if draw.mgr {
        let wanted = ["x", "y", "z"][MEMBERS.iter().position(|name| *name == lost).unwrap()];
        wait_for("the active mgr there", HEALED, || {
            let active =
                site.lab().ceph(&["mgr", "stat"])?["active_name"].as_str().unwrap_or_default().to_owned();
            if !active.is_empty() && active != wanted {
                site.lab().ceph(&["mgr", "fail", &active])?;
            }
            Ok((active == wanted).then_some(()))
        })
        .unwrap();
    }
    lost
}

/// Addresses of an image's watchers.
fn watchers(site: &Guarded, image: &str) -> BTreeSet<String> {
    site.lab().watchers(POOL.1, image).unwrap().into_iter().map(|watcher| watcher.address).collect()
}

/// When the fence of a member was sealed, by the record that the ledger holds.
pub(crate) fn sealed_at(record: &Value) -> Duration {
    let marks = record["marks_ms"].as_object().unwrap();
    let mark = marks.values().next().unwrap().as_u64().unwrap();
    // The record keeps no part of a millisecond.
    Guarded::since_boot(Duration::from_millis(mark + 1))
}

/// Nothing of what a writer issued after an instant was taken, by its own account.
#[track_caller]
fn took_nothing_after(writer: &ContainerWriter, sealed: Duration) {
    assert_eq!(writer.taken_after(sealed, 1).unwrap(), 0, "a write was taken after the seal");
}

/// A stopped container's disk: undamaged, with the last block that each writer was told of, and none that a fenced one
/// issued after its seal.
#[track_caller]
pub(crate) fn check_disk(site: &Guarded, container: &Container<'_>, fenced: &[(&ContainerWriter, Duration)]) {
    let disk = site.lab().disk(container).unwrap();
    assert!(disk.status == 0 && disk.torn.is_empty(), "{disk:?}");
    for writer in container.writers().unwrap() {
        let Some(last) = writer.acked_numbers().unwrap().last().copied() else { continue };
        let blocks = &disk.blocks[&writer.id()];
        assert!(blocks.contains(&last), "{last} of {writer:?} is lost");
        for sealed in fenced.iter().filter(|(one, _)| **one == writer).map(|(_, sealed)| *sealed) {
            let issued = writer.log().unwrap().partition_point(|entry| entry.at <= sealed) as u64 + 1;
            let newest = *blocks.last().unwrap();
            assert!(
                newest <= issued,
                "{newest} is on the disk, and {issued} was the last to be issued before the seal"
            );
        }
    }
}

/// Waits until Incus has tried the storage pool of a member again, which was fenced when it booted: it does so once a
/// minute, or when it is started anew.
pub(crate) fn usable(site: &Guarded, asked: &str, member: &str, hurry: bool) {
    if hurry {
        let member = site.cluster.member(member);
        member.kill_daemon().unwrap();
        member.start_daemon().unwrap();
        member.wait_for_daemon().unwrap();
    }
    wait_for("the storage pool there", SOON * 2, || {
        let pool =
            site.cluster.member(asked).query(&format!("/1.0/storage-pools/{}?target={member}", POOL.0))?;
        Ok((pool["status"] == "Created").then_some(()))
    })
    .unwrap();
}

/// Gives a member its instances back. Incus refuses that for a while to one that it has just reached again.
pub(crate) fn restored(site: &Guarded, asked: &str, member: &str) -> anyhow::Result<()> {
    let restore = || site.cluster.member(asked).incus(&["cluster", "restore", member, "--force"]).map(Some);
    wait_for("its restore", SOON * 2, restore).map(drop)
}

fn round(site: &Guarded, watch: &Watch, number: usize, draw: &Draw) -> Measured {
    site.cluster.wait_until_online().unwrap();
    site.wait_until_watching();
    let lost = lost(site, draw);
    let name = format!("c{number}");
    let container = site.cluster.launch(&name, lost).unwrap();
    let old = container.wait_for_writer(lost, SOON).unwrap();
    site.wait_until_known(lost);
    let clients = watchers(site, &container.image());
    let monitor = Monitor::start(site, MEMBERS.into_iter().find(|name| *name != lost).unwrap());
    until(monotonic() + draw.wait);
    let before = monotonic();
    site.lab().cut_links(lost, draw.cut).unwrap();
    let cut = monotonic();

    // It runs elsewhere, and was sealed before anybody else had its image.
    let owner = wait_for("another location", HEALED, || {
        let at = container.location()?;
        Ok((at != lost).then_some(at))
    });
    let owner =
        owner.unwrap_or_else(|error| panic!("{error:#}: {:#}\n{}", site.status().unwrap(), site.log_text()));
    let new = container.wait_for_writer(&owner, SOON).unwrap();
    new.wait_for_acks(10, SOON).unwrap();
    let status = site.status().unwrap();
    let record = fence(&status, lost);
    assert_eq!(record["state"], "sealed", "{status:#}");
    assert_eq!(record["coverage"], "whole-host", "{status:#}");
    let sealed = sealed_at(&record);
    let first = watch.first_from(&container.image(), site.lab().host(&owner).ip(), before).unwrap().unwrap();
    assert!(before < sealed && sealed < first.after, "sealed at {sealed:?}, first new watcher {first:?}");
    let logged = |code: &str| Guarded::instant(&site.hears(code, lost));
    assert!(logged("sealed") < logged("gate-open"), "{}", site.log_text());
    took_nothing_after(&old, sealed);

    // The link comes back: the stale container hears of it, and the operator too.
    until(monotonic() + draw.back);
    site.lab().heal_links(lost, draw.cut).unwrap();
    let status = site.wait_for_state(lost, "returned-stale", SOON);
    let advice = alarm(&status, "returned-stale", lost)["advice"].to_string();
    assert!(
        advice.contains(&format!("reboot {lost}"))
            && advice.contains(&format!("incus cluster restore {lost}")),
        "{advice}"
    );
    // Its connections lay dead for two minutes: TCP tries again after as long at the latest.
    old.wait_for_error(sealed, HEALED).unwrap();
    let stale = container.sync(lost);
    assert!(stale.is_err(), "what it had in memory was taken");
    took_nothing_after(&old, sealed);
    assert_eq!(fence(&site.status().unwrap(), lost)["state"], "sealed");
    // Not asked of the one that was cut off: what the others announce may never reach it.
    let live = site.cluster.member(&owner);
    live.incus(&["stop", &name, "--force"]).unwrap();
    check_disk(site, &container, &[(&old, sealed)]);
    live.incus(&["start", &name]).unwrap();

    // Its clients show up again with it, also one that nobody had seen before the cut.
    site.wait_for_status("its clients to be known", SOON, |status| {
        let record = fence(status, lost);
        let entered = |client: &String| record["entries"].get(client).is_some();
        let seen = record["seen"].as_array().map(Vec::as_slice).unwrap_or_default();
        clients.iter().all(|client| entered(client) || seen.iter().any(|seen| *seen == **client))
    });
    // Its reboot is its release.
    let host = format!("{}:0/0", site.site.ip(lost));
    assert!(site.site.blocklist().contains_key(&host));
    site.cluster.member(lost).reboot().unwrap();
    wait_for("the others to reach it", SOON, || {
        site.cluster
            .member(&owner)
            .query_within(SOON, &format!("/1.0/cluster/members/{lost}/state"))
            .map(Some)
    })
    .unwrap();
    let answers = monotonic();
    site.wait_for_state(lost, "watching", SOON);
    let released = monotonic() - answers;
    let blocklist = site.site.blocklist();
    assert!(!blocklist.contains_key(&host), "{blocklist:?}");
    for client in clients {
        assert!(
            blocklist.contains_key(&client),
            "INV-4: {client} of its former life may write: {blocklist:?}"
        );
    }
    usable(site, &owner, lost, number > 1);
    restored(site, &owner, lost).unwrap();
    assert_eq!(container.location().unwrap(), lost);
    let newest = wait_for("a third start", SOON, || {
        // Incus restores it without a start where its database had no leader for a moment.
        if live.query(&format!("/1.0/instances/{name}"))?["status"] == "Stopped" {
            live.incus(&["start", &name]).ok();
        }
        Ok(container
            .writers()?
            .into_iter()
            .rfind(|writer| writer.member() == lost && writer.id() != old.id()))
    });
    newest.unwrap().wait_for_acks(10, SOON).unwrap();
    live.incus(&["stop", &name, "--force"]).unwrap();
    check_disk(site, &container, &[(&old, sealed)]);
    // Incus gives its own `rbd` some seconds, which a busy machine needs more of.
    wait_for("its deletion", SOON, || Ok(live.incus(&["delete", &name]).ok())).unwrap();

    let refusals = monitor.said(before, |line| line.to_string().contains("is not sealed"));
    let mut ticks: Vec<Duration> = Vec::new();
    for at in monitor.said(before, |line| line["metadata"]["message"] == "Starting cluster healing") {
        if at < first.by && ticks.last().is_none_or(|last| at - *last > SAME_TICK) {
            ticks.push(at);
        }
    }
    assert!(ticks.len() <= 3, "not healed at the tick after the seal: {ticks:?}");
    let log = new.log().unwrap();
    Measured {
        margin: first.after - sealed,
        refused: refusals.iter().min().filter(|at| **at < sealed).map(|at| sealed - *at),
        elsewhere: log.iter().find(|entry| entry.error.is_none()).unwrap().at - cut,
        ticks: ticks.len(),
        released,
    }
}

fn rounds(name: &str, topology: Topology, draws: &[Draw]) {
    let site = Guarded::start(topology);
    let watch = site.lab().watch(POOL.1).unwrap();
    let mut measured = Vec::new();
    for (number, draw) in (1..).zip(draws) {
        println!("{name} {number}: {draw}");
        let round = round(&site, &watch, number, draw);
        println!("{name} {number}: {round}");
        measured.push(round);
    }
    let mut refused: Vec<_> = measured.iter().filter_map(|round| round.refused).collect();
    refused.sort();
    let margin = measured.iter().map(|round| round.margin).min().unwrap();
    println!("{name}: {} rounds, least margin {margin:.2?}, refused → sealed {refused:.2?}", measured.len());
}

#[test]
fn inv2_a_lost_member_is_sealed_before_its_containers_run_elsewhere_storage_apart() {
    rounds("apart", Topology::apart(), &DRAWS[0]);
}

#[test]
fn inv2_a_lost_member_is_sealed_before_its_containers_run_elsewhere_hyperconverged() {
    rounds("hyperconverged", Topology::hyperconverged(), &DRAWS[1]);
}
