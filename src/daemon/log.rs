//! The log: what the core reports and what troubles the shell, with values as fields.
//!
//! `error`: an alarm somebody must act on. `warn`: something is not as it should be and may mend itself. `info`: a fence
//! or the lead changed its state, and why. Nothing is logged that did not change.
//!
//! Lines are written by a thread of their own: a journald that hangs, or a pipe that nobody reads, keeps that thread and
//! nobody else. What does not fit in the queue meanwhile is dropped, and counted in the first line after.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use std::{io, panic, thread};

use jiff::Timestamp;
use rbd_guardian_core::guardian::report::Level;
use tracing::Dispatch;
use tracing::dispatcher::with_default;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::clock;
use crate::config::daemon::LogForm;
use crate::printable::printable;
use crate::serve::published::{EventLine, EventLines};

/// Lines that wait to be written, and the longest of them: together no more than 8 MiB.
const QUEUE: usize = 1024;
const LONGEST: usize = 8 * 1024;
/// How long a panic waits to be written.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// There is no thread for it.
    #[error("cannot start the log: {0}")]
    Thread(#[from] io::Error),
    /// The process has one already.
    #[error("the log was started before")]
    Twice,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Where lines go.
#[derive(Debug)]
struct Log {
    to: SyncSender<LogEntry>,
    dropped: AtomicU64,
}

#[derive(Debug)]
enum LogEntry {
    Line(LogLine),
    /// All before it is written.
    Flush(SyncSender<()>),
}

#[derive(Debug)]
struct LogLine {
    at: Timestamp,
    level: Level,
    code: String,
    member: Option<String>,
    text: String,
}

thread_local! {
    /// When what is being written was said.
    static SAID: Cell<Option<Timestamp>> = const { Cell::new(None) };
}

/// Of when a line was said, not of when it is written.
struct EntryTime;

impl FormatTime for EntryTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        write!(writer, "{:.6}", SAID.get().unwrap_or_else(clock::wall))
    }
}

/// Starts to log: to journald if stderr is its stream (`JOURNAL_STREAM`, systemd.exec(5)) and it takes it, else to
/// stderr. Each value is a field of its own (`journalctl F_MEMBER=n1`).
///
/// # Errors
/// See [`LogError`].
pub(super) fn start(form: LogForm) -> Result<(), LogError> {
    let (to, entries) = sync_channel(QUEUE);
    LOG.set(Log { to, dropped: AtomicU64::new(0) }).map_err(|_| LogError::Twice)?;
    // The subscriber is this thread's alone: what a library says on another thread would be written there. Even the first
    // greeting to journald waits for one that hangs.
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        let dispatch = subscriber(form);
        with_default(&dispatch, || LOG.get().into_iter().for_each(|log| log.write(&entries)));
    })?;
    // The default one writes to stderr, in the thread that panics.
    panic::set_hook(Box::new(|panic| {
        line(Level::Error, "panic", None, &panic.to_string());
        flush(LAST_WORDS);
    }));
    Ok(())
}

fn subscriber(form: LogForm) -> Dispatch {
    let registry = tracing_subscriber::registry().with(LevelFilter::INFO);
    let journal = std::env::var_os("JOURNAL_STREAM").map(|_| tracing_journald::layer());
    match journal {
        Some(Ok(journal)) => return registry.with(journal).into(),
        Some(Err(error)) => {
            let text = format!("journald does not accept the log ({error}): logging to stderr");
            line(Level::Warn, "no-journal", None, &text);
        }
        None => {}
    }
    let lines = tracing_subscriber::fmt::layer()
        .with_timer(EntryTime)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(false)
        // They would be printed to the same stderr.
        .log_internal_errors(false);
    match form {
        LogForm::Text => registry.with(lines).into(),
        LogForm::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            registry.with(lines).into()
        }
    }
}

/// What was said last, and how often, for whoever watches over HTTP.
#[derive(Debug, Default)]
struct Said {
    lines: EventLines,
    seq: u64,
    counts: BTreeMap<&'static str, u64>,
}

