//! What Incus announces, from several members at once.
//!
//! Nothing is replayed, links between members have gaps, and up to 7.3 the order is not kept (docs/facts/incus.md#events).
//! So events only ever say *when to look*: after [`Signal::Connected`] and [`Signal::Overflow`] everything is read
//! again, and order is by timestamp.

mod wire;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::{JoinSet, yield_now};
use tokio::time::Instant;

use super::api::Operation;
use super::client::Client;
use super::endpoint::Endpoint;
use super::error::{IncusError, RequestError};
use super::frames::{Frames, Received};
use super::tls;
use crate::deadline::{rest, within};

const PATH: &str = "/1.0/events?type=lifecycle,operation,logging&all-projects=true";
/// The server pings every 10 s and gives up after three (client/incus_events.go): so does this side.
const SILENCE: Duration = Duration::from_secs(30);
/// Between attempts to connect; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How much may wait to be received: a burst of an evacuation of hundreds of instances.
const QUEUE: usize = 4096;
/// How many events are remembered to tell the same one told by another member.
const REMEMBERED: usize = 4096;
/// How many bytes of events may wait.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// The longest event that is read. It carries an operation's metadata, and of a command in an instance that is what
/// its caller sent: whatever is longer is a missed event.
const LONGEST: usize = 4 * 1024 * 1024;
/// A connection that was lost sooner than this counts as a failure to connect.
const LASTED: Duration = Duration::from_secs(10);
/// How often missed events are told at most: everything is read again each time.
const OVERFLOW_EVERY: Duration = Duration::from_secs(5);
/// How many events are taken from a member, and told, in a row before others have their turn.
const IN_A_ROW: u32 = 64;

/// What a listener hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Signal {
    /// A member is listened to from now on. What happened before is to be read.
    Connected {
        endpoint: Endpoint,
    },
    /// A member is not listened to any more; it is tried again. Told once until it is connected again.
    Lost {
        endpoint: Endpoint,
        why: IncusError,
    },
    Event(Event),
    /// So many events were not kept, because they came too fast or were too long or not understood: everything is to be
    /// read. Told at most every few seconds.
    Overflow {
        lost: u64,
    },
}

/// Something that happened, told by whichever member told it first.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When, by the clock of the member it happened on.
    pub at: Timestamp,
    /// The member it happened on.
    pub location: String,
    pub what: EventKind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// Something was done to an object.
    Lifecycle(Lifecycle),
    /// An operation began, goes on or ended.
    Operation(Operation),
    /// A member logged something.
    Logging(LogMessage),
}

/// `lifecycle`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lifecycle {
    /// `instance-started`, `project-updated`, `cluster-member-healed`, …
    pub action: String,
    /// The object's path without its query: `/1.0/instances/c1`.
    pub source: String,
    /// Its project; `default` for what has none.
    pub project: String,
    pub name: String,
}

/// `logging`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LogMessage {
    /// `info`, `warning`, `error`, …
    #[serde(default)]
    pub level: String,
    #[serde(default)]
    pub message: String,
    /// Of its fields those that name a member or are the gate's words; values of any kind as text.
    #[serde(default, deserialize_with = "wire::context")]
    pub context: BTreeMap<String, String>,
}

/// Listens to all endpoints of a client until it is dropped.
#[derive(Debug)]
pub struct Listener {
    signals: Receiver<MemberSignal>,
    queue: Arc<Queue>,
    told: SeenEvents,
    overflow_at: Option<Instant>,
    in_a_row: u32,
    _tasks: JoinSet<()>,
}

/// What waits to be received.
#[derive(Debug, Default)]
struct Queue {
    /// Events that were not kept and not told yet.
    lost: AtomicU64,
    bytes: AtomicUsize,
}

/// As it comes from one member.
#[derive(Debug)]
enum MemberSignal {
    Connected(Endpoint),
    Lost(IncusError),
    Event(Event, EventHash),
    /// Wakes who waits: something was missed.
    Missed,
}

/// What makes two events the same, in short: each member stamps and marks its own ones before it passes them on.
type EventHash = [u8; 16];

impl Listener {
    /// Starts to listen; within a runtime.
    pub fn start(client: &Client) -> Self {
        Self::with(client, QUEUE, SILENCE)
    }

