//! The half with the guardian.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::incus::{ContainerWriter, POOL};
use lab::{Topology, WriteLog as _, wait_for};
use rbd_guardian::incus::gate::refusal::{RefusalReason, refusal};
use serde_json::Value;

use crate::common::guarded::{Guarded, HEALED, MEMBERS, SOON, fence, member};
use crate::ending::Ending;
use crate::scene::{Owner, Scene};
use crate::teller::Teller;

/// Errors of the old container that are enough to see that it is refused, not merely slow.
const REFUSALS: usize = 10;
/// Blocks that the container writes at home again.
const AT_HOME: usize = 100;
/// Steps on the way that are of no interest here.
const SKIPPED: [&str; 3] = ["intended", "committed", "releasing"];

/// What came of it.
pub(crate) struct With {
    pub(crate) lost: &'static str,
    pub(crate) owner: &'static str,
    pub(crate) seal: Seal,
    /// Who had the disk open after the cables were back.
    pub(crate) users: BTreeSet<&'static str>,
    /// What the old container wrote and was told is safe, after the cables were back.
    pub(crate) taken: usize,
    /// How often it was told what instead.
    pub(crate) errors: BTreeMap<String, usize>,
    /// From the end of the reboot to the release.
    pub(crate) release: Duration,
    pub(crate) ending: Ending,
}

/// How the member was sealed.
pub(crate) struct Seal {
    /// How often the gate refused to heal it before.
    pub(crate) refused: usize,
    pub(crate) entries: Vec<String>,
    /// PGs that proved it, in so many pools.
    pub(crate) pgs: u64,
    pub(crate) pools: usize,
    /// From the moment the guardian heard of the healing to the seal.
    pub(crate) took: Duration,
    /// From the seal to the first moment at which another member may have opened the disk.
    pub(crate) margin: Option<Duration>,
}

impl With {
    /// Sealed first, refused afterwards, and everything as it should be.
    pub(crate) fn is_protected(&self) -> bool {
        let alone = self.users == BTreeSet::from([self.owner]);
        let refused = self.taken == 0 && self.errors.values().sum::<usize>() >= REFUSALS;
        self.seal.margin.is_some() && alone && refused && self.ending.is_intact()
    }
}

/// Plays it.
pub(crate) fn play(teller: &Teller) -> Result<With> {
    teller.say("starting Ceph, Incus on n1, n2, n3, and rbd-guardian on a host of its own");
    let guarded = Guarded::start(Topology::apart());
    teller.say("the gate is in place on each member, and `rbd-guardian run` watches");
    let played = || {
        let scene = Scene::open(guarded.lab(), &guarded.cluster, *teller)?;
        guarded.wait_until_known(scene.lost);
        let told = Cell::new(guarded.log_text().lines().count());
        let news = News { guarded: &guarded, teller, lost: scene.lost, told, refused: Cell::default() };
        scene.cut()?;
        let owner = scene.healed(|| news.tell())?;
        let seal = seal(&guarded, &scene, &owner)?;

        let back = scene.reconnect()?;
        // Its client tries again ever more rarely while it is cut off.
        wait_for("the old c1 to be refused", HEALED, || {
            let errors =
                scene.old.log()?.iter().filter(|entry| entry.at > back && entry.error.is_some()).count();
            Ok((errors >= REFUSALS).then_some(()))
        })?;
        let errors = errors(&scene.old, back)?;
        let kinds: Vec<_> = errors.keys().cloned().collect();
        scene.say(&format!("{}: the old c1 gets {}", scene.lost, kinds.join(" and ")));
        // Whatever is still in its memory is to have its chance; the answer may be an error.
        scene.container.sync(scene.lost).ok();
        guarded.wait_for_state(scene.lost, "returned-stale", SOON);
        news.tell();
        let users = scene.users()?;

        scene.say(&format!("{}: somebody reboots it, as the guardian asks", scene.lost));
        let stale = scene.old.taken_after(back, 1)?;
        scene.cluster.member(scene.lost).reboot()?;
        let rebooted = lab::monotonic();
        guarded.wait_for_status("the release", SOON, |status| {
            news.tell();
            member(status, scene.lost)["state"] == "watching"
        });
        let release = lab::monotonic() - rebooted;
        news.tell();

        let home = go_home(&scene)?;
        home.wait_for_acks(AT_HOME, SOON)?;
        scene.say(&format!("`incus cluster restore {}`: c1 is at home again, and writes", scene.lost));
        scene.cluster.live()?.incus(&["stop", "c1", "--force"])?;
        let ending = Ending::of(&scene)?;
        scene.say(&format!("c1 is stopped; e2fsck -fn ends with status {}", ending.status));
        Ok(With { lost: scene.lost, owner: owner.name, seal, users, taken: stale, errors, release, ending })
    };
    played().inspect_err(|_| guarded.lab().keep())
}

