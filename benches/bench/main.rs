//! `make bench`: the figures of rbd-guardian beside those of what one would run instead, in one run on one lab.
//! Each row is in `target/bench.json` as well. `make bench-smoke` runs each once and small, so that none rots.
//! `cargo bench -- rest` measures the daemon at rest and under load alone, `cargo bench -- heal` healings on real Incus.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

#[path = "../../tests/common/mod.rs"]
mod common;

mod heal;
mod inside;
mod large_map;
mod load;
mod rest;
mod table;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use lab::{Lab, Pool, Topology, WriteLog as _, wait_for};
use serde_json::{Value, json};

use crate::common::Site;
use crate::table::Row;

const SCRIPT: &str = include_str!("clients.py");
const PYTHON: &str = "/usr/bin/python3";
const LIMIT: Duration = Duration::from_secs(120);
const ENTRIES: u32 = 16;
const PGS: u32 = 256;
/// The plain loop that a sweep is measured by.
const LOOP: &str = include_str!("watchers.cc");
const LOOPS: &str = "5";
const STATUSES: u32 = 20;
/// A little more than the second that monitors leave between commits.
const QUIET: Duration = Duration::from_millis(1200);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if Size::of_run().smoke {
        eprintln!("GUARDIAN_BENCH=smoke: each row once and small; what it says of targets means nothing");
    }
    if let ["inside", words @ ..] = words.as_slice() {
        return inside::run(words);
    }
    if words.contains(&"heal") {
        return table::report(&heal::rows()?);
    }
    if words.contains(&"map") {
        return table::report(&[large_map::row()?]);
    }
    let bench = Bench::start()?;
    let mut rows = Vec::new();
    if words.contains(&"rest") {
        bench.images()?;
    } else {
        rows = bench.fence()?;
        rows.push(bench.barrier()?);
        rows.extend(bench.sweep_and_takeover()?);
        rows.push(large_map::row()?);
    }
    bench.say("the daemon at rest");
    let size = Size::of_run();
    rows.push(rest::rest(&bench.site, size.images + size.headers, size.rest)?);
    let filled = bench.inside(&["fill"])?;
    bench.say(&format!("the daemon on a full ledger: {filled}"));
    rows.push(load::load(&bench.site, size.images + size.headers, size.rest)?);
    drop(bench);
    // Healings are Incus's own pace, a minute and more each.
    if !size.smoke && !words.contains(&"rest") {
        rows.extend(heal::rows()?);
    }
    table::report(&rows)
}

/// How much a run measures.
#[derive(Debug, Clone, Copy)]
struct Size {
    smoke: bool,
    rounds: u32,
    /// In each of two more pools; with more than 1,024 a pool begins smaller and is split for a long time.
    more_pgs: u32,
    images: u32,
    headers: u32,
    watched: u32,
    locked: u32,
    rest: Duration,
}

impl Size {
    /// What `GUARDIAN_BENCH=smoke` makes small.
    fn of_run() -> Self {
        if std::env::var("GUARDIAN_BENCH").is_ok_and(|size| size == "smoke") {
            let (watched, locked, rest) = (20, 5, Duration::from_secs(10));
            return Self {
                smoke: true,
                rounds: 1,
                more_pgs: 64,
                images: 40,
                headers: 360,
                watched,
                locked,
                rest,
            };
        }
        // Two rounds of whatever the daemon does by itself: listings once a minute, sweeps twice.
        let (watched, locked, rest) = (200, 50, Duration::from_secs(120));
        Self { smoke: false, rounds: 9, more_pgs: 1024, images: 1000, headers: 9000, watched, locked, rest }
    }
}

struct Bench {
    site: Site,
    began: Instant,
}

impl Bench {
    fn start() -> Result<Self> {
        let began = Instant::now();
        let site = Site::start(Topology::small(&["n1", "n2", "n3", "n4", "guard"]), &["n3", "n4"]);
        let bench = Self { site, began };
        bench.lab().pool("images", Pool::replicated(PGS, 2))?;
        bench.say("Ceph is up");
        Ok(bench)
    }

    fn lab(&self) -> &Lab {
        &self.site.lab
    }

