//! A pool's handle, and how names and results cross librados' C API.

use std::ffi::{CString, c_int};
#[cfg(test)]
use std::ptr;
use std::sync::Arc;

use nix::errno::Errno;

/// A pool handle. Shared by the [`IoCtx`](crate::ceph::rados::ioctx::IoCtx) and its operations under way; the last of them destroys it.
#[derive(Debug)]
pub(super) struct PoolHandle(ceph_sys::rados_ioctx_t);

// SAFETY: an I/O context is reference-counted with atomics and belongs to no thread; librados submits from any thread.
unsafe impl Send for PoolHandle {}
// SAFETY: submitting from several threads at once is allowed; the one setter, for the namespace, is reached only
// through `&mut IoCtx`, and operations under way took their copy of the namespace at submission.
unsafe impl Sync for PoolHandle {}

impl PoolHandle {
    /// Takes over what librados opened.
    pub(super) fn new(raw: ceph_sys::rados_ioctx_t) -> Arc<Self> {
        Arc::new(Self(raw))
    }

    /// For calls that end before the handle does.
    pub(super) fn raw(&self) -> ceph_sys::rados_ioctx_t {
        self.0
    }
}

impl Drop for PoolHandle {
    fn drop(&mut self) {
        // SAFETY: the last holder lets go. Either the IoCtx (then nothing is under way, and its Cluster is dropped
        // after this field) or the callback of the last operation, in which librados is done with the handle and which
        // runs before `rados_shutdown` returns. Contexts forgotten by a shutdown are never dropped.
        unsafe { ceph_sys::rados_ioctx_destroy(self.0) }
    }
}

#[cfg(test)]
impl PoolHandle {
    /// For tests of what holds a handle: of no pool, and never destroyed, because one reference is forgotten.
    pub(super) fn of_nothing() -> Arc<Self> {
        let handle = Arc::new(Self(ptr::null_mut()));
        std::mem::forget(Arc::clone(&handle));
        handle
    }
}

/// A name librados can take.
pub(super) fn c_string(text: &str) -> Result<CString, Errno> {
    CString::new(text).map_err(|_| Errno::EINVAL)
}

/// librados' way to say how it went.
pub(super) fn check(rc: c_int) -> Result<(), Errno> {
    if rc < 0 { Err(Errno::from_raw(-rc)) } else { Ok(()) }
}

/// The way back.
pub(super) fn refused(errno: Errno) -> c_int {
    -(errno as c_int)
}
