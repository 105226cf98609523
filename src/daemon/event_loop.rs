//! The event loop around the core: everything that happens comes in here, one thing after another, and everything to be
//! done goes out as a task. The loop itself never waits for anything else than the next thing to happen.

mod candidacy;
mod ceph_link;
mod course;
mod forwarded;
mod incus_link;
mod login;
mod manager;
mod publishing;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use rbd_guardian_core::guardian::io::{Effect, Input, Recorded};
use rbd_guardian_core::guardian::report::Level;
use rbd_guardian_core::guardian::settings::Settings;
use rbd_guardian_core::model::incus_snapshot::{IncusSnapshot, Notice};
use rbd_guardian_core::model::record::{Records, RequestRecord};
use rbd_guardian_core::recording::recorder::{LIMIT, Recorder};
use rbd_guardian_core::rules::leader_fitness::{OtherGuardians, Unfit};
use rbd_guardian_core::rules::operator_request::Settled;

use crate::ceph::lane;
use crate::ceph::perform::Storage;
use crate::ceph::rados::cluster::Cluster;
use crate::ceph::rados::error::ConnectError;
use crate::clock;
use crate::config::Config;
use crate::config::identity::Identity;
use crate::config::source::ConfigSource;
use crate::control::protocol::{ControlLine, Question};
use crate::control::socket::Ask;
use crate::daemon::election::ElectionWatch;
use crate::daemon::error::DaemonError;
use crate::daemon::event_loop::candidacy::Candidacy;
use crate::daemon::event_loop::ceph_link::CephLink;
use crate::daemon::event_loop::incus_link::IncusLink;
use crate::daemon::event_loop::publishing::Publishing;
use crate::daemon::executor::{Executor, failed};
use crate::daemon::forwarded_requests::{RequestNote, ended, not_noted};
use crate::daemon::job::Jobs;
use crate::daemon::leader::{Leading, now};
use crate::daemon::leadership::{BidError, BidOutcome, Candidate, HeldLead};
use crate::daemon::log;
use crate::daemon::measured;
use crate::daemon::recordings::{RecordedGuardian, Recordings};
use crate::daemon::service_manager::{Manager, SignalRequest, Signals};
use crate::deadline::rest;
use crate::incus::events::Signal;
use crate::ledger::LeaseError;
use crate::serve::figures::{Figures, Spread};
use rbd_guardian_core::model::epoch::LeaderEpoch;

/// Events that are taken in at one turn of the loop.
const EVENTS: usize = 64;
/// Between two attempts to connect to Ceph.
const RETRY: Duration = Duration::from_secs(2);
/// The longest rest without looking at the clock: a host that slept finds its timers late.
const LONGEST_REST: Duration = Duration::from_secs(1);
/// What a task is for, kept so that one that ends without an answer has one all the same.
#[derive(Debug)]
enum Job {
    Connect,
    Disconnect,
    Bid,
    /// Of the guardian that began with this epoch, as the following.
    Renew(LeaderEpoch),
    GiveUp,
    Glance,
    Listen,
    LogIn,
    Ready(LeaderEpoch),
    Requests(LeaderEpoch),
    Note(LeaderEpoch, Box<RequestRecord>, RequestNote),
    Asked(LeaderEpoch, Box<RequestRecord>),
    Effect(LeaderEpoch, Effect),
}

/// How a task ended.
enum JobResult {
    Connected(Result<Cluster, ConnectError>),
    Disconnected,
    /// Over which connection, and how.
    Bid(Option<Cluster>, Result<BidOutcome, BidError>),
    Renewed(LeaderEpoch, Result<Duration, LeaseError>),
    GaveUp(Result<(), LeaseError>),
    /// When it began, and what it showed.
    Glanced(Duration, Result<IncusSnapshot, String>),
    /// When a question began that a monitor answered.
    Listened(Option<Duration>),
    /// What was in the keyring, and the log-in, if one was tried.
    LoggedIn(Option<u64>, Option<Result<Cluster, ConnectError>>),
    Ready(LeaderEpoch, OtherGuardians),
    Requests(LeaderEpoch, Option<Vec<(RequestRecord, Settled)>>),
    Noted(LeaderEpoch, Box<RequestRecord>, RequestNote, Recorded),
    Asked(LeaderEpoch, Box<RequestRecord>, ControlLine),
    Effect(LeaderEpoch, Input),
}

/// What others tell.
enum Announcement {
    Incus(Signal),
    Operator(Option<Ask>),
}

