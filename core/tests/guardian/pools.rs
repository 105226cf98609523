//! Pools that come to be guarded while fences are held.

use std::time::Duration;

use rbd_guardian_core::fence::step::Step;
use rbd_guardian_core::guardian::io::Effect;
use rbd_guardian_core::guardian::settings::Settings;
use rbd_guardian_core::model::gate_keys::POOLS;
use rbd_guardian_core::model::osdmap::{Guarded, Pool};
use rbd_guardian_core::model::policy::Policy;

use crate::model::{Model, settings};
use crate::{SECOND, fence};

/// A second pool of the storage, and a storage pool on it unless it is said to be for something else.
fn second(model: &mut Model, applications: &[&str]) {
    let pool = Pool {
        name: "second".into(),
        pg_num: 16,
        overlay: None,
        eio: false,
        unclear: None,
        applications: applications.iter().map(|&app| app.to_owned()).collect(),
    };
    model.change(|map| map.pools.extend([(2, pool)]));
    if !applications.contains(&"cephfs") {
        name_it(model);
    }
}

/// Incus gets a storage pool on it.
fn name_it(model: &mut Model) {
    let pools = model.view.pools.as_mut().unwrap();
    let mut storage = pools["remote"].clone();
    storage.osd_pool = Some("second".into());
    pools.insert("more".into(), storage);
}

fn except(second: bool) -> Settings {
    let except = second.then(|| "second".to_owned()).into_iter().collect();
    Settings {
        policy: Policy { guarded: Guarded { except, ..Guarded::default() }, ..Policy::default() },
        ..settings()
    }
}

/// Open for n2, and `second` is not guarded.
fn held(applications: &[&str]) -> Model {
    let mut model = Model::new();
    second(&mut model, applications);
    model.guardian.reconfigure(except(applications.is_empty()));
    model.run(10 * SECOND);
    model.lose_until_open("n2");
    assert!(!covers(&model));
    model
}

fn covers(model: &Model) -> bool {
    model.keys_of("n1").unwrap()[POOLS].split(',').any(|pool| pool == "more")
}

/// Nobody may be placed from n2 onto the second pool, until its PGs have answered.
#[track_caller]
fn is_proved_first(mut model: Model) {
    let asked = |model: &Model| {
        let asks = |effect: &&Effect| {
            matches!(effect, Effect::Fence(_, Step::Barrier { pools, .. })
                if pools.iter().any(|pool| pool.name == "second"))
        };
        model.effects.iter().filter(asks).count()
    };
    model.until("it is asked", |model| asked(model) > 0);
    model.ask(1, fence("n2"));
    for _ in 0..200 {
        model.step();
        assert!(!(covers(&model) && model.seals().contains("n2")), "open for it and not proved");
        assert!(model.answers().is_empty(), "told to be sealed");
    }
    assert_eq!(model.state("n2"), "pending");
    model.silent.clear();
    model.until("open", |model| model.seals().contains("n2") && covers(model));
    assert!(!model.audit.iter().any(|what| what.ends_with("breached")), "{:?}", model.audit);
    assert_eq!(model.answers().len(), 1);
}

#[test]
fn inv1_a_pool_that_the_configuration_excepts_no_more_is_proved_before_the_gate_is_open_for_it() {
    let mut model = held(&[]);
    model.silent = [12].into();
    model.guardian.reconfigure(except(false));
    is_proved_first(model);
}

#[test]
fn inv1_a_pool_that_is_tagged_for_images_later_is_proved_before_the_gate_is_open_for_it() {
    let mut model = held(&["cephfs"]);
    model.silent = [12].into();
    model.change(|map| map.pools.get_mut(&2).unwrap().applications.push("rbd".into()));
    name_it(&mut model);
    is_proved_first(model);
}

/// Incus keeps images there, whatever the tags of the pool say.
#[test]
fn inv1_a_pool_that_incus_names_later_is_proved_before_the_gate_is_open_for_it() {
    let mut model = held(&["cephfs"]);
    model.silent = [12].into();
    name_it(&mut model);
    is_proved_first(model);
}

