//! The platform, as the guardian uses it: read, listen, and a few conditional writes.
//!
//! Every request has a connection of its own and one deadline around connecting, TLS, request and answer: a
//! connection kept to a lost member would be found dead only by the next request, when there is no time for it.

pub mod api;
pub mod client;
mod connection;
pub mod endpoint;
pub mod enroll;
pub mod error;
pub mod events;
mod exchange;
mod frames;
pub mod gate;
pub mod options;
pub mod path;
mod profiles;
pub mod read;
pub mod tls;

use std::future::Future;
use std::io;

/// Runs what talks to Incus on the calling thread, for verbs.
///
/// # Errors
/// The runtime needs a few file descriptors.
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
