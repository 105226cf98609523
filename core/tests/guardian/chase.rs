//! Clients that appear on a member of which only the known ones could be fenced.

use rbd_guardian_core::guardian::io::Effect;
use rbd_guardian_core::guardian::report::Outcome;
use rbd_guardian_core::model::addr::Entry;
use rbd_guardian_core::model::ceph_snapshot::{Daemon, DaemonKind, Role};
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::overrides::Overrides;
use rbd_guardian_core::model::record::FenceState;
use rbd_guardian_core::model::target::{Coverage, Target};
use rbd_guardian_core::rules::refusal::Refusal;

use crate::hold::{YEAR, client, list, record};
use crate::model::Model;
use crate::{SECOND, fence_of};

/// `n2` has the only mgr, so that only its known clients may be fenced; sealed, and open by the operator's acceptance.
fn known_clients() -> Model {
    let mut model = Model::new();
    model.daemons = vec![Daemon {
        kind: DaemonKind::Mgr,
        name: "x".to_owned(),
        ips: vec!["10.0.0.2".parse().unwrap()],
        role: Role::Active,
        clients: vec![client("10.0.0.2:0/999")],
        clients_unknown: false,
    }];
    model.sessions.insert(client("10.0.0.2:0/999"));
    model.run(10 * SECOND);
    model.lose("n2");
    model.run(3 * SECOND);
    let target = Target::Member("n2".to_owned());
    model.ask(
        1,
        Request::Fence {
            target,
            overrides: Overrides { accept_incomplete: true, ..Overrides::default() },
            reason: None,
            by: "root@h".to_owned(),
        },
    );
    model.until("open", |model| model.seals().contains("n2"));
    assert!(!model.refuses("n2"));
    assert_eq!(record(&model).coverage, Coverage::KnownClients);
    model
}

#[test]
fn inv1_a_client_that_appears_where_only_known_ones_are_fenced_is_fenced_with_the_gate_closed() {
    let mut model = known_clients();
    let (late, since) = (client("10.0.0.2:0/201"), model.effects.len());
    model.sessions.insert(late);
    model.silent = [3].into();
    model.ledger_down = true;
    model.run(20 * SECOND);
    assert!(!model.map().blocklist.refuses(late), "what cannot be recorded is not done");
    assert!(model.seals().len() == 1 && model.alarms().contains("cannot-record"));
    model.ledger_down = false;
    model.until("refused", |model| model.map().blocklist.refuses(late));
    model.run(10 * SECOND);
    assert_eq!((model.seals().len(), model.state("n2")), (0, "pending"), "not proved yet");
    model.silent.clear();
    model.until("open", |model| model.seals().contains("n2"));
    let record = record(&model);
    assert_eq!((record.state, record.seen.contains(&late)), (FenceState::Sealed, true));
    assert!(record.entries[&Entry::Client(late)].is_some());
    let effects: Vec<String> = model.effects[since..].iter().map(|effect| format!("{effect:?}")).collect();
    let at = |what: &str| effects.iter().position(|effect| effect.contains(what)).unwrap();
    let recorded = effects.iter().position(|e| e.starts_with("Record") && e.contains("nonce: 201")).unwrap();
    assert!(recorded < at("Add("), "recorded first");
    assert!(effects[recorded].contains("state: Committed"), "and sealed no more: {}", effects[recorded]);
    assert!(!model.audit.iter().any(|what| what.ends_with("breached")), "{:?}", model.audit);
    assert!(!model.map().blocklist.refuses(client("10.0.0.2:0/999")), "the mgr's own client");
    // The mgr's new client uses an image before the mgr tells of it: told by the time it is seen again.
    let module = client("10.0.0.2:0/1000");
    model.uses[0].watchers.push(module.into());
    let looks = |model: &Model| model.effects.iter().filter(|effect| **effect == Effect::Look).count();
    let before = looks(&model);
    model.until("a look", |model| looks(model) > before);
    model.daemons[0].clients.push(module);
    model.run(30 * SECOND);
    assert!(!model.map().blocklist.refuses(module));
}

