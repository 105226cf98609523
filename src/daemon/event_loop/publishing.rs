//! What the loop says of itself: to verbs on this host, and to whoever reads what it publishes.

use std::time::Duration;

use rbd_guardian_core::guardian::Guardian;
use rbd_guardian_core::guardian::io::{Input, Now};
use rbd_guardian_core::guardian::report::Level;
use rbd_guardian_core::guardian::status::Status;
use rbd_guardian_core::model::incus_snapshot::IncusSnapshot;
use rbd_guardian_core::model::record::{DisarmRecord, Records};
use rbd_guardian_core::rules::leader_fitness::Unfit;
use serde_json::{Value, json};

use crate::clock;
use crate::daemon::election::ElectionWatch;
use crate::daemon::event_loop::{EventLoop, LeadStage};
use crate::daemon::leader::now;
use crate::daemon::leadership::Standby;
use crate::daemon::log;
use crate::serve::Publisher;
use crate::serve::published::Published;

/// Between two pictures: what is looked at is a second old at most.
const EVERY: Duration = Duration::from_millis(250);
/// The same of one that waits, which makes a picture of records each time.
const EVERY_WHILE_WAITING: Duration = Duration::from_secs(2);
/// How often one that waits reads all records, for what it shows.
const RECORDS_EVERY: Duration = Duration::from_secs(5);

/// What it publishes, and what a guardian that waits shows.
#[derive(Debug, Default)]
pub(super) struct Publishing {
    publisher: Option<Publisher>,
    /// When the last picture was taken, by the boot clock.
    last: Option<Duration>,
    /// The ledger, as it was read while waiting, and when all of it was.
    records: Records,
    read_at: Option<Duration>,
    /// The last glance at Incus, and when it began.
    glanced: Option<(Duration, IncusSnapshot)>,
    /// As it was told last.
    disarmed: Option<DisarmRecord>,
}

impl Publishing {
    /// Is it time for one that waits to read all records again?
    pub(super) fn reads_all(&self, now: Duration) -> bool {
        self.publisher.is_some() && self.read_at.is_none_or(|at| now.saturating_sub(at) >= RECORDS_EVERY)
    }

    pub(super) fn note_glance(&mut self, began: Duration, view: &IncusSnapshot) {
        self.glanced = Some((began, view.clone()));
    }

    /// What a bid read that was not won. A glance has everything but fences.
    pub(super) fn note_records(&mut self, now: Duration, waiting: &Standby) {
        let fences = std::mem::take(&mut self.records.fences);
        self.records = waiting.records.clone();
        if waiting.has_fences {
            self.read_at = Some(now);
        } else {
            self.records.fences = fences;
        }
        self.tell_disarmed();
    }

    /// Each guardian says that it knows, the one that leads by its alarm.
    fn tell_disarmed(&mut self) {
        let disarmed = self.records.disarm.clone();
        if disarmed == self.disarmed {
            return;
        }
        match &disarmed {
            Some(DisarmRecord { until, by, reason, .. }) => {
                let text = format!(
                    "{by} disarmed the guardians until {until} ({reason}): this one stands by and knows it"
                );
                log::line(Level::Warn, "disarmed", None, &text);
            }
            None => log::line(Level::Info, "armed", None, "fences begin by themselves again"),
        }
        self.disarmed = disarmed;
    }
}

impl EventLoop {
    pub(in crate::daemon) fn publishing(mut self, publisher: Publisher) -> Self {
        self.publishing.publisher = Some(publisher);
        self
    }

    /// For verbs on this host.
    pub(super) fn status(&self) -> Value {
        let mut status = self.own_status();
        if let (LeadStage::Leading(leading), Some(fields)) = (&self.stage, status.as_object_mut()) {
            let known = serde_json::to_value(leading.guardian.status(now())).unwrap_or_default();
            if let Value::Object(known) = known {
                fields.extend(known);
            }
        }
        status
    }

