//! The release: a host may use the storage again, its old client instances never.
//!
//! INV-4: before a whole-host entry goes, every client instance of that IP that any monitor or image knows has
//! its own long entry. The order of map epochs does the rest: a PG that knows the removal knows those entries.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::fence::required_entries::WantedEntries;
use crate::fence::sealing::Failure;
use crate::fence::step::{Sent, Step, StepMachine, StepOutcome};
use crate::model::addr::{ClientAddr, Entry};
use crate::model::blocklist::Blocklist;
use crate::model::listed::Listed;
use crate::model::osdmap::OsdMap;
use crate::mutants::{self, Mutant};

/// One release on its way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Release {
    ips: BTreeSet<IpAddr>,
    wanted: WantedEntries,
    map: Option<OsdMap>,
    seen: Option<Blocklist>,
    /// No client appeared when they were read after the last entry was sent.
    clients_settled: bool,
    /// Whole-host entries whose removal was sent.
    removed: BTreeSet<Entry>,
    /// Host entries whose removal was not answered: it may take effect later still.
    in_doubt: BTreeSet<Entry>,
    failure: Option<Failure>,
    outstanding: bool,
}

impl Release {
    /// Begins the release of these IPs; client entries are to stand until then at least.
    pub fn new(ips: BTreeSet<IpAddr>, required_until: Timestamp) -> Self {
        Self {
            wanted: WantedEntries::new(BTreeSet::new(), ips.clone(), required_until),
            ips,
            map: None,
            seen: None,
            clients_settled: false,
            removed: BTreeSet::new(),
            in_doubt: BTreeSet::new(),
            failure: None,
            outstanding: false,
        }
    }

    /// Clients that were seen before, and that perhaps nobody sees any more.
    pub fn remember(mut self, clients: impl IntoIterator<Item = ClientAddr>) -> Self {
        let of_ips = clients.into_iter().filter(|client| self.ips.contains(&client.ip));
        self.wanted.targets.extend(of_ips.map(Entry::Client));
        self
    }

    /// What other fences rest on: it stays, and they release it.
    pub fn keep(&mut self, kept: BTreeSet<Entry>) {
        self.wanted.kept = kept;
    }

    /// A removal was not sent after all: what is to be done is read anew.
    pub fn take_back(&mut self) {
        self.outstanding = false;
    }

    /// Entries that refuse new clients of its IPs still, as last read back: those of other fences, and ranges that others
    /// added.
    pub fn refused_by(&self) -> BTreeSet<Listed> {
        let Some(seen) = &self.seen else { return BTreeSet::new() };
        let addresses = seen.entries.keys().filter(|addr| addr.is_host() && self.ips.contains(&addr.ip));
        let ranges = seen.ranges.keys().filter(|range| self.ips.iter().any(|ip| range.contains(ip)));
        addresses.copied().map(Listed::Address).chain(ranges.copied().map(Listed::Range)).collect()
    }

    fn decide(&mut self) -> Option<Step> {
        let Some(map) = &self.map else {
            return Some(Step::ReadMap);
        };
        let hosts = self.hosts(&map.blocklist);
        if hosts.is_empty() {
            return None;
        }
        let add = self.wanted.to_add(map);
        if !add.is_empty() && !mutants::is(Mutant::ClientsNotKept) {
            return Some(self.changing(Step::Add(add)));
        }
        let replace = self.wanted.to_replace(map);
        if !replace.is_empty() {
            return Some(self.changing(Step::Remove(replace)));
        }
        if let Some(entry) = self.wanted.uncovered(map) {
            self.failure = Some(Failure::Uncovered { entry });
            return None;
        }
        if !self.clients_settled && !mutants::is(Mutant::ClientsNotRead) {
            return Some(Step::ReadClients);
        }
        self.removed.extend(hosts.iter().copied());
        Some(self.changing(Step::Remove(hosts)))
    }

    fn changing(&mut self, step: Step) -> Step {
        self.map = None;
        step
    }

