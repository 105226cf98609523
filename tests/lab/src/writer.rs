//! A client that writes numbered blocks as fast as it can, and remembers which of them the storage acknowledged.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use crate::agent::{Agent, PYTHON};
use crate::host::Host;
use crate::process::Process;
use crate::wait::wait_for;

const SCRIPT: &str = include_str!("writer.py");
const RECORD: usize = 20;
const CONNECT: Duration = Duration::from_secs(30);

/// What became of one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The block's number, from 1.
    pub number: u64,
    /// When the client heard of it, see [`crate::monotonic`].
    pub at: Duration,
    /// The client's error; `None`: the write was acknowledged.
    pub error: Option<Errno>,
}

/// A writer: a process of its own in its host, with a RADOS client of its own. Dropping it kills it; its log stays with the lab.
#[derive(Debug)]
pub struct Writer {
    id: u32,
    address: String,
    log: PathBuf,
    agent: Agent,
}

impl Host {
    /// Starts a writer on an image, with so many writes in flight. It overwrites the image from its beginning, round after round.
    ///
    /// The pool may be `POOL/NAMESPACE`.
    ///
    /// # Errors
    /// The writer can't open the image within 30 s; the reason is in its `log/writer-N.err`.
    pub fn writer(&self, pool: &str, image: &str, depth: u32) -> Result<Writer> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("writer-{id}");
        let log = self.dir.join(format!("log/{name}.log"));
        let log_path = log.to_str().context("the lab's directory has an odd name")?;
        let agent = self.agent(
            &name,
            PYTHON,
            ["-c", SCRIPT, pool, image, &id.to_string(), &depth.to_string(), log_path],
        )?;
        let address = agent.listen(CONNECT).with_context(|| format!("{name} on {}", self.name))?;
        Ok(Writer { id, address, log, agent })
    }
}

impl Writer {
    /// Its RADOS client instance, as the blocklist names it: `10.77.0.12:0/525740053`.
    #[must_use]
    pub fn client_address(&self) -> &str {
        &self.address
    }

    /// Ends it; its log can still be read.
    ///
    /// # Errors
    /// It does not go.
    pub fn end(&mut self) -> Result<()> {
        self.agent.process().kill()
    }

    /// Its process: to stop, continue or kill.
    pub fn process(&mut self) -> &mut Process {
        self.agent.process()
    }
}

/// What a writer heard of its writes, whatever it is.
pub trait WriteLog {
    /// The number that its blocks carry; no two writers of a test process have the same.
    fn id(&self) -> u32;

    /// Everything it heard so far, in that order.
    ///
    /// # Errors
    /// The log is unreadable.
    fn log(&self) -> Result<Vec<Entry>>;

    /// How many writes were acknowledged.
    ///
    /// # Errors
    /// The log is unreadable.
    fn acked(&self) -> Result<usize> {
        Ok(self.log()?.iter().filter(|entry| entry.error.is_none()).count())
    }

    /// The numbers of the blocks that were acknowledged.
    ///
    /// # Errors
    /// The log is unreadable.
    fn acked_numbers(&self) -> Result<BTreeSet<u64>> {
        Ok(self.log()?.iter().filter(|entry| entry.error.is_none()).map(|entry| entry.number).collect())
    }

    /// When it heard the last acknowledgement.
    ///
    /// # Errors
    /// The log is unreadable.
    fn last_ack(&self) -> Result<Option<Duration>> {
        Ok(self.log()?.iter().rev().find(|entry| entry.error.is_none()).map(|entry| entry.at))
    }

    /// How many acknowledgements it heard after an instant of [`crate::monotonic`].
    ///
    /// # Errors
    /// The log is unreadable.
    fn acks_after(&self, instant: Duration) -> Result<usize> {
        Ok(self.log()?.iter().filter(|entry| entry.error.is_none() && entry.at > instant).count())
    }

    /// How many of the writes it issued after an instant were acknowledged, with so many in flight. It may hear late,
    /// when it had to wait for a processor, of those that were under way at the instant: they do not count.
    ///
    /// # Errors
    /// The log is unreadable.
    fn taken_after(&self, instant: Duration, depth: u32) -> Result<usize> {
        let log = self.log()?;
        let issued_before = log.partition_point(|entry| entry.at <= instant) as u64 + u64::from(depth);
        Ok(log.iter().filter(|entry| entry.error.is_none() && entry.number > issued_before).count())
    }

    /// Its errors.
    ///
    /// # Errors
    /// The log is unreadable.
    fn errors(&self) -> Result<Vec<Entry>> {
        Ok(self.log()?.into_iter().filter(|entry| entry.error.is_some()).collect())
    }

    /// Waits for so many acknowledgements more than now.
    ///
    /// # Errors
    /// They did not come before the deadline.
    fn wait_for_acks(&self, more: usize, deadline: Duration) -> Result<()> {
        let wanted = self.acked()? + more;
        wait_for(&format!("{more} acknowledgements of writer {}", self.id()), deadline, || {
            let seen = self.acked()?;
            ensure!(seen >= wanted, "{seen} of {wanted}; errors: {}", self.errors()?.len());
            Ok(Some(()))
        })
    }

    /// Waits for its first error after an instant of [`crate::monotonic`].
    ///
    /// # Errors
    /// None came before the deadline.
    fn wait_for_error(&self, after: Duration, deadline: Duration) -> Result<Errno> {
        wait_for(&format!("an error of writer {}", self.id()), deadline, || {
            Ok(self.log()?.iter().filter(|entry| entry.at > after).find_map(|entry| entry.error))
        })
    }
}

impl WriteLog for Writer {
    fn id(&self) -> u32 {
        self.id
    }

    fn log(&self) -> Result<Vec<Entry>> {
        read_log(&self.log)
    }
}

/// Reads a log of records, see `writer.py`; one that is not there yet is empty.
pub(crate) fn read_log(path: &Path) -> Result<Vec<Entry>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    bytes.chunks_exact(RECORD).map(|record| entry(record).context("a bad record")).collect()
}

fn entry(record: &[u8]) -> Option<Entry> {
    let kind = u32::from_le_bytes(record.get(..4)?.try_into().ok()?);
    let number = u64::from_le_bytes(record.get(4..12)?.try_into().ok()?);
    let at = u64::from_le_bytes(record.get(12..20)?.try_into().ok()?);
    let error = if kind == 0 { None } else { Some(Errno::from_raw(i32::try_from(kind).ok()?)) };
    Some(Entry { number, at: Duration::from_nanos(at), error })
}