    fn say(&self, stage: &str) {
        eprintln!("{:6.1} s  {stage}", self.began.elapsed().as_secs_f64());
    }

    /// Decision → sealed. Rounds alternate, all under the load of one writer, and all begin in the same phase of paxos.
    fn fence(&self) -> Result<Vec<Row>> {
        self.lab().image("images", "load", 64)?;
        let _load = self.lab().host("n1").writer("images", "load", 4)?;
        // Each of its reports to the monitors is a commit, and comes each second in the lab. Without any for 30 s it counts as dead.
        self.lab().ceph(&["tell", "mgr.x", "config", "set", "mgr_tick_period", "20"])?;
        let (mut sealed, mut whole, mut single) = (Vec::new(), Vec::new(), Vec::new());
        let rounds = Size::of_run().rounds;
        for round in 1..=rounds {
            self.after_a_commit()?;
            let entry = self.entry(round, 0);
            single.push(seconds(&self.inside(&["add", &entry])?)?);
            self.after_a_commit()?;
            let before = self.site.epoch();
            let (total, wall) = self.fence_once(round)?;
            sealed.push(total);
            whole.push(wall);
            self.say(&format!(
                "round {round}: one raw add {}, fence {} ({} osdmap epochs)",
                shown(single[single.len() - 1]),
                shown(total),
                self.site.epoch() - before
            ));
        }
        let entries: Vec<_> = (0..ENTRIES).map(|n| self.entry(rounds + 1, n)).collect();
        let began = Instant::now();
        self.shell("for entry; do ceph osd blocklist add $entry; done", &entries)?;
        let tool = began.elapsed().as_secs_f64();
        self.say("the ceph tool, entry by entry");

        let (sealed, whole, single) = (median(&sealed), median(&whole), median(&single));
        let row = |ours: f64, theirs: f64, what: &str, instead: &str, target: &str, met| Row {
            what: what.to_owned(),
            ours: shown(ours),
            theirs: format!("{}: {instead}", shown(theirs)),
            ratio: ratio(ours, theirs),
            target: target.to_owned(),
            met,
        };
        let decided = format!("decision → sealed, {ENTRIES} client entries, {PGS} PGs");
        Ok(vec![
            row(
                sealed,
                single,
                &decided,
                "one raw `osd blocklist add` through librados",
                "≤ 1.15 × or + 50 ms",
                sealed <= (single * 1.15).max(single + 0.05),
            ),
            row(
                whole,
                tool,
                "the same, the whole command",
                "16 × `ceph osd blocklist add` in a shell loop, nothing proved",
                "≥ 10 × faster",
                tool >= 10.0 * whole,
            ),
        ])
    }

    fn fence_once(&self, round: u32) -> Result<(f64, f64)> {
        let entries: Vec<_> = (1..=ENTRIES).map(|n| self.entry(round, n)).collect();
        let mut words = vec!["fence"];
        words.extend(entries.iter().flat_map(|entry| ["--address", entry]));
        let began = Instant::now();
        let fenced = self.site.guardian(&words);
        let wall = began.elapsed().as_secs_f64();
        let proved = fenced.json["barrier"][0]["proved"].as_u64();
        let listed = fenced.json["entries"].as_array().map_or(0, Vec::len);
        ensure!(fenced.exit == 0 && proved == Some(PGS.into()) && listed == 16, "{fenced:#?}");
        let total = fenced.json["timings_ms"]["total"].as_f64().context("no total")?;
        Ok((total / 1000.0, wall))
    }

    /// A client instance that nobody is: so that no round finds the entry of another.
    fn entry(&self, round: u32, number: u32) -> String {
        format!("{}:0/{}", self.site.ip("n2"), 1000 * round + number + 1)
    }

    /// Returns right after a commit, so that whatever is measured next meets paxos in the same phase: a monitor that
    /// committed something within the last second waits for the rest of that second. Otherwise it proposes after 50 ms, and
    /// then it is a race: even a question makes it commit a line of its log, and a decision begins with questions.
    fn after_a_commit(&self) -> Result<()> {
        let mut last = (self.commits()?, Instant::now());
        wait_for("a quiet monitor", LIMIT, || {
            let commits = self.commits()?;
            if commits != last.0 {
                last = (commits, Instant::now());
            }
            Ok((last.1.elapsed() >= QUIET).then_some(()))
        })?;
        self.site.epoch();
        wait_for("a commit", LIMIT, || Ok((self.commits()? != last.0).then_some(())))
    }