#[test]
fn a_breach_while_a_client_is_chased_is_a_breach() {
    let mut model = known_clients();
    model.sessions.insert(client("10.0.0.2:0/201"));
    model.silent = [3].into();
    model.until("pending", |model| model.state("n2") == "pending");
    model.remove_entry("10.0.0.2:0/200");
    model.until("put back", |model| model.map().blocklist.refuses(client("10.0.0.2:0/200")));
    assert!(model.audit.iter().any(|what| what.ends_with("breached")), "{:?}", model.audit);
    model.silent.clear();
    model.until("open", |model| model.seals().contains("n2"));
}

#[test]
fn inv5_a_client_that_is_chased_puts_off_no_proof_of_a_reboot() {
    let mut model = known_clients();
    model.uses.retain(|one| !one.image.name.ends_with("c2"));
    model.run(120 * SECOND);
    model.sessions.insert(client("10.0.0.2:0/201"));
    model.until("chased", |model| model.map().blocklist.refuses(client("10.0.0.2:0/201")));
    model.run(10 * SECOND);
    model.bring_back("n2", 60 * SECOND);
    model.run(10 * SECOND);
    assert_eq!(record(&model).state, FenceState::Released);
    assert_eq!(record(&model).dead, [client("10.0.0.2:0/200")].into(), "of the other nothing is proved");
    for nonce in [200, 201] {
        assert!(model.map().blocklist.refuses(client(&format!("10.0.0.2:0/{nonce}"))), "INV-4");
        assert!(record(&model).entries.contains_key(&Entry::Client(client(&format!("10.0.0.2:0/{nonce}")))));
    }
}

fn told_breached(model: &Model) -> bool {
    model.audit.iter().any(|what| what.ends_with("breached"))
}

/// Between a removal and its return the client was free, whatever is chased meanwhile.
#[test]
fn inv3_an_entry_that_goes_and_comes_back_while_a_client_is_chased_is_a_breach() {
    let mut model = known_clients();
    model.ledger_down = true;
    model.sessions.insert(client("10.0.0.2:0/201"));
    model.until("chased", |model| model.logs().iter().any(|line| line.starts_with("chased")));
    model.run(2 * SECOND);
    model.remove_entry("10.0.0.2:0/200");
    list(&mut model, "10.0.0.2:0/200", 5 * YEAR);
    model.run(5 * SECOND);
    model.ledger_down = false;
    model.until("open", |model| !model.alarms().contains("cannot-record") && model.seals().contains("n2"));
    assert!(told_breached(&model), "{:?}", model.audit);
    assert_eq!(record(&model).breaches.len(), 1);
}

#[test]
fn a_takeover_while_a_client_is_chased_is_no_breach() {
    let late = client("10.0.0.2:0/201");
    for sent in [false, true] {
        let mut model = known_clients();
        // Recorded to be chased, by a leader that died before or after it sent the entry.
        let fence = model.ledger.fences.values_mut().next().unwrap();
        fence.state = FenceState::Committed;
        fence.entries.insert(Entry::Client(late), None);
        if sent {
            list(&mut model, "10.0.0.2:0/201", 5 * YEAR);
        }
        model.restart("boot-2");
        model.until("sealed", |model| model.state("n2") == "sealed" && model.map().blocklist.refuses(late));
        model.until("open", |model| model.seals().contains("n2"));
        assert!(!told_breached(&model), "sent: {sent}: {:?}", model.audit);
    }
    // Or while it waited for PGs.
    let mut model = known_clients();
    model.sessions.insert(late);
    model.silent = [3].into();
    model.until("pending", |model| model.state("n2") == "pending");
    model.restart("boot-2");
    model.run(20 * SECOND);
    assert_eq!((model.state("n2"), model.seals().len()), ("pending", 0));
    assert!(!told_breached(&model), "{:?}", model.audit);
    // What goes meanwhile is one all the same.
    model.remove_entry("10.0.0.2:0/200");
    model.restart("boot-3");
    model.silent.clear();
    model.until("open", |model| model.seals().contains("n2"));
    assert!(told_breached(&model) && record(&model).breaches.len() == 1, "{:?}", model.audit);
}

#[test]
fn a_breach_begins_the_time_since_the_seal_anew_and_a_chase_does_not() {
    let mut model = known_clients();
    let mark = |model: &Model| record(model).marks["boot-1"];
    let sealed = mark(&model);
    model.sessions.insert(client("10.0.0.2:0/201"));
    model.until("chased", |model| record(model).entries.len() == 2);
    model.until("open", |model| model.state("n2") == "sealed" && model.seals().contains("n2"));
    assert_eq!(mark(&model), sealed);
    model.remove_entry("10.0.0.2:0/200");
    model.until("breached", told_breached);
    model.until("open", |model| model.state("n2") == "sealed" && model.seals().contains("n2"));
    assert!(mark(&model) > sealed);
}

