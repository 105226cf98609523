//! The log: what the core reports and what troubles the shell, with values as fields.
//!
//! `error`: an alarm somebody must act on. `warn`: something is not as it should be and may mend itself. `info`: a fence
//! or the lead changed its state, and why. Nothing is logged that did not change.

use std::io;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use super::config::LogForm;
use crate::domain::guardian::report::Level;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The process has another one.
    #[error(transparent)]
    Twice(#[from] TryInitError),
}

/// Starts to log: to journald if stderr is its stream (`JOURNAL_STREAM`, systemd.exec(5)) and its socket is there, else to
/// stderr. Each value
/// is a field of its own (`journalctl F_MEMBER=n1`).
///
/// # Errors
/// See [`LogError`].
pub(super) fn start(form: LogForm) -> Result<(), LogError> {
    let registry = tracing_subscriber::registry().with(LevelFilter::INFO);
    let mut without_journal = None;
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        match tracing_journald::layer() {
            Ok(layer) => return Ok(registry.with(layer).try_init()?),
            // A guardian that cannot log there must guard all the same.
            Err(error) => without_journal = Some(error),
        }
    }
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false).with_ansi(false);
    match form {
        LogForm::Text => registry.with(lines).try_init()?,
        LogForm::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            registry.with(lines).try_init()?;
        }
    }
    if let Some(error) = without_journal {
        line(
            Level::Warn,
            "log",
            None,
            &format!("journald's socket does not take the log ({error}): it goes to stderr"),
        );
    }
    Ok(())
}

/// A line: how loud, a stable word for filters, the member it is about, and in words.
pub(super) fn line(level: Level, code: &str, member: Option<&str>, text: &str) {
    match level {
        Level::Debug => tracing::debug!(code, member, "{text}"),
        Level::Info => tracing::info!(code, member, "{text}"),
        Level::Warn => tracing::warn!(code, member, "{text}"),
        Level::Error => tracing::error!(code, member, "{text}"),
    }
}
