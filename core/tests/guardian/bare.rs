//! A guardian without an Incus to see (`[incus]` is not configured) beside a gate that others wrote: it takes nothing for closed
//! that the ledger says is open.

use rbd_guardian_core::fence::step::Step;
use rbd_guardian_core::guardian::io::Effect;
use rbd_guardian_core::guardian::settings::Settings;
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::record::FenceState;

use crate::model::{Model, settings};
use crate::{SECOND, sealed};

fn bare() -> Settings {
    Settings { platform: false, ..settings() }
}

fn release(member: &str) -> Request {
    Request::Release {
        fence: member.to_owned(),
        since: None,
        assert_powered_off: true,
        reason: Some("pulled the plug".to_owned()),
        by: "root@h".to_owned(),
    }
}

fn removes(model: &Model) -> bool {
    let removal = |effect: &Effect| matches!(effect, Effect::Release(_, Step::Remove(_)));
    model.effects.iter().any(removal)
}

fn names_n2(model: &Model) -> bool {
    model.ledger.gate.as_ref().is_some_and(|gate| gate.open.contains("n2"))
}

/// INV-2: it was started so, or its configuration was read again without `[incus]`.
#[test]
fn inv2_a_release_without_an_incus_waits_while_the_ledger_says_that_the_gate_names_the_member() {
    for reloaded in [false, true] {
        let mut model = sealed("n2");
        assert!(names_n2(&model) && model.seals().contains("n2"));
        if reloaded {
            model.guardian.reconfigure(bare());
        } else {
            model.restart_with(bare());
        }
        model.ask(1, release("n2"));
        model.run(120 * SECOND);
        assert!(!removes(&model), "its instances may start elsewhere without a fence: {:#?}", model.logs());
        assert!(model.refuses("n2") && model.seals().contains("n2"));
        assert!(model.alarms().contains("gate-unseen"), "{:?}", model.alarms());
        // One that sees Incus closes the gate and goes on.
        model.restart_with(settings());
        model.until("released", |model| {
            model.ledger.fences.values().all(|fence| fence.state == FenceState::Released)
        });
        assert!(!model.refuses("n2") && !model.seals().contains("n2"));
    }
}

/// INV-3: an entry that goes is put back by one that cannot close the gate.
#[test]
fn inv3_without_an_incus_a_removed_entry_is_put_back_and_the_fence_is_sealed_again() {
    let mut model = sealed("n2");
    model.restart_with(bare());
    model.run(5 * SECOND);
    model.remove_entry("10.0.0.2:0/0");
    model.until("put back", |model| model.refuses("n2"));
    model.until("sealed again", |model| model.state("n2") == "sealed");
    assert!(names_n2(&model), "it writes nothing of a gate that it does not see");
}

#[test]
fn without_a_gate_in_the_ledger_a_guardian_without_an_incus_releases() {
    let mut model = sealed("n2");
    model.clear_gate();
    model.ledger.gate = None;
    model.restart_with(bare());
    model.ask(1, release("n2"));
    model.until("released", |model| !model.refuses("n2"));
}
