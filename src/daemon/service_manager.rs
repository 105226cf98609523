//! The service manager, and signals.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;
use std::{io, thread};

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::printable::printable;

/// What somebody wants of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignalRequest {
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
    pub(super) async fn next(&mut self) -> SignalRequest {
        tokio::select! {
            biased;
            Some(()) = self.term.recv() => SignalRequest::End,
            Some(()) = self.int.recv() => SignalRequest::End,
            Some(()) = self.hup.recv() => SignalRequest::Reload,
            Some(()) = self.usr1.recv() => SignalRequest::Record,
            // Signal streams do not end.
            else => std::future::pending().await,
        }
    }
}

/// What systemd is told (sd_notify(3)); nothing where it does not listen. A thread of its own tells it: systemd's socket
/// may be full while that one hangs.
#[derive(Debug)]
pub(super) struct Manager {
    ready: bool,
    /// There was no room for that note yet.
    owes_ready: bool,
    status: String,
    /// How often it wants a sign of life.
    watchdog: Option<Duration>,
    /// When it was told last, by the boot clock.
    told: Option<Duration>,
    to: Option<SyncSender<ManagerNote>>,
}

#[derive(Debug, PartialEq)]
enum ManagerNote {
    Alive,
    Ready,
    Status(String),
    Reloading,
    Stopping,
}

/// Notes that wait to be told.
const NOTES: usize = 64;
/// Between two looks at what it should be told.
const EVERY: Duration = Duration::from_millis(200);

impl Manager {
    pub(super) fn find() -> Self {
        let watchdog = sd_notify::watchdog_enabled();
        Self { ready: false, owes_ready: false, status: String::new(), watchdog, told: None, to: None }
    }

    /// Begins to tell it: for a daemon.
    pub(super) fn begin(&mut self) {
        let (to, notes) = sync_channel::<ManagerNote>(NOTES);
        let told =
            thread::Builder::new().name("notify".to_owned()).spawn(move || notes.iter().for_each(notify));
        self.to = told.is_ok().then_some(to);
    }

    /// The longest the loop may rest, so that a sign of life is never late.
    pub(super) fn pulse(&self) -> Option<Duration> {
        self.watchdog.map(|period| period / 3)
    }

    /// Is it time to tell it how things are? However much happens meanwhile.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        let due = self.told.is_none_or(|told| now.saturating_sub(told) >= EVERY);
        if due {
            self.told = Some(now);
        }
        due
    }

    /// A sign of life, by the loop itself: one that hangs gives none.
    pub(super) fn pet(&self) {
        if self.watchdog.is_some() {
            self.tell(ManagerNote::Alive);
        }
    }

    /// The first look is done, or it is clear what stands in its way.
    pub(super) fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            self.owes_ready = true;
            self.settle();
        }
    }

    /// The line of `systemctl status`. A line break in it would be a note of its own.
    pub(super) fn status(&mut self, status: String) {
        self.settle();
        if self.status != status && self.tell(ManagerNote::Status(printable(&status).into_owned())) {
            self.status = status;
        }
    }

    pub(super) fn reloading(&self) {
        self.tell(ManagerNote::Reloading);
    }

    pub(super) fn reloaded(&mut self) {
        self.owes_ready = true;
        self.settle();
    }

    /// Nobody would say it again: systemd would end a service that it never heard to be ready.
    fn settle(&mut self) {
        if self.owes_ready && self.tell(ManagerNote::Ready) {
            self.owes_ready = false;
        }
    }

    pub(super) fn stopping(&self) {
        self.tell(ManagerNote::Stopping);
    }

    /// Whether it fits among the notes that wait, or nobody listens.
    fn tell(&self, note: ManagerNote) -> bool {
        self.to.as_ref().is_none_or(|to| to.try_send(note).is_ok())
    }
}

/// What systemd does not hear it misses by its own watchdog; there is nothing to be done about it here.
fn notify(note: ManagerNote) {
    let told = match &note {
        ManagerNote::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
        ManagerNote::Ready => sd_notify::notify(&[NotifyState::Ready]),
        ManagerNote::Status(status) => sd_notify::notify(&[NotifyState::Status(status)]),
        ManagerNote::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|since| sd_notify::notify(&[NotifyState::Reloading, since])),
        ManagerNote::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
    };
    drop(told);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use super::*;

    fn manager(room: usize) -> (Manager, Receiver<ManagerNote>) {
        let (to, notes) = sync_channel(room);
        let watchdog = Some(Duration::from_secs(15));
        let manager = Manager {
            ready: false,
            owes_ready: false,
            status: String::new(),
            watchdog,
            told: None,
            to: Some(to),
        };
        (manager, notes)
    }

    #[test]
    fn what_others_named_is_one_line_of_status_and_no_note_of_its_own() {
        let (mut manager, notes) = manager(4);
        manager.status("fenced: n1\nREADY=1\u{1b}[2J\rMAINPID=1".to_owned());
        let Ok(ManagerNote::Status(text)) = notes.try_recv() else { panic!("no status") };
        assert_eq!(text, r"fenced: n1\u{a}READY=1\u{1b}[2J\u{d}MAINPID=1");
        manager.status("fenced: n1\nREADY=1\u{1b}[2J\rMAINPID=1".to_owned());
        assert!(notes.try_recv().is_err(), "the same is not told again");
    }

    #[test]
    fn what_did_not_fit_while_systemd_hung_is_told_when_it_reads_again() {
        let (mut manager, notes) = manager(1);
        manager.pet();
        manager.ready();
        manager.status("leading".to_owned());
        assert_eq!(notes.try_recv(), Ok(ManagerNote::Alive));
        manager.status("leading".to_owned());
        assert_eq!(notes.try_recv(), Ok(ManagerNote::Ready));
        manager.status("leading".to_owned());
        assert_eq!(notes.try_recv(), Ok(ManagerNote::Status("leading".to_owned())));
        manager.status("leading".to_owned());
        assert!(notes.try_recv().is_err());
    }
}
