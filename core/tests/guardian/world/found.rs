//! Histories that were drawn, broke something, and were made as short as they can be; and for each point that a facet of
//! the worlds waits for, the shortest that shows it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::History;
use super::drawn::{DataPool, Shape};
use super::events::Event::*;
use super::facets::{Facet, on};
use super::state::{IMAGES, World};

/// A listing that failed was asked for again in the moment it had failed, as long as a sweep showed a user that could not
/// be judged without it.
#[test]
fn a_listing_that_fails_is_not_asked_for_again_at_once() {
    History::of(&[Lose(1), Partial(3), Pass(44)]).holds();
    History::of(&[Partial(5), Evacuate(1), Pass(1)]).holds();
}

/// The storage was looked at again and again, as fast as it answered, while an operator's fence waited for Incus.
#[test]
fn the_storage_is_looked_at_once_for_a_fence_that_waits_for_incus() {
    History::of(&[PowerOff(0), TakeOver(2), Lose(1), Fence(0, true)]).holds();
}

/// A release asked for all clients as fast as the answer failed.
#[test]
fn what_fails_at_once_is_not_asked_for_again_at_once() {
    History::of(&[Lose(1), Pass(60), LookUnread(true), Reboot(1), Pass(120), LookUnread(false), Pass(60)])
        .holds();
}

#[test]
fn inv1_a_client_at_a_second_address_is_refused_as_well() {
    if on(Facet::SecondAddresses) {
        History::shaped(|shape| shape.second_ips = true, &[Lose(1), Pass(60)]).holds();
    }
}

#[test]
fn inv6_a_backup_host_that_opened_an_image_is_never_fenced() {
    if on(Facet::Backups) {
        for seconds in 1..8 {
            let events = [Lag(20), Pass(seconds), Backup(13), Lag(0), Pass(10), Lose(3), Pass(60)];
            History::shaped(|shape| shape.members = 5, &events).holds();
        }
    }
}

#[test]
fn inv6_an_address_that_a_member_gave_up_is_not_fenced() {
    if on(Facet::Renumbering) {
        for said in [false, true] {
            let special = |shape: &mut Shape| (shape.said, shape.hyperconverged) = (said, true);
            History::shaped(special, &[Renumber(1), Lose(1), Pass(60)]).holds();
        }
    }
}

#[test]
fn inv3_the_release_of_one_fence_lifts_no_other() {
    if on(Facet::TwoFences) {
        for first in 0..2 {
            let events = [Lose(1), Pass(60), FenceAddress(1), Pass(5), Release(first), Pass(30)];
            History::of(&events).holds();
        }
    }
}

#[test]
fn inv6_a_member_that_answers_is_not_fenced_while_it_is_evacuated() {
    if on(Facet::Answering) {
        History::of(&[Lose(1), Pass(22), Return(1, 14), Pass(4), Evacuate(1), Pass(10)]).holds();
    }
}

#[test]
fn inv3_an_entry_is_put_back_while_incus_hangs() {
    if on(Facet::HangingIncus) {
        for nth in 0..3 {
            History::of(&[Lose(1), Pass(60), IncusHangs(25), RemoveEntry(nth), Pass(40)]).holds();
        }
    }
}

#[test]
fn inv2_a_guardian_without_incus_releases_nobody_whose_gate_is_open() {
    if on(Facet::WithoutIncus) {
        History::of(&[Lose(1), Pass(60), PowerOff(1), TakeOver(1), Release(0), Pass(20)]).holds();
    }
}

/// The gate was to be closed, and nobody answered: that the ledger names no member any more says nothing.
#[test]
fn inv2_a_gate_that_nobody_saw_closed_holds_a_release_without_incus_up() {
    if on(Facet::WithoutIncus) {
        History::of(&[Lose(0), Pass(45), Reboot(0), Lose(0), Lose(1), Pass(15), TakeOver(1), Pass(27)])
            .holds();
    }
}

#[test]
fn inv1_every_pool_that_images_lie_in_is_proved() {
    if on(Facet::DataPools) {
        for data in [DataPool::Apart, DataPool::TaggedForFiles, DataPool::InHeadersAlone, DataPool::Excepted]
        {
            History::shaped(|shape| shape.data = data, &[Stick(1), Lose(1), Pass(60)]).holds();
        }
    }
}

#[test]
fn what_waits_for_long_is_an_alarm() {
    if on(Facet::WaitsAreAlarms) {
        History::of(&[Stick(0), Lose(1), Pass(120)]).holds();
        History::of(&[Unreadable(1), Lose(2), Pass(120)]).holds();
        History::of(&[Partial(1), Lose(2), Pass(120)]).holds();
        History::of(&[Lose(1), Pass(60), LookUnread(true), Reboot(1), Pass(120)]).holds();
    }
}

#[test]
fn a_floating_address_holds_no_fence_back() {
    if on(Facet::Floating) {
        let events = [Lose(0), Pass(5), Float(1), TakeOver(0), Pass(60)];
        History::shaped(|shape| shape.floating = true, &events).holds();
    }
}

