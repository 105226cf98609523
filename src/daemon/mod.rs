//! The daemon: the pure core ([`guardian`](rbd_guardian_core::guardian)) in an event loop (`event_loop`).
//!
//! One thread decides. What blocks runs on lanes, what waits for the network in tasks, each with a deadline; what became
//! of it comes back as an input. The daemon starts without Ceph, without the ledger and without Incus, says so, and
//! goes on when they come.

mod budget;
mod election;
mod error;
mod event_loop;
mod executor;
mod forwarded_requests;
mod halt;
mod hearing;
mod incus_events;
mod incus_steps;
mod job;
mod leader;
mod leadership;
mod log;
mod login;
mod measured;
mod ping;
mod recordings;
mod service_manager;

use std::io;
use std::time::Duration;

use futures_util::future::join;
use rbd_guardian_core::model::operator_request::Request;
use tokio::sync::mpsc::channel;
use tokio::task::LocalSet;

use crate::ceph::rados::cluster::Cluster;
use crate::ceph::rados::memory;
use crate::config::Config;
use crate::config::identity::Identity;
use crate::config::source::ConfigSource;
use crate::control::protocol::{ControlLine, Question};
use crate::control::socket::{Ask, ControlSocket};
pub use crate::daemon::error::DaemonError;
use crate::daemon::event_loop::EventLoop;
use crate::daemon::service_manager::Signals;
use crate::deadline::{Deadline, DeadlineError, within};
use crate::descriptors;
use crate::serve::Publisher;

/// Runs the daemon until it is asked to end.
///
/// # Errors
/// See [`DaemonError`]. A cluster that is not there is none.
pub fn run(origin: ConfigSource, config: Config) -> Result<(), DaemonError> {
    descriptors::at_least(descriptors::LEAST_DAEMON)?;
    memory::bound();
    log::start(config.daemon.log)?;
    let identity = Identity::find(&config.daemon)?;
    let ended = on_one_thread(async {
        let signals = Signals::listen()?;
        let mut door = ControlSocket::open(&config.daemon.socket, log::reachable)?;
        let listen = config.serve.listen;
        let mut driver = EventLoop::new(origin, identity, config);
        if let Some(listen) = listen {
            driver = driver.publishing(Publisher::start(listen, log::served)?);
        }
        driver.run(signals, &mut door.asks).await
    });
    log::flush(FLUSH);
    ended?
}

/// How long the last lines of the log may take.
const FLUSH: Duration = Duration::from_millis(500);

/// Does one request without a daemon: bids for the lead, and if nobody else has it, does what a daemon would do until
/// the request is answered, and gives the lead up again. Past the deadline, what was begun stands as it is.
///
/// # Errors
/// See [`DaemonError`].
pub fn run_one_request(
    origin: ConfigSource,
    config: Config,
    cluster: Cluster,
    request: Request,
    deadline: &Deadline,
    progress: &mut dyn FnMut(&str),
) -> Result<Result<ControlLine, DeadlineError>, DaemonError> {
    let identity = Identity::find(&config.daemon)?;
    let left = deadline.left().unwrap_or_default();
    on_one_thread(async {
        let signals = Signals::listen()?;
        let (to, mut asks) = channel(1);
        let (answers, mut lines) = channel(LINES);
        let driver =
            EventLoop::new(origin, identity, config).for_one_request(cluster).run(signals, &mut asks);
        let asking = async move {
            let _ = to.send(Ask { question: Question::Request(request), answers }).await;
            let answer = within(left, async {
                while let Some(line) = lines.recv().await {
                    let ControlLine::Progress(what) = line else { return line };
                    progress(&what);
                }
                ControlLine::Unavailable("interrupted".to_owned())
            });
            // The driver ends when nobody can ask any more.
            let answer = answer.await;
            drop(to);
            answer
        };
        let (ended, answer) = join(driver, asking).await;
        ended.map(|()| answer)
    })?
}

/// Lines of an answer that wait to be printed.
const LINES: usize = 64;

/// Runs on one thread, so that no task has to be `Send` and the core needs no lock.
fn on_one_thread<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let ended = local.block_on(&runtime, future);
    drop(local);
    // Name lookups may still hang on threads of the runtime's.
    runtime.shutdown_background();
    Ok(ended)
}
