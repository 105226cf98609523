//! From a request and one look at the storage to what will be done, or to every reason why not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::addr::{ClientAddr, EntityAddr, Entry};
use crate::model::ceph_snapshot::{CephSnapshot, Daemon, DaemonKind, Role, SeenAt};
use crate::model::fence_id::FenceContent;
use crate::model::member::{Member, Members};
use crate::model::osdmap::{Guarded, free_cover};
use crate::model::overrides::{self, Overrides};
use crate::model::policy::Policy;
use crate::model::target::{Coverage, Target};
use crate::mutants::{self, Mutant};
use crate::rules::refusal::Refusal;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRequest {
    pub target: Target,
    /// What the operator permits for this one fence.
    pub overrides: Overrides,
    /// Entries whose removal was sent and may still arrive: nothing is built on them (INV-7).
    pub in_doubt: BTreeSet<Entry>,
    /// Members whose fences are held or begun: the blocklist shows neither those of known clients alone nor those that
    /// were sent nowhere yet.
    pub held: BTreeSet<String>,
    /// Members that answer now, and what shows it.
    pub reachable: BTreeMap<String, MemberAnswer>,
    /// What is known of the member beside its addresses.
    pub known: KnownClients,
}

/// What shows that a member answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAnswer {
    /// In words: `answers Incus (Online)`.
    pub seen: String,
    /// The instances it runs; `None` where they are not known.
    pub runs: Option<Vec<String>>,
}

/// What is known of a member beside its addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownClients {
    /// Its client instances, whatever their IP.
    pub clients: BTreeSet<ClientAddr>,
    /// Client instances that use its images, or did when it was healthy, and that nothing shows to be anybody's; in words,
    /// where each was seen. What covers none of these is incomplete.
    pub others: BTreeMap<ClientAddr, String>,
    /// Addresses of it whose other clients may not be its own, and why: no host entry.
    pub single: BTreeMap<IpAddr, String>,
    /// What is unknown of it, in words.
    pub unknown: Vec<String>,
}

impl PlanRequest {
    /// Of somebody who permits nothing and knows of no other fence.
    pub fn of(target: Target) -> Self {
        Self {
            target,
            overrides: Overrides::default(),
            in_doubt: BTreeSet::new(),
            held: BTreeSet::new(),
            reachable: BTreeMap::new(),
            known: KnownClients::default(),
        }
    }
}

