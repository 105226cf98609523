//! A test's hook into what a guardian sends: it halts at one step of it. Only with the feature `halt`, which no build in
//! use has.
//!
//! Steps are what is sent for fences and releases, to the ledger and to the gate. They are counted from 1, and each is
//! told in the log. `RBD_GUARDIAN_HALT` names one: `after:7`, `before:7`, or by its kind `before:release-rm`,
//! `after:record-sealed:2` (the second of that kind). There the process stops itself (SIGSTOP): *before*, when all that could
//! hold the step back was passed, so that it is sent late if the process is ever continued; *after*, when what came of it
//! is not known to the core yet. `before:gate-write-MEMBER` is between the reading of a member's keys and their write
//! on that condition. `@FILE` instead names a file that holds all this, which may be written while the process runs.

use rbd_guardian_core::guardian::io::Effect;

/// What an effect sends, if that counts as a step.
#[derive(Debug)]
pub(super) struct Halt {
    #[cfg(feature = "halt")]
    kind: Option<String>,
}

#[cfg(not(feature = "halt"))]
impl Halt {
    pub(super) fn of(_: &Effect) -> Self {
        Self {}
    }

    /// Right before the gate's keys are sent to a member.
    pub(super) fn before_write(_member: &str) {}

    pub(super) fn around<T>(&self, send: impl FnOnce() -> T) -> T {
        send()
    }

    pub(super) async fn around_async<T>(&self, send: impl Future<Output = T>) -> T {
        send.await
    }
}

#[cfg(feature = "halt")]
impl Halt {
    pub(super) fn of(effect: &Effect) -> Self {
        Self { kind: asked::kind(effect) }
    }

    pub(super) fn before_write(member: &str) {
        asked::HaltPoint::begin(&format!("gate-write-{member}"));
    }

    pub(super) fn around<T>(&self, send: impl FnOnce() -> T) -> T {
        let step = self.kind.as_deref().map(asked::HaltPoint::begin);
        let sent = send();
        step.iter().for_each(asked::HaltPoint::end);
        sent
    }

    pub(super) async fn around_async<T>(&self, send: impl Future<Output = T>) -> T {
        let step = self.kind.as_deref().map(asked::HaltPoint::begin);
        let sent = send.await;
        step.iter().for_each(asked::HaltPoint::end);
        sent
    }
}

#[cfg(feature = "halt")]
mod asked {
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};

    use signal_hook::consts::SIGSTOP;
    use signal_hook::low_level::raise;

    use super::Effect;
    use crate::daemon::log;
    use rbd_guardian_core::guardian::report::Level;
    use rbd_guardian_core::model::record::Change;
    use rbd_guardian_core::model::record::FenceState;
    use rbd_guardian_core::model::record::Key;
    use rbd_guardian_core::model::record::Record;

    /// Steps so far, by kind.
    static TAKEN: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

    /// A step that is being sent.
    pub(super) struct HaltPoint {
        kind: String,
        /// Among all, and among those of its kind.
        number: u32,
        of_kind: u32,
    }

    impl HaltPoint {
        pub(super) fn begin(kind: &str) -> Self {
            let kind = kind.to_owned();
            let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
            let of_kind = *taken.entry(kind.clone()).and_modify(|count| *count += 1).or_insert(1);
            let step = Self { number: taken.values().sum(), kind, of_kind };
            drop(taken);
            log::line(Level::Info, "step", None, &format!("{} {}", step.number, step.kind));
            step.halt("before");
            step
        }

        pub(super) fn end(&self) {
            self.halt("after");
        }

        fn halt(&self, moment: &str) {
            let Ok(mut wanted) = std::env::var("RBD_GUARDIAN_HALT") else { return };
            if let Some(file) = wanted.strip_prefix('@') {
                wanted = std::fs::read_to_string(file).unwrap_or_default();
            }
            let Some((wanted_moment, wanted)) = wanted.split_once(':') else { return };
            let (kind, of_kind) = wanted.split_once(':').unwrap_or((wanted, "1"));
            let here = wanted == self.number.to_string()
                || (kind == self.kind && of_kind == self.of_kind.to_string());
            if wanted_moment == moment && here {
                log::line(Level::Info, "halt", None, &format!("{moment} {} {}", self.number, self.kind));
                log::flush(std::time::Duration::from_secs(1));
                // To this very thread, which goes no further.
                let _ = raise(SIGSTOP);
                log::line(Level::Info, "continued", None, &format!("{moment} {} {}", self.number, self.kind));
            }
        }
    }

    pub(super) fn kind(effect: &Effect) -> Option<String> {
        match effect {
            Effect::Record { changes, .. } => changes.first().map(recorded).map(str::to_owned),
            Effect::Fence(_, step) => Some(format!("fence-{}", step.name())),
            Effect::Release(_, step) => Some(format!("release-{}", step.name())),
            Effect::Retire(..) => Some("retire".to_owned()),
            Effect::PutGate { .. } => Some("gate".to_owned()),
            Effect::ReadView { .. }
            | Effect::ReadMemberState(_)
            | Effect::ReadNetworks(_)
            | Effect::Ping(_)
            | Effect::Look
            | Effect::ReadMaps { .. }
            | Effect::ReadAudit(_)
            | Effect::Sweep(_)
            | Effect::Find(_)
            | Effect::PushGate
            | Effect::BreakLock(_)
            | Effect::Start(_) => None,
        }
    }

    fn recorded(change: &Change) -> &'static str {
        match change {
            Change::Put(Record::Fence(fence)) => match fence.state {
                FenceState::Intended => "record-intended",
                FenceState::Committed => "record-committed",
                FenceState::Pending => "record-pending",
                FenceState::Sealed => "record-sealed",
                FenceState::Breached => "record-breached",
                FenceState::Releasing => "record-releasing",
                FenceState::Released => "record-released",
            },
            Change::Put(Record::Gate(_)) | Change::Remove(Key::Gate) => "record-gate",
            Change::Put(Record::Disarm(_)) | Change::Remove(Key::Disarm) => "record-disarm",
            Change::Put(Record::Member(_)) | Change::Remove(Key::Member(_)) => "record-member",
            Change::Put(Record::Request(_)) | Change::Remove(Key::Request(_)) => "record-request",
            Change::Remove(Key::Fence(_)) => "record-withdrawn",
        }
    }
}
