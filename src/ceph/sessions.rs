//! Sessions of clients with monitors.
//!
//! Every librados and krbd client holds one, with one monitor, so all are asked. A monitor forgets a session
//! about five minutes after it fell silent (`mon_session_timeout`, facts/ceph.md §7).

use serde::Deserialize;
use serde_json::json;

use super::cluster::Cluster;
use super::command::{ReadError, read_from};
use super::lane;
use super::osdmap::AddrVec;
use crate::deadline::Deadline;
use crate::domain::addr::ClientAddr;

/// One client's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Who the client instance is to the OSDs.
    pub client: ClientAddr,
    /// The key it uses: `client.admin`.
    pub entity: String,
}

/// Asks each of these monitors, at the same time.
pub fn sessions(
    cluster: &Cluster,
    mons: &[String],
    deadline: &Deadline,
) -> Vec<(String, Result<Vec<Session>, ReadError>)> {
    let calls = mons.iter().map(|mon| {
        let (cluster, mon) = (cluster.clone(), mon.clone());
        move || of_mon(&cluster, &mon)
    });
    let answers = lane::each(calls.collect(), mons.len());
    let silent = || Err(ReadError::NoAnswer { command: "sessions".to_owned() });
    let mut all: Vec<_> = mons.iter().map(|mon| (mon.clone(), silent())).collect();
    while let Ok(Some((index, answer))) = deadline.receive(&answers) {
        all[index].1 = answer;
    }
    all
}

fn of_mon(cluster: &Cluster, mon: &str) -> Result<Vec<Session>, ReadError> {
    #[derive(Deserialize)]
    struct Raw {
        entity_name: String,
        addrs: AddrVec,
    }
    let json = read_from(cluster, mon, &json!({"prefix": "sessions", "format": "json"}))?;
    let raw: Vec<Raw> = serde_json::from_slice(&json).map_err(|e| ReadError::unreadable("sessions", &e))?;
    let clients = raw.iter().filter(|session| session.entity_name.starts_with("client."));
    let sessions = clients.flat_map(|session| {
        let clients = session.addrs.addresses().filter_map(|addr| addr.client());
        clients.map(|client| Session { client, entity: session.entity_name.clone() })
    });
    Ok(sessions.collect())
}
