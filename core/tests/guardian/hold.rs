//! The hold: entries of others, who removed one, and clients that appear later.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rbd_guardian_core::guardian::io::Effect;
use rbd_guardian_core::guardian::report::Alarm;
use rbd_guardian_core::guardian::settings::Settings;
use rbd_guardian_core::model::addr::{ClientAddr, EntityAddr, Entry};
use rbd_guardian_core::model::ceph_snapshot::{Daemon, DaemonKind, Role};
use rbd_guardian_core::model::member::{Member, Members};
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::record::{FenceRecord, FenceState, Removal};
use rbd_guardian_core::model::target::Target;
use rbd_guardian_core::rules::entry_origin::EntryOrigin;

use crate::model::{Model, settings};
use crate::{SECOND, fence_of, healthy, sealed};

pub(crate) const YEAR: u64 = 31_556_952;

pub(crate) fn client(text: &str) -> ClientAddr {
    text.parse::<EntityAddr>().unwrap().client().unwrap()
}

pub(crate) fn list(model: &mut Model, entry: &str, seconds: u64) {
    let until = model.now().wall + Duration::from_secs(seconds);
    model.change(|map| map.blocklist.entries.extend([(entry.parse().unwrap(), until)]));
}

fn orphans(model: &Model) -> Vec<Alarm> {
    model.guardian.alarms().into_iter().filter(|alarm| alarm.code == "orphan-entry").collect()
}

fn origins(model: &Model) -> Vec<(String, EntryOrigin)> {
    let others = model.guardian.status(model.now()).others;
    others.into_iter().map(|other| (other.entry.to_string(), other.origin)).collect()
}

pub(crate) fn record(model: &Model) -> &FenceRecord {
    model.ledger.fences.values().next().unwrap()
}

#[test]
fn entries_of_other_tools_are_listed_and_no_alarm() {
    let mut model = sealed("n2");
    list(&mut model, "10.0.0.1:6800/77", 86_400);
    list(&mut model, "10.0.0.1:0/78", 86_400); // At the same moment.
    list(&mut model, "10.0.0.3:0/5", 3600);
    let until = model.now().wall + Duration::from_secs(5 * YEAR);
    model.change(|map| map.blocklist.ranges.extend([("10.9.0.0/16".parse().unwrap(), until)]));
    model.run(15 * SECOND);
    assert_eq!(orphans(&model), []);
    let expected = [
        ("10.0.0.1:0/78", EntryOrigin::Daemon),
        ("10.0.0.1:6800/77", EntryOrigin::Daemon),
        ("10.0.0.3:0/5", EntryOrigin::LockBreak),
        ("10.9.0.0/16", EntryOrigin::Network),
    ];
    assert_eq!(origins(&model), expected.map(|(entry, origin)| (entry.to_owned(), origin)));
}

#[test]
fn what_looks_like_a_guardians_and_is_in_no_record_is_an_alarm_with_the_command() {
    let mut model = healthy();
    // A cover that a killed fence left, a late whole host, and a late client that is dead.
    list(&mut model, "10.0.7.7:0/0", 5 * YEAR);
    list(&mut model, "10.0.0.2:0/0", 5 * YEAR);
    list(&mut model, "10.0.0.3:0/12345", 5 * YEAR);
    model.until("told", |model| orphans(model).len() == 2);
    let told: Vec<_> = orphans(&model).into_iter().map(|alarm| (alarm.member, alarm.advice)).collect();
    let advice = |entry: &str| vec![format!("if nobody needs it: ceph osd blocklist rm {entry}")];
    assert_eq!(told, [(None, advice("10.0.7.7:0/0")), (Some("n2".to_owned()), advice("10.0.0.2:0/0"))]);
    // One of a client that is alive.
    list(&mut model, "10.0.0.3:0/300", 5 * YEAR);
    model.until("told", |model| orphans(model).len() == 3);
    model.remove_entry("10.0.7.7:0/0");
    model.until("over", |model| orphans(model).len() == 2);
}

