//! What Incus announces, from several members at once.
//!
//! Nothing is replayed, links between members have gaps, and up to 7.3 the order is not kept (facts/incus.md §4).
//! So events only ever say *when to look*: after [`Signal::Connected`] and [`Signal::Overflow`] everything is read
//! again, and order is by timestamp.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::api::{Operation, project_of};
use super::client::Client;
use super::endpoint::Endpoint;
use super::error::{Cause, IncusError};
use super::{exchange, tls};
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
/// An event carries an operation's metadata at most.
const LONGEST: usize = 4 * 1024 * 1024;

/// What a listener hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Signal {
    /// A member is listened to from now on. What happened before is to be read.
    Connected {
        /// Which.
        endpoint: Endpoint,
    },
    /// A member is not listened to any more; it is tried again. Told once until it is connected again.
    Lost {
        /// Which.
        endpoint: Endpoint,
        /// Why.
        why: IncusError,
    },
    /// Something happened.
    Event(Event),
    /// So many events were not kept, because the receiver was slow: everything is to be read.
    Overflow {
        /// How many.
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
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// Something was done to an object.
    Lifecycle(Lifecycle),
    /// An operation began, goes on or ended.
    Operation(Operation),
    /// A member logged something.
    Logging(Logging),
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
    /// Its name.
    pub name: String,
}

/// `logging`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Logging {
    /// `info`, `warning`, `error`, …
    #[serde(default)]
    pub level: String,
    /// The message.
    #[serde(default)]
    pub message: String,
    /// Its fields; values of any kind as text.
    #[serde(default, deserialize_with = "super::api::texts")]
    pub context: BTreeMap<String, String>,
}

/// Listens to all endpoints of a client until it is dropped.
#[derive(Debug)]
pub struct Listener {
    signals: Receiver<Raw>,
    lost: Arc<AtomicU64>,
    told: Told,
    _tasks: JoinSet<()>,
}

/// As it comes from one member.
#[derive(Debug)]
enum Raw {
    Connected(Endpoint),
    Lost(IncusError),
    Event(Event, Key),
}

/// What makes two events the same: each member stamps and marks its own ones before it passes them on.
type Key = (Timestamp, String, String);

impl Listener {
    /// Starts to listen; within a runtime.
    pub fn start(client: &Client) -> Self {
        Self::with(client, QUEUE, SILENCE)
    }

    fn with(client: &Client, queue: usize, silence: Duration) -> Self {
        let (sender, signals) = channel(queue);
        let lost = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for endpoint in client.endpoints() {
            let ear = Ear {
                client: client.clone(),
                endpoint: endpoint.clone(),
                signals: sender.clone(),
                lost: Arc::clone(&lost),
                silence,
            };
            tasks.spawn(ear.listen());
        }
        Self { signals, lost, told: Told::default(), _tasks: tasks }
    }

    /// The next signal. Cancelling it loses nothing.
    pub async fn next(&mut self) -> Signal {
        loop {
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                return Signal::Overflow { lost };
            }
            match self.signals.recv().await {
                Some(Raw::Connected(endpoint)) => return Signal::Connected { endpoint },
                Some(Raw::Lost(why)) => return Signal::Lost { endpoint: why.endpoint.clone(), why },
                Some(Raw::Event(event, key)) if self.told.is_new(&key) => return Signal::Event(event),
                Some(Raw::Event(..)) => {}
                // Every task holds a sender and none of them ends.
                None => std::future::pending().await,
            }
        }
    }
}

/// The events of one member.
struct Ear {
    client: Client,
    endpoint: Endpoint,
    signals: Sender<Raw>,
    lost: Arc<AtomicU64>,
    silence: Duration,
}

