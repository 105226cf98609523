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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let output = runtime.block_on(future);
    // A name that is never resolved keeps a thread for half a minute. Whoever asked has a deadline, and that is over.
    runtime.shutdown_background();
    Ok(output)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_still_blocks_a_thread_keeps_no_verb_from_its_end() {
        const BLOCKED: Duration = Duration::from_secs(20);
        let (hold, held) = channel::<()>();
        let began = crate::clock::monotonic();
        block_on(async { drop(tokio::task::spawn_blocking(move || held.recv_timeout(BLOCKED))) }).unwrap();
        assert!(began.elapsed() < BLOCKED);
        drop(hold);
    }
}
