//! What `plan` decides, and every reason it refuses for (INV-6), without a cluster.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rbd_guardian_core::model::addr::{ClientAddr, EntityAddr, Entry, parse_target};
use rbd_guardian_core::model::blocklist::Blocklist;
use rbd_guardian_core::model::ceph_snapshot::{CephSnapshot, Clients, Daemon, DaemonKind, Role, SeenAt};
use rbd_guardian_core::model::epoch::OsdEpoch;
use rbd_guardian_core::model::member::{Member, Members};
use rbd_guardian_core::model::osdmap::{DataPools, OsdMap, Pool};
use rbd_guardian_core::model::overrides::Overrides;
use rbd_guardian_core::model::policy::Policy;
use rbd_guardian_core::model::target::{Coverage, Target};
use rbd_guardian_core::rules::plan::{MemberAnswer, Plan, PlanRequest, plan};
use rbd_guardian_core::rules::refusal::Refusal;

struct Case {
    members: Members,
    world: CephSnapshot,
    policy: Policy,
    overrides: Overrides,
    reachable: BTreeMap<String, MemberAnswer>,
    in_doubt: BTreeSet<Entry>,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn daemon(kind: DaemonKind, name: &str, at: &str, role: Role) -> Daemon {
    Daemon { kind, name: name.into(), ips: vec![ip(at)], role, clients: vec![], clients_unknown: false }
}

impl Case {
    /// Members n1, n2, n3 at 10.0.0.1 to 3, one image pool, nobody anywhere.
    fn new() -> Self {
        let member = |n: u8| Member { name: format!("n{n}"), addresses: vec![IpAddr::from([10, 0, 0, n])] };
        let members = Members((1..=3).map(member).collect());
        let pool = Pool {
            name: "images".into(),
            pg_num: 8,
            overlay: None,
            eio: false,
            unclear: None,
            applications: vec!["rbd".into()],
        };
        let map = OsdMap {
            epoch: OsdEpoch(10),
            modified: Timestamp::UNIX_EPOCH,
            blocklist: Blocklist::default(),
            knows_ranges: true,
            reads_paused: false,
            not_understood: vec![],
            pools: BTreeMap::from([(1, pool)]),
        };
        let own = vec!["10.0.0.9:0/99".parse().unwrap()];
        let now = "2026-11-22T12:00:00Z".parse().unwrap();
        let world = CephSnapshot {
            now,
            own,
            map,
            daemons: vec![],
            clients: Clients::new(),
            unread: vec![],
            data_pools: DataPools::new(),
        };
        Self {
            members,
            world,
            policy: Policy::default(),
            overrides: Overrides::default(),
            reachable: BTreeMap::new(),
            in_doubt: BTreeSet::new(),
        }
    }

    fn plan(&self, target: Target) -> Result<Plan, Vec<Refusal>> {
        plan(
            &PlanRequest {
                overrides: self.overrides,
                reachable: self.reachable.clone(),
                in_doubt: self.in_doubt.clone(),
                ..PlanRequest::of(target)
            },
            &self.members,
            &self.world,
            &self.policy,
        )
    }

    fn member(&self, name: &str) -> Result<Plan, Vec<Refusal>> {
        self.plan(Target::Member(name.into()))
    }

    fn addresses(&self, texts: &[&str]) -> Result<Plan, Vec<Refusal>> {
        self.plan(Target::Addresses(texts.iter().map(|text| parse_target(text).unwrap()).collect()))
    }

    fn sees(&mut self, client: &str) -> ClientAddr {
        let client = client.parse::<EntityAddr>().unwrap().client().unwrap();
        self.world.clients.insert(client, BTreeSet::new());
        client
    }

    fn blocklisted(&mut self, entry: &str, days: u64) {
        let until: Timestamp = self.world.now + Duration::from_secs(days * 86_400);
        self.world.map.blocklist.entries.insert(entry.parse().unwrap(), until);
    }
}

#[track_caller]
fn only_code(result: Result<Plan, Vec<Refusal>>) -> &'static str {
    let refusals = result.unwrap_err();
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    refusals[0].code()
}

