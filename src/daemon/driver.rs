//! The event loop around the core: everything that happens comes in here, one thing after another, and everything to be
//! done goes out as a task. The loop itself never waits for anything else than the next thing to happen.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::{Id, JoinError, JoinSet};

use super::effects::{Hands, failed};
use super::identity::Identity;
use super::log;
use super::notices::notice;
use super::socket::Ask;
use super::supervise::{Manager, Signals, Wish};
use super::tenure::{Candidate, NotLeading, Tenure};
use super::wire::{Line, Question};
use super::{DaemonError, Origin};
use crate::ceph::cluster::{Cluster, ConnectError};
use crate::ceph::lane;
use crate::ceph::perform::Storage;
use crate::clock;
use crate::config::Config;
use crate::deadline::{rest, within};
use crate::domain::guardian::Guardian;
use crate::domain::guardian::io::{Effect, Input, Now, Request};
use crate::domain::guardian::report::{Level, Report};
use crate::domain::guardian::settings::Settings;
use crate::domain::view::Notice;
use crate::incus::client::Client;
use crate::incus::events::{Listener, Signal};
use crate::ledger::NotLeased;

/// Between attempts to connect, and to open certificates.
const RETRY: Duration = Duration::from_secs(2);
/// The longest rest without looking at the clock: a host that slept finds its timers late.
const LONGEST_REST: Duration = Duration::from_secs(1);
/// How long the end may take: the lease is given up, nothing else.
const ENDING: Duration = Duration::from_millis(1500);

/// What a task is for, kept so that one that ends without an answer has one all the same.
#[derive(Debug)]
enum Job {
    Connect,
    Bid,
    Renew,
    /// Of the guardian that began with this epoch.
    Effect(u64, Effect),
}

/// How a task ended.
enum Done {
    Connected(Result<Cluster, ConnectError>),
    Bid(Result<Tenure, NotLeading>),
    Renewed(Result<Duration, NotLeased>),
    Effect(u64, Input),
}

/// How far it is from nothing to leading.
enum Stage {
    /// There is no connection to Ceph.
    Connecting,
    /// There is one, and somebody else leads, or the ledger cannot be had.
    Bidding,
    Leading(Box<Leading>),
}

struct Leading {
    guardian: Guardian,
    hands: Hands,
    /// Where answers to requests go.
    asked: BTreeMap<u64, tokio::sync::mpsc::Sender<Line>>,
    /// Renew the lease at this time of the boot clock.
    renew_at: Duration,
    renewing: bool,
}

/// One daemon.
pub(super) struct Driver {
    origin: Origin,
    identity: Identity,
    config: Config,
    manager: Manager,
    stage: Stage,
    cluster: Option<Cluster>,
    /// Why it is not further, in words.
    trouble: Option<String>,
    /// When to try again to get further, by the boot clock; `None` while an attempt is under way.
    retry_at: Option<Duration>,
    incus: Option<Client>,
    /// Why there is no client for an Incus that is configured, and when to try again.
    incus_trouble: Option<String>,
    incus_at: Option<Duration>,
    listener: Option<Listener>,
    jobs: JoinSet<Done>,
    under_way: HashMap<Id, Job>,
    next_request: u64,
    /// Asked before it was clear who leads.
    early: Vec<Ask>,
}

impl Driver {
    pub(super) fn new(origin: Origin, identity: Identity, config: Config) -> Self {
        Self {
            origin,
            identity,
            config,
            manager: Manager::find(),
            stage: Stage::Connecting,
            cluster: None,
            trouble: None,
            retry_at: Some(Duration::ZERO),
            incus: None,
            incus_trouble: None,
            incus_at: Some(Duration::ZERO),
            listener: None,
            jobs: JoinSet::new(),
            under_way: HashMap::new(),
            next_request: 1,
            early: Vec::new(),
        }
    }

    /// Goes on from a connection that is there.
    pub(super) fn connected(mut self, cluster: Cluster) -> Self {
        self.cluster = Some(cluster);
        self.stage = Stage::Bidding;
        self
    }

