//! Fences that have to do with each other, and with what was before: two on one entry, one member fenced again and
//! again, and what the record says of when each was lifted.

use std::time::Duration;

use rbd_guardian_core::fence::step::Step;
use rbd_guardian_core::guardian::io::{Effect, Input};
use rbd_guardian_core::guardian::report::{Outcome, Report};
use rbd_guardian_core::model::addr::Entry;
use rbd_guardian_core::model::fence_id::FenceId;
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::record::{FenceRecord, FenceState, Removal};
use rbd_guardian_core::model::target::Target;

use crate::hold::{YEAR, client};
use crate::model::Model;
use crate::{SECOND, fence_anyway, fence_of, healthy, sealed};

fn entry(text: &str) -> Entry {
    text.parse().unwrap()
}

fn release_of(fence: &str) -> Request {
    let (reason, by) = (Some("it is off".to_owned()), "root@h".to_owned());
    Request::Release { fence: fence.to_owned(), since: None, assert_powered_off: true, reason, by }
}

/// The newest fence of a member, or of bare addresses.
fn newest<'m>(model: &'m Model, member: Option<&str>) -> &'m FenceRecord {
    let of_it = model.ledger.fences.values().filter(|fence| fence.member.as_deref() == member);
    of_it.max_by_key(|fence| fence.since).unwrap()
}

fn released(model: &Model, number: u64) -> Option<FenceRecord> {
    model.answers().into_iter().find_map(|(answered, outcome)| match outcome {
        Outcome::Released(record) if answered == number => Some(*record),
        _ => None,
    })
}

/// n2 is fenced as a member, and by bare addresses as well.
fn twice(bare: &[&str]) -> Model {
    let mut model = sealed("n2");
    model.uses.retain(|one| !one.image.name.ends_with("c2"));
    model.ask(1, fence_of(Target::Addresses(bare.iter().map(|text| entry(text)).collect())));
    model.until("sealed", |model| matches!(model.answers()[..], [(1, Outcome::Sealed(..))]));
    model
}

fn accused(model: &Model) -> Vec<String> {
    let codes = ["breached", "breached-by", "tampered", "lifted"];
    model.logs().into_iter().filter(|line| codes.iter().any(|code| line.starts_with(code))).collect()
}

/// While it runs the host is refused, and the gate stays as it is.
fn run_refused(model: &mut Model, time: Duration) {
    let end = model.boot + time;
    while model.boot < end {
        model.step();
        assert!(model.refuses("n2"), "lifted with another fence");
    }
}

#[test]
fn inv3_a_release_leaves_what_another_fence_rests_on() {
    let mut model = twice(&["10.0.0.2:0/0"]);
    let bare = newest(&model, None).id.clone();
    model.ask(2, release_of(bare.as_str()));
    run_refused(&mut model, 60 * SECOND);
    let record = released(&model, 2).unwrap();
    assert!(record.refused_by.iter().any(|listed| listed.to_string() == "10.0.0.2:0/0"), "{record:#?}");
    assert_eq!((model.state("n2"), model.seals().contains("n2")), ("sealed", true));
    assert_eq!(accused(&model), Vec::<String>::new());

    // And the other way round.
    let mut model = twice(&["10.0.0.2:0/0"]);
    model.ask(2, release_of("n2"));
    run_refused(&mut model, 60 * SECOND);
    let record = released(&model, 2).unwrap();
    assert_eq!((record.member.as_deref(), record.refused_by.len()), (Some("n2"), 1));
    assert_eq!(newest(&model, None).state, FenceState::Sealed);
    assert_eq!(accused(&model), Vec::<String>::new());
    assert!(model.logs().iter().any(|line| line.starts_with("still-refused")), "{:#?}", model.logs());
    let bare = newest(&model, None).id.clone();
    model.ask(3, release_of(bare.as_str()));
    model.until("released", |model| !model.refuses("n2"));
    model.until("told", |model| released(model, 3).is_some_and(|record| record.refused_by.is_empty()));
    assert!(model.map().blocklist.refuses(client("10.0.0.2:0/200")), "INV-4");
}