/// A fence that may be begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub fence: FenceContent,
    /// The member, if one was named.
    pub member: Option<String>,
    /// What is to stand in the blocklist.
    pub entries: BTreeSet<Entry>,
    /// Active daemons on the target that a standby elsewhere takes over from first.
    pub fail_over: Vec<Daemon>,
    /// How many daemons of the kinds that fail over are active now, and must be again.
    pub active_before: BTreeMap<DaemonKind, usize>,
    /// IPs all of whose clients may be refused for a moment while a short entry is replaced.
    pub coverable: BTreeSet<IpAddr>,
    /// How much it covers.
    pub coverage: Coverage,
    /// How many client instances are known.
    pub known_clients: usize,
    /// The rules that stood against it, and that an operator goes over.
    #[serde(rename = "over", with = "overrides::rules")]
    pub overrides: Overrides,
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
    request: &PlanRequest,
    members: &Members,
    world: &CephSnapshot,
    policy: &Policy,
) -> Result<Plan, Vec<Refusal>> {
    let known = &request.known;
    let (member, mut entries) = resolve(&request.target, members, known).map_err(|refusal| vec![refusal])?;
    let mut refusals = Vec::new();
    let mut notes = Vec::new();
    for (ip, why) in known.single.iter().filter(|_| member.is_some()) {
        if entries.remove(&Entry::Host(*ip)) {
            notes.push(format!("no whole-host entry for {ip}: {why}"));
        }
    }

    let doubts = avoid_doubt(&mut entries, &request.in_doubt, world);
    let overrides = request.overrides;
    // What stands against it is gone over, and nothing else.
    let mut over = Overrides { accept_incomplete: overrides.accept_incomplete, ..Overrides::default() };
    over.doubt = overrides.doubt && !doubts.is_empty();
    refusals.extend(doubts.into_iter().filter(|_| !over.doubt));
    let targets = member.map_or_else(|| owners(&entries, members), |member| vec![member.name.as_str()]);
    let reachable = reachable(&targets, &request.reachable);
    over.reachable = overrides.reachable && !reachable.is_empty();
    refusals.extend(reachable.into_iter().filter(|_| !over.reachable));
    refusals.extend(own_addresses(&entries, world));
    refusals.extend(fenced_itself(world));
    refusals.extend(protected(&entries, policy));
    refusals.extend(pools(world, policy));
    let brake = brake(member, &entries, members, world, policy, &request.held);
    over.brake = overrides.brake && brake.is_some();
    refusals.extend(brake.filter(|_| !over.brake));
    let hosts = host_ips(&entries);
    if member.is_some() {
        entries.extend(own_clients(known, world).map(Entry::Client));
    }
    let mut fail_over = Vec::new();
    refusals.extend(shared_addresses(&hosts, members));
    match member {
        Some(_) => {
            let (movable, stuck) = active_daemons(&hosts, world, policy);
            fail_over = movable;
            if overrides.accept_incomplete && !stuck.is_empty() {
                for (ips, refusal) in stuck {
                    // All of its addresses, in either form of an entry.
                    entries.retain(|entry| !(entry.is_host() && ips.contains(&entry.ip())));
                    notes.push(format!("{refusal}; only its known clients are fenced"));
                }
            } else {
                refusals.extend(stuck.into_iter().map(|(_, refusal)| refusal));
            }
        }
        None => {
            refusals.extend(bare_hosts(&hosts, world));
            let unknown = unknown_hosts(&hosts, members, world);
            over.unknown = overrides.unknown && !unknown.is_empty();
            refusals.extend(unknown.into_iter().filter(|_| !over.unknown));
        }
    }
    refusals.extend(daemon_clients(&entries, world));

    entries.extend(known_clients(&hosts, world).into_iter().map(Entry::Client));
    let known_clients = entries.iter().filter(|entry| !entry.is_host()).count();
    let required_until = policy.required_until(world.now);
    entries.extend(short_lived_clients(&hosts, world, required_until));
    let mut unknown = if member.is_some() { uncovered(known, &entries, world) } else { Vec::new() };
    let whole =
        hosts == host_ips(&entries) && clients(&entries).iter().all(|client| hosts.contains(&client.ip));
    if (!whole || hosts.is_empty()) && member.is_some() {
        unknown.extend(world.unread.iter().cloned());
    }
    let coverage = if !unknown.is_empty() {
        Coverage::Incomplete
    } else if whole && !hosts.is_empty() {
        Coverage::WholeHost
    } else {
        Coverage::KnownClients
    };
    if coverage == Coverage::Incomplete && !overrides.accept_incomplete {
        refusals.push(Refusal::Incomplete { unread: unknown.clone() });
    }
    if entries.is_empty() && refusals.is_empty() {
        refusals.push(Refusal::Incomplete { unread: vec!["no client of it is known".to_owned()] });
    }
    let coverable = coverable(&entries, world);
    refusals.extend(short_entries(&entries, &coverable, world, required_until));
    notes.extend(unknown.iter().filter(|what| !world.unread.contains(what)).cloned());
    notes.extend(world.unread.iter().map(|what| format!("not read: {what}")));
    notes.extend(world.map.not_understood.iter().map(|what| format!("not understood: {what}")));
    notes.extend(unused_hosts(&entries, world));
    notes.extend(foreign_hosts(&entries, world));

    if !refusals.is_empty() {
        return Err(refusals);
    }
    let member = member.map(|member| member.name.clone());
    Ok(Plan {
        fence: FenceContent::new(member.as_deref(), &entries),
        member,
        entries,
        active_before: active_before(&fail_over, world),
        fail_over,
        coverable: coverable.into_iter().filter_map(|(ip, harm)| harm.is_none().then_some(ip)).collect(),
        coverage,
        known_clients,
        overrides: over,
        notes,
        guarded: guarded(world, policy),
        required_until,
    })
}

