//! One half of the demo: a host is cut off and keeps writing, another one takes its disk over, and the first comes back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Device, Pool, Process, Topology, wait_for};
use serde::Deserialize;
use serde_json::Value;

use crate::common::Site;

const SCRIPT: &str = include_str!("files.py");
/// The interpreter of the distribution, as the lab uses it.
const PYTHON: &str = "/usr/bin/python3";
/// For a condition that is expected within seconds.
const SOON: Duration = Duration::from_secs(60);
const POOL: &str = "images";
const IMAGE: &str = "disk";
const FOLDER: &str = "/mnt";
/// Synced before anything happens.
const BEFORE: usize = 60;
/// Synced by the new owner before the first host comes back.
const TAKEN_OVER: usize = 60;
/// Synced (or refused) after that, by each.
const TOGETHER: usize = 120;
/// Errors of the first host that are enough to see that it is refused, not merely slow.
const REFUSALS: usize = 3;

/// What really happened.
pub(crate) struct Outcome {
    /// What `rbd-guardian fence --json` printed.
    pub(crate) fence: Option<Value>,
    /// Files that the first host began after its cable was back, and that the storage took.
    pub(crate) stale_writes: usize,
    /// The errors it got instead.
    pub(crate) stale_errors: Vec<String>,
    pub(crate) fsck: Fsck,
    /// Files that the first host was told were safe.
    pub(crate) first: Files,
    /// Files that the new owner was told were safe.
    pub(crate) second: Files,
}

/// What `e2fsck -fn` said.
pub(crate) struct Fsck {
    pub(crate) exit: i32,
    pub(crate) complaints: usize,
    /// One line of each kind.
    pub(crate) seen: Vec<String>,
}

/// What became of files that a host was told were safe.
#[derive(Deserialize)]
pub(crate) struct Files {
    pub(crate) synced: usize,
    pub(crate) lost: usize,
    pub(crate) garbled: usize,
    pub(crate) seen: Vec<String>,
}

impl Files {
    pub(crate) fn intact(&self) -> bool {
        self.synced > 0 && self.lost + self.garbled == 0
    }
}

impl Outcome {
    /// The file system, or a file of the new owner, is broken.
    pub(crate) fn damaged(&self) -> bool {
        self.fsck.exit != 0 || !self.second.intact()
    }

    /// Sealed, the first host refused, and everything as it should be.
    pub(crate) fn protected(&self) -> bool {
        let sealed = self.fence.as_ref().is_some_and(|fence| fence["state"] == "sealed");
        let refused = self.stale_writes == 0 && self.stale_errors.len() >= REFUSALS;
        sealed && refused && self.fsck.exit == 0 && self.first.intact() && self.second.intact()
    }
}

/// Plays it once. `say` is told each stage as it begins.
pub(crate) fn play(guarded: bool, say: impl Fn(&str)) -> Result<Outcome> {
    say("starting Ceph (1 mon, 1 mgr, 3 OSDs) and the hosts n1, n2, guard");
    let site = Site::start(Topology::small(&["n1", "n2", "guard"]), &["n1", "n2"]);
    let lab = &site.lab;
    lab.pool(POOL, Pool::replicated(32, 2))?;
    lab.image(POOL, IMAGE, 128)?;

    say("n1 maps the image, makes an ext4 on it, mounts it and writes numbered files");
    let mut first = Tenant::new(&site, "n1")?;
    first.disk.mkfs_ext4()?;
    first.mount()?;
    first.write()?;
    first.wait_for("files", |notes| notes.synced() >= BEFORE)?;

    lab.cut("n1")?;
    let cut = first.notes()?.synced();
    say(&format!("n1 is cut off with {cut} files synced; it keeps writing"));

    let fence = guarded.then(|| {
        say("guard runs `rbd-guardian fence n1`");
        let fenced = site.guardian(&["fence", "n1", "--reason", "demo"]);
        say(&format!("exit code {}, state {}", fenced.exit, fenced.json["state"]));
        ensure!(fenced.exit == 0, "not sealed: {fenced:#?}");
        Ok(fenced.json)
    });
    let fence = fence.transpose()?;

    say("n2 takes over: maps the image, mounts it (journal replay), writes its own files");
    let mut second = Tenant::new(&site, "n2")?;
    second.mount()?;
    second.write()?;
    second.wait_for("files", |notes| notes.synced() >= TAKEN_OVER)?;

    // Counted while the cable is still out: nothing is under way.
    let before = first.notes()?;
    lab.heal("n1")?;
    say("the cable of n1 is back; n1 goes on writing where it was");
    let together = if guarded { REFUSALS } else { TOGETHER };
    first.wait_for("more attempts", |notes| notes.ended() > before.ended() + together)?;
    second.wait_for("more files", |notes| notes.ended() >= TAKEN_OVER + TOGETHER)?;

    say("both hosts are shut down");
    second.shut_down()?;
    // On a disk that refuses every write, this ends with errors.
    first.shut_down().ok();
    let after = first.notes()?.after(before.ended());
    let (first_log, second_log) = (first.log.clone(), second.log.clone());
    drop((first, second));

    say("e2fsck -fn, and every synced file is read back");
    let (fsck, first, second) = inspect(&site, &first_log, &second_log)?;
    Ok(Outcome {
        fence,
        // Without the file under way at the cut: the storage may have taken it then, and be heard only now.
        stale_writes: after.after(1).synced(),
        stale_errors: after.errors(),
        fsck,
        first,
        second,
    })
}

