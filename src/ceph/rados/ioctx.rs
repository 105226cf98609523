//! A pool, and the asynchronous reads made on it; [`omap`](crate::ceph::rados::omap) and [`lease`](crate::ceph::rados::lock) add the writes.

use std::ffi::{CStr, CString, c_char, c_int, c_uchar, c_void};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::{ptr, slice};

use nix::errno::Errno;

use crate::ceph::rados::cluster::Cluster;
use crate::ceph::rados::completion::{Completed, Completion, Header, OmapPage, Pending, Reply, Watcher};
use crate::ceph::rados::handle::{PoolHandle, c_string, check, refused};

/// A pool of a [`Cluster`], which it keeps alive.
///
/// The asynchronous methods return when the operation is submitted; its end comes through the channel exactly once, at
/// the latest when the timeout set at connecting is over (`ETIMEDOUT`: unknown). If the cluster is disconnected before,
/// that is, the last [`Cluster`] and `IoCtx` dropped, it never comes and the channel stays open: see
/// [`completion`](crate::ceph::rados::completion). Submission blocks only above 65,536 operations under way on the cluster. Their
/// errors: `EINVAL` for a name with a NUL byte, and whatever librados refuses with; nothing was submitted then.
#[derive(Debug)]
pub struct IoCtx {
    // Before the cluster: fields are dropped in this order.
    handle: Arc<PoolHandle>,
    _cluster: Cluster,
}

impl IoCtx {
    /// Opens a pool by its number: a pool made anew under an old name is another pool.
    ///
    /// # Errors
    /// `ENOENT` if the map this client has knows no such pool.
    pub fn open(cluster: &Cluster, pool: i64) -> Result<Self, Errno> {
        let mut raw = ptr::null_mut();
        // SAFETY: the handle is connected and `raw` can be written to.
        check(unsafe { ceph_sys::rados_ioctx_create2(cluster.raw(), pool, &raw mut raw) })?;
        Ok(Self { handle: PoolHandle::new(raw), _cluster: cluster.clone() })
    }

    /// For what other files submit on it.
    pub(super) fn handle(&self) -> &Arc<PoolHandle> {
        &self.handle
    }

    /// For calls that end before `self` does.
    pub(super) fn raw(&self) -> ceph_sys::rados_ioctx_t {
        self.handle.raw()
    }

    /// Directs later operations to an RBD namespace; the empty one is the default.
    ///
    /// # Errors
    /// `EINVAL` if `ns` contains a NUL byte.
    pub fn set_namespace(&mut self, ns: &str) -> Result<(), Errno> {
        let ns = c_string(ns)?;
        // SAFETY: the handle lives, the string is NUL-terminated, and `&mut self` keeps other submitters away.
        unsafe { ceph_sys::rados_ioctx_set_namespace(self.handle.raw(), ns.as_ptr()) };
        Ok(())
    }

    /// The PG that holds `object` by the map the client has now; the `1f` of `2.1f`.
    ///
    /// # Errors
    /// `ENOENT` if the pool is gone.
    pub fn pg_of(&self, object: &str) -> Result<u32, Errno> {
        let object = c_string(object)?;
        let mut pg = 0;
        // SAFETY: the handle lives, the name is NUL-terminated, `pg` can be written to.
        check(unsafe { ceph_sys::guardian_pg_of(self.handle.raw(), object.as_ptr(), &raw mut pg) })?;
        Ok(pg)
    }

    /// Asks whether an object exists. `Ok` and `ENOENT` are both answers of the PG.
    ///
    /// # Errors
    /// See [`IoCtx`].
    pub fn stat(&self, object: &str, tag: u64, to: &Sender<Completed<()>>) -> Result<(), Errno> {
        let object = c_string(object)?;
        Pending::submit(&self.handle, StatReply { size: 0 }, tag, to, |context| {
            let completion = match Completion::new(context, on_stat) {
                Ok(completion) => completion,
                Err(errno) => return refused(errno),
            };
            // SAFETY: `context` came from `submit` a moment ago; nothing else knows it yet.
            let size = unsafe { &raw mut (*context).reply.size };
            // SAFETY: the context holds the handle and `size` until the callback; the rest is only read now.
            unsafe {
                ceph_sys::rados_aio_stat(
                    self.handle.raw(),
                    object.as_ptr(),
                    completion.raw(),
                    size,
                    ptr::null_mut(),
                )
            }
        })
    }

