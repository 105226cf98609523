//! What ends a verb before it has an answer.

use std::path::PathBuf;

use rbd_guardian_core::model::fence_id::BadFenceIdError;

use super::Exit;
use crate::ceph::command::CephReadError;
use crate::ceph::perform::StepReadError;
use crate::ceph::rados::error::ConnectError;
use crate::config::ConfigError;
use crate::control::socket::{AskError, ControlSocketError};
use crate::daemon::DaemonError;
use crate::deadline::DeadlineError;
use crate::incus::enroll::EnrollError;
use crate::incus::error::{IncusError, SetupError};
use crate::ledger::{self, LedgerOpenError, LedgerWriteError};

/// A line that says what to do, and the exit code for it.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Read(#[from] CephReadError),
    #[error(transparent)]
    NoLedger(#[from] ledger::LedgerOpenError),
    #[error(transparent)]
    Ledger(#[from] ledger::LedgerReadError),
    #[error(transparent)]
    NotAsked(#[from] ledger::LedgerWriteError),
    #[error(
        "{waiting} requests are already waiting in the ledger: does the leading guardian answer? Ask again"
    )]
    Crowded { waiting: usize },
    #[error(
        "{why} before the leading guardian took the request, which was removed from the ledger again: nothing was begun"
    )]
    NotTaken { why: String },
    #[error(
        "{why}, and the guardian that leads has taken the request and goes on with it: `rbd-guardian status` shows how \
         far it came"
    )]
    Passed { why: String },
    #[error(
        "{why}, and the ledger does not answer: the guardian that leads may have taken the request, or take it yet, and \
         carry it out; `rbd-guardian ledger` shows it once the ledger answers"
    )]
    MayBePassed { why: String },
    #[error(
        "{late}, and the guardian of this host has the request and goes on with it{state}: `rbd-guardian status` shows how \
         far it came"
    )]
    Handed { late: DeadlineError, state: String },
    #[error(
        "{why}, and the fence is recorded in the ledger: the guardian that leads next goes on with it; run it again, or \
         `rbd-guardian status`"
    )]
    Intended { why: String },
    #[error(
        "{why}, and the release is recorded in the ledger: the guardian that leads next goes on with it; run it again"
    )]
    Releasing { why: String },
    #[error("the ledger cannot be read, so the effect of a fence is unknown: {why}; run the command again")]
    NoMemory { why: String },
    #[error("{why}: the request is not recorded, so nothing was begun; run the command again")]
    NotBegun { why: String },
    #[error(transparent)]
    BadFenceId(#[from] BadFenceIdError),
    #[error("no pool '{name}': the cluster has {existing}")]
    NoPool { name: String, existing: String },
    /// Only while reading: what is late once something was sent is told by how far it came.
    #[error(
        "{0} before Ceph answered: nothing was changed; do the monitors have a quorum? Then run it again"
    )]
    Late(#[from] DeadlineError),
    #[error(
        "{late}: the host entry stays, because a client of the host may be unknown ({unread}); run it again"
    )]
    Unread { late: DeadlineError, unread: String },
    #[error("the blocklist or the pools changed during every attempt to ask the PGs: run the command again")]
    Restless,
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("{0}; run it again")]
    Incus(#[from] IncusError),
    #[error("someone else changed the project default at the same time: run the command again")]
    Raced,
    #[error("cannot read {}: {why}; the daemon saves recordings in daemon.recordings (SIGUSR1, a refusal, a breach)", .file.display())]
    NoRecording { file: PathBuf, why: std::io::Error },
    #[error("cannot write the answer: {0}")]
    Output(#[from] std::io::Error),
}

impl CliError {
    /// What ended a command that had sent something already: the caller tells how far it came.
    pub(super) fn cause(&self) -> String {
        if let Self::Late(late) = self { late.to_string() } else { self.to_string() }
    }

    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::BadFenceId(_) | Self::NoPool { .. } | Self::NoRecording { .. } => {
                Exit::Usage
            }
            Self::Connect(error) => match error {
                ConnectError::ConfNotFound { .. }
                | ConnectError::BadConf { .. }
                | ConnectError::ConfText { .. }
                | ConnectError::NoMonitors
                | ConnectError::KeyringNotFound { .. }
                | ConnectError::KeyringUnreadable { .. }
                | ConnectError::NoKey { .. }
                | ConnectError::BrokenKey { .. }
                | ConnectError::NewerKey { .. } => Exit::Usage,
                ConnectError::Refused { .. } | ConnectError::TooFewFiles(_) | ConnectError::Other { .. } => {
                    Exit::Failed
                }
                ConnectError::Unreachable { .. } | ConnectError::UnknownMonitors { .. } => Exit::CannotTell,
            },
            Self::NoLedger(error) if error.is_transient() => Exit::CannotTell,
            Self::NoLedger(error) => match error {
                LedgerOpenError::NoPool { .. }
                | LedgerOpenError::ErasureCoded { .. }
                | LedgerOpenError::OneCopy { .. } => Exit::Usage,
                LedgerOpenError::Unread(_) | LedgerOpenError::Late(_) | LedgerOpenError::Unusable { .. } => {
                    Exit::Failed
                }
            },
            Self::Ledger(ledger::LedgerReadError::Silent { .. }) => Exit::CannotTell,
            Self::Ledger(
                ledger::LedgerReadError::Denied { .. }
                | ledger::LedgerReadError::Blocklisted { .. }
                | ledger::LedgerReadError::TooLarge { .. }
                | ledger::LedgerReadError::Failed { .. },
            ) => Exit::Failed,
            Self::NotAsked(error) => match error {
                LedgerWriteError::Denied { .. }
                | LedgerWriteError::Refused { .. }
                | LedgerWriteError::NewerLedger { .. }
                | LedgerWriteError::Damaged { .. } => Exit::Failed,
                LedgerWriteError::Deposed { .. }
                | LedgerWriteError::Conflict { .. }
                | LedgerWriteError::Unknown => Exit::CannotTell,
            },
            Self::Crowded { .. }
            | Self::NotTaken { .. }
            | Self::Passed { .. }
            | Self::MayBePassed { .. }
            | Self::Handed { .. }
            | Self::Intended { .. }
            | Self::Releasing { .. }
            | Self::NoMemory { .. }
            | Self::NotBegun { .. } => Exit::CannotTell,
            Self::Read(error) if error.is_transient() => Exit::CannotTell,
            Self::Read(_) | Self::Output(_) => Exit::Failed,
            Self::Late(_) | Self::Unread { .. } | Self::Restless | Self::Incus(_) | Self::Raced => {
                Exit::CannotTell
            }
            Self::Setup(_) => Exit::Usage,
            Self::Daemon(DaemonError::Door(ControlSocketError::Taken(_))) => Exit::Refused,
            Self::Daemon(DaemonError::Log(_) | DaemonError::System(_) | DaemonError::Files(_)) => {
                Exit::Failed
            }
            Self::Ask(_) => Exit::CannotTell,
            Self::Enroll(error) => match error {
                EnrollError::BadToken(_)
                | EnrollError::NoToken { .. }
                | EnrollError::Expired(_)
                | EnrollError::InTheWay { .. }
                | EnrollError::Setup(_) => Exit::Usage,
                EnrollError::NoKey(_) | EnrollError::Unwritable { .. } | EnrollError::Refused { .. } => {
                    Exit::Failed
                }
                EnrollError::NoAddress(_) | EnrollError::Incus(_) => Exit::CannotTell,
            },
        }
    }
}

impl From<StepReadError> for CliError {
    fn from(unread: StepReadError) -> Self {
        match unread {
            StepReadError::Late(late) => Self::Late(late),
            StepReadError::Read(error) => Self::Read(error),
        }
    }
}