    /// Runs until it is asked to end, or nobody can ask for anything any more.
    pub(super) async fn run(
        mut self,
        mut signals: Signals,
        asks: &mut tokio::sync::mpsc::Receiver<Ask>,
    ) -> Result<(), DaemonError> {
        loop {
            self.on_time();
            self.flush();
            self.tell_manager();
            let rest_for = self.rest_for();
            let listener = &mut self.listener;
            let heard = async {
                match listener {
                    Some(listener) => listener.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // In this order. None of the first can keep the later ones waiting for good: answers end when what was
                // begun is answered, and what waits in the other queues is bounded.
                biased;
                // 1. What was begun is answered first: every decision rests on it.
                Some(done) = self.jobs.join_next_with_id() => self.done(done),
                // 2. What Incus announces: a heal waits for nobody.
                signal = heard => self.heard(&signal),
                // 3. Operators.
                ask = asks.recv() => match ask {
                    Some(ask) => self.asked(ask),
                    None => return self.end().await,
                },
                // 4. The service manager.
                wish = signals.next() => match wish {
                    Wish::Reload => self.reload(),
                    Wish::End => return self.end().await,
                },
                // 5. Time.
                () = rest(rest_for) => {}
            }
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
                Stage::Connecting => self.connect(),
                Stage::Bidding => self.bid(),
                Stage::Leading(_) => {}
            }
        }
        let Stage::Leading(leading) = &mut self.stage else { return };
        if now.boot >= leading.hands.tenure.until {
            self.depose("the lease could not be renewed in time");
            return;
        }
        if !leading.renewing && now.boot >= leading.renew_at {
            leading.renewing = true;
            let (tenure, lease) = (leading.hands.tenure.clone(), self.config.daemon.lease);
            self.spawn(Job::Renew, async move {
                let renewed = lane::awaited(move || tenure.renew(lease)).await;
                Done::Renewed(renewed.unwrap_or(Err(NotLeased::Unknown)))
            });
            return;
        }
        if leading.guardian.wake_at().is_some_and(|at| at <= now.boot) {
            leading.guardian.handle(now, Input::Tick);
        }
    }

    fn rest_for(&self) -> Duration {
        let boot = clock::boot();
        let mut at = boot + LONGEST_REST;
        at = [self.retry_at, self.incus_at].into_iter().flatten().fold(at, Duration::min);
        if let Stage::Leading(leading) = &self.stage {
            at = at.min(leading.hands.tenure.until);
            at = leading.guardian.wake_at().into_iter().fold(at, Duration::min);
            if !leading.renewing {
                at = at.min(leading.renew_at);
            }
        }
        let rest = at.saturating_sub(boot);
        self.manager.pulse().map_or(rest, |pulse| rest.min(pulse))
    }

    fn spawn(&mut self, job: Job, task: impl Future<Output = Done> + 'static) {
        let handle = self.jobs.spawn_local(task);
        self.under_way.insert(handle.id(), job);
    }

    fn connect(&mut self) {
        let options = self.origin.ceph.clone();
        self.spawn(Job::Connect, async move {
            let connected = lane::awaited(move || Cluster::connect(&options)).await;
            Done::Connected(connected.unwrap_or_else(dropped_connect))
        });
    }

    fn bid(&mut self) {
        let Some(cluster) = self.cluster.clone() else { return };
        let candidate = Candidate {
            guardian: self.identity.name.clone(),
            host: self.identity.host.clone(),
            ledger: self.config.ledger.clone(),
            lease: self.config.daemon.lease,
        };
        self.spawn(Job::Bid, async move {
            let bid = lane::awaited(move || candidate.bid(&cluster)).await;
            Done::Bid(bid.unwrap_or(Err(NotLeading::Dropped)))
        });
    }