    /// Reads who uses the image with the header `object`: one operation, one round trip.
    ///
    /// # Errors
    /// See [`IoCtx`].
    pub fn header(
        &self,
        object: &str,
        with_data_pool: bool,
        tag: u64,
        to: &Sender<Completed<Header>>,
    ) -> Result<(), Errno> {
        let object = c_string(object)?;
        Pending::submit(&self.handle, HeaderReply, tag, to, |context| {
            // SAFETY: the context holds the handle until the callback; the name is only read now.
            unsafe {
                ceph_sys::guardian_header_read(
                    self.handle.raw(),
                    object.as_ptr(),
                    c_int::from(with_data_pool),
                    Some(on_header),
                    context.cast(),
                )
            }
        })
    }

    /// Reads at most `max` omap entries of `object` with keys after `after` (empty: from the first).
    ///
    /// # Errors
    /// See [`IoCtx`].
    pub fn omap_page(
        &self,
        object: &str,
        after: &CStr,
        max: u64,
        tag: u64,
        to: &Sender<Completed<OmapPage>>,
    ) -> Result<(), Errno> {
        let object = c_string(object)?;
        Pending::submit(&self.handle, OmapReply::default(), tag, to, |context| {
            let completion = match Completion::new(context, on_omap) {
                Ok(completion) => completion,
                Err(errno) => return refused(errno),
            };
            // SAFETY: `context` came from `submit` a moment ago; nothing else knows it yet, and the borrow ends before
            // the submission.
            let OmapReply { entries, more, rc } = unsafe { &mut (*context).reply };
            let op = ReadOp::new();
            // SAFETY: the strings are NUL-terminated and copied now; the context holds the reply until the callback.
            unsafe {
                ceph_sys::rados_read_op_omap_get_vals2(
                    op.0,
                    after.as_ptr(),
                    c"".as_ptr(),
                    max,
                    &raw mut entries.0,
                    more,
                    rc,
                );
            }
            // SAFETY: the context holds the handle until the callback; librados takes the contents of `op` now.
            unsafe {
                ceph_sys::rados_aio_read_op_operate(
                    op.0,
                    self.handle.raw(),
                    completion.raw(),
                    object.as_ptr(),
                    0,
                )
            }
        })
    }
}

struct StatReply {
    size: u64,
}

impl Reply for StatReply {
    type Output = ();
}

unsafe extern "C" fn on_stat(completion: ceph_sys::rados_completion_t, arg: *mut c_void) {
    // SAFETY: librados calls with the completion it has just finished.
    let rc = unsafe { ceph_sys::rados_aio_get_return_value(completion) };
    // SAFETY: `arg` is the context given to this operation's completion, which librados calls once.
    unsafe { Pending::<StatReply>::complete(arg, |_| check(rc)) }
}

/// The shim keeps what librados writes into.
struct HeaderReply;

impl Reply for HeaderReply {
    type Output = Header;
}

unsafe extern "C" fn on_header(arg: *mut c_void, header: *const ceph_sys::guardian_header_t) {
    // SAFETY: the shim lends it until this function returns; copied here, so that only pointers are left to mind.
    let header = unsafe { *header };
    // SAFETY: the shim's promise, for as long as this function runs.
    let finish = |_| unsafe { copy_header(&header) };
    // SAFETY: `arg` is the context given to `guardian_header_read`, which calls once.
    unsafe { Pending::<HeaderReply>::complete(arg, finish) }
}

/// Copies what the shim found.
///
/// # Safety
/// `header` is what the shim passes to its callback, and that callback has not returned.
unsafe fn copy_header(header: &ceph_sys::guardian_header_t) -> Result<Header, Errno> {
    check(header.rc)?;
    // SAFETY: the shim's promise: `watchers_len` valid elements, or null and 0.
    let found = unsafe { borrowed(header.watchers, header.watchers_len) };
    let watchers = found.iter().map(|watcher| Watcher {
        // SAFETY: the shim's promise: a NUL-terminated string that lives during the callback.
        address: unsafe { CStr::from_ptr(watcher.address) }.to_string_lossy().into_owned(),
        client: watcher.client,
        cookie: watcher.cookie,
        timeout: watcher.timeout,
    });
    let lock = (!header.lock.is_null()).then(|| {
        // SAFETY: the shim's promise: `lock_len` bytes.
        unsafe { borrowed(header.lock.cast::<u8>(), header.lock_len) }.to_vec()
    });
    let data_pool = (!header.data_pool.is_null()).then(|| {
        // SAFETY: the shim's promise: `data_pool_len` bytes.
        unsafe { borrowed(header.data_pool.cast::<u8>(), header.data_pool_len) }.to_vec()
    });
    Ok(Header { watchers: watchers.collect(), lock, data_pool })
}

