//! A compound write to an object's omap: comparisons, settings and removals that take effect together or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::mpsc::Sender;

use nix::errno::Errno;

use crate::ceph::rados::completion::{Completed, Completion, Pending, Reply};
use crate::ceph::rados::handle::{c_string, check, refused};
use crate::ceph::rados::ioctx::IoCtx;

/// What is to be compared and changed. One object and one operation: the OSD orders it with every other one, from
/// whatever client, and applies all of it or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OmapWrite {
    /// Make the object if it is absent; else that is `ENOENT`.
    pub create: bool,
    /// Keys that must have these values still, else nothing is done (`ECANCELED`). An absent key compares as empty:
    /// the OSD takes a default value for it (`CEPH_OSD_OP_OMAP_CMP` in `PrimaryLogPG::do_osd_ops`; tests/ledger/main.rs).
    pub unchanged: BTreeMap<String, Vec<u8>>,
    /// Keys and their new values.
    pub set: BTreeMap<String, Vec<u8>>,
    /// Keys that go; absent ones are no error.
    pub remove: BTreeSet<String>,
}

impl IoCtx {
    /// Writes. `ECANCELED`: a comparison failed, and nothing was done. `ETIMEDOUT`: unknown, and it may still be done.
    ///
    /// # Errors
    /// See [`IoCtx`].
    pub fn omap_write(
        &self,
        object: &str,
        write: &OmapWrite,
        tag: u64,
        to: &Sender<Completed<()>>,
    ) -> Result<(), Errno> {
        let object = c_string(object)?;
        let op = WriteOp::new();
        if write.create {
            op.create();
        }
        for (key, value) in &write.unchanged {
            op.compare(key, value);
        }
        op.set(&write.set);
        op.remove(&write.remove);
        Pending::submit(self.handle(), WriteReply, tag, to, |context| {
            let completion = match Completion::new(context, on_write) {
                Ok(completion) => completion,
                Err(errno) => return refused(errno),
            };
            // SAFETY: the context holds the handle until the callback; librados takes the contents of `op` now, and
            // reads nothing else later.
            unsafe {
                ceph_sys::rados_aio_write_op_operate(
                    op.0,
                    self.raw(),
                    completion.raw(),
                    object.as_ptr(),
                    ptr::null_mut(),
                    0,
                )
            }
        })
    }
}

/// Nothing but the result is of interest.
struct WriteReply;

impl Reply for WriteReply {
    type Output = ();
}

unsafe extern "C" fn on_write(completion: ceph_sys::rados_completion_t, arg: *mut c_void) {
    // SAFETY: librados calls with the completion it has just finished.
    let rc = unsafe { ceph_sys::rados_aio_get_return_value(completion) };
    // SAFETY: `arg` is the context given to this operation's completion, which librados calls once.
    unsafe { Pending::<WriteReply>::complete(arg, |_| check(rc)) }
}

/// A compound write being put together. librados copies keys and values as they are added.
struct WriteOp(ceph_sys::rados_write_op_t);

impl WriteOp {
    fn new() -> Self {
        // SAFETY: needs nothing.
        Self(unsafe { ceph_sys::rados_create_write_op() })
    }

    fn create(&self) {
        // SAFETY: `self` is not submitted yet; the category may be null.
        unsafe {
            ceph_sys::rados_write_op_create(self.0, ceph_sys::LIBRADOS_CREATE_IDEMPOTENT, ptr::null());
        }
    }

    fn compare(&self, key: &str, value: &[u8]) {
        // SAFETY: `self` is not submitted yet; both point to so many bytes. Which comparison failed is not asked for.
        unsafe {
            ceph_sys::rados_write_op_omap_cmp2(
                self.0,
                key.as_ptr().cast(),
                ceph_sys::LIBRADOS_CMPXATTR_OP_EQ,
                value.as_ptr().cast(),
                key.len(),
                value.len(),
                ptr::null_mut(),
            );
        }
    }

    fn set(&self, entries: &BTreeMap<String, Vec<u8>>) {
        let (keys, key_lens) = strings(entries.keys().map(String::as_bytes));
        let (values, value_lens) = strings(entries.values().map(Vec::as_slice));
        if keys.is_empty() {
            return;
        }
        // SAFETY: `self` is not submitted yet; four arrays of the same length, whose pointers and lengths belong
        // together and to `entries`.
        unsafe {
            ceph_sys::rados_write_op_omap_set2(
                self.0,
                keys.as_ptr(),
                values.as_ptr(),
                key_lens.as_ptr(),
                value_lens.as_ptr(),
                keys.len(),
            );
        }
    }

    fn remove(&self, keys: &BTreeSet<String>) {
        let (keys, lens) = strings(keys.iter().map(String::as_bytes));
        if keys.is_empty() {
            return;
        }
        // SAFETY: `self` is not submitted yet; two arrays of the same length that belong together.
        unsafe {
            ceph_sys::rados_write_op_omap_rm_keys2(self.0, keys.as_ptr(), lens.as_ptr(), keys.len());
        }
    }
}

impl Drop for WriteOp {
    fn drop(&mut self) {
        // SAFETY: made by `new` and freed only here.
        unsafe { ceph_sys::rados_release_write_op(self.0) }
    }
}

/// Where each begins, and how long it is.
fn strings<'a>(texts: impl Iterator<Item = &'a [u8]>) -> (Vec<*const c_char>, Vec<usize>) {
    texts.map(|text| (text.as_ptr().cast::<c_char>(), text.len())).unzip()
}
