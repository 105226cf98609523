//! Writing the ledger: one operation, conditional on everything it was decided on.

use std::collections::BTreeSet;
use std::sync::mpsc::channel;

use jiff::Timestamp;
use nix::errno::Errno;
use rbd_guardian_core::model::addr::ClientAddr;
use rbd_guardian_core::model::record::{Audit, Change, Key, Leader, Record, RequestRecord};

use super::codec::OBJECT;
use super::codec::{LEADER, META, Meta, TRAIL, Trail, audit_key, encode, encode_record};
use super::error::LedgerWriteError;
use super::snapshot::Snapshot;
use super::store::Ledger;
use crate::ceph::rados::errno::{BLOCKLISTED, ErrnoMeaning, meaning};
use crate::ceph::rados::omap::OmapWrite;
use crate::deadline::Deadline;
use rbd_guardian_core::model::epoch::LeaderEpoch;

/// Who wants to lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bid {
    /// The guardian's name.
    pub guardian: String,
    /// The host it runs on.
    pub host: String,
    pub addresses: BTreeSet<ClientAddr>,
    /// Now, by its clock.
    pub at: Timestamp,
}

/// What is done and why, for the trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrailEntry {
    /// Now, by the writer's clock.
    pub at: Timestamp,
    /// What is done.
    pub what: String,
    pub why: String,
}

/// The right to write: the leader record as this guardian wrote it. A ledger whose leader record is another one
/// refuses every write made with this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    leader: Leader,
    raw: Vec<u8>,
}

impl Leadership {
    pub fn leader(&self) -> &Leader {
        &self.leader
    }
}

impl Ledger {
    /// Takes the leadership: the leader record with the next epoch, if it is still the one read. The first leader makes
    /// the ledger. On success, and on a conflict, `snapshot` is what is there now.
    ///
    /// # Errors
    /// See [`LedgerWriteError`].
    pub fn lead(
        &self,
        snapshot: &mut Snapshot,
        bid: &Bid,
        why: &str,
        deadline: &Deadline,
    ) -> Result<Leadership, LedgerWriteError> {
        let before = snapshot.records().leader.as_ref();
        let leader = Leader {
            epoch: before.map_or(LeaderEpoch::default(), |leader| leader.epoch).next(),
            guardian: bid.guardian.clone(),
            host: bid.host.clone(),
            addresses: bid.addresses.clone(),
            since: bid.at,
        };
        let what = format!("leads with epoch {}", leader.epoch);
        let raw = encoded(encode(&leader))?;
        let mut write = OmapWrite { create: true, ..OmapWrite::default() };
        write.unchanged.insert(LEADER.to_owned(), snapshot.raw(LEADER).to_vec());
        write.set.insert(LEADER.to_owned(), raw.clone());
        if snapshot.raw(META).is_empty() {
            write.set.insert(META.to_owned(), encoded(encode(&Meta {}))?);
        }
        let leadership = Leadership { leader, raw };
        let entry = TrailEntry { at: bid.at, what, why: why.to_owned() };
        self.record(&mut write, snapshot, &leadership.leader, &entry)?;
        self.commit(write, snapshot, None, deadline)?;
        Ok(leadership)
    }

    /// Makes these changes and records the entry, all or nothing, if this guardian still leads and nothing that it read
    /// of them has changed. On success, and on a conflict, `snapshot` is what is there now.
    ///
    /// # Errors
    /// See [`LedgerWriteError`].
    pub fn write(
        &self,
        leadership: &Leadership,
        snapshot: &mut Snapshot,
        changes: &[Change],
        entry: &TrailEntry,
        deadline: &Deadline,
    ) -> Result<(), LedgerWriteError> {
        let mut write = OmapWrite::default();
        write.unchanged.insert(LEADER.to_owned(), leadership.raw.clone());
        for change in changes {
            let key = change.key().to_string();
            write.unchanged.insert(key.clone(), snapshot.raw(&key).to_vec());
            match change {
                Change::Put(record) => {
                    write.remove.remove(&key);
                    write.set.insert(key, encoded(encode_record(record))?);
                }
                Change::Remove(_) => {
                    write.set.remove(&key);
                    write.remove.insert(key);
                }
            }
        }
        self.record(&mut write, snapshot, &leadership.leader, entry)?;
        self.commit(write, snapshot, Some(leadership), deadline)
    }

    /// Leaves a request for the leader. It leads nobody, so it changes nothing else; the leader records what it does.
    ///
    /// # Errors
    /// See [`LedgerWriteError`]; a request of that ID is a conflict.
    pub fn ask(
        &self,
        snapshot: &mut Snapshot,
        request: RequestRecord,
        deadline: &Deadline,
    ) -> Result<(), LedgerWriteError> {
        let record = Record::Request(request);
        let key = record.key().to_string();
        let mut write = OmapWrite::default();
        write.unchanged.insert(key.clone(), Vec::new());
        write.set.insert(key, encoded(encode_record(&record))?);
        self.commit(write, snapshot, None, deadline)
    }

    /// Removes a request, if it is still as it was read: its answer was read, or nobody took it and nobody waits for it.
    ///
    /// # Errors
    /// See [`LedgerWriteError`]; one that was taken or answered meanwhile is a conflict.
    pub fn withdraw(
        &self,
        snapshot: &mut Snapshot,
        id: &str,
        deadline: &Deadline,
    ) -> Result<(), LedgerWriteError> {
        let key = Key::Request(id.to_owned()).to_string();
        let mut write = OmapWrite::default();
        write.unchanged.insert(key.clone(), snapshot.raw(&key).to_vec());
        write.remove.insert(key);
        self.commit(write, snapshot, None, deadline)
    }

