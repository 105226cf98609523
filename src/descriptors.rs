//! File descriptors. librados takes a socket for each OSD and some 20 more; without any it fails oddly or ends the process.

use std::fs;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What librados and the guardian take beside the OSDs' sockets.
pub const BESIDE: u64 = 100;
/// With fewer left than this a connection or a file may fail at any moment.
const SCARCE: u64 = 8;

/// With 16 allowed librados ends the process while it connects; with 20 a verb says what is missing.
pub const LEAST: u64 = 20;
/// The daemon has sockets of its own beside.
pub const LEAST_DAEMON: u64 = 32;

/// Fewer are allowed than librados needs to say that there are too few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "only {limit} file descriptors are allowed, {used} are in use, and Ceph takes one for each OSD and some 20 more: raise LimitNOFILE of \
     the service, or `ulimit -n`"
)]
pub struct DescriptorsError {
    pub limit: u64,
    /// How many are in use.
    pub used: u64,
}

/// Looks whether as many as these are allowed.
///
/// # Errors
/// Fewer are.
pub fn at_least(least: u64) -> Result<(), DescriptorsError> {
    let limit = limit();
    if limit < least { Err(DescriptorsError { limit, used: used().unwrap_or_default() }) } else { Ok(()) }
}

/// What librados takes while it connects; where it does not get them, it may end the process.
const TO_CONNECT: u64 = 13;

/// Looks whether a new connection can be made.
///
/// # Errors
/// Too few are left.
pub fn for_connection() -> Result<(), DescriptorsError> {
    at_least(LEAST)?;
    let limit = limit();
    match used() {
        Some(used) if limit.saturating_sub(used) < TO_CONNECT => Err(DescriptorsError { limit, used }),
        Some(_) | None => Ok(()),
    }
}

/// How many are in use; `None` where that cannot be found out.
fn used() -> Option<u64> {
    match fs::read_dir("/proc/self/fd") {
        // One of them is the folder itself.
        Ok(open) => Some(u64::try_from(open.count()).unwrap_or(u64::MAX).saturating_sub(1)),
        Err(error) if error.raw_os_error() == Some(Errno::EMFILE as i32) => Some(limit()),
        Err(_) => None,
    }
}

/// Raises the limit as far as this process may. Where that fails it stays as it is, which `doctor` tells.
pub fn raise() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// How many this process may have.
pub fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

/// How many a cluster of so many OSDs takes: silent PGs are asked over a second connection.
pub fn needed(osds: usize) -> u64 {
    u64::try_from(osds).unwrap_or(u64::MAX).saturating_mul(2).saturating_add(BESIDE)
}

/// Says so if hardly any are left: nothing that does not answer proves anything else then.
pub fn exhausted() -> Option<String> {
    let limit = limit();
    let used = used()?;
    (used.saturating_add(SCARCE) >= limit).then(|| {
        format!(
            "this process has used all its file descriptors ({used} of {limit}; Ceph takes one for each OSD and some 20 more): \
             raise LimitNOFILE of the service, or `ulimit -n`"
        )
    })
}
