//! The wall clock of the guardian's own host is set: what it decides rests on `CLOCK_BOOTTIME` and on the monitors' clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::SignedDuration;
use rbd_guardian_core::model::addr::EntityAddr;
use rbd_guardian_core::model::fence_id::FenceId;
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::record::FenceRecord;

use crate::model::Model;
use crate::{SECOND, healthy, sealed};

const DAY: SignedDuration = SignedDuration::from_hours(24);

fn years(number: i32) -> SignedDuration {
    DAY * (365 * number)
}

fn entries(model: &Model) -> BTreeMap<EntityAddr, jiff::Timestamp> {
    model.map().blocklist.entries.clone()
}

/// Neither lapses, nor is it lengthened: that needs a removal.
#[test]
fn inv3_a_held_fence_stands_and_ends_as_ever_whatever_the_hosts_clock_says() {
    for number in [-30, 1, 6] {
        let mut model = sealed("n2");
        let held = entries(&model);
        model.stepped = years(number);
        model.run(120 * SECOND);
        assert_eq!((model.state("n2"), &entries(&model)), ("sealed", &held), "{number} years");
        assert!(!model.alarms().contains("breached"), "{:#?}", model.logs());
        // Still the proof of a reboot, and no other.
        model.bring_back("n2", 1_000_000 * SECOND);
        model.run(60 * SECOND);
        assert!(model.refuses("n2"), "it did not reboot");
        model.bring_back_until_released("n2", 20 * SECOND);
    }
}

/// A member is fenced as soon as with a right clock, with entries that stand for as long.
#[test]
fn inv2_a_lost_member_is_fenced_in_time_whatever_the_hosts_clock_says() {
    let mut took = Vec::new();
    for number in [0, -30, 6] {
        let mut model = healthy();
        model.stepped = years(number);
        model.run(60 * SECOND);
        let lost = model.boot;
        model.lose_until_open("n2");
        took.push(model.boot - lost);
        let least = model.storage_clock() + years(4);
        assert!(
            entries(&model).values().all(|until| *until > least),
            "{number} years: {:?}",
            entries(&model)
        );
    }
    assert!(took.iter().all(|time| *time == took[0]), "{took:?}");
}

/// The entries of dead clients stay for `retain_client_entries`, and the records of released fences for a year, by the
/// clock of the monitors.
#[test]
fn inv4_a_clock_that_is_set_ahead_removes_no_entry_of_a_dead_client_and_no_record() {
    let mut model = sealed("n2");
    model.run(60 * SECOND);
    model.bring_back_until_released("n2", 20 * SECOND);
    let dead = entries(&model);
    assert!(!dead.is_empty());
    let id = FenceId::from("F-OLD");
    let (_, record) = model.ledger.fences.first_key_value().unwrap();
    let old =
        FenceRecord { id: id.clone(), entries: BTreeMap::new(), dead: BTreeSet::new(), ..record.clone() };
    model.ledger.fences.insert(id, old);
    model.restart("boot-2");
    let records = model.ledger.fences.len();
    model.stepped = years(3);
    model.run(600 * SECOND);
    assert_eq!((&entries(&model), model.ledger.fences.len()), (&dead, records));
    // Their time is over.
    model.stepped = SignedDuration::ZERO;
    model.pass(Duration::from_secs(91 * 86_400));
    model.until("removed", |model| entries(model).is_empty());
}

/// Set back by a year, the time that an operator allowed would take a year.
#[test]
fn a_clock_that_is_set_back_disarms_nobody_for_longer() {
    let mut model = healthy();
    let request = Request::Disarm {
        until: model.now().wall + Duration::from_secs(3600),
        reason: Some("new switches".to_owned()),
        by: "root@h".to_owned(),
    };
    model.ask(1, request);
    model.until("disarmed", |model| model.ledger.disarm.is_some());
    // Guardians' clocks may differ a little.
    model.stepped = -SignedDuration::from_secs(30);
    model.run(10 * SECOND);
    assert!(model.alarms().contains("disarmed"));
    model.stepped = years(-1);
    model.run(30 * SECOND);
    let told = |text: &String| text.contains("still to come by the clock of this host");
    assert!(model.guardian.alarms().iter().any(|alarm| told(&alarm.text)), "{:#?}", model.logs());
    assert!(model.ledger.disarm.is_some(), "it counts for a guardian whose clock is right");
    model.lose_until_open("n2");
}
