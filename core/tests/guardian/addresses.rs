//! What is believed of members' addresses and clients, in worlds where a member has several, shares none of its network
//! with others, is renumbered, or where hosts that are no members use images.

use std::net::IpAddr;

use rbd_guardian_core::fence::step::Step;
use rbd_guardian_core::guardian::io::{Effect, Input};
use rbd_guardian_core::guardian::report::Outcome;
use rbd_guardian_core::guardian::settings::Settings;
use rbd_guardian_core::model::addr::{ClientAddr, Entry};
use rbd_guardian_core::model::ceph_snapshot::{Daemon, DaemonKind, Role};
use rbd_guardian_core::model::image_users::{ImageUse, Locker};
use rbd_guardian_core::model::incus_snapshot::Notice;
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::osdmap::DataPools;
use rbd_guardian_core::model::record::FenceState;
use rbd_guardian_core::model::target::{Coverage, Target};
use rbd_guardian_core::rules::refusal::Refusal;

use crate::hold::{client, record};
use crate::model::{Model, id, settings};
use crate::{SECOND, fence};

const MINUTE: std::time::Duration = std::time::Duration::from_secs(60);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn osd(name: &str, at: &str) -> Daemon {
    Daemon {
        kind: DaemonKind::Osd,
        name: name.to_owned(),
        ips: vec![ip(at)],
        role: Role::Plain,
        clients: vec![],
        clients_unknown: false,
    }
}

/// The operator names these addresses at a member.
fn says(model: &mut Model, member: &str, ips: &[&str]) {
    model.view.members.get_mut(member).unwrap().addresses = Ok(ips.iter().map(|text| ip(text)).collect());
}

pub(crate) fn has(model: &mut Model, member: &str, networks: &[&str]) {
    let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
    model.networks.insert(member.to_owned(), networks);
}

/// Members whose addresses are learnt alone: nobody names any, each tells its interface, an OSD is in their network.
pub(crate) fn learning() -> Model {
    let mut model = Model::new();
    for n in 1..=3 {
        let name = format!("n{n}");
        says(&mut model, &name, &[]);
        has(&mut model, &name, &[&format!("10.0.0.{n}/24")]);
    }
    model.daemons = vec![osd("0", "10.0.0.250")];
    model
}

fn image(model: &mut Model, name: &str) -> usize {
    model.uses.iter().position(|one| one.image.name.ends_with(name)).unwrap()
}

fn opens(model: &mut Model, name: &str, by: &str) {
    let at = image(model, name);
    model.uses[at].watchers.push(by.parse().unwrap());
}

fn closes(model: &mut Model, name: &str, by: &str) {
    let at = image(model, name);
    let by: ClientAddr = client(by);
    model.uses[at].watchers.retain(|watcher| watcher.client() != Some(by));
}

/// It is lost, and none of its watches outlives that for long.
fn lose(model: &mut Model, member: &str) {
    model.lose(member);
    let at = image(model, &member.replace('n', "c"));
    model.run(3 * SECOND);
    model.heal_is_refused(member);
    model.run(5 * SECOND);
    model.uses[at].watchers.clear();
    model.uses[at].locks.clear();
    for _ in 0..6 {
        model.run(20 * SECOND);
        model.heal_is_refused(member);
    }
}

pub(crate) fn refuses(model: &Model, by: &str) -> bool {
    model.map().blocklist.refuses(client(by))
}

/// INV-1, INV-2: where the gate is open none of these clients of the member is free.
#[track_caller]
fn none_is_free(model: &Model, member: &str, clients: &[&str]) {
    let free: Vec<_> = clients.iter().filter(|by| !refuses(model, by)).collect();
    let open = model.seals().contains(member);
    assert!(!open || free.is_empty(), "the gate is open, and free are {free:?}: {:#?}", model.logs());
}

