//! Which machine it is that is back, and whether it booted since the seal (INV-5).

use std::time::Duration;

use rbd_guardian_core::model::incus_snapshot::{MemberState, MemberStatus};

use crate::SECOND;
use crate::model::Model;

const CARD: &str = "mac=b0:7b:25:00:00:02";

fn tells(model: &mut Model, member: &str, machine: Option<&str>, uptime: Duration) {
    let state = MemberState { uptime, machine: machine.map(str::to_owned) };
    model.states.insert(member.to_owned(), state);
}

/// Sealed, with what n2 told while it was healthy.
fn sealed_as(machine: Option<&str>, uptime: Duration) -> Model {
    let mut model = Model::new();
    tells(&mut model, "n2", machine, uptime);
    model.run(10 * SECOND);
    model.lose_until_open("n2");
    model
}

fn back(model: &mut Model, machine: Option<&str>, uptime: Duration) {
    let view = model.view.members.get_mut("n2").unwrap();
    (view.status, view.heartbeat_age) = (MemberStatus::Online, None);
    tells(model, "n2", machine, uptime);
    model.run(30 * SECOND);
}

#[test]
fn inv5_a_member_without_a_uuid_is_released_by_its_cards_and_another_machine_is_not() {
    let mut model = sealed_as(Some(CARD), 100_000 * SECOND);
    model.run(100 * SECOND);
    back(&mut model, Some("mac=b0:7b:25:00:00:99"), 20 * SECOND);
    assert!(model.alarms().contains("returned-stale"), "added again on other hardware");
    assert!(model.refuses("n2"));
    back(&mut model, Some(&format!("{CARD} mac=b0:7b:25:00:00:03")), 20 * SECOND);
    assert!(!model.refuses("n2"), "{:#?}", model.logs());
}

#[test]
fn inv5_what_no_maker_wrote_and_what_two_members_have_proves_nothing() {
    for (machine, others) in [
        ("00000000-0000-0000-0000-000000000000", "machine-3"),
        ("FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "machine-3"),
        ("03000200-0400-0500-0006-000700080009", "machine-3"),
        ("4c4c4544-0038-4a10-8052-b7c04f4e3233", "4C4C4544-0038-4A10-8052-B7C04F4E3233"),
    ] {
        let mut model = Model::new();
        tells(&mut model, "n3", Some(others), 100_000 * SECOND);
        tells(&mut model, "n2", Some(machine), 100_000 * SECOND);
        model.run(10 * SECOND);
        assert!(model.alarms().contains("no-machine-identity"), "said while it is healthy: {machine}");
        model.lose_until_open("n2");
        model.run(100 * SECOND);
        back(&mut model, Some(machine), 20 * SECOND);
        assert!(model.refuses("n2"), "{machine}");
        let alarms = model.guardian.alarms();
        let alarm = alarms.iter().find(|alarm| alarm.code == "returned-stale").unwrap();
        assert!(alarm.advice[0].contains("--assert-powered-off"), "{alarm:?}");
    }
}

#[test]
fn inv5_other_letters_are_the_same_machine() {
    let mut model = sealed_as(Some("4C4C4544-0038-4A10-8052-B7C04F4E3233"), 100_000 * SECOND);
    model.run(100 * SECOND);
    back(&mut model, Some("4c4c4544-0038-4a10-8052-b7c04f4e3233"), 20 * SECOND);
    assert!(!model.refuses("n2"), "{:#?}", model.logs());
}

#[test]
fn inv5_a_member_without_any_identity_is_told_at_once_and_not_released_by_itself() {
    let mut model = sealed_as(None, 100_000 * SECOND);
    model.run(100 * SECOND);
    back(&mut model, None, 20 * SECOND);
    assert!(model.alarms().contains("returned-stale") && model.refuses("n2"));
    let texts = model.logs().join("\n");
    assert!(texts.contains("no UUID, serial number"), "{texts}");
    assert!(!texts.contains("it is released by itself when it has"), "{texts}");
}

#[test]
fn inv5_fenced_soon_after_a_boot_a_later_reboot_is_a_proof() {
    let mut model = sealed_as(Some(CARD), 30 * SECOND);
    model.run(600 * SECOND);
    // Rebooted or paused: nothing tells.
    back(&mut model, Some(CARD), 60 * SECOND);
    assert!(model.alarms().contains("returned-stale") && model.refuses("n2"));
    let texts = model.logs().join("\n");
    assert!(!texts.contains("it has not rebooted"), "nobody knows that: {texts}");
    for uptime in [90, 140, 300] {
        back(&mut model, Some(CARD), uptime * SECOND);
        assert!(model.refuses("n2"), "it only goes on");
    }
    back(&mut model, Some(CARD), 70 * SECOND);
    assert!(!model.refuses("n2"), "{:#?}", model.logs());
}

#[test]
fn inv5_what_another_machine_tells_raises_no_uptime() {
    let mut model = sealed_as(Some(CARD), 30 * SECOND);
    model.run(600 * SECOND);
    back(&mut model, Some("mac=b0:7b:25:00:00:99"), 500_000 * SECOND);
    back(&mut model, Some(CARD), 60 * SECOND);
    assert!(model.refuses("n2"), "60 s are more than the 30 s that this machine told");
}
