//! Where the daemons of the storage are, and which of them are active.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rbd_guardian_core::model::addr::{ClientAddr, EntityAddr};
use rbd_guardian_core::model::ceph_snapshot::{Daemon, DaemonKind, Role};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::command::{CephReadError, read};
use super::item::{Item, shown};
use super::osdmap::AddrVec;
use crate::ceph::rados::cluster::{Cluster, CommandError};

/// Daemons, and what was not understood of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundDaemons {
    /// Daemons that were understood, as far as they were.
    pub daemons: Vec<Daemon>,
    /// The rest, each in words: where it is, or whose clients are its own, is not known.
    pub unread: Vec<String>,
}

/// The monitors of the monmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mons {
    /// All of them.
    pub daemons: Vec<Daemon>,
    /// Names of those in the quorum.
    pub quorum: Vec<String>,
    /// What was not understood, in words: a monitor whose sessions nobody asks for among it.
    pub unread: Vec<String>,
}

impl FoundDaemons {
    /// With the others.
    pub fn and(mut self, others: Self) -> Self {
        self.daemons.extend(others.daemons);
        self.unread.extend(others.unread);
        self
    }

    /// Places of one daemon; those that are neither an address nor blank are noted.
    fn place(&mut self, kind: DaemonKind, name: &str, addrs: &AddrVec) -> BTreeSet<IpAddr> {
        let strange = addrs.strange();
        self.unread
            .extend(strange.map(|addr| format!("{kind}.{name} is at '{addr}', which is not understood")));
        addrs.ips()
    }
}

/// Reads the monitors.
///
/// # Errors
/// See [`CephReadError`].
pub fn mons(cluster: &Cluster) -> Result<Mons, CephReadError> {
    read_mons(&answer(cluster, "mon dump")?)
}

fn read_mons(json: &[u8]) -> Result<Mons, CephReadError> {
    #[derive(Deserialize)]
    struct Dump {
        mons: Vec<Item<Mon>>,
        quorum: Vec<i64>,
    }
    #[derive(Deserialize)]
    struct Mon {
        rank: i64,
        name: String,
        public_addrs: AddrVec,
    }
    let dump: Dump = understood("mon dump", json)?;
    let mut found = FoundDaemons::default();
    let mut quorum = Vec::new();
    let mut missing = dump.quorum.clone();
    for item in dump.mons {
        match item {
            Item::Known(mon) => {
                let ips = found.place(DaemonKind::Mon, &mon.name, &mon.public_addrs);
                let in_quorum = dump.quorum.contains(&mon.rank);
                let role = if in_quorum { Role::Plain } else { Role::Standby };
                found.daemons.push(daemon(DaemonKind::Mon, &mon.name, ips, role));
                if in_quorum {
                    missing.retain(|rank| *rank != mon.rank);
                    quorum.push(mon.name);
                }
            }
            Item::Other(value) => {
                found.unread.push(format!("a monitor is not understood: {}", shown(&value)))
            }
        }
    }
    found.unread.extend(
        missing.iter().map(|rank| format!("sessions of the monitor of rank {rank}: its name is not known")),
    );
    Ok(Mons { daemons: found.daemons, quorum, unread: found.unread })
}

/// Reads the managers. Only the active one's address and clients are in the mgrmap; where the standbys are is
/// in the metadata they report.
///
/// # Errors
/// See [`CephReadError`].
pub fn mgrs(cluster: &Cluster) -> Result<FoundDaemons, CephReadError> {
    read_mgrs(&answer(cluster, "mgr dump")?, &answer(cluster, "mgr metadata")?)
}

