//! What must be true whatever fails (INV-1, INV-2, INV-3, INV-7), by what is seen from outside: the members' own
//! configuration, the watchers of images, what writers heard, and the ledger's trail.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::common::guarded::{Guarded, MEMBERS};
use crate::common::trail;
use lab::incus::{Container, ContainerWriter, POOL, Watch};
use lab::{WriteLog as _, monotonic};
use serde_json::Value;

const SEAL: &str = "user.rbd-guardian.seal.";
const EPOCH: &str = "user.rbd-guardian.epoch";
/// Between two looks at the gate.
const PACE: Duration = Duration::from_millis(50);
/// A member that answers, answers within this.
const ANSWER: Duration = Duration::from_secs(3);

/// The members whose instances may be placed elsewhere, from the first look that showed so to the last one.
#[derive(Debug, Clone)]
struct Opening {
    open: BTreeSet<String>,
    /// The first look had ended.
    from: Duration,
    /// The last look began.
    to: Duration,
}

/// Watches the gate and the images of a site, from its making to its end.
pub(crate) struct Checker {
    watch: Watch,
    openings: Arc<Mutex<Vec<Opening>>>,
    over: Arc<AtomicBool>,
    looks: Option<JoinHandle<()>>,
}

/// What a check has seen.
pub(crate) struct Seen {
    /// The writers that were fenced, and when they were sealed.
    pub(crate) fenced: Vec<(ContainerWriter, Duration)>,
    /// From each seal to the last instant at which the next owner had no watcher yet.
    pub(crate) margins: Vec<Duration>,
    /// Next owners of which the observer cannot tell, for the storage did not answer it, whether they came right after
    /// the seal or right before it.
    blurred: usize,
    openings: usize,
    leaders: usize,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fenced, margins, blurred, openings, leaders } = self;
        write!(
            f,
            "{} seals of a writer, margins {margins:.2?} and {blurred} that cannot be told, the gate open {openings} times, \
             {leaders} changes of the lead",
            fenced.len()
        )
    }
}

/// `GET` of a path through a member's socket, whatever cables are cut.
fn get(socket: &Path, path: &str) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(ANSWER)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: incus\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let answer: Value = serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()?;
    (answer["status_code"] == 200).then(|| answer["metadata"].clone())
}

/// Members that any member's configuration opens: by its own epoch, as the gate has it.
fn open(members: &Value) -> BTreeSet<String> {
    let mut open = BTreeSet::new();
    for member in members.as_array().into_iter().flatten() {
        let keys = member["config"].as_object().into_iter().flatten();
        let opens = keys.filter(|(key, epoch)| key.starts_with(SEAL) && **epoch == member["config"][EPOCH]);
        open.extend(opens.filter_map(|(key, _)| key.strip_prefix(SEAL)).map(str::to_owned));
    }
    open
}

fn look(sockets: &[PathBuf], over: &AtomicBool, openings: &Mutex<Vec<Opening>>) {
    let mut sockets = sockets.to_vec();
    while !over.load(Ordering::SeqCst) {
        let began = monotonic();
        let answers = sockets.iter().position(|socket| {
            let Some(members) = get(socket, "/1.0/cluster/members?recursion=1") else { return false };
            let (open, by) = (open(&members), monotonic());
            let mut openings = openings.lock().unwrap_or_else(PoisonError::into_inner);
            match openings.last_mut() {
                Some(last) if last.open == open => last.to = began.max(last.from),
                _ => openings.push(Opening { open, from: by, to: by }),
            }
            true
        });
        // Who answered is asked first.
        sockets.rotate_left(answers.unwrap_or(1));
        thread::sleep(PACE);
    }
}

impl Checker {
    pub(crate) fn start(site: &Guarded) -> Self {
        let (openings, over) = (Arc::<Mutex<Vec<Opening>>>::default(), Arc::<AtomicBool>::default());
        let sockets = MEMBERS.map(|name| site.cluster.member(name).socket());
        let looks = {
            let (openings, over) = (Arc::clone(&openings), Arc::clone(&over));
            thread::spawn(move || look(&sockets, &over, &openings))
        };
        let watch = site.lab().watch(POOL.1).unwrap();
        Self { watch, openings, over, looks: Some(looks) }
    }

    /// Checks all that happened to a container since an instant, at which it ran on this member and nobody was fenced, to
    /// now, when the ledger can be read.
    #[track_caller]
    pub(crate) fn check(
        &self,
        site: &Guarded,
        container: &Container<'_>,
        first: &str,
        began: Duration,
    ) -> Seen {
        let ledger = Ledger::read(site);
        let seals = |member: &str| ledger.seals(member).into_iter().filter(|seal| *seal > began);
        let openings = self.check_gate(&ledger, began);
        let (margins, blurred) = self.check_owners(site, container, (first, began), seals);

        // INV-1: nobody's writes of before a seal of its member are taken after it.
        let writers = container.writers().unwrap();
        let mut fenced = Vec::new();
        for writer in &writers {
            let log = writer.log().unwrap();
            for seal in
                seals(writer.member()).filter(|seal| log.first().is_some_and(|first| first.at < *seal))
            {
                assert_eq!(
                    writer.taken_after(seal, 1).unwrap(),
                    0,
                    "INV-1: {writer:?} wrote after {seal:?}\n{ledger}"
                );
                fenced.push((writer.clone(), seal));
            }
        }
        // No two are acknowledged without a seal between, unless the first ended with its member's life.
        let firsts = |writer: &ContainerWriter| {
            let log = writer.log().unwrap();
            log.iter().find(|entry| entry.error.is_none()).map(|entry| entry.at)
        };
        for pair in writers.windows(2) {
            let (old, new) = (&pair[0], &pair[1]);
            let (Some(last), Some(first)) = (old.last_ack().unwrap(), firsts(new)) else { continue };
            let between = seals(old.member()).any(|seal| seal < first);
            let what = format!("{old:?} until {last:?}, {new:?} from {first:?}\n{ledger}");
            assert!(between || old.member() == new.member(), "no seal between two writers: {what}");
            // One that was under way at the seal is heard of late.
            assert!(between || last < first, "two writers at once: {what}");
        }
        Seen { fenced, margins, blurred, openings, leaders: ledger.leaders(began) }
    }

