//! Opening the ledger, and reading it.

use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use rbd_guardian_core::model::record::Audit;
use rbd_guardian_core::rules::silence::Silence;

use super::codec::{AFTER_AUDIT, AFTER_FENCES, AUDIT, Decoded, REQUEST, audit_key, decode};
use super::snapshot::Snapshot;
use crate::ceph::rados::cluster::Cluster;
use crate::ceph::rados::completion::OmapPage;
use crate::ceph::rados::errno::{ErrnoMeaning, meaning};
use crate::ceph::rados::ioctx::IoCtx;
use crate::ceph::{command, lane, pools};
use crate::deadline::{Deadline, DeadlineError};

/// The pool that `deploy/ceph/create-key` makes.
pub const DEFAULT_POOL: &str = "rbd-guardian";
/// The namespace that the guardian's key may write to.
pub const NAMESPACE: &str = "rbd-guardian";
/// The object.
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

/// Why there is no ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerOpenError {
    /// No such pool.
    #[error(
        "no pool '{pool}' for the ledger: create it ({}) or name another one as ledger.pool",
        create(pool)
    )]
    NoPool {
        /// Its name.
        pool: String,
    },
    /// It cannot hold omaps.
    #[error(
        "pool '{pool}' is erasure-coded, which cannot hold the ledger: name a replicated pool as ledger.pool, or \
         create one ({})",
        create("NAME")
    )]
    ErasureCoded {
        /// Its name.
        pool: String,
    },
    /// One failing disk would take the ledger with it.
    #[error(
        "pool '{pool}' keeps {size} copy: the ledger needs 2 or more (`ceph osd pool set {pool} size 3`)"
    )]
    OneCopy {
        /// Its name.
        pool: String,
        /// Copies.
        size: u32,
    },
    /// The osdmap could not be read.
    #[error(transparent)]
    Unread(#[from] command::CephReadError),
    /// It took too long.
    #[error("{0} before the pool of the ledger was found: do the monitors have a quorum?")]
    Late(#[from] DeadlineError),
    /// This client cannot use the pool.
    #[error("cannot open pool '{pool}': {errno}")]
    Unusable {
        /// Its name.
        pool: String,
        /// What librados said.
        errno: Errno,
    },
}

impl LedgerOpenError {
    /// May it be otherwise later, without anybody doing anything?
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Late(_) | Self::Unusable { .. } => true,
            Self::Unread(error) => error.is_transient(),
            Self::NoPool { .. } | Self::ErasureCoded { .. } | Self::OneCopy { .. } => false,
        }
    }
}

/// The commands that make a pool for the ledger: one object needs one PG.
fn create(pool: &str) -> String {
    format!(
        "`ceph osd pool create {pool} 1 1 replicated`, `ceph osd pool set {pool} size 3`, \
         `ceph osd pool set {pool} min_size 2`, `ceph osd pool application enable {pool} rbd-guardian`"
    )
}

/// Why the ledger could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerReadError {
    /// The key does not allow it.
    #[error("the key may not read the ledger: it lacks {} (deploy/ceph)", crate::ledger::cap(pool))]
    Denied {
        /// The pool.
        pool: String,
    },
    /// The client is refused itself.
    #[error("cannot read the ledger in pool '{pool}': {}", crate::ceph::rados::errno::BLOCKLISTED)]
    Blocklisted {
        /// The pool.
        pool: String,
    },
    /// No answer in time.
    #[error("{late} before the ledger's PG in pool '{pool}' answered: are its OSDs up?")]
    Silent {
        /// The pool.
        pool: String,
        /// Which end came.
        late: DeadlineError,
    },
    /// Anything else.
    #[error("cannot read the ledger in pool '{pool}': {errno}")]
    Failed {
        /// The pool.
        pool: String,
        /// What the OSD said.
        errno: Errno,
    },
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
    let mut io = cluster.pool(id)?;
    io.set_namespace(NAMESPACE)?;
    Ok(io)
}
