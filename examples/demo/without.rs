//! The half without the guardian.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lab::{Topology, WriteLog as _, wait_for};

use crate::common::guarded::{HEALED, MEMBERS, SOON};
use crate::ending::Ending;
use crate::scene::Scene;
use crate::teller::Teller;

/// Blocks that each of two writers has written before they are stopped.
const TOGETHER: usize = 1000;

/// What came of it.
pub(crate) struct Without {
    pub(crate) lost: &'static str,
    pub(crate) owner: &'static str,
    /// Who had the disk open at the same time.
    pub(crate) users: BTreeSet<&'static str>,
    /// What the old container wrote and was told is safe, after the cables were back.
    pub(crate) taken: usize,
    pub(crate) ending: Ending,
}

/// Plays it.
pub(crate) fn play(teller: &Teller) -> Result<Without> {
    teller.say("starting Ceph (a monitor, a manager, three OSDs) and Incus on n1, n2, n3");
    let lab = Topology::apart().start()?;
    let played = || {
        let cluster = lab.incus(&MEMBERS)?;
        let scene = Scene::open(&lab, &cluster, *teller)?;
        scene.cut()?;
        let owner = scene.healed(|| ())?;
        let back = scene.reconnect()?;
        let both = BTreeSet::from([scene.lost, owner.name]);
        wait_for("two watchers", HEALED, || Ok((scene.users()? == both).then_some(())))?;
        scene.say(&format!(
            "{} and {} both have the disk open: two watchers on one image",
            scene.lost, owner.name
        ));
        wait_for("both to write for a while", SOON, || {
            let counts = (scene.old.acks_after(back)?, owner.writer.acks_after(back)?);
            // Or until one of them has fallen over the other's journal.
            let fell = !scene.old.errors()?.is_empty() || !owner.writer.errors()?.is_empty();
            ensure!(counts.0 > 0 && (fell || counts.0.min(counts.1) > TOGETHER), "{counts:?}");
            Ok(Some(()))
        })?;
        let users = scene.users()?;
        // The new owner leaves in order. What the old one still has in memory comes after that, as it would by itself.
        cluster.live()?.incus(&["stop", "c1", "--force"])?;
        scene.container.sync(scene.lost).ok();
        let taken = scene.old.taken_after(back, 1)?;
        scene.say(&format!(
            "{} has written {taken} blocks to the disk that Incus gave to {}",
            scene.lost, owner.name
        ));
        cluster.member(scene.lost).power_off()?;
        let ending = Ending::of(&scene)?;
        scene.say(&format!("both are stopped; e2fsck -fn ends with status {}", ending.status));
        Ok(Without { lost: scene.lost, owner: owner.name, users, taken, ending })
    };
    played().inspect_err(|_| lab.keep())
}
