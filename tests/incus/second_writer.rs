//! The single-writer guard on a real cluster: who else uses a running container's image is told, and where the policy
//! says so loses it, while the owner goes on.

use crate::common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use crate::common::guarded::{Guarded, SOON, alarm};
use lab::incus::{ContainerWriter, POOL};
use lab::{Topology, WriteLog as _, monotonic, wait_for};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

/// Between two sweeps.
const EVERY: Duration = Duration::from_secs(2);
/// How soon an alarm must be there: a sweep, a second one that begins a second later, and after each a listing of Incus,
/// which takes its time where the machine is busy.
const TOLD: Duration = Duration::from_secs(15);

/// Opens images as a writer does, and writes to each when asked: the first KiB, which ext4 leaves to boot loaders.
/// Arguments: pool, images. Says its address, then for each line read an errno, 0 if all were written.
const SCRIPT: &str = r#"
import sys, rados, rbd
cluster = rados.Rados(conffile="")
cluster.connect()
ioctx = cluster.open_ioctx(sys.argv[1])
images = [rbd.Image(ioctx, name) for name in sys.argv[2:]]
print(cluster.get_addrs(), flush=True)
for line in sys.stdin:
    try:
        for image in images:
            image.write(bytes(1024), 0)
            image.flush()
        print(0, flush=True)
    except (rados.Error, rbd.Error) as error:
        print(error.errno or 5, flush=True)
"#;

/// A client of librbd that has images open. Its connection ends with it.
struct Stranger {
    process: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
    address: String,
}

