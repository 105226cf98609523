//! Reading the view from one member.
//!
//! The members' listing comes first: it needs the database and its leader, so an answer shows a quorum, which the
//! rest of the API does not. What follows is asked of the same member, at the same time, each with a deadline of its
//! own; what gets no answer is unknown, and said to be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::{join, join_all, join4};
use ipnet::IpNet;
use rbd_guardian_core::model::gate_keys::{KEYS, is_own};
use rbd_guardian_core::model::incus_snapshot::{
    Details, GateView, IncusSnapshot, Instance, InstanceId, MemberState, MemberStatus, MemberView, Operation,
    Thresholds,
};
use rbd_guardian_core::model::machine::{Machine, Part};
use rbd_guardian_core::model::volume::{ExternalImage, StoragePool, Volume, VolumeKind};
use serde::Deserialize;

use super::api::{self, instance_kind};
use super::client::Client;
use super::error::{IncusError, RequestError};
use super::path::{ApiPath, instance_of, name_of};
use super::profiles::{self, VolumeWithProfiles};
use crate::incus::options::host;

/// The operator's word on a member's storage addresses, in the member's configuration.
pub const ADDRESSES_KEY: &str = "user.rbd-guardian.ceph-addresses";

/// A member that tells its state runs `ceph df` for each of its pools, one after another
/// (internal/server/cluster/member_state.go; seconds for each in the lab).
const PATIENCE: Duration = Duration::from_secs(30);
/// A member that is asked whether it is there at all says so from memory.
const PROMPT: Duration = Duration::from_millis(700);
/// How much of that the usual endpoint has for itself: it may be the lost one.
const USUAL: Duration = Duration::from_millis(200);
const MEMBERS: &str = "/1.0/cluster/members?recursion=1";

/// A view, and what is missing from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncusReading {
    /// What was read.
    pub view: IncusSnapshot,
    /// What was not, or not understood; an instance or volume of an unknown kind is left out and told here.
    pub missing: Vec<IncusError>,
}

/// Reads everything. `previous` helps out while instances cannot be listed because a lost member is still waited for:
/// the names are read from the database, their places are those of before, and `missing` tells.
///
/// # Errors
/// No member with a quorum answered.
pub async fn read(client: &Client, previous: Option<&IncusSnapshot>) -> Result<IncusReading, IncusError> {
    gather(client, Some(previous), &BTreeSet::new()).await
}

/// Reads what changes by the second: members, operations and the gate. Instances, pools and volumes stay unknown.
/// Members that are known to be `silent` are hardly waited for: a fence waits for this reading.
///
/// # Errors
/// No member with a quorum answered.
pub async fn glance(client: &Client, silent: &BTreeSet<String>) -> Result<IncusReading, IncusError> {
    gather(client, None, silent).await
}

/// Reads the members alone, from whoever answers first: enough to know that there is a quorum and whom it lost.
///
/// # Errors
/// No member with a quorum answered.
pub async fn quorum(client: &Client) -> Result<IncusSnapshot, IncusError> {
    let members: Vec<api::Member> = client.first(MEMBERS, client.timeout() / 8).await?;
    if members.is_empty() {
        return Err(client.misunderstood(MEMBERS, "it lists no members".to_owned()));
    }
    Ok(IncusSnapshot { members: members.into_iter().map(member).collect(), ..IncusSnapshot::default() })
}

