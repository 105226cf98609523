//! What both halves have in common: a container, the member it is on, and what is done to that.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::incus::{Cluster, Container, ContainerWriter, POOL, Watch};
use lab::{Lab, WriteLog as _, monotonic, wait_for};

use crate::common::guarded::{HEALED, MEMBERS, SOON};
use crate::teller::Teller;

/// Blocks written and synced before anything happens, and by a new owner before the old one comes back.
const AT_EASE: usize = 300;

/// A container that writes to its root file system, and whoever has that open.
pub(crate) struct Scene<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) cluster: &'a Cluster,
    pub(crate) container: Container<'a>,
    /// The member that is going to be lost.
    pub(crate) lost: &'static str,
    /// The container's first writer, on that member.
    pub(crate) old: ContainerWriter,
    pub(crate) teller: Teller,
    watch: Watch,
}

impl<'a> Scene<'a> {
    /// Launches the container on a member that does not lead the cluster: a new leader would need half a minute.
    pub(crate) fn open(lab: &'a Lab, cluster: &'a Cluster, teller: Teller) -> Result<Self> {
        let leader = cluster.leader()?;
        let lost = MEMBERS.into_iter().find(|name| *name != leader).context("nobody else")?;
        let watch = lab.watch(POOL.1)?;
        let container = cluster.launch("c1", lost)?;
        let old = container.wait_for_writer(lost, SOON)?;
        old.wait_for_acks(AT_EASE, SOON)?;
        let scene = Self { lab, cluster, container, lost, old, teller, watch };
        scene.say(&format!(
            "container c1 runs on {lost} and writes numbered blocks to its root disk, an RBD image"
        ));
        Ok(scene)
    }

    pub(crate) fn say(&self, what: &str) {
        self.teller.say(what);
    }

    /// Cuts the member off.
    pub(crate) fn cut(&self) -> Result<()> {
        let lost = self.lost;
        self.lab.cut(lost)?;
        self.say(&format!("{lost}: all cables pulled; c1 still runs there, its writes wait"));
        wait_for(&format!("Incus to miss {lost}"), SOON, || {
            ensure!(self.cluster.status(lost)? != "Online", "it does not");
            Ok(Some(()))
        })?;
        self.say(&format!("Incus: {lost} is offline; it heals such members once a minute"));
        Ok(())
    }

    /// Waits until another member has the container's disk open and the container writes there. `meanwhile` is called
    /// all the time.
    pub(crate) fn healed(&self, mut meanwhile: impl FnMut()) -> Result<Owner> {
        let (name, since) = wait_for("c1 to be healed", HEALED, || {
            meanwhile();
            let sightings = self.watch.history(&self.container.image())?;
            Ok(sightings.iter().find_map(|seen| {
                let other =
                    MEMBERS.into_iter().find(|name| *name != self.lost && self.is_of(&seen.watchers, name));
                other.map(|name| (name, seen.after))
            }))
        })?;
        let writer = self.container.wait_for_writer(name, SOON)?;
        writer.wait_for_acks(AT_EASE, SOON)?;
        meanwhile();
        self.say(&format!("Incus has healed {}: c1 runs on {name} and writes to the same disk", self.lost));
        Ok(Owner { name, since, writer })
    }

    /// Plugs the member in again; when that was.
    pub(crate) fn reconnect(&self) -> Result<Duration> {
        self.lab.heal(self.lost)?;
        let back = monotonic();
        self.say(&format!("{}: the cables are back; the old c1 goes on where it was", self.lost));
        Ok(back)
    }

    /// The members that have the container's disk open.
    pub(crate) fn users(&self) -> Result<BTreeSet<&'static str>> {
        let sightings = self.watch.history(&self.container.image())?;
        let now = sightings.last().map(|seen| seen.watchers.clone()).unwrap_or_default();
        Ok(MEMBERS.into_iter().filter(|name| self.is_of(&now, name)).collect())
    }

    /// Whether one of these watchers is a client on this member.
    fn is_of(&self, watchers: &[String], member: &str) -> bool {
        let prefix = format!("{}:", self.lab.host(member).ip());
        watchers.iter().any(|watcher| watcher.starts_with(&prefix))
    }
}

/// The member to which Incus has moved the container.
pub(crate) struct Owner {
    pub(crate) name: &'static str,
    /// It had not yet opened the disk at this instant of [`monotonic`].
    pub(crate) since: Duration,
    pub(crate) writer: ContainerWriter,
}
