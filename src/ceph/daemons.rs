//! Where the daemons of the storage are, and which of them are active.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::cluster::{Cluster, CommandError};
use super::command::{ReadError, read};
use super::osdmap::AddrVec;
use crate::domain::addr::{ClientAddr, EntityAddr};
use crate::domain::world::{Daemon, DaemonKind, Role};

/// The monitors of the monmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mons {
    /// All of them.
    pub daemons: Vec<Daemon>,
    /// Names of those in the quorum.
    pub quorum: Vec<String>,
}

/// Reads the monitors.
///
/// # Errors
/// See [`ReadError`].
pub fn mons(cluster: &Cluster) -> Result<Mons, ReadError> {
    #[derive(Deserialize)]
    struct Dump {
        mons: Vec<Mon>,
        quorum: Vec<i64>,
    }
    #[derive(Deserialize)]
    struct Mon {
        rank: i64,
        name: String,
        public_addrs: AddrVec,
    }
    let dump: Dump = ask(cluster, "mon dump")?;
    let in_quorum = dump.mons.iter().filter(|mon| dump.quorum.contains(&mon.rank));
    let quorum = in_quorum.map(|mon| mon.name.clone()).collect();
    let daemons =
        dump.mons.iter().map(|mon| daemon(DaemonKind::Mon, &mon.name, mon.public_addrs.ips(), Role::Plain));
    Ok(Mons { daemons: daemons.collect(), quorum })
}

/// Reads the managers. Only the active one's address and clients are in the mgrmap; where the standbys are is
/// in the metadata they report.
///
/// # Errors
/// See [`ReadError`].
pub fn mgrs(cluster: &Cluster) -> Result<Vec<Daemon>, ReadError> {
    #[derive(Deserialize)]
    struct Dump {
        active_name: String,
        #[serde(default)]
        active_addrs: AddrVec,
        #[serde(default)]
        active_clients: Vec<AddrVec>,
        standbys: Vec<Named>,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
        addr: Option<String>,
    }
    let dump: Dump = ask(cluster, "mgr dump")?;
    let metadata: Vec<Metadata> = ask(cluster, "mgr metadata")?;
    let place = |m: &Metadata| Some((m.name.clone(), m.addr.as_ref()?.parse::<EntityAddr>().ok()?.ip));
    let places: BTreeMap<String, IpAddr> = metadata.iter().filter_map(place).collect();
    let reported = |name: &str| places.get(name).copied();
    let mut daemons = Vec::new();
    if !dump.active_name.is_empty() {
        let ips = dump.active_addrs.ips().into_iter().chain(reported(&dump.active_name));
        let mut active = daemon(DaemonKind::Mgr, &dump.active_name, ips, Role::Active);
        let clients = dump.active_clients.iter().flat_map(AddrVec::addresses);
        active.clients = clients.filter_map(EntityAddr::client).collect::<Vec<ClientAddr>>();
        daemons.push(active);
    }
    let standby = |n: &Named| daemon(DaemonKind::Mgr, &n.name, reported(&n.name), Role::Standby);
    daemons.extend(dump.standbys.iter().map(standby));
    Ok(daemons)
}

/// Reads the metadata servers.
///
/// # Errors
/// See [`ReadError`].
pub fn mdss(cluster: &Cluster) -> Result<Vec<Daemon>, ReadError> {
    #[derive(Deserialize)]
    struct Dump {
        filesystems: Vec<Filesystem>,
        standbys: Vec<Info>,
    }
    #[derive(Deserialize)]
    struct Filesystem {
        mdsmap: MdsMap,
    }
    #[derive(Deserialize)]
    struct MdsMap {
        info: BTreeMap<String, Info>,
    }
    #[derive(Deserialize)]
    struct Info {
        name: String,
        state: String,
        addrs: AddrVec,
    }
    let dump: Dump = ask(cluster, "fs dump")?;
    let infos = dump.filesystems.into_iter().flat_map(|fs| fs.mdsmap.info.into_values());
    let mds = |info: Info| {
        let role = match info.state.as_str() {
            "up:standby" => Role::Standby,
            // It follows one rank, and is not free for another.
            "up:standby-replay" => Role::Plain,
            _ => Role::Active,
        };
        daemon(DaemonKind::Mds, &info.name, info.addrs.ips(), role)
    };
    Ok(infos.chain(dump.standbys).map(mds).collect())
}

/// Reads the daemons that registered themselves with the mgr (`rados_service_register`): rgw, rbd-mirror, gateways.
///
/// # Errors
/// See [`ReadError`].
pub fn services(cluster: &Cluster) -> Result<Vec<Daemon>, ReadError> {
    #[derive(Deserialize)]
    struct Dump {
        services: BTreeMap<String, Service>,
    }
    #[derive(Deserialize)]
    struct Service {
        daemons: BTreeMap<String, Registered>,
    }
    /// Among the daemons there is a `summary`, which is a text.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Registered {
        Daemon { addr: EntityAddr },
        Other(serde::de::IgnoredAny),
    }
    let dump: Dump = ask(cluster, "service dump")?;
    let mut daemons = Vec::new();
    for (service, registered) in dump.services {
        for (name, registered) in registered.daemons {
            if let Registered::Daemon { addr } = registered {
                let name = format!("{service}.{name}");
                daemons.push(daemon(DaemonKind::Service, &name, [addr.ip], Role::Plain));
            }
        }
    }
    Ok(daemons)
}

/// OSDs with the addresses `osd dump` gave.
pub fn osds(addresses: &[(i64, EntityAddr)]) -> Vec<Daemon> {
    let osd =
        |(id, addr): &(i64, EntityAddr)| daemon(DaemonKind::Osd, &id.to_string(), [addr.ip], Role::Plain);
    let mut daemons: Vec<Daemon> = addresses.iter().map(osd).collect();
    daemons.dedup();
    daemons
}

/// Makes a standby take over. Whether it did is to be read back.
///
/// # Errors
/// The monitors' answer.
pub fn fail_over(cluster: &Cluster, daemon: &Daemon) -> Result<(), CommandError> {
    let command = match daemon.kind {
        DaemonKind::Mgr => json!({"prefix": "mgr fail", "who": daemon.name}),
        DaemonKind::Mds => json!({"prefix": "mds fail", "role_or_gid": daemon.name}),
        DaemonKind::Mon | DaemonKind::Osd | DaemonKind::Service => return Ok(()),
    };
    cluster.mon_command(&command).map(|_| ())
}

fn ask<T: DeserializeOwned>(cluster: &Cluster, prefix: &str) -> Result<T, ReadError> {
    let json = read(cluster, &json!({"prefix": prefix, "format": "json"}))?;
    serde_json::from_slice(&json).map_err(|error| ReadError::unreadable(prefix, &error))
}

fn daemon(kind: DaemonKind, name: &str, ips: impl IntoIterator<Item = IpAddr>, role: Role) -> Daemon {
    Daemon { kind, name: name.to_owned(), ips: ips.into_iter().collect(), role, clients: Vec::new() }
}
