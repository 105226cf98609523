//! The second Ceph release: Debian 13's, unpacked into a folder by `tests/lab/setup`, for
//! [`crate::Topology::release`].

use std::path::PathBuf;

use anyhow::Result;

use crate::cache;

/// The folder of the second release, whole and ready.
///
/// # Errors
/// It is not there: why, in one line, as set-up left it. Tests print it and skip.
pub fn second_release() -> Result<PathBuf> {
    cache::prepared("ceph-trixie")
}
