//! Who watched which image, and when.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::agent::{Agent, PYTHON};
use crate::lab::Lab;

const SCRIPT: &str = include_str!("watch.py");
const CONNECT: Duration = Duration::from_secs(30);

/// The watchers of an image from some instant on. Instants are of [`crate::monotonic`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    pub image: String,
    /// Who watches it: `10.77.0.12:0/525740053`, sorted.
    pub watchers: Vec<String>,
    /// It was not yet so at this instant.
    pub after: Duration,
    /// It was so by this instant.
    pub by: Duration,
}

/// An observer of a pool's container and custom images that looks a hundred times a second or so. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    agent: Mutex<(Agent, Vec<Sighting>)>,
}

#[derive(Deserialize)]
struct Line {
    image: String,
    watchers: Vec<String>,
    after: u64,
    by: u64,
}

impl Lab {
    /// Starts to look at the watchers of the images of a pool, from `admin`.
    ///
    /// # Errors
    /// No connection within 30 s.
    pub fn watch(&self, pool: &str) -> Result<Watch> {
        let agent = self.host("admin").agent("watch", PYTHON, ["-c", SCRIPT, pool])?;
        agent.listen(CONNECT).context("the observer of watchers")?;
        Ok(Watch { agent: Mutex::new((agent, Vec::new())) })
    }
}

impl Watch {
    /// All that was seen so far of an image, in order.
    ///
    /// # Errors
    /// The observer said something unreadable.
    pub fn history(&self, image: &str) -> Result<Vec<Sighting>> {
        let mut guard = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        let (agent, seen) = &mut *guard;
        while let Ok(line) = agent.listen(Duration::ZERO) {
            let Line { image, watchers, after, by } =
                serde_json::from_str(&line).with_context(|| format!("not a sighting: {line:?}"))?;
            let (after, by) = (Duration::from_nanos(after), Duration::from_nanos(by));
            seen.push(Sighting { image, watchers, after, by });
        }
        Ok(seen.iter().filter(|sighting| sighting.image == image).cloned().collect())
    }

    /// When a watcher from this IP was first seen on an image after an instant.
    ///
    /// # Errors
    /// As [`Watch::history`].
    pub fn first_from(&self, image: &str, ip: std::net::IpAddr, after: Duration) -> Result<Option<Sighting>> {
        let prefix = match ip {
            std::net::IpAddr::V4(ip) => format!("{ip}:"),
            std::net::IpAddr::V6(ip) => format!("[{ip}]:"),
        };
        let from_it =
            |sighting: &Sighting| sighting.watchers.iter().any(|watcher| watcher.starts_with(&prefix));
        Ok(self.history(image)?.into_iter().find(|sighting| sighting.by > after && from_it(sighting)))
    }
}
