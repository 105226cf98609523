//! Performs effects, each as a task with a deadline of its own, and makes an input of what became of it.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Uri;
use rbd_guardian_core::fence::step::{Sent, Step, StepOutcome};
use rbd_guardian_core::guardian::Guardian;
use rbd_guardian_core::guardian::io::{Effect, Input, Recorded};
use rbd_guardian_core::guardian::report::Level;
use rbd_guardian_core::model::fence_id::FenceId;
use rbd_guardian_core::model::gate_keys::GateContents;
use rbd_guardian_core::model::image_users::{ImageUse, Locker};
use rbd_guardian_core::model::incus_snapshot::IncusSnapshot;
use rbd_guardian_core::model::osdmap::DataPools;
use rbd_guardian_core::model::sweep_part::SweepSelection;
use rbd_guardian_core::model::volume::ImageName;

use crate::ceph::barrier::Probes;
use crate::ceph::blocklist::{EntryChange, change};
use crate::ceph::locks::LockOwner;
use crate::ceph::perform::{PACE, ROUND, Storage};
use crate::ceph::stale::{Stale, break_lock};
use crate::ceph::watchers::{self, SweepScope, Wanted, missing};
use crate::ceph::{audit, lane, look, osdmap};
use crate::clock;
use crate::daemon::budget::TimeBudget;
use crate::daemon::halt::Halt;
use crate::daemon::leadership::HeldLead;
use crate::daemon::{incus_steps, log};
use crate::deadline::{Deadline, rest, within};
use crate::incus::client::Client;

/// An effect on its way.
pub(super) type EffectFuture = Pin<Box<dyn Future<Output = Input>>>;

/// How long a step of a fence or release may take. A monitor election takes half of it; longer, and it is better to
/// read back what came of it and decide again.
const STEP: Duration = Duration::from_secs(10);
/// How long everything the storage shows may take.
const LOOK: Duration = Duration::from_secs(10);
/// How much later than its own deadline an effect is given up for lost.
const GRACE: Duration = Duration::from_secs(10);

/// What effects are performed with, for as long as one guardian leads.
#[derive(Debug)]
pub(super) struct Executor {
    pub(super) storage: Storage,
    pub(super) held_lead: HeldLead,
    /// `None` if no endpoint is configured, or the files of `[incus]` cannot be used.
    pub(super) incus: Option<Client>,
    names: Arc<Mutex<Probes>>,
    budget: Arc<TimeBudget>,
    proved: Arc<Mutex<incus_steps::ProbedGates>>,
    answering: Arc<incus_steps::AnsweringMembers>,
    /// Fences whose last step read the map: two in a row are paced.
    read_last: BTreeSet<FenceId>,
    /// Why no ping could be sent, told once.
    no_ping: Option<String>,
    /// The boot clock's milliseconds until which the lease lasts at least; 0 once the lead is over.
    until: Arc<AtomicU64>,
}

impl Executor {
    pub(super) fn new(storage: Storage, held_lead: HeldLead, incus: Option<Client>) -> Self {
        let (names, proved, answering) = (Arc::default(), Arc::default(), Arc::default());
        let read_last = BTreeSet::new();
        let until = Arc::new(AtomicU64::new(millis(held_lead.until)));
        let budget = Arc::default();
        Self { storage, held_lead, incus, names, budget, proved, answering, read_last, no_ping: None, until }
    }

    /// Until when the lease lasts at least, by the boot clock.
    pub(super) fn until(&self) -> Duration {
        Duration::from_millis(self.until.load(Ordering::SeqCst))
    }

    /// The lease was renewed: also what was begun before may be sent until then.
    pub(super) fn renewed(&self, until: Duration) {
        self.until.store(millis(until), Ordering::SeqCst);
    }

    /// Sends nothing more, also of what was begun.
    pub(super) fn stop(&self) {
        self.until.store(0, Ordering::SeqCst);
    }

    /// Remembers what a later effect needs of an answer.
    pub(super) fn note(&mut self, input: &Input) {
        if let Input::Pinged(_, Err(why)) = input
            && self.no_ping.as_ref() != Some(why)
        {
            log::line(Level::Warn, "no-ping", None, &format!("cannot ping members: {why}"));
            self.no_ping = Some(why.clone());
        }
    }

