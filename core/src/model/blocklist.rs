//! The blocklist as one osdmap epoch holds it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::addr::{ClientAddr, EntityAddr, Entry};

/// Entries and ranges with the time at which the monitors will drop each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocklist {
    /// `blocklist` of `osd dump`.
    pub entries: BTreeMap<EntityAddr, Timestamp>,
    /// `range_blocklist` of `osd dump`.
    pub ranges: BTreeMap<IpNet, Timestamp>,
}

impl Blocklist {
    /// Until when this very entry stands; `None` if it is not there.
    pub fn until(&self, entry: Entry) -> Option<Timestamp> {
        match entry {
            Entry::Host(ip) => self.entries.get(&EntityAddr { ip, port: 0, nonce: 0 }),
            Entry::HostRange(ip) => self.ranges.get(&IpNet::from(ip)),
            Entry::Client(client) => self.entries.get(&client.into()),
        }
        .copied()
    }

    /// Is a client instance refused by any entry? Presence is what counts: OSDs never look at the time
    /// (`OSDMap::is_blocklisted`, docs/facts/ceph.md#blocklist-entries).
    pub fn refuses(&self, client: ClientAddr) -> bool {
        self.until(Entry::Client(client)).is_some()
            || self.until(Entry::Host(client.ip)).is_some()
            || self.ranges.keys().any(|range| range.contains(&client.ip))
    }

    /// The whole-host entries that stand for an IP, in either form.
    pub fn hosts(&self, ip: IpAddr) -> impl Iterator<Item = (Entry, Timestamp)> {
        [Entry::Host(ip), Entry::HostRange(ip)].into_iter().filter_map(|e| Some((e, self.until(e)?)))
    }

    /// The client entries that stand for an IP.
    pub fn clients(&self, ip: IpAddr) -> impl Iterator<Item = (ClientAddr, Timestamp)> {
        let all = self.entries.iter().filter(move |(addr, _)| addr.ip == ip);
        all.filter_map(|(addr, until)| Some((addr.client()?, *until)))
    }
}
