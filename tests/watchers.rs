//! The sweep: who watches and who has locked, told as Ceph's own tools tell it, without leaving a trace.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::Site;
use lab::{Lab, Pool, WriteLog as _, wait_for};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
/// More than two pages of a directory.
const MANY: usize = 2500;
/// So many of them while sweeps run.
const DELETED: usize = 300;

/// Ends the sweeps, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn watchers_and_lock_owners_are_those_that_rbd_shows() {
    let site = Site::small();
    let lab = &site.lab;
    lab.pool("images", Pool::replicated(16, 2)).unwrap();
    lab.rbd(&["namespace", "create", "images/tenant"]).unwrap();
    let exclusive = ["--image-feature=exclusive-lock"];
    for image in ["idle", "one", "shared", "foreign"] {
        lab.image("images", image, 16).unwrap();
    }
    lab.image("images/tenant", "one", 16).unwrap();
    for image in ["images/locked", "images/tenant/locked", "images/lost"] {
        let (pool, image) = image.rsplit_once('/').unwrap();
        lab.image_with(pool, image, 16, &exclusive).unwrap();
    }
    let writer = |host: &str, pool: &str, image: &str| {
        let writer = lab.host(host).writer(pool, image, 1).unwrap();
        writer.wait_for_acks(1, SOON).unwrap();
        writer
    };
    let writers = [
        writer("n1", "images", "one"),
        writer("n1", "images/tenant", "one"),
        writer("n1", "images", "shared"),
        writer("n2", "images", "shared"),
        writer("n1", "images", "locked"),
        writer("n2", "images/tenant", "locked"),
        writer("admin", "images", "foreign"),
    ];
    let lost = writer("n1", "images", "lost");
    lab.ceph(&["osd", "blocklist", "add", lost.client_address()]).unwrap();

    let swept = site.guardian(&["watchers"]).expect(0).json;
    println!("{swept:#}");
    let verdict = |path: &str| {
        let image = find(&swept, path);
        (image["verdict"].as_str().unwrap().to_owned(), image["member"].clone())
    };
    let n1 = json!("n1");
    assert_eq!(verdict("idle"), ("unused".to_owned(), Value::Null));
    assert_eq!(verdict("one"), ("one-member".to_owned(), n1.clone()));
    assert_eq!(verdict("tenant/one"), ("one-member".to_owned(), n1.clone()));
    assert_eq!(verdict("shared"), ("several-members".to_owned(), Value::Null));
    assert_eq!(verdict("locked"), ("one-member".to_owned(), n1.clone()));
    assert_eq!(verdict("tenant/locked"), ("one-member".to_owned(), json!("n2")));
    assert_eq!(verdict("foreign"), ("unknown-address".to_owned(), Value::Null));
    // Its watch is dropped with the entry; its lock stays until somebody breaks it.
    assert_eq!(verdict("lost"), ("fenced".to_owned(), n1));

    let images = swept.as_array().unwrap();
    for image in images {
        as_rbd_shows(lab, image);
    }
    println!("{} images as rbd shows them, {} clients", images.len(), writers.len() + 1);

    let only = site.guardian(&["watchers", "--pool", "images"]).expect(0).json;
    assert_eq!(only.as_array().unwrap().len(), images.len());
}

fn find<'j>(swept: &'j Value, path: &str) -> &'j Value {
    let (namespace, image) = path.rsplit_once('/').unwrap_or(("", path));
    let wanted = |found: &&Value| found["namespace"] == namespace && found["image"] == image;
    swept.as_array().unwrap().iter().find(wanted).unwrap_or_else(|| panic!("{path}: {swept:#}"))
}

/// Compares one image with `rbd status` and `rbd lock ls`, and its shape with the contract (docs/json.md).
fn as_rbd_shows(lab: &Lab, image: &Value) {
    let keys: BTreeSet<&str> = image.as_object().unwrap().keys().map(String::as_str).collect();
    let contract = [
        "pool",
        "namespace",
        "image",
        "watchers",
        "lock",
        "locks",
        "unknown",
        "member",
        "location",
        "verdict",
    ];
    assert_eq!(keys, BTreeSet::from(contract));
    let text = |field: &str| image[field].as_str().unwrap();
    let parts = [text("pool"), text("namespace"), text("image")];
    let spec = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
    let rbd = |words: &[&str]| -> Value {
        serde_json::from_str(&lab.rbd(&[words, &["--format=json", &spec]].concat()).unwrap()).unwrap()
    };
    let set = |list: &Value, line: &dyn Fn(&Value) -> String| -> BTreeSet<String> {
        list.as_array().unwrap().iter().map(line).collect()
    };

    let status = rbd(&["status"]);
    let shown =
        set(&status["watchers"], &|w| format!("{} client.{} {}", w["address"], w["client"], w["cookie"]));
    let ours = |w: &Value| format!("{} {} {}", w["address"], w["client"].as_str().unwrap(), w["cookie"]);
    assert_eq!(set(&image["watchers"], &ours), shown, "{spec}");

    let locks = rbd(&["lock", "ls"]);
    let shown = set(&locks, &|l| format!("{} {} {}", l["locker"], l["address"], l["id"]));
    let lock = &image["lock"];
    let line = format!("{} {} {}", lock["owner"], lock["address"], lock["cookie"]);
    let ours: BTreeSet<String> = lock.is_object().then_some(line).into_iter().collect();
    assert_eq!(ours, shown, "{spec}");
    let locked = text("image") == "locked" || text("image") == "lost";
    assert_eq!(image["lock"].is_object(), locked, "{spec}");
}

