//! INV-6: a fence of a member that answers, or of an address at which nothing is known, is a mistake unless the operator
//! says otherwise, with a reason.

use rbd_guardian_core::guardian::io::{Effect, Input};
use rbd_guardian_core::guardian::report::Outcome;
use rbd_guardian_core::model::addr::Entry;
use rbd_guardian_core::model::incus_snapshot::MemberStatus;
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::overrides::Overrides;
use rbd_guardian_core::model::record::FenceState;
use rbd_guardian_core::model::target::Target;
use rbd_guardian_core::rules::refusal::Refusal;

use crate::model::Model;
use crate::{SECOND, fence, fence_anyway, fence_of, healthy};

fn answer(model: &mut Model, number: u64, request: Request) -> Outcome {
    model.ask(number, request);
    model.until("answered", |model| model.answers().iter().any(|(answered, _)| *answered == number));
    model.answers().into_iter().find(|(answered, _)| *answered == number).unwrap().1
}

#[track_caller]
fn refused(outcome: Outcome) -> Vec<Refusal> {
    match outcome {
        Outcome::Refused(reasons) => reasons,
        other => panic!("{other:?}"),
    }
}

fn host(text: &str) -> Target {
    Target::Addresses([Entry::Host(text.parse().unwrap())].into())
}

#[test]
fn inv6_a_member_that_answers_incus_is_not_fenced_by_a_slip_and_is_on_the_operators_word() {
    let mut model = healthy();
    let reasons = refused(answer(&mut model, 1, fence("n2")));
    let [Refusal::Reachable { member, runs, .. }] = &reasons[..] else { panic!("{reasons:?}") };
    assert_eq!((member.as_str(), runs.as_deref()), ("n2", Some(&["c2".to_owned()][..])));
    let text = reasons[0].to_string();
    assert!(text.contains("answers Incus (Online) and runs c2"), "{text}");
    assert!(text.contains("--although-reachable --reason"), "{text}");
    // The same by the address of the host.
    assert_eq!(refused(answer(&mut model, 2, fence_of(host("10.0.0.2"))))[0].code(), "reachable");
    assert!(!model.changed_storage());
    assert_eq!((model.state("n2"), model.alarms().len()), ("watching", 0), "a slip is no alarm");

    let sealed = answer(&mut model, 3, fence_anyway(Target::Member("n2".to_owned())));
    let Outcome::Sealed(record, _) = sealed else { panic!("{sealed:?}") };
    assert!(record.overrides.reachable && !record.overrides.brake && record.reason.is_some());
    assert!(record.evidence[0].contains("root@h goes over an answer of the member"), "{record:?}");
    // It stands already: the same command again needs no word.
    assert!(matches!(answer(&mut model, 4, fence("n2")), Outcome::Sealed(..)));
}

#[test]
fn the_core_itself_demands_the_reason_of_each_permission() {
    let mut model = healthy();
    let over = [
        Overrides { brake: true, ..Overrides::default() },
        Overrides { doubt: true, ..Overrides::default() },
        Overrides { reachable: true, ..Overrides::default() },
        Overrides { unknown: true, ..Overrides::default() },
    ];
    for (number, over) in (1..).zip(over) {
        for (step, said) in [None, Some(" \t ".to_owned())].into_iter().enumerate() {
            let request = Request::Fence {
                target: Target::Member("n2".to_owned()),
                overrides: over,
                reason: said,
                by: "root@h".to_owned(),
            };
            let reasons = refused(answer(&mut model, number * 10 + u64::try_from(step).unwrap(), request));
            assert_eq!(reasons, [Refusal::NoReason { flags: over.flags() }]);
        }
    }
    let release = |reason: Option<&str>| Request::Release {
        fence: "n2".to_owned(),
        since: None,
        assert_powered_off: true,
        reason: reason.map(str::to_owned),
        by: "root@h".to_owned(),
    };
    for (number, said) in [(100, None), (101, Some(" "))] {
        assert_eq!(refused(answer(&mut model, number, release(said)))[0].code(), "no-reason");
    }
    assert_eq!(refused(answer(&mut model, 102, release(Some("off"))))[0].code(), "not-held");
    assert!(!model.changed_storage());
}

#[test]
fn inv6_a_host_address_at_which_nothing_is_known_needs_the_operators_word_and_a_client_does_not() {
    let mut model = healthy();
    let reasons = refused(answer(&mut model, 1, fence_of(host("10.0.0.77"))));
    assert!(matches!(&reasons[..], [Refusal::UnknownAddress { .. }]), "{reasons:?}");
    assert!(reasons[0].to_string().contains("--unknown-address --reason"), "{}", reasons[0]);
    assert!(!model.changed_storage());
    let client = Target::Addresses(["10.0.0.77:0/5".parse().unwrap()].into());
    assert!(matches!(answer(&mut model, 2, fence_of(client)), Outcome::Sealed(..)));
    let overrides = Overrides { unknown: true, ..Overrides::default() };
    let (reason, by) = (Some("the spare host".to_owned()), "root@h".to_owned());
    let request = Request::Fence { target: host("10.0.0.77"), overrides, reason, by };
    let sealed = answer(&mut model, 3, request);
    let Outcome::Sealed(record, _) = sealed else { panic!("{sealed:?}") };
    assert!(record.overrides.unknown && !record.overrides.reachable);
}