#[test]
fn inv4_the_entries_of_a_released_fence_are_no_orphans_also_when_it_is_fenced_again() {
    let mut model = sealed("n2");
    model.run(60 * SECOND);
    model.bring_back_until_released("n2", 20 * SECOND);
    model.run(15 * SECOND);
    assert_eq!((origins(&model), orphans(&model)), (vec![], vec![]));
    let old = Entry::Client(client("10.0.0.2:0/200"));
    model.uses.iter_mut().for_each(|one| one.watchers.retain(|watcher| watcher.nonce != 200));
    model.run(100 * SECOND);
    model.lose_until_open("n2");
    assert!(record(&model).entries.contains_key(&old), "{:?}", record(&model).entries);
    model.run(5 * SECOND);
    assert_eq!(origins(&model), []);
}

fn years(years: i64) -> SignedDuration {
    SignedDuration::from_secs(years * i64::try_from(YEAR).unwrap())
}

/// A healthy cluster whose monitors' clock is so many years before the guardian's, as an osdmap has shown.
fn with_clocks_apart(off: i64) -> Model {
    let mut model = healthy();
    model.ahead = years(off);
    model.change(|_| ());
    model.run(15 * SECOND);
    model
}

/// The monitors logged that an administrator removed this entry, from there; `None`: cleared all.
fn removal(at: Timestamp, entry: Option<&str>, address: &str) -> Removal {
    let entry = entry.map(|entry| entry.parse().unwrap());
    Removal { at, entity: "client.admin".to_owned(), address: address.to_owned(), entry }
}

#[test]
fn inv3_entries_that_end_by_a_clock_that_steps_are_put_back_and_nobody_is_accused() {
    let mut model = sealed("n2");
    let end = record(&model).entries.values().next().unwrap().unwrap();
    // Somebody cleared the blocklist shortly before.
    let before = record(&model).sealed.unwrap() - SECOND;
    model.removals = Some(vec![removal(before, None, "10.0.0.8:0/4711")]);
    model.ahead = years(6);
    model.drop_what_is_over();
    assert!(!model.refuses("n2"));
    model.until("breached", |model| model.state("n2") == "breached");
    let alarms = model.guardian.alarms();
    let breached = alarms.iter().find(|alarm| alarm.code == "breached").unwrap();
    assert!(breached.text.contains("by the monitors' clock"), "{breached:#?}");
    model.until("sealed again", |model| model.refuses("n2") && model.seals().contains("n2"));
    model.run(20 * SECOND);
    assert_eq!(record(&model).breaches.len(), 1);
    assert_eq!(record(&model).breaches[0].ended, Some(end));
    assert_eq!(record(&model).removals, []);
    let logs = model.logs();
    assert!(!logs.iter().any(|line| line.starts_with("breached-by")), "{logs:#?}");
    assert!(logs.iter().any(|line| line.contains(&format!("ended at {end}"))), "{logs:#?}");

    // Back, and what was added meanwhile stands for longer: nothing is lifted, and nothing done.
    model.ahead = years(0);
    model.drop_what_is_over();
    model.run(20 * SECOND);
    assert_eq!((model.state("n2"), record(&model).breaches.len()), ("sealed", 1));
}

/// What a new entry's end is worth is told by the clock that it was made by.
#[test]
fn inv3_a_guardian_whose_clock_is_years_off_fences_puts_back_and_releases() {
    for off in [-6, 6] {
        let mut model = with_clocks_apart(off);
        model.lose("n2");
        model.run(3 * SECOND);
        // One that ends soon by the monitors' clock is not taken for the fence's.
        let soon = model.storage_clock() + 3600 * SECOND;
        model.change(|map| map.blocklist.entries.extend([("10.0.0.2:0/0".parse().unwrap(), soon)]));
        model.heal_is_refused("n2");
        model.until("the gate is open", |model| model.seals().contains("n2"));
        let long = |model: &Model, entry: &str| {
            let until = model.map().blocklist.entries.get(&entry.parse().unwrap()).copied();
            until.is_some_and(|until| until > model.storage_clock() + years(4))
        };
        model.until("an entry that stands long", |model| long(model, "10.0.0.2:0/0"));
        model.remove_entry("10.0.0.2:0/0");
        model.until("put back", |model| long(model, "10.0.0.2:0/0") && model.seals().contains("n2"));
        model.run(60 * SECOND);
        model.bring_back_until_released("n2", 20 * SECOND);
        assert!(long(&model, "10.0.0.2:0/200"), "INV-4: {:#?}", model.map().blocklist);
    }
}

