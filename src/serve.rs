//! What others may see of this guardian over HTTP: metrics, health, `status`, events and a page for people.
//!
//! A thread of its own serves it, with limits on connections and time. It only ever reads the newest picture that the
//! event loop has published: no scrape, no slow reader and no crowd of them reaches the loop that fences.

mod catalogue;
pub(crate) mod events;
mod families;
pub(crate) mod figures;
mod http;
mod metrics;
mod page;
mod process;
pub(crate) mod published;
mod ready;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::{io, thread};

use tokio::sync::watch;

use crate::serve::published::Published;

/// Where the event loop leaves what is to be served.
#[derive(Debug)]
pub(crate) struct Publisher(watch::Sender<Arc<Published>>);

/// Told of what becomes of the address: well or not, in words.
pub(crate) type Tell = fn(bool, &str);

impl Publisher {
    /// Serves from now on, for as long as this lives. An address that cannot be used is tried again: nothing else waits
    /// for it.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(crate) fn start(listen: SocketAddr, tell: Tell) -> io::Result<Self> {
        let (to, published) = watch::channel(Arc::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("serve".to_owned()).spawn(move || {
            runtime.block_on(http::serve(listen, published, tell));
            runtime.shutdown_background();
        })?;
        Ok(Self(to))
    }

    /// Waits for nobody.
    pub(crate) fn publish(&self, picture: Published) {
        self.0.send_replace(Arc::new(picture));
    }
}