/// The entries of an omap read; made at submission, readable once the operation is complete.
struct Entries(ceph_sys::rados_omap_iter_t);

impl Drop for Entries {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: dropped by the callback or after a refusal, so nothing is under way, and only once.
            unsafe { ceph_sys::rados_omap_get_end(self.0) }
        }
    }
}

struct OmapReply {
    entries: Entries,
    more: c_uchar,
    rc: c_int,
}

impl Default for OmapReply {
    fn default() -> Self {
        Self { entries: Entries(ptr::null_mut()), more: 0, rc: 0 }
    }
}

impl Reply for OmapReply {
    type Output = OmapPage;
}

unsafe extern "C" fn on_omap(completion: ceph_sys::rados_completion_t, arg: *mut c_void) {
    // SAFETY: librados calls with the completion it has just finished.
    let rc = unsafe { ceph_sys::rados_aio_get_return_value(completion) };
    // SAFETY: as above.
    let version = unsafe { ceph_sys::rados_aio_get_version(completion) };
    // SAFETY: `arg` is the context given to this operation's completion, which librados calls once.
    unsafe {
        Pending::<OmapReply>::complete(arg, |reply| {
            check(rc)?;
            check(reply.rc)?;
            let mut page = read_page(&reply.entries)?;
            page.next.take_if(|_| reply.more == 0);
            Ok(OmapPage { version, ..page })
        });
    }
}

/// What librados is to begin after. It takes a string that ends with NUL: a key with one inside, which nobody but an
/// attacker writes, is passed over with all others that begin like it.
fn after(key: &[u8]) -> CString {
    let key = match key.split(|byte| *byte == 0).next() {
        Some(start) if start.len() < key.len() => [start, &[1]].concat(),
        Some(_) | None => key.to_vec(),
    };
    CString::new(key).unwrap_or_default()
}

/// Copies the entries of an operation that is complete, as if there were more after the last one.
fn read_page(entries: &Entries) -> Result<OmapPage, Errno> {
    let (mut page, mut last) = (OmapPage::default(), None);
    loop {
        let (mut key, mut value): (*mut c_char, *mut c_char) = (ptr::null_mut(), ptr::null_mut());
        let (mut key_len, mut value_len) = (0, 0);
        // SAFETY: the iterator is that of a complete operation; the rest can be written to.
        check(unsafe {
            ceph_sys::rados_omap_get_next2(
                entries.0,
                &raw mut key,
                &raw mut value,
                &raw mut key_len,
                &raw mut value_len,
            )
        })?;
        if key.is_null() {
            return Ok(OmapPage { next: last.map(after), ..page });
        }
        // SAFETY: librados says so many bytes are there, and they live as long as the iterator.
        let key = unsafe { borrowed(key.cast::<u8>(), key_len) };
        // SAFETY: as above.
        let value = unsafe { borrowed(value.cast::<u8>(), value_len) };
        page.entries.push((String::from_utf8_lossy(key).into_owned(), value.to_vec()));
        last = Some(key);
    }
}

/// A compound read being put together.
struct ReadOp(ceph_sys::rados_read_op_t);

impl ReadOp {
    fn new() -> Self {
        // SAFETY: needs nothing.
        Self(unsafe { ceph_sys::rados_create_read_op() })
    }
}

impl Drop for ReadOp {
    fn drop(&mut self) {
        // SAFETY: made by `new` and freed only here.
        unsafe { ceph_sys::rados_release_read_op(self.0) }
    }
}

/// A slice C lends; empty for null, which Rust's slices do not allow.
///
/// # Safety
/// `start` is null or points to `len` elements that live and do not change for `'a`.
unsafe fn borrowed<'a, T>(start: *const T, len: usize) -> &'a [T] {
    if start.is_null() {
        return &[];
    }
    // SAFETY: by contract.
    unsafe { slice::from_raw_parts(start, len) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_on_after_any_key() {
        assert_eq!(after(b"name_a").as_bytes(), b"name_a");
        assert_eq!(after(b"name_\xff").as_bytes(), b"name_\xff");
        assert_eq!(after(b"name_\0b").as_bytes(), b"name_\x01", "behind all that begin with name_ and NUL");
        assert_eq!(after(b"").as_bytes(), b"");
    }
}