    /// Whether the key may write: tries a write that a comparison stops, of an object that does not exist.
    ///
    /// # Errors
    /// See [`LedgerWriteError`].
    pub fn may_write(&self, deadline: &Deadline) -> Result<(), LedgerWriteError> {
        const NOBODY: &str = "ledger.doctor.nobody";
        let mut probe = OmapWrite::default();
        probe.unchanged.insert(META.to_owned(), b"never".to_vec());
        // Without a change it would be a read, to the OSD's eyes and caps.
        probe.set.insert(META.to_owned(), Vec::new());
        match self.perform(NOBODY, &probe, deadline) {
            Ok(()) | Err(OmapWriteError::Compared) => Ok(()),
            Err(OmapWriteError::Otherwise(why)) => Err(why),
        }
    }

    /// Adds the entry to the trail, and removes what is beyond the bound.
    fn record(
        &self,
        write: &mut OmapWrite,
        snapshot: &Snapshot,
        leader: &Leader,
        entry: &TrailEntry,
    ) -> Result<(), LedgerWriteError> {
        let Trail { first, next } = snapshot.trail();
        let audit = Audit {
            seq: next,
            at: entry.at,
            who: leader.guardian.clone(),
            host: leader.host.clone(),
            what: entry.what.clone(),
            why: entry.why.clone(),
        };
        let kept = (next + 1).saturating_sub(self.config.audit_entries).max(first);
        write.set.insert(audit_key(next), encoded(encode(&audit))?);
        write.remove.extend((first..kept).map(audit_key));
        write.unchanged.insert(TRAIL.to_owned(), snapshot.raw(TRAIL).to_vec());
        write.set.insert(TRAIL.to_owned(), encoded(encode(&Trail { first: kept, next: next + 1 }))?);
        Ok(())
    }

    fn commit(
        &self,
        mut write: OmapWrite,
        snapshot: &mut Snapshot,
        leadership: Option<&Leadership>,
        deadline: &Deadline,
    ) -> Result<(), LedgerWriteError> {
        // So a newer guardian need only raise the form, and no older one writes any more, whatever it had read.
        write.unchanged.insert(META.to_owned(), snapshot.raw(META).to_vec());
        snapshot.writable(write.unchanged.keys())?;
        match self.perform(OBJECT, &write, deadline) {
            Ok(()) => {
                snapshot.apply(write);
                Ok(())
            }
            Err(OmapWriteError::Compared) => Err(self.explain(&write, snapshot, leadership, deadline)),
            Err(OmapWriteError::Otherwise(why)) => Err(why),
        }
    }

    fn perform(&self, object: &str, write: &OmapWrite, deadline: &Deadline) -> Result<(), OmapWriteError> {
        let (to, results) = channel();
        let sent = self.io.omap_write(object, write, 0, &to);
        drop(to);
        let result = match sent.map(|()| deadline.receive(&results)) {
            Ok(Ok(Some(done))) => done.result,
            Ok(Ok(None) | Err(_)) => return Err(OmapWriteError::Otherwise(LedgerWriteError::Unknown)),
            Err(errno) => Err(errno),
        };
        result.map_err(|errno| {
            if [Errno::ECANCELED, Errno::ENOENT].contains(&errno) {
                return OmapWriteError::Compared;
            }
            OmapWriteError::Otherwise(match meaning(errno) {
                ErrnoMeaning::Silence => LedgerWriteError::Unknown,
                ErrnoMeaning::Denied => LedgerWriteError::Denied { pool: self.config.pool.clone() },
                ErrnoMeaning::Blocklisted => LedgerWriteError::Refused { why: BLOCKLISTED.to_owned() },
                ErrnoMeaning::Rejected | ErrnoMeaning::MadeUp | ErrnoMeaning::Other => {
                    LedgerWriteError::Refused { why: errno.to_string() }
                }
            })
        })
    }

    /// A comparison failed: surely nothing was written. What there is now tells which.
    fn explain(
        &self,
        write: &OmapWrite,
        snapshot: &mut Snapshot,
        leadership: Option<&Leadership>,
        deadline: &Deadline,
    ) -> LedgerWriteError {
        // Unread, the caller knows as much as after a conflict: read, and decide again.
        let Ok(fresh) = self.read(deadline) else {
            return LedgerWriteError::Conflict { key: OBJECT.to_owned() };
        };
        *snapshot = fresh;
        if leadership.is_some_and(|leadership| snapshot.raw(LEADER) != leadership.raw) {
            return LedgerWriteError::Deposed { by: snapshot.records().leader.clone() };
        }
        if let Err(newer) = snapshot.writable([]) {
            return newer;
        }
        let changed = write.unchanged.iter().find(|(key, value)| snapshot.raw(key) != value.as_slice());
        LedgerWriteError::Conflict { key: changed.map_or(OBJECT, |(key, _)| key).to_owned() }
    }
}

/// How one operation failed.
enum OmapWriteError {
    /// Something is not what it was compared with, or there is no such object: surely nothing was written.
    Compared,
    Otherwise(LedgerWriteError),
}

/// Every type of a record has a JSON form, so this does not fail in practice.
fn encoded(bytes: Result<Vec<u8>, String>) -> Result<Vec<u8>, LedgerWriteError> {
    bytes.map_err(|why| LedgerWriteError::Refused { why })
}
