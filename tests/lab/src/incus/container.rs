//! A container that writes to its root file system, and what became of its writes.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::conf::run;
use crate::incus::cluster::{Cluster, IMAGE};
use crate::wait::wait_for;
use crate::writer::{Entry, WriteLog, read_log};

const DEADLINE: Duration = Duration::from_secs(60);

/// A container of the writing image: from its start to its end it writes numbered blocks to its root file system, each made durable
/// before the next (see `tests/lab/incus/writer.c`), and goes on after errors.
#[derive(Debug, Clone)]
pub struct Container<'a> {
    cluster: &'a Cluster,
    name: String,
}

/// One start of a container on one member, and what its writer heard. The log lies outside of the container's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerWriter {
    id: u32,
    member: String,
    log: PathBuf,
}

impl Cluster {
    /// Creates a container of [`IMAGE`] on a member, and waits until it writes.
    ///
    /// # Errors
    /// Incus's, or it does not write within a minute.
    pub fn launch(&self, name: &str, member: &str) -> Result<Container<'_>> {
        self.live()?.incus(&["launch", IMAGE, name, "--target", member, "--quiet"])?;
        let container = self.container(name);
        container.wait_for_writer(member, DEADLINE)?.wait_for_acks(1, DEADLINE)?;
        Ok(container)
    }

    /// A container that exists already, of the project `default`.
    #[must_use]
    pub fn container(&self, name: &str) -> Container<'_> {
        Container { cluster: self, name: name.to_owned() }
    }
}

impl Container<'_> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its RBD image in the pool [`crate::incus::POOL`]: `container_NAME`.
    #[must_use]
    pub fn image(&self) -> String {
        format!("container_{}", self.name)
    }

    /// The member where Incus places it.
    ///
    /// # Errors
    /// No quorum, or no such container.
    pub fn location(&self) -> Result<String> {
        let seen = self.cluster.live()?.query(&format!("/1.0/instances/{}", self.name))?;
        Ok(seen["location"].as_str().context("no location")?.to_owned())
    }

    /// Its starts so far, in order.
    ///
    /// # Errors
    /// A log folder is unreadable.
    pub fn writers(&self) -> Result<Vec<ContainerWriter>> {
        let mut found = Vec::new();
        for member in self.cluster.members() {
            for entry in fs::read_dir(member.logs())? {
                let log = entry?.path();
                let name = log.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let id = name.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('.'));
                if let Some(id) = id.and_then(|rest| rest.strip_suffix(".log"))
                    && let Ok(id) = id.parse()
                {
                    found.push(ContainerWriter { id, member: member.name().to_owned(), log });
                }
            }
        }
        // The id is the time of the start.
        found.sort_by_key(|writer| writer.id);
        Ok(found)
    }

    /// Waits for a writer of it on a member, and returns the newest.
    ///
    /// # Errors
    /// There was none before the deadline.
    pub fn wait_for_writer(&self, member: &str, deadline: Duration) -> Result<ContainerWriter> {
        wait_for(&format!("a writer of {} on {member}", self.name), deadline, || {
            Ok(self.writers()?.into_iter().rfind(|writer| writer.member == member))
        })
    }

    /// Makes a member on which it runs, whether Incus knows of it or not, write back what it has in memory of the root file system: what
    /// its kernel would do by itself some seconds later.
    ///
    /// # Errors
    /// It does not run there, or the disk refuses or does not answer.
    pub fn sync(&self, member: &str) -> Result<()> {
        let member = self.cluster.member(member);
        run(member
            .command("timeout")?
            .args(["--kill-after=2", "60", "sync", "-f"])
            .arg(member.root_of(&self.name)))
        .map(drop)
    }
}

impl ContainerWriter {
    /// The member it runs on, or ran.
    #[must_use]
    pub fn member(&self) -> &str {
        &self.member
    }
}

impl WriteLog for ContainerWriter {
    fn id(&self) -> u32 {
        self.id
    }

    fn log(&self) -> Result<Vec<Entry>> {
        read_log(&self.log)
    }
}
