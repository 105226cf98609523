//! Taking the exclusive lock of an image away from a client that is fenced.

use std::ffi::CString;
use std::sync::mpsc::channel;

use nix::errno::Errno;

use super::osdmap;
use super::watchers::{DIRECTORY, HEADER, NAME_KEY, encoded_text};
use crate::ceph::rados::cluster::Cluster;
use crate::ceph::rados::errno::{ErrnoMeaning, meaning};
use crate::ceph::rados::ioctx::IoCtx;
use crate::deadline::{Deadline, DeadlineError};

/// The lock's name on an image's header (`RBD_LOCK_NAME`, `librbd/internal.h`).
const LOCK: &str = "rbd_lock";
/// Directory entries read at once.
const PAGE: u64 = 1024;

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
    /// Anything else.
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
    let mut after = CString::new(after).map_err(|_| failed(Errno::EINVAL))?;
    loop {
        let (to, pages) = channel();
        io.omap_page(DIRECTORY, &after, PAGE, 0, &to).map_err(failed)?;
        drop(to);
        let page = match deadline.receive(&pages)?.map(|done| done.result) {
            Some(Ok(page)) => page,
            Some(Err(Errno::ENOENT)) => return Ok(None),
            Some(Err(errno)) => return Err(failed(errno)),
            None => return Err(DeadlineError::Over.into()),
        };
        for (name, value) in &page.entries {
            if *name >= key {
                return Ok(encoded_text(value).filter(|_| *name == key));
            }
        }
        match page.next {
            Some(next) => after = next,
            None => return Ok(None),
        }
    }
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
