//! What a sweep shows of members' clients, judged by a reading of the platform that began when it had ended.
//!
//! A client instance never changes its host: one that was attributed once stays its member's. A client at an address of
//! exactly one member is that member's. Of the others nobody knows by the address whose they are; the image tells, if its
//! instance runs and the client alone uses it in two sweeps in a row. Until then, and where several use it, the client
//! is kept as nobody's, and a plan that does not cover it is incomplete.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::guardian::book::AddressBook;
use crate::model::addr::{ClientAddr, EntityAddr};
use crate::model::ceph_snapshot::Daemon;
use crate::model::image_users::ImageUse;
use crate::model::incus_snapshot::{IncusSnapshot, MemberStatus, OperationKind};
use crate::model::member::Members;
use crate::model::record::Source;
use crate::model::volume::{Expected, Images};

/// A sweep, and what it is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Sightings<'a> {
    /// Images with their users.
    pub uses: &'a [ImageUse],
    /// Could every image be read?
    pub complete: bool,
    /// Images and where they are placed.
    pub images: &'a Images,
    pub view: &'a IncusSnapshot,
    /// Who is no member's client by the operator's word, and who by the storage's.
    pub strangers: ForeignClients<'a>,
    /// Addresses that the configuration names.
    pub configured: &'a Members,
    pub now: Duration,
}

/// Clients that use images and are nobody's business.
#[derive(Debug, Clone, Copy)]
pub struct ForeignClients<'a> {
    /// `guard.admin_hosts`.
    pub admin_hosts: &'a [IpNet],
    /// The guardian's own addresses.
    pub own: &'a [EntityAddr],
    /// Daemons of the storage: a mgr's modules use images.
    pub daemons: &'a [Daemon],
}

impl ForeignClients<'_> {
    /// Is this client one of them?
    pub fn has(&self, client: &ClientAddr) -> bool {
        self.admin_hosts.iter().any(|hosts| hosts.contains(&client.ip))
            || self.own.iter().any(|own| own.client() == Some(*client))
            || self.daemons.iter().any(|daemon| daemon.clients.contains(client))
    }
}

/// A client that was not seen for so long while its member ran others is gone: instances that ended would pile up. One whose
/// path to the storage is cut is not seen either, and writes when that heals.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// Clients that are kept of each member, those of nobody apart.
const KEPT: usize = 4096;

impl AddressBook {
    /// Takes in who uses members' images. Members whose images unknown clients use that the sweep before did not show:
    /// their interfaces may have changed.
    pub fn uses(&mut self, seen: &Sightings<'_>) -> BTreeSet<String> {
        let holders = self.holders(seen.configured);
        let known: BTreeMap<ClientAddr, String> =
            self.clients().into_iter().map(|(client, name)| (client, name.to_owned())).collect();
        let mut owned: BTreeMap<String, BTreeSet<ClientAddr>> = BTreeMap::new();
        let mut strange: BTreeMap<String, BTreeSet<ClientAddr>> = BTreeMap::new();
        let mut learnt: BTreeMap<String, BTreeSet<(IpAddr, Source)>> = BTreeMap::new();
        for one in seen.uses {
            let Some(Expected::Exclusive { locations, .. }) = seen.images.get(&one.image) else { continue };
            let clients: Vec<ClientAddr> =
                one.clients().into_iter().filter(|client| !seen.strangers.has(client)).collect();
            let ips: BTreeSet<IpAddr> = clients.iter().map(|client| client.ip).collect();
            let healthy = healthy_owner(one, seen.images, seen.view);
            for client in clients {
                let name = match known.get(&client) {
                    Some(name) => Some(name.clone()),
                    None => match holders.get(&client.ip) {
                        Some(holders) if holders.len() == 1 => holders.first().cloned(),
                        Some(holders) => {
                            healthy.clone().filter(|name| ips.len() == 1 && holders.contains(name))
                        }
                        None => {
                            let before = |name: &String| {
                                let others = self.members.get(name).and_then(|member| member.others.as_ref());
                                others.is_some_and(|others| others.contains(&client))
                                    && self.said(name, seen.configured).is_none()
                            };
                            let weak = |name: &String| self.claims(client.ip).any(|other| other != name);
                            healthy.clone().filter(|name| {
                                let own = self.members.get(name);
                                let had = own.is_some_and(|own| own.addresses.contains_key(&client.ip));
                                !weak(name) && (had || (ips.len() == 1 && before(name)))
                            })
                        }
                    },
                };
                if let Some(name) = name.filter(|name| seen.view.members.contains_key(name)) {
                    let sources = learnt.entry(name.clone()).or_default();
                    if one.watchers.iter().any(|watcher| watcher.client() == Some(client)) {
                        sources.insert((client.ip, Source::Watcher));
                    }
                    if one
                        .locks
                        .iter()
                        .any(|lock| lock.address.and_then(|address| address.client()) == Some(client))
                    {
                        sources.insert((client.ip, Source::Locker));
                    }
                    owned.entry(name).or_default().insert(client);
                } else if !is_stopped(one, seen.images, seen.view) {
                    for location in locations {
                        strange.entry(location.clone()).or_default().insert(client);
                    }
                }
            }
        }
        let mut new = BTreeSet::new();
        for name in seen.view.members.keys() {
            let owned = owned.remove(name).unwrap_or_default();
            let strange = strange.remove(name).unwrap_or_default();
            let learnt = learnt.remove(name).unwrap_or_default();
            let known = self.members.get(name).and_then(|member| member.others.as_ref());
            if strange.iter().any(|client| known.is_none_or(|known| !known.contains(client))) {
                new.insert(name.clone());
            }
            if owned.is_empty() && strange.is_empty() && !self.members.contains_key(name) {
                continue;
            }
            self.keep(name, owned, strange, &learnt, seen);
        }
        let kept = self.kept();
        self.unseen.retain(|client, _| kept.contains(client));
        self.lasting.retain(|client| kept.contains(client));
        new
    }