#[test]
fn inv1_the_second_client_of_a_vm_at_an_address_of_its_host_is_refused_as_well() {
    let mut model = learning();
    has(&mut model, "n2", &["10.0.0.2/24", "10.9.0.2/16"]);
    opens(&mut model, "c2", "10.9.0.2:0/201");
    model.run(3 * MINUTE);
    assert_eq!(model.alarms().len(), 0, "its own client is no second writer: {:?}", model.guardian.alarms());
    assert!(model.ledger.members["n2"].clients.contains(&client("10.9.0.2:0/201")));
    lose(&mut model, "n2");
    assert!(model.seals().contains("n2"), "{:#?}", model.logs());
    none_is_free(&model, "n2", &["10.0.0.2:0/200", "10.9.0.2:0/201", "10.9.0.2:0/999"]);
    assert_eq!(record(&model).coverage, Coverage::WholeHost);
}

#[test]
fn inv1_a_client_at_an_address_that_nothing_shows_leaves_no_gate_open() {
    // By the operator's list, which leaves the second address out; and where nobody named any and no interface shows it.
    for listed in [true, false] {
        let mut model = if listed { Model::new() } else { learning() };
        opens(&mut model, "c2", "10.9.0.2:0/201");
        model.run(3 * MINUTE);
        let advice: Vec<String> =
            model.guardian.alarms().into_iter().flat_map(|alarm| alarm.advice).collect();
        assert!(model.alarms().contains("second-writer"), "{listed}");
        assert!(!advice.iter().any(|way| way.contains("fence --address")), "{advice:?}");
        assert!(
            advice.iter().any(|way| way.contains("ceph-addresses") && way.contains("10.9.0.2")),
            "{advice:?}"
        );
        lose(&mut model, "n2");
        none_is_free(&model, "n2", &["10.0.0.2:0/200", "10.9.0.2:0/201"]);
        assert!(model.seals().is_empty(), "{:#?}", model.logs());
        assert_eq!(model.state("n2"), "refused");
        // The operator goes on without it.
        model.ask(1, accept("n2"));
        model.until("open", |model| model.seals().contains("n2"));
        assert!(!refuses(&model, "10.9.0.2:0/201"), "INV-6: it may be anybody's");
    }
}

fn accept(member: &str) -> Request {
    let mut request = fence(member);
    if let Request::Fence { overrides, .. } = &mut request {
        overrides.accept_incomplete = true;
    }
    request
}

#[test]
fn inv1_every_client_of_an_image_counts_also_one_that_holds_the_lock_alone_and_of_any_family() {
    let mut model = learning();
    has(&mut model, "n2", &["10.0.0.2/24", "10.9.0.2/16", "fd00::2/64"]);
    opens(&mut model, "c2", "10.9.0.2:0/201");
    let at = image(&mut model, "c2");
    let address = "[fd00::2]:0/202".parse().unwrap();
    model.uses[at].locks =
        vec![Locker { owner: "client.7".into(), cookie: "auto 1".into(), address: Some(address) }];
    model.run(3 * MINUTE);
    lose(&mut model, "n2");
    assert!(model.seals().contains("n2"), "{:#?}", model.logs());
    none_is_free(&model, "n2", &["10.0.0.2:0/200", "10.9.0.2:0/201", "[fd00::2]:0/202"]);
    // Where its interfaces do not show it.
    let mut model = learning();
    let at = image(&mut model, "c2");
    model.uses[at].locks =
        vec![Locker { owner: "client.7".into(), cookie: "auto 1".into(), address: Some(address) }];
    model.run(3 * MINUTE);
    lose(&mut model, "n2");
    none_is_free(&model, "n2", &["[fd00::2]:0/202"]);
    assert!(model.seals().is_empty());
}