#[test]
fn a_member_is_covered_whole_with_every_client_that_was_seen_on_it() {
    let mut case = Case::new();
    let mine = case.sees("10.0.0.1:0/7");
    case.sees("10.0.0.2:0/8");
    let plan = case.member("n1").unwrap();
    assert_eq!(plan.entries, [Entry::Host(ip("10.0.0.1")), Entry::Client(mine)].into());
    assert_eq!((plan.coverage, plan.known_clients), (Coverage::WholeHost, 1));
    assert!(plan.fail_over.is_empty());
}

#[test]
fn inv6_unknown_members_and_members_without_address_are_refused() {
    let mut case = Case::new();
    assert_eq!(only_code(case.member("n9")), "unknown-member");
    case.members.0[0].addresses.clear();
    assert_eq!(only_code(case.member("n1")), "no-address");
}

#[test]
fn inv6_the_guardian_never_fences_itself() {
    let mut case = Case::new();
    assert_eq!(only_code(case.addresses(&["10.0.0.9"])), "own-address");
    assert_eq!(only_code(case.addresses(&["10.0.0.9:0/99"])), "own-address");
    assert!(case.addresses(&["10.0.0.9:0/98"]).is_ok(), "another client instance of its host is not itself");
    case.world.own = vec!["10.0.0.1:0/5".parse().unwrap()];
    assert_eq!(only_code(case.member("n1")), "own-address");
}

#[test]
fn inv6_an_address_that_two_members_share_is_refused() {
    let mut case = Case::new();
    case.members.0[1].addresses.push(ip("10.0.0.1"));
    case.policy.max_fenced_members = Some(3);
    assert_eq!(only_code(case.member("n1")), "shared-address");
}

#[test]
fn inv6_an_active_mgr_is_failed_over_only_to_a_standby_that_is_known_to_be_elsewhere() {
    let mut case = Case::new();
    let active = daemon(DaemonKind::Mgr, "x", "10.0.0.1", Role::Active);
    case.world.daemons = vec![active.clone()];
    assert_eq!(only_code(case.member("n1")), "active-daemon");
    case.world.daemons.push(daemon(DaemonKind::Mgr, "y", "10.0.0.1", Role::Standby));
    assert_eq!(only_code(case.member("n1")), "active-daemon", "a standby on the target does not count");
    let mut nowhere = daemon(DaemonKind::Mgr, "z", "10.0.0.2", Role::Standby);
    nowhere.ips.clear();
    case.world.daemons.push(nowhere);
    assert_eq!(only_code(case.member("n1")), "active-daemon", "nor does one whose place is unknown");
    case.world.daemons.push(daemon(DaemonKind::Mgr, "w", "10.0.0.2", Role::Standby));
    assert_eq!(case.member("n1").unwrap().fail_over, [active]);
    case.policy.fail_over = false;
    assert_eq!(only_code(case.member("n1")), "active-daemon");
}

#[test]
fn inv6_each_active_mds_needs_a_standby_of_its_own() {
    let mut case = Case::new();
    for (name, at, role) in
        [("a", "10.0.0.1", Role::Active), ("b", "10.0.0.1", Role::Active), ("c", "10.0.0.2", Role::Standby)]
    {
        case.world.daemons.push(daemon(DaemonKind::Mds, name, at, role));
    }
    assert_eq!(only_code(case.member("n1")), "active-daemon");
    case.world.daemons.push(daemon(DaemonKind::Mds, "d", "10.0.0.3", Role::Standby));
    assert_eq!(case.member("n1").unwrap().fail_over.len(), 2);
}

#[test]
fn what_is_known_is_fenced_without_the_host_if_the_operator_accepts_it() {
    let mut case = Case::new();
    let guest = case.sees("10.0.0.1:0/7");
    let module = case.sees("10.0.0.1:0/8");
    let mut mgr = daemon(DaemonKind::Mgr, "x", "10.0.0.1", Role::Active);
    mgr.clients = vec![module];
    case.world.daemons = vec![mgr];
    case.overrides.accept_incomplete = true;
    let plan = case.member("n1").unwrap();
    assert_eq!(plan.entries, [Entry::Client(guest)].into(), "the mgr's own client is spared");
    assert_eq!(plan.coverage, Coverage::KnownClients);
}

