//! What `<rados/librados.h>` declares. Errors are negative errno values, as everywhere in librados.

use core::ffi::{c_char, c_int, c_long, c_uchar, c_void};

/// Seconds since 1970, as the C library counts them.
pub type time_t = c_long;
/// A cluster handle.
pub type rados_t = *mut c_void;
/// A pool handle: an *I/O context*.
pub type rados_ioctx_t = *mut c_void;
/// An asynchronous operation's completion; counted: ours until [`rados_aio_release`], librados' until it has called.
pub type rados_completion_t = *mut c_void;
/// A compound read operation being put together.
pub type rados_read_op_t = *mut c_void;
/// A compound write operation being put together.
pub type rados_write_op_t = *mut c_void;
/// The entries an omap read found.
pub type rados_omap_iter_t = *mut c_void;
/// Called on a librados thread when an operation is complete.
pub type rados_callback_t = Option<unsafe extern "C" fn(cb: rados_completion_t, arg: *mut c_void)>;

/// A length of time, as `<sys/time.h>` declares it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct timeval {
    /// Seconds.
    pub tv_sec: time_t,
    /// Microseconds, below a million.
    pub tv_usec: c_long,
}

/// The comparison "equal"; an enumerator in the header, and one that the functions take as a `uint8_t`.
pub const LIBRADOS_CMPXATTR_OP_EQ: u8 = 1;
/// Create, or leave what is there.
pub const LIBRADOS_CREATE_IDEMPOTENT: c_int = 0;
/// Take a lock, or renew it if it is held by the same client and cookie.
pub const LIBRADOS_LOCK_FLAG_MAY_RENEW: u8 = 1;
/// Renew a lock; `-ENOENT` if it is not held by the same client and cookie any more.
pub const LIBRADOS_LOCK_FLAG_MUST_RENEW: u8 = 2;