static RECENT: Mutex<Option<Said>> = Mutex::new(None);

fn with_recent<T>(then: impl FnOnce(&mut Said) -> T) -> T {
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    then(recent.get_or_insert_default())
}

pub(super) fn recent() -> EventLines {
    with_recent(|said| said.lines.clone())
}

pub(super) fn counts() -> BTreeMap<&'static str, u64> {
    with_recent(|said| said.counts.clone())
}

/// What became of the address where metrics are served.
pub(super) fn served(well: bool, text: &str) {
    let (level, code) = if well { (Level::Info, "serving") } else { (Level::Warn, "not-serving") };
    line(level, code, None, text);
}

/// What became of the control socket.
pub(super) fn reachable(well: bool, text: &str) {
    let (level, code) = if well { (Level::Info, "socket") } else { (Level::Warn, "no-socket") };
    line(level, code, None, text);
}

fn keep(line: &LogLine) {
    let name = match line.level {
        Level::Debug => return,
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    };
    let LogLine { at, level, code, member, text } = line;
    with_recent(|said| {
        said.seq += 1;
        *said.counts.entry(name).or_default() += 1;
        let (code, member, text) = (code.clone(), member.clone(), text.clone());
        said.lines.push(EventLine { seq: said.seq, at: *at, level: *level, code, member, text });
    });
}

/// A line: how loud, a stable word for filters, the member it is about, and in words. Waits for nobody.
pub(super) fn line(level: Level, code: &str, member: Option<&str>, text: &str) {
    let Some(log) = LOG.get() else { return };
    let line = line_of(level, code, member, text);
    keep(&line);
    if log.to.try_send(LogEntry::Line(line)).is_err() {
        log.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

fn line_of(level: Level, code: &str, member: Option<&str>, text: &str) -> LogLine {
    let text = printable(text);
    let whole = || (0..=LONGEST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    let end = if text.len() <= LONGEST { text.len() } else { whole() };
    LogLine {
        at: clock::wall(),
        level,
        code: code.to_owned(),
        member: member.map(|member| printable(member).into_owned()),
        text: text.get(..end).unwrap_or_default().to_owned(),
    }
}

/// Waits until what was said is written, no longer than this.
pub(super) fn flush(within: Duration) {
    let Some(log) = LOG.get() else { return };
    let (to, written) = sync_channel(1);
    // Where the queue is full, the log hangs.
    if log.to.try_send(LogEntry::Flush(to)).is_ok() {
        let _ = written.recv_timeout(within);
    }
}

impl Log {
    /// On a thread of its own, for as long as the process lives.
    fn write(&self, entries: &Receiver<LogEntry>) {
        for entry in entries {
            match entry {
                LogEntry::Line(line) => write(&line),
                LogEntry::Flush(written) => drop(written.try_send(())),
            }
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                write(&LogLine {
                    at: clock::wall(),
                    level: Level::Warn,
                    code: "log-dropped".to_owned(),
                    member: None,
                    text: format!("{dropped} log lines were dropped: nobody read the log, or journald hung"),
                });
            }
        }
    }
}

fn write(line: &LogLine) {
    let LogLine { at, level, code, member, text } = line;
    let member = member.as_deref();
    SAID.set(Some(*at));
    match level {
        Level::Debug => tracing::debug!(code, member, "{text}"),
        Level::Info => tracing::info!(code, member, "{text}"),
        Level::Warn => tracing::warn!(code, member, "{text}"),
        Level::Error => tracing::error!(code, member, "{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_makes_no_line_of_its_own_and_repaints_nothing() {
        let text = "image x\nlevel=info all is well\u{9b}31m";
        let line = line_of(Level::Warn, "stray-user", Some("n1\u{1b}[2J"), text);
        assert_eq!(line.member.as_deref(), Some(r"n1\u{1b}[2J"));
        assert_eq!(line.text, r"image x\u{a}level=info all is well\u{9b}31m");
    }
}