    /// Without what the core knows.
    fn own_status(&self) -> Value {
        let mut status = json!({
            "guardian": self.identity.name,
            "host": self.identity.host,
            "version": env!("CARGO_PKG_VERSION"),
            "stage": match &self.stage {
                LeadStage::Connecting => "connecting",
                LeadStage::Bidding => "standby",
                LeadStage::Leading(_) => "leading",
            },
            "trouble": self.candidacy.trouble(),
            "ceph_trouble": self.ceph.trouble(),
            "incus_trouble": self.incus.trouble(),
        });
        let leads = matches!(self.stage, LeadStage::Leading(_));
        let leader = self.candidacy.waiting().and_then(|waiting| waiting.leader.as_ref());
        status["leads"] = json!(match leader {
            _ if leads => format!("{} on {} leads", self.identity.name, self.identity.host),
            Some(leader) => format!("{} on {} leads", leader.guardian, leader.host),
            None => "no guardian is known to lead".to_owned(),
        });
        status["here"] = json!(if leads {
            "the guardian of this host leads".to_owned()
        } else {
            let why = self.candidacy.trouble().map_or_else(String::new, |why| format!(" ({why})"));
            format!("the guardian of this host does not lead{why}")
        });
        // No leader is known, and this guardian cannot lead: nothing is fenced or released until that changes.
        if let Some(why) = self.candidacy.trouble().filter(|_| self.candidacy.waiting().is_none()) {
            status["cannot_record"] = json!(why);
        }
        if let Some(waiting) = self.candidacy.waiting() {
            status["leader"] = json!(waiting.leader);
        }
        if let LeadStage::Leading(leading) = &self.stage {
            status["holds"] = json!(self.election.as_ref().and_then(ElectionWatch::holds));
            status["leader"] = serde_json::to_value(leading.executor.held_lead.leader()).unwrap_or_default();
        }
        status
    }

    /// Leaves a picture for whoever looks, if the last one is old enough. It waits for nobody.
    pub(super) fn publish(&mut self) {
        let Some(publisher) = &self.publishing.publisher else { return };
        let now = now();
        let every = if matches!(self.stage, LeadStage::Leading(_)) { EVERY } else { EVERY_WHILE_WAITING };
        if self.publishing.last.is_some_and(|last| now.boot.saturating_sub(last) < every) {
            return;
        }
        let mut own = self.own_status();
        let (core, sums) = match &self.stage {
            LeadStage::Leading(leading) => {
                (Some(leading.guardian.status(now)), Some(leading.guardian.sums()))
            }
            LeadStage::Connecting | LeadStage::Bidding => (self.as_standby(now, &mut own), None),
        };
        let leads = matches!(self.stage, LeadStage::Leading(_));
        let (figures, lines) = (self.figures.borrow().clone(), log::recent());
        let mut picture = Published {
            boot: now.boot,
            wall: now.wall,
            own,
            leads,
            core,
            sums,
            figures,
            lines,
            ..Published::default()
        };
        picture.figures.lines = log::counts();
        picture.began = self.began;
        publisher.publish(picture);
        self.publishing.last = Some(now.boot);
    }

    /// What one that waits knows: the ledger, its glances at Incus, and whether monitors answer it. It judges nothing: of
    /// alarms it shows those alone that the ledger says.
    fn as_standby(&self, now: Now, own: &mut Value) -> Option<Status> {
        const OF_THE_LEDGER: [&str; 3] = ["disarmed", "tampered", "breached"];
        let waiting = self.candidacy.waiting()?;
        let settings = self.config.settings(&self.identity, &waiting.own);
        let mut core = Guardian::new(settings, self.publishing.records.clone(), now);
        if let Some((began, view)) = &self.publishing.glanced {
            core.handle(now, Input::View { began: *began, view: Ok(view.clone()) });
        }
        let mut status = core.status(now);
        status.alarms.retain(|alarm| OF_THE_LEDGER.contains(&alarm.code));
        let unfit = self.election.as_ref().and_then(|election| election.unfit(clock::boot()));
        let trouble = unfit.as_ref().filter(|unfit| **unfit == Unfit::Deaf).map(ToString::to_string);
        status.storage.fresh = trouble.is_none();
        status.storage.trouble = trouble;
        own["stage"] = json!("standby");
        Some(status)
    }
}