#[test]
fn inv3_a_guardian_that_takes_over_judges_ends_by_the_monitors_clock() {
    for off in [-6, 6] {
        let mut model = with_clocks_apart(off);
        model.lose_until_open("n2");
        model.restart("boot-2");
        model.run(20 * SECOND);
        assert!(!model.logs().iter().any(|line| line.contains("breached")), "{off}: {:#?}", model.logs());
        // One that ends soon, and was put there while nobody looked, is none of the fence's.
        let soon = model.storage_clock() + 3600 * SECOND;
        model.change(|map| map.blocklist.entries.extend([("10.0.0.2:0/0".parse().unwrap(), soon)]));
        model.restart("boot-3");
        model.until("seen", |model| model.logs().iter().any(|line| line.contains("breached")));
        model.until("an entry that stands long, and the gate open", |model| {
            let until = model.map().blocklist.entries.get(&"10.0.0.2:0/0".parse().unwrap());
            until.is_some_and(|until| *until > soon + years(4)) && model.seals().contains("n2")
        });
    }
}

#[test]
fn inv3_who_removed_the_entry_is_told_also_where_clocks_are_years_apart() {
    for off in [-6, 6] {
        let mut model = with_clocks_apart(off);
        model.lose_until_open("n2");
        model.run(200 * SECOND);
        let removed = |at| removal(at, Some("10.0.0.2:0/0"), "10.0.0.8:0/4711");
        // The other one is of an earlier fence.
        let (now, before) = (removed(model.storage_clock()), removed(model.storage_clock() - 400 * SECOND));
        model.removals = Some(vec![before, now.clone()]);
        model.remove_entry("10.0.0.2:0/0");
        model.until("recorded", |model| !record(model).removals.is_empty());
        assert_eq!(record(&model).removals, [now], "{off}");
    }
}

#[test]
fn inv3_who_removed_the_entry_is_told_and_recorded() {
    let mut model = sealed("n2");
    let at = model.now().wall;
    let removed = |entry, address| removal(at, Some(entry), address);
    let culprit = removed("10.0.0.2:0/0", "10.0.0.8:0/4711");
    // Another entry, and one that this guardian removed itself.
    model.removals =
        Some(vec![removed("10.0.0.3:0/0", "10.0.0.8:0/4711"), removed("10.0.0.2:0/0", "10.0.0.9:0/9")]);
    model.remove_entry("10.0.0.2:0/0");
    model.until("sealed again", |model| model.refuses("n2") && model.state("n2") == "sealed");
    model.run(2 * SECOND);
    assert_eq!(record(&model).removals, [], "the log is behind");
    model.removals.as_mut().unwrap().push(culprit.clone());
    model.until("recorded", |model| record(model).removals == [culprit.clone()]);
    let told = |model: &Model| model.logs().iter().filter(|line| line.starts_with("breached-by")).count();
    assert_eq!(told(&model), 1, "{:#?}", model.logs());
    assert!(
        model.logs().iter().any(|line| line.contains("client.admin at 10.0.0.8:0/4711 removed 10.0.0.2:0/0"))
    );
    model.until("open", |model| model.seals().contains("n2"));
    let tampered = |model: &Model| model.guardian.alarms().into_iter().find(|alarm| alarm.code == "tampered");
    assert!(
        tampered(&model).unwrap().text.contains("client.admin at 10.0.0.8:0/4711"),
        "for as long as it is held"
    );
    let advice = tampered(&model).unwrap().advice;
    assert!(
        advice[0].contains("a member gets a key of its own") && !advice[0].contains("ceph auth get "),
        "{advice:?}"
    );
    let asked = model.effects.iter().filter(|effect| matches!(effect, Effect::ReadAudit(_))).count();
    assert!((2..20).contains(&asked), "{asked}");
    model.run(60 * SECOND);
    assert_eq!(told(&model), 1);
}

