//! One look at the storage: what a plan is made of.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cluster::Cluster;
use super::command::ReadError;
use super::watchers::{ImageUse, Scope};
use super::{daemons, osdmap, sessions, watchers};
use crate::clock;
use crate::deadline::Deadline;
use crate::domain::addr::EntityAddr;
use crate::domain::map::{Guarded, Pool, PoolId};
use crate::domain::world::{Clients, SeenAt, World};

/// How long clients are looked for. Silent PGs and monitors must not hold up a fence: what they would have told is
/// reported as unread.
pub const CLIENTS_WITHIN: Duration = Duration::from_secs(3);

/// Reads the osdmap, the daemons, and which clients are known to monitors and images of the guarded pools.
///
/// # Errors
/// See [`ReadError`]; a monitor or an image that does not answer is no error but noted in `unread`.
pub fn look(cluster: &Cluster, guarded: &Guarded, deadline: &Deadline) -> Result<World, ReadError> {
    let dump = osdmap::dump(cluster)?;
    let mons = daemons::mons(cluster)?;
    let within = deadline.at_most(CLIENTS_WITHIN);
    let (clients, unread) = clients(cluster, &mons.quorum, &guarded.pools(&dump.map), &within);
    // Last, because who is active can change while clients are looked for.
    let mut all = mons.daemons;
    all.extend(daemons::osds(&dump.osds));
    all.extend(daemons::services(cluster)?);
    all.extend(daemons::mdss(cluster)?);
    all.extend(daemons::mgrs(cluster)?);
    let now = dump.map.clock(clock::wall());
    Ok(World { now, own: own(cluster)?, map: dump.map, daemons: all, clients, unread })
}

/// The clients that these monitors and the images of these pools know, and what could not be read, in words.
pub fn clients(
    cluster: &Cluster,
    mons: &[String],
    pools: &BTreeMap<PoolId, &Pool>,
    deadline: &Deadline,
) -> (Clients, Vec<String>) {
    let mut clients = Clients::new();
    let mut unread = clients_of_mons(cluster, mons, deadline, &mut clients);
    let scope = Scope::of(pools);
    unread.extend(watchers::sweep(cluster, &scope, deadline, &mut |image| note(&image, &mut clients)));
    (clients, unread)
}

/// Adds the clients each of these monitors knows. Returns what could not be read, in words.
fn clients_of_mons(
    cluster: &Cluster,
    mons: &[String],
    deadline: &Deadline,
    clients: &mut Clients,
) -> Vec<String> {
    let mut unread = Vec::new();
    for (mon, answer) in sessions::sessions(cluster, mons, deadline) {
        match answer {
            Ok(sessions) => {
                for session in sessions {
                    clients.entry(session.client).or_default().insert(SeenAt::Session(session.entity));
                }
            }
            Err(error) => unread.push(format!("sessions of mon.{mon}: {error}")),
        }
    }
    unread
}

/// Adds the clients that use an image.
fn note(image: &ImageUse, clients: &mut Clients) {
    let path = image.path();
    for client in image.watchers.iter().filter_map(|watch| watch.address.client()) {
        clients.entry(client).or_default().insert(SeenAt::Watch(path.clone()));
    }
    for client in image.lock.iter().filter_map(|lock| lock.address.client()) {
        clients.entry(client).or_default().insert(SeenAt::Lock(path.clone()));
    }
}

/// The guardian's own addresses, as librados gives them: one, or several as `[v2:…,v1:…]`.
///
/// # Errors
/// They are not known or not understood; without them nothing may be fenced (INV-6).
pub fn own(cluster: &Cluster) -> Result<Vec<EntityAddr>, ReadError> {
    let failed = |error: &dyn std::fmt::Display| ReadError::unreadable("rados_getaddrs", error);
    let text = cluster.addresses().map_err(|errno| failed(&errno))?;
    let one: Result<EntityAddr, _> = text.parse();
    let own = one.map(|addr| vec![addr]).or_else(|_| {
        let list = text.trim_start_matches('[').trim_end_matches(']');
        list.split(',').map(str::parse).collect()
    });
    own.map_err(|error| failed(&error))
}