const LOCKS: &str = "
import os, rados, sys, subprocess
cluster = rados.Rados(conffile=''); cluster.connect()
io = cluster.open_ioctx('images')
image = sys.argv[1]
id = io.read('rbd_id.' + image)[4:].decode()
name = 'rbd_header.' + id
lock = io.get_xattr(name, 'lock.rbd_lock')
# The owner's address without its socket address, as clients of 16 to 18 left it: info, address and list are shorter by it.
at = lock.index(bytes.fromhex('0101')+bytes([28, 0, 0, 0]))
blank = lock[:at] + bytes.fromhex('0101') + bytes([12, 0, 0, 0]) + bytes(12) + lock[at + 6 + 28:]
def shorter(text, place):
    size = int.from_bytes(text[place:place + 4], 'little') - 16
    return text[:place] + size.to_bytes(4, 'little') + text[place + 4:]
info = 6 + 4 + 6 + int.from_bytes(lock[12:16], 'little') + 2
io.set_xattr(name, 'lock.rbd_lock', shorter(shorter(blank, info), 2))
";

/// A lock whose owner has no address, a blank blocklist key and a shared lock cost nothing beside themselves.
#[test]
fn what_is_not_understood_costs_nothing_beside_it() {
    let site = Site::small();
    let lab = &site.lab;
    lab.pool("images", Pool::replicated(8, 2)).unwrap();
    lab.image_with("images", "locked", 16, &["--image-feature=exclusive-lock"]).unwrap();
    lab.image("images", "both", 16).unwrap();
    let writer = lab.host("n1").writer("images", "locked", 1).unwrap();
    writer.wait_for_acks(1, SOON).unwrap();
    lab.rbd(&["lock", "add", "--shared", "tag", "images/both", "one"]).unwrap();
    lab.rbd(&["lock", "add", "--shared", "tag", "images/both", "two"]).unwrap();
    let image = |name: &str| find(&site.guardian(&["watchers"]).expect(0).json, name).clone();
    assert_eq!(image("both")["locks"].as_array().unwrap().len(), 2, "{:#}", image("both"));
    let before = image("locked");
    assert_eq!(before["locks"][0]["address"], writer.client_address());
    let mut blanked = lab.host("admin").bounded("/usr/bin/python3", common::LIMIT);
    let blanked = blanked.args(["-c", LOCKS, "locked"]).output().unwrap();
    assert!(blanked.status.success(), "{}", String::from_utf8_lossy(&blanked.stderr));
    let after = image("locked");
    assert_eq!(
        (&after["watchers"], &after["verdict"]),
        (&before["watchers"], &before["verdict"]),
        "{after:#}"
    );
    // Known by its watch.
    assert_eq!((&after["locks"], &after["unknown"]), (&before["locks"], &json!([])), "{after:#}");

    // librados adds it for a client without an address.
    let blank = json!({"prefix": "osd blocklist", "blocklistop": "add", "addr": "-", "expire": 3600.0});
    lab.ceph_json(&blank).unwrap();
    let keys = site.blocklist();
    println!("{keys:?}");
    let sealed = site.guardian(&["fence", "n1"]).expect(0).json;
    assert_eq!(sealed["state"], "sealed", "{sealed:#}");
    let checks = site.guardian(&["doctor"]).json;
    let told = checks.as_array().unwrap().iter().any(|check| check["check"] == "not understood");
    assert!(told, "{checks:#}");
    let words = ["release", "n1", "--assert-powered-off", "--reason", "test"];
    assert_eq!(site.guardian(&words).expect(0).json["state"], "released");
}