#[test]
fn inv3_a_log_that_cannot_be_read_holds_up_nothing() {
    let mut model = sealed("n2");
    model.removals = None;
    model.remove_entry("10.0.0.2:0/0");
    model.until("open", |model| model.refuses("n2") && model.seals().contains("n2"));
    model.run(20 * SECOND);
    let told: Vec<_> = model.logs().into_iter().filter(|line| line.starts_with("breached-by")).collect();
    assert!(told.len() == 1 && told[0].contains("not known: does not answer"), "{told:#?}");
    let asked =
        |model: &Model| model.effects.iter().filter(|effect| matches!(effect, Effect::ReadAudit(_))).count();
    let before = asked(&model);
    model.run(60 * SECOND);
    assert_eq!(asked(&model), before, "for a while only");
}

#[test]
fn inv4_a_client_seen_for_a_while_under_a_host_entry_has_its_own_before_the_release() {
    let mut model = sealed("n2");
    let seen = client("10.0.0.2:0/201");
    model.sessions.insert(seen);
    model.until("remembered", |model| record(model).seen.contains(&seen));
    model.sessions.clear();
    model.uses.retain(|one| !one.image.name.ends_with("c2"));
    model.run(300 * SECOND);
    assert!(model.seals().contains("n2"), "the whole host is refused: nothing is to be proved");
    model.restart("boot-1");
    model.bring_back_until_released("n2", 20 * SECOND);
    assert!(model.map().blocklist.refuses(seen));
    assert_eq!(model.seals().len(), 0);
}

#[test]
fn inv4_a_client_seen_between_return_and_reboot_has_its_own_entry_before_the_release() {
    let mut model = sealed("n2");
    model.run(300 * SECOND);
    let old = client("10.0.0.2:0/201");
    model.bring_back("n2", 100_000 * SECOND);
    model.until("back without a reboot", |model| model.alarms().contains("returned-stale"));
    model.sessions.insert(old);
    model.run(10 * SECOND);
    model.sessions.clear();
    model.bring_back_until_released("n2", 5 * SECOND);
    assert!(model.map().blocklist.refuses(old));
}

fn retired(model: &Model) -> bool {
    !model.map().blocklist.refuses(client("10.0.0.2:0/200"))
}

/// A day more than client entries are kept.
const SERVED: Duration = Duration::from_secs(91 * 86_400);

#[test]
fn inv4_client_entries_go_after_their_time_only_where_a_reboot_proved_the_clients_dead() {
    let mut model = sealed("n2");
    model.uses.retain(|one| !one.image.name.ends_with("c2"));
    // One of the new boot, or of the old: nobody knows.
    let late = client("10.0.0.2:0/201");
    model.run(120 * SECOND);
    model.sessions.insert(late);
    model.until("remembered", |model| record(model).seen.contains(&late));
    model.bring_back_until_released("n2", 20 * SECOND);
    assert_eq!(record(&model).dead, [client("10.0.0.2:0/200")].into());
    model.pass(SERVED - 2 * 86_400 * SECOND);
    model.run(60 * SECOND);
    assert!(!retired(&model), "not yet");
    model.pass(2 * 86_400 * SECOND);
    model.until("removed", retired);
    assert!(model.map().blocklist.refuses(late));
    model.until("recorded", |model| record(model).dead.is_empty());
    assert_eq!(record(&model).entries.keys().collect::<Vec<_>>(), [&Entry::Client(late)]);
    assert_eq!(record(&model).in_doubt.len(), 0);
    let effects = model.effects.len();
    model.run(600 * SECOND);
    assert!(!model.effects[effects..].iter().any(|effect| matches!(effect, Effect::Retire(..))), "done");
}

