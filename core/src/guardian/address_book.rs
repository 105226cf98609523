//! The address book: whose storage clients have which addresses, learnt while members are healthy.
//!
//! Who is fenced is never derived from who uses an image at the moment of failure: that is how a fencer blocks the
//! healthy one (rook/rook#14832). An address two members claim is usable for neither.
//!
//! A sweep shows members' clients, judged by a reading of Incus that began when it had ended. A client instance never
//! changes its host: one that was attributed once stays its member's. A client at an address of exactly one member is that
//! member's. Of the others nobody knows by the address whose they are; the image tells, if its instance runs and the client
//! alone uses it in two sweeps in a row. Until then, and where several use it, the client is kept as nobody's, and a plan
//! that does not cover it is incomplete.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::guardian::report::Alarm;
use crate::model::addr::{ClientAddr, EntityAddr};
use crate::model::ceph_snapshot::Daemon;
use crate::model::image_users::ImageUse;
use crate::model::incus_snapshot::{IncusSnapshot, MemberStatus, OperationKind};
use crate::model::member::{Member, Members};
use crate::model::pairs;
use crate::model::record::{MemberRecord, Source};
use crate::model::volume::{Expected, Images};
use crate::mutants::{self, Mutant};

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

/// Two members with one address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contradiction {
    pub ip: IpAddr,
    /// Who claims it.
    pub members: BTreeSet<String>,
}

/// All that is known of members' addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressBook {
    /// By member. Kept apart from the ledger's records: what is newer here is to be recorded.
    pub members: BTreeMap<String, MemberRecord>,
    /// Since when a client of a member was not seen at any image.
    #[serde(with = "pairs")]
    pub(super) unseen: BTreeMap<ClientAddr, Duration>,
    /// Clients of nobody that two sweeps or more showed.
    pub(super) lasting: BTreeSet<ClientAddr>,
}

/// Daemons and clients by the address they were seen at, each in words.
pub(super) type Beside = BTreeMap<IpAddr, BTreeSet<String>>;

/// By member, what came to addresses of its interfaces later than their last reading, as the last look showed it.
pub(super) type CameLater = BTreeMap<String, BTreeMap<IpAddr, String>>;

/// Everything but the operator's word.
pub(super) const LEARNT: [Source; 4] = [Source::Watcher, Source::Locker, Source::Session, Source::Network];

impl AddressBook {
    pub fn of_records(members: BTreeMap<String, MemberRecord>) -> Self {
        Self { members, ..Self::default() }
    }

    pub fn of(&mut self, name: &str) -> &mut MemberRecord {
        self.members.entry(name.to_owned()).or_insert_with(|| MemberRecord {
            name: name.to_owned(),
            addresses: BTreeMap::new(),
            clients: BTreeSet::new(),
            others: Some(BTreeSet::new()),
            interfaces: None,
            beside: BTreeMap::new(),
            machine: None,
            uptime: None,
        })
    }

    pub(super) fn add(&mut self, name: &str, ip: IpAddr, source: Source) {
        self.of(name).addresses.entry(ip).or_default().insert(source);
    }

    /// What the operator says at the member: it is complete, and replaces what was said so before. It wins over what was
    /// learnt of others, and so does `configured`, what the configuration says.
    pub fn operator(&mut self, name: &str, ips: &BTreeSet<IpAddr>, configured: &Members) {
        if let Some(member) = self.members.get_mut(name) {
            member.forget(Source::Operator, |_| true);
        }
        for ip in ips {
            self.add(name, *ip, Source::Operator);
        }
        let said = self.said(name, configured).unwrap_or_default();
        for member in self.members.values_mut() {
            let is_it = member.name == name && !said.is_empty();
            for source in LEARNT {
                member.forget(source, |ip| said.contains(ip) != is_it);
            }
            if member.name != name {
                member.clients.retain(|client| !said.contains(&client.ip));
            }
        }
    }

    /// The addresses that the operator named for a member, at the member or in the configuration: then these are all it
    /// has. `None`: the operator named none.
    pub fn said(&self, name: &str, configured: &Members) -> Option<BTreeSet<IpAddr>> {
        let record = self.members.get(name);
        let of_record = record.into_iter().flat_map(|record| &record.addresses);
        let named = of_record.filter(|(_, sources)| sources.contains(&Source::Operator)).map(|(ip, _)| *ip);
        let of_config = configured.get(name).into_iter().flat_map(|member| &member.addresses);
        let said: BTreeSet<IpAddr> = named.chain(of_config.copied()).collect();
        (!said.is_empty()).then_some(said)
    }