/// How far it is from nothing to leading.
enum LeadStage {
    /// There is no connection to Ceph.
    Connecting,
    /// There is one, and somebody else leads, or the ledger cannot be had.
    Bidding,
    Leading(Box<Leading>),
}

/// One daemon.
pub(super) struct EventLoop {
    origin: ConfigSource,
    identity: Identity,
    config: Config,
    manager: Manager,
    stage: LeadStage,
    ceph: CephLink,
    incus: IncusLink,
    /// While it does not lead.
    candidacy: Candidacy,
    /// With a single request to do it neither watches who should lead nor yields.
    election: Option<ElectionWatch>,
    single_request: bool,
    /// A single request has none: the operator who runs it sees the result.
    recordings: Option<Recordings>,
    jobs: Jobs<Job, JobResult>,
    publishing: Publishing,
    /// What is counted and timed; shared with the lead, on this thread.
    figures: Rc<RefCell<Figures>>,
    /// When this daemon began.
    began: Timestamp,
}

impl EventLoop {
    pub(super) fn new(origin: ConfigSource, identity: Identity, config: Config) -> Self {
        let recordings = Recordings::new(config.daemon.recordings.clone());
        recordings.look();
        Self {
            origin,
            identity,
            config,
            manager: Manager::find(),
            stage: LeadStage::Connecting,
            ceph: CephLink::default(),
            incus: IncusLink::new(),
            candidacy: Candidacy::new(),
            election: None,
            single_request: false,
            recordings: Some(recordings),
            jobs: Jobs::new(),
            publishing: Publishing::default(),
            figures: Rc::default(),
            began: clock::wall(),
        }
    }

    /// For one request alone, over a connection that is there.
    pub(super) fn for_one_request(mut self, cluster: Cluster) -> Self {
        self.single_request = true;
        self.ceph.connected(cluster);
        self.stage = LeadStage::Bidding;
        self.recordings = None;
        self
    }

    /// Runs until it is asked to end, or nobody can ask for anything any more.
    pub(super) async fn run(
        mut self,
        mut signals: Signals,
        asks: &mut tokio::sync::mpsc::Receiver<Ask>,
    ) -> Result<(), DaemonError> {
        if !self.single_request {
            self.manager.begin();
        }
        loop {
            self.on_time();
            self.flush();
            self.tell_manager(clock::boot());
            self.publish();
            let rest_for = self.rest_for();
            let incus = &mut self.incus;
            // A flood from one of these two delays the other one for a few turns only, because select! chooses at random.
            let told = async {
                tokio::select! {
                    signal = incus.next() => Announcement::Incus(signal),
                    ask = asks.recv() => Announcement::Operator(ask),
                }
            };
            tokio::select! {
                // In this order. None of the first can keep the later ones waiting for good: answers end when what was
                // begun is answered.
                biased;
                // 1. The service manager, and whoever ends the process: whatever happens meanwhile.
                wish = signals.next() => match wish {
                    SignalRequest::Reload => self.reload(),
                    SignalRequest::Record => self.record(),
                    SignalRequest::End => return self.end().await,
                },
                // 2. What was begun is answered first: every decision rests on it.
                Some(done) = self.jobs.next() => self.done(done),
                // 3. What Incus announces, and operators.
                told = told => match told {
                    Announcement::Incus(signal) => {
                        self.heard(&signal);
                        self.heard_at_once();
                    }
                    Announcement::Operator(Some(ask)) => self.asked(ask),
                    Announcement::Operator(None) => return self.end().await,
                },
                // 4. Time.
                () = rest(rest_for) => {}
            }
        }
    }

    /// What else was announced already, at most so much: then whatever else there is to do has its turn.
    fn heard_at_once(&mut self) {
        for _ in 0..EVENTS {
            let Some(signal) = self.incus.next_at_once() else { return };
            self.heard(&signal);
        }
    }

    /// What is due.
    fn on_time(&mut self) {
        let now = now();
        if self.incus.due().is_some_and(|at| at <= now.boot) {
            self.open_incus(now.boot);
        }
        if self.candidacy.begin(now.boot) {
            match &self.stage {
                LeadStage::Connecting => self.connect(),
                LeadStage::Bidding => self.bid(),
                LeadStage::Leading(_) => {}
            }
        }
        self.look_around(now.boot);
        self.log_in_afresh(now.boot);
        self.look_for_requests(now.boot);
        let LeadStage::Leading(leading) = &mut self.stage else { return };
        if leading.is_over(now) {
            let why = "no longer leads: the lease was not renewed in time, because Ceph does not answer or answers late (`ceph -s`)";
            self.depose("deposed", why);
            return;
        }
        if leading.renews(now) {
            let (held_lead, lease, epoch) =
                (leading.executor.held_lead.clone(), self.config.daemon.lease, leading.epoch());
            self.jobs.begin(Job::Renew(epoch), async move {
                let renewed = lane::awaited(move || held_lead.renew(lease)).await;
                JobResult::Renewed(epoch, renewed.unwrap_or(Err(LeaseError::Unknown)))
            });
        }
        leading.on_time(now);
    }

