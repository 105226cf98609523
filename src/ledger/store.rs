//! Opening the ledger, and reading it.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use rbd_guardian_core::model::record::Audit;
use rbd_guardian_core::rules::silence::Silence;

use super::codec::{
    AFTER_AUDIT, AFTER_FENCES, AUDIT, BEFORE_REQUESTS, LONGEST, NAMESPACE, OBJECT, REQUEST, audit_key, decode,
};
use super::error::{LedgerOpenError, LedgerReadError};
use super::snapshot::Snapshot;
use crate::ceph::rados::cluster::Cluster;
use crate::ceph::rados::completion::OmapPage;
use crate::ceph::rados::errno::{ErrnoMeaning, meaning};
use crate::ceph::rados::ioctx::IoCtx;
use crate::ceph::rados::pages::{FEW, OmapPages, PageError};
use crate::ceph::{lane, pools};
use crate::deadline::{Deadline, DeadlineError};

/// The pool that `deploy/ceph/create-key` makes.
pub const DEFAULT_POOL: &str = "rbd-guardian";
/// How many entries the audit trail keeps, if nothing else is configured.
pub const AUDIT_ENTRIES: u64 = 1000;

/// The `[ledger]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerConfig {
    /// The pool; replicated.
    pub pool: String,
    /// How many entries the audit trail keeps; the oldest go.
    pub audit_entries: u64,
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self { pool: DEFAULT_POOL.to_owned(), audit_entries: AUDIT_ENTRIES }
    }
}

/// An open ledger. Its calls block; see the module.
#[derive(Debug, Clone)]
pub struct Ledger {
    pub(super) io: Arc<IoCtx>,
    pub(super) config: LedgerConfig,
    notes: Vec<String>,
    /// What was seen of the locks of others, by their names.
    pub(super) silences: Arc<Mutex<BTreeMap<&'static str, Silence>>>,
}

/// The most that is kept of the records, in bytes.
const MOST: usize = 64 << 20;

impl Ledger {
    /// Finds the pool and judges it. Creates nothing: that is the first leader's.
    ///
    /// # Errors
    /// See [`LedgerOpenError`].
    pub fn open(
        cluster: &Cluster,
        config: &LedgerConfig,
        deadline: &Deadline,
    ) -> Result<Self, LedgerOpenError> {
        let pool = config.pool.clone();
        let asked = (cluster.clone(), pool.clone());
        let found = lane::one(move || pools::keeping(&asked.0, &asked.1), deadline)??;
        let Some(keeping) = found else { return Err(LedgerOpenError::NoPool { pool }) };
        if !keeping.replicated {
            return Err(LedgerOpenError::ErasureCoded { pool });
        }
        if keeping.size < 2 {
            return Err(LedgerOpenError::OneCopy { pool, size: keeping.size });
        }
        let mut notes = Vec::new();
        if keeping.size < 3 {
            notes.push(format!(
                "pool '{pool}' keeps {} copies: 3 survive one loss while another is being repaired (`ceph osd pool \
                 set {pool} size 3`)",
                keeping.size
            ));
        }
        if keeping.min_size < 2 {
            notes.push(format!(
                "pool '{pool}' takes writes with one copy left, which the next failure loses (`ceph osd pool set \
                 {pool} min_size 2`)"
            ));
        }
        if keeping.applications != ["rbd-guardian"] {
            notes.push(format!(
                "pool '{pool}' is not marked as the ledger's alone, so it is guarded as if it held images (`ceph osd \
                 pool application enable {pool} rbd-guardian`)"
            ));
        }
        let io = open_pool(cluster, keeping.id).map_err(|errno| LedgerOpenError::Unusable { pool, errno })?;
        Ok(Self { io: Arc::new(io), config: config.clone(), notes, silences: Arc::default() })
    }

    /// What about the pool could be better.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Reads all records, as they were at one moment; nothing if there is no ledger yet.
    ///
    /// # Errors
    /// See [`LedgerReadError`].
    pub fn read(&self, deadline: &Deadline) -> Result<Snapshot, LedgerReadError> {
        self.read_after(AFTER_AUDIT, deadline)
    }