impl Ear {
    async fn listen(self) {
        let mut pause = FIRST_PAUSE;
        let mut told = false;
        loop {
            let (connected, cause) = self.listen_once().await;
            if connected {
                pause = FIRST_PAUSE;
                told = false;
            }
            if !told {
                let request = "listening to events".to_owned();
                let why = IncusError { endpoint: self.endpoint.clone(), request, cause };
                // Nothing else is told of this member meanwhile, so waiting for room loses nothing.
                if self.signals.send(Raw::Lost(why)).await.is_err() {
                    return;
                }
                told = true;
            }
            rest(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Until the connection is lost: whether there was one, and why there is none any more.
    async fn listen_once(&self) -> (bool, Cause) {
        let timeout = self.client.timeout();
        let connecting = within(timeout, async {
            let stream = self.client.connect(&self.endpoint).await?;
            let url = format!("ws://{}{PATH}", self.endpoint.authority());
            let request = url.into_client_request().map_err(|error| Cause::Garbage(error.to_string()))?;
            let limits =
                WebSocketConfig::default().max_message_size(Some(LONGEST)).max_frame_size(Some(LONGEST));
            client_async_with_config(request, stream, Some(limits)).await.map_err(cause)
        });
        let mut socket = match connecting.await {
            Ok(Ok((socket, _))) => socket,
            Ok(Err(cause)) => return (false, cause),
            Err(_) => return (false, Cause::Late { timeout, sent: false }),
        };
        if self.signals.send(Raw::Connected(self.endpoint.clone())).await.is_err() {
            return (true, Cause::Lost("nobody listens".to_owned()));
        }
        loop {
            let message = match within(self.silence, socket.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return (true, cause(error)),
                Ok(None) => return (true, Cause::Lost("closed by the member".to_owned())),
                Err(_) => return (true, Cause::Late { timeout: self.silence, sent: true }),
            };
            match message {
                Message::Text(text) => self.hear(text.as_bytes()),
                Message::Binary(bytes) => self.hear(&bytes),
                Message::Close(_) => return (true, Cause::Lost("closed by the member".to_owned())),
                // A ping is answered by the library, and counts as a sign of life like anything else.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    fn hear(&self, text: &[u8]) {
        let sent = match parse(text) {
            Ok(Some((event, key))) => self.signals.try_send(Raw::Event(event, key)),
            Ok(None) => Ok(()),
            // Something happened and cannot be understood: as good as not kept.
            Err(_) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        };
        if let Err(TrySendError::Full(_)) = sent {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn cause(error: WsError) -> Cause {
    if let WsError::Io(error) = &error {
        return tls::cause(error);
    }
    if let WsError::Http(response) = &error {
        let body = response.body().as_deref().unwrap_or_default();
        return exchange::refusal(response.status().as_u16(), body);
    }
    Cause::Lost(error.to_string())
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "type")]
    kind: String,
    timestamp: Timestamp,
    #[serde(default)]
    location: String,
    #[serde(default)]
    metadata: Value,
}

#[derive(Deserialize)]
struct WireLifecycle {
    action: String,
    source: String,
    name: Option<String>,
    project: Option<String>,
}

/// An event and what tells it from others; `None` for what is not kept: other types, and chatter of the log.
fn parse(text: &[u8]) -> Result<Option<(Event, Key)>, serde_json::Error> {
    let Wire { kind, timestamp: at, location, metadata } = serde_json::from_slice(text)?;
    let what = match kind.as_str() {
        "lifecycle" => What::Lifecycle(Lifecycle::from(WireLifecycle::deserialize(&metadata)?)),
        "operation" => What::Operation(Operation::deserialize(&metadata)?),
        "logging" => What::Logging(Logging::deserialize(&metadata)?),
        _ => return Ok(None),
    };
    // A member told to log all it does would fill the queue with it.
    if matches!(&what, What::Logging(log) if ["debug", "trace"].contains(&log.level.as_str())) {
        return Ok(None);
    }
    let key = (at, location.clone(), metadata.to_string());
    Ok(Some((Event { at, location, what }, key)))
}

impl From<WireLifecycle> for Lifecycle {
    fn from(wire: WireLifecycle) -> Self {
        let (source, query) = wire.source.split_once('?').unwrap_or((&wire.source, ""));
        let last = || source.rsplit('/').next().unwrap_or_default().to_owned();
        Self {
            action: wire.action,
            source: source.to_owned(),
            project: wire.project.filter(|project| !project.is_empty()).unwrap_or_else(|| project_of(query)),
            name: wire.name.filter(|name| !name.is_empty()).unwrap_or_else(last),
        }
    }
}

/// The last events told.
#[derive(Debug, Default)]
struct Told {
    keys: HashSet<Key>,
    order: VecDeque<Key>,
}

impl Told {
    fn is_new(&mut self, key: &Key) -> bool {
        if !self.keys.insert(key.clone()) {
            return false;
        }
        self.order.push_back(key.clone());
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

    use futures_util::SinkExt as _;
    use serde_json::json;
    use tokio::net::{UnixListener, UnixStream};
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
    fn events_are_read_as_incus_writes_them() {
        let parsed = |event: Value| parse(event.to_string().as_bytes()).unwrap().map(|(event, _)| event);
        let event = parsed(started("c1", "m3")).unwrap();
        assert_eq!(
            (event.at.to_string().as_str(), event.location.as_str()),
            ("2026-08-24T12:00:31.1Z", "m3")
        );
        let what = Lifecycle {
            action: "instance-started".to_owned(),
            source: "/1.0/instances/c1".to_owned(),
            project: "p1".to_owned(),
            name: "c1".to_owned(),
        };
        assert_eq!(event.what, What::Lifecycle(what));

        let healing = json!({"type": "operation", "timestamp": "2026-08-24T14:00:31+02:00", "location": "m2",
            "metadata": {"id": "6916", "class": "task", "description": "Healing cluster", "status": "Running",
                "status_code": 103, "resources": {}, "may_cancel": false, "err": "", "location": "m2",
                "metadata": {"evacuation_progress": "Migrating \"c1\" in project \"default\" to \"m3\""}}});
        let What::Operation(operation) = parsed(healing).unwrap().what else { panic!("no operation") };
        assert!(operation.is_under_way());
        assert!(operation.metadata["evacuation_progress"].as_str().unwrap().contains("c1"));

        let log = |level: &str| {
            json!({"type": "logging", "timestamp": "2026-08-24T12:00:31Z", "location": "m2", "metadata":
                {"message": "Cluster member isn't responding", "level": level, "context": {"name": "m1", "n": 1}}})
        };
        let What::Logging(logged) = parsed(log("warning")).unwrap().what else { panic!("no log") };
        assert_eq!((logged.context["name"].as_str(), logged.context["n"].as_str()), ("m1", "1"));
        assert_eq!(parsed(log("debug")), None);
        assert_eq!(parsed(json!({"type": "network-acl", "timestamp": "2026-08-24T12:00:31Z"})), None);
        assert!(parse(b"{}").is_err());
    }

    #[test]
    fn the_same_event_is_told_once_as_long_as_it_is_remembered() {
        let mut told = Told::default();
        let key = |n: usize| (Timestamp::UNIX_EPOCH, n.to_string(), String::new());
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
                let What::Lifecycle(what) = event.what else { panic!("{event:?}") };
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
            assert_eq!(why.cause, Cause::Late { timeout: silence, sent: true });
            drop(held);
            let member = stage.accept().await;
            connected(&mut listener).await;
            drop(member);
            let Signal::Lost { why, .. } = next(&mut listener).await else { panic!("no loss") };
            assert!(matches!(why.cause, Cause::Lost(_)), "{why}");
            let mut member = stage.accept().await;
            connected(&mut listener).await;
            send(&mut member, &started("c1", "m1")).await;
            assert!(matches!(next(&mut listener).await, Signal::Event(_)));
        });
    }
}
