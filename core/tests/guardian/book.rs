//! The operator's list of a member's addresses is complete: each place of the book where one could be learnt beside it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use rbd_guardian_core::guardian::address_book::{AddressBook, ForeignClients, Sightings};
use rbd_guardian_core::model::image_users::ImageUse;
use rbd_guardian_core::model::incus_snapshot::{
    Details, IncusSnapshot, Instance, InstanceKind, MemberStatus, MemberView,
};
use rbd_guardian_core::model::member::Members;
use rbd_guardian_core::model::record::{MemberRecord, Source};
use rbd_guardian_core::model::volume::{Expected, ImageName, Images};

use crate::hold::client;
use crate::model::id;

const SAID: &str = "10.0.0.2";
const BESIDE: &str = "10.9.0.2";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `n2`, of which the operator names one address, and what else its record has.
fn book(change: impl FnOnce(&mut MemberRecord)) -> AddressBook {
    let mut book = AddressBook::default();
    let record = book.of("n2");
    record.addresses = BTreeMap::from([(ip(SAID), [Source::Operator].into())]);
    change(record);
    book
}

fn addresses(book: &AddressBook) -> Vec<IpAddr> {
    book.members["n2"].addresses.keys().copied().collect()
}

/// A sweep shows this client at the image of `c2`, which runs on `n2`.
fn shows(book: &mut AddressBook, by: &str) {
    let image = ImageName { pool: "incus".into(), namespace: String::new(), name: "container_c2".into() };
    let member = MemberView {
        status: MemberStatus::Online,
        heartbeat_age: None,
        url: "https://n2:8443".to_owned(),
        leads: true,
        addresses: Ok([ip(SAID)].into()),
    };
    let details = Some(Details { running: true, ran: true, ..Details::default() });
    let runs = Instance { kind: InstanceKind::Container, location: "n2".to_owned(), details };
    let view = IncusSnapshot {
        from: "n2".to_owned(),
        members: BTreeMap::from([("n2".to_owned(), member)]),
        instances: Some(BTreeMap::from([(id("c2"), runs)])),
        operations: Some(Vec::new()),
        ..IncusSnapshot::default()
    };
    let expected = Expected::Exclusive { instances: vec![id("c2")], locations: vec!["n2".to_owned()] };
    let images = Images::from([(image.clone(), expected)]);
    let uses =
        [ImageUse { image, watchers: vec![client(by).into()], locks: Vec::new(), unknown: Vec::new() }];
    let _ = book.uses(&Sightings {
        uses: &uses,
        complete: true,
        images: &images,
        view: &view,
        strangers: ForeignClients { admin_hosts: &[], own: &[], daemons: &[] },
        configured: &Members::default(),
        now: Duration::from_secs(1000),
    });
}

#[test]
fn inv6_what_a_ledger_has_beside_the_operators_list_is_no_address_of_a_plan() {
    let book = book(|record| drop(record.addresses.insert(ip(BESIDE), [Source::Watcher].into())));
    let members = book.members(&Members::default(), None);
    assert_eq!(members.get("n2").unwrap().addresses, [ip(SAID)]);
}

#[test]
fn inv6_what_was_learnt_before_the_operator_named_addresses_is_forgotten() {
    let mut book = book(|record| {
        record.addresses = BTreeMap::from([(ip(BESIDE), [Source::Watcher, Source::Network].into())]);
    });
    book.operator("n2", &[ip(SAID)].into(), &Members::default());
    assert_eq!(addresses(&book), [ip(SAID)]);
}

#[test]
fn inv6_a_client_of_the_member_teaches_no_address_beside_the_operators_list() {
    let mut book = book(|record| record.clients = [client("10.9.0.2:0/201")].into());
    shows(&mut book, "10.9.0.2:0/201");
    assert!(book.members["n2"].clients.contains(&client("10.9.0.2:0/201")), "it stays a client of it");
    assert_eq!(addresses(&book), [ip(SAID)]);
}

#[test]
fn inv6_an_interface_is_no_address_beside_the_operators_list() {
    let shown = |record: &mut MemberRecord| {
        record.interfaces = Some(["10.0.0.2/24", "10.9.0.2/16"].map(|one| one.parse().unwrap()).into());
    };
    let mut book = book(shown);
    book.judge(&[], &[ip(BESIDE)].into(), &Members::default());
    assert_eq!(addresses(&book), [ip(SAID)]);
}

/// Without a list two sweeps that show it alone make it the member's.
#[test]
fn inv6_nobodys_client_beside_the_operators_list_stays_nobodys() {
    let by = "10.9.0.2:0/202";
    for listed in [true, false] {
        let mut book = book(|record| {
            if !listed {
                record.addresses.clear();
            }
        });
        for _ in 0..3 {
            shows(&mut book, by);
        }
        let record = &book.members["n2"];
        assert_eq!(record.clients.contains(&client(by)), !listed, "{record:?}");
        assert_eq!(record.others.as_ref().unwrap().contains(&client(by)), listed, "{record:?}");
    }
}