/// What Incus and the daemon log about the lost member, told as it comes.
struct News<'a> {
    guarded: &'a Guarded,
    teller: &'a Teller,
    lost: &'a str,
    told: Cell<usize>,
    refused: Cell<bool>,
}

impl News<'_> {
    fn tell(&self) {
        if !self.refused.get() && refusals(self.guarded, self.lost).is_ok_and(|count| count > 0) {
            self.refused.set(true);
            self.teller
                .say(&format!("Incus wants to heal {}; the gate refuses: it is not sealed", self.lost));
        }
        let text = self.guarded.log_text();
        // The last line may be half written.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        for line in whole.skip(self.told.get()) {
            self.told.update(|told| told + 1);
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            if let (Some(member), Some(code)) = (line["member"].as_str(), line["code"].as_str())
                && !SKIPPED.contains(&code)
            {
                let message = line["message"].as_str().unwrap_or_default();
                self.teller.say(&format!("guardian: {member} {code}: {message}"));
            }
        }
    }
}

/// How often the gate has refused to heal a member because it is not sealed, by what Incus logged.
fn refusals(guarded: &Guarded, lost: &str) -> Result<usize> {
    let mut count = 0;
    for name in MEMBERS {
        let text = fs::read_to_string(guarded.path(&format!("log/incusd-{name}.out")))?;
        let failed = text.lines().filter(|line| line.contains("Failed to heal cluster member"));
        let refused = failed.filter_map(refusal).filter(|refusal| refusal.why == RefusalReason::NotSealed);
        count += refused.filter(|refusal| refusal.member.as_deref() == Some(lost)).count();
    }
    Ok(count)
}

fn seal(guarded: &Guarded, scene: &Scene<'_>, owner: &Owner) -> Result<Seal> {
    let first = |code: &str| {
        let line = guarded.logged(code, scene.lost).into_iter().next();
        line.map(|line| Guarded::instant(&line))
            .with_context(|| format!("no line {code} in the guardian's log"))
    };
    let (suspect, sealed) = (first("suspect")?, first("sealed")?);
    let record = fence(&guarded.status().context("no status")?, scene.lost);
    ensure!(record["state"] == "sealed", "{record:#}");
    let proofs = record["proofs"].as_array().context("no proofs")?;
    let entries = record["entries"].as_object().context("no entries")?;
    Ok(Seal {
        refused: refusals(guarded, scene.lost)?,
        entries: entries.keys().cloned().collect(),
        pgs: proofs.iter().filter_map(|proof| proof["pgs"].as_u64()).sum(),
        pools: proofs.len(),
        took: sealed.saturating_sub(suspect),
        margin: owner.since.checked_sub(sealed),
    })
}

/// The errors that a writer got after an instant: how many of each.
fn errors(writer: &ContainerWriter, after: Duration) -> Result<BTreeMap<String, usize>> {
    let mut kinds = BTreeMap::new();
    for entry in writer.errors()?.iter().filter(|entry| entry.at > after) {
        if let Some(error) = entry.error {
            *kinds.entry(format!("{error:?}")).or_insert(0) += 1;
        }
    }
    Ok(kinds)
}

/// The member takes its container back. It started while it was fenced, without its storage: Incus looks for that again
/// once a minute.
fn go_home(scene: &Scene<'_>) -> Result<ContainerWriter> {
    let lost = scene.lost;
    scene.say(&format!("Incus on {lost} started without its storage; it tries again once a minute"));
    wait_for(&format!("the storage of {lost}"), HEALED, || {
        let pool = scene.cluster.live()?.query(&format!("/1.0/storage-pools/{}?target={lost}", POOL.0))?;
        ensure!(pool["status"] == "Created", "{}", pool["status"]);
        Ok(Some(()))
    })?;
    scene.cluster.live()?.incus(&["cluster", "restore", lost, "--force"])?;
    wait_for("c1 at home", SOON, || {
        let writers = scene.container.writers()?.into_iter();
        Ok(writers.rev().find(|writer| writer.member() == lost && writer.id() != scene.old.id()))
    })
}