    /// Keeps what was seen of one member.
    fn keep(
        &mut self,
        name: &str,
        owned: BTreeSet<ClientAddr>,
        strange: BTreeSet<ClientAddr>,
        learnt: &BTreeSet<(IpAddr, Source)>,
        seen: &Sightings<'_>,
    ) {
        let online = seen.view.members.get(name).is_some_and(|member| member.status == MemberStatus::Online);
        // Where none of its clients is seen its path to the storage may be cut, and all of them come back.
        let tells = online && seen.complete && !owned.is_empty();
        let said = self.said(name, seen.configured);
        let (before, strange_before) = {
            let member = self.of(name);
            (std::mem::take(&mut member.clients), member.others.take())
        };
        // What an older guardian did not keep is unknown until the member is seen while it is healthy.
        let unknown = strange_before.is_none() && !(online && seen.complete);
        let strange_before = strange_before.unwrap_or_default();
        for client in owned.iter().chain(&strange) {
            self.unseen.remove(client);
        }
        self.lasting.extend(strange.intersection(&strange_before));
        let mut gone = |client: &ClientAddr, at_once: bool| {
            if !tells {
                self.unseen.remove(client);
                return false;
            }
            let since = *self.unseen.entry(*client).or_insert(seen.now);
            at_once || seen.now.saturating_sub(since) >= FORGOTTEN
        };
        let mut clients = owned;
        let mut others = strange;
        for client in before {
            if !clients.contains(&client) && clients.len() < KEPT && !gone(&client, false) {
                clients.insert(client);
            }
        }
        for client in strange_before {
            let at_once = !self.lasting.contains(&client);
            if !others.contains(&client) && others.len() < KEPT && !gone(&client, at_once) {
                others.insert(client);
            }
        }
        others.retain(|client| !clients.contains(client));
        let ips: BTreeSet<IpAddr> = clients.iter().map(|client| client.ip).collect();
        let anothers: BTreeSet<IpAddr> = learnt
            .iter()
            .map(|(ip, _)| *ip)
            .filter(|ip| self.is_anothers(name, *ip, seen.configured))
            .collect();
        let member = self.of(name);
        (member.clients, member.others) = (clients, (!unknown).then_some(others));
        for (ip, source) in learnt {
            if !anothers.contains(ip) && said.as_ref().is_none_or(|said| said.contains(ip)) {
                member.addresses.entry(*ip).or_default().insert(*source);
            }
        }
        // An address that was learnt by clients lasts as long as they are known.
        for source in [Source::Watcher, Source::Locker, Source::Session] {
            member.forget(source, |ip| !ips.contains(ip));
        }
    }

    /// Whose an address is by interfaces, or by an operator, whose word wins.
    pub(super) fn holders(&self, configured: &Members) -> BTreeMap<IpAddr, BTreeSet<String>> {
        let mut said: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        let names = self.members.keys().chain(configured.0.iter().map(|member| &member.name));
        for name in names {
            for ip in self.said(name, configured).unwrap_or_default() {
                said.entry(ip).or_default().insert(name.clone());
            }
        }
        let mut holders: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        for (name, member) in &self.members {
            let known = |(_, sources): &(_, &BTreeSet<Source>)| sources.contains(&Source::Network);
            let of_book = member.addresses.iter().filter(known).map(|(ip, _)| *ip);
            let shown = member.interfaces.iter().flatten().map(IpNet::addr);
            for ip in of_book.chain(shown).filter(|ip| !said.contains_key(ip)) {
                holders.entry(ip).or_default().insert(name.clone());
            }
        }
        holders.extend(said);
        holders
    }
}

/// The member an image is placed on, if it is online, runs the instance by its own word, and nothing is moving.
fn healthy_owner(one: &ImageUse, images: &Images, view: &IncusSnapshot) -> Option<String> {
    let Some(Expected::Exclusive { instances, locations }) = images.get(&one.image) else { return None };
    let [name] = locations.as_slice() else { return None };
    let online = view.members.get(name)?.status == MemberStatus::Online;
    let all = view.instances.as_ref()?;
    let runs = |id| all.get(id).and_then(|one| one.details.as_ref()).is_some_and(|details| details.running);
    let moving = view.operations.as_ref()?.iter().any(|operation| {
        operation.kind != OperationKind::Other && instances.iter().any(|id| operation.instances.contains(id))
    });
    (online && !moving && instances.iter().any(runs)).then(|| name.clone())
}

/// Does no instance of the image run, by the word of members that are online? Then its user is none of theirs.
fn is_stopped(one: &ImageUse, images: &Images, view: &IncusSnapshot) -> bool {
    let Some(Expected::Exclusive { instances, .. }) = images.get(&one.image) else { return false };
    let (Some(all), Some(operations)) = (&view.instances, &view.operations) else { return false };
    let stopped = |id| {
        let instance = all.get(id)?;
        let online = view.members.get(&instance.location)?.status == MemberStatus::Online;
        let busy = operations.iter().any(|operation| operation.instances.contains(id));
        Some(online && !busy && !instance.details.as_ref()?.running)
    };
    !instances.is_empty() && instances.iter().all(|id| stopped(id) == Some(true))
}