/// A host with the disk mounted, and whoever writes there.
struct Tenant<'s> {
    site: &'s Site,
    name: &'static str,
    log: PathBuf,
    writer: Option<Process>,
    disk: Device,
}

impl<'s> Tenant<'s> {
    fn new(site: &'s Site, name: &'static str) -> Result<Self> {
        let lab = &site.lab;
        Ok(Self {
            site,
            name,
            log: lab.dir().join(format!("log/files-{name}")),
            writer: None,
            disk: lab.host(name).map(POOL, IMAGE)?,
        })
    }

    fn mount(&mut self) -> Result<()> {
        self.disk.mount(Path::new(FOLDER))
    }

    fn write(&mut self) -> Result<()> {
        let log = self.log.to_string_lossy();
        let args = ["-c", SCRIPT, "write", FOLDER, self.name, &log];
        let host = self.site.lab.host(self.name);
        self.writer = Some(host.spawn(&format!("files-{}", self.name), PYTHON, args)?);
        Ok(())
    }

    fn notes(&self) -> Result<Notes> {
        match std::fs::read_to_string(&self.log) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Notes::default()),
            text => Ok(Notes { text: text? }),
        }
    }

    fn wait_for(&self, what: &str, enough: impl Fn(&Notes) -> bool) -> Result<()> {
        wait_for(&format!("{what} of {}", self.name), SOON, || {
            let notes = self.notes()?;
            let seen = format!("{} synced, {} errors", notes.synced(), notes.errors().len());
            ensure!(enough(&notes), seen);
            Ok(Some(()))
        })
    }

    fn shut_down(&mut self) -> Result<()> {
        if let Some(mut writer) = self.writer.take() {
            writer.kill()?;
        }
        self.disk.umount()
    }
}

/// What a writer noted so far, see `files.py`.
#[derive(Default)]
struct Notes {
    text: String,
}

impl Notes {
    fn synced(&self) -> usize {
        self.text.lines().filter(|line| line.starts_with("ok ")).count()
    }

    /// `EIO`, `EROFS`, …
    fn errors(&self) -> Vec<String> {
        let errors = self.text.lines().filter(|line| line.starts_with("error "));
        errors.filter_map(|line| line.rsplit(' ').next()).map(str::to_owned).collect()
    }

    /// What was noted after so many attempts.
    fn after(&self, attempts: usize) -> Self {
        let rest = self.text.lines().skip(attempts);
        Self { text: rest.map(|line| format!("{line}\n")).collect() }
    }

    /// How many attempts came to an end.
    fn ended(&self) -> usize {
        self.text.lines().count()
    }
}

/// Looks at the disk from a third host, when nobody has it any more.
fn inspect(site: &Site, first: &Path, second: &Path) -> Result<(Fsck, Files, Files)> {
    let admin = site.lab.host("admin");
    let mut disk = admin.map(POOL, IMAGE)?;
    let output = admin.bounded("e2fsck", SOON).arg("-fn").arg(disk.path()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let fsck = Fsck {
        exit: output.status.code().context("e2fsck was killed")?,
        // It asks before each repair, and answers itself.
        complaints: said.lines().filter(|line| line.ends_with("? no")).count(),
        seen: kinds(&said),
    };
    let mounted = disk.mount(Path::new(FOLDER));
    let check = |owner: &str, log: &Path| -> Result<Files> {
        let output =
            admin.bounded(PYTHON, SOON).args(["-c", SCRIPT, "check", FOLDER, owner]).arg(log).output()?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
    };
    let (first, second) = (check("n1", first)?, check("n2", second)?);
    if let Err(error) = mounted {
        // Not a file can be read then, and the checks have said so.
        ensure!(fsck.exit != 0, "a clean file system does not mount: {error:#}");
    }
    Ok((fsck, first, second))
}

/// The first line of each kind that tells something of an inode, a block or a group by its number.
fn kinds(said: &str) -> Vec<String> {
    let numbered = |line: &&str| {
        let about = ["inode", "block", "group"];
        about.iter().any(|what| line.to_lowercase().contains(what))
            && line.contains(|c: char| c.is_ascii_digit())
    };
    let mut known = BTreeSet::new();
    let mut new =
        |line: &&str| known.insert(line.split(|c: char| c.is_ascii_digit()).next().map(str::to_owned));
    let lines = said
        .lines()
        .filter(|line| !line.starts_with("Pass ") && !line.starts_with('(') && !line.contains(" files ("));
    lines.filter(numbered).filter(|line| new(line)).map(|line| line.trim().to_owned()).collect()
}