/// A sweep of when the member was healthy is judged after its fence was planned, or by the next guardian: the book has a
/// client of it that no entry names, at an address that is none of its hosts.
#[test]
fn inv1_a_client_at_another_address_that_the_book_learns_after_the_seal_is_refused() {
    let mut model = crate::sealed("n2");
    let late = "10.9.0.2:0/201";
    model.ledger.members.get_mut("n2").unwrap().clients.insert(client(late));
    model.restart("boot-2");
    model.until("refused", |model| refuses(model, late));
    model.until("sealed with it", |model| record(model).state == FenceState::Sealed);
    assert!(record(&model).entries.contains_key(&Entry::Client(client(late))));
    model.run(20 * SECOND);
    none_is_free(&model, "n2", &["10.0.0.2:0/200", late]);
}

#[test]
fn inv1_a_client_that_is_seen_first_while_its_member_is_lost_opens_no_gate_when_its_watch_lapses() {
    // At the look of the plan, and after the seal while the gate waits for its sweep.
    let mut model = Model::new();
    model.run(3 * MINUTE);
    opens(&mut model, "c2", "10.9.0.2:0/201");
    model.lose("n2");
    model.run(3 * SECOND);
    model.heal_is_refused("n2");
    model.run(3 * SECOND);
    closes(&mut model, "c2", "10.9.0.2:0/201");
    lose(&mut model, "n2");
    none_is_free(&model, "n2", &["10.9.0.2:0/201"]);

    let mut model = Model::new();
    model.run(3 * MINUTE);
    model.lose("n2");
    model.run(3 * SECOND);
    model.silent = [3].into();
    model.heal_is_refused("n2");
    model.until("pending", |model| model.state("n2") == "pending");
    opens(&mut model, "c2", "10.9.0.2:0/201");
    model.run(2 * MINUTE);
    closes(&mut model, "c2", "10.9.0.2:0/201");
    model.silent.clear();
    lose(&mut model, "n2");
    none_is_free(&model, "n2", &["10.9.0.2:0/201"]);
    let status = model.guardian.status(model.now());
    let waits = status.fences[0].waits.clone().unwrap_or_default();
    assert!(waits.contains("10.9.0.2:0/201"), "{waits}");
    model.ask(1, accept("n2"));
    model.until("open", |model| model.seals().contains("n2"));
}

/// A path that is cut shows no watch, and what was known of it is not forgotten by that.
#[test]
fn inv1_clients_of_a_member_whose_path_to_the_storage_is_cut_first_are_not_forgotten() {
    let mut model = learning();
    has(&mut model, "n2", &["10.0.0.2/24", "10.9.0.2/16"]);
    opens(&mut model, "c2", "10.9.0.2:0/201");
    model.run(3 * MINUTE);
    let at = image(&mut model, "c2");
    model.uses[at].watchers.clear();
    model.run(10 * MINUTE);
    assert_eq!(model.ledger.members["n2"].clients.len(), 2);
    lose(&mut model, "n2");
    none_is_free(&model, "n2", &["10.0.0.2:0/200", "10.9.0.2:0/201"]);
    assert!(record(&model).entries.contains_key(&Entry::Client(client("10.9.0.2:0/201"))), "INV-4");
}

/// The instance of an image is down between two readings, and a backup host alone is seen at the image.
fn backup_begins(model: &mut Model) {
    model.run(3 * MINUTE);
    closes(model, "c2", "10.0.0.2:0/200");
    opens(model, "c2", "10.0.0.77:0/5");
    model.until("judged", |model| {
        let others = model.ledger.members["n2"].others.clone().unwrap_or_default();
        others.contains(&client("10.0.0.77:0/5"))
    });
}

#[test]
fn inv6_a_backup_host_that_opens_an_image_for_a_moment_is_nobodys() {
    for listed in [true, false] {
        let mut model = if listed { Model::new() } else { learning() };
        backup_begins(&mut model);
        closes(&mut model, "c2", "10.0.0.77:0/5");
        opens(&mut model, "c2", "10.0.0.2:0/200");
        model.run(3 * MINUTE);
        lose(&mut model, "n2");
        assert!(model.seals().contains("n2"), "listed: {listed}: {:#?}", model.logs());
        assert!(!refuses(&model, "10.0.0.77:0/5") && !refuses(&model, "10.0.0.77:0/6"));
    }
}