/// Live members told their interfaces when it was lost, and are asked once more for its fence.
#[test]
fn inv6_an_address_that_moves_between_the_last_reading_and_the_fence_is_not_refused() {
    if on(Facet::Floating) {
        for said in [false, true] {
            let special = |shape: &mut Shape| (shape.floating, shape.said) = (true, said);
            for between in 21..30 {
                History::shaped(special, &[Lose(0), Pass(between), Float(1), Pass(45)]).holds();
            }
        }
    }
}

#[test]
fn inv6_nothing_is_learnt_from_another_cluster_of_the_same_name() {
    if on(Facet::SecondCluster) {
        History::shaped(|shape| shape.second_cluster = true, &[Lose(1), Pass(60)]).holds();
    }
}

#[test]
fn inv2_no_gate_opens_where_the_images_are_in_another_cluster_of_the_same_name() {
    if on(Facet::SecondCluster) {
        for said in [false, true] {
            let special = |shape: &mut Shape| (shape.wrong_cluster, shape.said) = (true, said);
            History::shaped(special, &[Lose(1), Pass(60)]).holds();
            History::shaped(special, &[Lose(1), Pass(60), Fence(1, true), Pass(60)]).holds();
        }
    }
}

/// It does not know yet that the images are elsewhere, and the fence is one that an operator accepted as it is.
#[test]
fn inv2_a_guardian_that_takes_over_counts_no_pool_as_covered_before_it_looked_into_it() {
    if on(Facet::SecondCluster) {
        let special = |shape: &mut Shape| shape.wrong_cluster = true;
        History::shaped(special, &[Fence(0, true), Pass(37), TakeOver(2), Pass(10)]).holds();
        // Nor before it has read which images there are.
        for unlisted in [2, 14] {
            let events = [Fence(0, true), Pass(22), TakeOver(0), Partial(unlisted), Pass(13)];
            History::shaped(special, &events).holds();
        }
    }
}

#[test]
fn inv2_an_image_that_is_gone_keeps_the_gate_of_its_member_closed() {
    if on(Facet::SecondCluster) {
        for gone in [1, 4] {
            History::of(&[Gone(gone), Pass(5), Lose(1), Pass(90)]).holds();
        }
    }
}

/// It is judged by interfaces of before: whatever lives at its old address came later than their reading. A guardian that
/// takes over meanwhile knows no more.
#[test]
fn inv6_a_member_that_is_lost_before_its_new_interfaces_are_read_takes_nobody_with_it() {
    if on(Facet::Renumbering) {
        for hyperconverged in [false, true] {
            let special = |shape: &mut Shape| shape.hyperconverged = hyperconverged;
            for between in (0..24).step_by(2) {
                History::shaped(special, &[Renumber(38), Pass(between), Lose(38), Pass(60)]).holds();
                let events = [Renumber(38), Pass(between), Lose(38), TakeOver(2), Pass(60)];
                History::shaped(special, &events).holds();
            }
        }
    }
}

/// A release asked for all clients as fast as an image or a monitor failed.
#[test]
fn a_release_rests_between_two_questions_for_all_clients() {
    History::of(&[FailsAtOnce(true), Lose(1), Pass(60), LookUnread(true), Reboot(1), Pass(40)]).holds();
}

/// So did every other question that fails.
#[test]
fn what_fails_at_once_is_asked_again_after_a_pause() {
    for fault in
        [LedgerDown, MonitorsSilent, IncusHangs(0), Unanswered(1), Unwritable(0), Stick(0), Partial(7)]
    {
        History::of(&[FailsAtOnce(true), Lose(1), Pass(40), fault, Pass(30)]).holds();
        History::of(&[FailsAtOnce(true), Lose(1), Pass(60), fault, RemoveEntry(0), Pass(30)]).holds();
        History::of(&[FailsAtOnce(true), Lose(1), Pass(60), fault, Reboot(1), Pass(30)]).holds();
    }
}

#[test]
fn inv1_a_pg_that_answers_late_is_waited_for() {
    if on(Facet::LatePgs) {
        for seconds in [1, 20, 55] {
            let events =
                [SlowPg(0, seconds), Lose(1), Pass(50), RemoveEntry(0), Pass(100), Reboot(1), Pass(30)];
            History::of(&events).holds();
        }
    }
}

/// The alarm of a fence that waits for PGs is told once, though its words name fewer PGs each time one answers.
#[test]
fn an_alarm_is_told_again_only_when_its_meaning_changes() {
    let mut world = World::new(History::of(&[]).shape);
    world.warms_up();
    for pg in 0..4 {
        world.slows(IMAGES, pg, Duration::from_secs(45 + 15 * u64::from(pg)));
    }
    world.happens(Lose(1));
    let mut shown = BTreeSet::new();
    for _ in 0..120 {
        world.happens(Pass(1));
        let status = world.guardian.status(world.now());
        shown.extend(status.alarms.into_iter().filter(|one| one.code == "pending").map(|one| one.text));
    }
    assert_eq!(world.broken, None, "{:#?}", world.log);
    assert!(shown.len() > 2, "{shown:#?}");
    let told = |line: &&String| line.contains("it waits since") && !line.contains("alarm-over");
    assert_eq!(world.log.iter().filter(told).count(), 1, "{:#?}", world.log);
}