#[test]
fn inv3_a_client_entry_that_another_fence_holds_outlives_both_ways() {
    let mut model = twice(&["10.0.0.2:0/200"]);
    let bare = newest(&model, None).id.clone();
    model.ask(2, release_of(bare.as_str()));
    model.until("released", |model| released(model, 2).is_some());
    model.boot += 91 * 86_400 * SECOND;
    model.run(60 * SECOND);
    assert!(model.map().blocklist.refuses(client("10.0.0.2:0/200")));
    assert!(model.map().blocklist.entries.contains_key(&"10.0.0.2:0/200".parse().unwrap()), "the member's");
    assert_eq!(accused(&model), Vec::<String>::new());
}

#[test]
fn inv3_two_that_are_released_at_once_leave_nothing_behind() {
    let mut model = twice(&["10.0.0.2:0/0"]);
    let bare = newest(&model, None).id.clone();
    model.ask(2, release_of(bare.as_str()));
    model.ask(3, release_of("n2"));
    model.until("both", |model| released(model, 2).is_some() && released(model, 3).is_some());
    assert!(!model.refuses("n2"));
    assert!(model.map().blocklist.refuses(client("10.0.0.2:0/200")), "INV-4");
    assert_eq!(accused(&model), Vec::<String>::new());
}

/// It is planned when the removal is decided, recorded, and not sent yet.
#[test]
fn inv3_a_fence_that_begins_while_another_is_released_is_not_lifted_with_it() {
    let mut model = sealed("n2");
    model.uses.retain(|one| !one.image.name.ends_with("c2"));
    model.ask(1, release_of("n2"));
    let deciding = |model: &Model| {
        let removes = |effect: &Effect| matches!(effect, Effect::Release(_, Step::ReadClients));
        model.effects.iter().any(removes)
    };
    model.until("about to remove", deciding);
    model.ask(2, fence_of(Target::Addresses([entry("10.0.0.2:0/0")].into())));
    model.until("sealed", |model| {
        model.answers().iter().any(|(number, outcome)| *number == 2 && matches!(outcome, Outcome::Sealed(..)))
    });
    run_refused(&mut model, 60 * SECOND);
    assert_eq!(accused(&model), Vec::<String>::new());
}

