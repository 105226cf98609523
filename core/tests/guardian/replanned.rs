//! A plan whose first entry has to wait is judged again: addresses and daemons move meanwhile (INV-6).

use rbd_guardian_core::fence::step::Step;
use rbd_guardian_core::guardian::io::Effect;
use rbd_guardian_core::model::ceph_snapshot::{Daemon, DaemonKind, Role};

use crate::SECOND;
use crate::addresses::{has, learning, osd, refuses};
use crate::model::Model;

fn mgr(name: &str, at: &str, role: Role) -> Daemon {
    Daemon { kind: DaemonKind::Mgr, role, ..osd(name, at) }
}

/// A fence of n2 was planned, and waits for the ledger for so long that what it was planned by is out of date.
fn waits_for_the_ledger(mut model: Model) -> Model {
    model.run(180 * SECOND);
    model.lose("n2");
    model.run(25 * SECOND);
    model.ledger_down = true;
    model.heal_is_refused("n2");
    model.until("planned", |model| model.logs().iter().any(|line| line.starts_with("intended Some(\"n2\")")));
    model.run(20 * SECOND);
    assert!(model.ledger.fences.is_empty() && !refuses(&model, "10.0.0.2:0/200"));
    model
}

#[test]
fn inv6_an_address_that_moved_while_the_intent_waited_for_the_ledger_is_not_refused() {
    let mut model = learning();
    has(&mut model, "n2", &["10.0.0.2/24", "10.0.0.50/24"]);
    let mut model = waits_for_the_ledger(model);
    has(&mut model, "n1", &["10.0.0.1/24", "10.0.0.50/24"]);
    model.ledger_down = false;
    model.until("the gate is open", |model| model.seals().contains("n2"));
    assert!(refuses(&model, "10.0.0.2:0/200"));
    assert!(!refuses(&model, "10.0.0.50:0/7"), "it is n1's now: {:#?}", model.logs());
}

#[test]
fn inv6_a_mgr_that_became_active_there_while_the_intent_waited_is_moved_before_the_first_entry() {
    let mut model = learning();
    model.daemons.extend([mgr("x", "10.0.0.2", Role::Standby), mgr("y", "10.0.0.250", Role::Active)]);
    let mut model = waits_for_the_ledger(model);
    for daemon in model.daemons.iter_mut().filter(|daemon| daemon.kind == DaemonKind::Mgr) {
        daemon.role = if daemon.name == "x" { Role::Active } else { Role::Standby };
    }
    model.ledger_down = false;
    let moves = |effect: &Effect| matches!(effect, Effect::Fence(_, Step::FailOver(_)));
    let sent = |effect: &Effect| matches!(effect, Effect::Fence(_, Step::Add(_)));
    model.until("it is moved", |model| model.effects.iter().any(moves));
    assert!(!model.effects.iter().any(sent), "{:#?}", model.logs());
}

/// A look that fails says nothing: the plan waits for one, and the wait is told.
#[test]
fn inv6_a_plan_that_waited_is_not_carried_out_without_a_new_look() {
    let mut model = waits_for_the_ledger(learning());
    model.looks_fail = true;
    model.ledger_down = false;
    model.run(40 * SECOND);
    assert!(!model.changed_storage(), "{:#?}", model.logs());
    let told = |line: &String| line.contains("a new look at the storage, as it was planned some time ago");
    assert!(model.logs().iter().any(told), "{:#?}", model.logs());
    model.looks_fail = false;
    model.until("the gate is open", |model| model.seals().contains("n2"));
}
