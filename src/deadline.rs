//! How long something may take, and whether somebody asked to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::clock;

/// A point in time, or the operator's Ctrl-C, whichever comes first.
#[derive(Debug, Clone)]
pub struct Deadline {
    at: Instant,
    interrupted: Arc<AtomicBool>,
}

/// It did not happen in time. What was waited for is unknown, not undone (INV-9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeadlineError {
    /// The time is over.
    #[error("timed out")]
    Over,
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

/// How often a wait looks whether it was interrupted.
const LOOK: Duration = Duration::from_millis(50);

impl Deadline {
    /// A deadline this long from now; a signal handler sets `interrupted`.
    pub fn after(timeout: Duration, interrupted: Arc<AtomicBool>) -> Self {
        Self { at: clock::monotonic() + timeout, interrupted }
    }

    /// This deadline, but at most this long from now.
    pub fn at_most(&self, timeout: Duration) -> Self {
        Self { at: self.at.min(clock::monotonic() + timeout), interrupted: Arc::clone(&self.interrupted) }
    }

    /// This deadline, moved later by this long.
    pub fn later_by(&self, time: Duration) -> Self {
        Self { at: self.at + time, interrupted: Arc::clone(&self.interrupted) }
    }

    /// A deadline this long from now that Ctrl-C ends as well.
    pub fn anew(&self, timeout: Duration) -> Self {
        Self::after(timeout, Arc::clone(&self.interrupted))
    }

    /// How much time is left.
    ///
    /// # Errors
    /// The deadline is over, or Ctrl-C was pressed.
    pub fn left(&self) -> Result<Duration, DeadlineError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(DeadlineError::Interrupted);
        }
        let left = self.at.saturating_duration_since(clock::monotonic());
        if left.is_zero() { Err(DeadlineError::Over) } else { Ok(left) }
    }

    /// The next item of a channel; `None` when no sender is left.
    ///
    /// # Errors
    /// Nothing came in time.
    pub fn receive<T>(&self, from: &Receiver<T>) -> Result<Option<T>, DeadlineError> {
        loop {
            match from.recv_timeout(self.left()?.min(LOOK)) {
                Ok(item) => return Ok(Some(item)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Waits a little before something is looked at again.
    ///
    /// # Errors
    /// There is no time for it.
    #[allow(clippy::disallowed_methods)]
    pub fn pause(&self, pause: Duration) -> Result<(), DeadlineError> {
        std::thread::sleep(self.left()?.min(pause));
        self.left().map(|_| ())
    }
}

/// Awaits, but no longer than this.
///
/// # Errors
/// It did not happen in time.
pub async fn within<F: Future>(timeout: Duration, future: F) -> Result<F::Output, DeadlineError> {
    tokio::time::timeout(timeout, future).await.map_err(|_| DeadlineError::Over)
}

/// Waits before something is tried again, as a task.
pub async fn rest(time: Duration) {
    tokio::time::sleep(time).await;
}
