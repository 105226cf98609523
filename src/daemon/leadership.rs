//! From a connection to the lead, and what a leader does with the ledger. All of it blocks, within deadlines: it runs
//! on lanes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rbd_guardian_core::guardian::address_book::AddressBook;
use rbd_guardian_core::guardian::io::Recorded;
use rbd_guardian_core::model::addr::{EntityAddr, Entry};
use rbd_guardian_core::model::record::{Change, Leader, Records, RequestRecord};
use rbd_guardian_core::rules::leader_fitness::{
    LeadDecision, OtherGuardians, READY, Readiness, Unfit, course,
};
use rbd_guardian_core::rules::operator_request::{Settled, settle};

use crate::ceph::rados::cluster::Cluster;
use crate::ceph::{lane, look, osdmap};
use crate::clock;
use crate::deadline::Deadline;
use crate::ledger::{
    Bid, Leadership, Lease, LeaseError, Ledger, LedgerConfig, LedgerOpenError, LedgerReadError,
    LedgerWriteError, Snapshot, TrailEntry,
};
use crate::printable::printable;

/// How long one call to the ledger may take.
const CALL: Duration = Duration::from_secs(4);

/// Who bids for the lead.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) guardian: String,
    pub(super) host: String,
    pub(super) ledger: LedgerConfig,
    pub(super) lease: Duration,
    /// Why another one would lead better.
    pub(super) unfit: Option<Unfit>,
    /// Whether it could lead better than one that is not fit.
    pub(super) readiness: Option<Readiness>,
    /// Opened before, over the same connection.
    pub(super) opened: Option<Ledger>,
    /// If another one leads, also what a glance leaves out.
    pub(super) reads_all: bool,
}

/// How a bid ended that did not fail.
#[derive(Debug)]
pub(super) enum BidOutcome {
    /// With all records, as they were read.
    Leads(Box<HeldLead>, Box<Records>),
    Waits(Box<Standby>),
}

/// What a guardian knows that waits.
#[derive(Debug)]
pub(super) struct Standby {
    pub(super) ledger: Ledger,
    pub(super) own: Vec<EntityAddr>,
    /// The leader that the ledger names; `None` while the first one begins.
    pub(super) leader: Option<Leader>,
    pub(super) book: AddressBook,
    /// As they were read; fences may be left out.
    pub(super) records: Records,
    pub(super) has_fences: bool,
    /// Another one is to lead, for this reason.
    pub(super) yields: Option<(Unfit, String)>,
}

/// The lead, while it lasts.
#[derive(Debug, Clone)]
pub(super) struct HeldLead {
    ledger: Ledger,
    lease: Lease,
    leadership: Leadership,
    /// The ledger as it was read or written last. One call has it at a time, for as long as its OSD takes to answer: the
    /// loop never asks for it.
    held: Arc<Mutex<Snapshot>>,
    /// The guardian's own addresses.
    pub(super) own: Vec<EntityAddr>,
    /// Until when the lease lasts at least, by the boot clock: counted from before it was asked for.
    pub(super) until: Duration,
}

/// Why a guardian does not lead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BidError {
    #[error(transparent)]
    Unopened(#[from] LedgerOpenError),
    #[error(transparent)]
    Unread(#[from] LedgerReadError),
    #[error(transparent)]
    NotLeased(LeaseError),
    #[error(transparent)]
    NotWritten(#[from] LedgerWriteError),
    #[error("the guardian's own address is not known ({0}): without it nothing may be fenced")]
    Nameless(String),
    /// Its host is the fenced one. Every new connection would be one more client to be refused.
    #[error(
        "this guardian runs on a fenced host ({entry}): Ceph refuses it, and it goes on once the host is released"
    )]
    Fenced { entry: Entry },
    #[error("no answer to the bid for the lead")]
    Dropped,
}

impl BidError {
    /// Could it be otherwise over another connection?
    pub(super) fn may_be_the_connection(&self) -> bool {
        match self {
            Self::Unopened(
                LedgerOpenError::NoPool { .. }
                | LedgerOpenError::ErasureCoded { .. }
                | LedgerOpenError::OneCopy { .. },
            )
            | Self::NotWritten(LedgerWriteError::NewerLedger { .. } | LedgerWriteError::Damaged { .. })
            | Self::Fenced { .. } => false,
            Self::Unopened(
                LedgerOpenError::Unread(_) | LedgerOpenError::Late(_) | LedgerOpenError::Unusable { .. },
            )
            | Self::Unread(_)
            | Self::NotLeased(_)
            | Self::NotWritten(
                LedgerWriteError::Deposed { .. }
                | LedgerWriteError::Conflict { .. }
                | LedgerWriteError::Denied { .. }
                | LedgerWriteError::Refused { .. }
                | LedgerWriteError::Unknown,
            )
            | Self::Nameless(_)
            | Self::Dropped => true,
        }
    }
}