async fn gather(
    client: &Client,
    whole: Option<Option<&IncusSnapshot>>,
    silent: &BTreeSet<String>,
) -> Result<IncusReading, IncusError> {
    let (members, here) = client.settle::<Vec<api::Member>>(MEMBERS).await?;
    let server: api::Server = here.get("/1.0").await?;
    // An empty listing would otherwise pass for a cluster that lost nobody.
    let own = &server.environment.server_name;
    if !members.iter().any(|member| member.server_name == *own) {
        return Err(
            here.misunderstood("/1.0/cluster/members", format!("'{own}' is not among the members it lists"))
        );
    }
    // Asked of every member that runs one, and waits for one that is lost and does not count as offline yet
    // (operations.go, operationsGet).
    let briefly = here.within(here.timeout() / 3);
    let whole = async {
        let previous = whole?;
        Some(join(stored(&here), instances(&here, previous)).await)
    };
    let (whole, operations, project, scriptlets) = join4(
        whole,
        operations(&briefly),
        here.get::<api::Project>("/1.0/projects/default"),
        scriptlets(&here, &members, &server, silent),
    )
    .await;
    let mut missing = Vec::new();
    let (stored, instances) = whole.unzip();
    let (pools, volumes) = stored.unzip();
    let own = |member: &api::Member| (member.server_name.clone(), own_keys(&member.config));
    let keys = members.iter().map(own).collect();
    let project = known(project, &mut missing).map(|project| project_keys(project.config));
    let view = IncusSnapshot {
        from: server.environment.server_name.clone(),
        members: members.into_iter().map(member).collect(),
        thresholds: Thresholds { offline: server.offline_threshold(), healing: server.healing_threshold() },
        instances: instances.and_then(|instances| told(instances, &mut missing)),
        pools: pools.and_then(|pools| known(pools, &mut missing)),
        volumes: volumes.and_then(|volumes| told(volumes, &mut missing)),
        operations: known(operations, &mut missing),
        gate: project.map(|project| GateView { scriptlets, project, members: keys, ..GateView::default() }),
    };
    Ok(IncusReading { view, missing })
}

/// Does a member answer? Forwarded to it, bounded by `PROMPT`: a fence of a lost one waits for this.
///
/// # Errors
/// It did not answer.
pub async fn member_answers(client: &Client, member: &str) -> Result<(), IncusError> {
    let path = ApiPath::of(&[]).at(member).text();
    let prompt = client.within(PROMPT.min(client.timeout()));
    let server: api::Server = prompt.first(&path, USUAL).await?;
    let from = &server.environment.server_name;
    if from == member {
        Ok(())
    } else {
        Err(client.misunderstood(&path, format!("{from} answered in its place")))
    }
}

/// What a member says of itself: forwarded to it by whoever is asked, so an answer means that it is up.
///
/// # Errors
/// It did not answer.
pub async fn member_state(client: &Client, member: &str) -> Result<MemberState, IncusError> {
    // A member that is gone fails this request. The state takes long at a member that is there.
    let resources: api::Resources = client.get(&ApiPath::of(&["resources"]).at(member).text()).await?;
    let patient = client.within(PATIENCE.max(client.timeout()));
    let state = ApiPath::of(&["cluster", "members", member, "state"]).text();
    let state: api::MemberState = patient.get(&state).await?;
    Ok(MemberState { uptime: Duration::from_secs(state.sysinfo.uptime), machine: machine(&resources).text() })
}

/// What tells the machine from another.
fn machine(resources: &api::Resources) -> Machine {
    let (system, mut machine) = (&resources.system, Machine::default());
    machine.add(Part::Uuid, &system.uuid);
    machine.add(Part::System, &system.serial);
    machine.add(Part::Board, &system.motherboard.serial);
    machine.add(Part::Chassis, &system.chassis.serial);
    let ports = resources.network.cards.iter().flat_map(|card| &card.ports);
    machine.add_cards(ports.map(|port| port.address.as_str()));
    machine
}

