//! From the cut of a member to its container running elsewhere: by Incus alone, behind a gate that refuses at once as it did
//! before it waited, and behind the gate.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::incus::{POOL, Watch};
use lab::{Topology, WriteLog as _, monotonic, wait_for};

use crate::common::dice::number_from_env;
use crate::common::guarded::{Guarded, HEALED, MEMBERS, SOON};
use crate::common::monitor::Monitor;
use crate::table::Row;
use crate::{median, shown};

/// What stands between Incus and the start elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    None,
    /// No key tells it to wait.
    Refuses,
    Waits,
}

/// One healing. Times are seconds.
#[derive(Debug)]
struct Healed {
    /// From the cut to the first healing: Incus's own pace.
    healing: f64,
    /// From there to the seal.
    sealed: Option<f64>,
    /// From there to the first block that the container wrote elsewhere.
    elsewhere: f64,
    /// From the seal to the last instant at which the image had no watcher elsewhere (INV-2: never negative).
    margin: Option<f64>,
}

/// All of them, as many rounds each as `GUARDIAN_ROUNDS` says.
pub(crate) fn rows() -> Result<Vec<Row>> {
    let rounds = number_from_env("GUARDIAN_ROUNDS", 3);
    let alone = rounds_of(Gate::None, rounds)?;
    let refuses = rounds_of(Gate::Refuses, rounds)?;
    let waits = rounds_of(Gate::Waits, rounds)?;
    let begun = |rounds: &[Healed]| median(&rounds.iter().map(|one| one.elsewhere).collect::<Vec<_>>());
    let whole =
        |rounds: &[Healed]| median(&rounds.iter().map(|one| one.healing + one.elsewhere).collect::<Vec<_>>());
    let row = |ours: &[Healed], what: &str, target: &str| {
        let margins = || ours.iter().filter_map(|one| one.margin);
        let (least, most) = (margins().fold(f64::MAX, f64::min), margins().fold(f64::MIN, f64::max));
        let sealed = median(&ours.iter().filter_map(|one| one.sealed).collect::<Vec<_>>());
        Row {
            what: format!(
                "a member is cut off → its container runs elsewhere, {what}, median of {}",
                ours.len()
            ),
            ours: format!(
                "{} after the cut; from the healing on sealed in {}, running elsewhere in {}; seal → first new watcher {} to {}",
                shown(whole(ours)),
                shown(sealed),
                shown(begun(ours)),
                shown(least),
                shown(most)
            ),
            theirs: format!(
                "{} after the cut, {} after the healing began: Incus alone",
                shown(whole(&alone)),
                shown(begun(&alone))
            ),
            ratio: format!("+ {}", shown(begun(ours) - begun(&alone))),
            target: target.to_owned(),
            met: begun(ours) <= begun(&alone) + 3.0 && least >= 0.0,
        }
    };
    Ok(vec![
        row(&refuses, "a gate that refuses at once", "(as it was)"),
        row(&waits, "the gate waits", "from the healing on ≤ + 3 s, seal before watcher"),
    ])
}

fn rounds_of(gate: Gate, rounds: u64) -> Result<Vec<Healed>> {
    let site = Guarded::without_daemon(Topology::apart());
    if gate != Gate::None {
        site.guardian(&["gate", "install"]).expect(0);
        if gate == Gate::Refuses {
            blind(&site)?;
        }
        site.start_daemon();
        site.wait_until_watching();
    }
    let watch = site.lab().watch(POOL.1)?;
    (1..=rounds)
        .map(|number| {
            let healed = round(&site, &watch, gate, number)?;
            eprintln!("{gate:?} {number}: {healed:.2?}");
            Ok(healed)
        })
        .collect()
}

/// The gate reads another key, which nobody writes.
fn blind(site: &Guarded) -> Result<()> {
    let live = site.cluster.live()?;
    let server = live.query("/1.0")?;
    let text = server["config"]["instances.placement.scriptlet"].as_str().context("no gate")?;
    let text = text.replace("user.rbd-guardian.wait.", "user.rbd-guardian.unwritten.");
    live.incus(&["config", "set", &format!("instances.placement.scriptlet={text}")])?;
    Ok(())
}

fn round(site: &Guarded, watch: &Watch, gate: Gate, number: u64) -> Result<Healed> {
    site.cluster.wait_until_online()?;
    let leader = site.cluster.leader()?;
    let lost = MEMBERS.into_iter().find(|name| *name != leader).context("nobody else")?;
    let name = format!("c{number}");
    let container = site.cluster.launch(&name, lost)?;
    let old = container.wait_for_writer(lost, SOON)?;
    old.wait_for_acks(10, SOON)?;
    if gate != Gate::None {
        site.wait_until_known(lost);
    }
    let monitor = Monitor::start(site, &leader);
    let seals = site.logged("sealed", lost).len();
    let cut = monotonic();
    site.lab().cut(lost)?;
    let owner = wait_for("its healing", HEALED, || {
        let owner = container.location()?;
        Ok((owner != lost).then_some(owner))
    })?;
    let new = container.wait_for_writer(&owner, SOON)?;
    new.wait_for_acks(10, SOON)?;
    let runs = new.log()?.iter().find(|entry| entry.error.is_none()).context("no write")?.at;
    let healing = monitor.said(cut, |line| line["metadata"]["message"] == "Starting cluster healing");
    let healing = healing.into_iter().min().context("no healing was announced")?;
    let first = wait_for("the new watch", SOON, || {
        watch.first_from(&container.image(), site.lab().host(&owner).ip(), cut)
    })?;
    let sealed = if gate == Gate::None {
        None
    } else {
        let lines = site.logged("sealed", lost);
        ensure!(lines.len() > seals, "it was not sealed");
        Some(Guarded::instant(&lines[seals]))
    };
    let seconds = |from: Duration, to: Duration| to.as_secs_f64() - from.as_secs_f64();
    let healed = Healed {
        healing: seconds(cut, healing),
        sealed: sealed.map(|sealed| seconds(healing, sealed)),
        elsewhere: seconds(healing, runs),
        margin: sealed.map(|sealed| seconds(sealed, first.after)),
    };
    // A member like the others again.
    let live = site.cluster.member(&owner);
    live.incus(&["stop", &name, "--force"])?;
    // Off before its link is back: without a guardian it would write again.
    site.cluster.member(lost).power_off()?;
    site.lab().heal(lost)?;
    site.cluster.member(lost).power_on()?;
    if gate != Gate::None {
        site.wait_for_state(lost, "watching", HEALED);
    }
    wait_for("its restore", HEALED, || Ok(live.incus(&["cluster", "restore", lost, "--force"]).ok()))?;
    wait_for("its deletion", SOON, || Ok(live.incus(&["delete", &name, "--force"]).ok()))?;
    Ok(healed)
}
