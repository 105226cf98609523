//! The connection to Incus: it is opened again until that succeeds, and what Incus announces comes over it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt as _;
use rbd_guardian_core::guardian::report::Level;
use rbd_guardian_core::model::incus_snapshot::Notice;

use crate::daemon::hearing::EventLog;
use crate::daemon::incus_events::notice;
use crate::daemon::log;
use crate::incus::client::Client;
use crate::incus::events::{Listener, Signal};
use crate::incus::options::IncusConfig;

/// Between two attempts to open the client.
const RETRY: Duration = Duration::from_secs(2);
/// A guardian that begins to lead hears of a healing that the gate refused within this time: the next tick of healing is a
/// minute away (docs/facts/incus.md#healing), and the guardian that led may have lost its storage with the member.
const REFUSAL_LASTS: Duration = Duration::from_secs(60);

pub(super) struct IncusLink {
    client: Option<Client>,
    listener: Option<Listener>,
    /// Why there is no client although Incus is configured.
    trouble: Option<String>,
    /// When to open the client, by the boot clock.
    due: Option<Duration>,
    log: EventLog,
    /// When the gate last refused to heal instances of a member, by the boot clock, whoever led.
    refused: BTreeMap<String, Duration>,
}

impl IncusLink {
    pub(super) fn new() -> Self {
        Self {
            client: None,
            listener: None,
            trouble: None,
            due: Some(Duration::ZERO),
            log: EventLog::default(),
            refused: BTreeMap::new(),
        }
    }

    pub(super) fn client(&self) -> Option<Client> {
        self.client.clone()
    }

    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(super) fn due(&self) -> Option<Duration> {
        self.due
    }

    /// The configuration may have changed.
    pub(super) fn reopen(&mut self) {
        self.due = Some(Duration::ZERO);
    }

    /// Opens what the configuration names; `None`: it names no Incus. Returns whether the client is another one now.
    pub(super) fn open(&mut self, now: Duration, config: Option<&IncusConfig>) -> bool {
        self.due = None;
        match config.map(Client::open).transpose() {
            Ok(client) => {
                self.listener = client.as_ref().map(Listener::start);
                (self.client, self.trouble) = (client, None);
                true
            }
            Err(error) => {
                let why = error.to_string();
                if self.trouble.as_ref() != Some(&why) {
                    log::line(Level::Error, "no-incus", None, &why);
                }
                (self.trouble, self.due) = (Some(why), Some(now + RETRY));
                false
            }
        }
    }

    /// The next announcement; waits for ever without a listener.
    pub(super) async fn next(&mut self) -> Signal {
        match &mut self.listener {
            Some(listener) => listener.next().await,
            None => std::future::pending().await,
        }
    }

    /// An announcement that is there already.
    pub(super) fn next_at_once(&mut self) -> Option<Signal> {
        self.listener.as_mut()?.next().now_or_never()
    }

    /// Logs an announcement, and returns what the core is told of it.
    pub(super) fn note(&mut self, now: Duration, signal: &Signal) -> Option<Notice> {
        self.log.tell(now, signal);
        let notice = notice(signal)?;
        if let Notice::Refused { member, healing: true } = &notice {
            self.refused.insert(member.clone(), now);
        }
        Some(notice)
    }

    /// Members of which the gate refused a healing lately.
    pub(super) fn refused_lately(&mut self, now: Duration) -> impl Iterator<Item = &String> {
        self.refused.retain(|_, at| now.saturating_sub(*at) < REFUSAL_LASTS);
        self.refused.keys()
    }
}