    /// Every whole-host entry of the IPs, in either form, covers of this run included; but none that another fence rests
    /// on.
    fn hosts(&self, blocklist: &Blocklist) -> Vec<Entry> {
        let all = self.ips.iter().flat_map(|ip| blocklist.hosts(*ip)).map(|(entry, _)| entry);
        let rests =
            |entry: &Entry| self.wanted.kept.contains(entry) && !mutants::is(Mutant::OthersEntryRemoved);
        all.filter(|entry| !rests(entry)).collect()
    }

    fn handle_map(&mut self, map: OsdMap) {
        // Clients somebody fenced earlier, or the lock breaker of an image for an hour, stay dead as well.
        let known = self.ips.iter().flat_map(|ip| map.blocklist.clients(*ip)).map(|(client, _)| client);
        self.wanted.targets.extend(known.map(Entry::Client));
        self.seen = Some(map.blocklist.clone());
        self.map = Some(map);
    }

    /// The client instances every source shows now.
    fn handle_clients(&mut self, clients: BTreeSet<ClientAddr>) {
        let of_ips = clients.into_iter().filter(|client| self.ips.contains(&client.ip)).map(Entry::Client);
        let before = self.wanted.targets.len();
        self.wanted.targets.extend(of_ips);
        self.clients_settled = self.wanted.targets.len() == before;
    }

    /// Entries were sent; the map will tell what came of it.
    fn handle_added(&mut self, sent: Vec<(Entry, Sent)>) {
        self.clients_settled = false;
        for (entry, sent) in sent {
            match sent {
                Sent::Acknowledged | Sent::Unknown => {}
                Sent::Refused(status) => self.failure = Some(Failure::Entry { entry, status }),
            }
        }
    }

    /// Removals were sent. One of a host entry that is not answered is read back and sent again; should it arrive
    /// late, it would lift a fence that relies on the same entry by then. One of a short client entry ends the
    /// release, before that entry is added again.
    fn handle_removed(&mut self, sent: Vec<(Entry, Sent)>) {
        for (entry, sent) in sent {
            match sent {
                Sent::Acknowledged => {}
                Sent::Unknown if entry.is_host() => drop(self.in_doubt.insert(entry)),
                Sent::Unknown => self.failure = Some(Failure::InDoubt { entry }),
                Sent::Refused(status) => self.failure = Some(Failure::Entry { entry, status }),
            }
        }
    }

    /// Host entries this run removed.
    pub fn removed(&self) -> &BTreeSet<Entry> {
        &self.removed
    }

    /// Host entries whose removal was not answered: not to be relied on for some minutes.
    pub fn in_doubt(&self) -> &BTreeSet<Entry> {
        &self.in_doubt
    }

    /// Client entries that stay, and until when, as last read back.
    pub fn kept(&self) -> impl Iterator<Item = (Entry, Option<Timestamp>)> {
        self.wanted.targets.iter().map(|entry| (*entry, self.until(*entry)))
    }

    /// Until when an entry stands, as last read back.
    pub fn until(&self, entry: Entry) -> Option<Timestamp> {
        self.seen.as_ref().and_then(|seen| seen.until(entry))
    }

    /// What went wrong for good.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }
}

impl StepMachine for Release {
    fn next_step(&mut self) -> Option<Step> {
        if self.outstanding || self.failure.is_some() {
            return None;
        }
        let step = self.decide();
        self.outstanding = step.is_some();
        step
    }

    fn handle(&mut self, outcome: StepOutcome) {
        self.outstanding = false;
        match outcome {
            StepOutcome::Added(sent) => self.handle_added(sent),
            StepOutcome::Removed(sent) => self.handle_removed(sent),
            StepOutcome::Map(Some(map)) => self.handle_map(Arc::unwrap_or_clone(map)),
            StepOutcome::Clients(Some(clients)) => self.handle_clients(clients),
            // What could not be read is asked for again; the others are answers to a fence.
            StepOutcome::Map(None)
            | StepOutcome::Clients(None)
            | StepOutcome::Unread(_)
            | StepOutcome::FailedOver(..)
            | StepOutcome::Daemons(_)
            | StepOutcome::Proved(_) => {}
        }
    }

    /// No whole-host entry is left, as read back.
    fn is_done(&self) -> bool {
        self.seen.as_ref().is_some_and(|seen| self.hosts(seen).is_empty()) && self.failure.is_none()
    }
}