#[test]
fn inv6_a_backup_host_in_the_middle_of_it_is_never_refused_with_the_member() {
    for listed in [true, false] {
        let mut model = if listed { Model::new() } else { learning() };
        backup_begins(&mut model);
        lose(&mut model, "n2");
        assert!(!refuses(&model, "10.0.0.77:0/5"), "listed: {listed}");
        // One that the operator named as such holds nothing up.
        let mut model = Model::new();
        let mut with = settings();
        with.guard.admin_hosts = vec!["10.0.0.77/32".parse().unwrap()];
        model.restart_with(with);
        opens(&mut model, "c2", "10.0.0.77:0/5");
        model.run(3 * MINUTE);
        lose(&mut model, "n2");
        assert!(model.seals().contains("n2") && !refuses(&model, "10.0.0.77:0/5"));
    }
}

/// A sweep that had not ended when the reading began says nothing of where images were.
#[test]
fn inv6_a_sweep_is_judged_only_by_a_reading_that_began_after_it_ended() {
    let mut model = learning();
    model.networks.clear();
    let began = model.boot;
    model.handle(Input::View { began, view: Ok(model.view.clone()) });
    model.run(2 * SECOND);
    let whole = model.boot;
    let uses: Vec<ImageUse> = model.uses.clone();
    model.boot += 10 * SECOND;
    model.handle(Input::Swept { began, uses, unread: Vec::new(), data_pools: DataPools::new() });
    model.handle(Input::View { began: whole, view: Ok(model.view.clone()) });
    let learnt = model.guardian.status(model.now()).members;
    assert!(learnt.iter().all(|line| line.addresses.is_empty()), "{learnt:?}");
}

#[test]
fn inv6_an_address_that_a_renumbered_member_left_to_an_osd_gets_no_entry() {
    // As learnt, and as the operator's list still says.
    for listed in [false, true] {
        let mut model = learning();
        model.run(3 * MINUTE);
        if listed {
            says(&mut model, "n2", &["10.0.0.2", "10.0.0.12"]);
        }
        has(&mut model, "n2", &["10.0.0.12/24"]);
        closes(&mut model, "c2", "10.0.0.2:0/200");
        opens(&mut model, "c2", "10.0.0.12:0/210");
        model.daemons.push(osd("7", "10.0.0.2"));
        model.sessions.insert(client("10.0.0.2:0/4242"));
        model.run(12 * MINUTE);
        lose(&mut model, "n2");
        assert!(!model.refuses("n2"), "listed: {listed}: the host of an OSD: {:#?}", model.logs());
        assert!(!refuses(&model, "10.0.0.2:0/4242"));
        none_is_free(&model, "n2", &["10.0.0.12:0/210"]);
        assert!(refuses(&model, "10.0.0.12:0/999"));
    }
}

/// Behind an address translation.
#[test]
fn inv6_an_address_that_no_interface_shows_is_a_clients_identity_and_never_a_whole_host() {
    let mut model = learning();
    has(&mut model, "n2", &["192.168.0.2/24"]);
    model.run(5 * MINUTE);
    lose(&mut model, "n2");
    assert!(!model.refuses("n2"), "{:#?}", model.logs());
    assert!(refuses(&model, "10.0.0.2:0/200"));
    assert!(model.seals().is_empty(), "a client that begins there later is free");
    assert_eq!(record(&model).coverage, Coverage::KnownClients);
    // A client there that uses none of its images is another host's.
    model.sessions.insert(client("10.0.0.2:0/300"));
    model.ask(1, accept("n2"));
    model.until("open", |model| model.seals().contains("n2"));
    model.run(MINUTE);
    assert!(!refuses(&model, "10.0.0.2:0/300"));
    // By the operator's word it is the member's alone.
    let mut model = learning();
    says(&mut model, "n2", &["10.0.0.2"]);
    has(&mut model, "n2", &["192.168.0.2/24"]);
    model.run(5 * MINUTE);
    lose(&mut model, "n2");
    assert!(model.refuses("n2") && model.seals().contains("n2"), "{:#?}", model.logs());
}

