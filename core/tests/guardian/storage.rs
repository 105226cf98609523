//! What the storage shows that is not as usual: maps that were missed or trimmed, items that were not understood.

use rbd_guardian_core::fence::step::Step;
use rbd_guardian_core::guardian::io::Effect;
use rbd_guardian_core::model::epoch::OsdEpoch;
use rbd_guardian_core::model::osdmap::MAPS_AT_ONCE;

use crate::SECOND;
use crate::model::Model;

fn asked_for_maps(model: &Model) -> Vec<OsdEpoch> {
    let after = |effect: &Effect| if let Effect::ReadMaps { after } = effect { Some(*after) } else { None };
    model.effects.iter().filter_map(after).collect()
}

/// INV-3: a part that is full is followed by the next one at once, and an entry that was gone in any of them is a breach.
#[test]
fn inv3_missed_maps_are_examined_part_by_part_without_a_pause() {
    let mut model = Model::new();
    model.run(10 * SECOND);
    model.lose_until_open("n2");
    let entry = model.map().blocklist.entries.keys().next().copied().unwrap();
    let until = model.map().blocklist.entries[&entry];
    for number in 0..16 * MAPS_AT_ONCE {
        model.change(|map| {
            if number == 8 * MAPS_AT_ONCE {
                map.blocklist.entries.remove(&entry);
            } else {
                map.blocklist.entries.insert(entry, until);
            }
        });
    }
    let (newest, before) = (model.map().epoch, asked_for_maps(&model).len());
    let began = model.now().boot;
    model.until("caught up", |model| asked_for_maps(model).last().is_some_and(|after| *after >= newest));
    let parts = asked_for_maps(&model).len() - before;
    assert!(parts >= 8, "{parts}");
    // Maps are read each second while a fence is held: the parts come faster.
    assert!(model.now().boot - began < 5 * SECOND, "{:?}", model.now().boot - began);
    assert!(model.logs().iter().any(|line| line.contains("breached")), "{:#?}", model.logs());
}