    fn read_after(&self, key: &CStr, deadline: &Deadline) -> Result<Snapshot, LedgerReadError> {
        let mut size = FEW;
        'moment: loop {
            let mut snapshot = Snapshot::default();
            let mut last: Option<OmapPage> = None;
            let mut pages = self.pages((key, ""), size, deadline);
            while let Some(page) = pages.next() {
                let page = page.map_err(|error| self.unread(error))?;
                size = pages.size();
                // Pages of two moments make no snapshot.
                if last.as_ref().is_some_and(|last| last.version != page.version) {
                    continue 'moment;
                }
                // Worked off one page later, when it is known not to be in vain.
                if let Some(before) = last.replace(page) {
                    snapshot.extend(before.entries);
                }
                if snapshot.bytes() > MOST {
                    return Err(self.too_large());
                }
            }
            snapshot.extend(last.unwrap_or_default().entries);
            return if snapshot.bytes() > MOST { Err(self.too_large()) } else { Ok(snapshot) };
        }
    }

    fn too_large(&self) -> LedgerReadError {
        LedgerReadError::TooLarge { pool: self.config.pool.clone(), limit: MOST }
    }

    /// Reads what is small: who leads, the address book, the gate, requests. Fences are left out, so nothing may be
    /// decided on their absence.
    ///
    /// # Errors
    /// See [`LedgerReadError`].
    pub fn glance(&self, deadline: &Deadline) -> Result<Snapshot, LedgerReadError> {
        self.read_after(AFTER_FENCES, deadline)
    }

    /// Reads the requests anew into a snapshot that has everything else.
    ///
    /// # Errors
    /// See [`LedgerReadError`].
    pub fn requests(&self, snapshot: &mut Snapshot, deadline: &Deadline) -> Result<(), LedgerReadError> {
        let (mut requests, mut bytes) = (Vec::new(), 0);
        for page in self.pages((BEFORE_REQUESTS, REQUEST), FEW, deadline) {
            for (key, value) in page.map_err(|error| self.unread(error))?.entries {
                bytes += key.len() + value.len().min(LONGEST);
                requests.push((key, value));
            }
            if bytes > MOST {
                return Err(self.too_large());
            }
        }
        snapshot.renew_requests(requests);
        Ok(())
    }

    /// The newest entries of the trail, at most so many, oldest first. What is not understood is left out.
    ///
    /// # Errors
    /// See [`LedgerReadError`].
    pub fn trail(
        &self,
        snapshot: &Snapshot,
        last: u64,
        deadline: &Deadline,
    ) -> Result<Vec<Audit>, LedgerReadError> {
        let trail = snapshot.trail();
        let from = trail.next.saturating_sub(last).max(trail.first);
        let before = from.checked_sub(1).map_or_else(|| AUDIT.to_owned(), audit_key);
        let before = CString::new(before).unwrap_or_default();
        let mut found = Vec::new();
        for page in self.pages((&before, AUDIT), FEW, deadline) {
            for (_, value) in page.map_err(|error| self.unread(error))?.entries {
                if value.len() <= LONGEST {
                    found.extend(decode::<Audit>(&value).value);
                }
            }
        }
        Ok(found)
    }

    fn pages<'a>(&'a self, keys: (&CStr, &'a str), size: u64, deadline: &'a Deadline) -> OmapPages<'a> {
        OmapPages::new(&self.io, OBJECT, keys, size, deadline)
    }

    fn unread(&self, error: PageError) -> LedgerReadError {
        let pool = self.config.pool.clone();
        let errno = match error {
            PageError::Late(late) => return LedgerReadError::Silent { pool, late },
            PageError::Failed(errno) => errno,
        };
        match meaning(errno) {
            ErrnoMeaning::Denied => LedgerReadError::Denied { pool },
            ErrnoMeaning::Silence => LedgerReadError::Silent { pool, late: DeadlineError::Over },
            ErrnoMeaning::Blocklisted => LedgerReadError::Blocklisted { pool },
            ErrnoMeaning::Rejected | ErrnoMeaning::MadeUp | ErrnoMeaning::Other => {
                LedgerReadError::Failed { pool, errno }
            }
        }
    }
}

fn open_pool(cluster: &Cluster, id: i64) -> Result<IoCtx, Errno> {
    let mut io = IoCtx::open(cluster, id)?;
    io.set_namespace(NAMESPACE)?;
    Ok(io)
}