    /// A task ended. Without an answer of its own it has failed: nothing that was begun is left open.
    fn done(&mut self, done: Result<(Id, Done), JoinError>) {
        let (id, done) = match done {
            Ok((id, done)) => (id, Ok(done)),
            Err(error) => (error.id(), Err(error)),
        };
        let Some(job) = self.under_way.remove(&id) else { return };
        let done = done.unwrap_or_else(|error| {
            log::line(Level::Error, "task", None, &format!("a task ended without an answer: {error}"));
            match job {
                Job::Connect => Done::Connected(dropped_connect()),
                Job::Bid => Done::Bid(Err(NotLeading::Dropped)),
                Job::Renew => Done::Renewed(Err(NotLeased::Unknown)),
                Job::Effect(epoch, effect) => {
                    Done::Effect(epoch, failed(effect, "it ended without an answer"))
                }
            }
        });
        match done {
            Done::Connected(Ok(cluster)) => {
                log::line(Level::Info, "connected", None, "connected to Ceph");
                self.cluster = Some(cluster);
                self.trouble = None;
                self.stage = Stage::Bidding;
                self.retry_at = Some(Duration::ZERO);
            }
            Done::Connected(Err(error)) => {
                self.not_further(Level::Error, "no-ceph", error.to_string(), RETRY)
            }
            Done::Bid(Ok(tenure)) => self.lead(tenure),
            Done::Bid(Err(error)) => self.not_leading(&error),
            Done::Renewed(renewed) => self.renewed(renewed),
            Done::Effect(epoch, input) => {
                if let Stage::Leading(leading) = &mut self.stage
                    && leading.hands.tenure.leader().epoch == epoch
                {
                    leading.hands.note(&input);
                    leading.guardian.handle(now(), input);
                }
            }
        }
    }

    fn not_leading(&mut self, error: &NotLeading) {
        let (level, code) = match error {
            NotLeading::Standby { .. } => (Level::Info, "standby"),
            NotLeading::Unopened(_)
            | NotLeading::Unread(_)
            | NotLeading::NotLeased(_)
            | NotLeading::NotWritten(_)
            | NotLeading::Nameless(_)
            | NotLeading::Dropped => (Level::Error, "no-ledger"),
        };
        // Often enough that a lease that ends is noticed within a fraction of it.
        self.not_further(level, code, error.to_string(), self.config.daemon.lease / 4);
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
        for ask in std::mem::take(&mut self.early) {
            self.asked(ask);
        }
    }

    fn lead(&mut self, tenure: Tenure) {
        let Some(cluster) = self.cluster.clone() else { return };
        let leader = tenure.leader();
        let text = format!("leads with epoch {} as {} on {}", leader.epoch, leader.guardian, leader.host);
        log::line(Level::Info, "leading", None, &text);
        for note in tenure.notes() {
            log::line(Level::Warn, "ledger", None, note);
        }
        let settings = self.settings(&tenure);
        let storage =
            Storage { cluster, guarded: settings.policy.guarded.clone(), expire: settings.policy.expire };
        let guardian = Guardian::new(settings, tenure.records(), now());
        self.trouble = None;
        self.stage = Stage::Leading(Box::new(Leading {
            guardian,
            renew_at: clock::boot() + self.config.daemon.lease / 4,
            renewing: false,
            hands: Hands::new(storage, tenure, self.incus.clone()),
            asked: BTreeMap::new(),
        }));
        self.manager.ready();
        self.ask_again();
    }

    fn settings(&self, tenure: &Tenure) -> Settings {
        let Config { policy, members, incus, .. } = &self.config;
        let mut settings =
            Settings::new(&self.identity.name, &self.identity.boot_id, policy.clone(), members.clone());
        settings.platform = !incus.endpoints.is_empty();
        settings.guard.own.clone_from(&tenure.own);
        settings
    }

    fn renewed(&mut self, renewed: Result<Duration, NotLeased>) {
        let lease = self.config.daemon.lease;
        let Stage::Leading(leading) = &mut self.stage else { return };
        leading.renewing = false;
        match renewed {
            Ok(until) => {
                leading.hands.tenure.until = until;
                leading.renew_at = until.saturating_sub(lease * 3 / 4);
            }
            // It may have been renewed, or be still: until its time is over there is time to ask again.
            Err(NotLeased::Unknown) => leading.renew_at = clock::boot() + lease / 16,
            Err(
                error @ (NotLeased::Held
                | NotLeased::Lost
                | NotLeased::Denied { .. }
                | NotLeased::Refused { .. }),
            ) => self.depose(&error.to_string()),
        }
    }

    /// This guardian leads no more: it decides and sends nothing, and bids again.
    fn depose(&mut self, why: &str) {
        let Stage::Leading(mut leading) = std::mem::replace(&mut self.stage, Stage::Bidding) else { return };
        leading.guardian.handle(now(), Input::Deposed(why.to_owned()));
        drain(&mut leading);
        for (_, answers) in leading.asked {
            let why = format!(
                "this guardian leads no more ({why}): ask again, `rbd-guardian status` shows who leads"
            );
            let _ = answers.try_send(Line::Unavailable(why));
        }
        log::line(Level::Warn, "deposed", None, &format!("leads no more: {why}"));
        self.trouble = Some(why.to_owned());
        self.retry_at = Some(clock::boot() + self.config.daemon.lease / 4);
    }

