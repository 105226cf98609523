//! The daemon at rest: what it needs of memory, of a core and of the cluster while nothing happens to 10,000 volumes, a tenth of
//! which are in use.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::{Process, wait_for};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::common::Site;
use crate::{LIMIT, Row};

const MEMBERS: [&str; 3] = ["n1", "n2", "n3"];
const OSDS: [&str; 3] = ["osd.0", "osd.1", "osd.2"];
/// The first sweep is over by then.
const FIRST_SWEEP: Duration = Duration::from_secs(5);
const TICKS_PER_SECOND: f64 = 100.0;

/// What of the kernel and of the OSDs counts up.
pub(crate) struct Meter {
    at: Instant,
    cpu: f64,
    ops: f64,
}

/// Watches so many volumes, each of an instance of its own, whose images the pool `images` has.
pub(crate) fn rest(site: &Site, volumes: u32, rest: Duration) -> Result<Row> {
    let [api, socket, config] = paths(site);
    serve(UnixListener::bind(&api)?, volumes);
    let text = format!(
        "[incus]\nendpoints = [\"unix:{}\"]\n[daemon]\nsocket = {socket:?}\nlog = \"json\"\n",
        api.display()
    );
    fs::write(&config, text)?;
    let daemon = spawn(site, "rest")?;
    wait_for("the daemon to watch", LIMIT, || {
        let Some(status) = status(site) else { return Ok(None) };
        let members = status["members"].as_array().map_or(0, Vec::len);
        Ok((status["platform"]["fresh"] == true && members == MEMBERS.len()).then_some(()))
    })?;
    // The first sweep reads every image.
    let swept = Instant::now() + FIRST_SWEEP;
    wait_for("the first sweep", LIMIT, || Ok((Instant::now() >= swept).then_some(())))?;
    let before = Meter::read(site, &daemon)?;
    let end = Instant::now() + rest;
    wait_for("rest", 2 * rest, || Ok((Instant::now() >= end).then_some(())))?;
    let after = Meter::read(site, &daemon)?;

    let seconds = (after.at - before.at).as_secs_f64();
    let core = after.core_since(&before);
    let mib = resident(daemon.pid())? / 1024.0;
    let ops = (after.ops - before.ops) / seconds;
    Ok(Row {
        what: format!("the daemon at rest, {volumes} volumes, a tenth of them in use"),
        ours: format!("{mib:.0} MiB resident, {core:.2} % of a core, {ops:.0} ops/s"),
        theirs: "nothing".to_owned(),
        ratio: "—".to_owned(),
        target: "< 40 MB, < 0.5 %, < 60 ops/s".to_owned(),
        met: mib * 1.048_576 < 40.0 && core < 0.5 && ops < 60.0,
    })
}

/// Where the false Incus answers, the daemon's socket and its configuration.
fn paths(site: &Site) -> [PathBuf; 3] {
    ["api.sock", "rest.sock", "rest.toml"].map(|name| site.lab.dir().join(name))
}

/// Starts a daemon with that configuration.
pub(crate) fn spawn(site: &Site, name: &str) -> Result<Process> {
    let [_, _, config] = paths(site);
    let keyring = site.lab.dir().join("ceph.client.guardian.keyring");
    let words = ["--config".into(), config, "--keyring".into(), keyring, "run".into()];
    site.lab.host("guard").spawn(name, env!("CARGO_BIN_EXE_rbd-guardian"), words)
}

/// Its own words; `None` while it says nothing.
pub(crate) fn status(site: &Site) -> Option<Value> {
    let [_, socket, _] = paths(site);
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.write_all(b"{\"verb\":\"status\"}\n").ok()?;
    let line = BufReader::new(stream).lines().next()?.ok()?;
    Some(serde_json::from_str::<Value>(&line).ok()?["status"].clone())
}

