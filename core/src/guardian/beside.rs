//! What else lives at the addresses that a member's interfaces show.
//!
//! Interfaces are read every few minutes. Meanwhile a member may be renumbered, and its old address given to another host.
//! So a reading speaks for a daemon of the storage, or for a client of somebody else, only if that was seen at the address
//! before the reading began, and in every look since. One that is seen there first later may be another host's: until the
//! interfaces are read again the address gets no host entry (INV-6). The ledger keeps what a reading speaks for, so that a
//! guardian that takes over knows no more than the one before.
//!
//! A host that runs no daemon and uses no image cannot be told from the member.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::guardian::Guardian;
use crate::guardian::effects::NETWORKS_OFTEN;
use crate::model::ceph_snapshot::SeenAt;
use crate::model::incus_snapshot::{MemberStatus, OperationKind};
use crate::model::record::MemberRecord;
use crate::model::volume::{Expected, ImageName};

/// Daemons and clients by the address they were seen at, each in words.
pub(super) type Beside = BTreeMap<IpAddr, BTreeSet<String>>;

/// Interfaces are read after a look at the storage that is no older: what it shows is what the reading speaks for.
const LOOKED: Duration = Duration::from_secs(60);

impl Guardian {
    /// Does a reading of interfaces that is due wait for a look at the storage?
    pub(super) fn interfaces_wait_for_look(&self) -> bool {
        let Some(view) = self.view.as_ref().filter(|_| self.view_is_fresh()) else { return false };
        let online = view.members.iter().filter(|(_, member)| member.status == MemberStatus::Online);
        !self.has_looked_lately() && online.into_iter().any(|(name, _)| self.networks_are_due(name))
    }

    /// Was the storage looked at so lately that a reading of interfaces may begin?
    pub(super) fn has_looked_lately(&self) -> bool {
        let age = self.looked_at.map(|looked| self.now.boot.saturating_sub(looked));
        self.world.is_some() && age.is_some_and(|age| age < LOOKED)
    }

    /// What the last look shows at each address, each with the members whose own it may be.
    fn seen(&self) -> BTreeMap<IpAddr, Vec<(String, BTreeSet<&str>)>> {
        let Some(world) = &self.world else { return BTreeMap::new() };
        let mut seen: BTreeMap<IpAddr, Vec<(String, BTreeSet<&str>)>> = BTreeMap::new();
        for daemon in &world.daemons {
            for ip in &daemon.ips {
                seen.entry(*ip).or_default().push((daemon.to_string(), BTreeSet::new()));
            }
        }
        let (owners, strangers) = (self.book.clients(), self.strangers());
        for (client, at) in world.clients.iter().filter(|(client, _)| !strangers.has(client)) {
            let may_be = match owners.get(client) {
                Some(owner) => Some(BTreeSet::from([*owner])),
                None => self.users_members(at),
            };
            seen.entry(client.ip).or_default().extend(may_be.map(|members| (client.to_string(), members)));
        }
        seen
    }

    /// The members that a client may be of, which the images it uses are placed on; `None` where nothing speaks against
    /// its being anybody's.
    fn users_members(&self, at: &BTreeSet<SeenAt>) -> Option<BTreeSet<&str>> {
        // Before everything was listed nobody knows whose an image is, nor while one moves.
        self.whole_began?;
        let operations = self.view.as_ref()?.operations.as_ref()?;
        let moves = |kind: OperationKind| match kind {
            OperationKind::Heal | OperationKind::Migrate | OperationKind::Evacuate => true,
            OperationKind::Start | OperationKind::Other => false,
        };
        // One that logged in as a client: a daemon's own log in as the daemon, and a watch without a session tells nothing.
        let as_client = |at: &SeenAt| matches!(at, SeenAt::Session(entity) if entity.starts_with("client."));
        if operations.iter().any(|operation| moves(operation.kind)) || !at.iter().any(as_client) {
            return None;
        }
        let mut members = None;
        for at in at {
            let image = match at {
                SeenAt::Watch(path) | SeenAt::Lock(path) => ImageName::parse(path)?,
                SeenAt::Session(_) | SeenAt::Remembered => continue,
            };
            let members = members.get_or_insert_with(BTreeSet::new);
            match self.images.get(&image) {
                Some(Expected::Exclusive { locations, .. }) => {
                    members.extend(locations.iter().map(String::as_str));
                }
                Some(Expected::AnyMember | Expected::Unknown { .. }) => return None,
                None => {}
            }
        }
        members
    }