fn resolve<'m>(
    target: &Target,
    members: &'m Members,
    known: &KnownClients,
) -> Result<(Option<&'m Member>, BTreeSet<Entry>), Refusal> {
    match target {
        Target::Addresses(entries) => Ok((None, entries.clone())),
        Target::Member(name) => {
            let member = members.get(name).ok_or_else(|| Refusal::UnknownMember {
                name: name.clone(),
                known: members.0.iter().map(|member| member.name.clone()).collect(),
            })?;
            if member.addresses.is_empty() && known.clients.is_empty() {
                return Err(Refusal::NoAddress { member: name.clone() });
            }
            Ok((Some(member), member.addresses.iter().copied().map(Entry::Host).collect()))
        }
    }
}

/// Takes the other form of a host entry whose removal may still arrive.
fn avoid_doubt(
    entries: &mut BTreeSet<Entry>,
    in_doubt: &BTreeSet<Entry>,
    world: &CephSnapshot,
) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if mutants::is(Mutant::DoubtIgnored) {
        return refusals;
    }
    for doubtful in entries.clone().intersection(in_doubt).filter(|entry| entry.is_host()) {
        let ip = doubtful.ip();
        let known = |form: &Entry| world.map.knows_ranges || *form == Entry::Host(ip);
        let mut forms = [Entry::Host(ip), Entry::HostRange(ip)].into_iter().filter(known);
        if let Some(other) = forms.find(|form| !in_doubt.contains(form)) {
            entries.remove(doubtful);
            entries.insert(other);
        } else {
            refusals.push(Refusal::InDoubt { entry: *doubtful });
        }
    }
    refusals
}

fn host_ips(entries: &BTreeSet<Entry>) -> BTreeSet<IpAddr> {
    entries.iter().filter(|entry| entry.is_host()).map(|entry| entry.ip()).collect()
}

fn own_addresses(entries: &BTreeSet<Entry>, world: &CephSnapshot) -> Vec<Refusal> {
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

/// What is guarded, with the pools that the headers of this look name.
fn guarded(world: &CephSnapshot, policy: &Policy) -> Guarded {
    let mut guarded = policy.guarded.clone();
    if !mutants::is(Mutant::HeaderNotRead) {
        guarded.note_data(&world.data_pools, false);
    }
    guarded
}

fn pools(world: &CephSnapshot, policy: &Policy) -> Vec<Refusal> {
    let guarded = guarded(world, policy);
    let guarded = guarded.pools(&world.map);
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

/// A member counts also where no host entry is made of any of its addresses.
fn brake(
    target: Option<&Member>,
    entries: &BTreeSet<Entry>,
    members: &Members,
    world: &CephSnapshot,
    policy: &Policy,
    held: &BTreeSet<String>,
) -> Option<Refusal> {
    let ips: BTreeSet<IpAddr> = entries.iter().map(|entry| entry.ip()).collect();
    let targeted = |member: &Member| {
        target.is_some_and(|target| target.name == member.name)
            || member.addresses.iter().any(|ip| ips.contains(ip))
    };
    let whole = |ip: &IpAddr| world.map.blocklist.hosts(*ip).next().is_some();
    let fenced = |member: &Member| held.contains(&member.name) || member.addresses.iter().any(whole);
    let target_count = members.0.iter().filter(|member| targeted(member)).count();
    let others = members.0.iter().filter(|member| fenced(member) && !targeted(member));
    let others: Vec<String> = others.map(|member| member.name.clone()).collect();
    let max = policy.max_fenced(members.0.len());
    let over = target_count > 0 && others.len() + target_count > max && !mutants::is(Mutant::NoBrake);
    over.then_some(Refusal::Brake { held: others, max })
}

/// Members one of whose addresses is refused as a whole.
fn owners<'m>(entries: &BTreeSet<Entry>, members: &'m Members) -> Vec<&'m str> {
    let hosts = host_ips(entries);
    let hit = |member: &&Member| member.addresses.iter().any(|ip| hosts.contains(ip));
    members.0.iter().filter(hit).map(|member| member.name.as_str()).collect()
}

fn reachable(targets: &[&str], answers: &BTreeMap<String, MemberAnswer>) -> Vec<Refusal> {
    let hits = targets.iter().filter_map(|name| answers.get_key_value(*name));
    let refusal = |(name, answers): (&String, &MemberAnswer)| Refusal::Reachable {
        member: name.clone(),
        seen: answers.seen.clone(),
        runs: answers.runs.clone(),
    };
    hits.map(refusal).collect()
}