#[test]
fn a_range_of_others_that_refuses_a_released_member_is_told() {
    let mut model = sealed("n2");
    let until = model.now().wall + Duration::from_secs(5 * YEAR);
    model.change(|map| map.blocklist.ranges.extend([("10.0.0.0/24".parse().unwrap(), until)]));
    model.ask(1, release_of("n2"));
    model.until("released", |model| released(model, 1).is_some());
    let record = released(&model, 1).unwrap();
    assert_eq!(record.refused_by.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/24"]);
    model.until("told", |model| model.alarms().contains("orphan-entry"));
    let alarms = model.guardian.alarms();
    let alarm = alarms.iter().find(|alarm| alarm.code == "orphan-entry").unwrap();
    assert!(alarm.advice[0].contains("ceph osd blocklist range rm 10.0.0.0/24"), "{alarm:?}");
}

#[test]
fn inv3_nobody_is_named_for_what_an_earlier_guardian_removed_itself() {
    let mut model = healthy();
    let soon = model.now().wall + 3600 * SECOND;
    model.change(|map| map.blocklist.entries.extend([("10.0.0.2:0/200".parse().unwrap(), soon)]));
    model.lose_until_open("n2");
    model.until("replaced", |model| {
        model.effects.iter().any(|effect| matches!(effect, Effect::Fence(_, Step::Remove(_))))
    });
    model.run(5 * SECOND);
    let record = newest(&model, Some("n2"));
    let at = record.sent[&entry("10.0.0.2:0/200")];
    let removal = |at, address: &str, removed: &str| Removal {
        at,
        entity: "client.admin".to_owned(),
        address: address.to_owned(),
        entry: Some(entry(removed)),
    };
    // It ran elsewhere, with another address.
    let own = removal(at + SECOND, "10.0.0.7:0/7", "10.0.0.2:0/200");
    model.run(600 * SECOND);
    let culprit = removal(model.now().wall, "10.0.0.8:0/8", "10.0.0.2:0/0");
    model.removals = Some(vec![own, culprit.clone()]);
    model.restart("boot-2");
    model.run(5 * SECOND);
    model.remove_entry("10.0.0.2:0/0");
    model.until("recorded", |model| !newest(model, Some("n2")).removals.is_empty());
    assert_eq!(newest(&model, Some("n2")).removals, [culprit]);
}

/// Released for certain, and lost again.
fn again(model: &mut Model, uptime: Duration) {
    model.run(60 * SECOND);
    model.bring_back_until_released("n2", uptime);
    model.run(200 * SECOND);
    model.lose_until_open("n2");
}

#[test]
fn each_fence_has_an_id_and_a_record_of_its_own() {
    let mut model = sealed("n2");
    model.remove_entry("10.0.0.2:0/0");
    model.until("a breach", |model| newest(model, Some("n2")).breaches.len() == 1);
    model.until("open", |model| model.seals().contains("n2"));
    let first = newest(&model, Some("n2")).clone();
    again(&mut model, 40 * SECOND);
    again(&mut model, 20 * SECOND);
    let of_it: Vec<&FenceRecord> = model.ledger.fences.values().collect();
    assert_eq!(of_it.len(), 3, "{of_it:#?}");
    let before = &model.ledger.fences[&first.id];
    assert_eq!((before.state, &before.breaches), (FenceState::Released, &first.breaches));
    assert!(before.released > Some(before.since), "{before:#?}");
    let now = newest(&model, Some("n2"));
    assert_eq!((now.state, now.released, now.breaches.len()), (FenceState::Sealed, None, 0));
    // The ID of one that was released names no other.
    model.ask(7, release_of(first.id.as_str()));
    model.run(20 * SECOND);
    assert!(model.refuses("n2"));
    assert!(matches!(model.answers()[..], [(7, Outcome::Refused(_))]), "{:?}", model.answers());
    // The member's name and the ID without a time do.
    model.restart("boot-2");
    model.run(10 * SECOND);
    assert_eq!(model.state("n2"), "sealed");
    model.ask(8, release_of("n2"));
    model.until("released", |model| !model.refuses("n2"));
}

/// A request that waited in the ledger for a leader is of the fence that was held when it was made, and of no later one.
#[test]
fn inv5_a_release_of_an_earlier_fence_releases_no_later_one_of_the_same_member() {
    let mut model = sealed("n2");
    let first = newest(&model, Some("n2")).since;
    again(&mut model, 40 * SECOND);
    let now = newest(&model, Some("n2")).since;
    assert!(first < now);
    let of = |since| match release_of("n2") {
        Request::Release { fence, assert_powered_off, reason, by, .. } => {
            Request::Release { fence, since: Some(since), assert_powered_off, reason, by }
        }
        other => other,
    };
    model.ask(7, of(first));
    run_refused(&mut model, 20 * SECOND);
    assert!(matches!(model.answers()[..], [(7, Outcome::Refused(_))]), "{:?}", model.answers());
    model.ask(8, of(now));
    model.until("released", |model| !model.refuses("n2"));
}

#[test]
fn the_same_fence_asked_for_again_is_the_one_that_stands() {
    for target in [Target::Member("n2".to_owned()), Target::Addresses([entry("10.0.0.2:0/0")].into())] {
        let mut model = healthy();
        for number in 1..=3 {
            model.ask(number, fence_anyway(target.clone()));
            model.until("sealed", |model| model.answers().len() as u64 == number);
        }
        assert_eq!(model.ledger.fences.len(), 1, "{target:?}: {:#?}", model.ledger.fences);
        // Also for a guardian that takes over what was only intended.
        let record = model.ledger.fences.values_mut().next().unwrap();
        (record.state, record.sealed, record.proofs) = (FenceState::Intended, None, Vec::new());
        model.restart("boot-2");
        model
            .until("sealed", |model| model.ledger.fences.values().all(|one| one.state == FenceState::Sealed));
        assert_eq!(model.ledger.fences.len(), 1, "{target:?}: {:#?}", model.ledger.fences);
    }
}

#[test]
fn what_was_released_is_forgotten_after_its_time_and_never_more_than_so_many_are_kept() {
    let mut model = sealed("n2");
    model.run(60 * SECOND);
    model.bring_back_until_released("n2", 20 * SECOND);
    let old = newest(&model, Some("n2")).clone();
    for number in 0..300u32 {
        let earlier = Duration::from_secs(u64::from(number) * 60);
        let (since, released) = (old.since - earlier, Some(model.now().wall - earlier));
        let id = FenceId::from(format!("F-OLD{number}"));
        let copy = FenceRecord { id: id.clone(), since, released, ..old.clone() };
        model.ledger.fences.insert(id, copy);
    }
    let late = entry("10.0.0.2:0/999");
    list_long(&mut model, late);
    model.ledger.fences.get_mut("F-OLD299").unwrap().entries.insert(late, None);
    model.restart("boot-2");
    model.run(300 * SECOND);
    let left = model.ledger.fences.len();
    assert!((200..=257).contains(&left), "{left}");
    assert!(!model.ledger.fences.contains_key("F-OLD299") && model.ledger.fences.contains_key(&old.id));
    assert!(
        model.ledger.fences.values().any(|fence| fence.entries.contains_key(&late)),
        "what stands is some record's"
    );
    // What stands of them ends, and so does their time.
    model.boot += Duration::from_secs(2 * YEAR);
    model.run(300 * SECOND);
    model.change(|map| map.blocklist.entries.clear());
    model.run(1200 * SECOND);
    assert_eq!(model.ledger.fences.len(), 0);
}

fn list_long(model: &mut Model, entry: Entry) {
    crate::hold::list(model, &entry.to_string(), 4 * YEAR);
}

/// A hanging platform keeps no entry out: its last answer is a minute old before anybody knows that it is lost.
#[test]
fn inv3_an_entry_is_put_back_while_the_platform_hangs() {
    let mut model = sealed("n2");
    model.gate_held = Some(Vec::new());
    let asked = model.effects.len();
    model.hangs = true;
    model.until("asked", |model| {
        model.effects[asked..].iter().any(|effect| matches!(effect, Effect::ReadView { .. }))
    });
    model.remove_entry("10.0.0.2:0/0");
    let removed = model.boot;
    model.until("put back", |model| model.refuses("n2"));
    assert!(model.boot - removed < 3 * SECOND, "{:?}", model.boot - removed);
    model.run(20 * SECOND);
    assert_eq!(model.state("n2"), "breached", "the gate is not known to be closed");
    model.hangs = false;
    let failed = Err("does not answer".to_owned());
    model.handle(Input::View { began: model.boot - 30 * SECOND, view: failed });
    model.until("sealed: the platform is not to be reached", |model| model.state("n2") == "sealed");
}

#[test]
fn inv3_the_record_says_from_which_epoch_to_which_it_was_lifted() {
    // By a guardian that looks at every map, by one whose look at the storage skips some, and by a successor.
    for how in ["maps", "look", "takeover"] {
        let mut model = sealed("n2");
        model.run(5 * SECOND);
        let held = model.map().epoch;
        model.remove_entry("10.0.0.2:0/0");
        for _ in 0..20 {
            model.change(|_| ());
        }
        let until = model.now().wall + Duration::from_secs(5 * YEAR);
        model.change(|map| map.blocklist.entries.extend([("10.0.0.2:0/0".parse().unwrap(), until)]));
        let back = model.map().epoch;
        for _ in 0..3 {
            model.change(|_| ());
        }
        match how {
            "look" => {
                let world = model.look();
                model.handle(Input::Looked(Ok(world)));
            }
            "takeover" => model.restart("boot-2"),
            _ => {}
        }
        model.until("sealed again", |model| newest(model, Some("n2")).breaches.len() == 1);
        model.until("open", |model| model.state("n2") == "sealed" && model.seals().contains("n2"));
        model.run(5 * SECOND);
        let [breach] = &newest(&model, Some("n2")).breaches[..] else { panic!() };
        let dated = (breach.held, breach.gone, breach.committed);
        assert_eq!(dated, (Some(held), held.later(1), Some(back)), "{how}");
    }
}

#[test]
fn reports_of_fences_name_nobody_for_a_release() {
    let mut model = sealed("n2");
    model.run(120 * SECOND);
    model.bring_back_until_released("n2", 20 * SECOND);
    model.run(60 * SECOND);
    assert_eq!(accused(&model), Vec::<String>::new());
    assert!(!model.reports.iter().any(|report| matches!(report, Report::Log { code: "still-refused", .. })));
}