impl Stranger {
    fn on(site: &Guarded, host: &str, images: &[&str]) -> Self {
        let mut command = site.lab().host(host).command("/usr/bin/python3");
        command.args(["-c", SCRIPT, POOL.1]).args(images).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (asks, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut stranger = Self { process, asks, answers: BufReader::new(answers), address: String::new() };
        stranger.address = stranger.line();
        stranger
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// 0, or the errno of the first image that could not be written.
    fn writes(&mut self) -> i32 {
        self.asks.write_all(b"\n").unwrap();
        self.line().parse().unwrap()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Alarms about this client.
fn told(status: &Value, client: &str) -> Vec<Value> {
    let alarms = status["alarms"].as_array().into_iter().flatten();
    let about = |alarm: &&Value| alarm["text"].as_str().is_some_and(|text| text.contains(client));
    alarms.filter(|alarm| alarm["code"] == "second-writer").filter(about).cloned().collect()
}

fn configure(site: &Guarded, guard: &str) {
    site.configure(&format!("[guard]\nevery = \"{}s\"\n{guard}", EVERY.as_secs()));
}

fn reload(site: &Guarded, guard: &str) {
    configure(site, guard);
    site.with_daemon(|daemon| kill(daemon.pid(), Signal::SIGHUP)).unwrap();
}

/// The owner had no error, and has written since.
#[track_caller]
fn goes_on(writer: &ContainerWriter) {
    let now = monotonic();
    wait_for("the owner to go on", SOON, || Ok((writer.acks_after(now)? > 10).then_some(()))).unwrap();
    assert_eq!(writer.errors().unwrap().len(), 0, "the owner erred");
}

#[test]
fn inv6_a_second_watcher_is_told_and_the_stale_one_alone_is_fenced() {
    let site = Guarded::without_daemon(Topology::apart());
    configure(&site, "");
    site.guardian(&["gate", "install"]).expect(0);
    site.start_daemon();
    site.wait_until_watching();
    let [c1, c2] = [("c1", "n1"), ("c2", "n2")].map(|(name, at)| site.cluster.launch(name, at).unwrap());
    let w1 = c1.wait_for_writer("n1", SOON).unwrap();
    let w2 = c2.wait_for_writer("n2", SOON).unwrap();
    for name in ["n1", "n2"] {
        site.wait_until_known(name);
    }
    let (i1, i2) = (c1.image(), c2.image());

    // Launching uses images from many places: none of it is worth an alarm.
    assert_eq!(site.logged("second-writer", "n1").len() + site.logged("second-writer", "n2").len(), 0);

    // A client on the host of another member.
    let began = monotonic();
    let mut stale = Stranger::on(&site, "n2", &[&i1]);
    let there = monotonic();
    let status = site.wait_for_status("the alarm", SOON, |status| !told(status, &stale.address).is_empty());
    let after = monotonic() - there;
    let alarms = told(&status, &stale.address);
    println!("told {after:?} after the second watcher was there: {:#}", alarms[0]);
    assert!(after < TOLD, "{after:?}");
    let text = alarms[0]["text"].as_str().unwrap();
    assert!(alarms.len() == 1 && alarms[0]["member"] == "n2", "{alarms:#?}");
    for word in [&*i1, "member n2", "placed on n1"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    site.hears("second-writer", "n2");
    let logged = site.logged("second-writer", "n2");
    assert!(logged.len() == 1 && Guarded::instant(&logged[0]) > began, "{logged:#?}");

    // One of no member is told as well.
    let stranger = Stranger::on(&site, "guard", &[&i1]);
    let status =
        site.wait_for_status("the alarm", SOON, |status| !told(status, &stranger.address).is_empty());
    let text = told(&status, &stranger.address)[0]["text"].to_string();
    assert!(text.contains("no known member"), "{text}");
    // So is one that does its duty besides: it has an image of its own member open, too.
    let mut torn = Stranger::on(&site, "n2", &[&i1, &i2]);
    let status = site.wait_for_status("the alarm", SOON, |status| !told(status, &torn.address).is_empty());
    assert_eq!(told(&status, &torn.address).len(), 1, "{status:#}");

    // By default nobody is fenced for it: some sweeps go by.
    let sweeps = monotonic() + 3 * EVERY;
    wait_for("three sweeps", SOON, || Ok((monotonic() > sweeps).then_some(()))).unwrap();
    assert!(site.site.blocklist().is_empty(), "{:?}", site.site.blocklist());
    assert_eq!((stale.writes(), torn.writes()), (0, 0), "nothing keeps them from it");
    goes_on(&w1);

    // Where the policy says so, the stale one loses its access, and nobody else does.
    let asked = monotonic();
    reload(&site, "on_conflict = \"fence-stale\"");
    let status = site.wait_for_status("the stale client to be sealed", SOON, |status| {
        let mut fences = status["fences"].as_array().into_iter().flatten();
        fences.any(|fence| fence["state"] == "sealed")
    });
    println!("sealed {:?} after the policy changed", monotonic() - asked);
    let fences = status["fences"].as_array().unwrap();
    let entries: Vec<_> = site.site.blocklist().into_iter().map(|(entry, _)| entry).collect();
    assert_eq!(entries, [stale.address.clone()], "{fences:#?}");
    assert_eq!((fences.len(), &fences[0]["member"]), (1, &Value::Null), "{fences:#?}");
    assert_eq!(stale.writes(), 108, "ESHUTDOWN: the storage refuses it");
    goes_on(&w1);
    goes_on(&w2);
    assert_eq!(torn.writes(), 0, "its own duty goes on");
    // A client that is refused is no conflict any more; the others are.
    let status =
        site.wait_for_status("one alarm less", SOON, |status| told(status, &stale.address).is_empty());
    assert_eq!((told(&status, &torn.address).len(), told(&status, &stranger.address).len()), (1, 1));
    // No member is fenced, so none is counted, held up or released.
    let states = ["n1", "n2", "n3"].map(|name| common::guarded::member(&status, name)["state"].clone());
    assert_eq!(states, ["watching", "watching", "watching"].map(|state| json!(state)), "{status:#}");
    assert!(alarm(&status, "refused", "n2").is_null());

    // The strangers go, and with them what was told of them.
    drop((stale, torn, stranger));
    site.wait_for_status("no alarm", SOON, |status| {
        let mut alarms = status["alarms"].as_array().into_iter().flatten();
        !alarms.any(|alarm| alarm["code"] == "second-writer")
    });
    goes_on(&w1);
    goes_on(&w2);
    site.stop_daemon();
}