    fn commits(&self) -> Result<u64> {
        let counters = self.lab().ceph_json(&json!({"target": "a", "prefix": "perf dump"}))?;
        counters["paxos"]["commit"].as_u64().context("no counter")
    }

    fn barrier(&self) -> Result<Row> {
        self.lab().ceph(&["tell", "mgr.x", "config", "set", "mgr_tick_period", "1"])?;
        for name in ["more", "many"] {
            self.lab().pool(name, Pool::replicated(Size::of_run().more_pgs, 1))?;
        }
        self.say("two pools more");
        let ours = self.inside(&["barrier"])?;
        let pgs = ours["pgs"].as_f64().context("no pgs")?;
        self.say(&format!("barriers: {ours}"));
        let one_by_one = self.client("n1", &["stat", "images", "1000"])?;
        let (rate, theirs) = (pgs / seconds(&ours)?, 1000.0 / seconds(&one_by_one)?);
        Ok(Row {
            what: format!("barrier alone, {pgs} PGs in {}", shown(seconds(&ours)?)),
            ours: format!("{rate:.0} PGs/s"),
            theirs: format!("{theirs:.0}/s: librados `stat`, one after another"),
            ratio: ratio(rate, theirs),
            target: "≥ 10,000 PGs/s".to_owned(),
            met: rate >= 10_000.0,
        })
    }

    /// The unfenced takeover takes half a minute of waiting, in which the images are made.
    fn sweep_and_takeover(&self) -> Result<Vec<Row>> {
        thread::scope(|scope| {
            let unfenced = scope.spawn(|| self.takeover("n3", false));
            self.images()?;
            let (unfenced, _) = unfenced.join().map_err(|_| anyhow!("the takeover panicked"))??;
            let (fenced, with_fence) = self.takeover("n4", true)?;
            let takeover = Row {
                what: format!(
                    "takeover of an exclusive-lock image from a cut-off owner, once sealed ({} with the fence)",
                    shown(with_fence)
                ),
                ours: shown(fenced),
                theirs: format!("{}: the same without a fence", shown(unfenced)),
                ratio: ratio(fenced, unfenced),
                target: "< 2 s".to_owned(),
                met: fenced < 2.0,
            };
            Ok(self.sweep()?.into_iter().chain([takeover]).collect())
        })
    }

    fn images(&self) -> Result<()> {
        let Size { images, headers, .. } = Size::of_run();
        self.client("n1", &["make", "images", &images.to_string(), &headers.to_string()])?;
        self.say(&format!("{images} images and the headers of {headers} more"));
        Ok(())
    }

    fn sweep(&self) -> Result<Vec<Row>> {
        let Size { watched, locked, .. } = Size::of_run();
        let mut holder = self.hold()?;
        let plain = self.plain_loop()?;
        let ours = self.inside(&["sweep"])?;
        let librbd = self.client("n2", &["list", "images", &watched.to_string()])?;
        let began = Instant::now();
        let some: Vec<_> = (0..STATUSES).map(|number| format!("images/image-{number}")).collect();
        self.shell("for image; do rbd status $image; done", &some)?;
        let status = f64::from(STATUSES) / began.elapsed().as_secs_f64();
        drop(holder.stdin.take());
        holder.wait()?;
        self.say(&format!("sweeps: {ours}, a plain loop: {plain}"));

        ensure!(ours["watchers"] == watched && ours["locks"].as_u64() >= Some(locked.into()), "{ours}");
        ensure!(plain["watchers"] == watched, "{plain}");
        let images = ours["images"].as_f64().context("no images")?;
        let (rate, librbd) = (images / seconds(&ours)?, f64::from(watched) / seconds(&librbd)?);
        let row = |theirs: f64, instead: &str| Row {
            what: format!(
                "sweep of watchers and lock owners, {images} images ({watched} watched, {locked} locked)"
            ),
            ours: format!("{rate:.0} images/s, {} KiB resident", ours["kib"]),
            theirs: format!("{theirs:.0} images/s: {instead}"),
            ratio: ratio(rate, theirs),
            target: "≥ 20,000 images/s".to_owned(),
            met: rate >= 20_000.0,
        };
        let plain = plain["images"].as_f64().context("no images")? / seconds(&plain)?;
        let beside = row(plain, "a plain C++ loop of `list_watchers`, 512 under way");
        Ok(vec![
            Row { target: "≥ 0.9 ×".to_owned(), met: rate >= 0.9 * plain, ..beside },
            row(librbd, "librbd, open read-only and `watchers_list`"),
            row(status, "`rbd status` in a shell loop"),
        ])
    }

