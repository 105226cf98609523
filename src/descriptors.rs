//! File descriptors. librados takes a socket for each OSD and some 20 more; without any it fails oddly or ends the process.

use std::fs;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What librados and the guardian take beside the OSDs' sockets.
pub const BESIDE: u64 = 100;
/// With fewer left than this a connection or a file may fail at any moment.
const SCARCE: u64 = 8;

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
    let used = match fs::read_dir("/proc/self/fd") {
        Ok(open) => u64::try_from(open.count()).unwrap_or(u64::MAX),
        Err(error) if error.raw_os_error() == Some(Errno::EMFILE as i32) => limit,
        Err(_) => return None,
    };
    (used.saturating_add(SCARCE) >= limit).then(|| {
        format!(
            "this process has used up its file descriptors ({used} of {limit}; Ceph takes one for each OSD and some 20 more): \
             raise LimitNOFILE of the service, or `ulimit -n`"
        )
    })
}