#[test]
fn a_floating_address_that_moved_holds_no_fence_back_and_is_not_refused() {
    let mut model = learning();
    has(&mut model, "n2", &["10.0.0.2/24", "10.0.0.50/24"]);
    model.run(3 * MINUTE);
    assert_eq!(addresses(&model, "n2"), ["10.0.0.2", "10.0.0.50"]);
    // It moves when its member is lost; nobody has asked the others for their interfaces for minutes.
    has(&mut model, "n1", &["10.0.0.1/24", "10.0.0.50/24"]);
    lose(&mut model, "n2");
    assert!(model.seals().contains("n2"), "{:#?}", model.logs());
    assert!(!refuses(&model, "10.0.0.50:0/7"), "it is n1's now");
    assert!(model.logs().iter().any(|line| line.starts_with("address-moved")), "{:#?}", model.logs());
    assert_eq!(record(&model).coverage, Coverage::WholeHost);
}

/// n2 is lost, and a moment after the others told their interfaces its second address moves to n1.
fn moves_after_a_reading() -> Model {
    let mut model = learning();
    has(&mut model, "n2", &["10.0.0.2/24", "10.0.0.50/24"]);
    model.run(3 * MINUTE);
    model.lose("n2");
    model.run(3 * SECOND);
    let read = |model: &Model| {
        let of_n1 = |effect: &&Effect| matches!(effect, Effect::ReadNetworks(name) if name == "n1");
        model.effects.iter().filter(of_n1).count()
    };
    let before = read(&model);
    model.until("n1 told its interfaces", |model| read(model) > before);
    model.run(2 * SECOND);
    has(&mut model, "n1", &["10.0.0.1/24", "10.0.0.50/24"]);
    model
}

#[test]
fn inv6_an_address_that_moved_a_moment_before_the_fence_is_not_refused() {
    for asked in [false, true] {
        let mut model = moves_after_a_reading();
        if asked {
            model.ask(1, fence("n2"));
            model.until("answered", |model| !model.answers().is_empty());
        } else {
            model.heal_is_refused("n2");
            model.until("the gate is open", |model| model.seals().contains("n2"));
        }
        assert!(refuses(&model, "10.0.0.2:0/200"));
        assert!(!refuses(&model, "10.0.0.50:0/7"), "it is n1's now: asked: {asked}: {:#?}", model.logs());
        assert_eq!(record(&model).coverage, Coverage::WholeHost);
    }
    // By the address alone, and by the operator's list.
    let mut model = moves_after_a_reading();
    model.ask(1, crate::fence_of(Target::Addresses([Entry::Host(ip("10.0.0.50"))].into())));
    model.until("answered", |model| !model.answers().is_empty());
    assert!(!refuses(&model, "10.0.0.50:0/7"), "{:#?}", model.logs());
    let mut model = moves_after_a_reading();
    says(&mut model, "n2", &["10.0.0.2", "10.0.0.50"]);
    model.run(2 * SECOND);
    model.heal_is_refused("n2");
    model.until("the gate is open", |model| model.seals().contains("n2"));
    assert!(!refuses(&model, "10.0.0.50:0/7"), "{:#?}", model.logs());
}

/// Live members are asked for their interfaces after the plan (INV-6): while the intent is recorded, and not before.
/// A guardian dies while it fences a member: some of its entries stand, and meanwhile an address moved on.
#[test]
fn inv6_what_a_dead_guardian_began_is_not_completed_at_an_address_that_moved() {
    let mut model = moves_after_a_reading();
    model.unanswered_networks.insert("n1".to_owned());
    model.heal_is_refused("n2");
    model.until("recorded", |model| !model.ledger.fences.is_empty());
    assert!(!model.changed_storage());
    crate::hold::list(&mut model, "10.0.0.2:0/0", 150_000_000);
    model.restart("boot-2");
    model.unanswered_networks.clear();
    model.until("the gate is open", |model| model.seals().contains("n2"));
    assert!(!refuses(&model, "10.0.0.50:0/7"), "it is n1's now: {:#?}", model.logs());
}

