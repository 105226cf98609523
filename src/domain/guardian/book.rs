//! The address book: whose storage clients have which addresses, learnt while members are healthy.
//!
//! Who is fenced is never derived from who uses an image at the moment of failure: that is how a fencer blocks the
//! healthy one (facts/peers.md, rook#14832). An address two members claim is usable for neither.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::domain::addr::ClientAddr;
use crate::domain::guard::ImageUse;
use crate::domain::member::{Member, Members};
use crate::domain::record::{MemberRecord, Source};
use crate::domain::view::{MemberStatus, OperationKind, View};
use crate::domain::volume::{Expected, Images};
use crate::domain::world::{Daemon, World};

/// Two members with one address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Contradiction {
    /// The address.
    pub ip: IpAddr,
    /// Who claims it.
    pub members: BTreeSet<String>,
}

/// All that is known of members' addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// By member. Kept apart from the ledger's records: what is newer here is to be recorded.
    pub members: BTreeMap<String, MemberRecord>,
}

/// Everything but the operator's word.
const LEARNT: [Source; 4] = [Source::Watcher, Source::Locker, Source::Session, Source::Network];

impl Book {
    /// A member's record.
    pub fn of(&mut self, name: &str) -> &mut MemberRecord {
        self.members.entry(name.to_owned()).or_insert_with(|| MemberRecord {
            name: name.to_owned(),
            addresses: BTreeMap::new(),
            clients: BTreeSet::new(),
            machine: None,
            uptime: None,
        })
    }

    fn add(&mut self, name: &str, ip: IpAddr, source: Source) {
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
        let said: BTreeSet<IpAddr> = ips
            .iter()
            .chain(configured.get(name).into_iter().flat_map(|member| &member.addresses))
            .copied()
            .collect();
        for member in self.members.values_mut().filter(|member| member.name != name) {
            for source in LEARNT {
                member.forget(source, |ip| said.contains(ip));
            }
        }
    }

    /// Is it another member's by the operator's word?
    fn is_anothers(&self, name: &str, ip: IpAddr, configured: &Members) -> bool {
        let said = |member: &MemberRecord| {
            member.addresses.get(&ip).is_some_and(|sources| sources.contains(&Source::Operator))
        };
        configured.0.iter().any(|member| member.name != name && member.addresses.contains(&ip))
            || self.members.values().any(|member| member.name != name && said(member))
    }

    /// All interfaces of a healthy member. Those in a network of the storage's daemons, or that a client was seen at, are
    /// its addresses; earlier interfaces are so no more; and one that somebody else claims and that it does not have is not
    /// its own, however that was learnt.
    pub fn networks(&mut self, name: &str, networks: &BTreeSet<IpNet>, world: &World, configured: &Members) {
        let has: BTreeSet<IpAddr> = networks.iter().map(IpNet::addr).collect();
        let claimed: BTreeSet<IpAddr> =
            self.contradictions().into_iter().map(|contradiction| contradiction.ip).collect();
        if let Some(member) = self.members.get_mut(name) {
            member.forget(Source::Network, |ip| !has.contains(ip));
            for source in LEARNT {
                member.forget(source, |ip| !has.contains(ip) && claimed.contains(ip));
            }
        }
        let of_storage = |network: &IpNet| {
            let ip = network.addr();
            let daemon =
                |daemon: &Daemon| daemon.ips.iter().any(|other| *other != ip && network.contains(other));
            let is_subnet = network.prefix_len() < network.max_prefix_len();
            (is_subnet && world.daemons.iter().any(daemon))
                || world.clients.keys().any(|client| client.ip == ip)
        };
        let usable = networks.iter().filter(|network| !network.addr().is_loopback());
        for network in usable.filter(|network| of_storage(network)) {
            if !self.is_anothers(name, network.addr(), configured) {
                self.add(name, network.addr(), Source::Network);
            }
        }
    }

    /// Users of images of a healthy member's running instances. An address somebody has is not learnt again: a stale
    /// writer must not pass for the new owner. Nor is one learnt where two addresses use the image.
    pub fn uses(
        &mut self,
        uses: &[ImageUse],
        images: &Images,
        view: &View,
        admin_hosts: &[IpNet],
        configured: &Members,
    ) {
        let mut clients: BTreeMap<String, BTreeSet<ClientAddr>> = BTreeMap::new();
        for one in uses {
            let Some(name) = healthy_owner(one, images, view) else { continue };
            let ips: BTreeSet<IpAddr> = one.clients().iter().map(|client| client.ip).collect();
            let [ip] = ips.iter().copied().collect::<Vec<_>>()[..] else { continue };
            let admins = admin_hosts.iter().any(|hosts| hosts.contains(&ip));
            let claimed =
                self.claims(ip).any(|other| other != name) || self.is_anothers(&name, ip, configured);
            if admins || claimed {
                continue;
            }
            if one.watchers.iter().any(|watcher| watcher.ip == ip) {
                self.add(&name, ip, Source::Watcher);
            }
            if one.locks.iter().any(|lock| lock.address.is_some_and(|address| address.ip == ip)) {
                self.add(&name, ip, Source::Locker);
            }
            clients.entry(name).or_default().extend(one.clients());
        }
        // Those of this sweep alone: instances that ended would pile up.
        for (name, clients) in clients {
            self.of(&name).clients = clients;
        }
    }

    fn claims(&self, ip: IpAddr) -> impl Iterator<Item = &str> {
        let claims = self.members.values().filter(move |member| member.addresses.contains_key(&ip));
        claims.map(|member| member.name.as_str())
    }

    /// Addresses that more than one member claims.
    pub fn contradictions(&self) -> Vec<Contradiction> {
        let all: BTreeSet<IpAddr> = self.members.values().flat_map(|m| m.addresses.keys().copied()).collect();
        let claimed = |ip| Contradiction { ip, members: self.claims(ip).map(str::to_owned).collect() };
        all.into_iter().map(claimed).filter(|claimed| claimed.members.len() > 1).collect()
    }

    /// The members as a plan takes them. An address with two claimants stays with both, so that the plan refuses it.
    pub fn members(&self, configured: &Members, current: Option<&View>) -> Members {
        let mut names: Vec<&String> = configured.0.iter().map(|member| &member.name).collect();
        let known = |name: &&String| current.is_none_or(|view| view.members.contains_key(*name));
        let others = self.members.keys().filter(known).filter(|name| configured.get(name).is_none());
        names.extend(others);
        if let Some(view) = current {
            let fresh = view.members.keys().filter(|name| configured.get(name).is_none());
            names.extend(fresh.filter(|name| !self.members.contains_key(*name)));
        }
        let addresses = |name: &String| {
            let mut ips: BTreeSet<IpAddr> =
                configured.get(name).into_iter().flat_map(|m| m.addresses.clone()).collect();
            ips.extend(
                self.members.get(name).into_iter().flat_map(|member| member.addresses.keys().copied()),
            );
            ips.into_iter().collect()
        };
        Members(
            names.into_iter().map(|name| Member { name: name.clone(), addresses: addresses(name) }).collect(),
        )
    }
}

/// The member an image is placed on, if it is online, runs the instance by its own word, and nothing is moving.
fn healthy_owner(one: &ImageUse, images: &Images, view: &View) -> Option<String> {
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
