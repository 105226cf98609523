//! Waiting: the one place where the lab lets time pass.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::time::{ClockId, clock_gettime};

/// Between two looks; the first ones come faster.
const POLL: Duration = Duration::from_millis(25);
/// Waits shorter than this are not worth a line.
const NOTABLE: Duration = Duration::from_millis(100);

/// Polls `look` until it yields a value, and returns it.
///
/// `look` answers `Ok(None)` for "not yet". An error is taken for "not yet" as well: while a cluster starts or is cut, most
/// questions fail before they succeed.
///
/// With `LAB_VERBOSE` in the environment, each wait worth mentioning is told on stderr.
///
/// # Errors
/// After `deadline`: what was waited for, and the last error of `look` if there was one.
pub fn wait_for<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let seen = look();
        let spent = began.elapsed();
        match seen {
            Ok(Some(found)) => {
                if spent >= NOTABLE {
                    report(&format!("{what}: after {:.2} s", spent.as_secs_f64()));
                }
                return Ok(found);
            }
            Ok(None) if spent >= deadline => bail!("waited {spent:.1?} for {what}, in vain"),
            Err(error) if spent >= deadline => {
                return Err(error)
                    .with_context(|| format!("waited {spent:.1?} for {what}, in vain; last seen"));
            }
            Ok(None) | Err(_) => std::thread::sleep(pause),
        }
        pause = POLL.min(pause * 2);
    }
}

/// Says something about the lab's doings on stderr, when `LAB_VERBOSE` is set.
pub(crate) fn report(line: &str) {
    if std::env::var_os("LAB_VERBOSE").is_some() {
        eprintln!("lab: {line}");
    }
}

/// Now, on the kernel's `CLOCK_MONOTONIC`: the clock of the writers' logs, comparable between processes.
///
/// # Panics
/// Never on Linux, which always has this clock.
#[must_use]
pub fn monotonic() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux has CLOCK_MONOTONIC"))
}