/// A mgr of both families, or one whose host entry takes the other form because a removal of the first is in doubt.
#[test]
fn inv6_no_host_entry_in_any_form_stays_where_an_active_daemon_is() {
    let mut case = Case::new();
    case.members.0[0].addresses.push(ip("fd77::1"));
    let guest = case.sees("10.0.0.1:0/7");
    let mut mgr = daemon(DaemonKind::Mgr, "x", "10.0.0.1", Role::Active);
    mgr.ips.push(ip("fd77::1"));
    mgr.clients = vec![case.sees("10.0.0.1:0/8")];
    case.world.daemons = vec![mgr];
    case.overrides.accept_incomplete = true;
    for doubtful in [&[][..], &["10.0.0.1:0/0"], &["fd77::1/128"]] {
        case.in_doubt = doubtful.iter().map(|text| text.parse().unwrap()).collect();
        let plan = case.member("n1").unwrap();
        assert_eq!(plan.entries, [Entry::Client(guest)].into(), "{doubtful:?}");
    }
}

#[test]
fn inv6_a_bare_address_of_a_daemon_is_refused_but_a_members_own_may_run_some() {
    let mut case = Case::new();
    case.world.daemons = vec![
        daemon(DaemonKind::Mon, "a", "10.0.0.1", Role::Plain),
        daemon(DaemonKind::Osd, "0", "10.0.0.1", Role::Plain),
    ];
    assert_eq!(only_code(case.addresses(&["10.0.0.1"])), "daemons-at-address");
    assert!(case.addresses(&["10.0.0.1:0/5"]).is_ok());
    assert_eq!(case.member("n1").unwrap().coverage, Coverage::WholeHost);
}

#[test]
fn inv6_a_daemons_client_and_a_protected_network_are_refused() {
    let mut case = Case::new();
    let mut mgr = daemon(DaemonKind::Mgr, "x", "10.0.0.8", Role::Active);
    mgr.clients = vec![ClientAddr { ip: ip("10.0.0.8"), nonce: 5 }];
    case.world.daemons = vec![mgr];
    assert_eq!(only_code(case.addresses(&["10.0.0.8:0/5"])), "daemon-client");
    case.policy.protected = vec!["10.0.0.0/30".parse().unwrap()];
    assert_eq!(only_code(case.member("n1")), "protected");
}

#[test]
fn inv6_the_storm_brake_counts_other_fenced_members() {
    let mut case = Case::new();
    case.blocklisted("10.0.0.2:0/0", 1800);
    assert_eq!(only_code(case.member("n1")), "storm-brake");
    assert_eq!(
        only_code(case.addresses(&["10.0.0.1"])),
        "storm-brake",
        "a member's bare address counts as the member"
    );
    assert!(case.member("n2").is_ok(), "the one that is fenced may be fenced again");
    case.policy.max_fenced_members = Some(2);
    assert!(case.member("n1").is_ok());
}

/// Of none of its addresses a host entry is made: it is fenced by its clients alone.
#[test]
fn inv6_the_storm_brake_counts_a_member_without_a_host_entry() {
    let mut case = Case::new();
    case.blocklisted("10.0.0.2:0/0", 1800);
    let target = Target::Member("n1".into());
    let mut request = PlanRequest { overrides: case.overrides, ..PlanRequest::of(target) };
    request.known.clients.insert(case.sees("10.0.0.1:0/7"));
    request.known.single.insert(ip("10.0.0.1"), "it may be another host's".into());
    assert_eq!(only_code(plan(&request, &case.members, &case.world, &case.policy)), "storm-brake");
}

#[test]
fn unread_sources_matter_only_where_the_host_is_not_fenced() {
    let mut case = Case::new();
    case.world.unread = vec!["pool images: no answer".into()];
    let plan = case.member("n1").unwrap();
    assert_eq!(plan.coverage, Coverage::WholeHost);
    assert!(plan.notes.iter().any(|note| note.contains("no answer")), "{:?}", plan.notes);
    case.world.daemons = vec![daemon(DaemonKind::Mgr, "x", "10.0.0.1", Role::Active)];
    case.sees("10.0.0.1:0/7");
    case.overrides.accept_incomplete = true;
    assert_eq!(case.member("n1").unwrap().coverage, Coverage::Incomplete);
}

