//! Sessions of clients with monitors.
//!
//! Every librados and krbd client holds one, with one monitor, so all are asked. A monitor forgets a session
//! about five minutes after it fell silent (`mon_session_timeout`, docs/facts/ceph.md#sessions).

use std::sync::mpsc::Receiver;

use rbd_guardian_core::model::addr::{ClientAddr, EntityAddr};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::apart::Apart;
use super::command::{CephReadError, read_from};
use super::item::{Item, shown};
use super::lane;
use super::osdmap::AddrVec;
use crate::ceph::rados::cluster::Cluster;
use crate::deadline::Deadline;

/// What a monitor is asked.
pub(super) const COMMAND: &str = "sessions";

/// One client's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Who the client instance is to the OSDs.
    pub client: ClientAddr,
    /// The key it uses: `client.admin`.
    pub entity: String,
}

/// The sessions of one monitor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sessions {
    /// Sessions of clients.
    pub known: Vec<Session>,
    /// Sessions that were not understood, each in words: a client's may be among them.
    pub unknown: Vec<String>,
}

/// What one monitor answered.
pub type Answer = Result<Sessions, CephReadError>;

/// A question to monitors, under way.
#[derive(Debug)]
pub struct Asked {
    mons: Vec<String>,
    answers: Receiver<(usize, Answer)>,
    _apart: Option<Apart>,
}

impl Asked {
    /// What each monitor answers until then.
    pub fn answers(self, deadline: &Deadline) -> Vec<(String, Answer)> {
        let silent = || Err(CephReadError::NoAnswer { command: COMMAND.to_owned() });
        let mut all: Vec<_> = self.mons.iter().map(|mon| (mon.clone(), silent())).collect();
        let awaited = std::iter::from_fn(|| deadline.receive(&self.answers).ok().flatten());
        // What came while something else took all the time counts as well.
        for (index, answer) in awaited.chain(self.answers.try_iter()) {
            if let Some(of_mon) = all.get_mut(index) {
                of_mon.1 = answer;
            }
        }
        all
    }
}

/// Asks each of these monitors, at the same time.
pub fn ask(cluster: &Cluster, mons: &[String]) -> Asked {
    let mons = mons.to_vec();
    let options = cluster.options();
    let apart = options.asks_with.as_ref().and_then(|program| Apart::start(program, options, &mons).ok());
    // No descriptor or process is left for another: a fence or release is worth the memory that is lost.
    let (answers, apart) = match apart {
        Some((answers, apart)) => (answers, Some(apart)),
        None => (ask_here(cluster, &mons), None),
    };
    Asked { mons, answers, _apart: apart }
}

/// Asks over this connection.
pub fn ask_here(cluster: &Cluster, mons: &[String]) -> Receiver<(usize, Answer)> {
    let calls = mons.iter().map(|mon| {
        let (cluster, mon) = (cluster.clone(), mon.clone());
        move || of_mon(&cluster, &mon)
    });
    lane::each(calls.collect(), mons.len())
}

fn of_mon(cluster: &Cluster, mon: &str) -> Result<Sessions, CephReadError> {
    parse(&read_from(cluster, mon, &json!({"prefix": COMMAND, "format": "json"}))?)
}

fn parse(json: &[u8]) -> Result<Sessions, CephReadError> {
    #[derive(Deserialize)]
    struct RawSession {
        entity_name: String,
        addrs: AddrVec,
    }
    let raw: Vec<Item<RawSession>> =
        serde_json::from_slice(json).map_err(|e| CephReadError::unreadable(COMMAND, &e))?;
    let mut sessions = Sessions::default();
    for item in raw {
        match item {
            // A session that is being made has neither a name nor an address yet.
            Item::Known(session) if session.entity_name.starts_with("client.") => {
                let strange = session.addrs.strange();
                sessions.unknown.extend(strange.map(|addr| format!("{} at '{addr}'", session.entity_name)));
                let clients = session.addrs.addresses().filter_map(EntityAddr::client);
                let entity = &session.entity_name;
                sessions.known.extend(clients.map(|client| Session { client, entity: entity.clone() }));
            }
            Item::Known(_) => {}
            Item::Other(value) => sessions.unknown.push(shown(&value)),
        }
    }
    Ok(sessions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_is_not_understood_costs_no_other() {
        let session = |name: &str, addr: &str| {
            json!({"name": name, "entity_name": name, "open": true, "con_type": "client",
                "addrs": {"addrvec": [{"type": "any", "addr": addr, "nonce": 7}]}})
        };
        let all = json!([
            session("client.admin", "10.77.0.5:0"),
            session("mon.a", "10.77.0.1:3300"),
            session("client.lost", "-"),
            session("client.odd", "10.77:0"),
            {"entity_name": "client.x"},
            4,
        ]);
        let sessions = parse(all.to_string().as_bytes()).unwrap();
        let known: Vec<String> =
            sessions.known.iter().map(|one| format!("{} {}", one.entity, one.client)).collect();
        assert_eq!(known, ["client.admin 10.77.0.5:0/7"]);
        assert_eq!(sessions.unknown.len(), 3, "{:?}", sessions.unknown);
        assert!(parse(b"{}").is_err(), "of another shape as a whole");
    }
}
