//! The service manager, and signals.

use std::io;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What somebody wants of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// SIGTERM or SIGINT.
    End,
    /// SIGHUP.
    Reload,
    /// SIGUSR1.
    Record,
}

/// Signals that are listened to.
#[derive(Debug)]
pub(super) struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
    usr1: Signal,
}

impl Signals {
    /// Within a runtime. From now on none of them ends the process.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
        })
    }

    /// The next one. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Wish {
        tokio::select! {
            biased;
            Some(()) = self.term.recv() => Wish::End,
            Some(()) = self.int.recv() => Wish::End,
            Some(()) = self.hup.recv() => Wish::Reload,
            Some(()) = self.usr1.recv() => Wish::Record,
            // Signal streams do not end.
            else => std::future::pending().await,
        }
    }
}

/// What systemd is told (sd_notify(3)); nothing where it does not listen.
#[derive(Debug, Default)]
pub(super) struct Manager {
    ready: bool,
    status: String,
    /// How often it wants a sign of life.
    watchdog: Option<Duration>,
}

impl Manager {
    pub(super) fn find() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled(), ..Self::default() }
    }

    /// The longest the loop may rest, so that a sign of life is never late.
    pub(super) fn pulse(&self) -> Option<Duration> {
        self.watchdog.map(|period| period / 3)
    }

    /// A sign of life, by the loop itself: one that hangs gives none.
    pub(super) fn pet(&self) {
        if self.watchdog.is_some() {
            notify(&[NotifyState::Watchdog]);
        }
    }

    /// The first look is done, or it is clear what stands in its way.
    pub(super) fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            notify(&[NotifyState::Ready]);
        }
    }

    /// The line of `systemctl status`.
    pub(super) fn status(&mut self, status: String) {
        if self.status != status {
            notify(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    pub(super) fn reloading(&self) {
        if let Ok(since) = NotifyState::monotonic_usec_now() {
            notify(&[NotifyState::Reloading, since]);
        }
    }

    pub(super) fn reloaded(&self) {
        notify(&[NotifyState::Ready]);
    }

    pub(super) fn stopping(&self) {
        notify(&[NotifyState::Stopping]);
    }
}

/// What systemd does not hear it misses by its own watchdog; there is nothing to be done about it here.
fn notify(state: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}
