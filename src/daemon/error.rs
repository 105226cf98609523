//! Why the daemon does not run.

use std::io;

use crate::control::socket::ControlSocketError;
use crate::daemon::log;
use crate::descriptors::DescriptorsError;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The log cannot be written.
    #[error(transparent)]
    Log(#[from] log::LogError),
    /// The control socket.
    #[error(transparent)]
    Door(#[from] ControlSocketError),
    /// It would fail oddly, or librados would end it.
    #[error(transparent)]
    Files(#[from] DescriptorsError),
    /// The system gives no runtime, no signals, no name.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}
