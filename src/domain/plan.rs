//! From a request and one look at the storage to what will be done, or to every reason why not.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

use super::addr::{ClientAddr, Entry};
use super::fence_id::FenceId;
use super::map::Guarded;
use super::member::{Member, Members};
use super::policy::Policy;
use super::refusal::Refusal;
use super::wanted::free_cover;
use super::world::{Daemon, DaemonKind, Role, World};

/// Whom to fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A member, by name.
    Member(String),
    /// Bare addresses: hosts and clients.
    Addresses(BTreeSet<Entry>),
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Whom.
    pub target: Target,
    /// Go on with what is known, where the host itself may not be fenced or a source did not answer.
    pub accept_incomplete: bool,
}

/// How much of the target a fence covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coverage {
    /// Every identity IP, so every client instance, also those that are yet to come.
    WholeHost,
    /// The client instances that were seen; one that appears later is free.
    KnownClients,
    /// Client instances that were seen, while a source did not answer or an address is unknown.
    Incomplete,
}

/// A fence that may be begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub fence: FenceId,
    /// The member, if one was named.
    pub member: Option<String>,
    /// What is to stand in the blocklist.
    pub entries: BTreeSet<Entry>,
    /// Active daemons on the target that a standby elsewhere takes over from first.
    pub fail_over: Vec<Daemon>,
    /// How much it covers.
    pub coverage: Coverage,
    /// How many client instances are known.
    pub known_clients: usize,
    /// What the operator should know, in words.
    pub notes: Vec<String>,
    /// Pools to prove.
    pub guarded: Guarded,
    /// Entries that end before this are short.
    pub required_until: Timestamp,
}

impl Plan {
    /// The IPs all of whose clients are fenced.
    pub fn hosts(&self) -> BTreeSet<IpAddr> {
        self.entries.iter().filter(|entry| entry.is_host()).map(|entry| entry.ip()).collect()
    }
}

/// Decides what a fence would do.
///
/// # Errors
/// Every reason that stands against it, never only the first.
pub fn plan(
    request: &Request,
    members: &Members,
    world: &World,
    policy: &Policy,
) -> Result<Plan, Vec<Refusal>> {
    let (member, mut entries) = resolve(&request.target, members).map_err(|refusal| vec![refusal])?;
    let mut refusals = Vec::new();
    let mut notes = Vec::new();

    refusals.extend(own_addresses(&entries, world));
    refusals.extend(protected(&entries, policy));
    refusals.extend(pools(world, policy));
    refusals.extend(brake(&entries, members, world, policy));
    let hosts = host_ips(&entries);
    let mut fail_over = Vec::new();
    match member {
        Some(member) => {
            refusals.extend(shared_addresses(member, members));
            let (movable, stuck) = active_daemons(&hosts, world, policy);
            fail_over = movable;
            if request.accept_incomplete && !stuck.is_empty() {
                for (ip, refusal) in stuck {
                    entries.remove(&Entry::Host(ip));
                    notes.push(format!("{refusal}; only its known clients are fenced"));
                }
            } else {
                refusals.extend(stuck.into_iter().map(|(_, refusal)| refusal));
            }
        }
        None => refusals.extend(bare_hosts(&hosts, world)),
    }
    refusals.extend(daemon_clients(&entries, world));

    let known = known_clients(&hosts, world);
    entries.extend(known.iter().copied().map(Entry::Client));
    let known_clients = entries.iter().filter(|entry| !entry.is_host()).count();
    let coverage = if !hosts.is_empty() && hosts == host_ips(&entries) {
        Coverage::WholeHost
    } else if world.unread.is_empty() || member.is_none() {
        Coverage::KnownClients
    } else {
        Coverage::Incomplete
    };
    if coverage == Coverage::Incomplete && !request.accept_incomplete {
        refusals.push(Refusal::Incomplete { unread: world.unread.clone() });
    }
    if entries.is_empty() && refusals.is_empty() {
        refusals.push(Refusal::Incomplete { unread: vec!["no client of it is known".to_owned()] });
    }
    let required_until = policy.required_until(world.now);
    refusals.extend(short_entries(&entries, world, required_until));
    notes.extend(world.unread.iter().map(|what| format!("not read: {what}")));

    if !refusals.is_empty() {
        return Err(refusals);
    }
    let member = member.map(|member| member.name.clone());
    Ok(Plan {
        fence: FenceId::new(member.as_deref(), &entries),
        member,
        entries,
        fail_over,
        coverage,
        known_clients,
        notes,
        guarded: policy.guarded.clone(),
        required_until,
    })
}