#[test]
fn inv6_a_client_that_may_be_a_mgrs_own_is_no_target() {
    let mut case = Case::new();
    let mut mgr = daemon(DaemonKind::Mgr, "x", "10.0.0.7", Role::Active);
    mgr.clients_unknown = true;
    case.world.daemons = vec![mgr];
    assert_eq!(only_code(case.addresses(&["10.0.0.7:0/5"])), "may-be-daemon-client");
    assert!(case.addresses(&["10.0.0.8:0/5"]).is_ok(), "elsewhere");
    let client = "10.0.0.7:0/5".parse::<EntityAddr>().unwrap().client().unwrap();
    let seen = |entity: &str| [(client, [SeenAt::Session(entity.to_owned())].into())].into();
    case.world.clients = seen("mgr.x");
    assert_eq!(only_code(case.addresses(&["10.0.0.7:0/5"])), "may-be-daemon-client");
    case.world.clients = seen("client.admin");
    assert!(case.addresses(&["10.0.0.7:0/5"]).is_ok(), "a guest's, by its key");
    case.world.clients.clear();
    case.world.daemons[0].ips.clear();
    assert_eq!(
        only_code(case.addresses(&["10.0.0.8:0/5"])),
        "may-be-daemon-client",
        "nobody knows where it is"
    );
}

#[test]
fn what_is_not_understood_of_the_osdmap_is_told_with_the_plan() {
    let mut case = Case::new();
    case.world.map.not_understood = vec!["the blocklist entry '-'".into()];
    let plan = case.member("n1").unwrap();
    assert!(plan.notes.iter().any(|note| note.contains("'-'")), "{:?}", plan.notes);
}

#[test]
fn a_seal_needs_something_to_prove_and_a_way_to_prove_it() {
    let mut case = Case::new();
    case.policy.guarded.except = vec!["images".into()];
    assert_eq!(only_code(case.member("n1")), "no-pools");
    case.policy.guarded.except.clear();
    case.world.map.pools.get_mut(&1).unwrap().overlay = Some(2);
    assert_eq!(only_code(case.member("n1")), "cache-tier");
}

#[test]
fn a_short_entry_is_refused_only_where_its_cover_would_harm_somebody() {
    let mut case = Case::new();
    case.blocklisted("10.0.0.1:0/7", 0);
    assert!(case.member("n1").is_ok(), "the host entry is its cover");
    assert!(case.addresses(&["10.0.0.1:0/7"]).is_ok(), "nobody else is there");
    case.sees("10.0.0.1:0/8");
    assert_eq!(only_code(case.addresses(&["10.0.0.1:0/7"])), "short-entry");
    case.blocklisted("10.0.0.1:0/0", 1800);
    assert!(case.addresses(&["10.0.0.1:0/7"]).is_ok(), "a long host entry stands already");
    case.blocklisted("10.0.0.1:0/0", 0);
    case.world.map.knows_ranges = false;
    let refusals = case.addresses(&["10.0.0.1"]).unwrap_err();
    assert!(
        refusals.iter().all(|refusal| refusal.code() == "short-entry"),
        "no other key for the host: {refusals:?}"
    );
}

#[test]
fn a_cover_is_allowed_only_where_every_client_of_the_host_is_known() {
    let mut case = Case::new();
    let client = &["10.0.0.1:0/7"];
    assert_eq!(case.addresses(client).unwrap().coverable, [ip("10.0.0.1")].into());
    case.world.unread = vec!["sessions of mon.a: no answer".into()];
    assert!(case.addresses(client).unwrap().coverable.is_empty(), "should it become short meanwhile");
    case.blocklisted("10.0.0.1:0/7", 0);
    assert_eq!(only_code(case.addresses(client)), "short-entry");
}

#[test]
fn inv4_a_client_somebody_blocklisted_for_an_hour_is_fenced_for_good() {
    let mut case = Case::new();
    case.blocklisted("10.0.0.1:0/7", 0);
    case.blocklisted("10.0.0.1:0/8", 1800);
    let plan = case.member("n1").unwrap();
    let short = Entry::Client(ClientAddr { ip: ip("10.0.0.1"), nonce: 7 });
    assert_eq!(plan.entries, [Entry::Host(ip("10.0.0.1")), short].into(), "the long one stands anyway");
}

#[test]
fn inv6_an_operator_goes_over_the_brake_and_over_nothing_else() {
    let mut case = Case::new();
    case.overrides.brake = true;
    assert!(!case.member("n1").unwrap().overrides.brake, "it does not stand against it");
    case.blocklisted("10.0.0.2:0/0", 1800);
    assert!(case.member("n1").unwrap().overrides.brake);
    case.policy.protected = vec!["10.0.0.0/30".parse().unwrap()];
    assert_eq!(only_code(case.member("n1")), "protected");
    case.policy.protected.clear();
    case.members.0[1].addresses.push(ip("10.0.0.1"));
    assert_eq!(only_code(case.member("n1")), "shared-address");
}

