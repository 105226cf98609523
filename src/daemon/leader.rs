//! The lead, from the core's first effect to its last report.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use rbd_guardian_core::guardian::io::{Effect, Input, Now, Recorded};
use rbd_guardian_core::guardian::report::{Level, Report};
use rbd_guardian_core::model::operator_request::Request;
use tokio::sync::mpsc::Sender;

use crate::ceph::rados::memory;
use crate::clock;
use crate::control::protocol::ControlLine;
use crate::daemon::executor::{EffectFuture, Executor};
use crate::daemon::forwarded_requests::Requests;
use crate::daemon::recordings::RecordedGuardian;
use crate::daemon::{log, measured};
use crate::ledger::LeaseError;
use crate::serve::figures::Figures;
use rbd_guardian_core::model::epoch::LeaderEpoch;

/// A core that leads, what it acts with, and who waits for it.
pub(super) struct Leading {
    pub(super) guardian: RecordedGuardian,
    pub(super) executor: Executor,
    /// Requests that commands on other hosts left in the ledger.
    pub(super) requests: Requests,
    /// Where answers to requests go, by the requests' numbers.
    asked: BTreeMap<u64, Sender<ControlLine>>,
    next_request: u64,
    /// When to renew the lease, by the boot clock; `None` while that is under way.
    renew_at: Option<Duration>,
    figures: Rc<RefCell<Figures>>,
}

impl Leading {
    pub(super) fn new(
        guardian: RecordedGuardian,
        executor: Executor,
        lease: Duration,
        figures: Rc<RefCell<Figures>>,
    ) -> Self {
        figures.borrow_mut().forget_fences();
        let renew_at = Some(next_renewal(executor.until(), lease));
        let requests = Requests::new(clock::boot());
        let asked = BTreeMap::new();
        let mut leading = Self { guardian, executor, requests, asked, next_request: 1, renew_at, figures };
        leading.handle(Input::Tick);
        leading
    }

    pub(super) fn epoch(&self) -> LeaderEpoch {
        self.executor.held_lead.leader().epoch
    }

    pub(super) fn handle(&mut self, input: Input) {
        self.executor.note(&input);
        let bulky = matches!(&input, Input::View { view: Ok(view), .. } if view.instances.is_some())
            || matches!(&input, Input::Swept { .. });
        let mut figures = self.figures.borrow_mut();
        Figures::count(&mut figures.inputs, measured::input(&input));
        if matches!(&input, Input::Recorded(Recorded::Not { .. })) {
            figures.ledger_failures += 1;
        }
        let now = now();
        self.guardian.handle(now, input);
        figures.note_fences(now.boot, self.guardian.fence_states());
        if bulky {
            memory::give_back();
        }
    }

    /// Has the time of the lease gone by without a renewal?
    pub(super) fn is_over(&self, now: Now) -> bool {
        now.boot >= self.executor.until()
    }

    /// Is the lease to be renewed now? Then that is under way from now on.
    pub(super) fn renews(&mut self, now: Now) -> bool {
        self.renew_at.take_if(|at| *at <= now.boot).is_some()
    }

    /// A renewal ended.
    ///
    /// # Errors
    /// The lease is gone, or cannot be had any more.
    pub(super) fn renewed(
        &mut self,
        renewed: Result<Duration, LeaseError>,
        lease: Duration,
    ) -> Result<(), LeaseError> {
        match renewed {
            Ok(until) => {
                self.executor.renewed(until);
                self.renew_at = Some(next_renewal(until, lease));
                Ok(())
            }
            // It may have been renewed, or be yet: until its time is over there is time to ask again.
            Err(LeaseError::Unknown) => {
                self.renew_at = Some(clock::boot() + lease / 16);
                Ok(())
            }
            Err(
                gone @ (LeaseError::Held
                | LeaseError::Lost
                | LeaseError::Denied { .. }
                | LeaseError::Refused { .. }),
            ) => Err(gone),
        }
    }

    pub(super) fn on_time(&mut self, now: Now) {
        if self.guardian.wake_at().is_some_and(|at| at <= now.boot) {
            self.guardian.handle(now, Input::Tick);
            self.figures.borrow_mut().note_fences(now.boot, self.guardian.fence_states());
        }
    }

    /// When something is due next, by the boot clock.
    pub(super) fn wakes_at(&self) -> Duration {
        let times = [self.guardian.wake_at(), self.renew_at];
        times.into_iter().flatten().fold(self.executor.until(), Duration::min)
    }

    /// Begins what the core wants done, and tells what it has to tell.
    pub(super) fn flush(&mut self) -> Vec<(Effect, EffectFuture)> {
        let mut begun = Vec::new();
        // What the platform names is swept as well.
        if self.executor.storage.guarded != *self.guardian.guarded() {
            self.executor.storage.guarded.clone_from(self.guardian.guarded());
        }
        while let Some(effect) = self.guardian.next_effect() {
            begun.push((effect.clone(), self.executor.perform(effect, &self.guardian)));
        }
        self.tell();
        begun
    }

    pub(super) fn ask(&mut self, request: Request, answers: Sender<ControlLine>) {
        let number = self.next_request;
        self.next_request += 1;
        log::line(Level::Info, "request", None, &wanted(&request));
        Figures::count(&mut self.figures.borrow_mut().requests, measured::verb(&request));
        self.asked.insert(number, answers);
        self.handle(Input::Request(number, request));
    }

    /// The core is told that it decides nothing any more, and whoever waits for it as well. What was begun and not sent
    /// yet is not sent.
    pub(super) fn end(mut self, why: &str) {
        self.executor.stop();
        self.handle(Input::Deposed(why.to_owned()));
        self.tell();
        for answers in self.asked.into_values() {
            let why = format!("{why}: ask again, `rbd-guardian status` shows who leads and how far it came");
            let _ = answers.try_send(ControlLine::Unavailable(why));
        }
    }

    /// To the log, and to those who asked and still wait.
    fn tell(&mut self) {
        while let Some(report) = self.guardian.next_report() {
            match report {
                Report::Log { level, code, member, text } => {
                    log::line(level, code, member.as_deref(), &text);
                    // It may be about another member than the one that was asked for.
                    let about = member.as_ref().filter(|member| !text.starts_with(member.as_str()));
                    let said = about.map_or_else(|| text.clone(), |member| format!("{member}: {text}"));
                    // A reader who is slow misses steps, never the answer.
                    for answers in self.asked.values().filter(|to| level > Level::Debug && to.capacity() > 1)
                    {
                        let _ = answers.try_send(ControlLine::Progress(said.clone()));
                    }
                    self.guardian.told(code, member);
                }
                Report::Answer(number, outcome) => {
                    if let Some(answers) = self.asked.remove(&number) {
                        let _ = answers.try_send(ControlLine::from(outcome));
                    }
                }
            }
        }
    }
}

/// A quarter of its time after it was had.
fn next_renewal(until: Duration, lease: Duration) -> Duration {
    until.saturating_sub(lease * 3 / 4)
}

fn wanted(request: &Request) -> String {
    format!("{} asks to {}: {}", request.by(), request.what(), request.reason().unwrap_or("no reason given"))
}

/// Both clocks.
pub(super) fn now() -> Now {
    Now { boot: clock::boot(), wall: clock::wall() }
}