    /// Begins an effect. Whatever becomes of it, it ends, with one input. The guardian knows what a lost member does not tell
    /// any more, and which images are in use.
    pub(super) fn perform(&mut self, effect: Effect, guardian: &Guardian) -> EffectFuture {
        let view = guardian.view();
        let halt = Halt::of(&effect);
        let clients = self.budget.look();
        match effect {
            Effect::ReadView { whole } => {
                let (before, proved) = (view.cloned(), Arc::clone(&self.proved));
                self.ask(Effect::ReadView { whole }, async move |incus| {
                    let began = clock::boot();
                    let view = incus_steps::view(&incus, whole, before.as_deref(), &proved).await;
                    Input::View { began, view }
                })
            }
            Effect::ReadMemberState(member) => {
                let answering = Arc::clone(&self.answering);
                self.ask(Effect::ReadMemberState(member.clone()), async move |incus| {
                    incus_steps::member_state(&incus, member, &answering).await
                })
            }
            Effect::ReadNetworks(member) => {
                self.ask(Effect::ReadNetworks(member.clone()), async move |incus| {
                    let networks = incus_steps::networks(&incus, &member).await;
                    Input::Networks(member, networks)
                })
            }
            Effect::PutGate { at, contents, epoch } => {
                let effect = Effect::PutGate { at: at.clone(), contents: GateContents::default(), epoch };
                let is_over = self.is_over();
                self.ask(effect, async move |incus| {
                    let may_send = |member: &str| {
                        let may = !is_over();
                        Halt::before_write(member);
                        may
                    };
                    let put = incus_steps::put_gate(&incus, &at, &contents, epoch, may_send);
                    Input::GatePut(halt.around_async(put).await)
                })
            }
            Effect::PushGate => self.ask(Effect::PushGate, async move |incus| {
                Input::GatePushed(incus_steps::push_gate(&incus).await)
            }),
            Effect::Start(instance) => self.ask(Effect::Start(instance.clone()), async move |incus| {
                let started = incus_steps::start(&incus, &instance).await;
                Input::Started(instance, started)
            }),
            Effect::Ping(member) => {
                let host = view.and_then(|view| host_of(&member, view));
                Box::pin(async move {
                    let answered = match host {
                        Some(host) => crate::daemon::ping::ping(&host).await,
                        None => Err(format!("no API address of {member} is known")),
                    };
                    Input::Pinged(member, answered)
                })
            }
            Effect::Look => self.on_lane(Effect::Look, LOOK + clients, move |storage, deadline| {
                let world = look::look_within(&storage.cluster, &storage.guarded, &deadline.at_most(clients));
                Input::Looked(world.map_err(|error| error.to_string()))
            }),
            Effect::ReadMaps { after } => {
                self.on_lane(Effect::ReadMaps { after }, LOOK, move |storage, deadline| {
                    let maps = osdmap::since(&storage.cluster, after, deadline);
                    Input::Maps(maps.map_err(|error| error.to_string()))
                })
            }
            Effect::ReadAudit(fence) => {
                self.on_lane(Effect::ReadAudit(fence.clone()), STEP, move |storage, deadline| {
                    let removals = storage.read(deadline, audit::removals);
                    Input::Audit(fence, removals.map_err(|error| error.to_string()))
                })
            }
            Effect::Sweep(part) => {
                let budget = Arc::clone(&self.budget);
                let selection = Arc::new(guardian.sweep_selection(part));
                self.on_lane(Effect::Sweep(part), budget.sweep(), move |storage, deadline| {
                    sweep(storage, selection, &budget, deadline)
                })
            }
            Effect::Find(images) => {
                let unsent = Effect::Find(images.clone());
                self.on_lane(unsent, self.budget.sweep(), move |storage, deadline| {
                    found(storage, &images, deadline)
                })
            }
            Effect::Record { changes, what, why } => {
                let held_lead = self.held_lead.clone();
                let failed = Effect::Record { changes: Vec::new(), what: String::new(), why: String::new() };
                self.on_lane(failed, STEP, move |_, _| {
                    Input::Recorded(halt.around(|| held_lead.record(&changes, what, why)))
                })
            }
            Effect::Fence(fence, step) | Effect::Release(fence, step) => self.step(fence, step, halt),
            Effect::Retire(fence, entries) => {
                let unsent = Effect::Retire(fence.clone(), entries.clone());
                self.on_lane(unsent, STEP, move |storage, deadline| {
                    let sent =
                        halt.around(|| change(&storage.cluster, &entries, EntryChange::Remove, deadline));
                    Input::Retired(fence, sent)
                })
            }
            Effect::BreakLock(lock) => {
                self.on_lane(Effect::BreakLock(lock.clone()), STEP, move |storage, deadline| {
                    let stale = Stale {
                        pool: &lock.image.pool,
                        namespace: &lock.image.namespace,
                        image: &lock.image.name,
                        owner: &lock.owner,
                        cookie: &lock.cookie,
                    };
                    let broken = break_lock(&storage.cluster, stale, deadline);
                    Input::LockBroken(lock, broken.map_err(|error| error.to_string()))
                })
            }
        }
    }