    fn rest_for(&self) -> Duration {
        let boot = clock::boot();
        let mut at = boot + LONGEST_REST;
        let looks_at = self.election.as_ref().and_then(ElectionWatch::wakes_at).filter(|at| *at > boot);
        at = [self.candidacy.due(), self.incus.due(), looks_at].into_iter().flatten().fold(at, Duration::min);
        if let LeadStage::Leading(leading) = &self.stage {
            at = at.min(leading.wakes_at());
        }
        let rest = at.saturating_sub(boot);
        self.manager.pulse().map_or(rest, |pulse| rest.min(pulse))
    }

    fn connect(&mut self) {
        let options = self.origin.ceph.clone();
        self.jobs.begin(Job::Connect, async move {
            let connected = lane::awaited(move || Cluster::connect(&options)).await;
            JobResult::Connected(connected.unwrap_or_else(dropped_connect))
        });
    }

    fn bid(&mut self) {
        let Some(cluster) = self.ceph.cluster().cloned() else { return };
        let (now, election) = (clock::boot(), self.election.as_ref());
        let candidate = Candidate {
            guardian: self.identity.name.clone(),
            host: self.identity.host.clone(),
            ledger: self.config.ledger.clone(),
            lease: self.config.daemon.lease,
            unfit: match election {
                Some(election) => election.unfit(now),
                // With a single request to do it does not watch who should lead.
                None => self.config.incus.endpoints.is_empty().then_some(Unfit::Bare),
            },
            readiness: election.and_then(|election| election.readiness(now)),
            opened: self.ceph.ledger().cloned(),
            reads_all: self.publishing.reads_all(now),
        };
        self.jobs.begin(Job::Bid, async move {
            let over = cluster.clone();
            let bid = lane::awaited(move || candidate.bid(&cluster)).await;
            JobResult::Bid(Some(over), bid.unwrap_or(Err(BidError::Dropped)))
        });
    }

    /// A task ended. Without an answer of its own it has failed: nothing that was begun is left open.
    fn done(&mut self, done: Result<JobResult, (Job, String)>) {
        let done = done.unwrap_or_else(|(job, why)| {
            log::line(Level::Error, "task", None, &format!("a task ended without an answer: {why}"));
            self.unanswered(job, why)
        });
        match done {
            JobResult::Connected(Ok(cluster)) => {
                log::line(Level::Info, "connected", None, "connected to Ceph");
                self.ceph.connected(cluster);
                self.figures.borrow_mut().logged_in = Some(clock::wall());
                self.candidacy.connected();
                self.stage = LeadStage::Bidding;
            }
            JobResult::Connected(Err(error)) => {
                self.candidacy.unconnected(error.to_string(), clock::boot() + RETRY);
                self.settle();
            }
            JobResult::Disconnected => {}
            JobResult::Bid(over, bid) => self.bid_ended(over, bid),
            JobResult::Renewed(epoch, renewed) => self.renewed(epoch, renewed),
            JobResult::GaveUp(Ok(())) => {}
            JobResult::GaveUp(Err(error)) => {
                log::line(Level::Warn, "lease", None, &format!("the lease could not be released: {error}"));
            }
            JobResult::Glanced(began, view) => {
                if let Ok(view) = &view {
                    self.saw(began, view);
                    self.publishing.note_glance(began, view);
                }
                if let Some(election) = &mut self.election {
                    election.glanced(clock::boot());
                }
            }
            JobResult::Listened(began) => {
                if let Some(election) = &mut self.election {
                    election.listened(clock::boot(), began);
                }
            }
            JobResult::LoggedIn(key, login) => self.logged_in(key, login),
            JobResult::Ready(epoch, beside) => {
                if let Some(election) = &mut self.election {
                    election.asked(clock::boot());
                }
                if matches!(&self.stage, LeadStage::Leading(leading) if leading.epoch() == epoch) {
                    self.step_back(beside);
                }
            }
            JobResult::Requests(epoch, found) => self.requests_found(epoch, found),
            JobResult::Noted(epoch, record, noting, recorded) => self.noted(epoch, record, noting, recorded),
            JobResult::Asked(epoch, record, line) => self.answered(epoch, record, &line),
            JobResult::Effect(epoch, input) => self.effect_ended(epoch, input),
        }
    }