    /// Effects out, reports out.
    fn flush(&mut self) {
        let Stage::Leading(leading) = &mut self.stage else { return };
        let epoch = leading.hands.tenure.leader().epoch;
        let mut begun = Vec::new();
        while let Some(effect) = leading.guardian.next_effect(now()) {
            let kept = effect.clone();
            begun.push((kept, leading.hands.perform(effect)));
        }
        drain(leading);
        for (effect, performing) in begun {
            self.spawn(Job::Effect(epoch, effect), async move { Done::Effect(epoch, performing.await) });
        }
    }

    fn heard(&mut self, signal: &Signal) {
        match signal {
            Signal::Lost { why, .. } => log::line(Level::Warn, "events-lost", None, &why.to_string()),
            Signal::Connected { endpoint } => {
                log::line(Level::Info, "events", None, &format!("listening to {endpoint}"));
            }
            Signal::Overflow { lost } => {
                log::line(Level::Warn, "events-overflow", None, &format!("{lost} events were not kept"));
            }
            Signal::Event(_) => {}
        }
        if let (Stage::Leading(leading), Some(notice)) = (&mut self.stage, notice(signal)) {
            leading.guardian.handle(now(), Input::Notice(notice));
        }
    }

    fn asked(&mut self, ask: Ask) {
        let Ask { question, answers } = ask;
        let request = match question {
            Question::Status => {
                let _ = answers.try_send(Line::Status(self.status()));
                return;
            }
            Question::Request(request) => request,
        };
        let Stage::Leading(leading) = &mut self.stage else {
            match &self.trouble {
                Some(why) => {
                    let _ =
                        answers.try_send(Line::Unavailable(format!("this guardian does not lead: {why}")));
                }
                None => self.early.push(Ask { question: Question::Request(request), answers }),
            }
            return;
        };
        let number = self.next_request;
        self.next_request += 1;
        log::line(Level::Info, "request", None, &wanted(&request));
        leading.asked.insert(number, answers);
        leading.guardian.handle(now(), Input::Request(number, request));
    }

    fn status(&self) -> Value {
        let mut status = json!({
            "guardian": self.identity.name,
            "host": self.identity.host,
            "version": env!("CARGO_PKG_VERSION"),
            "stage": match &self.stage {
                Stage::Connecting => "connecting",
                Stage::Bidding => "standby",
                Stage::Leading(_) => "leading",
            },
            "trouble": self.trouble,
            "incus_trouble": self.incus_trouble,
        });
        if let (Stage::Leading(leading), Some(fields)) = (&self.stage, status.as_object_mut()) {
            let known = serde_json::to_value(leading.guardian.status(now())).unwrap_or_default();
            let leader = serde_json::to_value(leading.hands.tenure.leader()).unwrap_or_default();
            fields.insert("leader".to_owned(), leader);
            if let Value::Object(known) = known {
                fields.extend(known);
            }
        }
        status
    }

    fn tell_manager(&mut self) {
        self.manager.pet();
        let status = match (&self.stage, &self.trouble) {
            (Stage::Leading(leading), _) => {
                let held = leading.hands.tenure.held_fences();
                let fenced = if held.is_empty() {
                    "no fence stands".to_owned()
                } else {
                    format!("fenced: {}", held.join(", "))
                };
                format!("leading (epoch {}); {fenced}", leading.hands.tenure.leader().epoch)
            }
            (Stage::Connecting | Stage::Bidding, Some(trouble)) => trouble.clone(),
            (Stage::Connecting, None) => "connecting to Ceph".to_owned(),
            (Stage::Bidding, None) => "bidding for the lead".to_owned(),
        };
        self.manager.status(status);
    }