/// The global addresses of a member's own interfaces, with their networks.
///
/// # Errors
/// It did not answer.
pub async fn member_addresses(client: &Client, member: &str) -> Result<BTreeSet<IpNet>, IncusError> {
    // Names alone: with `recursion=1` 6.0.4 leaves out interfaces of kinds it does not know.
    let networks: Vec<String> = client.get(&ApiPath::of(&["networks"]).at(member).text()).await?;
    let names = networks.iter().filter_map(|path| name_of(path, "networks"));
    // Each instance has an interface on the host, which never has an address.
    let own = names.filter(|name| !name.starts_with("veth") && !name.starts_with("tap"));
    let mut addresses = BTreeSet::new();
    for name in own {
        let path = ApiPath::of(&["networks", &name, "state"]).at(member).text();
        match client.get::<api::NetworkState>(&path).await {
            Ok(state) => {
                let global = state.addresses.iter().filter(|address| address.scope == "global");
                addresses.extend(global.filter_map(network));
            }
            // Interfaces come and go.
            Err(error) if matches!(error.cause, RequestError::Status { code: 404, .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(addresses)
}

/// An address whose network is not told stands for itself.
fn network(address: &api::Address) -> Option<IpNet> {
    let ip: IpAddr = address.address.parse().ok()?;
    let length = address.netmask.parse().ok().and_then(|length| IpNet::new(ip, length).ok());
    Some(length.unwrap_or_else(|| IpNet::from(ip)))
}

fn member(member: api::Member) -> (String, MemberView) {
    let addresses = addresses(member.config.get(ADDRESSES_KEY).map_or("", String::as_str));
    let (heartbeat_age, leads) = (member.heartbeat_age(), member.leads());
    (
        member.server_name,
        MemberView { status: member.status, heartbeat_age, url: member.url, leads, addresses },
    )
}

fn addresses(text: &str) -> Result<BTreeSet<IpAddr>, String> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    words.map(host).collect()
}

/// Pools, and the volumes of those that are RBD: of the others none can be fenced.
async fn stored(
    here: &Client,
) -> (Result<BTreeMap<String, StoragePool>, IncusError>, Result<(Vec<Volume>, Vec<IncusError>), IncusError>) {
    let pools = match here.get::<Vec<api::Pool>>("/1.0/storage-pools?recursion=1").await {
        Ok(pools) => pools,
        Err(error) => return (Err(error.clone()), Err(error)),
    };
    let rbd = pools.iter().filter(|pool| pool.driver == "ceph");
    let listings = join_all(rbd.map(|pool| volumes(here, &pool.name))).await;
    let listed = listings.into_iter().try_fold((Vec::new(), Vec::new()), |(mut all, mut odd), listing| {
        let (volumes, strange) = listing?;
        all.extend(volumes);
        odd.extend(strange);
        Ok((all, odd))
    });
    let volumes = match listed {
        Ok((listed, mut odd)) => Ok((profiles::resolve(here, listed, &mut odd).await, odd)),
        Err(error) => Err(error),
    };
    let pools = pools.into_iter().map(|pool| {
        let of = |key: &str| pool.config.get(key).filter(|_| pool.driver == "ceph").cloned();
        let (data_pool, cluster) = (of("ceph.osd.data_pool_name"), of("ceph.cluster_name"));
        let osd_pool = of("ceph.osd.pool_name").or_else(|| of("source"));
        (pool.name, StoragePool { driver: pool.driver, osd_pool, data_pool, cluster })
    });
    (Ok(pools.collect()), volumes)
}

async fn volumes(
    here: &Client,
    pool: &str,
) -> Result<(Vec<VolumeWithProfiles>, Vec<IncusError>), IncusError> {
    let path = ApiPath::of(&["storage-pools", pool, "volumes"]).whole().everywhere().text();
    let listed: Vec<ListedVolume> = here.get(&path).await?;
    let (mut volumes, mut odd) = (Vec::with_capacity(listed.len()), Vec::new());
    for volume in listed {
        match volume {
            ListedVolume::Known(mut listed) => {
                pool.clone_into(&mut listed.volume.pool);
                volumes.push(listed);
            }
            ListedVolume::Snapshot => {}
            ListedVolume::Odd(what) => odd.push(here.misunderstood(&path, what)),
        }
    }
    Ok((volumes, odd))
}

/// An item of a listing, made into what is kept of it as soon as it is read: a listing may have ten thousands.
#[derive(Deserialize)]
#[serde(from = "api::Volume")]
enum ListedVolume {
    /// The pool is not told.
    Known(VolumeWithProfiles),
    Snapshot,
    Odd(String),
}

impl From<api::Volume> for ListedVolume {
    fn from(volume: api::Volume) -> Self {
        if volume.is_snapshot() {
            return Self::Snapshot;
        }
        let (Some(kind), Some(content)) = (volume.volume_kind(), volume.content()) else {
            let api::Volume { name, kind, content_type, .. } = volume;
            return Self::Odd(format!("volume {name} of kind '{kind}', content '{content_type}'"));
        };
        let Some(project) = volume.project else {
            return Self::Odd(format!("volume {} without a project", volume.name));
        };
        let mut listed = VolumeWithProfiles {
            profiles: Vec::new(),
            volume: Volume {
                pool: String::new(),
                kind,
                content,
                shared: is_true(volume.config.shared.as_ref()),
                used_by: BTreeSet::new(),
                unknown: Vec::new(),
                project,
                name: volume.name,
            },
        };
        // An instance's volume is that instance's alone.
        if kind == VolumeKind::Custom {
            match volume.used_by {
                Some(paths) => paths.iter().for_each(|path| listed.note_user(path)),
                None => listed.volume.unknown.push("the listing does not say who uses it".to_owned()),
            }
        }
        Self::Known(listed)
    }
}

type Instances = BTreeMap<InstanceId, Instance>;

async fn instances(
    here: &Client,
    previous: Option<&IncusSnapshot>,
) -> Result<(Instances, Vec<IncusError>), IncusError> {
    let path = ApiPath::of(&["instances"]).whole().everywhere().text();
    // A member that is lost but does not count as offline yet is waited for, for up to 30 s (instances_get.go:522).
    let error = match here.within(here.timeout() / 2).get::<Vec<ListedInstance>>(&path).await {
        Ok(listed) => {
            let mut odd = Vec::new();
            let known = listed.into_iter().filter_map(|ListedInstance(id, instance)| match instance {
                Ok(instance) => Some((id, instance)),
                Err(what) => {
                    odd.push(here.misunderstood(&path, format!("{id} {what}")));
                    None
                }
            });
            // All at once: a map that grows one by one in order is half empty.
            let instances = known.collect();
            return Ok((instances, odd));
        }
        Err(error) => error,
    };
    let Some(before) = previous.and_then(|view| view.instances.as_ref()) else { return Err(error) };
    let names: Vec<String> = here.get("/1.0/instances?all-projects=true").await?;
    let place = |path: &String| {
        let id = instance_of(path)?;
        let instance = Instance { details: None, ..before.get(&id)?.clone() };
        Some((id, instance))
    };
    // An instance that was never listed has no known location: then the locations are unknown, rather than the instance absent.
    names
        .iter()
        .map(place)
        .collect::<Option<Instances>>()
        .map(|known| (known, vec![error.clone()]))
        .ok_or(error)
}

/// As [`ListedVolume`]; of an instance that is not understood, what is wrong with it.
#[derive(Deserialize)]
#[serde(from = "api::Instance")]
struct ListedInstance(InstanceId, Result<Instance, String>);

impl From<api::Instance> for ListedInstance {
    fn from(listed: api::Instance) -> Self {
        let known = listed.project.is_some();
        let id = InstanceId { project: listed.project.unwrap_or_default(), name: listed.name };
        let Some(kind) = instance_kind(&listed.kind) else {
            return Self(id, Err(format!("of type '{}'", listed.kind)));
        };
        let (Some(location), true) = (listed.location, known) else {
            return Self(id, Err("without a project or a location".to_owned()));
        };
        let details = listed.config.map(|config| {
            let expanded = listed.expanded_config.as_ref().unwrap_or(&config);
            let disks = listed.expanded_devices.iter().flatten().filter(|(_, device)| device.kind == "disk");
            let sources = disks.filter_map(|(_, disk)| {
                let path = disk.source.as_deref()?.strip_prefix("ceph:")?.to_owned();
                Some(ExternalImage { path, cluster: disk.cluster.clone() })
            });
            Details {
                // A frozen one holds its disks as a running one does.
                running: matches!(
                    listed.status.as_str(),
                    "Running" | "Ready" | "Stopping" | "Aborting" | "Freezing" | "Frozen" | "Thawed"
                ),
                ran: config.power.as_ref().is_some_and(|power| power == "RUNNING"),
                autostart: expanded.autostart.as_ref().map(|value| is_true(Some(value))),
                external_images: sources.collect(),
            }
        });
        Self(id, Ok(Instance { kind, location, details }))
    }
}

async fn operations(here: &Client) -> Result<Vec<Operation>, IncusError> {
    let listed: api::Operations =
        here.get_large(&ApiPath::of(&["operations"]).whole().everywhere().text()).await?;
    let under_way = listed.into_values().flatten().flatten().filter(api::Operation::is_under_way);
    Ok(under_way.map(operation).collect())
}

fn operation(operation: api::Operation) -> Operation {
    let (kind, instances) = (operation.kind(), operation.instances().collect());
    Operation { id: operation.id, kind, location: operation.location, instances }
}

/// The scriptlet each member has in its own memory: it answers for itself, through the member that is asked. One that
/// is lost counts as evacuated while its healing is tried, and is asked like the others; what it runs is remembered.
async fn scriptlets(
    here: &Client,
    members: &[api::Member],
    own: &api::Server,
    silent: &BTreeSet<String>,
) -> BTreeMap<String, Result<String, String>> {
    let ask = async |member: &api::Member| {
        let name = &member.server_name;
        if *name == own.environment.server_name {
            return (name.clone(), Ok(own.scriptlet().to_owned()));
        }
        if member.status == MemberStatus::Offline {
            return (name.clone(), Err(member.message.clone()));
        }
        let patience = here.timeout() / if silent.contains(name) { 40 } else { 8 };
        let server = here.within(patience).get::<api::Server>(&ApiPath::of(&[]).at(name).text()).await;
        let scriptlet = server.map_err(|error| error.to_string()).and_then(|server| {
            let from = &server.environment.server_name;
            if from == name {
                Ok(server.scriptlet().to_owned())
            } else {
                Err(format!("{from} answered in its place"))
            }
        });
        (name.clone(), scriptlet)
    };
    join_all(members.iter().map(ask)).await.into_iter().collect()
}

/// The guardian's own keys of a member's configuration.
pub(super) fn own_keys(config: &api::Keys) -> api::Keys {
    let own = config.iter().filter(|(key, _)| is_own(key));
    own.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Keys of the configuration of project `default` that are named like the guardian's.
pub(super) fn project_keys(mut config: api::Keys) -> api::Keys {
    config.retain(|key, _| key.starts_with(KEYS));
    config
}

fn known<T>(answer: Result<T, IncusError>, missing: &mut Vec<IncusError>) -> Option<T> {
    answer.map_err(|error| missing.push(error)).ok()
}

fn told<T>(answer: Result<(T, Vec<IncusError>), IncusError>, missing: &mut Vec<IncusError>) -> Option<T> {
    let (what, odd) = known(answer, missing)?;
    missing.extend(odd);
    Some(what)
}

/// As Incus reads booleans (shared/util.IsTrue).
fn is_true(value: Option<&String>) -> bool {
    value.is_some_and(|value| ["true", "1", "yes", "on"].contains(&value.to_ascii_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn without(mut whole: Value, field: &str) -> Value {
        whole.as_object_mut().unwrap().remove(field);
        whole
    }

    #[test]
    fn a_field_that_a_protection_rests_on_is_unknown_where_it_is_absent() {
        let instance = json!({"name": "c1", "project": "p", "type": "container", "location": "n1"});
        let read = |json| serde_json::from_value::<ListedInstance>(json).unwrap();
        assert_eq!(read(instance.clone()).1.unwrap().location, "n1");
        for field in ["project", "location"] {
            assert!(read(without(instance.clone(), field)).1.is_err(), "{field}");
        }

        let volume =
            json!({"name": "v", "type": "custom", "content_type": "block", "project": "p", "used_by": null});
        let read = |json| serde_json::from_value::<ListedVolume>(json).unwrap();
        assert!(
            matches!(read(volume.clone()), ListedVolume::Known(known) if known.volume.unknown.is_empty())
        );
        let unused = read(without(volume.clone(), "used_by"));
        assert!(matches!(unused, ListedVolume::Known(known) if !known.volume.unknown.is_empty()));
        assert!(matches!(read(without(volume, "project")), ListedVolume::Odd(_)));

        let state = json!({"addresses": [{"address": "10.0.0.5", "scope": "global"}]});
        assert!(serde_json::from_value::<api::NetworkState>(state).is_ok());
        let unknown = [json!({}), json!({"addresses": [{"address": "10.0.0.5"}]})];
        assert!(unknown.into_iter().all(|state| serde_json::from_value::<api::NetworkState>(state).is_err()));
        let member = json!({"server_name": "n1", "status": "Online"});
        assert!(
            serde_json::from_value::<api::Member>(member).is_err(),
            "a member that could not be asked itself"
        );
    }
}
