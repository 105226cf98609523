//! A client that nobody sees in any watcher list.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;

use crate::agent::{Agent, PYTHON};
use crate::host::Host;
use crate::process::Process;

const SCRIPT: &str = include_str!("idle.py");
const DEADLINE: Duration = Duration::from_secs(30);

/// A RADOS client that is connected and does nothing until asked. Dropping it kills it.
#[derive(Debug)]
pub struct IdleClient {
    address: String,
    agent: Agent,
}

impl Host {
    /// Connects an idle client that may write to a pool.
    ///
    /// # Errors
    /// It can't connect within 30 s.
    pub fn idle_client(&self, pool: &str) -> Result<IdleClient> {
        self.idle(&[pool])
    }

    /// The same, with an image of the pool open: it is one of the image's watchers.
    ///
    /// # Errors
    /// It can't connect, or open the image, within 30 s.
    pub fn idle_user(&self, pool: &str, image: &str) -> Result<IdleClient> {
        self.idle(&[pool, image])
    }

    fn idle(&self, words: &[&str]) -> Result<IdleClient> {
        let agent = self.agent(&format!("idle-{}", self.name), PYTHON, ["-c", SCRIPT].iter().chain(words))?;
        let address = agent.listen(DEADLINE).context("an idle client")?;
        Ok(IdleClient { address, agent })
    }
}

impl IdleClient {
    /// Its client instance, as the blocklist names it: `10.77.0.12:0/525740053`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Closes the image of [`Host::idle_user`]: it is no watcher any more. Of one that is killed the watch stays for half a minute.
    ///
    /// # Errors
    /// No answer within 30 s.
    pub fn close_image(&mut self) -> Result<()> {
        self.agent.ask("", DEADLINE).map(drop)
    }

    /// Tries to write an object; the inner result is what the storage says.
    ///
    /// # Errors
    /// No answer within 30 s, as when its host is cut off. Such a client is of no more use: what it says next may be late.
    pub fn try_write(&mut self, object: &str) -> Result<Result<(), Errno>> {
        let answer = self.agent.ask(object, DEADLINE)?;
        let errno: i32 = answer.parse().with_context(|| format!("not an errno: {answer:?}"))?;
        Ok(if errno == 0 { Ok(()) } else { Err(Errno::from_raw(errno)) })
    }

    /// Its process: to stop, continue or kill.
    pub fn process(&mut self) -> &mut Process {
        self.agent.process()
    }
}