    /// Is it another member's by the operator's word?
    pub(super) fn is_anothers(&self, name: &str, ip: IpAddr, configured: &Members) -> bool {
        configured.0.iter().any(|member| member.name != name && member.addresses.contains(&ip))
            || self.members.values().any(|member| member.name != name && member.is_said(ip))
    }

    /// All interfaces of a healthy member: earlier interfaces are no longer its addresses, and neither is an address that
    /// another member claims and that it does not have, however it was learnt.
    /// `beside`: what else lives at those addresses, as was known before it was asked.
    pub(super) fn networks(&mut self, name: &str, networks: &BTreeSet<IpNet>, beside: Beside) {
        let has: BTreeSet<IpAddr> = networks.iter().map(IpNet::addr).collect();
        let claimed: BTreeSet<IpAddr> =
            self.contradictions().into_iter().map(|contradiction| contradiction.ip).collect();
        let anothers: BTreeSet<IpAddr> = {
            let others = self.members.values().filter(|member| member.name != name);
            others.flat_map(|member| member.addresses.keys().copied()).collect()
        };
        let member = self.of(name);
        (member.interfaces, member.beside) = (Some(networks.clone()), beside);
        member.forget(Source::Network, |ip| !has.contains(ip));
        for source in LEARNT {
            member.forget(source, |ip| !has.contains(ip) && claimed.contains(ip));
        }
        // Nobody's until now, and its own as it shows.
        let is_own = |client: &ClientAddr| has.contains(&client.ip) && !anothers.contains(&client.ip);
        let own: Vec<ClientAddr> = member.others.iter().flatten().copied().filter(is_own).collect();
        member.others.iter_mut().for_each(|others| others.retain(|client| !is_own(client)));
        member.clients.extend(own);
    }

    /// Interfaces in a network of the storage's daemons, or that a client was seen at, are addresses of their members.
    pub fn judge(&mut self, daemons: &[Daemon], clients: &BTreeSet<IpAddr>, configured: &Members) {
        let daemons: BTreeSet<IpAddr> =
            daemons.iter().flat_map(|daemon| daemon.ips.iter().copied()).collect();
        let of_storage = |network: &IpNet| {
            let ip = network.addr();
            let is_subnet = network.prefix_len() < network.max_prefix_len();
            (is_subnet && daemons.iter().any(|other| *other != ip && network.contains(other)))
                || clients.contains(&ip)
        };
        let mut found = Vec::new();
        for member in self.members.values() {
            let said = self.said(&member.name, configured);
            let usable = member.interfaces.iter().flatten().filter(|network| !network.addr().is_loopback());
            let new = usable.filter(|network| {
                let known = member.addresses.get(&network.addr());
                let named = said.as_ref().is_none_or(|said| said.contains(&network.addr()));
                named
                    && known.is_none_or(|sources| !sources.contains(&Source::Network))
                    && of_storage(network)
            });
            for ip in new.map(IpNet::addr) {
                if !self.is_anothers(&member.name, ip, configured) {
                    found.push((member.name.clone(), ip));
                }
            }
        }
        for (name, ip) in found {
            self.add(&name, ip, Source::Network);
        }
    }

    /// A live member's interfaces beat what a lost one said before: the address moved. Which of which, and where it is now.
    pub fn moved(&mut self, lost: impl Fn(&str) -> bool) -> Vec<(IpAddr, String, String)> {
        let mut moved = Vec::new();
        for Contradiction { ip, members } in self.contradictions() {
            let shown = |name: &&String| {
                !lost(name) && self.members.get(*name).is_some_and(|member| member.shows(ip))
            };
            let Some(now) = members.iter().find(shown).cloned() else { continue };
            for name in members.iter().filter(|name| lost(name)) {
                let Some(member) = self.members.get_mut(name).filter(|member| !member.is_said(ip)) else {
                    continue;
                };
                for source in LEARNT {
                    member.forget(source, |known| *known == ip);
                }
                // What it told is out of date.
                member
                    .interfaces
                    .iter_mut()
                    .for_each(|networks| networks.retain(|network| network.addr() != ip));
                moved.push((ip, name.clone(), now.clone()));
            }
        }
        moved
    }

    pub(super) fn claims(&self, ip: IpAddr) -> impl Iterator<Item = &str> {
        let claims = self.members.values().filter(move |member| member.addresses.contains_key(&ip));
        claims.map(|member| member.name.as_str())
    }