#[test]
fn inv6_a_member_of_which_only_clients_are_fenced_counts_for_the_brake() {
    let mut model = known_clients();
    for (number, target) in [
        (2, Target::Member("n3".to_owned())),
        (3, Target::Addresses([Entry::Client(client("10.0.0.3:0/300"))].into())),
    ] {
        model.ask(number, crate::fence_anyway(target));
        model.until("answered", |model| model.answers().iter().any(|(answered, _)| *answered == number));
        let (_, outcome) = model.answers().pop().unwrap();
        let Outcome::Refused(reasons) = outcome else { panic!("{outcome:?}") };
        assert_eq!(reasons, [Refusal::Brake { held: vec!["n2".to_owned()], max: 1 }]);
    }
    // One more client of the member that is fenced already is no further member.
    let target = Target::Addresses([Entry::Client(client("10.0.0.2:0/777"))].into());
    model.ask(4, fence_of(target));
    model.until("answered", |model| model.answers().iter().any(|(answered, _)| *answered == 4));
    assert!(matches!(model.answers().pop().unwrap(), (4, Outcome::Sealed(..))));
}

fn gate_writes(model: &Model) -> usize {
    model.effects.iter().filter(|effect| matches!(effect, Effect::PutGate { .. })).count()
}

/// An agent on a half-fenced host runs a command every few seconds: each is a client, and gone at the next look.
#[test]
fn clients_that_are_gone_at_the_next_look_are_not_chased() {
    let mut model = known_clients();
    let (entries, writes) = (model.map().blocklist.entries.len(), gate_writes(&model));
    for nonce in 1000..1100 {
        let agents = client(&format!("10.0.0.2:0/{nonce}"));
        model.sessions.insert(agents);
        model.run(5 * SECOND);
        model.sessions.remove(&agents);
    }
    assert!(model.map().blocklist.entries.len() <= entries + 2, "{}", model.map().blocklist.entries.len());
    assert!(gate_writes(&model) <= writes + 4, "{}", gate_writes(&model) - writes);
}

#[test]
fn a_client_that_uses_an_image_is_chased_at_the_first_look_and_one_without_any_at_the_second() {
    let mut model = known_clients();
    let (user, agent) = (client("10.0.0.2:0/201"), client("10.0.0.2:0/202"));
    model.sessions.extend([user, agent]);
    model.uses[0].watchers.push(user.into());
    model.until("chased", |model| model.map().blocklist.refuses(user));
    assert!(!model.map().blocklist.refuses(agent));
    model.until("seen twice", |model| model.map().blocklist.refuses(agent));
}

/// They stay in the monitors' lists for minutes, and new ones come with each look.
#[test]
fn chasing_ends_at_a_limit_with_an_alarm_and_a_gate_that_is_closed_once() {
    let mut model = known_clients();
    let writes = gate_writes(&model);
    for burst in 0..40 {
        for nonce in 0..10 {
            model.sessions.insert(client(&format!("10.0.0.2:0/{}", 1000 + 10 * burst + nonce)));
        }
        model.run(5 * SECOND);
    }
    model.run(30 * SECOND);
    assert!(record(&model).entries.len() <= 260, "{}", record(&model).entries.len());
    assert!(model.alarms().contains("too-many-clients"), "{:?}", model.alarms());
    assert!(model.seals().is_empty(), "some are free");
    assert!(gate_writes(&model) <= writes + 4, "{}", gate_writes(&model) - writes);
    // They are gone.
    model.sessions.clear();
    model.until("open", |model| model.seals().contains("n2"));
    assert!(!model.alarms().contains("too-many-clients"));
}

#[test]
fn more_clients_under_a_host_entry_than_are_remembered_are_told() {
    let mut model = crate::sealed("n2");
    for nonce in 0..1200 {
        model.sessions.insert(client(&format!("10.0.0.2:0/{}", 1000 + nonce)));
    }
    model.run(180 * SECOND);
    assert_eq!(record(&model).seen.len(), 1000);
    assert!(model.alarms().contains("too-many-clients") && model.seals().contains("n2"));
}
