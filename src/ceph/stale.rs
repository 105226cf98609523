//! Taking the exclusive lock of an image away from a client that is fenced.

use std::ffi::CString;

use nix::errno::Errno;

use super::osdmap;
use super::watchers::{DIRECTORY, HEADER, NAME_KEY, encoded_text};
use crate::ceph::rados::cluster::Cluster;
use crate::ceph::rados::errno::{ErrnoMeaning, meaning};
use crate::ceph::rados::ioctx::IoCtx;
use crate::ceph::rados::pages::{FULL, OmapPages, PageError};
use crate::deadline::{Deadline, DeadlineError};

/// The lock's name on an image's header (`RBD_LOCK_NAME`, `librbd/internal.h`).
const LOCK: &str = "rbd_lock";

/// Whose lock on which image.
#[derive(Debug, Clone, Copy)]
pub struct Stale<'a> {
    /// The pool, by name.
    pub pool: &'a str,
    /// The RBD namespace; empty for the default one.
    pub namespace: &'a str,
    pub image: &'a str,
    /// `client.4126`.
    pub owner: &'a str,
    /// Names the lock within the client.
    pub cookie: &'a str,
}

/// Why a lock was not broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BreakLockError {
    /// The osdmap could not be read.
    #[error(transparent)]
    Unread(#[from] crate::ceph::command::CephReadError),
    /// No answer: it may be gone or not, the next sweep tells.
    #[error("{0} before the image's PG answered")]
    Late(#[from] DeadlineError),
    /// The key does not allow it.
    #[error("the key lacks osd `allow x class lock` for break_lock on this pool (deploy/ceph)")]
    Denied,
    #[error("{0}")]
    Failed(Errno),
}

/// Breaks the lock if this very owner still holds it under this cookie; one that is gone, or whose image is, is done.
/// Blocks; on a lane, please.
///
/// # Errors
/// See [`BreakLockError`].
pub fn break_lock(cluster: &Cluster, stale: Stale<'_>, deadline: &Deadline) -> Result<(), BreakLockError> {
    let pools = osdmap::dump(cluster)?.map.pools;
    let Some((id, _)) = pools.iter().find(|(_, pool)| pool.name == stale.pool) else { return Ok(()) };
    let mut io = IoCtx::open(cluster, *id).map_err(failed)?;
    io.set_namespace(stale.namespace).map_err(failed)?;
    let Some(image) = image_id(&io, stale.image, deadline)? else { return Ok(()) };
    match io.break_lock(&format!("{HEADER}{image}"), LOCK, stale.owner, stale.cookie) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(failed(errno)),
    }
}

/// The directory has no single entry to be asked for: pages begin after a key, so this one begins a little before it.
fn image_id(io: &IoCtx, image: &str, deadline: &Deadline) -> Result<Option<String>, BreakLockError> {
    let key = format!("{NAME_KEY}{image}");
    let mut after = key.clone().into_bytes();
    after.pop();
    let after = CString::new(after).map_err(|_| failed(Errno::EINVAL))?;
    for page in OmapPages::new(io, DIRECTORY, (&after, NAME_KEY), FULL, deadline) {
        let page = page.map_err(|error| match error {
            PageError::Late(late) => late.into(),
            PageError::Failed(errno) => failed(errno),
        })?;
        if let Some((name, value)) = page.entries.iter().find(|(name, _)| *name >= key) {
            return Ok(encoded_text(value).filter(|_| *name == key));
        }
    }
    Ok(None)
}

fn failed(errno: Errno) -> BreakLockError {
    match meaning(errno) {
        ErrnoMeaning::Denied => BreakLockError::Denied,
        ErrnoMeaning::Silence => BreakLockError::Late(DeadlineError::Over),
        ErrnoMeaning::Rejected | ErrnoMeaning::Blocklisted | ErrnoMeaning::MadeUp | ErrnoMeaning::Other => {
            BreakLockError::Failed(errno)
        }
    }
}