/// A guardian that has just begun to lead has no reading of Incus yet: it waits for one, and not for ever.
#[test]
fn inv6_an_operators_fence_waits_for_the_first_reading_of_incus_and_not_for_one_that_hangs() {
    let mut model = healthy();
    model.restart("boot-1");
    assert_eq!(refused(answer(&mut model, 1, fence("n2")))[0].code(), "reachable");
    let mut model = healthy();
    model.platform_down = true;
    model.restart("boot-1");
    let outcome = answer(&mut model, 2, fence("n2"));
    assert!(matches!(outcome, Outcome::Sealed(..)), "Incus tells nothing: it is the operator's word alone");
}

/// The permission outlives the guardian that recorded the intent.
#[test]
fn inv6_a_successor_goes_on_with_what_the_operator_permitted_and_asks_for_nothing_that_was_not() {
    for permitted in [true, false] {
        let mut model = healthy();
        let sealed = answer(&mut model, 1, fence_anyway(Target::Member("n2".to_owned())));
        assert!(matches!(sealed, Outcome::Sealed(..)));
        let record = model.ledger.fences.values_mut().next().unwrap();
        record.state = FenceState::Intended;
        record.sealed = None;
        record.overrides.reachable = permitted;
        record.entries.values_mut().for_each(|until| *until = None);
        for entry in ["10.0.0.2:0/0", "10.0.0.2:0/200"] {
            model.remove_entry(entry);
        }
        model.clear_gate();
        model.restart("boot-2");
        model.run(30 * SECOND);
        assert_eq!(model.refuses("n2"), permitted);
    }
}

/// Maintenance states hide whether a member is reachable; what it said itself a moment ago does not.
#[test]
fn inv6_a_member_in_maintenance_that_answers_itself_is_not_fenced_by_a_slip() {
    let mut model = healthy();
    model.view.members.get_mut("n2").unwrap().status = MemberStatus::Evacuated;
    model.run(5 * SECOND);
    let reasons = refused(answer(&mut model, 1, fence("n2")));
    assert!(reasons[0].to_string().contains("when it was asked itself"), "{}", reasons[0]);
    let mut lost = healthy();
    lost.lose("n2");
    lost.run(5 * SECOND);
    lost.handle(Input::MemberState("n2".to_owned(), Err("no route".to_owned())));
    assert!(matches!(answer(&mut lost, 2, fence("n2")), Outcome::Sealed(..)));
}

/// Who, what and why: the member, its hosts, who asked or who removed an entry; and what an operator does beside.
#[test]
fn the_trail_names_the_member_its_hosts_the_operator_and_who_removed_an_entry() {
    let mut model = healthy();
    assert!(matches!(
        answer(&mut model, 1, fence_anyway(Target::Member("n2".to_owned()))),
        Outcome::Sealed(..)
    ));
    let whys = |model: &Model, state: &str| -> Vec<String> {
        let of = |effect: &Effect| match effect {
            Effect::Record { what, why, .. } if what.ends_with(state) => Some(why.clone()),
            _ => None,
        };
        model.effects.iter().filter_map(of).collect()
    };
    let intended = whys(&model, " intended").remove(0);
    assert!(intended.starts_with("member n2 at 10.0.0.2, "), "{intended}");
    assert!(intended.contains("root@h"), "{intended}");
    model.remove_entry("10.0.0.2:0/0");
    model.until("breached", |model| !whys(model, " breached").is_empty());
    let breached = whys(&model, " breached").remove(0);
    assert!(breached.contains("an entry was removed in osdmap epoch"), "{breached}");

    let (what, by) = ("gate remove".to_owned(), "root@h".to_owned());
    let noted = answer(&mut model, 2, Request::Note { what, reason: Some("moving house".to_owned()), by });
    assert!(matches!(noted, Outcome::Noted), "{noted:?}");
    assert_eq!(whys(&model, "gate remove"), ["root@h: moving house"]);
    assert!(model.audit.iter().any(|what| what == "gate remove"));
}

/// What `plan` shows is what `fence` would do, and it says why nothing does it by itself.
#[test]
fn a_plan_is_what_the_fence_is_and_changes_nothing() {
    let mut model = healthy();
    model.run(30 * SECOND);
    let target = Target::Member("n2".to_owned());
    let refused = model.guardian.plan(target.clone(), Overrides::default()).unwrap().unwrap_err();
    assert_eq!(refused[0].code(), "reachable");
    let why = model.guardian.why("n2").join("; ");
    assert!(why.contains("Incus says that n2 is Online: nothing fences it by itself"), "{why}");
    model.lose("n2");
    model.run(5 * SECOND);
    let plan = model.guardian.plan(target, Overrides::default()).unwrap().unwrap();
    assert!(!model.changed_storage());
    assert!(model.guardian.why("n2").join("; ").contains("it is fenced when its healing begins"));
    let Outcome::Sealed(record, _) = answer(&mut model, 1, fence("n2")) else { panic!("not sealed") };
    assert_eq!(record.entries.keys().copied().collect::<std::collections::BTreeSet<_>>(), plan.entries);
    assert!(model.guardian.why("n2").join("; ").contains("is fenced already"));
}