/// Hosts at which nothing is known: a mistyped address. One that is refused already was fenced by an earlier run of the
/// same command.
fn unknown_hosts(hosts: &BTreeSet<IpAddr>, members: &Members, world: &CephSnapshot) -> Vec<Refusal> {
    let of_member = |ip: &IpAddr| members.0.iter().any(|member| member.addresses.contains(ip));
    let used = |ip: &IpAddr| world.clients.keys().any(|client| client.ip == *ip);
    let refused = |ip: &IpAddr| world.map.blocklist.hosts(*ip).next().is_some();
    // These have refusals of their own.
    let ours = |ip: &IpAddr| world.own.iter().any(|own| own.ip == *ip) || daemons_at(*ip, world).is_some();
    let unknown = hosts.iter().filter(|ip| !of_member(ip) && !used(ip) && !refused(ip) && !ours(ip));
    unknown.map(|ip| Refusal::UnknownAddress { ip: *ip, unread: world.unread.clone() }).collect()
}

fn shared_addresses(hosts: &BTreeSet<IpAddr>, members: &Members) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for ip in hosts {
        let mut owners = members.0.iter().filter(|member| member.addresses.contains(ip));
        if let (Some(one), Some(other)) = (owners.next(), owners.next()) {
            refusals.push(Refusal::SharedAddress {
                ip: *ip,
                member: one.name.clone(),
                other: other.name.clone(),
            });
        }
    }
    refusals
}

/// The monitors would obey a guardian on a fenced host: the lost side must not fence the healthy one.
fn fenced_itself(world: &CephSnapshot) -> Option<Refusal> {
    let refused = |own: &&EntityAddr| own.client().is_some_and(|own| world.map.blocklist.refuses(own));
    world.own.iter().find(refused).map(|own| Refusal::FencedItself { own: own.to_string() })
}

/// Active daemons on the hosts: those a standby elsewhere can take over from, and those it cannot, with their addresses there
/// and why.
fn active_daemons(
    hosts: &BTreeSet<IpAddr>,
    world: &CephSnapshot,
    policy: &Policy,
) -> (Vec<Daemon>, Vec<(Vec<IpAddr>, Refusal)>) {
    let mut movable = Vec::new();
    let mut stuck = Vec::new();
    for kind in [DaemonKind::Mgr, DaemonKind::Mds] {
        let of_kind = || world.daemons.iter().filter(move |daemon| daemon.kind == kind);
        let elsewhere = |daemon: &&Daemon| !daemon.ips.is_empty() && !daemon.is_at(hosts);
        let mut standbys = of_kind().filter(|daemon| daemon.role == Role::Standby).filter(elsewhere).count();
        for daemon in of_kind().filter(|daemon| daemon.role == Role::Active) {
            let here: Vec<IpAddr> = daemon.ips.iter().copied().filter(|ip| hosts.contains(ip)).collect();
            let Some(ip) = here.first().copied() else { continue };
            let why = if !policy.fail_over {
                "and the configuration forbids to fail it over (policy.fail_over)"
            } else if standbys == 0 {
                "and no standby is up elsewhere to take over: start one on another host"
            } else {
                standbys -= 1;
                movable.push(daemon.clone());
                continue;
            };
            let (daemon, why) = (daemon.to_string(), why.to_owned());
            stuck.push((here, Refusal::ActiveDaemon { ip, daemon, why }));
        }
    }
    (movable, stuck)
}

fn active_before(fail_over: &[Daemon], world: &CephSnapshot) -> BTreeMap<DaemonKind, usize> {
    let active = |kind| world.daemons.iter().filter(|d| d.kind == kind && d.role == Role::Active).count();
    fail_over.iter().map(|daemon| (daemon.kind, active(daemon.kind))).collect()
}

fn bare_hosts(hosts: &BTreeSet<IpAddr>, world: &CephSnapshot) -> Vec<Refusal> {
    hosts.iter().filter_map(|ip| daemons_at(*ip, world)).collect()
}

