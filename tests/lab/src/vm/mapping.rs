//! An image that the kernel has mapped, single writes to it, and writers that go on.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;

use super::{CLUSTER, KrbdHost, LOCAL};
use crate::writer::{Entry, WriteLog};

/// A mapped image, `/dev/rbdN` in the machine. Dropping it changes nothing: a kernel keeps its mappings.
#[derive(Debug)]
pub struct Mapping<'a> {
    host: &'a KrbdHost,
    number: u32,
    client: String,
    id: u32,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The storage has it.
    Acknowledged,
    /// An error, as the kernel reports it. A blocklisted client gets EIO.
    Refused(Errno),
    /// No answer within the deadline. It may still be written, whenever the storage can be reached.
    Hanging,
}

impl<'a> Mapping<'a> {
    pub(super) fn new(host: &'a KrbdHost, number: u32, client: &str) -> Mapping<'a> {
        Mapping { host, number, client: client.to_owned(), id: next_id() }
    }

    /// The writer's number that the blocks of [`Mapping::write_direct`] carry.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The device's path in the machine.
    #[must_use]
    pub fn device(&self) -> String {
        format!("/dev/rbd{}", self.number)
    }

    /// The address of the driver's client instance, as blocklist entries and watchers have it:
    /// `10.77.0.12:0/1234`.
    #[must_use]
    pub fn client_address(&self) -> &str {
        &self.client
    }

    /// Writes the block with this number, by O_DIRECT: 4 KiB, in the slot `number` modulo the image's slots.
    ///
    /// # Errors
    /// The machine is gone. An error of the write itself is an [`Outcome`].
    pub fn write_direct(&self, number: u64, deadline: Duration) -> Result<Outcome> {
        let command = format!("guest write {} {} {number}", self.device(), self.id);
        Ok(match self.host.ask(&command, deadline)? {
            None => Outcome::Hanging,
            Some(answer) => match answer.status {
                0 => Outcome::Acknowledged,
                126.. => bail!("{command}: {} ({})", answer.output, answer.status),
                errno => Outcome::Refused(Errno::from_raw(errno)),
            },
        })
    }

    /// Starts a process that writes numbered blocks by O_DIRECT, one after another as fast as they are
    /// acknowledged, over all slots of the image again and again. It goes on after errors, with the next
    /// number and at most a hundred times a second.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn start_writer(&self) -> Result<KrbdWriter<'a>> {
        let id = next_id();
        let command = format!("guest loop {} {id} >&4 2>/dev/ttyS0 & echo $!", self.device());
        let (status, output) = self.host.run(&command, LOCAL)?;
        ensure!(status == 0, "{output}");
        Ok(KrbdWriter { host: self.host, pid: output.parse()?, id })
    }

    /// Gives the image back: the driver drops its watch, and with its last mapping its client instance.
    ///
    /// # Errors
    /// The driver refuses, for example because the device is in use; the cluster does not answer.
    pub fn unmap(self) -> Result<()> {
        let command = format!("echo {} >/sys/bus/rbd/remove_single_major", self.number);
        let (status, output) = self.host.run(&command, CLUSTER)?;
        ensure!(status == 0, "unmapping {}: {output}", self.device());
        Ok(())
    }
}

/// A process in the machine that writes numbered blocks. Dropping it does not stop it.
#[derive(Debug)]
pub struct KrbdWriter<'a> {
    host: &'a KrbdHost,
    pid: u32,
    id: u32,
}

/// The times are late by up to [`KrbdHost::clock_error`], never early.
impl WriteLog for KrbdWriter<'_> {
    fn id(&self) -> u32 {
        self.id
    }

    fn log(&self) -> Result<Vec<Entry>> {
        let text = fs::read_to_string(&self.host.acks).context("the writers' answers")?;
        // The last line may still be on its way.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let id = self.id.to_string();
        let mut log = Vec::new();
        for line in whole.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [writer, number, errno, at] = words[..] else { bail!("not an answer of a writer: {line:?}") };
            if writer == id {
                let error = Some(errno.parse()?).filter(|errno| *errno != 0).map(Errno::from_raw);
                log.push(Entry {
                    number: number.parse()?,
                    at: self.host.clock.here(Duration::from_nanos(at.parse()?)),
                    error,
                });
            }
        }
        Ok(log)
    }
}

impl KrbdWriter<'_> {
    /// Ends it. One that hangs in a write ends when that write does.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn stop(self) -> Result<()> {
        self.host.run(&format!("kill -9 {}", self.pid), LOCAL).map(drop)
    }
}

/// A writer's number, far from those of [`crate::Writer`].
fn next_id() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1_000_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