    /// INV-2, INV-8: the gate is open for no member that the ledger does not call sealed, at no moment. It stays open until
    /// a release, which is recorded first.
    #[track_caller]
    fn check_gate(&self, ledger: &Ledger, began: Duration) -> usize {
        let openings = self.openings.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let since: Vec<&Opening> = openings.iter().filter(|opening| opening.to >= began).collect();
        for opening in &since {
            for member in &opening.open {
                let held = ledger.held(member);
                let within = held.iter().any(|(from, to)| *from <= opening.from && opening.to <= *to);
                assert!(
                    within,
                    "INV-2: the gate was open for {member}: {opening:?}, sealed {held:?}\n{ledger}"
                );
            }
        }
        since.iter().filter(|opening| !opening.open.is_empty()).count()
    }

    /// INV-2: nobody watches the image from another member before its owner is sealed.
    #[track_caller]
    fn check_owners<S: Iterator<Item = Duration>>(
        &self,
        site: &Guarded,
        container: &Container<'_>,
        (first, began): (&str, Duration),
        seals: impl Fn(&str) -> S,
    ) -> (Vec<Duration>, usize) {
        let (mut owner, mut since) = (first, began);
        let (mut margins, mut blurred) = (Vec::new(), 0);
        let history = self.watch.history(&container.image()).unwrap();
        for sighting in history.iter().filter(|sighting| sighting.by > began) {
            let from = |name: &&str| {
                let prefix = format!("{}:", site.site.ip(name));
                sighting.watchers.iter().any(|watcher| watcher.starts_with(&prefix))
            };
            for name in MEMBERS.iter().copied().filter(from) {
                let mut sealed = seals(owner).filter(|seal| *seal > since && *seal < sighting.by);
                let Some(seal) = sealed.next().filter(|_| name != owner) else {
                    // The watch of one that owned it before outlives its ownership.
                    let known = name == owner || seals(name).any(|seal| seal < sighting.by);
                    assert!(
                        known,
                        "INV-2: {name} has the image of {owner}, which is not sealed: {sighting:?}"
                    );
                    continue;
                };
                match sighting.after.checked_sub(seal) {
                    Some(margin) => margins.push(margin),
                    None => blurred += 1,
                }
                (owner, since) = (name, sighting.by);
            }
        }
        (margins, blurred)
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = self.looks.take().map(JoinHandle::join);
    }
}

/// The trail: what was recorded of which member, and when.
struct Ledger {
    trail: Vec<Value>,
    told: String,
    states: Vec<(Duration, String, String)>,
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#?}\n{}", self.states, self.told)
    }
}

impl Ledger {
    #[track_caller]
    fn read(site: &Guarded) -> Self {
        let read = |words: &[&str]| site.site.guardian_on("admin", words).expect(0).json;
        let fences = read(&["ledger"])["fences"].as_array().unwrap().clone();
        let member = |id: &str| fences.iter().find(|fence| fence["fence"] == id)?["member"].as_str();
        let trail = read(&["ledger", "audit"]).as_array().unwrap().clone();
        let told = trail::told(&trail);
        let mut states = Vec::new();
        for audit in &trail {
            let Some((fence, state)) = audit["what"].as_str().unwrap().split_once(' ') else { continue };
            if let Some(member) = member(fence) {
                let at: jiff::Timestamp = audit["at"].as_str().unwrap().parse().unwrap();
                let ago = Duration::try_from(jiff::Timestamp::now().duration_since(at)).unwrap();
                states.push((monotonic() - ago, member.to_owned(), state.to_owned()));
            }
        }
        Self { trail, told, states }
    }

    fn of(&self, member: &str) -> impl Iterator<Item = (Duration, &str)> {
        let of = move |(_, name, _): &&(Duration, String, String)| name == member;
        self.states.iter().filter(of).map(|(at, _, state)| (*at, state.as_str()))
    }

    /// When it was recorded as sealed, and was not before.
    fn seals(&self, member: &str) -> Vec<Duration> {
        self.held(member).into_iter().map(|(from, _)| from).collect()
    }

    /// From when to when it was sealed, with a release that is not through.
    fn held(&self, member: &str) -> Vec<(Duration, Duration)> {
        let mut held: Vec<(Duration, Duration)> = Vec::new();
        let mut since = None;
        for (at, state) in self.of(member) {
            match state {
                "sealed" => drop(since.get_or_insert(at)),
                "releasing" => {}
                _ => held.extend(since.take().map(|from| (from, at))),
            }
        }
        held.extend(since.map(|from| (from, Duration::MAX)));
        held
    }

    fn leaders(&self, began: Duration) -> usize {
        let at = |audit: &Value| Guarded::instant(&serde_json::json!({ "timestamp": audit["at"] }));
        let leads = |audit: &&Value| audit["what"].as_str().unwrap().starts_with("leads with");
        self.trail.iter().filter(leads).filter(|audit| at(audit) > began).count()
    }
}