#[test]
fn inv6_a_guardian_on_the_lost_side_fences_nobody() {
    let mut case = Case::new();
    case.blocklisted("10.0.0.9:0/0", 1800);
    assert_eq!(only_code(case.member("n1")), "fenced-itself");
}

#[test]
fn inv6_bare_addresses_keep_the_brake_and_shared_addresses_too() {
    let mut case = Case::new();
    let three = &["10.0.0.1:0/7", "10.0.0.2:0/7", "10.0.0.3:0/7"];
    assert_eq!(only_code(case.addresses(three)), "storm-brake", "clients of three members");
    case.policy.max_fenced_members = Some(3);
    assert!(case.addresses(three).is_ok());
    case.members.0[1].addresses.push(ip("10.0.0.1"));
    assert_eq!(only_code(case.addresses(&["10.0.0.1"])), "shared-address");
}

#[test]
fn a_whole_host_entry_beside_a_fence_of_clients_is_told_with_the_way_to_lift_it() {
    let mut case = Case::new();
    case.blocklisted("10.0.0.1:0/0", 1800);
    let notes = case.addresses(&["10.0.0.1:0/7"]).unwrap().notes;
    assert!(notes.iter().any(|note| note.contains("release --fence F-")), "{notes:?}");
    assert!(case.member("n2").unwrap_err().iter().all(|refusal| refusal.code() == "storm-brake"));
    let unused = case.member("n1").unwrap().notes;
    assert!(unused.iter().any(|note| note.contains("no client of 10.0.0.1 is known")), "{unused:?}");
}

#[test]
fn inv6_a_member_that_answers_is_refused_by_name_and_by_its_host_and_not_by_a_client() {
    let mut case = Case::new();
    let answers =
        MemberAnswer { seen: "answers Incus (Online)".into(), runs: Some(vec!["c1".into(), "c2".into()]) };
    case.reachable.insert("n1".into(), answers);
    assert_eq!(only_code(case.member("n1")), "reachable");
    assert_eq!(only_code(case.addresses(&["10.0.0.1"])), "reachable");
    assert!(case.addresses(&["10.0.0.1:0/7"]).is_ok(), "a client instance is not the member");
    assert!(case.member("n2").is_ok());
    let refusal = case.member("n1").unwrap_err().remove(0).to_string();
    assert!(refusal.contains("answers Incus (Online) and runs c1 and c2"), "{refusal}");
    case.overrides.reachable = true;
    assert!(case.member("n1").unwrap().overrides.reachable);
    assert!(!case.member("n2").unwrap().overrides.reachable, "it does not stand against it");
}

#[test]
fn inv6_a_host_at_which_nothing_is_known_is_refused_and_what_is_known_is_a_member_a_client_or_an_entry() {
    let mut case = Case::new();
    assert_eq!(only_code(case.addresses(&["10.0.0.77"])), "unknown-address");
    case.world.unread = vec!["sessions of mon.b: timed out".into()];
    let refusal = case.addresses(&["10.0.0.77"]).unwrap_err().remove(0).to_string();
    assert!(refusal.contains("not read: sessions of mon.b"), "{refusal}");
    case.world.unread.clear();
    assert!(case.addresses(&["10.0.0.77:0/5"]).is_ok(), "a client address needs no word");
    assert!(case.addresses(&["10.0.0.1"]).is_ok(), "a member's");
    case.sees("10.0.0.78:0/4");
    assert!(case.addresses(&["10.0.0.78"]).is_ok(), "a client's");
    assert_eq!(only_code(case.addresses(&["10.0.0.78", "10.0.0.77"])), "unknown-address");
    case.blocklisted("10.0.0.79:0/0", 4000);
    assert!(case.addresses(&["10.0.0.79"]).is_ok(), "the same command again");
    case.overrides.unknown = true;
    assert!(case.addresses(&["10.0.0.77"]).unwrap().overrides.unknown);
    assert!(!case.addresses(&["10.0.0.78"]).unwrap().overrides.unknown);
}
