//! Asynchronous operations: who owns what while librados works, and how the result comes back.
//!
//! An operation's context is a [`Box`] that belongs to C from submission until librados calls back. The callback takes
//! it back, sends the result into the channel and frees it. Three rules make that safe:
//!
//! * **Giving up never touches the context.** Dropping the receiver only makes the later send fail, which is ignored.
//!   So giving up never waits, and librados never writes into freed memory.
//! * **The context keeps the pool handle alive, but not the cluster.** A read under way follows a plain pointer to
//!   its pool handle, which therefore lives in the context too. The cluster handle must *not*: the last reference
//!   to it runs `rados_shutdown`, which joins the librados threads and would wait for itself in a callback. The
//!   cluster is kept alive by [`Cluster`](crate::ceph::rados::cluster::Cluster) and [`IoCtx`](crate::ceph::rados::ioctx::IoCtx) values only,
//!   and none can get into a context: it holds a handle, a tag, a sender and plain data.
//! * **At shutdown, what is under way is leaked.** `rados_shutdown` forgets those operations without calling back.
//!   Their contexts, with the pool handles in them, are a few hundred bytes each and stay until the process ends;
//!   to free them would need to know that no librados thread holds them any more, and nothing tells.
//!
//! A callback that was queued already still runs inside `rados_shutdown`, while the client it needs exists.

use std::ffi::{CString, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use nix::errno::Errno;

use crate::ceph::rados::handle::PoolHandle;

/// The end of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completed<T> {
    /// What the caller named the operation.
    pub tag: u64,
    /// `ETIMEDOUT` means *unknown*: the operation had no answer within the time set at connecting.
    pub result: Result<T, Errno>,
}

/// One client that watches an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watcher {
    /// As Ceph prints it: `10.0.0.5:0/525740053`.
    pub address: String,
    /// The number in `client.4126`.
    pub client: i64,
    /// Names the watch within that client.
    pub cookie: u64,
    /// Seconds after which a silent watcher is dropped.
    pub timeout: u32,
}

/// What an RBD header says about who uses the image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// The clients that watch it; krbd and librbd watch what they have open for writing.
    pub watchers: Vec<Watcher>,
    /// The encoded exclusive lock (`lock_info_t`), if anybody ever took it.
    pub lock: Option<Vec<u8>>,
    /// The encoded number of the pool that its data lies in, if that is another one and was asked for.
    pub data_pool: Option<Vec<u8>>,
}

/// Some entries of an omap, in key order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OmapPage {
    /// Key and value; keys that are not UTF-8 are neither RBD's nor the ledger's and are converted lossily.
    pub entries: Vec<(String, Vec<u8>)>,
    /// After which key the next page begins, if there is one. The last key as it is, which need not be UTF-8.
    pub next: Option<CString>,
    /// The object's version that was read: pages of one version belong together.
    pub version: u64,
}

/// The plain data of one kind of operation: what librados writes into, and how to read it afterwards.
pub(super) trait Reply {
    /// What the caller gets, made on a librados thread.
    type Output: Send + 'static;
}

/// The context of an operation under way.
pub(super) struct Pending<R: Reply> {
    /// What librados writes into; at a fixed address until the callback.
    pub(super) reply: R,
    tag: u64,
    to: Sender<Completed<R::Output>>,
    /// Only held: see the second rule above.
    _handle: Arc<PoolHandle>,
}

impl<R: Reply> Pending<R> {
    /// Hands a context to `start`, which submits the operation with it and returns librados' answer. On a negative
    /// one the operation was refused, nobody will call back, and the context is freed here.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn submit(
        handle: &Arc<PoolHandle>,
        reply: R,
        tag: u64,
        to: &Sender<Completed<R::Output>>,
        start: impl FnOnce(*mut Self) -> c_int,
    ) -> Result<(), Errno> {
        let context =
            Box::into_raw(Box::new(Self { reply, tag, to: to.clone(), _handle: Arc::clone(handle) }));
        let rc = start(context);
        if rc < 0 {
            // SAFETY: `context` came from `Box::into_raw` above, and a refused operation was handed to nobody.
            drop(unsafe { Box::from_raw(context) });
            return Err(Errno::from_raw(-rc));
        }
        Ok(())
    }

    /// Takes a context back, in the callback: gives `finish` the reply and sends what it makes of it. Never unwinds.
    ///
    /// # Safety
    /// `arg` is the context `submit` passed to `start`, and this is the only call for it.
    pub(super) unsafe fn complete(arg: *mut c_void, finish: impl FnOnce(R) -> Result<R::Output, Errno>) {
        // SAFETY: by contract this is the pointer `submit` made, and nobody else takes it back.
        let context = unsafe { Box::from_raw(arg.cast::<Self>()) };
        let Self { reply, tag, to, _handle } = *context;
        // A panic is a bug, but the receiver must hear of the operation's end, and librados must not be unwound.
        let result = catch_unwind(AssertUnwindSafe(|| finish(reply))).unwrap_or(Err(Errno::EIO));
        // It fails if nobody waits any more, which is what dropping the receiver means.
        let _ = to.send(Completed { tag, result });
    }
}

/// A completion of librados' C API, ours until dropped; librados has its own reference while it needs one.
pub(super) struct Completion(ceph_sys::rados_completion_t);

impl Completion {
    /// A completion that calls `callback` with `context`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(super) fn new<R: Reply>(
        context: *mut Pending<R>,
        callback: unsafe extern "C" fn(ceph_sys::rados_completion_t, *mut c_void),
    ) -> Result<Self, Errno> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` can be written to; the callback is called once at most, on a librados thread, and all that is
        // in a context may go there (a handle, a tag, a sender and plain data).
        let rc =
            unsafe { ceph_sys::rados_aio_create_completion2(context.cast(), Some(callback), &raw mut raw) };
        if rc < 0 { Err(Errno::from_raw(-rc)) } else { Ok(Self(raw)) }
    }

    /// For one submission.
    pub(super) fn raw(&self) -> ceph_sys::rados_completion_t {
        self.0
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        // SAFETY: made by `new` and released only here.
        unsafe { ceph_sys::rados_aio_release(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{TryRecvError, channel};

    use nix::libc;

    use super::*;

    struct Number;

    impl Reply for Number {
        type Output = u32;
    }

    #[test]
    fn a_refused_operation_frees_its_context() {
        let handle = PoolHandle::of_nothing();
        let holders = Arc::strong_count(&handle);
        let (to, results) = channel();
        assert_eq!(Pending::submit(&handle, Number, 7, &to, |_| -libc::ENOMEM), Err(Errno::ENOMEM));
        assert_eq!(Arc::strong_count(&handle), holders);
        drop(to);
        assert_eq!(results.try_recv(), Err(TryRecvError::Disconnected));
    }

    #[test]
    fn a_panic_is_told_to_the_receiver_and_goes_no_further() {
        let handle = PoolHandle::of_nothing();
        let holders = Arc::strong_count(&handle);
        let (to, results) = channel();
        let mut context = ptr::null_mut();
        let submitted = Pending::submit(&handle, Number, 7, &to, |pending| {
            context = pending;
            0
        });
        assert_eq!(submitted, Ok(()));
        assert_eq!(Arc::strong_count(&handle), holders + 1);
        // SAFETY: the context `submit` made, taken back once.
        unsafe { Pending::<Number>::complete(context.cast(), |_| panic!("on purpose")) };
        assert_eq!(results.try_recv(), Ok(Completed { tag: 7, result: Err(Errno::EIO) }));
        assert_eq!(Arc::strong_count(&handle), holders);
    }
}
