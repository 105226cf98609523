//! What `shim/shim.h` declares: the little of librados' C++ API that its C API lacks.

use crate::rados_ioctx_t;
use core::ffi::{c_char, c_int, c_void};

/// One client that watches an object.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct guardian_watcher_t {
    /// `10.0.0.5:0/525740053`, NUL-terminated.
    pub address: *const c_char,
    /// The number in `client.4126`.
    pub client: i64,
    /// Names the watch within that client.
    pub cookie: u64,
    /// Seconds.
    pub timeout: u32,
}

/// What a header read found. Valid, with all it points to, only while the callback runs.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct guardian_header_t {
    /// 0, or a negative errno: then nothing below counts.
    pub rc: c_int,
    /// `watchers_len` of them; null if there are none.
    pub watchers: *const guardian_watcher_t,
    /// How many clients watch.
    pub watchers_len: usize,
    /// The bytes of the xattr `lock.rbd_lock`; null if nobody holds the lock.
    pub lock: *const c_char,
    /// How many bytes `lock` has.
    pub lock_len: usize,
    /// The bytes of the omap key `data_pool_id`; null if there is none, or it was not asked for.
    pub data_pool: *const c_char,
    /// How many bytes `data_pool` has.
    pub data_pool_len: usize,
}

/// Takes the result of [`guardian_header_read`] on a librados thread.
pub type guardian_header_cb =
    Option<unsafe extern "C" fn(arg: *mut c_void, header: *const guardian_header_t)>;

unsafe extern "C" {
    /// Reads watchers and exclusive lock of an RBD header in one operation, and the pool of its data unless `with_data_pool` is 0. On 0 the callback runs exactly once, unless the cluster handle is shut down first: then never.
    /// On a negative errno it never runs.
    ///
    /// # Safety
    /// `io` is a live handle and stays one until the callback has run or the cluster handle is shut down. `object` is
    /// NUL-terminated. `arg` may be used on another thread, and what it points to outlives the operation.
    pub fn guardian_header_read(
        io: rados_ioctx_t,
        object: *const c_char,
        with_data_pool: c_int,
        callback: guardian_header_cb,
        arg: *mut c_void,
    ) -> c_int;

    /// Writes to `pg` the number of the PG that holds `object`, in the namespace of `io`, by the client's present
    /// map. 0, or a negative errno: `-ENOENT` if the pool is gone.
    ///
    /// # Safety
    /// `io` is a live handle, `object` is NUL-terminated, `pg` can be written to.
    pub fn guardian_pg_of(io: rados_ioctx_t, object: *const c_char, pg: *mut u32) -> c_int;
}