/// The monitors keep some hundreds of maps: what they dropped is told, and an entry that ends as before stood.
#[test]
fn inv3_epochs_that_the_monitors_dropped_are_told() {
    let mut model = Model::new();
    model.run(10 * SECOND);
    model.lose_until_open("n2");
    let known = model.map().epoch;
    for _ in 0..9 {
        model.change(|_| ());
    }
    let newest = model.map().epoch;
    model.maps.retain(|map| map.epoch <= known || map.epoch == newest);
    model.run(5 * SECOND);
    let told: Vec<String> =
        model.logs().into_iter().filter(|line| line.contains("before this guardian read them")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    let dropped = format!("{} to {}", known.later(1), newest.earlier(1));
    assert!(told[0].contains(&dropped), "{dropped}: {told:?}");
    assert_eq!(model.state("n2"), "sealed");
}

/// One strange item is an alarm, and the hold goes on beside it.
#[test]
fn inv3_an_item_that_is_not_understood_is_shown_and_the_hold_goes_on() {
    let mut model = Model::new();
    model.run(10 * SECOND);
    model.lose_until_open("n2");
    model.change(|map| map.not_understood.push("the blocklist entry '-'".to_owned()));
    model.until("it is shown", |model| model.alarms().contains("not-understood"));
    let entry = model.map().blocklist.entries.keys().next().unwrap().to_string();
    model.remove_entry(&entry);
    let stands = |model: &Model| model.map().blocklist.entries.keys().any(|key| key.to_string() == entry);
    model.until("it is put back", stands);
    model.change(|map| map.not_understood.clear());
    model.until("it is over", |model| !model.alarms().contains("not-understood"));
}

/// A user that could not be read keeps the gate of the member whose image it is, and no other.
#[test]
fn inv2_an_unknown_user_keeps_only_its_own_members_gate() {
    let mut model = Model::new();
    model.run(10 * SECOND);
    let of = |member: &str| format!("container_c{}", &member[1..]);
    let strange = |model: &mut Model, member: &str| {
        let one = model.uses.iter_mut().find(|one| one.image.name == of(member)).unwrap();
        one.unknown.push("watcher client.9 with the address '-'".to_owned());
    };
    strange(&mut model, "n1");
    model.lose_until_open("n2");
    let mut model = Model::new();
    model.run(10 * SECOND);
    strange(&mut model, "n2");
    model.lose("n2");
    model.run(3 * SECOND);
    model.heal_is_refused("n2");
    model.until("sealed", |model| model.state("n2") == "sealed");
    model.run(20 * SECOND);
    assert!(!model.seals().contains("n2"));
    model.uses.iter_mut().for_each(|one| one.unknown.clear());
    model.until("the gate is open", |model| model.seals().contains("n2"));
}

/// A lock without an address, and without a watch of its owner, holds nothing up.
#[test]
fn a_lock_without_an_address_holds_no_gate_up() {
    let mut model = Model::new();
    model.run(10 * SECOND);
    for one in &mut model.uses {
        let lock = rbd_guardian_core::model::image_users::Locker {
            owner: "client.4125".to_owned(),
            cookie: "auto 1".to_owned(),
            address: None,
        };
        one.locks.push(lock);
    }
    model.lose_until_open("n2");
}

/// INV-1: what a PG answered counts for entries that stand since the epoch that was asked with, or longer.
#[test]
fn inv1_each_barrier_names_the_epoch_since_which_the_entries_stand() {
    let mut model = Model::new();
    model.run(10 * SECOND);
    model.lose_until_open("n2");
    let asked = |model: &Model| -> Vec<OsdEpoch> {
        let epoch = |effect: &Effect| match effect {
            Effect::Fence(_, Step::Barrier { epoch, .. }) => Some(*epoch),
            _ => None,
        };
        model.effects.iter().filter_map(epoch).collect()
    };
    let first = *asked(&model).last().unwrap();
    let stood = |model: &Model, epoch: OsdEpoch| {
        let map = model.maps.iter().find(|map| map.epoch == epoch).unwrap();
        map.blocklist.entries.keys().any(|entry| entry.to_string() == "10.0.0.2:0/0")
    };
    assert!(stood(&model, first));
    let entry = "10.0.0.2:0/0";
    model.remove_entry(entry);
    let removed = model.map().epoch;
    model.until("asked again", |model| asked(model).last().is_some_and(|epoch| *epoch > first));
    let again = *asked(&model).last().unwrap();
    assert!(again > removed && stood(&model, again), "{first} {removed} {again}");
}

/// Maps come all the time: an operation with the newest one would begin the wait of a late PG anew each time.
#[test]
fn inv1_a_late_pg_is_asked_again_with_the_epoch_of_the_entries_whatever_maps_come() {
    let mut model = Model::new();
    model.run(10 * SECOND);
    model.silent = [3].into();
    model.lose("n2");
    model.run(3 * SECOND);
    model.heal_is_refused("n2");
    model.until("pending", |model| model.state("n2") == "pending");
    let asked = |model: &Model| -> Vec<OsdEpoch> {
        let epoch = |effect: &Effect| match effect {
            Effect::Fence(_, Step::Barrier { epoch, .. }) => Some(*epoch),
            _ => None,
        };
        model.effects.iter().filter_map(epoch).collect()
    };
    let (first, before) = (*asked(&model).last().unwrap(), asked(&model).len());
    for _ in 0..5 {
        model.change(|_| ());
        model.run(5 * SECOND);
    }
    let since = &asked(&model)[before..];
    assert!(since.len() >= 3 && since.iter().all(|epoch| *epoch == first), "{first}: {since:?}");
}

/// A map that did not change is not sent again, and stands for a fresh one.
#[test]
fn a_map_that_is_the_newest_still_is_as_good_as_read_once_more() {
    let mut model = Model::new();
    model.run(10 * SECOND);
    let (before, epoch) = (asked_for_maps(&model).len(), model.map().epoch);
    model.run(60 * SECOND);
    let asked = asked_for_maps(&model)[before..].to_vec();
    assert!(asked.len() >= 5 && asked.iter().all(|after| *after == epoch), "{asked:?}");
    assert!(model.guardian.status(model.now()).storage.fresh);
}