    /// Addresses that more than one member claims.
    pub fn contradictions(&self) -> Vec<Contradiction> {
        let (mut once, mut twice) = (BTreeSet::new(), BTreeSet::new());
        for ip in self.members.values().flat_map(|member| member.addresses.keys()) {
            if !once.insert(*ip) {
                twice.insert(*ip);
            }
        }
        let claimed = |ip| Contradiction { ip, members: self.claims(ip).map(str::to_owned).collect() };
        twice.into_iter().map(claimed).collect()
    }

    pub(super) fn alarms(&self) -> Vec<Alarm> {
        let alarm = |Contradiction { ip, members }: Contradiction| {
            let names = members.iter().cloned().collect::<Vec<_>>().join(" and ");
            let text = format!("{ip} is an address of {names}: neither can be fenced by it");
            let advice = vec!["set user.rbd-guardian.ceph-addresses on the members".to_owned()];
            Alarm::new("address-contradiction", None, text, advice)
        };
        self.contradictions().into_iter().map(alarm).collect()
    }

    /// The members as a plan takes them. An address with two claimants stays with both, so that the plan refuses it.
    pub fn members(&self, configured: &Members, current: Option<&IncusSnapshot>) -> Members {
        let mut names: Vec<&String> = configured.0.iter().map(|member| &member.name).collect();
        let known = |name: &&String| current.is_none_or(|view| view.members.contains_key(*name));
        let others = self.members.keys().filter(known).filter(|name| configured.get(name).is_none());
        names.extend(others);
        if let Some(view) = current {
            let fresh = view.members.keys().filter(|name| configured.get(name).is_none());
            names.extend(fresh.filter(|name| !self.members.contains_key(*name)));
        }
        let addresses = |name: &String| {
            let said = self.said(name, configured);
            let learnt = || self.members.get(name).into_iter().flat_map(|member| member.addresses.keys());
            said.unwrap_or_else(|| learnt().copied().collect()).into_iter().collect()
        };
        Members(
            names.into_iter().map(|name| Member { name: name.clone(), addresses: addresses(name) }).collect(),
        )
    }

    /// Whose each client is that is known to be a member's.
    pub fn clients(&self) -> BTreeMap<ClientAddr, &str> {
        let members = self.members.values();
        let of = |member| -> Vec<_> {
            let MemberRecord { name, clients, .. }: &MemberRecord = member;
            clients.iter().map(|client| (*client, name.as_str())).collect()
        };
        members.flat_map(of).collect()
    }

    /// The clients that are kept, as some member's or as nobody's.
    pub fn kept(&self) -> BTreeSet<ClientAddr> {
        let members = self.members.values();
        members
            .flat_map(|member| member.clients.iter().chain(member.others.iter().flatten()))
            .copied()
            .collect()
    }

    /// Members that the platform does not have any more; a record that a fence rests on stays.
    pub fn end(&mut self, stays: impl Fn(&str) -> bool) {
        self.members.retain(|name, _| stays(name));
    }

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
                            let weak = |name: &String| self.claims(client.ip).any(|other| other != name);
                            healthy.clone().filter(|name| {
                                let own = self.members.get(name);
                                let had = own.is_some_and(|own| own.addresses.contains_key(&client.ip));
                                !weak(name)
                                    && (had
                                        || (ips.len() == 1
                                            && self.was_nobodys(name, &client, seen.configured)))
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
                } else if !seen.images.get(&one.image).is_some_and(|it| is_stopped(it, seen.view)) {
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

    /// Did the sweep before show this client at the member's images, where no operator names the member's addresses?
    fn was_nobodys(&self, name: &str, client: &ClientAddr, configured: &Members) -> bool {
        let others = self.members.get(name).and_then(|member| member.others.as_ref());
        let is_twice =
            others.is_some_and(|others| others.contains(client)) || mutants::is(Mutant::LearntAtOnce);
        is_twice && self.said(name, configured).is_none()
    }

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

/// Does no instance of an image run, by the word of members that are online? Then its user is none of theirs.
pub(super) fn is_stopped(expected: &Expected, view: &IncusSnapshot) -> bool {
    let Expected::Exclusive { instances, .. } = expected else { return false };
    let (Some(all), Some(operations)) = (&view.instances, &view.operations) else { return false };
    let stopped = |id| {
        let instance = all.get(id)?;
        let online = view.members.get(&instance.location)?.status == MemberStatus::Online;
        let busy = operations.iter().any(|operation| operation.instances.contains(id));
        Some(online && !busy && !instance.details.as_ref()?.running)
    };
    !instances.is_empty() && instances.iter().all(|id| stopped(id) == Some(true))
}