fn resolve<'m>(
    target: &Target,
    members: &'m Members,
) -> Result<(Option<&'m Member>, BTreeSet<Entry>), Refusal> {
    match target {
        Target::Addresses(entries) => Ok((None, entries.clone())),
        Target::Member(name) => {
            let member = members.get(name).ok_or_else(|| Refusal::UnknownMember {
                name: name.clone(),
                known: members.0.iter().map(|member| member.name.clone()).collect(),
            })?;
            if member.addresses.is_empty() {
                return Err(Refusal::NoAddress { member: name.clone() });
            }
            Ok((Some(member), member.addresses.iter().copied().map(Entry::Host).collect()))
        }
    }
}

fn host_ips(entries: &BTreeSet<Entry>) -> BTreeSet<IpAddr> {
    entries.iter().filter(|entry| entry.is_host()).map(|entry| entry.ip()).collect()
}

fn own_addresses(entries: &BTreeSet<Entry>, world: &World) -> Vec<Refusal> {
    let hits = |entry: &Entry| {
        let own = world.own.iter().find(|own| match entry {
            Entry::Host(ip) | Entry::HostRange(ip) => own.ip == *ip,
            Entry::Client(client) => own.client() == Some(*client),
        });
        own.map(|own| Refusal::OwnAddress { entry: *entry, own: own.to_string() })
    };
    entries.iter().filter_map(hits).collect()
}

fn protected(entries: &BTreeSet<Entry>, policy: &Policy) -> Vec<Refusal> {
    let ips: BTreeSet<IpAddr> = entries.iter().map(|entry| entry.ip()).collect();
    let hit = |ip: IpAddr| policy.protected.iter().find(|network| network.contains(&ip)).map(|n| (ip, *n));
    ips.into_iter().filter_map(hit).map(|(ip, network)| Refusal::Protected { ip, network }).collect()
}

fn pools(world: &World, policy: &Policy) -> Vec<Refusal> {
    let guarded = policy.guarded.pools(&world.map);
    if guarded.is_empty() {
        return vec![Refusal::NoPools];
    }
    let tiered = guarded.values().filter_map(|pool| {
        let tier = world.map.pools.get(&pool.overlay?);
        let tier = tier.map_or_else(|| "unknown".to_owned(), |tier| tier.name.clone());
        Some(Refusal::CacheTier { pool: pool.name.clone(), tier })
    });
    tiered.collect()
}

fn brake(entries: &BTreeSet<Entry>, members: &Members, world: &World, policy: &Policy) -> Option<Refusal> {
    let hosts = host_ips(entries);
    let targeted = |member: &Member| member.addresses.iter().any(|ip| hosts.contains(ip));
    let fenced = |member: &Member| fenced_addresses(member, world).next().is_some();
    let target_count = members.0.iter().filter(|member| targeted(member)).count();
    let held = members.0.iter().filter(|member| fenced(member) && !targeted(member));
    let held: Vec<String> = held.map(|member| member.name.clone()).collect();
    let over = target_count > 0 && held.len() + target_count > policy.max_fenced_members;
    over.then_some(Refusal::Brake { held, max: policy.max_fenced_members })
}

/// A member's addresses that are blocklisted as a whole.
pub fn fenced_addresses<'w>(member: &'w Member, world: &'w World) -> impl Iterator<Item = IpAddr> + 'w {
    let fenced = |ip: &IpAddr| world.map.blocklist.hosts(*ip).next().is_some();
    member.addresses.iter().copied().filter(fenced)
}

fn shared_addresses(member: &Member, members: &Members) -> Vec<Refusal> {
    let others = members.0.iter().filter(|other| other.name != member.name);
    let shared = others.flat_map(|other| {
        let common = other.addresses.iter().filter(|ip| member.addresses.contains(ip));
        common.map(|ip| Refusal::SharedAddress {
            ip: *ip,
            member: member.name.clone(),
            other: other.name.clone(),
        })
    });
    shared.collect()
}