#[test]
fn a_record_goes_with_its_last_entry_and_one_that_another_fence_holds_stays() {
    let mut model = sealed("n2");
    model.uses.retain(|one| !one.image.name.ends_with("c2"));
    model.run(120 * SECOND);
    model.bring_back_until_released("n2", 20 * SECOND);
    let target = Target::Addresses([Entry::Client(client("10.0.0.2:0/200"))].into());
    model.ask(1, fence_of(target));
    model.until("sealed", |model| !model.answers().is_empty());
    model.pass(SERVED);
    model.until("forgotten", |model| model.ledger.fences.len() == 1);
    model.run(60 * SECOND);
    assert!(!retired(&model), "the other fence's");
    assert!(!model.audit.iter().any(|what| what.ends_with("breached")), "{:?}", model.audit);
    let fence = model.ledger.fences.keys().next().unwrap().to_string();
    let reason = Some("gone".to_owned());
    model.ask(
        2,
        Request::Release { fence, since: None, assert_powered_off: true, reason, by: "root@h".to_owned() },
    );
    model.until("released", |model| record(model).state == FenceState::Released);
    assert_eq!((record(&model).dead.len(), retired(&model)), (1, false));
    model.pass(SERVED);
    model.until("removed", retired);
    model.until("forgotten", |model| model.ledger.fences.is_empty());
}

#[test]
fn nothing_is_retired_while_it_cannot_be_recorded() {
    let mut model = sealed("n2");
    model.uses.retain(|one| !one.image.name.ends_with("c2"));
    model.run(120 * SECOND);
    model.bring_back_until_released("n2", 20 * SECOND);
    model.run(5 * SECOND);
    model.ledger_down = true;
    model.pass(SERVED);
    model.run(60 * SECOND);
    assert!(!retired(&model));
    model.ledger_down = false;
    model.until("removed", retired);
}

#[test]
fn inv7_a_withdrawn_fence_forgets_nothing_that_an_earlier_one_left() {
    // Of a host entry the other form is taken, and that is another fence; of a client there is none.
    for doubt in ["10.0.0.2:0/0", "10.0.0.2:0/200"] {
        let mut model = sealed("n2");
        model.run(120 * SECOND);
        model.uses.retain(|one| !one.image.name.ends_with("c2"));
        model.bring_back_until_released("n2", 20 * SECOND);
        model.ledger.fences.values_mut().next().unwrap().in_doubt.insert(doubt.parse().unwrap());
        let before = record(&model).clone();
        model.restart("boot-1");
        model.run(5 * SECOND);
        model.lose("n2");
        model.run(3 * SECOND);
        model.bring_back("n2", 200_000 * SECOND);
        model.heal_is_refused("n2");
        model.until("withdrawn", |model| model.audit.iter().any(|what| what.ends_with("withdrawn")));
        assert_eq!(model.ledger.fences.len(), 1, "{doubt}");
        let after = record(&model);
        assert_eq!((after.state, &after.in_doubt), (FenceState::Released, &before.in_doubt), "{doubt}");
        assert_eq!((&after.dead, after.released), (&before.dead, before.released));
        assert!(after.entries.keys().eq(before.entries.keys()), "{:?}", after.entries);
    }
}

fn addresses(model: &Model, member: &str) -> Vec<String> {
    let status = model.guardian.status(model.now());
    let line = status.members.into_iter().find(|line| line.name == member);
    line.into_iter().flat_map(|line| line.addresses).map(|known| known.address.to_string()).collect()
}

fn osd(ip: &str) -> Daemon {
    Daemon {
        kind: DaemonKind::Osd,
        name: ip.to_owned(),
        ips: vec![ip.parse().unwrap()],
        role: Role::Plain,
        clients: Vec::new(),
        clients_unknown: false,
    }
}

fn contradicted(model: &Model) -> bool {
    model.alarms().contains("address-contradiction")
}

/// At no moment: a plan made between a reading that learns it and one that mends that would fence another member.
#[track_caller]
fn is_not_learnt(model: &mut Model, member: &str) {
    let end = model.boot + 700 * SECOND;
    while model.boot < end {
        model.step();
        assert_eq!(addresses(model, member).len(), 0, "learnt again");
    }
}

