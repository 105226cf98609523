//! The address book: whose storage clients have which addresses, learnt while members are healthy.
//!
//! Who is fenced is never derived from who uses an image at the moment of failure: that is how a fencer blocks the
//! healthy one (rook/rook#14832). An address two members claim is usable for neither.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::guardian::beside::Beside;
use crate::model::addr::ClientAddr;
use crate::model::ceph_snapshot::Daemon;
use crate::model::incus_snapshot::IncusSnapshot;
use crate::model::member::{Member, Members};
use crate::model::pairs;
use crate::model::record::{MemberRecord, Source};

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

/// Everything but the operator's word.
pub(super) const LEARNT: [Source; 4] = [Source::Watcher, Source::Locker, Source::Session, Source::Network];

impl AddressBook {
    /// What the ledger holds of members.
    pub fn of_records(members: BTreeMap<String, MemberRecord>) -> Self {
        Self { members, ..Self::default() }
    }

    /// A member's record.
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
        let all: BTreeSet<IpAddr> = self.members.values().flat_map(|m| m.addresses.keys().copied()).collect();
        let claimed = |ip| Contradiction { ip, members: self.claims(ip).map(str::to_owned).collect() };
        all.into_iter().map(claimed).filter(|claimed| claimed.members.len() > 1).collect()
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
}