fn daemons_at(ip: IpAddr, world: &CephSnapshot) -> Option<Refusal> {
    let daemons: Vec<String> =
        world.daemons.iter().filter(|daemon| daemon.ips.contains(&ip)).map(ToString::to_string).collect();
    (!daemons.is_empty()).then_some(Refusal::DaemonsAt { ip, daemons })
}

fn daemon_clients(entries: &BTreeSet<Entry>, world: &CephSnapshot) -> Vec<Refusal> {
    let of_daemon = |client: &ClientAddr| {
        let mut daemons = world.daemons.iter();
        let daemon = |daemon: &Daemon| daemon.to_string();
        if let Some(daemon) = daemons.clone().find(|daemon| daemon.clients.contains(client)).map(daemon) {
            return Some(Refusal::DaemonClient { client: *client, daemon });
        }
        let daemon = daemons.find(|daemon| may_be_of(daemon, *client, world)).map(daemon)?;
        Some(Refusal::MayBeDaemonClient { client: *client, daemon })
    };
    clients(entries).iter().filter_map(of_daemon).collect()
}

/// Could a client be one of this daemon, whose clients are not all known? Not where it logged in as a client: a daemon's
/// own log in as the daemon.
fn may_be_of(daemon: &Daemon, client: ClientAddr, world: &CephSnapshot) -> bool {
    let as_client = |seen: &SeenAt| matches!(seen, SeenAt::Session(entity) if entity.starts_with("client."));
    let logged_in = world.clients.get(&client).is_some_and(|seen| seen.iter().any(as_client));
    let here = daemon.ips.is_empty() || daemon.ips.contains(&client.ip);
    daemon.clients_unknown && here && !logged_in
}

fn clients(entries: &BTreeSet<Entry>) -> Vec<ClientAddr> {
    let client = |entry: &Entry| match entry {
        Entry::Client(client) => Some(*client),
        Entry::Host(_) | Entry::HostRange(_) => None,
    };
    entries.iter().filter_map(client).collect()
}

fn is_of_daemon(client: &ClientAddr, world: &CephSnapshot) -> bool {
    world.daemons.iter().any(|daemon| daemon.clients.contains(client))
}

/// The member's client instances by what was learnt, also those at an IP that is not fenced whole.
fn own_clients(known: &KnownClients, world: &CephSnapshot) -> impl Iterator<Item = ClientAddr> {
    let own = |client: &ClientAddr| world.own.iter().any(|own| own.client() == Some(*client));
    let clients = known.clients.iter().copied();
    clients.filter(move |client| !is_of_daemon(client, world) && !own(client))
}

/// Clients of the member's images that no entry covers, and what else is unknown of it, in words.
fn uncovered(known: &KnownClients, entries: &BTreeSet<Entry>, world: &CephSnapshot) -> Vec<String> {
    let hosts = host_ips(entries);
    let free = |client: &ClientAddr| {
        !hosts.contains(&client.ip)
            && !entries.contains(&Entry::Client(*client))
            && !is_of_daemon(client, world)
            && !world.map.blocklist.refuses(*client)
    };
    let others = known.others.iter().filter(|(client, _)| free(client));
    let others = others.map(|(client, seen)| {
        format!(
            "{client} {seen}, and nothing shows whose it is: if it is the member's, name {} in \
             user.rbd-guardian.ceph-addresses",
            client.ip
        )
    });
    others.chain(known.unknown.iter().cloned()).collect()
}

/// Client instances of the hosts. Those of a daemon are left out: it is failed over, and the monitors
/// blocklist its instances themselves (`MgrMonitor::drop_active`, docs/facts/ceph.md#who-else-adds-entries).
fn known_clients(hosts: &BTreeSet<IpAddr>, world: &CephSnapshot) -> Vec<ClientAddr> {
    let of_daemon = |client: &ClientAddr| {
        world.daemons.iter().any(|d| d.clients.contains(client) || may_be_of(d, *client, world))
    };
    let known = world.clients.keys().filter(|client| hosts.contains(&client.ip));
    known.copied().filter(|client| !of_daemon(client)).collect()
}

