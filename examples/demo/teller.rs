//! Tells each stage as it happens.

use std::time::Duration;

use lab::monotonic;

/// The voice of one half, or of all.
#[derive(Clone, Copy)]
pub(crate) struct Teller {
    began: Duration,
    half: &'static str,
}

impl Teller {
    /// Counts from now.
    pub(crate) fn new() -> Self {
        Self { began: monotonic(), half: "" }
    }

    /// The same clock, for one half.
    pub(crate) fn of(self, half: &'static str) -> Self {
        Self { half, ..self }
    }

    /// A line, with the seconds since the start.
    pub(crate) fn say(&self, what: &str) {
        println!("{:6.1} s  {:<7}  {what}", (monotonic() - self.began).as_secs_f64(), self.half);
    }
}