/// The pool of the headers is proved from the beginning; the data lies in another one, tagged for something else.
#[test]
fn inv1_the_data_pool_of_a_storage_pool_is_proved_before_the_gate_is_open_for_it() {
    let mut model = held(&["cephfs"]);
    model.silent = [12].into();
    let pools = model.view.pools.as_mut().unwrap();
    let mut storage = pools["remote"].clone();
    storage.data_pool = Some("second".into());
    pools.insert("more".into(), storage);
    is_proved_first(model);
}

/// A part that the operator excepts is not proved, so what lies in it is not covered, and that is an alarm.
#[test]
fn inv1_a_storage_pool_with_an_excepted_part_is_not_covered_and_an_alarm_says_so() {
    let mut model = Model::new();
    second(&mut model, &["cephfs"]);
    model.view.pools.as_mut().unwrap().get_mut("remote").unwrap().data_pool = Some("second".into());
    model.guardian.reconfigure(except(true));
    model.run(10 * SECOND);
    model.lose_until_open("n2");
    assert!(
        !model
            .keys_of("n1")
            .unwrap()
            .get(POOLS)
            .is_some_and(|pools| pools.split(',').any(|pool| pool == "remote"))
    );
    assert!(model.alarms().contains("pool-excepted"), "{:?}", model.alarms());
    model.guardian.reconfigure(except(false));
    model.until("covered", |model| {
        model.seals().contains("n2")
            && model.keys_of("n1").unwrap()[POOLS].split(',').any(|pool| pool == "remote")
    });
    assert!(!model.alarms().contains("pool-excepted"), "{:?}", model.alarms());
    let proved =
        model.ledger.fences.values().any(|fence| fence.proofs.iter().any(|proof| proof.pool == "second"));
    assert!(proved, "{:#?}", model.ledger.fences);
}

#[test]
fn inv8_that_one_more_pool_is_proved_is_told_when_it_is_recorded() {
    let mut model = held(&["cephfs"]);
    model.ledger_down = true;
    model.change(|map| map.pools.get_mut(&2).unwrap().applications.push("rbd".into()));
    name_it(&mut model);
    model.run(10 * SECOND);
    model.ask(1, fence("n2"));
    model.run(10 * SECOND);
    assert_eq!((model.state("n2"), model.answers().len()), ("sealed", 0), "told and not recorded");
    model.ledger_down = false;
    model.until("told", |model| model.answers().len() == 1);
}

#[test]
fn inv1_a_pool_that_is_created_later_is_proved_before_the_gate_is_open_for_it() {
    let mut model = Model::new();
    model.run(10 * SECOND);
    model.lose_until_open("n2");
    model.silent = [12].into();
    second(&mut model, &["rbd"]);
    is_proved_first(model);
}

#[test]
fn inv1_a_guardian_that_takes_over_with_another_configuration_proves_what_it_guards() {
    let mut model = held(&[]);
    model.silent = [12].into();
    model.restart_with(Settings { boot_id: "boot-2".to_owned(), ..except(false) });
    is_proved_first(model);
}

#[test]
fn a_pool_that_is_guarded_no_more_is_not_waited_for() {
    let mut model = held(&["cephfs"]);
    model.silent = [12].into();
    model.change(|map| map.pools.get_mut(&2).unwrap().applications.push("rbd".into()));
    name_it(&mut model);
    model.until("pending", |model| model.state("n2") == "pending");
    model.run(Duration::from_secs(20));
    assert_eq!(model.seals().len(), 0);
    model.guardian.reconfigure(except(true));
    model.until("open", |model| model.seals().contains("n2"));
    assert!(!covers(&model));
    // What was not asked to the end is not in the record: who guards it again asks it again (INV-1).
    model.restart_with(Settings { boot_id: "boot-2".to_owned(), ..except(false) });
    model.run(Duration::from_secs(20));
    assert_eq!(model.seals().len(), 0);
}