unsafe extern "C" {
    /// Makes a handle for the client `name` (`client.admin`) of the cluster `clustername`; reads no file yet.
    ///
    /// # Safety
    /// `pcluster` can be written to; the strings are NUL-terminated.
    pub fn rados_create2(
        pcluster: *mut rados_t,
        clustername: *const c_char,
        name: *const c_char,
        flags: u64,
    ) -> c_int;

    /// Reads a `ceph.conf`; null means the usual places. `-ENOENT`: not there; `-EINVAL`: cannot be parsed.
    ///
    /// # Safety
    /// `cluster` is a handle that is not connected; `path` is null or NUL-terminated.
    pub fn rados_conf_read_file(cluster: rados_t, path: *const c_char) -> c_int;

    /// Sets an option, above whatever the files say. `-ENOENT`: this release has no such option.
    ///
    /// # Safety
    /// `cluster` is a handle; the strings are NUL-terminated.
    pub fn rados_conf_set(cluster: rados_t, option: *const c_char, value: *const c_char) -> c_int;

    /// Writes an option's value and a NUL into `buf`; `-ENAMETOOLONG` if it does not fit.
    ///
    /// # Safety
    /// `cluster` is a handle; `option` is NUL-terminated; `buf` has room for `len` bytes.
    pub fn rados_conf_get(cluster: rados_t, option: *const c_char, buf: *mut c_char, len: usize) -> c_int;

    /// Connects; blocks for at most `client_mount_timeout`.
    ///
    /// # Safety
    /// `cluster` is a handle that is not connected, used by no other thread.
    pub fn rados_connect(cluster: rados_t) -> c_int;

    /// Ends the connection and frees the handle. Joins librados' threads: called on one of them it never returns.
    /// Operations under way are forgotten without their callbacks; callbacks already queued run before it returns.
    ///
    /// # Safety
    /// `cluster` is a handle, not used by anyone any more, and every I/O context of it that nothing is under way on
    /// is destroyed.
    pub fn rados_shutdown(cluster: rados_t);

    /// Writes the cluster's fsid (36 characters) and a NUL.
    ///
    /// # Safety
    /// `cluster` is a connected handle; `buf` has room for `len` bytes.
    pub fn rados_cluster_fsid(cluster: rados_t, buf: *mut c_char, len: usize) -> c_int;

    /// Writes our own address as Ceph's maps show it; free it with [`rados_buffer_free`].
    ///
    /// # Safety
    /// `cluster` is a connected handle; `addrs` can be written to.
    pub fn rados_getaddrs(cluster: rados_t, addrs: *mut *mut c_char) -> c_int;

    /// Our own number: the `4126` of `client.4126`.
    ///
    /// # Safety
    /// `cluster` is a connected handle.
    pub fn rados_get_instance_id(cluster: rados_t) -> u64;

    /// Blocks until the client has the OSD map that is the newest when the mons are asked.
    ///
    /// # Safety
    /// `cluster` is a connected handle; not on a librados thread.
    pub fn rados_wait_for_latest_osdmap(cluster: rados_t) -> c_int;

    /// Sends a command (JSON) to the mons and waits for the answer. `outbuf` and `outs` are to be freed with
    /// [`rados_buffer_free`], also after an error.
    ///
    /// # Safety
    /// `cluster` is a connected handle; `cmd` points to `cmdlen` NUL-terminated strings, `inbuf` to `inbuflen` bytes;
    /// the rest can be written to; not on a librados thread.
    pub fn rados_mon_command(
        cluster: rados_t,
        cmd: *mut *const c_char,
        cmdlen: usize,
        inbuf: *const c_char,
        inbuflen: usize,
        outbuf: *mut *mut c_char,
        outbuflen: *mut usize,
        outs: *mut *mut c_char,
        outslen: *mut usize,
    ) -> c_int;

    /// [`rados_mon_command`] to the mon `name`, and no other.
    ///
    /// # Safety
    /// As for [`rados_mon_command`]; `name` is NUL-terminated.
    pub fn rados_mon_command_target(
        cluster: rados_t,
        name: *const c_char,
        cmd: *mut *const c_char,
        cmdlen: usize,
        inbuf: *const c_char,
        inbuflen: usize,
        outbuf: *mut *mut c_char,
        outbuflen: *mut usize,
        outs: *mut *mut c_char,
        outslen: *mut usize,
    ) -> c_int;

    /// Frees what librados returned.
    ///
    /// # Safety
    /// `buf` is null or was returned by librados as to be freed, and was not freed.
    pub fn rados_buffer_free(buf: *mut c_char);

    /// Opens a pool by its number. `-ENOENT`: no such pool in the client's present map.
    ///
    /// # Safety
    /// `cluster` is a connected handle; `ioctx` can be written to.
    pub fn rados_ioctx_create2(cluster: rados_t, pool_id: i64, ioctx: *mut rados_ioctx_t) -> c_int;

    /// Gives up a pool handle.
    ///
    /// # Safety
    /// `io` is a live handle without a *read* under way: librados keeps only a plain pointer to it in those.
    pub fn rados_ioctx_destroy(io: rados_ioctx_t);

    /// Directs later operations to a namespace; the empty one is the default.
    ///
    /// # Safety
    /// `io` is a live handle that no other thread submits on meanwhile; `nspace` is NUL-terminated.
    pub fn rados_ioctx_set_namespace(io: rados_ioctx_t, nspace: *const c_char);

    /// Makes a completion whose callback gets `cb_arg`.
    ///
    /// # Safety
    /// `pc` can be written to; `cb_complete` may be called with `cb_arg` on another thread.
    pub fn rados_aio_create_completion2(
        cb_arg: *mut c_void,
        cb_complete: rados_callback_t,
        pc: *mut rados_completion_t,
    ) -> c_int;

    /// Gives up our reference to a completion; allowed at once after submission.
    ///
    /// # Safety
    /// `c` is a completion that was not released.
    pub fn rados_aio_release(c: rados_completion_t);

    /// The result of a complete operation.
    ///
    /// # Safety
    /// `c` is a completion that was not released, or the one a callback was called with.
    pub fn rados_aio_get_return_value(c: rados_completion_t) -> c_int;

    /// The version of the object that a complete operation saw or made. Each write raises it, also one to a lock.
    ///
    /// # Safety
    /// As for [`rados_aio_get_return_value`].
    pub fn rados_aio_get_version(c: rados_completion_t) -> u64;

    /// Asks for size and time of an object.
    ///
    /// # Safety
    /// `io` is a live handle and `psize` can be written to until the callback has run; `o` is NUL-terminated;
    /// `completion` is fresh. `pmtime` may be null (checked in librados since 0.67), else as `psize`.
    pub fn rados_aio_stat(
        io: rados_ioctx_t,
        o: *const c_char,
        completion: rados_completion_t,
        psize: *mut u64,
        pmtime: *mut time_t,
    ) -> c_int;

    /// Makes an empty compound read operation.
    ///
    /// # Safety
    /// None needed; to be freed with [`rados_release_read_op`].
    pub fn rados_create_read_op() -> rados_read_op_t;

    /// Frees a compound read operation; allowed at once after submission, which takes its contents.
    ///
    /// # Safety
    /// `read_op` was not freed.
    pub fn rados_release_read_op(read_op: rados_read_op_t);

    /// Adds a read of at most `max_return` omap entries after the key `start_after`.
    ///
    /// # Safety
    /// `read_op` is not submitted yet; the strings are NUL-terminated; `iter` is written now, `pmore` and `prval` when
    /// the operation completes.
    pub fn rados_read_op_omap_get_vals2(
        read_op: rados_read_op_t,
        start_after: *const c_char,
        filter_prefix: *const c_char,
        max_return: u64,
        iter: *mut rados_omap_iter_t,
        pmore: *mut c_uchar,
        prval: *mut c_int,
    );

    /// Submits a compound read operation.
    ///
    /// # Safety
    /// `io` is a live handle until the callback has run; `oid` is NUL-terminated; `completion` is fresh.
    pub fn rados_aio_read_op_operate(
        read_op: rados_read_op_t,
        io: rados_ioctx_t,
        completion: rados_completion_t,
        oid: *const c_char,
        flags: c_int,
    ) -> c_int;

    /// Writes the next entry; a null key means that there are no more.
    ///
    /// # Safety
    /// `iter` belongs to a complete operation; the rest can be written to; what they then point to lives as long as
    /// `iter`.
    pub fn rados_omap_get_next2(
        iter: rados_omap_iter_t,
        key: *mut *mut c_char,
        val: *mut *mut c_char,
        key_len: *mut usize,
        val_len: *mut usize,
    ) -> c_int;

    /// Frees the entries.
    ///
    /// # Safety
    /// `iter` belongs to an operation that is complete or was never submitted, and was not freed.
    pub fn rados_omap_get_end(iter: rados_omap_iter_t);

    /// Makes an empty compound write operation: its steps take effect together, or none does.
    ///
    /// # Safety
    /// None needed; to be freed with [`rados_release_write_op`].
    pub fn rados_create_write_op() -> rados_write_op_t;

    /// Frees a compound write operation; allowed at once after submission, which takes its contents.
    ///
    /// # Safety
    /// `write_op` was not freed.
    pub fn rados_release_write_op(write_op: rados_write_op_t);

    /// Adds the creation of the object.
    ///
    /// # Safety
    /// `write_op` is not submitted yet; `category` is null or NUL-terminated (unused since 0.94).
    pub fn rados_write_op_create(write_op: rados_write_op_t, exclusive: c_int, category: *const c_char);

    /// Adds a comparison with the value of an omap key; an absent one compares as empty. Not so: the whole operation
    /// ends with `-ECANCELED`. Of an absent object: `-ENOENT`.
    ///
    /// # Safety
    /// `write_op` is not submitted yet; `key` and `val` point to so many bytes, which are copied now; `prval` is null or
    /// written when the operation completes.
    pub fn rados_write_op_omap_cmp2(
        write_op: rados_write_op_t,
        key: *const c_char,
        comparison_operator: u8,
        val: *const c_char,
        key_len: usize,
        val_len: usize,
        prval: *mut c_int,
    );

    /// Adds the setting of omap entries.
    ///
    /// # Safety
    /// `write_op` is not submitted yet; each array has `num` elements, and each pointer so many bytes as the array of
    /// lengths says, which are copied now.
    pub fn rados_write_op_omap_set2(
        write_op: rados_write_op_t,
        keys: *const *const c_char,
        vals: *const *const c_char,
        key_lens: *const usize,
        val_lens: *const usize,
        num: usize,
    );

    /// Adds the removal of omap entries; absent ones are no error.
    ///
    /// # Safety
    /// As for [`rados_write_op_omap_set2`].
    pub fn rados_write_op_omap_rm_keys2(
        write_op: rados_write_op_t,
        keys: *const *const c_char,
        key_lens: *const usize,
        keys_len: usize,
    );

    /// Submits a compound write operation.
    ///
    /// # Safety
    /// `io` is a live handle; `oid` is NUL-terminated; `completion` is fresh; `mtime` may be null, else it is read now.
    pub fn rados_aio_write_op_operate(
        write_op: rados_write_op_t,
        io: rados_ioctx_t,
        completion: rados_completion_t,
        oid: *const c_char,
        mtime: *mut time_t,
        flags: c_int,
    ) -> c_int;

    /// Takes or renews an exclusive lock on an object, which it creates if need be. Waits for the answer. `-EBUSY`:
    /// somebody else holds it. The time counts by the clock of the PG's primary.
    ///
    /// # Safety
    /// `io` is a live handle; the strings are NUL-terminated; `duration` is null (for ever) or read now; not on a
    /// librados thread.
    pub fn rados_lock_exclusive(
        io: rados_ioctx_t,
        oid: *const c_char,
        name: *const c_char,
        cookie: *const c_char,
        desc: *const c_char,
        duration: *mut timeval,
        flags: u8,
    ) -> c_int;

    /// Gives up a lock of this client. Waits for the answer. `-ENOENT`: it is not held by this client and cookie.
    ///
    /// # Safety
    /// `io` is a live handle; the strings are NUL-terminated; not on a librados thread.
    pub fn rados_unlock(
        io: rados_ioctx_t,
        o: *const c_char,
        name: *const c_char,
        cookie: *const c_char,
    ) -> c_int;

    /// Writes who holds a lock: lists of NUL-terminated strings. Waits for the answer, which is how many hold it.
    /// `-ERANGE`: a list does not fit.
    ///
    /// # Safety
    /// `io` is a live handle; the strings are NUL-terminated; there is room for as many bytes as each length says; the
    /// rest can be written to; not on a librados thread.
    pub fn rados_list_lockers(
        io: rados_ioctx_t,
        o: *const c_char,
        name: *const c_char,
        exclusive: *mut c_int,
        tag: *mut c_char,
        tag_len: *mut usize,
        clients: *mut c_char,
        clients_len: *mut usize,
        cookies: *mut c_char,
        cookies_len: *mut usize,
        addrs: *mut c_char,
        addrs_len: *mut usize,
    ) -> isize;

    /// Reads an xattr of an object. Waits for the answer. The length of the value; `-ERANGE` if it is longer than `len`.
    ///
    /// # Safety
    /// `io` is a live handle; the strings are NUL-terminated; `buf` has room for `len` bytes; not on a librados thread.
    pub fn rados_getxattr(
        io: rados_ioctx_t,
        o: *const c_char,
        name: *const c_char,
        buf: *mut c_char,
        len: usize,
    ) -> c_int;

    /// Takes a lock away from another client (`client.4126`). Waits for the answer. `-ENOENT`: that client does not
    /// hold it.
    ///
    /// # Safety
    /// As for [`rados_unlock`].
    pub fn rados_break_lock(
        io: rados_ioctx_t,
        o: *const c_char,
        name: *const c_char,
        client: *const c_char,
        cookie: *const c_char,
    ) -> c_int;
}