    fn open_incus(&mut self, boot: Duration) {
        self.incus_at = None;
        if self.config.incus.endpoints.is_empty() {
            self.incus = None;
            self.listener = None;
            return;
        }
        match Client::open(&self.config.incus) {
            Ok(client) => {
                self.listener = Some(Listener::start(&client));
                self.incus_trouble = None;
                if let Stage::Leading(leading) = &mut self.stage {
                    leading.hands.incus = Some(client.clone());
                    leading.guardian.handle(now(), Input::Notice(Notice::Missed));
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

    /// SIGHUP: a file that is refused changes nothing.
    fn reload(&mut self) {
        self.manager.reloading();
        match self.origin.load() {
            Err(error) => {
                let text = format!("the configuration is refused, the old one stays: {error}");
                log::line(Level::Error, "bad-configuration", None, &text);
            }
            Ok(config) => {
                let fixed =
                    |config: &Config| (config.ceph.clone(), config.ledger.clone(), config.daemon.clone());
                let stays = fixed(&config) != fixed(&self.config);
                let (ceph, ledger, daemon) = fixed(&self.config);
                self.config = Config { ceph, ledger, daemon, ..config };
                log::line(Level::Info, "reloaded", None, "the configuration was read again");
                if stays {
                    let text = "[ceph], [ledger] and [daemon] changed: they count after a restart only";
                    log::line(Level::Warn, "restart-needed", None, text);
                }
                self.incus_at = Some(Duration::ZERO);
                self.reconfigure();
            }
        }
        self.manager.reloaded();
    }

    fn reconfigure(&mut self) {
        let Stage::Leading(leading) = &self.stage else { return };
        let settings = self.settings(&leading.hands.tenure);
        let Stage::Leading(leading) = &mut self.stage else { return };
        leading.hands.storage.guarded = settings.policy.guarded.clone();
        leading.hands.storage.expire = settings.policy.expire;
        leading.guardian.reconfigure(settings);
    }

    /// SIGTERM: fences stay, and whoever reads the log knows which; the lease goes, so that another may lead at once.
    async fn end(self) -> Result<(), DaemonError> {
        self.manager.stopping();
        if let Stage::Leading(leading) = self.stage {
            let tenure = leading.hands.tenure.clone();
            let held = tenure.held_fences();
            let text = if held.is_empty() {
                "ends; no fence stands".to_owned()
            } else {
                format!(
                    "ends; these fences stand, nobody holds them until a guardian runs again: {}",
                    held.join(", ")
                )
            };
            log::line(Level::Info, "ending", None, &text);
            for (_, answers) in leading.asked {
                let why = "this guardian ends: ask again, `rbd-guardian status` shows how far it came";
                let _ = answers.try_send(Line::Unavailable(why.to_owned()));
            }
            if let Ok(Some(Err(error))) | Err(Some(error)) =
                within(ENDING, lane::awaited(move || tenure.give_up())).await.map_err(|_| None)
            {
                log::line(Level::Warn, "lease", None, &format!("the lease was not given up: {error}"));
            }
        } else {
            log::line(Level::Info, "ending", None, "ends; it did not lead");
        }
        // Disconnecting may block, and nothing is left to be said.
        std::mem::forget(self.cluster);
        Ok(())
    }
}

fn dropped_connect() -> Result<Cluster, ConnectError> {
    Err(ConnectError::Unreachable { seconds: 0, mons: "they".to_owned() })
}

fn wanted(request: &Request) -> String {
    match request {
        Request::Fence { target, by, reason, .. } => {
            format!("{by} asks to fence {target:?}: {}", reason.as_deref().unwrap_or("no reason given"))
        }
        Request::Release { fence, by, reason, .. } => {
            format!("{by} asks to release {fence}: {}", reason.as_deref().unwrap_or("no reason given"))
        }
    }
}

/// Tells what the core has to tell: to the log, and to those who asked and still wait.
fn drain(leading: &mut Leading) {
    while let Some(report) = leading.guardian.next_report() {
        match report {
            Report::Log { level, code, member, text } => {
                log::line(level, code, member.as_deref(), &text);
                if level > Level::Debug {
                    for answers in leading.asked.values() {
                        // A reader who is slow misses steps, never the answer.
                        if answers.capacity() > 1 {
                            let _ = answers.try_send(Line::Progress(text.clone()));
                        }
                    }
                }
            }
            Report::Answer(number, outcome) => {
                if let Some(answers) = leading.asked.remove(&number) {
                    let _ = answers.try_send(Line::from(outcome));
                }
            }
        }
    }
}

/// Both clocks.
fn now() -> Now {
    Now { boot: clock::boot(), wall: clock::wall() }
}
