//! What a plan, a seal and a gate need to know of a member beside its addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::fence::Fence;
use crate::guardian::Guardian;
use crate::guardian::book::AddressBook;
use crate::guardian::sightings::ForeignClients;
use crate::model::addr::ClientAddr;
use crate::model::blocklist::Blocklist;
use crate::model::ceph_snapshot::{CephSnapshot, SeenAt};
use crate::model::incus_snapshot::MemberStatus;
use crate::model::volume::{Expected, ImageName};
use crate::rules::plan::KnownClients;

impl Guardian {
    /// What is known of a member, with what this look shows at its images.
    pub(super) fn known_of(&self, name: &str, world: &CephSnapshot) -> KnownClients {
        let single = self.single_addresses(name, world);
        let record = self.book.members.get(name);
        let mut known = KnownClients {
            clients: record.map(|record| record.clients.clone()).unwrap_or_default(),
            single,
            ..KnownClients::default()
        };
        if record.is_some_and(|record| record.others.is_none()) {
            let text = "a guardian of an earlier version recorded it, which kept only some of its clients";
            known.unknown.push(text.to_owned());
        }
        known.unknown.extend(self.lost_pools_of(name));
        let owners = self.book.clients();
        let holders = self.book.holders(&self.settings.members);
        let strangers = ForeignClients { daemons: &world.daemons, ..self.strangers() };
        let before = record.into_iter().flat_map(|record| record.others.iter().flatten());
        for client in before.filter(|client| !strangers.has(client)) {
            known.others.insert(*client, format!("used an image of {name} when that was healthy"));
        }
        for (client, image) in self.users_of(name, world).filter(|(client, _)| !strangers.has(client)) {
            let holder = holders.get(&client.ip);
            match owners.get(&client) {
                Some(owner) if *owner == name => drop(known.clients.insert(client)),
                // A second writer, or the new owner: its own member's.
                Some(_) => {}
                None if holder.is_some_and(|holders| holders.len() == 1) => {
                    if holder.is_some_and(|holders| holders.contains(name)) {
                        known.clients.insert(client);
                    }
                }
                None => drop(known.others.insert(client, format!("uses {image}"))),
            }
        }
        known
    }

    /// The clients that use images of a member in this look.
    pub(super) fn users_of<'a>(
        &'a self,
        name: &'a str,
        world: &'a CephSnapshot,
    ) -> impl Iterator<Item = (ClientAddr, &'a str)> {
        let its = move |path: &str| {
            let image = ImageName::parse(path).and_then(|image| self.images.get(&image));
            matches!(image, Some(Expected::Exclusive { locations, .. })
                if locations.iter().any(|location| location == name))
        };
        world.clients.iter().filter_map(move |(client, seen)| {
            let image = seen.iter().find_map(|at| match at {
                SeenAt::Watch(path) | SeenAt::Lock(path) => its(path).then_some(path.as_str()),
                SeenAt::Session(_) | SeenAt::Remembered => None,
            });
            image.map(|image| (*client, image))
        })
    }

    /// Addresses of a member at which other hosts may have clients, and why: no host entry is made of them.
    pub(super) fn single_addresses(&self, name: &str, world: &CephSnapshot) -> BTreeMap<IpAddr, String> {
        let said = self.book.said(name, &self.settings.members);
        let record = self.book.members.get(name);
        let told = record.is_some_and(|record| record.interfaces.is_some());
        let is_online = |name: &str| {
            let view = self.view.as_ref().and_then(|view| view.members.get(name));
            view.is_some_and(|member| member.status == MemberStatus::Online)
        };
        let why = |ip: IpAddr| {
            let shown = record.is_some_and(|record| record.shows(ip));
            let is_said = said.as_ref().is_some_and(|said| said.contains(&ip));
            let live =
                self.book.members.values().filter(|other| other.name != name && is_online(&other.name));
            if let Some(other) = live.filter(|other| other.shows(ip)).map(|other| &other.name).next() {
                return Some(format!("it is on an interface of {other}"));
            }
            if let Some(what) = self.came_later.get(name).and_then(|later| later.get(&ip)) {
                return Some(format!(
                    "{what} is there, and was not when {name} told its interfaces last: it may be another host's address now"
                ));
            }
            let daemon = world.daemons.iter().find(|daemon| daemon.ips.contains(&ip));
            match daemon {
                Some(daemon) if !shown && (told || !is_said) => {
                    Some(format!("{daemon} is there, and no interface of {name}"))
                }
                Some(_) | None => (!shown && !is_said).then(|| {
                    format!("no interface of {name} shows it, and user.rbd-guardian.ceph-addresses does not name it")
                }),
            }
        };
        let members = self.members();
        let addresses = members.get(name).into_iter().flat_map(|member| &member.addresses);
        addresses.filter_map(|ip| Some((*ip, why(*ip)?))).collect()
    }

    /// Who is nobody's client, by the last look.
    pub(super) fn strangers(&self) -> ForeignClients<'_> {
        ForeignClients {
            admin_hosts: &self.settings.guard.admin_hosts,
            own: &self.settings.guard.own,
            daemons: self.world.as_ref().map(|world| world.daemons.as_slice()).unwrap_or_default(),
        }
    }
}

/// Clients of a fenced member, or of nobody at its images, that no entry refuses: a watch that lapsed shows them no more,
/// and they write when their path to the storage heals. What an operator accepted holds nothing up.
pub(super) fn unrefused(
    book: &AddressBook,
    fence: &Fence,
    blocklist: &Blocklist,
    strangers: ForeignClients<'_>,
) -> BTreeSet<ClientAddr> {
    let Some(record) = fence.member().and_then(|name| book.members.get(name)) else { return BTreeSet::new() };
    let others = record.others.iter().flatten().filter(|_| !fence.record().overrides.accept_incomplete);
    let free = |client: &&ClientAddr| !blocklist.refuses(**client) && !strangers.has(client);
    record.clients.iter().chain(others).filter(free).copied().collect()
}