#[test]
fn inv6_the_intent_is_recorded_while_live_members_tell_their_interfaces_and_no_entry_is_sent_before() {
    let mut model = learning();
    model.run(3 * MINUTE);
    model.lose("n2");
    model.run(25 * SECOND);
    model.unanswered_networks.insert("n3".to_owned());
    model.heal_is_refused("n2");
    let announced = model.boot;
    model.until("recorded", |model| !model.ledger.fences.is_empty());
    assert!(model.boot - announced < SECOND, "{:?}", model.boot - announced);
    let sent = |effect: &Effect| matches!(effect, Effect::Fence(_, Step::Add(_)));
    assert!(!model.effects.iter().any(sent));
    model.until("an entry is sent", |model| model.effects.iter().any(sent));
    let took = model.boot - announced;
    assert!((2 * SECOND..3 * SECOND).contains(&took), "n3 has 2 s to tell: {took:?}");
}

/// Unknown is not no, and a fence does not wait for it: what was known of its addresses stays.
#[test]
fn a_live_member_that_does_not_tell_its_interfaces_holds_no_fence_up() {
    for hangs in [false, true] {
        let mut model = moves_after_a_reading();
        if hangs {
            model.unanswered_networks.insert("n3".to_owned());
        } else {
            model.networks.remove("n3");
        }
        let began = model.boot;
        model.ask(1, fence("n2"));
        model.until("answered", |model| !model.answers().is_empty());
        let took = model.boot - began;
        assert!(took <= 3 * SECOND, "hangs: {hangs}: {took:?}");
        assert!(refuses(&model, "10.0.0.2:0/1"), "{:#?}", model.logs());
        assert!(!refuses(&model, "10.0.0.50:0/7"), "n1 told its own: {:#?}", model.logs());
    }
}

#[test]
fn a_floating_address_moves_twice_and_is_of_the_member_that_has_it() {
    let mut model = learning();
    has(&mut model, "n2", &["10.0.0.2/24", "10.0.0.50/24"]);
    model.run(12 * MINUTE);
    has(&mut model, "n2", &["10.0.0.2/24"]);
    has(&mut model, "n1", &["10.0.0.1/24", "10.0.0.50/24"]);
    model.run(12 * MINUTE);
    assert_eq!(addresses(&model, "n1"), ["10.0.0.1", "10.0.0.50"]);
    has(&mut model, "n1", &["10.0.0.1/24"]);
    has(&mut model, "n3", &["10.0.0.3/24", "10.0.0.50/24"]);
    lose(&mut model, "n1");
    assert!(model.seals().contains("n1"), "{:#?}", model.logs());
    assert!(!refuses(&model, "10.0.0.50:0/7"), "it is n3's now");
    assert!(!model.alarms().contains("address-contradiction"));
}

#[test]
fn inv6_a_floating_address_in_the_operators_list_is_not_refused_where_another_member_has_it() {
    let mut model = learning();
    says(&mut model, "n2", &["10.0.0.2", "10.0.0.50"]);
    has(&mut model, "n2", &["10.0.0.2/24", "10.0.0.50/24"]);
    model.run(3 * MINUTE);
    has(&mut model, "n2", &["10.0.0.2/24"]);
    has(&mut model, "n1", &["10.0.0.1/24", "10.0.0.50/24"]);
    model.sessions.insert(client("10.0.0.50:0/9"));
    lose(&mut model, "n2");
    assert!(model.seals().contains("n2"), "{:#?}", model.logs());
    assert!(!refuses(&model, "10.0.0.50:0/9"));
}