    fn step(&mut self, fence: FenceId, step: Step, halt: Halt) -> EffectFuture {
        let is_repeated = if step == Step::ReadMap {
            !self.read_last.insert(fence.clone())
        } else {
            self.read_last.remove(&fence);
            false
        };
        let names = Arc::clone(&self.names);
        let budget = Arc::clone(&self.budget);
        let time = match &step {
            Step::Barrier { .. } => ROUND,
            Step::ReadClients => budget.clients(),
            Step::FailOver(_) | Step::ReadDaemons | Step::Add(_) | Step::Remove(_) | Step::ReadMap => STEP,
        };
        // `failed` makes no difference between a step of a fence and one of its release.
        let unsent = Effect::Fence(fence.clone(), step.clone());
        let performed = self.on_lane(unsent, time, move |storage, deadline| {
            // One barrier is on its way at a time. Where one was given up, what it knew is asked anew.
            let mut known = std::mem::take(&mut *names.lock().unwrap_or_else(PoisonError::into_inner));
            let performed = halt.around(|| storage.perform(step, &mut known, deadline, &mut |_| {}));
            *names.lock().unwrap_or_else(PoisonError::into_inner) = known;
            if let StepOutcome::Clients(_) | StepOutcome::Unread(_) = &performed.outcome {
                budget.note_clients(!performed.outcome.has_failed());
            }
            Input::Step(fence, performed.outcome)
        });
        Box::pin(async move {
            if is_repeated {
                rest(PACE).await;
            }
            let input = performed.await;
            if matches!(&input, Input::Step(_, outcome) if outcome.is_asked_again()) {
                rest(PACE).await;
            }
            input
        })
    }

    /// A guardian that was stopped since and whose lease is over sends nothing more (INV-7), and one that gave it up
    /// neither. Asked right before each sending.
    fn is_over(&self) -> impl Fn() -> bool + Send + use<> {
        let until = Arc::clone(&self.until);
        move || millis(clock::boot()) >= until.load(Ordering::SeqCst)
    }

    /// Runs a blocking call on the storage on a lane.
    fn on_lane<F>(&self, effect: Effect, time: Duration, call: F) -> EffectFuture
    where
        F: FnOnce(&Storage, &Deadline) -> Input + Send + 'static,
    {
        let (storage, is_over, unsent) = (self.storage.clone(), self.is_over(), effect.clone());
        Box::pin(async move {
            let call = move || {
                if is_over() {
                    return failed(unsent, incus_steps::OVER);
                }
                call(&storage, &Deadline::after(time, Arc::default()))
            };
            match within(time + GRACE, lane::awaited(call)).await {
                Ok(Some(input)) => input,
                Ok(None) => failed(effect, "it ended without an answer"),
                Err(late) => failed(effect, &late.to_string()),
            }
        })
    }

