//! The event loop around the core: everything that happens comes in here, one thing after another, and everything to be
//! done goes out as a task. The loop itself never waits for anything else than the next thing to happen.

mod course;
mod forwarded;
mod login;
mod manager;
mod publishing;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt as _;
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
use crate::daemon::event_loop::publishing::Publishing;
use crate::daemon::executor::{Executor, failed};
use crate::daemon::forwarded_requests::{RequestNote, ended, not_noted};
use crate::daemon::hearing::EventLog;
use crate::daemon::incus_events::notice;
use crate::daemon::job::Jobs;
use crate::daemon::leader::{Leading, now};
use crate::daemon::leadership::{BidError, BidOutcome, Candidate, HeldLead, Standby};
use crate::daemon::log;
use crate::daemon::login::{Login, Replaced};
use crate::daemon::measured;
use crate::daemon::recordings::{RecordedGuardian, Recordings};
use crate::daemon::service_manager::{Manager, SignalRequest, Signals};
use crate::deadline::rest;
use crate::incus::client::Client;
use crate::incus::events::{Listener, Signal};
use crate::ledger::{LeaseError, Ledger};
use crate::serve::figures::{Figures, Spread};
use rbd_guardian_core::model::epoch::LeaderEpoch;

/// Events that are taken in at one turn of the loop.
const EVENTS: usize = 64;
/// Between attempts to connect, and to open certificates.
const RETRY: Duration = Duration::from_secs(2);
/// Failed bids in a row before it reconnects to Ceph.
const VAIN_BIDS: u32 = 5;
/// The longest rest without looking at the clock: a host that slept finds its timers late.
const LONGEST_REST: Duration = Duration::from_secs(1);
/// A refused healing is told to a guardian that begins to lead so long afterwards: the next tick of healing is a minute
/// away (docs/facts/incus.md#healing), and the one that led may have lost its storage with the member.
const REFUSAL_LASTS: Duration = Duration::from_secs(60);

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
    cluster: Option<Cluster>,
    /// Replaced connections that have not ended.
    replaced: Replaced,
    /// Over that connection. One that the monitors do not answer could not open it again, and its OSD may answer.
    ledger: Option<Ledger>,
    /// What it knows while another one leads.
    waiting: Option<Box<Standby>>,
    /// With a single request to do it neither watches who should lead nor yields.
    election: Option<ElectionWatch>,
    single_request: bool,
    login: Login,
    /// Why it is not further, in words.
    trouble: Option<String>,
    /// It stays so until somebody does something.
    lasts: bool,
    /// When to try again to get further, by the boot clock; `None` while an attempt is under way.
    retry_at: Option<Duration>,
    incus: Option<Client>,
    /// Why there is no client for an Incus that is configured, and when to try again.
    incus_trouble: Option<String>,
    incus_at: Option<Duration>,
    listener: Option<Listener>,
    hearing: EventLog,
    /// A single request has none: the operator who runs it sees the result.
    recordings: Option<Recordings>,
    jobs: Jobs<Job, JobResult>,
    /// Bids in a row that ended in silence or in a refusal.
    vain_bids: u32,
    /// It is clear who leads, or why nobody knows. What is asked before waits for that.
    settled: bool,
    /// Asked before it was clear who leads.
    early: Vec<Ask>,
    /// When the gate last refused to heal instances of a member, by the boot clock, whoever led.
    refused: BTreeMap<String, Duration>,
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
        let recordings = Some(recordings);
        Self {
            origin,
            identity,
            config,
            manager: Manager::find(),
            stage: LeadStage::Connecting,
            cluster: None,
            replaced: Replaced::default(),
            ledger: None,
            waiting: None,
            election: None,
            single_request: false,
            login: Login::default(),
            trouble: None,
            lasts: false,
            retry_at: Some(Duration::ZERO),
            incus: None,
            incus_trouble: None,
            incus_at: Some(Duration::ZERO),
            listener: None,
            hearing: EventLog::default(),
            recordings,
            jobs: Jobs::new(),
            vain_bids: 0,
            settled: false,
            early: Vec::new(),
            refused: BTreeMap::new(),
            publishing: Publishing::default(),
            figures: Rc::default(),
            began: clock::wall(),
        }
    }

    /// For one request alone, over a connection that is there.
    pub(super) fn for_one_request(mut self, cluster: Cluster) -> Self {
        self.single_request = true;
        self.cluster = Some(cluster);
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
            let listener = &mut self.listener;
            // A flood from one of these two delays the other one for a few turns only, because select! chooses at random.
            let told = async {
                let heard = async {
                    match listener {
                        Some(listener) => listener.next().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    signal = heard => Announcement::Incus(signal),
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
            let next = self.listener.as_mut().and_then(|listener| listener.next().now_or_never());
            let Some(signal) = next else { return };
            self.heard(&signal);
        }
    }

    /// What is due.
    fn on_time(&mut self) {
        let now = now();
        if self.incus_at.is_some_and(|at| at <= now.boot) {
            self.open_incus(now.boot);
        }
        if self.retry_at.is_some_and(|at| at <= now.boot) {
            self.retry_at = None;
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
        at = [self.retry_at, self.incus_at, looks_at].into_iter().flatten().fold(at, Duration::min);
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
        let Some(cluster) = self.cluster.clone() else { return };
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
            opened: self.ledger.clone(),
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
            match job {
                Job::Connect => JobResult::Connected(dropped_connect()),
                Job::Disconnect => JobResult::Disconnected,
                Job::Bid => JobResult::Bid(self.cluster.clone(), Err(BidError::Dropped)),
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
        });
        match done {
            JobResult::Connected(Ok(cluster)) => {
                log::line(Level::Info, "connected", None, "connected to Ceph");
                self.cluster = Some(cluster);
                self.figures.borrow_mut().logged_in = Some(clock::wall());
                self.login.forget();
                self.trouble = None;
                self.stage = LeadStage::Bidding;
                self.retry_at = Some(Duration::ZERO);
            }
            JobResult::Connected(Err(error)) => {
                self.lasts = false;
                self.not_further(Level::Error, "no-ceph", error.to_string(), RETRY)
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
            JobResult::Effect(epoch, input) => {
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
        }
    }

    /// One over a connection that was replaced meanwhile counts for nothing: its ledger would keep that connection, and be asked over it.
    fn bid_ended(&mut self, over: Option<Cluster>, bid: Result<BidOutcome, BidError>) {
        let counts = over.as_ref().zip(self.cluster.as_ref()).is_some_and(|(over, used)| over.is(used));
        match bid {
            Ok(BidOutcome::Leads(held_lead, _)) if !counts => {
                self.give_up(*held_lead);
                self.let_go(over);
            }
            bid if !counts => self.let_go((over, bid)),
            Ok(BidOutcome::Leads(held_lead, records)) => self.lead(*held_lead, *records),
            Ok(BidOutcome::Waits(waiting)) => {
                self.vain_bids = 0;
                let words = waiting.words();
                self.ledger = Some(waiting.ledger.clone());
                self.publishing.note_records(clock::boot(), &waiting);
                self.waiting = Some(waiting);
                self.not_further(Level::Info, "standby", words, self.pace());
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
        // A connection that was itself blocklisted, or has gone astray, never gets better; a new one may.
        self.vain_bids = if error.may_be_the_connection() { self.vain_bids + 1 } else { 0 };
        if self.vain_bids >= VAIN_BIDS && self.replaced.has_room() {
            self.vain_bids = 0;
            self.stage = LeadStage::Connecting;
            let old = self.cluster.take();
            self.replace(old);
        }
        self.waiting = None;
        self.lasts = error.lasts();
        self.not_further(Level::Error, "no-ledger", error.to_string(), self.config.daemon.lease / 4);
    }

    fn not_further(&mut self, level: Level, code: &str, why: String, pause: Duration) {
        if self.trouble.as_ref() != Some(&why) {
            log::line(level, code, None, &why);
            self.trouble = Some(why);
        }
        self.retry_at = Some(clock::boot() + pause);
        self.manager.ready();
        self.ask_again();
    }

    /// It is clear now who leads.
    fn ask_again(&mut self) {
        self.settled = true;
        for ask in std::mem::take(&mut self.early) {
            self.asked(ask);
        }
    }

    fn lead(&mut self, held_lead: HeldLead, records: Records) {
        let Some(cluster) = self.cluster.clone() else { return };
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
        (self.trouble, self.waiting) = (None, None);
        let executor = Executor::new(storage, held_lead, self.incus.clone());
        self.figures.borrow_mut().leads += 1;
        let figures = Rc::clone(&self.figures);
        let mut leading = Box::new(Leading::new(guardian, executor, self.config.daemon.lease, figures));
        let boot = clock::boot();
        self.refused.retain(|_, at| boot.saturating_sub(*at) < REFUSAL_LASTS);
        for member in self.refused.keys().cloned() {
            leading.handle(Input::Notice(Notice::Refused { member, healing: true }));
        }
        self.stage = LeadStage::Leading(leading);
        self.manager.ready();
        self.ask_again();
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
        self.ledger = Some(leading.executor.held_lead.ledger().clone());
        leading.end(why);
        log::line(Level::Warn, code, None, why);
        self.trouble = Some(why.to_owned());
        self.settled = false;
        self.retry_at = Some(clock::boot() + self.pace());
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
        self.hearing.tell(clock::boot(), signal);
        if let Signal::Overflow { lost } = signal {
            self.figures.borrow_mut().events_lost += lost;
        }
        let Some(notice) = notice(signal) else { return };
        if let Notice::Refused { member, healing: true } = &notice {
            self.refused.insert(member.clone(), clock::boot());
        }
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
            let trouble = self.trouble.as_deref().unwrap_or("it is bidding for the lead");
            let why = format!("this guardian does not lead: {trouble}");
            if !self.settled {
                self.early.push(Ask { question: Question::Request(request), answers });
            } else if self.waiting.is_some() {
                let _ = answers.try_send(ControlLine::Elsewhere(why));
            } else if self.lasts {
                let _ = answers.try_send(ControlLine::Failed(why));
            } else {
                let _ = answers.try_send(ControlLine::Unavailable(why));
            }
            return;
        };
        leading.ask(request, answers);
    }

    fn open_incus(&mut self, boot: Duration) {
        self.incus_at = None;
        let platform = !self.config.incus.endpoints.is_empty();
        if !self.single_request
            && self.election.as_ref().is_none_or(|election| election.has_platform() != platform)
        {
            self.election = Some(ElectionWatch::new(boot, platform));
        }
        if !platform {
            self.incus = None;
            self.listener = None;
            if let LeadStage::Leading(leading) = &mut self.stage {
                leading.executor.incus = None;
            }
            return;
        }
        match Client::open(&self.config.incus) {
            Ok(client) => {
                self.listener = Some(Listener::start(&client));
                self.incus_trouble = None;
                if let LeadStage::Leading(leading) = &mut self.stage {
                    leading.executor.incus = Some(client.clone());
                    leading.handle(Input::Notice(Notice::Missed));
                }
                self.incus = Some(client);
            }
            Err(error) => {
                let why = error.to_string();
                if self.incus_trouble.as_ref() != Some(&why) {
                    log::line(Level::Error, "no-incus", None, &why);
                }
                self.incus_trouble = Some(why);
                self.incus_at = Some(boot + RETRY);
            }
        }
    }
}

fn dropped_connect() -> Result<Cluster, ConnectError> {
    Err(ConnectError::Unreachable { seconds: 0, mons: "they".to_owned() })
}