    fn with(client: &Client, queue: usize, silence: Duration) -> Self {
        let (sender, signals) = channel(queue);
        let queue = Arc::<Queue>::default();
        let mut tasks = JoinSet::new();
        for endpoint in client.endpoints() {
            let ear = MemberListener {
                client: client.clone(),
                endpoint: endpoint.clone(),
                signals: sender.clone(),
                queue: Arc::clone(&queue),
                silence,
            };
            tasks.spawn(ear.listen());
        }
        Self { signals, queue, told: SeenEvents::default(), overflow_at: None, in_a_row: 0, _tasks: tasks }
    }

    /// The next signal. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Signal {
        if self.in_a_row >= IN_A_ROW {
            self.in_a_row = 0;
            yield_now().await;
        }
        loop {
            if let Some(lost) = self.overflow() {
                return Signal::Overflow { lost };
            }
            let rests = self.overflow_at.filter(|_| self.queue.lost.load(Ordering::Relaxed) > 0);
            let received = match rests {
                Some(at) => tokio::select! {
                    received = self.signals.recv() => received,
                    () = tokio::time::sleep_until(at) => continue,
                },
                None => self.signals.recv().await,
            };
            self.in_a_row += 1;
            match received {
                Some(MemberSignal::Connected(endpoint)) => return Signal::Connected { endpoint },
                Some(MemberSignal::Lost(why)) => return Signal::Lost { endpoint: why.endpoint.clone(), why },
                Some(MemberSignal::Missed) => {}
                Some(MemberSignal::Event(event, key)) => {
                    self.queue.bytes.fetch_sub(event.weight(), Ordering::Relaxed);
                    if self.told.is_new(&key) {
                        return Signal::Event(event);
                    }
                }
                // Every task holds a sender and none of them ends.
                None => std::future::pending().await,
            }
        }
    }

    /// How many events were missed, if that is to be told now.
    fn overflow(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.overflow_at.is_some_and(|at| now < at) {
            return None;
        }
        let lost = Some(self.queue.lost.swap(0, Ordering::Relaxed)).filter(|lost| *lost > 0);
        if lost.is_some() {
            self.overflow_at = Some(now + OVERFLOW_EVERY);
        }
        lost
    }
}

impl Event {
    /// About how many bytes it takes.
    fn weight(&self) -> usize {
        let texts = match &self.what {
            EventKind::Lifecycle(what) => {
                what.action.len() + what.source.len() + what.project.len() + what.name.len()
            }
            EventKind::Operation(what) => {
                what.id.len()
                    + what.description.len()
                    + what.status.len()
                    + what.err.len()
                    + what.location.len()
            }
            EventKind::Logging(what) => {
                let context: usize = what.context.iter().map(|(key, value)| key.len() + value.len()).sum();
                what.message.len() + what.level.len() + context
            }
        };
        size_of::<MemberSignal>() + self.location.len() + texts
    }
}

/// The events of one member.
struct MemberListener {
    client: Client,
    endpoint: Endpoint,
    signals: Sender<MemberSignal>,
    queue: Arc<Queue>,
    silence: Duration,
}