#[test]
fn inv1_an_address_that_moved_and_that_a_client_of_the_member_uses_keeps_the_gate_waiting_for_the_operator() {
    let mut model = learning();
    has(&mut model, "n2", &["10.0.0.2/24", "10.0.0.50/24"]);
    opens(&mut model, "c2", "10.0.0.50:0/250");
    model.run(3 * MINUTE);
    has(&mut model, "n1", &["10.0.0.1/24", "10.0.0.50/24"]);
    lose(&mut model, "n2");
    assert!(refuses(&model, "10.0.0.2:0/1") && refuses(&model, "10.0.0.50:0/250"));
    assert!(!refuses(&model, "10.0.0.50:0/7"), "n1's");
    assert!(model.seals().is_empty(), "one that begins there is free");
}

#[test]
fn what_the_operator_says_is_complete() {
    let mut model = learning();
    has(&mut model, "n2", &["10.0.0.2/24", "10.0.0.22/24"]);
    says(&mut model, "n2", &["10.0.0.2"]);
    model.run(3 * MINUTE);
    assert_eq!(addresses(&model, "n2"), ["10.0.0.2"], "nothing is learnt beside it");
    // A client of it at its other address is fenced alone, and what begins there later is free: an operator's to judge.
    opens(&mut model, "c2", "10.0.0.22:0/220");
    model.run(3 * MINUTE);
    assert!(!model.alarms().contains("second-writer"), "its own interface shows it");
    lose(&mut model, "n2");
    assert!(refuses(&model, "10.0.0.22:0/220") && !refuses(&model, "10.0.0.22:0/221"));
    assert!(model.seals().is_empty());
    model.ask(1, accept("n2"));
    model.until("open", |model| model.seals().contains("n2"));
    // A list that is taken back.
    let mut model = learning();
    has(&mut model, "n2", &["10.0.0.2/24", "10.0.0.22/24"]);
    says(&mut model, "n2", &["10.0.0.2"]);
    model.run(3 * MINUTE);
    says(&mut model, "n2", &[]);
    model.run(2 * MINUTE);
    assert_eq!(addresses(&model, "n2"), ["10.0.0.2", "10.0.0.22"]);
    // One that is not understood takes nothing back.
    says(&mut model, "n2", &["10.0.0.2"]);
    model.run(MINUTE);
    model.view.members.get_mut("n2").unwrap().addresses = Err("'x' is no address".to_owned());
    model.run(12 * MINUTE);
    assert_eq!(addresses(&model, "n2"), ["10.0.0.2"]);
}

#[test]
fn the_record_of_a_member_that_was_removed_ends_and_one_of_its_name_begins_anew() {
    let mut model = learning();
    model.run(3 * MINUTE);
    let gone = model.view.members.remove("n3").unwrap();
    model.view.gate.as_mut().unwrap().members.remove("n3");
    let instance = model.view.instances.as_mut().unwrap().remove(&id("c3")).unwrap();
    model.networks.remove("n3");
    model.run(3 * MINUTE);
    assert!(!model.ledger.members.contains_key("n3"), "{:?}", model.ledger.members);
    // Another machine under the name.
    model.view.members.insert("n3".to_owned(), gone);
    model.view.gate.as_mut().unwrap().members.insert("n3".to_owned(), Default::default());
    model.view.instances.as_mut().unwrap().insert(id("c3"), instance);
    let at = image(&mut model, "c3");
    model.uses[at].watchers = vec!["10.0.0.33:0/333".parse().unwrap()];
    has(&mut model, "n3", &["10.0.0.33/24"]);
    model.run(3 * MINUTE);
    assert_eq!(addresses(&model, "n3"), ["10.0.0.33"]);
    lose(&mut model, "n3");
    assert!(model.seals().contains("n3") && refuses(&model, "10.0.0.33:0/1"), "{:#?}", model.logs());
    assert!(!refuses(&model, "10.0.0.3:0/1"), "the old machine's address may be anybody's now");
}