impl Meter {
    pub(crate) fn read(site: &Site, daemon: &Process) -> Result<Self> {
        let mut ops = 0.0;
        for osd in OSDS {
            let counters = site.lab.ceph(&["tell", osd, "perf", "dump"])?;
            ops += counters["osd"]["op"].as_f64().context("no counter")?;
        }
        let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid()))?;
        let after_name = stat.rsplit(") ").next().context("no stat")?;
        let ticks = after_name.split(' ').skip(11).take(2).map(str::parse::<f64>);
        Ok(Self { at: Instant::now(), cpu: ticks.sum::<Result<f64, _>>()? / TICKS_PER_SECOND, ops })
    }

    /// Of one core, in percent.
    pub(crate) fn core_since(&self, before: &Self) -> f64 {
        (self.cpu - before.cpu) / (self.at - before.at).as_secs_f64() * 100.0
    }
}

/// In KiB, now.
pub(crate) fn resident(pid: Pid) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// A tenth of all instances, so that what is in use tells apart from what there is.
fn runs(n: u32) -> bool {
    n.is_multiple_of(10)
}

/// An Incus of three members on a socket, as long as this program runs.
fn serve(listener: UnixListener, volumes: u32) {
    let sync = |metadata: Value| {
        json!({"type": "sync", "status": "Success", "status_code": 200, "metadata": metadata}).to_string()
    };
    let member = |name: &&str| {
        json!({"server_name": name, "url": "unix:/nowhere", "status": "Online", "message": "Fully operational",
               "roles": ["database"], "config": {}})
    };
    let volume = |n: u32| {
        json!({"name": format!("c{n}"), "type": "container", "content_type": "filesystem", "project": "default",
               "location": "", "description": "", "created_at": "2026-01-01T00:00:00Z",
               "config": {"volatile.uuid": format!("00000000-0000-4000-8000-{n:012}")},
               "used_by": [format!("/1.0/instances/c{n}")]})
    };
    let instance = |n: u32| {
        let root = json!({"root": {"path": "/", "pool": "remote", "type": "disk"}});
        let (status, power) = if runs(n) { ("Running", "RUNNING") } else { ("Stopped", "STOPPED") };
        json!({"name": format!("c{n}"), "project": "default", "type": "container", "status": status,
               "location": MEMBERS[n as usize % MEMBERS.len()], "architecture": "x86_64", "profiles": ["default"],
               "config": {"volatile.last_state.power": power, "image.os": "Debian", "image.release": "trixie"},
               "expanded_config": {"volatile.last_state.power": power, "image.os": "Debian"},
               "devices": {}, "expanded_devices": root})
    };
    let answers = [
        ("/1.0/cluster/members?", sync(MEMBERS.iter().map(member).collect())),
        (
            "/1.0/storage-pools?",
            sync(json!([{"name": "remote", "driver": "ceph", "config": {"ceph.osd.pool_name": "images"}}])),
        ),
        ("/1.0/storage-pools/remote/volumes?", sync((0..volumes).map(volume).collect())),
        ("/1.0/instances?", sync((0..volumes).map(instance).collect())),
        ("/1.0/operations?", sync(json!({}))),
        ("/1.0/projects/default", sync(json!({"description": "", "config": {}}))),
        ("/1.0/networks?", sync(json!([]))),
        ("/1.0/resources?", sync(json!({"system": {"uuid": "machine"}}))),
        ("/1.0/cluster/members/", sync(json!({"sysinfo": {"uptime": 100_000}}))),
        (
            "/1.0 ",
            sync(json!({"auth": "trusted", "config": {},
            "environment": {"server_name": "n1", "server_version": "6.0.4", "server_clustered": true}})),
        ),
    ];
    let answers = Arc::new(answers);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let answers = Arc::clone(&answers);
            thread::spawn(move || answer(&stream, answers.as_slice()));
        }
    });
}

fn answer(mut stream: &UnixStream, answers: &[(&str, String)]) -> io::Result<()> {
    let lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let head: Vec<String> = lines.collect();
    let path = head.first().and_then(|line| line.split_once(' ')).map_or("", |(_, path)| path);
    let absent = json!({"type": "error", "error": "not found", "error_code": 404}).to_string();
    let found = answers.iter().find(|(begins, _)| path.starts_with(begins));
    let (status, body) = found.map_or((404, &absent), |(_, body)| (200, body));
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