impl BidError {
    /// Is it so until somebody does something to this guardian?
    pub(super) fn lasts(&self) -> bool {
        !self.may_be_the_connection() && !matches!(self, Self::Fenced { .. })
    }
}

impl Standby {
    /// For whom, and why.
    pub(super) fn words(&self) -> String {
        match (&self.yields, &self.leader) {
            (Some((why, to)), _) => format!("yields to {to}: {why}"),
            (None, Some(by)) => {
                format!("{} on {} leads (epoch {}, since {})", by.guardian, by.host, by.epoch, by.since)
            }
            (None, None) => "another guardian leads".to_owned(),
        }
    }
}

impl Candidate {
    /// Bids: the lease first, so that guardians do not depose each other in turns, then the leader record, which is
    /// what counts. One that is not fit does not bid while another one is ready.
    pub(super) fn bid(&self, cluster: &Cluster) -> Result<BidOutcome, BidError> {
        let failed = |error: BidError| {
            if error.may_be_the_connection() { fenced(cluster).unwrap_or(error) } else { error }
        };
        self.try_to(cluster).map_err(failed)
    }

    fn try_to(&self, cluster: &Cluster) -> Result<BidOutcome, BidError> {
        let own = look::own(cluster).map_err(|error| BidError::Nameless(error.to_string()))?;
        let ledger = match &self.opened {
            Some(ledger) => ledger.clone(),
            None => Ledger::open(cluster, &self.ledger, &call())?,
        };
        if let LeadDecision::Yield { why, to } = self.course(&ledger)? {
            return self.wait(ledger, own, Some((why, to)));
        }
        let began = clock::boot();
        let lease = match ledger.lease(&self.guardian, self.lease, &call()) {
            Ok(lease) => lease,
            Err(LeaseError::Held) => return self.wait(ledger, own, None),
            Err(error) => return Err(BidError::NotLeased(error)),
        };
        match self.lead(&ledger, &own) {
            Ok((leadership, held)) => {
                let until = began + self.lease;
                let records = Box::new(held.records().clone());
                let held = Arc::new(Mutex::new(held));
                let held_lead = HeldLead { ledger, lease, leadership, held, own, until };
                Ok(BidOutcome::Leads(Box::new(held_lead), records))
            }
            Err(error) => {
                // Otherwise other guardians would wait for a lease that is not used.
                let _ = ledger.give_up(lease, &call());
                Err(error)
            }
        }
    }

    /// A guardian that is fit does not ask.
    fn course(&self, ledger: &Ledger) -> Result<LeadDecision, BidError> {
        if self.unfit.is_none() {
            return Ok(LeadDecision::Lead);
        }
        Ok(course(self.unfit.clone(), beside(ledger, &self.guardian)?))
    }

    fn lead(&self, ledger: &Ledger, own: &[EntityAddr]) -> Result<(Leadership, Snapshot), BidError> {
        let addresses = own.iter().filter_map(|address| address.client()).collect();
        let mut held = ledger.read(&call())?;
        let bid =
            Bid { guardian: self.guardian.clone(), host: self.host.clone(), addresses, at: clock::wall() };
        let why = held.records().leader.as_ref().map_or_else(
            || "there was no leader before".to_owned(),
            |before| format!("{} on {} held no lease", before.guardian, before.host),
        );
        let leadership = ledger.lead(&mut held, &bid, &why, &call())?;
        Ok((leadership, held))
    }

    fn wait(
        &self,
        ledger: Ledger,
        own: Vec<EntityAddr>,
        yields: Option<(Unfit, String)>,
    ) -> Result<BidOutcome, BidError> {
        let known = if self.reads_all { ledger.read(&call())? } else { ledger.glance(&call())? };
        // A leader must not yield to a guardian that cannot write the ledger.
        if let Some(readiness) = self.readiness.filter(|_| known.newer().is_none()) {
            // Another one says so already, or it is said again in a second.
            let _ = ledger.ready(readiness, &self.guardian, READY, &call());
        }
        let records = known.records().clone();
        let (leader, book) = (records.leader.clone(), AddressBook::of_records(records.members.clone()));
        let has_fences = self.reads_all;
        Ok(BidOutcome::Waits(Box::new(Standby { ledger, own, leader, book, records, has_fences, yields })))
    }
}

/// Is this guardian's own host refused as a whole? The monitors answer a client that the OSDs refuse.
fn fenced(cluster: &Cluster) -> Option<BidError> {
    let own = look::own(cluster).ok()?;
    let asked = cluster.clone();
    let map = lane::one(move || osdmap::dump(&asked), &call()).ok()?.ok()?.map;
    let (entry, _) = own.iter().find_map(|own| map.blocklist.hosts(own.ip).next())?;
    Some(BidError::Fenced { entry })
}

