//! Opening the ledger, and reading it.

use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use rbd_guardian_core::model::record::Audit;
use rbd_guardian_core::rules::silence::Silence;

use super::codec::{AFTER_AUDIT, AFTER_FENCES, AUDIT, Decoded, NAMESPACE, REQUEST, audit_key, decode};
use super::error::{LedgerOpenError, LedgerReadError};
use super::snapshot::Snapshot;
use crate::ceph::rados::cluster::Cluster;
use crate::ceph::rados::completion::OmapPage;
use crate::ceph::rados::errno::{ErrnoMeaning, meaning};
use crate::ceph::rados::ioctx::IoCtx;
use crate::ceph::{lane, pools};
use crate::deadline::{Deadline, DeadlineError};

/// The pool that `deploy/ceph/create-key` makes.
pub const DEFAULT_POOL: &str = "rbd-guardian";
pub const OBJECT: &str = "ledger";
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

/// Entries asked for at once; OSDs answer with 1,024 at most (`osd_max_omap_entries_per_request`).
const PAGE: u64 = 1024;

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

    fn read_after(&self, key: &str, deadline: &Deadline) -> Result<Snapshot, LedgerReadError> {
        loop {
            let mut entries = Vec::new();
            let mut after = key.to_owned();
            let mut version = None;
            loop {
                let page = self.page(&after, PAGE, deadline)?;
                if *version.get_or_insert(page.version) != page.version {
                    // Written meanwhile: pages of two moments make no snapshot.
                    break;
                }
                entries.extend(page.entries);
                match entries.last() {
                    Some((last, _)) if page.more => after.clone_from(last),
                    Some(_) | None => return Ok(Snapshot::new(entries)),
                }
            }
        }
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
        let page = self.page(REQUEST, PAGE, deadline)?;
        let requests = page.entries.into_iter().filter(|(key, _)| key.starts_with(REQUEST));
        snapshot.renew_requests(requests.collect());
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
        let mut after = from.checked_sub(1).map_or_else(|| AUDIT.to_owned(), audit_key);
        let mut found = Vec::new();
        loop {
            let page = self.page(&after, PAGE, deadline)?;
            let audits = page.entries.iter().take_while(|(key, _)| key.starts_with(AUDIT));
            let before = found.len();
            for (key, bytes) in audits {
                let Decoded { value, .. } = decode::<Audit>(bytes);
                found.extend(value.ok());
                after.clone_from(key);
            }
            if !page.more || found.len() == before {
                return Ok(found);
            }
        }
    }

    fn page(&self, after: &str, max: u64, deadline: &Deadline) -> Result<OmapPage, LedgerReadError> {
        let pool = || self.config.pool.clone();
        let failed = |errno: Errno| match meaning(errno) {
            ErrnoMeaning::Denied => LedgerReadError::Denied { pool: pool() },
            ErrnoMeaning::Silence => LedgerReadError::Silent { pool: pool(), late: DeadlineError::Over },
            ErrnoMeaning::Blocklisted => LedgerReadError::Blocklisted { pool: pool() },
            ErrnoMeaning::Rejected | ErrnoMeaning::MadeUp | ErrnoMeaning::Other => {
                LedgerReadError::Failed { pool: pool(), errno }
            }
        };
        let (to, results) = channel();
        self.io.omap_page(OBJECT, after, max, 0, &to).map_err(failed)?;
        drop(to);
        let done =
            deadline.receive(&results).map_err(|late| LedgerReadError::Silent { pool: pool(), late })?;
        match done.map(|done| done.result) {
            Some(Ok(page)) => Ok(page),
            Some(Err(Errno::ENOENT)) => Ok(OmapPage::default()),
            Some(Err(errno)) => Err(failed(errno)),
            None => Err(LedgerReadError::Silent { pool: pool(), late: DeadlineError::Over }),
        }
    }
}

fn open_pool(cluster: &Cluster, id: i64) -> Result<IoCtx, Errno> {
    let mut io = IoCtx::open(cluster, id)?;
    io.set_namespace(NAMESPACE)?;
    Ok(io)
}
