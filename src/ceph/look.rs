//! One look at the storage: what a plan is made of.

use std::collections::BTreeMap;
use std::time::Duration;

use rbd_guardian_core::model::addr::EntityAddr;
use rbd_guardian_core::model::ceph_snapshot::{CephSnapshot, Clients, SeenAt};
use rbd_guardian_core::model::osdmap::{DataPools, Guarded, Pool, PoolId};

use super::command::CephReadError;
use super::daemons::{self, Mons};
use super::watchers::{self, ImageReading, SweepScope};
use super::{osdmap, sessions};
use crate::ceph::rados::cluster::Cluster;
use crate::clock;
use crate::deadline::Deadline;

/// How long clients are looked for. Silent PGs and monitors must not hold up a fence: what they would have told is
/// reported as unread.
pub const CLIENTS_WITHIN: Duration = Duration::from_secs(3);

/// Reads the osdmap, the daemons, and which clients are known to monitors and images of the guarded pools.
///
/// # Errors
/// See [`CephReadError`]; a monitor or an image that does not answer is no error but noted in `unread`.
pub fn look(
    cluster: &Cluster,
    guarded: &Guarded,
    deadline: &Deadline,
) -> Result<CephSnapshot, CephReadError> {
    look_within(cluster, guarded, &deadline.at_most(CLIENTS_WITHIN))
}

/// Like [`look`], with a time limit of its own for the clients.
///
/// # Errors
/// As [`look`].
pub fn look_within(
    cluster: &Cluster,
    guarded: &Guarded,
    within: &Deadline,
) -> Result<CephSnapshot, CephReadError> {
    let dump = osdmap::dump(cluster)?;
    let mons = daemons::mons(cluster)?;
    let FoundClients { clients, mut unread, unknown, data_pools } =
        clients(cluster, &mons, &guarded.pools(&dump.map), within);
    unread.extend(unknown);
    // Last, because who is active can change while clients are looked for.
    let mut all = mons.daemons;
    all.extend(daemons::osds(&dump.osds));
    let others = daemons::services(cluster)?.and(daemons::mdss(cluster)?).and(daemons::mgrs(cluster)?);
    all.extend(others.daemons);
    unread.extend(others.unread);
    unread.extend(dump.unplaced);
    let now = dump.map.clock(clock::wall());
    Ok(CephSnapshot { now, own: own(cluster)?, map: dump.map, daemons: all, clients, unread, data_pools })
}

/// Clients, and what stands against that being all of them.
#[derive(Debug, Default)]
pub struct FoundClients {
    /// The clients that were seen, and where.
    pub clients: Clients,
    /// Sources that did not answer, in words: another try may tell.
    pub unread: Vec<String>,
    /// Users that are there and were not understood, in words: no other try tells more.
    pub unknown: Vec<String>,
    /// Pools that the headers of images name for their data.
    pub data_pools: DataPools,
}

/// The clients that these monitors and the images of these pools know, and what could not be read, in words.
pub fn clients(
    cluster: &Cluster,
    mons: &Mons,
    pools: &BTreeMap<PoolId, &Pool>,
    deadline: &Deadline,
) -> FoundClients {
    let mut found = FoundClients { unread: mons.unread.clone(), ..FoundClients::default() };
    // They answer while images are read.
    let asked = sessions::ask(cluster, &mons.quorum);
    let scope = SweepScope::of(pools);
    let silent =
        watchers::sweep(cluster, &scope, &watchers::all(), deadline, &mut |image| note(&image, &mut found));
    found.unread.extend(silent);
    note_sessions(asked.answers(deadline), &mut found);
    found
}

/// Adds the clients that monitors know.
fn note_sessions(answers: Vec<(String, sessions::Answer)>, found: &mut FoundClients) {
    for (mon, answer) in answers {
        match answer {
            Ok(sessions) => {
                for session in sessions.known {
                    found.clients.entry(session.client).or_default().insert(SeenAt::Session(session.entity));
                }
                let unknown = sessions.unknown.into_iter();
                found.unknown.extend(unknown.map(|what| format!("a session of mon.{mon}: {what}")));
            }
            Err(error) => found.unread.push(format!("sessions of mon.{mon}: {error}")),
        }
    }
}

/// Adds the clients that use an image.
fn note(image: &ImageReading, found: &mut FoundClients) {
    image.note_data_pool(&mut found.data_pools);
    let path = image.path();
    found.unknown.extend(image.unknown.iter().map(|what| format!("image {path}: {what}")));
    let clients = &mut found.clients;
    for client in image.watchers.iter().filter_map(|watch| watch.address.client()) {
        clients.entry(client).or_default().insert(SeenAt::Watch(path.clone()));
    }
    for client in image.locks.iter().filter_map(|lock| lock.address?.client()) {
        clients.entry(client).or_default().insert(SeenAt::Lock(path.clone()));
    }
}

/// The guardian's own addresses, as librados gives them: one, or several as `[v2:…,v1:…]`.
///
/// # Errors
/// They are not known or not understood; without them nothing may be fenced (INV-6).
pub fn own(cluster: &Cluster) -> Result<Vec<EntityAddr>, CephReadError> {
    let mut own = addresses(cluster)?;
    if let Some(patient) = cluster.patient_if_connected() {
        own.extend(addresses(&patient)?);
    }
    Ok(own)
}

fn addresses(cluster: &Cluster) -> Result<Vec<EntityAddr>, CephReadError> {
    let failed = |error: &dyn std::fmt::Display| CephReadError::unreadable("rados_getaddrs", error);
    let text = cluster.addresses().map_err(|errno| failed(&errno))?;
    let one: Result<EntityAddr, _> = text.parse();
    let own = one.map(|addr| vec![addr]).or_else(|_| {
        let list = text.trim_start_matches('[').trim_end_matches(']');
        list.split(',').map(str::parse).collect()
    });
    own.map_err(|error| failed(&error))
}
