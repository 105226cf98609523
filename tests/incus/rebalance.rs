//! Rebalancing of virtual machines, which Incus does from 7.0 on: it asks the gate with a reason of its own, and ends the run at a refusal.

use std::fs;

use lab::incus::IMAGE;
use lab::{Topology, World, wait_for};
use rbd_guardian::incus::gate::refusal::{RefusalReason, refusal};

use crate::common::guarded::{Guarded, HEALED, MEMBERS};
use crate::gate::tell;
use crate::in_the_newest_world;

/// What the incusds have logged since then, line by line.
fn logged(site: &Guarded, since: &[usize]) -> Vec<String> {
    let text = |name| fs::read_to_string(log(site, name)).unwrap();
    let new = MEMBERS.into_iter().zip(since).map(|(name, from)| text(name)[*from..].to_owned());
    new.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn log(site: &Guarded, name: &str) -> std::path::PathBuf {
    site.lab().dir().join(format!("log/incusd-{name}.out"))
}

fn mark(site: &Guarded) -> Vec<usize> {
    MEMBERS.map(|name| fs::read_to_string(log(site, name)).unwrap().len()).to_vec()
}

/// The lab runs no virtual machine. One in the database is enough to be asked about.
#[test]
fn a_virtual_machine_is_rebalanced_to_no_sealed_member() {
    // `tests/run` runs it in that world, as a part of the sample.
    if !in_the_newest_world() {
        return;
    }
    let site = Guarded::without_daemon(Topology::apart().world(World::Newest));
    site.cluster.set(&[("cluster.healing_threshold", "0")]).unwrap();
    site.guardian(&["gate", "install"]).expect(0);
    let [busy, middle, idle] = MEMBERS;
    for (name, load) in [(busy, "1.60"), (middle, "0.60"), (idle, "0.01")] {
        let file = site.lab().dir().join(format!("loadavg-{name}"));
        fs::write(&file, format!("{load} {load} {load} 1/100 1000\n")).unwrap();
        let mut mount = site.cluster.member(name).command("mount").unwrap();
        assert!(mount.arg("--bind").arg(&file).arg("/proc/loadavg").status().unwrap().success());
    }
    let live = site.cluster.live().unwrap();
    let incus = |words: &[&str]| live.incus(words).unwrap();
    incus(&["create", IMAGE, "vm", "--target", busy, "-c", "migration.stateful=true"]);
    incus(&["admin", "sql", "global", "UPDATE instances SET type = 1 WHERE name = 'vm'"]);

    // The least loaded member is sealed: the next one is chosen, and the run goes on.
    tell(&site, middle, &[idle], &[]);
    let from = mark(&site);
    site.cluster.set(&[("cluster.rebalance.interval", "1")]).unwrap();
    let chosen = wait_for("a target to be chosen", HEALED, || {
        let mut lines = logged(&site, &from).into_iter();
        Ok(lines.find(|line| line.contains("scriptlet set member target")))
    })
    .unwrap();
    println!("{chosen}");
    assert!(chosen.contains(middle) && !chosen.contains(&format!("member={idle}")), "{chosen}");
    let refused = |lines: Vec<String>| lines.iter().find_map(|line| refusal(line));
    assert_eq!(refused(logged(&site, &from)), None);

    // Both are: nothing is chosen, and the refusal is in the log.
    tell(&site, busy, &[idle, middle], &[]);
    let from = mark(&site);
    let told = wait_for("a refusal", HEALED, || Ok(refused(logged(&site, &from)))).unwrap();
    println!("{told:?}");
    assert_eq!((told.member.as_deref(), &told.why), (Some(idle), &RefusalReason::TargetSealed));
    assert_eq!(told.instance.unwrap().name, "vm");
    assert_eq!(site.listed("vm"), busy);
}