/// Other guardians that wait.
fn beside(ledger: &Ledger, own: &str) -> Result<OtherGuardians, LedgerReadError> {
    let who = |readiness| {
        let locker = ledger.who_is(readiness, READY, &call())?;
        Ok(locker.map(|locker| locker.cookie).filter(|name| name != own))
    };
    Ok(OtherGuardians { ready: who(Readiness::Ready)?, hears: who(Readiness::Hears)? })
}

/// IPs alone.
pub(super) fn ips(addresses: &[EntityAddr]) -> Vec<IpAddr> {
    let ips: BTreeSet<IpAddr> = addresses.iter().map(|address| address.ip).collect();
    ips.into_iter().collect()
}

/// People read it.
fn trail_entry(what: &str, why: &str) -> TrailEntry {
    let [what, why] = [what, why].map(|text| printable(text).into_owned());
    TrailEntry { at: clock::wall(), what, why }
}

fn call() -> Deadline {
    Deadline::after(CALL, Arc::default())
}

impl HeldLead {
    /// The record of it.
    pub(super) fn leader(&self) -> &Leader {
        self.leadership.leader()
    }

    /// For the next bid, over the same connection.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What could be better about the ledger's pool.
    pub(super) fn notes(&self) -> &[String] {
        self.ledger.notes()
    }

    /// Renews the lease; until when it lasts then.
    pub(super) fn renew(&self, duration: Duration) -> Result<Duration, LeaseError> {
        let began = clock::boot();
        self.ledger.renew(&self.lease, &call())?;
        Ok(began + duration)
    }

    /// The requests that the ledger has now, and what it says of each, as another leader may have taken it.
    pub(super) fn requests(&self) -> Result<Vec<(RequestRecord, Settled)>, LedgerReadError> {
        let mut held = self.held();
        self.ledger.requests(&mut held, &call())?;
        let Records { requests, fences, .. } = held.records();
        Ok(requests.values().map(|record| (record.clone(), settle(&record.request, fences))).collect())
    }

    /// Other guardians that wait and could lead.
    pub(super) fn beside(&self) -> Result<OtherGuardians, LedgerReadError> {
        beside(&self.ledger, &self.leader().guardian)
    }

    /// Lets others bid at once.
    pub(super) fn give_up(self) -> Result<(), LeaseError> {
        self.ledger.give_up(self.lease, &call())
    }

    /// Writes records and the reason. A write that was not answered is read back: as long as its place in the trail is
    /// free it was not done, and once anything else was written there it cannot be done any more.
    pub(super) fn record(&self, changes: &[Change], what: String, why: String) -> Recorded {
        let entry = trail_entry(&what, &why);
        let mut held = self.held();
        let error = match self.ledger.write(&self.leadership, &mut held, changes, &entry, &call()) {
            Ok(()) => return Recorded::Written,
            Err(error) => error,
        };
        match error {
            LedgerWriteError::Deposed { .. } => Recorded::Deposed(error.to_string()),
            LedgerWriteError::Conflict { .. } => {
                Recorded::Not { why: error.to_string(), holds: Some(Box::new(held.records().clone())) }
            }
            LedgerWriteError::Unknown => self.read_back(&mut held, changes, &error),
            LedgerWriteError::NewerLedger { .. }
            | LedgerWriteError::Damaged { .. }
            | LedgerWriteError::Denied { .. }
            | LedgerWriteError::Refused { .. } => Recorded::Not { why: error.to_string(), holds: None },
        }
    }

    fn read_back(&self, held: &mut Snapshot, changes: &[Change], error: &LedgerWriteError) -> Recorded {
        match self.ledger.read(&call()) {
            Ok(fresh) => *held = fresh,
            Err(unread) => return Recorded::Not { why: format!("{error}; {unread}"), holds: None },
        }
        let there = held.records();
        if there.leader.as_ref() != Some(self.leader()) {
            return Recorded::Deposed("another guardian leads now".to_owned());
        }
        let mut with = there.clone();
        changes.iter().for_each(|change| with.apply(change.clone()));
        if with == *there {
            return Recorded::Written;
        }
        Recorded::Not { why: error.to_string(), holds: Some(Box::new(there.clone())) }
    }

    /// A call that panicked left it as it was before.
    fn held(&self) -> MutexGuard<'_, Snapshot> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_writes_makes_no_entry_of_its_own_in_the_trail() {
        let TrailEntry { what, why, .. } =
            trail_entry("request R-1: fence n1\u{1b}[1A", "power is off\nreleased");
        assert_eq!(
            (what.as_str(), why.as_str()),
            (r"request R-1: fence n1\u{1b}[1A", r"power is off\u{a}released")
        );
    }
}
