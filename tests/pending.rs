//! INV-1: a PG that has not answered might still take a stale write, so a fence is `pending` until it has, and names it.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::time::Duration;

use common::pending::{pending_pgs, pending_until_all_answer, pgs_led_by, pgs_on};
use common::{Answer, Site, prepared};
use lab::{Errno, Lab, Pool, Role, Topology, World, WriteLog as _, monotonic, wait_for};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

#[test]
fn inv1_exactly_the_silent_pgs_are_pending_and_the_same_command_seals_when_they_answer() {
    pending_until_all_answer(&Site::small());
}

/// INV-1 where an OSD is lost together with the member: it goes on serving the stale writer beside it.
#[test]
fn inv1_a_store_in_the_cut_off_host_keeps_the_fence_pending_until_it_is_back() {
    let store = [Role::Mon("a"), Role::Mgr("x"), Role::Osd(0), Role::Osd(1)];
    let topology =
        Topology::new().host("store", &store).host("n1", &[Role::Osd(2)]).host("n2", &[]).host("guard", &[]);
    let site = Site::start(topology, &["n1", "n2"]);
    site.lab.pool("shared", Pool::replicated(8, 2)).unwrap();
    site.lab.pool("local", Pool::replicated(1, 1)).unwrap();
    let pg = move_to(&site.lab, "local", 2);
    site.lab.image("local", "disk", 16).unwrap();
    let writer = site.lab.host("n1").writer("local", "disk", 1).unwrap();
    writer.wait_for_acks(10, SOON).unwrap();

    let served = pgs_on(&site.lab, 2);
    site.lab.cut("n1").unwrap();
    let cut_at = monotonic();
    let pending = site.guardian(&["fence", "n1", "--timeout", "15s"]).expect(3);
    let pending_at = monotonic();
    assert_eq!(pending.json["state"], "pending");
    assert!(pending_pgs(&pending).contains(&pg), "{:#}", pending.json);
    assert!(pending_pgs(&pending).is_subset(&served), "{:#}", pending.json);
    writer.wait_for_acks(20, SOON).unwrap();
    println!(
        "cut off with its OSD: {} writes acknowledged after the cut, {} of them after the fence said pending ({:?})",
        writer.acks_after(cut_at).unwrap(),
        writer.acks_after(pending_at).unwrap(),
        pending_pgs(&pending),
    );

    let waiting = site.start_guardian(&["fence", "n1", "--timeout", "90s"]);
    wait_for("a line that names the PG", SOON, || Ok(waiting.stderr().contains(&pg).then_some(()))).unwrap();
    site.lab.heal("n1").unwrap();
    let sealed = waiting.answer().expect(0);
    let sealed_at = monotonic();
    assert_eq!(sealed.json["state"], "sealed");
    assert_eq!(writer.wait_for_error(sealed_at, SOON).unwrap(), Errno::ESHUTDOWN);
    let late = writer.taken_after(sealed_at, 1).unwrap();
    println!("healed: sealed, {late} writes acknowledged after that");
    assert_eq!(late, 0);
}

/// INV-1: of a pool marked `eio` the client makes up every answer itself, so none proves anything.
#[test]
fn inv1_a_pool_marked_eio_is_never_proved() {
    // Debian 12's monitors know the flag, but no command that sets it.
    if prepared(World::Newest.folder()).is_none() {
        return;
    }
    let topology = Topology::small(&["n1", "guard"]).world(World::Newest);
    let site = Site::start(topology, &["n1"]);
    site.lab.pool("broken", Pool::replicated(4, 2)).unwrap();
    site.lab.pool("sound", Pool::replicated(4, 2)).unwrap();
    site.lab.ceph(&["osd", "pool", "set", "broken", "eio", "true"]).unwrap();
    let pending = site.guardian(&["fence", "n1", "--timeout", "10s"]).expect(3);
    assert_eq!(pending.json["state"], "pending");
    assert_eq!(pool(&pending, "broken")["proved"], 0);
    assert_eq!(pool(&pending, "sound")["proved"], 4);
    println!("{}", pool(&pending, "broken"));
    assert!(pool(&pending, "broken")["trouble"].as_str().unwrap().contains("eio"));

    site.lab.ceph(&["osd", "pool", "set", "broken", "eio", "false"]).unwrap();
    let sealed = site.guardian(&["fence", "n1"]).expect(0);
    assert_eq!(pool(&sealed, "broken")["proved"], 4);
}

/// Moves the only PG of a pool to this OSD, and returns its name.
fn move_to(lab: &Lab, pool: &str, osd: u32) -> String {
    let listed = lab.ceph(&["pg", "ls-by-pool", pool]).unwrap();
    let pg = listed["pg_stats"][0]["pgid"].as_str().unwrap().to_owned();
    lab.ceph(&["osd", "set-require-min-compat-client", "luminous"]).unwrap();
    lab.ceph(&["osd", "pg-upmap", &pg, &osd.to_string()]).unwrap();
    wait_for(&format!("{pg} on osd.{osd}"), SOON, || Ok(pgs_led_by(lab, osd).contains(&pg).then_some(())))
        .unwrap();
    lab.wait_until_clean(pool).unwrap();
    pg
}

fn pool<'a>(answer: &'a Answer, name: &str) -> &'a Value {
    let mut pools = answer.json["barrier"].as_array().unwrap().iter();
    pools.find(|pool| pool["pool"] == name).unwrap_or_else(|| panic!("{name} is not in {:#}", answer.json))
}