const CREATE: &str = "
import rados, rbd, sys
from concurrent.futures import ThreadPoolExecutor
cluster = rados.Rados(conffile=''); cluster.connect()
io = cluster.open_ioctx('images')
make = lambda n: rbd.RBD().create(io, f'many-{n:04}', 1 << 22, old_format=False, features=rbd.RBD_FEATURE_LAYERING)
with ThreadPoolExecutor(16) as pool: list(pool.map(make, range(int(sys.argv[1]))))
";
const DELETE: &str = "
import rados, rbd, sys
from concurrent.futures import ThreadPoolExecutor
cluster = rados.Rados(conffile=''); cluster.connect()
io = cluster.open_ioctx('images')
remove = lambda n: rbd.RBD().remove(io, f'many-{n:04}')
with ThreadPoolExecutor(16) as pool: list(pool.map(remove, range(int(sys.argv[1]))))
";

/// INV-10: what others do with the images works at every time, and nothing of the sweeps is left behind.
#[test]
fn inv10_images_are_changed_and_removed_under_continuous_sweeps() {
    let site = Site::small();
    let lab = &site.lab;
    lab.pool("images", Pool::replicated(16, 2)).unwrap();
    python(lab, CREATE, MANY);
    let all = site.guardian(&["watchers"]).expect(0).json;
    let names: BTreeSet<&str> =
        all.as_array().unwrap().iter().map(|i| i["image"].as_str().unwrap()).collect();
    assert_eq!((names.len(), all.as_array().unwrap().len()), (MANY, MANY));
    println!("{MANY} images, each once");

    // rbd itself makes an object at the first removal: that is to be there before.
    work(lab, 0);
    let before = objects(lab);
    let (over, sweeps, least) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(MANY));
    let mut done = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // Exit code 0: an image that is deleted meanwhile is no error.
                let seen = site.guardian(&["watchers"]).expect(0).json.as_array().unwrap().len();
                least.fetch_min(seen, Ordering::Relaxed);
                sweeps.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _over = Over(&over);
        let deleter = scope.spawn(|| python(lab, DELETE, DELETED));
        let during = |sweeps_wanted: usize| sweeps.load(Ordering::Relaxed) < sweeps_wanted;
        while !deleter.is_finished() || during(5) {
            work(lab, done);
            done += 1;
        }
        deleter.join().unwrap();
    });
    println!(
        "{} sweeps, meanwhile {} images deleted and {done} created, snapshotted, resized and removed: no failure; fewest seen: {}",
        sweeps.load(Ordering::Relaxed),
        DELETED,
        least.load(Ordering::Relaxed)
    );

    let left = site.guardian(&["watchers"]).expect(0).json;
    assert_eq!(left.as_array().unwrap().len(), MANY - DELETED);
    for image in left.as_array().unwrap() {
        assert_eq!((&image["watchers"], &image["lock"]), (&json!([]), &Value::Null));
    }
    site.guardian(&["fence", "n1"]).expect(0);
    let after = objects(lab);
    let added: Vec<_> = after.difference(&before).collect();
    println!("{} objects before, {} after, {} of them new", before.len(), after.len(), added.len());
    assert!(added.is_empty(), "{added:?}");
    assert!(!after.iter().any(|name| name.contains("guardian")), "{after:?}");
}

fn work(lab: &Lab, number: usize) {
    let image = format!("images/work-{number}");
    let snapshot = format!("{image}@s");
    for words in [
        &["create", "--size=4", &image][..],
        &["snap", "create", &snapshot],
        &["resize", "--no-progress", "--size=8", &image],
        &["snap", "rm", "--no-progress", &snapshot],
        &["rm", "--no-progress", &image],
    ] {
        lab.rbd(words).unwrap();
    }
}

fn python(lab: &Lab, script: &str, count: usize) {
    let mut command = lab.host("admin").bounded("/usr/bin/python3", common::LIMIT);
    let output = command.args(["-c", script, &count.to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every object of every pool and namespace. What `rbd rm` leaves to the trim of snapshots is waited for.
fn objects(lab: &Lab) -> BTreeSet<String> {
    let list = || {
        let mut all = BTreeSet::new();
        for pool in lab.ceph(&["osd", "pool", "ls"])?.as_array().unwrap() {
            let mut rados = lab.host("admin").bounded("rados", SOON);
            let output = rados.args(["-p", pool.as_str().unwrap(), "--all", "ls"]).output()?;
            assert!(output.status.success(), "{output:?}");
            all.extend(String::from_utf8(output.stdout)?.lines().map(str::to_owned));
        }
        Ok::<_, anyhow::Error>(all)
    };
    let mut last = list().unwrap();
    wait_for("objects to stay the same", SOON, || {
        let now = list()?;
        let same = now == last;
        last.clone_from(&now);
        Ok(same.then_some(now))
    })
    .unwrap()
}
