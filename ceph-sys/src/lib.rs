//! The librados functions rbd-guardian uses, declared by hand, and a small C++ shim for what the C API lacks.
//!
//! The build floor is librados 16.2.15 (Debian 12); every symbol used is also in 17 to 20. `tests/abi` compares each
//! declaration with the installed headers and fails on drift.
//!
//! # Who owns what
//!
//! * A **cluster handle** is ours until [`rados_shutdown`], which joins librados' threads and therefore must not run
//!   on one of them, that is: not in a callback.
//! * An **I/O context** must outlive each read under way on it. librados counts references for writes only; a read
//!   keeps a plain pointer (`AioCompletionImpl::io`) and follows it when the answer comes. It is not used any more once
//!   the callback runs, so a callback may destroy it.
//! * A **completion** is counted. We release our reference as soon as the operation is submitted.
//! * The **argument of a callback**, and every buffer an operation writes into, belong to C from the moment of
//!   submission until the callback runs, which takes them back. A refused submission never calls back: then they are
//!   still ours. [`rados_shutdown`] forgets operations under way: their callbacks never run, and what they owned is
//!   leaked, on purpose, because nothing can tell us when the last thread has let go of it.
//! * The **shim** owns its C++ objects until it has called back, and lends what it found for the time of that call.
//!   Its functions never throw.
//!
//! A callback must not unwind, block, or wait for another operation: one strand runs them all.

#![allow(non_camel_case_types)] // the names are those of the headers

mod rados;
mod shim;

pub use rados::*;
pub use shim::*;