    /// How a task ended that has no answer of its own.
    fn unanswered(&self, job: Job, why: String) -> JobResult {
        match job {
            Job::Connect => JobResult::Connected(dropped_connect()),
            Job::Disconnect => JobResult::Disconnected,
            Job::Bid => JobResult::Bid(self.ceph.cluster().cloned(), Err(BidError::Dropped)),
            Job::Renew(epoch) => JobResult::Renewed(epoch, Err(LeaseError::Unknown)),
            Job::GiveUp => JobResult::GaveUp(Err(LeaseError::Unknown)),
            Job::Glance => JobResult::Glanced(clock::boot(), Err(why)),
            Job::Listen => JobResult::Listened(None),
            Job::LogIn => JobResult::LoggedIn(None, None),
            Job::Ready(epoch) => JobResult::Ready(epoch, OtherGuardians::default()),
            Job::Requests(epoch) => JobResult::Requests(epoch, None),
            Job::Note(epoch, record, noting) => JobResult::Noted(epoch, record, noting, not_noted()),
            Job::Asked(epoch, record) => JobResult::Asked(epoch, record, ended()),
            Job::Effect(epoch, effect) => JobResult::Effect(epoch, failed(effect, &why)),
        }
    }

    fn effect_ended(&mut self, epoch: LeaderEpoch, input: Input) {
        if let Input::View { began, view: Ok(view) } = &input {
            self.saw(*began, view);
        }
        let deposed = if let Input::Recorded(Recorded::Deposed(why)) = &input {
            Some(format!("no longer leads: {why}"))
        } else {
            None
        };
        // What an earlier lead began is of no use to this one, which has read everything anew.
        if let LeadStage::Leading(leading) = &mut self.stage
            && leading.epoch() == epoch
        {
            leading.handle(input);
            if let Some(why) = deposed {
                self.depose("deposed", &why);
            }
        } else if let Input::GatePut(failed) = input {
            for (member, why) in failed {
                let text = format!("too late, because this guardian no longer leads: {why}");
                log::line(Level::Info, "gate-not-written", Some(&member), &text);
            }
        }
    }

    /// One over a connection that was replaced meanwhile counts for nothing: its ledger would keep that connection, and be asked over it.
    fn bid_ended(&mut self, over: Option<Cluster>, bid: Result<BidOutcome, BidError>) {
        let counts = self.ceph.uses(over.as_ref());
        match bid {
            Ok(BidOutcome::Leads(held_lead, _)) if !counts => {
                self.give_up(*held_lead);
                self.let_go(over);
            }
            bid if !counts => self.let_go((over, bid)),
            Ok(BidOutcome::Leads(held_lead, records)) => self.lead(*held_lead, *records),
            Ok(BidOutcome::Waits(waiting)) => {
                self.ceph.keep(&waiting.ledger);
                self.publishing.note_records(clock::boot(), &waiting);
                self.candidacy.waits(waiting, clock::boot() + self.pace());
                self.settle();
            }
            Err(error) => self.not_leading(&error),
        }
    }

    /// Others may bid at once.
    fn give_up(&mut self, held_lead: HeldLead) {
        self.jobs.begin(Job::GiveUp, async move {
            let given_up = lane::awaited(move || held_lead.give_up()).await;
            JobResult::GaveUp(given_up.unwrap_or(Err(LeaseError::Unknown)))
        });
    }

    fn not_leading(&mut self, error: &BidError) {
        self.candidacy.bid_failed(error, clock::boot() + self.config.daemon.lease / 4);
        if self.candidacy.gives_connection_up(self.ceph.has_room()) {
            self.stage = LeadStage::Connecting;
            let old = self.ceph.replace(None);
            self.let_go(old);
        }
        self.settle();
    }

    /// It is clear now who leads, or why nobody knows.
    fn settle(&mut self) {
        self.manager.ready();
        for ask in self.candidacy.settle() {
            self.asked(ask);
        }
    }