/// Active daemons on the hosts: those a standby elsewhere can take over from, and those it cannot, with why.
fn active_daemons(
    hosts: &BTreeSet<IpAddr>,
    world: &World,
    policy: &Policy,
) -> (Vec<Daemon>, Vec<(IpAddr, Refusal)>) {
    let mut movable = Vec::new();
    let mut stuck = Vec::new();
    for kind in [DaemonKind::Mgr, DaemonKind::Mds] {
        let of_kind = || world.daemons.iter().filter(move |daemon| daemon.kind == kind);
        let on_target = |daemon: &&Daemon| daemon.ip.is_some_and(|ip| hosts.contains(&ip));
        let elsewhere = |daemon: &&Daemon| daemon.ip.is_some_and(|ip| !hosts.contains(&ip));
        let mut standbys = of_kind().filter(|daemon| daemon.role == Role::Standby).filter(elsewhere).count();
        for daemon in of_kind().filter(|daemon| daemon.role == Role::Active).filter(on_target) {
            let why = if !policy.fail_over {
                Some("and the configuration forbids to fail it over (policy.fail_over)")
            } else if standbys == 0 {
                Some("and no standby is up elsewhere to take over: start one on another host")
            } else {
                None
            };
            match (why, daemon.ip) {
                (None, _) => {
                    standbys -= 1;
                    movable.push(daemon.clone());
                }
                (Some(why), Some(ip)) => {
                    stuck.push((ip, Refusal::ActiveDaemon { ip, daemon: daemon.to_string(), why }));
                }
                (Some(_), None) => {}
            }
        }
    }
    (movable, stuck)
}

fn bare_hosts(hosts: &BTreeSet<IpAddr>, world: &World) -> Vec<Refusal> {
    hosts.iter().filter_map(|ip| daemons_at(*ip, world)).collect()
}

fn daemons_at(ip: IpAddr, world: &World) -> Option<Refusal> {
    let daemons: Vec<String> =
        world.daemons.iter().filter(|daemon| daemon.ip == Some(ip)).map(ToString::to_string).collect();
    (!daemons.is_empty()).then_some(Refusal::DaemonsAt { ip, daemons })
}

fn daemon_clients(entries: &BTreeSet<Entry>, world: &World) -> Vec<Refusal> {
    let of_daemon = |client: &ClientAddr| {
        let daemon = world.daemons.iter().find(|daemon| daemon.clients.contains(client))?;
        Some(Refusal::DaemonClient { client: *client, daemon: daemon.to_string() })
    };
    clients(entries).iter().filter_map(of_daemon).collect()
}

fn clients(entries: &BTreeSet<Entry>) -> Vec<ClientAddr> {
    let client = |entry: &Entry| match entry {
        Entry::Client(client) => Some(*client),
        Entry::Host(_) | Entry::HostRange(_) => None,
    };
    entries.iter().filter_map(client).collect()
}

/// Client instances of the hosts. Those of a daemon are left out: it is failed over, and the monitors
/// blocklist its instances themselves (`MgrMonitor::drop_active`, facts/ceph.md §1).
fn known_clients(hosts: &BTreeSet<IpAddr>, world: &World) -> Vec<ClientAddr> {
    let of_daemon = |client: &ClientAddr| world.daemons.iter().any(|daemon| daemon.clients.contains(client));
    let known = world.clients.keys().filter(|client| hosts.contains(&client.ip));
    known.copied().filter(|client| !of_daemon(client)).collect()
}

/// Short entries that no host entry of the plan covers need a cover of their own, which for a moment refuses
/// every client of that IP: only where that harms nobody else.
fn short_entries(entries: &BTreeSet<Entry>, world: &World, required: Timestamp) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for entry in entries {
        let Some(until) = world.map.blocklist.until(*entry).filter(|until| *until < required) else {
            continue;
        };
        let covered_by_plan = !entry.is_host() && entries.contains(&Entry::Host(entry.ip()));
        let stands = |(_, until): (Entry, Timestamp)| until >= required;
        if covered_by_plan || world.map.blocklist.hosts(entry.ip()).any(stands) {
            continue;
        }
        let why = if free_cover(&world.map, *entry).is_none() {
            Some("every whole-host key of its address is taken, or ranges are unknown here".to_owned())
        } else if entry.is_host() {
            None
        } else {
            harmed_by_cover(*entry, entries, world)
        };
        refusals.extend(why.map(|why| Refusal::ShortEntry { entry: *entry, until, required, why }));
    }
    refusals
}

fn harmed_by_cover(entry: Entry, entries: &BTreeSet<Entry>, world: &World) -> Option<String> {
    let ip = entry.ip();
    let host = BTreeSet::from([Entry::Host(ip)]);
    if let Some(refusal) = own_addresses(&host, world).pop().or_else(|| daemons_at(ip, world)) {
        return Some(format!("that needs the whole host for a moment, and {refusal}"));
    }
    // An instance that has an entry of its own is refused anyway.
    let harmed = |c: &&ClientAddr| {
        let own = Entry::Client(**c);
        c.ip == ip && !entries.contains(&own) && world.map.blocklist.until(own).is_none()
    };
    let other = world.clients.keys().find(harmed)?;
    Some(format!("that needs the whole host for a moment, and {other} on it is not to be fenced"))
}