    /// Cuts the owner of an exclusive lock off and writes from `n2`: how long that takes alone, and with the fence.
    fn takeover(&self, owner: &str, fence: bool) -> Result<(f64, f64)> {
        self.lab().image_with("images", owner, 16, &["--image-feature=layering,exclusive-lock"])?;
        let writer = self.lab().host(owner).writer("images", owner, 1)?;
        writer.wait_for_acks(20, LIMIT)?;
        self.lab().cut(owner)?;
        let began = Instant::now();
        if fence {
            let fenced = self.site.guardian(&["fence", owner]);
            ensure!(fenced.exit == 0, "{fenced:#?}");
        }
        let fenced_after = began.elapsed().as_secs_f64();
        let taken = seconds(&self.client("n2", &["take", "images", owner])?)?;
        self.say(&format!("takeover from {owner}: {}", shown(taken)));
        Ok((taken, fenced_after + taken))
    }

    /// Runs this program on the guardian's host.
    fn inside(&self, words: &[&str]) -> Result<Value> {
        let mut command = self.lab().host("guard").bounded(std::env::current_exe()?, LIMIT);
        answer(command.arg("inside").args(words))
    }

    fn client(&self, host: &str, words: &[&str]) -> Result<Value> {
        let mut command = self.lab().host(host).bounded(PYTHON, LIMIT);
        answer(command.args(["-c", SCRIPT]).args(words))
    }

    fn shell(&self, script: &str, words: &[String]) -> Result<()> {
        let mut command = self.lab().host("guard").bounded("sh", LIMIT);
        let output = command.args(["-ec", script, "sh"]).args(words).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    }

    /// Compiles the loop with what this machine has, and runs it where the sweep runs.
    fn plain_loop(&self) -> Result<Value> {
        let (source, program) = (self.lab().dir().join("watchers.cc"), self.lab().dir().join("watchers"));
        std::fs::write(&source, LOOP)?;
        let compiled = Command::new("g++")
            .args(["-O2", "-std=c++17", "-o"])
            .args([&program, &source])
            .arg("-lrados")
            .output()?;
        ensure!(compiled.status.success(), "{compiled:?}");
        answer(self.lab().host("guard").bounded(&program, LIMIT).args(["images", LOOPS]))
    }

    fn hold(&self) -> Result<Child> {
        let mut holder = self
            .lab()
            .host("n1")
            .bounded(PYTHON, LIMIT)
            .args([
                "-c",
                SCRIPT,
                "hold",
                "images",
                &Size::of_run().watched.to_string(),
                &Size::of_run().locked.to_string(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().context("no pipe")?).read_line(&mut line)?;
        ensure!(line.contains("watched"), "the holder said {line:?}");
        Ok(holder)
    }
}

fn answer(command: &mut Command) -> Result<Value> {
    let output = command.output()?;
    ensure!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
}

fn seconds(figures: &Value) -> Result<f64> {
    figures["seconds"].as_f64().with_context(|| format!("no seconds in {figures}"))
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn shown(seconds: f64) -> String {
    if seconds < 10.0 { format!("{:.0} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") }
}

fn ratio(ours: f64, theirs: f64) -> String {
    let ratio = ours / theirs;
    if ratio >= 10.0 { format!("{ratio:.0} ×") } else { format!("{ratio:.2} ×") }
}