/// Clients of the hosts that somebody blocklisted for a while: nobody may see them any more when the entry ends, and
/// they would be forgotten.
fn short_lived_clients(hosts: &BTreeSet<IpAddr>, world: &CephSnapshot, required: Timestamp) -> Vec<Entry> {
    let clients = hosts.iter().flat_map(|ip| world.map.blocklist.clients(*ip));
    clients.filter(|(_, until)| *until < required).map(|(client, _)| Entry::Client(client)).collect()
}

/// A whole-host entry where no client was seen may name the wrong address.
fn unused_hosts(entries: &BTreeSet<Entry>, world: &CephSnapshot) -> Vec<String> {
    let unused = host_ips(entries).into_iter().filter(|ip| !world.clients.keys().any(|c| c.ip == *ip));
    unused.map(|ip| format!("no client of {ip} is known: is it the address Ceph sees?")).collect()
}

/// Whole-host entries that stand beside a fence of clients, for example a cover an interrupted run left.
fn foreign_hosts(entries: &BTreeSet<Entry>, world: &CephSnapshot) -> Vec<String> {
    let ips: BTreeSet<IpAddr> = entries.iter().map(|entry| entry.ip()).collect();
    let beside =
        ips.difference(&host_ips(entries)).flat_map(|ip| world.map.blocklist.hosts(*ip)).collect::<Vec<_>>();
    let note = |(entry, until): (Entry, Timestamp)| {
        let id = FenceContent::new(None, &BTreeSet::from([entry]));
        format!(
            "{entry} stands until {until}, so every client of it is refused; to lift it: release --fence {id}"
        )
    };
    beside.into_iter().map(note).collect()
}

/// The IPs of the entries, and whom a cover of each would hit for a moment; nobody, where the fence is of the host.
fn coverable(entries: &BTreeSet<Entry>, world: &CephSnapshot) -> BTreeMap<IpAddr, Option<String>> {
    let hosts = host_ips(entries);
    let ips: BTreeSet<IpAddr> = entries.iter().map(|entry| entry.ip()).collect();
    let harm = |ip: IpAddr| if hosts.contains(&ip) { None } else { harmed_by_cover(ip, entries, world) };
    ips.into_iter().map(|ip| (ip, harm(ip))).collect()
}

/// Short entries that nothing of the plan covers need a cover of their own.
fn short_entries(
    entries: &BTreeSet<Entry>,
    coverable: &BTreeMap<IpAddr, Option<String>>,
    world: &CephSnapshot,
    required: Timestamp,
) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for entry in entries {
        let Some(until) = world.map.blocklist.until(*entry).filter(|until| *until < required) else {
            continue;
        };
        let host = Entry::Host(entry.ip());
        let added = *entry != host && entries.contains(&host) && world.map.blocklist.until(host).is_none();
        let stands = |(_, until): (Entry, Timestamp)| until >= required;
        if added || world.map.blocklist.hosts(entry.ip()).any(stands) {
            continue;
        }
        let why = if free_cover(&world.map, *entry).is_none() {
            Some("every whole-host key of its address is taken, or ranges are unknown here".to_owned())
        } else {
            coverable.get(&entry.ip()).cloned().flatten()
        };
        refusals.extend(why.map(|why| Refusal::ShortEntry { entry: *entry, until, required, why }));
    }
    refusals
}

fn harmed_by_cover(ip: IpAddr, entries: &BTreeSet<Entry>, world: &CephSnapshot) -> Option<String> {
    let host = BTreeSet::from([Entry::Host(ip)]);
    if let Some(refusal) = own_addresses(&host, world).pop().or_else(|| daemons_at(ip, world)) {
        return Some(format!("that needs the whole host for a moment, and {refusal}"));
    }
    if let Some(unread) = world.unread.first() {
        return Some(format!(
            "that needs the whole host for a moment, and not all its clients are known ({unread})"
        ));
    }
    // An instance that has an entry of its own is refused anyway.
    let harmed = |c: &&ClientAddr| {
        let own = Entry::Client(**c);
        c.ip == ip && !entries.contains(&own) && world.map.blocklist.until(own).is_none()
    };
    let other = world.clients.keys().find(harmed)?;
    Some(format!("that needs the whole host for a moment, and {other} on it is not to be fenced"))
}
