//! The gate in a cluster with 1,000 instances in project `default`.

use std::time::Duration;

use crate::common::guarded::{Guarded, MEMBERS, SOON};
use lab::incus::Member;
use lab::{Topology, monotonic, wait_for};
use rbd_guardian::incus::gate::refusal::{PlacementRefusal, RefusalReason, refusal};
use serde_json::{Value, json};

const INSTANCES: u32 = 1000;
const PATIENCE: Duration = Duration::from_secs(120);

/// Rows as Incus writes them for a stopped container: 14 keys and two disks each. Images they have none.
fn fill(member: &Member) {
    // Incus writes to the database as well, and whoever comes second is told so at once.
    let sql = |text: String| {
        wait_for("the database", PATIENCE, || {
            match member.incus_within(PATIENCE, &["admin", "sql", "global", &text]) {
                Err(error) if format!("{error:#}").contains("database is locked") => Ok(None),
                done => Ok(Some(done)),
            }
        })
        .unwrap()
        .unwrap()
    };
    let numbers = format!(
        "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {INSTANCES})"
    );
    let ours = "FROM instances WHERE name LIKE 'many-%'";
    sql(format!(
        "INSERT INTO instances (node_id, name, architecture, type, description, project_id, creation_date) \
         SELECT n % 3 + 1, 'many-' || n, 2, 0, '', 1, '2026-01-01 00:00:00+00:00' \
         FROM ({numbers} SELECT n FROM number)"
    ));
    for key in 1..=14 {
        sql(format!(
            "INSERT INTO instances_config (instance_id, key, value) SELECT id, 'user.key-{key}', 'a value of some length' {ours}"
        ));
    }
    for disk in ["root", "data"] {
        sql(format!("INSERT INTO instances_devices (instance_id, name, type) SELECT id, '{disk}', 2 {ours}"));
    }
    for (key, value) in [("path", "'/' || CASE name WHEN 'root' THEN '' ELSE name END"), ("pool", "'remote'")]
    {
        sql(format!(
            "INSERT INTO instances_devices_config (instance_device_id, key, value) SELECT id, '{key}', {value} \
             FROM instances_devices WHERE instance_id IN (SELECT id {ours})"
        ));
    }
    sql(format!(
        "INSERT INTO instances_profiles (instance_id, profile_id, apply_order) SELECT id, 1, 1 {ours}"
    ));
}

#[test]
fn inv3_seals_are_written_and_removed_at_once_also_with_1000_instances() {
    let site = Guarded::without_daemon(Topology::apart());
    site.cluster.set(&[("cluster.healing_threshold", "0")]).unwrap();
    let leader = site.cluster.leader().unwrap();
    let [lost, other] =
        MEMBERS.into_iter().filter(|name| *name != leader).collect::<Vec<_>>().try_into().unwrap();
    let container = site.cluster.launch("c1", lost).unwrap();
    container.wait_for_writer(lost, SOON).unwrap();
    site.cluster.launch("c2", other).unwrap();
    let live = site.cluster.live().unwrap();
    timed("1,000 instances", || fill(live));
    timed("gate install", || site.guardian(&["gate", "install"]).expect(0));
    site.start_daemon();
    site.wait_until_watching();
    site.wait_until_known(lost);
    timed("a move of a stopped instance", || {
        live.incus(&["stop", "c2", "--force"]).unwrap();
        let began = monotonic();
        live.incus(&["move", "c2", "--target", &leader]).unwrap();
        println!("  of these the move itself {:?}", monotonic() - began);
    });

    site.lab().cut(lost).unwrap();
    site.cluster.wait_for_status(lost, "Offline", SOON).unwrap();
    let live = site.cluster.member(other);
    // With so many instances Incus may need more than the minute that a command has before it asks the gate.
    let mut said = String::new();
    let refused = wait_for("the gate's refusal of a move", 2 * SOON, || {
        let error = live.incus(&["move", "c1", "--target", other]).expect_err("refused by the gate");
        said = format!("{error:#}");
        // Incus 7 says so by a text of its own.
        let unsealed = |one: PlacementRefusal| {
            one.member.as_deref() == Some(lost) && one.why == RefusalReason::NotSealed
        };
        Ok(refusal(&said).is_some_and(unsealed).then_some(()))
    });
    refused.unwrap_or_else(|error| panic!("{error:#}, last: {said}"));
    let at = |code: &str| Guarded::instant(&site.hears(code, lost));
    let is_open = |status: &Value| status["gate"]["open"] == json!([lost]);
    site.insist(&["fence", lost]);
    site.wait_for_status("the gate to be open", SOON, is_open);
    println!("asked to be written {:?} after the seal", at("gate-open").saturating_sub(at("sealed")));
    println!("seen to be open {:?} after that", monotonic().saturating_sub(at("gate-open")));

    // An entry is gone: it is put back and the gate is closed, and only then it is sealed again.
    let entry = site.site.blocklist().keys().find(|key| key.ends_with(":0/0")).unwrap().clone();
    site.lab().ceph(&["osd", "blocklist", "rm", &entry]).unwrap();
    let removed = monotonic();
    let again = |line: &Value| line["member"] == *lost && Guarded::instant(line) > removed;
    let [breached, closed, sealed] =
        ["breached", "gate-closed", "sealed"].map(|code| Guarded::instant(&site.first().hears(code, again)));
    println!(
        "breached {:?} after the entry was removed, to be closed {:?} later, sealed again {:?} after that",
        breached.saturating_sub(removed),
        closed.saturating_sub(breached),
        sealed.saturating_sub(closed)
    );
    assert!(closed <= sealed, "sealed before the gate is closed");
    site.wait_for_status("the gate to be open again", SOON, is_open);
    println!("open again {:?} after the entry was removed", monotonic() - removed);

    // While Incus writes to a project with so many instances it records no heartbeat.
    for name in [&leader, other] {
        assert_eq!(site.cluster.status(name).unwrap(), "Online", "{name}");
    }
    timed("the refused one moved", || live.incus(&["move", "c1", "--target", other]).unwrap());
}

fn timed<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let began = monotonic();
    let done = act();
    println!("{what}: {:?}", monotonic() - began);
    done
}