impl MemberListener {
    async fn listen(self) {
        let mut pause = FIRST_PAUSE;
        let mut told = false;
        loop {
            let began = Instant::now();
            let (connected, cause) = self.listen_once().await;
            if connected {
                told = false;
            }
            // A connection that is lost at once each time is no better than none: each new one costs a whole reading.
            if connected && began.elapsed() >= LASTED {
                pause = FIRST_PAUSE;
            }
            if !told {
                let request = "listening to events".to_owned();
                let why = IncusError { endpoint: self.endpoint.clone(), request, cause };
                // Nothing else is told of this member meanwhile, so waiting for room loses nothing.
                if self.signals.send(MemberSignal::Lost(why)).await.is_err() {
                    return;
                }
                told = true;
            }
            rest(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Until the connection is lost: whether there was one, and why there is none any more.
    async fn listen_once(&self) -> (bool, RequestError) {
        let timeout = self.client.timeout();
        let connecting = within(timeout, async {
            let stream = self.client.connect(&self.endpoint).await?;
            Frames::open(stream, &self.endpoint.authority(), PATH, LONGEST).await
        });
        let mut frames = match connecting.await {
            Ok(Ok(frames)) => frames,
            Ok(Err(cause)) => return (false, cause),
            Err(_) => return (false, RequestError::Late { timeout, sent: false }),
        };
        if self.signals.send(MemberSignal::Connected(self.endpoint.clone())).await.is_err() {
            return (true, RequestError::Lost("nobody listens".to_owned()));
        }
        let mut in_a_row = 0;
        loop {
            // What arrived already is there without waiting, megabytes of it.
            in_a_row += 1;
            if in_a_row >= IN_A_ROW {
                in_a_row = 0;
                yield_now().await;
            }
            match within(self.silence, frames.next()).await {
                Ok(Ok(Received::Message(text))) => self.hear(&text),
                Ok(Ok(Received::TooLong)) => self.miss(),
                Ok(Ok(Received::Alive)) => {}
                Ok(Ok(Received::Closed)) => {
                    return (true, RequestError::Lost("closed by the member".to_owned()));
                }
                Ok(Err(error)) => return (true, tls::cause(&error)),
                Err(_) => return (true, RequestError::Late { timeout: self.silence, sent: true }),
            }
        }
    }

    fn hear(&self, text: &[u8]) {
        // Something happened and cannot be understood: as good as not kept.
        let Ok(parsed) = wire::parse(text) else { return self.miss() };
        let Some((event, key)) = parsed else { return };
        let weight = event.weight();
        let fits = self.queue.bytes.fetch_add(weight, Ordering::Relaxed) + weight <= QUEUE_BYTES;
        if !fits || self.signals.try_send(MemberSignal::Event(event, key)).is_err() {
            self.queue.bytes.fetch_sub(weight, Ordering::Relaxed);
            self.miss();
        }
    }

    fn miss(&self) {
        self.queue.lost.fetch_add(1, Ordering::Relaxed);
        // Where there is no room for it, who receives is awake.
        let _ = self.signals.try_send(MemberSignal::Missed);
    }
}

/// The last events told.
#[derive(Debug, Default)]
struct SeenEvents {
    keys: HashSet<EventHash>,
    order: VecDeque<EventHash>,
}

impl SeenEvents {
    fn is_new(&mut self, key: &EventHash) -> bool {
        if !self.keys.insert(*key) {
            return false;
        }
        self.order.push_back(*key);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use futures_util::{SinkExt as _, StreamExt as _};
    use serde_json::{Value, json};
    use tokio::net::{UnixListener, UnixStream};
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::{WebSocketStream, accept_async};

    use super::*;
    use crate::incus::block_on;
    use crate::incus::tls::Tls;

    const LONG: Duration = Duration::from_secs(20);

    fn started(name: &str, location: &str) -> Value {
        json!({"type": "lifecycle", "timestamp": "2026-08-24T12:00:31.1Z", "project": "default", "location": location,
            "metadata": {"action": "instance-started", "source": format!("/1.0/instances/{name}?project=p1"),
                "requestor": {"username": "x"}}})
    }

    #[test]
    fn the_same_event_is_told_once_as_long_as_it_is_remembered() {
        let mut told = SeenEvents::default();
        let key = |n: usize| {
            let mut key = EventHash::default();
            key[..8].copy_from_slice(&n.to_le_bytes());
            key
        };
        assert!(told.is_new(&key(0)) && !told.is_new(&key(0)));
        for n in 1..=REMEMBERED {
            assert!(told.is_new(&key(n)));
        }
        assert!(told.is_new(&key(0)), "remembered for ever");
        assert_eq!(told.keys.len(), REMEMBERED);
    }

    /// A member's end of the connection to events.
    struct Stage {
        socket: PathBuf,
        listener: UnixListener,
    }

    impl Drop for Stage {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.socket);
        }
    }

    impl Stage {
        fn new(name: &str) -> Self {
            let file = format!("rbd-guardian-events-{}-{name}.socket", std::process::id());
            let socket = std::env::temp_dir().join(file);
            let _ = std::fs::remove_file(&socket);
            Self { listener: UnixListener::bind(&socket).unwrap(), socket }
        }

        async fn accept(&self) -> WebSocketStream<UnixStream> {
            accept_async(self.listener.accept().await.unwrap().0).await.unwrap()
        }
    }

    fn listener(stages: &[&Stage], queue: usize, silence: Duration) -> Listener {
        let endpoints = stages.iter().map(|stage| Endpoint::Unix(stage.socket.clone())).collect();
        Listener::with(&Client::new(endpoints, Tls::default(), LONG), queue, silence)
    }

    async fn send(to: &mut WebSocketStream<UnixStream>, event: &Value) {
        to.send(Message::text(event.to_string())).await.unwrap();
    }

    async fn next(listener: &mut Listener) -> Signal {
        within(LONG, listener.next()).await.expect("nothing was told")
    }

    async fn connected(listener: &mut Listener) {
        let signal = next(listener).await;
        assert!(matches!(signal, Signal::Connected { .. }), "{signal:?}");
    }

    fn run(test: impl Future<Output = ()>) {
        block_on(test).unwrap();
    }

    #[test]
    fn what_two_members_tell_is_heard_once() {
        run(async {
            let (one, two) = (Stage::new("one"), Stage::new("two"));
            let mut listener = listener(&[&one, &two], 16, LONG);
            let (mut one, mut two) = (one.accept().await, two.accept().await);
            connected(&mut listener).await;
            connected(&mut listener).await;
            for member in [&mut one, &mut two] {
                send(member, &started("c1", "m3")).await;
            }
            send(&mut two, &started("c1", "m2")).await;
            let mut heard = Vec::new();
            for _ in 0..2 {
                let Signal::Event(event) = next(&mut listener).await else { panic!("no event") };
                heard.push(event.location);
            }
            heard.sort();
            assert_eq!(heard, ["m2", "m3"]);
        });
    }

    #[test]
    fn what_is_not_kept_is_counted() {
        run(async {
            let stage = Stage::new("full");
            let mut listener = listener(&[&stage], 4, LONG);
            let mut member = stage.accept().await;
            connected(&mut listener).await;
            for n in 0..10 {
                send(&mut member, &started(&format!("c{n}"), "m1")).await;
            }
            send(&mut member, &json!({"what": "is this?"})).await;
            // Answered only once all that was sent before it was heard.
            member.send(Message::Ping("x".into())).await.unwrap();
            let pong = within(LONG, member.next()).await.unwrap().unwrap().unwrap();
            assert!(pong.is_pong(), "{pong:?}");
            assert_eq!(next(&mut listener).await, Signal::Overflow { lost: 7 });
            for n in 0..4 {
                let Signal::Event(event) = next(&mut listener).await else { panic!("no event") };
                let EventKind::Lifecycle(what) = event.what else { panic!("{event:?}") };
                assert_eq!(what.name, format!("c{n}"));
            }
        });
    }

    #[test]
    fn silence_and_an_end_are_losses_and_it_connects_again() {
        run(async {
            let stage = Stage::new("silent");
            let silence = Duration::from_millis(300);
            let mut listener = listener(&[&stage], 16, silence);
            let held = stage.accept().await;
            connected(&mut listener).await;
            let Signal::Lost { why, .. } = next(&mut listener).await else { panic!("no loss") };
            assert_eq!(why.cause, RequestError::Late { timeout: silence, sent: true });
            drop(held);
            let member = stage.accept().await;
            connected(&mut listener).await;
            drop(member);
            let Signal::Lost { why, .. } = next(&mut listener).await else { panic!("no loss") };
            assert!(matches!(why.cause, RequestError::Lost(_)), "{why}");
            let mut member = stage.accept().await;
            connected(&mut listener).await;
            send(&mut member, &started("c1", "m1")).await;
            assert!(matches!(next(&mut listener).await, Signal::Event(_)));
        });
    }

    fn command(number: usize, bytes: usize) -> Value {
        json!({"type": "operation", "timestamp": "2026-08-24T12:00:31Z", "location": "m2", "project": "p",
            "metadata": {"id": format!("op-{number}"), "class": "websocket", "description": "Executing command",
                "status": "Running", "resources": {"instances": ["/1.0/instances/c1"]},
                "metadata": {"command": ["x".repeat(bytes)], "environment": {"A": "y".repeat(bytes)}}}})
    }

    #[test]
    fn a_message_that_is_too_long_is_one_missed_event_and_the_connection_stays() {
        run(async {
            let stage = Stage::new("long");
            let mut listener = listener(&[&stage], 16, LONG);
            let mut member = stage.accept().await;
            connected(&mut listener).await;
            let sending = async {
                send(&mut member, &command(1, LONGEST)).await;
                send(&mut member, &started("c1", "m1")).await;
                member
            };
            let hearing = async {
                let mut heard = Vec::new();
                while heard.len() < 2 {
                    match next(&mut listener).await {
                        Signal::Overflow { lost } => heard.push(format!("{lost} missed")),
                        Signal::Event(event) => heard.push(event.location),
                        other @ (Signal::Connected { .. } | Signal::Lost { .. }) => panic!("{other:?}"),
                    }
                }
                heard
            };
            let (mut member, mut heard) = futures_util::future::join(sending, hearing).await;
            heard.sort();
            assert_eq!(heard, ["1 missed", "m1"]);
            // It still answers.
            member.send(Message::Ping("x".into())).await.unwrap();
            let pong = within(LONG, member.next()).await.unwrap().unwrap().unwrap();
            assert!(pong.is_pong(), "{pong:?}");
        });
    }

    #[test]
    fn what_waits_is_bounded_in_bytes() {
        run(async {
            let stage = Stage::new("bytes");
            let mut listener = listener(&[&stage], 100_000, LONG);
            let mut member = stage.accept().await;
            connected(&mut listener).await;
            let count = 2 * QUEUE_BYTES / wire::TEXT;
            for number in 0..count {
                let failed = json!({"type": "operation", "timestamp": "2026-08-24T12:00:31Z",
                    "metadata": {"id": number.to_string(), "err": "e".repeat(2 * wire::TEXT)}});
                send(&mut member, &failed).await;
            }
            member.send(Message::Ping("x".into())).await.unwrap();
            within(LONG, member.next()).await.unwrap().unwrap().unwrap();
            assert!(listener.queue.bytes.load(Ordering::Relaxed) <= QUEUE_BYTES);
            let Signal::Overflow { lost } = next(&mut listener).await else { panic!("nothing was missed") };
            let lost = usize::try_from(lost).unwrap();
            assert!(lost > count / 3, "{lost} of {count}");
            // The rest is heard, and makes room.
            for _ in lost..count {
                let Signal::Event(_) = next(&mut listener).await else { panic!("no event") };
            }
            assert_eq!(listener.queue.bytes.load(Ordering::Relaxed), 0);
        });
    }

    #[test]
    fn a_flood_leaves_others_their_turn_and_is_told_now_and_then() {
        run(async {
            let stage = Stage::new("flood");
            let mut listener = listener(&[&stage], 1000, LONG);
            let mut member = stage.accept().await;
            connected(&mut listener).await;
            for number in 0..900 {
                send(&mut member, &started(&format!("c{number}"), "m1")).await;
            }
            for _ in 0..3 {
                send(&mut member, &json!({"what": "is this?"})).await;
            }
            member.send(Message::Ping("x".into())).await.unwrap();
            within(LONG, member.next()).await.unwrap().unwrap().unwrap();
            let (mut events, mut turns, mut told) = (0, 0, 0);
            while events < 900 {
                tokio::select! {
                    biased;
                    signal = listener.next() => match signal {
                        Signal::Event(_) => events += 1,
                        Signal::Overflow { .. } => told += 1,
                        other @ (Signal::Connected { .. } | Signal::Lost { .. }) => panic!("{other:?}"),
                    },
                    () = std::future::ready(()) => turns += 1,
                }
            }
            assert!(turns >= 900 / IN_A_ROW, "{turns} turns in {events} events");
            assert_eq!(told, 1);
            send(&mut member, &json!({"what": "is this?"})).await;
            let later = within(Duration::from_millis(500), listener.next()).await;
            assert!(later.is_err(), "told again at once: {later:?}");
        });
    }

    #[test]
    fn a_connection_that_is_lost_at_once_is_not_tried_faster_and_faster() {
        run(async {
            let stage = Stage::new("brief");
            let mut listener = listener(&[&stage], 16, LONG);
            let mut gaps = Vec::new();
            for _ in 0..4 {
                let since = Instant::now();
                drop(stage.accept().await);
                gaps.push(since.elapsed());
                connected(&mut listener).await;
                let Signal::Lost { .. } = next(&mut listener).await else { panic!("no loss") };
            }
            assert!(gaps[3] >= FIRST_PAUSE * 3, "{gaps:?}");
        });
    }
}