#[test]
fn what_the_configuration_says_of_one_member_is_never_learnt_of_another() {
    let mut model = Model::new();
    for n in 1..=3 {
        model.view.members.get_mut(&format!("n{n}")).unwrap().addresses = Ok([].into());
    }
    let of_n1 = Member { name: "n1".to_owned(), addresses: vec!["10.0.0.2".parse().unwrap()] };
    model.restart_with(Settings { members: Members(vec![of_n1]), ..settings() });
    // By its interfaces, and by its watcher.
    model.daemons = vec![osd("10.0.0.250")];
    model.networks.insert("n2".to_owned(), ["10.0.0.2/24".parse().unwrap()].into());
    is_not_learnt(&mut model, "n2");
    assert_eq!(
        (addresses(&model, "n1"), contradicted(&model)),
        (vec!["10.0.0.2".into()], false),
        "what the operator says is complete"
    );
}

#[test]
fn the_operators_word_wins_over_what_was_learnt_of_others() {
    let mut model = Model::new();
    for n in 1..=3 {
        model.view.members.get_mut(&format!("n{n}")).unwrap().addresses = Ok([].into());
    }
    model.daemons = vec![osd("10.0.0.250")];
    model.networks.insert("n2".to_owned(), ["10.0.0.2/24".parse().unwrap()].into());
    model.until("learnt", |model| addresses(model, "n2") == ["10.0.0.2"]);
    // It was n2's; now it is n1's, which the operator knows.
    let says = |model: &mut Model, name: &str, ips: &[&str]| {
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        model.view.members.get_mut(name).unwrap().addresses = Ok(ips);
        model.run(5 * SECOND);
    };
    says(&mut model, "n1", &["10.0.0.1", "10.0.0.2"]);
    assert_eq!((addresses(&model, "n2"), contradicted(&model)), (vec![], false));
    is_not_learnt(&mut model, "n2");
    // Of two words of the operator none is better.
    says(&mut model, "n2", &["10.0.0.2"]);
    assert!(contradicted(&model));
    says(&mut model, "n1", &[]);
    assert!(!contradicted(&model), "a word that is taken back");
    assert_eq!(addresses(&model, "n2"), ["10.0.0.2"]);
}

#[test]
fn a_members_own_interfaces_settle_whose_an_address_is() {
    let mut model = Model::new();
    for n in 1..=3 {
        model.view.members.get_mut(&format!("n{n}")).unwrap().addresses = Ok([].into());
    }
    model.daemons = vec![osd("10.0.0.250")];
    let has = |model: &mut Model, name: &str, networks: &[&str]| {
        let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
        model.networks.insert(name.to_owned(), networks);
    };
    has(&mut model, "n1", &["10.0.0.1/24", "10.0.0.7/24"]);
    has(&mut model, "n2", &["10.0.0.2/24"]);
    model.until("learnt", |model| addresses(model, "n1") == ["10.0.0.1", "10.0.0.7"]);
    model.until("learnt by its watcher", |model| addresses(model, "n3") == ["10.0.0.3"]);
    // An interface moves from n1 to n2, and one that n1 was known by is n2's now.
    has(&mut model, "n1", &["10.0.0.11/24"]);
    has(&mut model, "n2", &["10.0.0.2/24", "10.0.0.7/24", "10.0.0.1/24"]);
    model.uses.retain(|one| !one.image.name.ends_with("c1"));
    model.run(600 * SECOND);
    model.until("settled", |model| addresses(model, "n1") == ["10.0.0.11"]);
    assert_eq!(addresses(&model, "n2"), ["10.0.0.1", "10.0.0.2", "10.0.0.7"]);
    assert!(!contradicted(&model));
    // What nobody else claims stays, wherever it was learnt: a member behind an address translation.
    has(&mut model, "n3", &["192.168.0.3/24"]);
    model.run(700 * SECOND);
    assert_eq!(addresses(&model, "n3"), ["10.0.0.3"]);
}