    /// What the last look shows at the addresses of a member's interfaces and is demonstrably not its own.
    fn beside(
        &self,
        record: &MemberRecord,
        seen: &BTreeMap<IpAddr, Vec<(String, BTreeSet<&str>)>>,
    ) -> Beside {
        let mut beside = Beside::new();
        for ip in record.interfaces.iter().flatten().map(IpNet::addr) {
            let others = seen
                .get(&ip)
                .into_iter()
                .flatten()
                .filter(|(_, may_be)| !may_be.contains(record.name.as_str()));
            let others: BTreeSet<String> = others.map(|(what, _)| what.clone()).collect();
            if !others.is_empty() {
                beside.insert(ip, others);
            }
        }
        beside
    }

    /// What was seen at addresses of members' interfaces, and that their last reading does not speak for.
    pub(super) fn note_came_later(&mut self) {
        let seen = self.seen();
        let later = |record: &MemberRecord| {
            let known = |ip: &IpAddr, what: &String| {
                let known = record.beside.get(ip);
                known.is_some_and(|known| known.contains(what))
            };
            let beside = self.beside(record, &seen).into_iter();
            let new =
                beside.filter_map(|(ip, all)| Some((ip, all.into_iter().find(|what| !known(&ip, what))?)));
            (record.name.clone(), new.collect::<BTreeMap<_, _>>())
        };
        let all = self.book.members.values().map(later).filter(|(_, later)| !later.is_empty());
        self.came_later = all.collect();
    }

    /// A look tells what left: should it be back, it came later. And where something came to an address of a member that
    /// can be asked, its interfaces are read again.
    pub(super) fn judge_beside(&mut self) {
        let Some(world) = &self.world else { return };
        let mut places: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
        for daemon in &world.daemons {
            places.entry(daemon.to_string()).or_default().extend(&daemon.ips);
        }
        // One that is down may be shown nowhere.
        let left = |ip: &IpAddr, what: &String| places.get(what).is_some_and(|places| !places.contains(ip));
        for record in self.book.members.values_mut() {
            for (ip, all) in &mut record.beside {
                all.retain(|what| !left(ip, what));
            }
            record.beside.retain(|_, all| !all.is_empty());
        }
        self.note_came_later();
        let (now, later) = (self.now.boot, &self.came_later);
        self.networks_read.retain(|name, read| !later.contains_key(name) || now < *read + NETWORKS_OFTEN);
    }

    /// A reading of a member's interfaces begins now: what was seen before it.
    pub(super) fn begin_networks(&mut self, member: &str) {
        let seen = self.seen().into_iter();
        let names = |all: Vec<(String, BTreeSet<&str>)>| all.into_iter().map(|(what, _)| what).collect();
        let seen = seen.map(|(ip, all)| (ip, names(all))).collect();
        self.networks_ask.insert(member.to_owned(), seen);
    }

    /// What a reading speaks for, now that it ended and showed these: what was seen there before it began, and still is.
    pub(super) fn spoken_for(&mut self, member: &str, networks: &BTreeSet<IpNet>) -> Beside {
        let before = self.networks_ask.remove(member).unwrap_or_default();
        let now = self.seen();
        let still = |ip: &IpAddr, what: &String| {
            now.get(ip).is_some_and(|now| now.iter().any(|(seen, _)| seen == what))
        };
        let shown = |ip: &IpAddr| networks.iter().any(|network| network.addr() == *ip);
        let mut beside: Beside = before.into_iter().filter(|(ip, _)| shown(ip)).collect();
        for (ip, all) in &mut beside {
            all.retain(|what| still(ip, what));
        }
        beside.retain(|_, all| !all.is_empty());
        beside
    }
}