fn read_mgrs(dump: &[u8], metadata: &[u8]) -> Result<FoundDaemons, CephReadError> {
    #[derive(Deserialize)]
    struct Dump {
        active_name: String,
        active_addrs: Option<AddrVec>,
        active_clients: Option<Vec<Item<AddrVec>>>,
        /// Before 16.2.12 and 17.2.6 the clients are in here, beside a list for each release (tracker 58096).
        always_on_modules: Option<Value>,
        standbys: Vec<Item<Named>>,
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
    let dump: Dump = understood("mgr dump", dump)?;
    let metadata: Vec<Item<Metadata>> = understood("mgr metadata", metadata)?;
    let place = |m: &Metadata| Some((m.name.clone(), m.addr.as_ref()?.parse::<EntityAddr>().ok()?.ip));
    let places: BTreeMap<String, IpAddr> =
        metadata.iter().filter_map(Item::known).filter_map(place).collect();
    let reported = |name: &str| places.get(name).copied();
    let mut found = FoundDaemons::default();
    if !dump.active_name.is_empty() {
        let addrs = dump.active_addrs.unwrap_or_default();
        let ips = found.place(DaemonKind::Mgr, &dump.active_name, &addrs);
        let ips = ips.into_iter().chain(reported(&dump.active_name)).collect::<BTreeSet<_>>();
        let mut active = daemon(DaemonKind::Mgr, &dump.active_name, ips, Role::Active);
        let nested = || {
            Vec::<Item<AddrVec>>::deserialize(dump.always_on_modules.as_ref()?.get("active_clients")?).ok()
        };
        let listed = dump.active_clients.or_else(nested).unwrap_or_default();
        let clients = listed.iter().filter_map(Item::known).flat_map(AddrVec::addresses);
        active.clients = clients.filter_map(EntityAddr::client).collect::<Vec<ClientAddr>>();
        // Its modules are clients from its first second on: none listed are not none. Nor are some all of them.
        let all =
            listed.iter().all(|item| item.known().is_some_and(|addrs| addrs.strange().next().is_none()));
        active.clients_unknown = active.clients.is_empty() || !all;
        found.daemons.push(active);
    }
    for item in dump.standbys {
        match item {
            Item::Known(standby) => {
                let at = reported(&standby.name);
                found.daemons.push(daemon(DaemonKind::Mgr, &standby.name, at, Role::Standby));
            }
            Item::Other(value) => {
                found.unread.push(format!("a standby mgr is not understood: {}", shown(&value)))
            }
        }
    }
    Ok(found)
}

/// Reads the metadata servers.
///
/// # Errors
/// See [`CephReadError`].
pub fn mdss(cluster: &Cluster) -> Result<FoundDaemons, CephReadError> {
    read_mdss(&answer(cluster, "fs dump")?)
}

fn read_mdss(json: &[u8]) -> Result<FoundDaemons, CephReadError> {
    #[derive(Deserialize)]
    struct Dump {
        filesystems: Vec<Item<Filesystem>>,
        standbys: Vec<Item<Info>>,
    }
    #[derive(Deserialize)]
    struct Filesystem {
        mdsmap: MdsMap,
    }
    #[derive(Deserialize)]
    struct MdsMap {
        info: BTreeMap<String, Item<Info>>,
    }
    #[derive(Deserialize)]
    struct Info {
        name: String,
        state: String,
        addrs: AddrVec,
    }
    let dump: Dump = understood("fs dump", json)?;
    let mut found = FoundDaemons::default();
    let mut infos = Vec::new();
    for item in dump.filesystems {
        match item {
            Item::Known(filesystem) => infos.extend(filesystem.mdsmap.info.into_values()),
            Item::Other(value) => {
                found.unread.push(format!("a file system is not understood: {}", shown(&value)))
            }
        }
    }
    infos.extend(dump.standbys);
    for item in infos {
        let info = match item {
            Item::Known(info) => info,
            Item::Other(value) => {
                found.unread.push(format!("an mds is not understood: {}", shown(&value)));
                continue;
            }
        };
        let role = match info.state.as_str() {
            "up:standby" => Role::Standby,
            // It follows one rank, and is not free for another.
            "up:standby-replay" => Role::Plain,
            _ => Role::Active,
        };
        let ips = found.place(DaemonKind::Mds, &info.name, &info.addrs);
        found.daemons.push(daemon(DaemonKind::Mds, &info.name, ips, role));
    }
    Ok(found)
}

/// Reads the daemons that registered themselves with the mgr (`rados_service_register`): rgw, rbd-mirror, gateways.
///
/// # Errors
/// See [`CephReadError`].
pub fn services(cluster: &Cluster) -> Result<FoundDaemons, CephReadError> {
    read_services(&answer(cluster, "service dump")?)
}

fn read_services(json: &[u8]) -> Result<FoundDaemons, CephReadError> {
    #[derive(Deserialize)]
    struct Dump {
        services: BTreeMap<String, Item<Service>>,
    }
    #[derive(Deserialize)]
    struct Service {
        daemons: BTreeMap<String, Value>,
    }
    let dump: Dump = understood("service dump", json)?;
    let mut found = FoundDaemons::default();
    for (service, registered) in dump.services {
        let registered = match registered {
            Item::Known(service) => service.daemons,
            Item::Other(value) => {
                found.unread.push(format!("the service {service} is not understood: {}", shown(&value)));
                continue;
            }
        };
        // Among the daemons there is a `summary`, which is a text.
        for (name, registered) in registered.into_iter().filter(|(_, registered)| registered.is_object()) {
            let name = format!("{service}.{name}");
            let addr = registered.get("addr").and_then(Value::as_str).unwrap_or_default();
            match addr.parse::<EntityAddr>() {
                Ok(addr) => found.daemons.push(daemon(DaemonKind::Service, &name, [addr.ip], Role::Plain)),
                // It is there, nobody knows where.
                Err(_) => {
                    found.unread.push(format!("{name} is at '{addr}', which is not understood"));
                    found.daemons.push(daemon(DaemonKind::Service, &name, [], Role::Plain));
                }
            }
        }
    }
    Ok(found)
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

fn answer(cluster: &Cluster, prefix: &str) -> Result<Vec<u8>, CephReadError> {
    read(cluster, &json!({"prefix": prefix, "format": "json"}))
}

fn understood<T: DeserializeOwned>(command: &str, json: &[u8]) -> Result<T, CephReadError> {
    serde_json::from_slice(json).map_err(|error| CephReadError::unreadable(command, &error))
}

fn daemon(kind: DaemonKind, name: &str, ips: impl IntoIterator<Item = IpAddr>, role: Role) -> Daemon {
    let (name, ips) = (name.to_owned(), ips.into_iter().collect());
    Daemon { kind, name, ips, role, clients: Vec::new(), clients_unknown: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `mgr dump` of 16.2.11 and of 16.2.15, shortened.
    fn mgr_dump(place: &str) -> Value {
        let addrvec = json!([{"type": "v2", "addr": "10.77.0.1:0", "nonce": 2_938_475_610_u32}]);
        let mut dump = json!({
            "epoch": 9, "active_gid": 4121, "active_name": "a",
            "active_addrs": {"addrvec": [{"type": "v2", "addr": "10.77.0.1:6800", "nonce": 77}]},
            "available": true, "standbys": [{"gid": 4122, "name": "b"}], "modules": ["restful"],
            "always_on_modules": {"octopus": ["balancer", "crash"], "pacific": ["balancer", "rbd_support"]},
        });
        match place {
            "top" => dump["active_clients"] = json!([{"name": "libcephsqlite", "addrvec": addrvec}]),
            "nested" => dump["always_on_modules"]["active_clients"] = json!([{"addrvec": addrvec}]),
            "empty" => dump["active_clients"] = json!([]),
            "half" => {
                dump["active_clients"] =
                    json!([{"addrvec": addrvec}, {"addrvec": [{"type": "v2", "addr": "?", "nonce": 1}]}]);
            }
            _ => {}
        }
        dump
    }

    fn active(dump: &Value) -> Daemon {
        let found = read_mgrs(dump.to_string().as_bytes(), b"[]").unwrap();
        assert_eq!(found.daemons.len(), 2);
        found.daemons.into_iter().next().unwrap()
    }

    #[test]
    fn inv6_the_clients_of_a_mgr_are_found_where_each_release_has_them_or_are_unknown() {
        for place in ["top", "nested"] {
            let mgr = active(&mgr_dump(place));
            assert_eq!(
                mgr.clients,
                ["10.77.0.1:0/2938475610".parse::<EntityAddr>().unwrap().client().unwrap()],
                "{place}"
            );
            assert!(!mgr.clients_unknown, "{place}");
        }
        for place in ["none", "empty", "half"] {
            assert!(active(&mgr_dump(place)).clients_unknown, "{place}");
        }
    }

    #[test]
    fn a_daemon_that_is_not_understood_is_told_and_costs_no_other() {
        let addrs = |addr: &str| json!({"addrvec": [{"type": "v2", "addr": addr, "nonce": 0}]});
        let mons = json!({"quorum": [0, 1, 2], "mons": [
            {"rank": 0, "name": "a", "public_addrs": addrs("10.77.0.1:3300")},
            {"rank": 1, "name": "b", "public_addrs": 7},
            {"rank": 2, "name": "c", "public_addrs": addrs("nowhere")},
        ]});
        let mons = read_mons(mons.to_string().as_bytes()).unwrap();
        assert_eq!((mons.daemons.len(), mons.quorum), (2, vec!["a".to_owned(), "c".to_owned()]));
        assert_eq!(mons.unread.len(), 3, "{:?}", mons.unread);
        assert!(mons.unread.iter().any(|what| what.contains("rank 1")), "{:?}", mons.unread);

        let fs = json!({"standbys": [{"name": "s", "state": "up:standby", "addrs": addrs("-")}, 5],
            "filesystems": [{"mdsmap": {"info": {"gid_1": {"name": "m", "state": "up:active", "addrs": addrs("10.77.0.2:6800")},
                "gid_2": {"name": "n"}}}}, {}]});
        let found = read_mdss(fs.to_string().as_bytes()).unwrap();
        assert_eq!((found.daemons.len(), found.unread.len()), (2, 3), "{found:?}");

        let services = json!({"services": {"rgw": {"daemons": {"summary": "", "x": {"addr": "10.77.0.3:0/9"}, "y": {"gid": 1}}}, "odd": 3}});
        let found = read_services(services.to_string().as_bytes()).unwrap();
        assert_eq!((found.daemons.len(), found.unread.len()), (2, 2), "{found:?}");
    }
}
