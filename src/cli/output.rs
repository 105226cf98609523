//! Standard output and standard error of a verb. librados prints on the standard output now and then ("server name not found: …"), which would
//! break what scripts read: so descriptor 1 leads to the log from the start, and what it led to is kept for the answer.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::sync::OnceLock;

use crate::printable::lines;

static ANSWER: OnceLock<File> = OnceLock::new();

/// Keeps the standard output for the answer. Before the first call of librados.
///
/// # Errors
/// There is no descriptor left.
pub(super) fn keep() -> io::Result<()> {
    let kept = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    nix::unistd::dup2_stdout(io::stderr())?;
    // A second call would keep the log.
    let _ = ANSWER.set(kept);
    Ok(())
}

/// Where the answer goes.
pub(super) fn answer() -> Box<dyn Write> {
    match ANSWER.get() {
        Some(kept) => Box::new(kept),
        None => Box::new(io::stdout()),
    }
}

/// Home, and clear what is there: the next picture replaces the last one where a terminal shows it. Tells whether anybody
/// reads still.
///
/// # Errors
/// It cannot be written.
pub(super) fn clear() -> io::Result<bool> {
    let terminal = ANSWER.get().map_or_else(|| io::stdout().is_terminal(), File::is_terminal);
    if !terminal {
        return Ok(true);
    }
    print("\x1b[H\x1b[2J")
}

/// Prints a line on standard error as `eprintln!` does, and goes on if nobody reads it (`2>&1 | head -1`): what a verb does must not
/// depend on that.
macro_rules! tell {
    ($($words:tt)*) => { $crate::cli::output::line(format_args!($($words)*)) };
}
pub(super) use tell;

pub(super) fn line(words: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{words}");
}

/// Prints the answer. Tells whether anybody reads it.
///
/// # Errors
/// It cannot be written.
pub(super) fn print(text: &str) -> io::Result<bool> {
    match answer().write_all(text.as_bytes()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Prints a line for the operator on standard error.
pub(super) fn say(what: &str) {
    line(format_args!("rbd-guardian: {}", lines(what)));
}
