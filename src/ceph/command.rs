//! Reading through monitor commands.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ceph::rados::cluster::{Cluster, CommandError};
use crate::ceph::rados::errno::{ErrnoMeaning, meaning};

/// Why something could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CephReadError {
    /// The client may not do it.
    #[error(
        "the monitors refuse `{command}`: the key lacks mon `allow r` or `allow command \"{command}\"` (deploy/ceph)"
    )]
    Denied { command: String },
    /// No answer in time.
    #[error("no answer to `{command}`: is there a quorum of monitors?")]
    NoAnswer { command: String },
    /// Any other answer.
    #[error("`{command}` failed: {status}")]
    Failed {
        command: String,
        /// The monitor's words, or the errno's.
        status: String,
    },
    /// An answer of another shape than expected.
    #[error("the answer to `{command}` is not understood ({detail}): report it with the Ceph release in use")]
    Unreadable {
        command: String,
        /// What was not.
        detail: String,
    },
}

impl CephReadError {
    pub(super) fn unreadable(command: &str, detail: &dyn std::fmt::Display) -> Self {
        Self::Unreadable { command: command.to_owned(), detail: detail.to_string() }
    }

    /// May the same question get an answer later?
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoAnswer { .. } => true,
            Self::Denied { .. } | Self::Failed { .. } | Self::Unreadable { .. } => false,
        }
    }

    pub(super) fn new(command: &Value, error: &CommandError) -> Self {
        let command = command.get("prefix").and_then(Value::as_str).unwrap_or_default().to_owned();
        let status = error.to_string();
        match meaning(error.errno) {
            ErrnoMeaning::Denied => Self::Denied { command },
            ErrnoMeaning::Silence => Self::NoAnswer { command },
            ErrnoMeaning::Rejected
            | ErrnoMeaning::Blocklisted
            | ErrnoMeaning::MadeUp
            | ErrnoMeaning::Other => Self::Failed { command, status },
        }
    }
}

/// Sends a reading command to the quorum.
///
/// # Errors
/// See [`CephReadError`].
pub(super) fn read(cluster: &Cluster, command: &Value) -> Result<Vec<u8>, CephReadError> {
    cluster.mon_command(command).map_err(|error| CephReadError::new(command, &error))
}

/// Sends one to a single monitor.
///
/// # Errors
/// See [`CephReadError`].
pub(super) fn read_from(cluster: &Cluster, mon: &str, command: &Value) -> Result<Vec<u8>, CephReadError> {
    cluster.mon_command_target(mon, command).map_err(|error| CephReadError::new(command, &error))
}