    fn lead(&mut self, held_lead: HeldLead, records: Records) {
        let Some(cluster) = self.ceph.cluster().cloned() else { return };
        let leader = held_lead.leader();
        let text = format!("leads with epoch {} as {} on {}", leader.epoch, leader.guardian, leader.host);
        log::line(Level::Info, "leading", None, &text);
        for note in held_lead.notes() {
            log::line(Level::Warn, "ledger", None, note);
        }
        let settings = self.settings(&held_lead);
        let storage =
            Storage { cluster, guarded: settings.policy.guarded.clone(), expire: settings.policy.expire };
        let guardian = Recorder::new(settings, records, now(), LIMIT);
        let guardian = RecordedGuardian::new(guardian, self.recordings.clone());
        self.candidacy.won();
        let executor = Executor::new(storage, held_lead, self.incus.client());
        self.figures.borrow_mut().leads += 1;
        let figures = Rc::clone(&self.figures);
        let mut leading = Box::new(Leading::new(guardian, executor, self.config.daemon.lease, figures));
        for member in self.incus.refused_lately(clock::boot()).cloned() {
            leading.handle(Input::Notice(Notice::Refused { member, healing: true }));
        }
        self.stage = LeadStage::Leading(leading);
        self.settle();
    }

    fn settings(&self, held_lead: &HeldLead) -> Settings {
        self.config.settings(&self.identity, &held_lead.own)
    }

    fn renewed(&mut self, epoch: LeaderEpoch, renewed: Result<Duration, LeaseError>) {
        if let LeadStage::Leading(leading) = &mut self.stage
            && leading.epoch() == epoch
            && let Err(why) = leading.renewed(renewed, self.config.daemon.lease)
        {
            self.depose("deposed", &format!("no longer leads: {why}"));
        }
    }

    /// This guardian leads no more: it decides and sends nothing, and bids again.
    fn depose(&mut self, code: &str, why: &str) {
        let LeadStage::Leading(leading) = std::mem::replace(&mut self.stage, LeadStage::Bidding) else {
            return;
        };
        self.ceph.keep(leading.executor.held_lead.ledger());
        leading.end(why);
        log::line(Level::Warn, code, None, why);
        self.candidacy.deposed(why, clock::boot() + self.pace());
    }

    /// Often enough that a lease that ends or is given up is noticed soon.
    fn pace(&self) -> Duration {
        (self.config.daemon.lease / 4).min(LONGEST_REST)
    }

    /// Effects out, reports out.
    fn flush(&mut self) {
        let LeadStage::Leading(leading) = &mut self.stage else { return };
        let epoch = leading.epoch();
        for (effect, performing) in leading.flush() {
            let (figures, name) = (Rc::clone(&self.figures), measured::effect(&effect));
            let job = Job::Effect(epoch, effect);
            self.jobs.begin(job, async move {
                let began = clock::boot();
                let input = performing.await;
                let took = clock::boot().saturating_sub(began);
                figures.borrow_mut().effects.entry(name).or_insert_with(Spread::default).note(took);
                JobResult::Effect(epoch, input)
            });
        }
    }

    fn heard(&mut self, signal: &Signal) {
        if let Signal::Overflow { lost } = signal {
            self.figures.borrow_mut().events_lost += lost;
        }
        let Some(notice) = self.incus.note(clock::boot(), signal) else { return };
        if let LeadStage::Leading(leading) = &mut self.stage {
            leading.handle(Input::Notice(notice));
        }
    }

    fn asked(&mut self, ask: Ask) {
        let Ask { question, answers } = ask;
        let request = match question {
            Question::Status => {
                let _ = answers.try_send(ControlLine::Status(self.status()));
                return;
            }
            Question::Request(request) => request,
        };
        let LeadStage::Leading(leading) = &mut self.stage else {
            return self.candidacy.refuse(Ask { question: Question::Request(request), answers });
        };
        leading.ask(request, answers);
    }

    fn open_incus(&mut self, boot: Duration) {
        let config = Some(&self.config.incus).filter(|incus| !incus.endpoints.is_empty());
        let platform = config.is_some();
        if !self.single_request
            && self.election.as_ref().is_none_or(|election| election.has_platform() != platform)
        {
            self.election = Some(ElectionWatch::new(boot, platform));
        }
        if self.incus.open(boot, config)
            && let LeadStage::Leading(leading) = &mut self.stage
        {
            leading.executor.incus = self.incus.client();
            if platform {
                leading.handle(Input::Notice(Notice::Missed));
            }
        }
    }
}

fn dropped_connect() -> Result<Cluster, ConnectError> {
    Err(ConnectError::Unreachable { seconds: 0, mons: "they".to_owned() })
}
