//! Whether this guardian should lead: what it sees of Incus, asked for where nothing else tells, whether the monitors
//! answer it, and what it says of it.

use std::net::IpAddr;
use std::time::Duration;

use rbd_guardian_core::guardian::report::Level;
use rbd_guardian_core::model::incus_snapshot::IncusSnapshot;
use rbd_guardian_core::model::member::Members;
use rbd_guardian_core::rules::leader_fitness::{LeaderOutlook, Readiness, Unfit};

use crate::daemon::log;

/// Between two glances at Incus, and two looks at who is ready.
const EVERY: Duration = Duration::from_secs(1);
/// A leader reads Incus for its own purposes; it glances where such a reading is overdue, because it may be waiting
/// for a member that is lost while others would answer.
const OVERDUE: Duration = Duration::from_millis(2500);

/// Of a daemon.
#[derive(Debug)]
pub(super) struct ElectionWatch {
    outlook: LeaderOutlook,
    /// When to glance next; `None` while that is under way.
    glance_at: Option<Duration>,
    /// When to ask the monitors next; `None` while that is under way.
    listen_at: Option<Duration>,
    /// When to ask next who is ready.
    ask_at: Option<Duration>,
    /// Why it leads only to hold, as it was told last.
    holds: Option<Unfit>,
}

impl ElectionWatch {
    pub(super) fn new(now: Duration, platform: bool) -> Self {
        let outlook = LeaderOutlook::new(now, platform);
        // What is not there is not glanced at.
        let glance_at = platform.then_some(now);
        Self { outlook, glance_at, listen_at: Some(now), ask_at: Some(now), holds: None }
    }

    pub(super) fn has_platform(&self) -> bool {
        self.outlook.has_platform()
    }

    /// A member with quorum answered.
    pub(super) fn note(&mut self, began: Duration, view: &IncusSnapshot, own: &[IpAddr], known: &Members) {
        self.outlook.note(began, view, own, known);
    }

    pub(super) fn unfit(&self, now: Duration) -> Option<Unfit> {
        self.outlook.unfit(now)
    }

    pub(super) fn readiness(&self, now: Duration) -> Option<Readiness> {
        self.outlook.readiness(now)
    }

    /// Is a question for the monitors due? Then it is under way from now on.
    pub(super) fn listens(&mut self, now: Duration) -> bool {
        self.listen_at.take_if(|at| *at <= now).is_some()
    }

    /// It ended: when it began, if a monitor answered it.
    pub(super) fn listened(&mut self, now: Duration, began: Option<Duration>) {
        if let Some(began) = began {
            self.outlook.heard(began);
        }
        self.listen_at = Some(now + EVERY);
    }

    /// Is a glance due? Then it is under way from now on.
    pub(super) fn glances(&mut self, now: Duration, leads: bool) -> bool {
        let wanted = !leads || self.outlook.age(now) >= OVERDUE;
        wanted && self.glance_at.take_if(|at| *at <= now).is_some()
    }

    pub(super) fn glanced(&mut self, now: Duration) {
        self.glance_at = Some(now + EVERY);
    }

    /// Should a leader ask who is ready, because it is not fit? Then it does from now on.
    pub(super) fn asks(&mut self, now: Duration) -> bool {
        self.unfit(now).is_some() && self.ask_at.take_if(|at| *at <= now).is_some()
    }

    pub(super) fn asked(&mut self, now: Duration) {
        self.ask_at = Some(now + EVERY);
    }

    /// Tells when a leader begins to lead to hold, and when that is over. Where the ledger knows of no gate, there may be
    /// no Incus at all, and nothing is missing.
    pub(super) fn tell(&mut self, now: Duration, leads: bool, gate: bool) {
        let holds = self.unfit(now).filter(|why| leads && (gate || *why != Unfit::Bare));
        if holds == self.holds {
            return;
        }
        match &holds {
            Some(_) => log::line(Level::Warn, "holds", None, &words(&holds).unwrap_or_default()),
            None if leads => {
                log::line(Level::Info, "holds-over", None, "leading: this guardian is ready to fence")
            }
            None => {}
        }
        self.holds = holds;
    }

    /// For `status`.
    pub(super) fn holds(&self) -> Option<String> {
        words(&self.holds)
    }

    pub(super) fn wakes_at(&self) -> Option<Duration> {
        [self.glance_at, self.listen_at, self.ask_at].into_iter().flatten().min()
    }
}

fn words(holds: &Option<Unfit>) -> Option<String> {
    let why = holds.as_ref()?;
    Some(format!(
        "leading in hold-only mode, because no other guardian is ready: {why}; existing fences are kept, none is started automatically"
    ))
}