    /// Asks Incus, within as many deadlines of single requests as the longest answer needs.
    fn ask<F, A>(&self, effect: Effect, ask: F) -> EffectFuture
    where
        F: FnOnce(Client) -> A + 'static,
        A: Future<Output = Input>,
    {
        let Some(incus) = self.incus.clone() else {
            let why = "no Incus is configured, or its certificate cannot be used";
            return Box::pin(async move { failed(effect, why) });
        };
        let (time, is_over) = (incus.timeout() * 4 + GRACE, self.is_over());
        Box::pin(async move {
            if is_over() {
                return failed(effect, incus_steps::OVER);
            }
            match within(time, ask(incus)).await {
                Ok(input) => input,
                Err(late) => failed(effect, &late.to_string()),
            }
        })
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Where the member's API is: what healing pings.
fn host_of(member: &str, view: &IncusSnapshot) -> Option<String> {
    let url: Uri = view.members.get(member)?.url.parse().ok()?;
    Some(url.host()?.trim_start_matches('[').trim_end_matches(']').to_owned())
}

fn sweep(
    storage: &Storage,
    selection: Arc<SweepSelection>,
    budget: &TimeBudget,
    deadline: &Deadline,
) -> Input {
    let began = clock::boot();
    let (mut uses, mut data_pools) = (Vec::new(), DataPools::new());
    let listed = Arc::new(AtomicU64::new(0));
    let mut read = 0;
    let unread = match storage.read(deadline, osdmap::dump) {
        Ok(dump) => {
            let scope = SweepScope::of(&storage.guarded.pools(&dump.map));
            let count = Arc::clone(&listed);
            let wanted: Wanted = Arc::new(move |pool, namespace, name| {
                count.fetch_add(1, Ordering::Relaxed);
                selection.has(pool, namespace, name)
            });
            watchers::sweep(&storage.cluster, &scope, &wanted, deadline, &mut |image| {
                read += 1;
                image.note_data_pool(&mut data_pools);
                uses.extend(used(image));
            })
        }
        Err(error) => vec![error.to_string()],
    };
    let took = clock::boot().saturating_sub(began);
    budget.note_sweep(took, read, listed.load(Ordering::Relaxed), unread.is_empty());
    Input::Swept { began, uses, unread, data_pools }
}

fn found(storage: &Storage, images: &[ImageName], deadline: &Deadline) -> Input {
    let began = clock::boot();
    let (missing, unread) = match storage.read(deadline, osdmap::dump) {
        Ok(dump) => missing(&storage.cluster, &dump.map, images, deadline),
        Err(error) => (BTreeSet::new(), vec![error.to_string()]),
    };
    Input::Found { began, missing, unread }
}

/// `None` for an image that nobody uses: most of them, in a big pool.
fn used(image: watchers::ImageReading) -> Option<ImageUse> {
    if image.watchers.is_empty() && image.locks.is_empty() && image.unknown.is_empty() {
        return None;
    }
    let locker = |lock: LockOwner| Locker { owner: lock.owner, cookie: lock.cookie, address: lock.address };
    Some(ImageUse {
        image: ImageName { pool: image.pool, namespace: image.namespace, name: image.image },
        watchers: image.watchers.into_iter().map(|watch| watch.address).collect(),
        locks: image.locks.into_iter().map(locker).collect(),
        unknown: image.unknown,
    })
}

/// The answer to an effect that has none of its own: what it did, if anything, is unknown (INV-9).
pub(super) fn failed(effect: Effect, why: &str) -> Input {
    let why = || why.to_owned();
    match effect {
        Effect::ReadView { .. } => Input::View { began: clock::boot(), view: Err(why()) },
        Effect::ReadMemberState(member) => Input::MemberState(member, Err(why())),
        Effect::ReadNetworks(member) => Input::Networks(member, Err(why())),
        Effect::Ping(member) => Input::Pinged(member, Err(why())),
        Effect::Look => Input::Looked(Err(why())),
        Effect::ReadMaps { .. } => Input::Maps(Err(why())),
        Effect::ReadAudit(fence) => Input::Audit(fence, Err(why())),
        Effect::Sweep(_) => Input::Swept {
            began: clock::boot(),
            uses: Vec::new(),
            unread: vec![why()],
            data_pools: DataPools::new(),
        },
        Effect::Find(_) => {
            Input::Found { began: clock::boot(), missing: BTreeSet::new(), unread: vec![why()] }
        }
        Effect::Record { .. } => Input::Recorded(Recorded::Not { why: why(), holds: None }),
        Effect::Fence(fence, step) | Effect::Release(fence, step) => {
            Input::Step(fence, step.unanswered(&why()))
        }
        Effect::Retire(fence, entries) => {
            Input::Retired(fence, entries.into_iter().map(|entry| (entry, Sent::Unknown)).collect())
        }
        Effect::PutGate { at, .. } => Input::GatePut(at.into_iter().map(|name| (name, why())).collect()),
        Effect::PushGate => Input::GatePushed(Err(why())),
        Effect::BreakLock(lock) => Input::LockBroken(lock, Err(why())),
        Effect::Start(instance) => Input::Started(instance, Err(why())),
    }
}