#[test]
fn the_record_of_a_member_that_is_fenced_outlives_its_removal() {
    let mut model = crate::sealed("n2");
    let machine = model.ledger.members["n2"].machine.clone();
    model.view.members.remove("n2");
    model.run(3 * MINUTE);
    assert_eq!(model.ledger.members["n2"].machine, machine);
}

/// Clients of an older guardian's record are those of one address alone.
#[test]
fn inv1_a_record_of_an_older_guardian_is_no_proof_that_every_client_is_known() {
    let mut model = Model::new();
    model.run(3 * MINUTE);
    model.ledger.members.get_mut("n2").unwrap().others = None;
    model.lose("n2");
    model.restart("boot-2");
    lose(&mut model, "n2");
    assert_eq!((model.state("n2"), model.seals().len()), ("refused", 0), "{:#?}", model.logs());
    // A look while it is healthy makes up for it.
    let mut model = Model::new();
    model.run(3 * MINUTE);
    model.ledger.members.get_mut("n2").unwrap().others = None;
    model.restart("boot-2");
    model.run(3 * MINUTE);
    lose(&mut model, "n2");
    assert!(model.seals().contains("n2"), "{:#?}", model.logs());
}

#[test]
fn inv6_an_address_that_two_members_really_have_is_refused_for_both() {
    let mut model = learning();
    let both = Settings { members: model_members(), ..settings() };
    model.restart_with(both);
    model.run(3 * MINUTE);
    model.lose("n2");
    model.run(3 * SECOND);
    model.ask(1, fence("n2"));
    model.until("answered", |model| !model.answers().is_empty());
    let (_, outcome) = model.answers().pop().unwrap();
    let Outcome::Refused(reasons) = outcome else { panic!("{outcome:?}") };
    assert!(reasons.iter().any(|reason| matches!(reason, Refusal::SharedAddress { .. })), "{reasons:?}");
}

fn model_members() -> rbd_guardian_core::model::member::Members {
    let member = |name: &str| rbd_guardian_core::model::member::Member {
        name: name.to_owned(),
        addresses: vec![ip("10.0.0.88")],
    };
    rbd_guardian_core::model::member::Members(vec![member("n1"), member("n2")])
}

#[test]
fn placements_that_the_gate_refuses_for_good_are_bounded_and_forgotten() {
    let mut model = crate::healthy();
    for number in 0..500 {
        let why = format!("instance c{number} has a disk on storage that is not covered");
        model.handle(Input::Notice(Notice::NotPlaced { why }));
    }
    let shown =
        |model: &Model| model.guardian.alarms().iter().filter(|alarm| alarm.code == "not-placed").count();
    assert!((1..=50).contains(&shown(&model)), "{}", shown(&model));
    let size =
        |model: &Model| serde_json::to_string(&*model.guardian).unwrap().matches("is not covered").count();
    // And the one that the log was told of, until it is told that it is over.
    assert!(size(&model) <= 51, "{}", size(&model));
    model.run(2 * MINUTE);
    assert_eq!((shown(&model), size(&model)), (0, 0));
}

fn addresses(model: &Model, member: &str) -> Vec<String> {
    let status = model.guardian.status(model.now());
    let line = status.members.into_iter().find(|line| line.name == member).unwrap();
    line.addresses.into_iter().map(|known| known.address.to_string()).collect()
}

/// For a target by name alone.
#[test]
fn inv6_bare_addresses_know_no_member_and_its_clients_are_not_fenced_with_them() {
    let mut model = Model::new();
    model.run(3 * MINUTE);
    let target = Target::Addresses([Entry::Client(client("10.0.0.2:0/77"))].into());
    model.ask(1, crate::fence_of(target));
    model.until("sealed", |model| !model.answers().is_empty());
    assert!(!refuses(&model, "10.0.0.2:0/200"));
}
