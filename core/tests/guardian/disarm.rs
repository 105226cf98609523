//! An operator lets no fence begin by itself for a while.

use std::time::Duration;

use rbd_guardian_core::guardian::report::Outcome;
use rbd_guardian_core::model::operator_request::Request;

use crate::model::Model;
use crate::{SECOND, fence, healthy, sealed};

const HOUR: Duration = Duration::from_secs(3600);

fn answer(model: &mut Model, number: u64, request: Request) -> Outcome {
    model.ask(number, request);
    model.until("answered", |model| model.answers().iter().any(|(of, _)| *of == number));
    model.answers().iter().find(|(of, _)| *of == number).unwrap().1.clone()
}

fn disarm(model: &mut Model, lasts: Duration) -> Outcome {
    let (reason, by) = (Some("new switches".to_owned()), "root@h".to_owned());
    let until = model.now().wall + lasts;
    answer(model, 1, Request::Disarm { until, reason, by })
}

fn arm(model: &mut Model) -> Outcome {
    answer(model, 2, Request::Arm { reason: None, by: "root@h".to_owned() })
}

#[test]
fn while_it_is_disarmed_a_lost_member_is_not_fenced_and_its_gate_stays_closed() {
    let mut model = healthy();
    assert_eq!(disarm(&mut model, HOUR), Outcome::Noted);
    assert!(model.alarms().contains("disarmed"));
    assert_eq!(model.ledger.disarm.as_ref().unwrap().reason, "new switches");
    model.lose("n2");
    model.run(30 * SECOND);
    for _ in 0..3 {
        model.heal_is_refused("n2");
        model.run(60 * SECOND);
    }
    assert!(!model.changed_storage(), "{:#?}", model.logs());
    assert!(model.seals().is_empty(), "its instances start nowhere else");
    let status = model.guardian.status(model.now());
    let line = status.members.iter().find(|line| line.name == "n2").unwrap();
    assert!(line.waits.as_ref().is_some_and(|waits| waits.contains("disarm")), "{line:?}");
    assert!(model.guardian.why("n2").join("; ").contains("root@h disarmed"));
    // What an operator asks for is done.
    assert!(matches!(answer(&mut model, 7, fence("n2")), Outcome::Sealed(..)));
}

#[test]
fn when_it_is_armed_again_the_member_that_is_still_lost_is_fenced() {
    let mut model = healthy();
    disarm(&mut model, HOUR);
    model.lose("n2");
    model.run(30 * SECOND);
    model.heal_is_refused("n2");
    model.run(30 * SECOND);
    assert!(!model.changed_storage());
    assert_eq!(arm(&mut model), Outcome::Noted);
    assert!(!model.alarms().contains("disarmed") && model.ledger.disarm.is_none());
    model.heal_is_refused("n2");
    model.until("sealed", |model| model.state("n2") == "sealed");
}

#[test]
fn it_ends_by_itself_and_the_ledger_says_so() {
    let mut model = healthy();
    disarm(&mut model, 120 * SECOND);
    model.lose("n2");
    model.run(60 * SECOND);
    model.heal_is_refused("n2");
    model.run(30 * SECOND);
    assert!(!model.changed_storage());
    model.run(60 * SECOND);
    assert!(model.ledger.disarm.is_none(), "its record goes");
    assert!(model.audit.iter().any(|what| what == "armed"), "{:?}", model.audit);
    model.heal_is_refused("n2");
    model.until("sealed", |model| model.state("n2") == "sealed");
}

#[test]
fn inv3_what_is_fenced_is_held_while_it_is_disarmed() {
    let mut model = sealed("n2");
    disarm(&mut model, HOUR);
    model.remove_entry("10.0.0.2:0/0");
    model.until("breached", |model| model.state("n2") == "breached");
    model.until("sealed again", |model| model.state("n2") == "sealed");
}

#[test]
fn a_guardian_that_takes_over_stays_disarmed() {
    let mut model = healthy();
    disarm(&mut model, HOUR);
    model.lose("n2");
    model.run(30 * SECOND);
    model.restart("boot-1");
    model.heal_is_refused("n2");
    model.run(60 * SECOND);
    assert!(!model.changed_storage(), "{:#?}", model.logs());
    assert!(model.alarms().contains("disarmed"));
}

/// A fence that the guardian wanted at that moment and has not recorded is not begun.
#[test]
fn what_was_wanted_before_and_not_begun_is_given_up() {
    let mut model = healthy();
    model.lose("n2");
    model.run(30 * SECOND);
    model.ledger_down = true;
    model.heal_is_refused("n2");
    model.ask(
        1,
        Request::Disarm {
            until: model.now().wall + HOUR,
            reason: Some("x".to_owned()),
            by: "root@h".to_owned(),
        },
    );
    model.run(5 * SECOND);
    model.ledger_down = false;
    model.run(60 * SECOND);
    // Whichever of both was recorded first counts.
    let disarmed_first = model.audit.iter().position(|what| what.starts_with("disarmed"));
    let intended = model.audit.iter().position(|what| what.ends_with(" intended"));
    assert!(disarmed_first.is_some());
    assert_eq!(
        model.changed_storage(),
        intended.is_some_and(|at| Some(at) < disarmed_first),
        "{:?}",
        model.audit
    );
}

#[test]
fn nobody_disarms_without_a_reason_or_for_ever() {
    let mut model = healthy();
    for (number, lasts, reason) in
        [(1, HOUR, None), (2, 200 * HOUR, Some("x")), (3, Duration::ZERO, Some("x"))]
    {
        let until = model.now().wall + lasts;
        let request = Request::Disarm { until, reason: reason.map(str::to_owned), by: "root@h".to_owned() };
        let answer = answer(&mut model, number, request);
        assert!(matches!(answer, Outcome::Refused(_) | Outcome::Failed(_)), "{answer:?}");
    }
    assert!(model.ledger.disarm.is_none());
}
