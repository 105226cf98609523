//! What is served, over real connections, of a modelled guardian.
#![allow(clippy::disallowed_methods)] // Tests read the time, and run promtool and a browser.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rbd_guardian_core::guardian::Guardian;
use rbd_guardian_core::guardian::io::{Input, Now};
use rbd_guardian_core::guardian::report::Level;
use rbd_guardian_core::guardian::settings::Settings;
use rbd_guardian_core::model::addr::Entry;
use rbd_guardian_core::model::fence_id::FenceContent;
use rbd_guardian_core::model::incus_snapshot::{GateView, IncusSnapshot, Instance, InstanceId, InstanceKind};
use rbd_guardian_core::model::incus_snapshot::{MemberStatus, MemberView, Thresholds};
use rbd_guardian_core::model::member::Members;
use rbd_guardian_core::model::policy::Policy;
use rbd_guardian_core::model::record::Records;
use rbd_guardian_core::model::volume::{Content, StoragePool, Volume, VolumeKind};
use serde_json::{Value, json};

use crate::clock;
use crate::serve::Publisher;
use crate::serve::catalogue::METRICS;
use crate::serve::published::{EventLine, Published};

/// A leading guardian of so many members and volumes; `records` as the ledger has them.
fn crowd(members: usize, volumes: usize, records: Records) -> Published {
    let mut view = IncusSnapshot { from: "m0".to_owned(), ..IncusSnapshot::default() };
    let (mut gate, mut instances, mut found) = (GateView::default(), BTreeMap::new(), Vec::new());
    for n in 0..members {
        let name = format!("m{n}");
        let ip = format!("10.{}.{}.1", n / 250, n % 250);
        let member = MemberView {
            status: if n == 1 { MemberStatus::Offline } else { MemberStatus::Online },
            heartbeat_age: None,
            url: format!("https://{ip}:8443"),
            leads: n == 0,
            addresses: Ok([ip.parse().unwrap()].into()),
        };
        view.members.insert(name.clone(), member);
        gate.scriptlets.insert(name.clone(), Ok("gate 1".to_owned()));
        gate.members.insert(name, BTreeMap::new());
    }
    for n in 0..volumes {
        let id = InstanceId { project: "default".to_owned(), name: format!("c{n}") };
        let location = format!("m{}", n % members);
        instances.insert(id, Instance { kind: InstanceKind::Container, location, details: None });
        found.push(Volume {
            pool: "remote".to_owned(),
            project: "default".to_owned(),
            name: format!("c{n}"),
            kind: VolumeKind::Instance(InstanceKind::Container),
            content: Content::Filesystem,
            shared: false,
            used_by: BTreeSet::new(),
            unknown: Vec::new(),
        });
    }
    let pool = json!({"driver": "ceph", "osd_pool": "incus", "data_pool": null, "cluster": null});
    view.pools = Some([("remote".to_owned(), serde_json::from_value::<StoragePool>(pool).unwrap())].into());
    view.thresholds = Thresholds { offline: Duration::from_secs(20), healing: Some(Duration::from_secs(60)) };
    (view.instances, view.volumes, view.gate, view.operations) =
        (Some(instances), Some(found), Some(gate), Some(Vec::new()));
    let now = Now { boot: clock::boot(), wall: clock::wall() };
    let settings = Settings::new("mon1", "boot", Policy::default(), Members::default());
    let mut core = Guardian::new(settings, records, now);
    core.handle(now, Input::View { began: now.boot, view: Ok(view) });
    let own = json!({"guardian": "mon1", "host": "mon1", "version": crate::VERSION, "stage": "leading",
        "leads": "mon1 on mon1 leads", "here": "the guardian of this host leads", "holds": null,
        "leader": {"epoch": 7, "guardian": "mon1", "host": "mon1", "addresses": [], "since": now.wall}});
    Published {
        boot: now.boot,
        wall: now.wall,
        own,
        leads: true,
        core: Some(core.status(now)),
        sums: Some(core.sums()),
        ..Published::default()
    }
}

fn id(member: &str) -> String {
    let host = Entry::Host("10.0.1.1".parse().unwrap());
    FenceContent::new(Some(member), &[host].into()).to_string()
}

/// A fence of m1, disarmed, and names that are markup.
fn records() -> Records {
    let id = id("m1");
    let fence = json!({"id": id, "member": "m1", "state": "pending", "by": "<script>alert(1)</script>",
        "since": "2026-01-01T00:00:00Z", "coverage": "whole-host", "reason": "\"><img src=x onerror=alert(1)>",
        "entries": {"10.0.1.1:0/0": null, "10.0.1.1:0/77": "2031-01-01T00:00:00Z"},
        "in_doubt": [], "seen": [],
        "breaches": [{"seen": "2026-01-02T00:00:00Z", "held": 4, "gone": 5}]});
    let until = clock::wall().checked_add(Duration::from_secs(3600)).unwrap();
    let disarm = json!({"since": clock::wall(), "until": until, "by": "root@<b>x</b>", "reason": "switches"});
    serde_json::from_value(json!({"leader": null, "gate": null, "members": {}, "requests": {},
        "fences": {id: fence}, "disarm": disarm}))
    .unwrap()
}

fn line(seq: u64, text: &str) -> EventLine {
    let (code, member) = ("sealed".to_owned(), Some("m1".to_owned()));
    EventLine { seq, at: clock::wall(), level: Level::Info, code, member, text: text.to_owned() }
}

#[test]
fn ten_thousand_volumes_are_a_small_scrape_and_a_small_page() {
    let picture = crowd(500, 10_000, Records::default());
    let began = Instant::now();
    let metrics = picture.metrics();
    let took = began.elapsed();
    let began = Instant::now();
    let page = picture.page();
    println!(
        "scrape: {} bytes in {took:?}; page: {} bytes in {:?}",
        metrics.len(),
        page.len(),
        began.elapsed()
    );
    println!("status: {} bytes", picture.status_text().len());
    assert!(metrics.len() < 200_000 && page.len() < 60_000);
    // Of a build without optimisation on a busy machine.
    assert!(took < Duration::from_millis(500), "{took:?}");
    let text = String::from_utf8(metrics.to_vec()).unwrap();
    assert!(!text.contains("c17"), "nothing of a volume while all is well");
    assert!(text.contains("rbd_guardian_images 10000\n"), "{text}");
}

#[test]
fn at_most_twenty_are_named_and_the_rest_is_counted() {
    let fences: Vec<Value> = (0..50)
        .map(|n| {
            json!({"id": id(&format!("m{n}")), "member": format!("m{n}"), "state": "sealed", "by": "a",
                "since": "2026-01-01T00:00:00Z", "entries": {}, "in_doubt": [], "breaches": [], "seen": []})
        })
        .collect();
    let fences: BTreeMap<String, Value> =
        fences.into_iter().map(|fence| (fence["id"].as_str().unwrap().to_owned(), fence)).collect();
    let records = json!({"leader": null, "gate": null, "members": {}, "requests": {}, "fences": fences});
    let picture = crowd(60, 60, serde_json::from_value(records).unwrap());
    let text = String::from_utf8(picture.metrics().to_vec()).unwrap();
    let named =
        text.lines().filter(|line| line.starts_with("rbd_guardian_fence_since_timestamp_seconds{")).count();
    assert_eq!(named, 20);
    let rest = "rbd_guardian_unnamed{metric=\"rbd_guardian_fence_since_timestamp_seconds\"} 30";
    assert!(text.contains(rest), "{text}");
}

/// docs/metrics.md has each metric as it is, and no other.
#[test]
fn the_documentation_lists_every_metric() {
    let kind = |row: &crate::serve::catalogue::MetricFamilyRow| format!("{:?}", row.kind).to_lowercase();
    let labels = |row: &crate::serve::catalogue::MetricFamilyRow| {
        row.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ")
    };
    let rows: Vec<String> = METRICS
        .iter()
        .map(|row| format!("| `{}` | {} | {} | {} |", row.name, kind(row), labels(row), row.help))
        .collect();
    let page = include_str!("../../docs/metrics.md");
    let documented: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    for (row, line) in rows.iter().zip(&documented) {
        assert_eq!(row, line);
    }
    assert_eq!(rows.len(), documented.len(), "rows:\n{}", rows.join("\n"));
}

/// And each of them is told by some guardian.
#[test]
fn every_metric_of_the_catalogue_is_told() {
    let mut picture = crowd(30, 30, records());
    let status = picture.core.as_mut().unwrap();
    status.gate.state =
        rbd_guardian_core::model::gate_keys::GateState::Partial { missing: ["m3".to_owned()].into() };
    status.fences[0].pending = vec!["2.1f".to_owned()];
    status.epoch = Some(rbd_guardian_core::model::epoch::OsdEpoch(9));
    let other = json!({"entry": "10.9.9.9:0/0", "until": "2031-01-01T00:00:00Z", "origin": "unknown", "member": null});
    status.others = vec![serde_json::from_value(other).unwrap()];
    let sums = picture.sums.as_mut().unwrap();
    (sums.swept, sums.map_read) = (Some(clock::wall()), Some(clock::wall()));
    let figures = &mut picture.figures;
    for counts in [&mut figures.requests, &mut figures.inputs, &mut figures.lines, &mut figures.changes] {
        counts.insert("x", 1);
    }
    figures.effects.insert("sweep", Default::default());
    figures.logged_in = Some(clock::wall());
    let text = String::from_utf8(picture.metrics().to_vec()).unwrap();
    let untold: Vec<&str> = METRICS
        .iter()
        .map(|row| row.name)
        .filter(|name| !text.contains(&format!("# TYPE {name} ")))
        .collect();
    assert!(untold.is_empty(), "{untold:?}\n{text}");
    // Prometheus's own reader, where it is installed.
    if let Ok(mut checked) = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
    {
        checked.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = checked.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
    }
}

#[test]
fn no_name_is_markup_on_the_page() {
    let mut picture = crowd(3, 3, records());
    picture.lines.push(line(1, "<img src=x onerror=alert(2)>"));
    let page = String::from_utf8(picture.page().to_vec()).unwrap();
    assert!(page.contains("&lt;script&gt;alert(1)") && page.contains("root@&lt;b&gt;"), "{page}");
    assert!(
        !page.contains("<img") && !page.contains("<b>") && page.matches("<script>").count() == 1,
        "{page}"
    );
    assert!(page.contains("<h1>blind</h1>"), "Ceph was not read: {page}");
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn serve(picture: Published) -> (Publisher, SocketAddr) {
    let address = free();
    let publisher = Publisher::start(address, |_, _| {}).unwrap();
    publisher.publish(picture);
    let began = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "nothing serves");
        std::thread::yield_now();
    }
    (publisher, address)
}

/// Status and body.
fn get(address: SocketAddr, path: &str) -> (u16, String) {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
}

fn ask(address: SocketAddr, question: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(question.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn each_path_answers_and_nothing_else_does() {
    let (publisher, address) = serve(crowd(3, 3, Records::default()));
    assert_eq!(get(address, "/healthz").0, 200);
    assert_eq!(get(address, "/leader").0, 200);
    let (code, ready) = get(address, "/readyz");
    let ready: Value = serde_json::from_str(&ready).unwrap();
    assert_eq!((code, &ready["ready"]), (503, &json!(false)), "Ceph was not read: {ready:#}");
    let (code, status) = get(address, "/api/v1/status");
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(
        (code, &status["source"], &status["outlook"]["word"]),
        (200, &json!("leader"), &json!("blind"))
    );
    assert!(get(address, "/metrics").1.contains("\nrbd_guardian_leading 1\n"));
    assert_eq!(get(address, "/etc/passwd").0, 404);
    assert_eq!(ask(address, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").0, 405);
    assert_eq!(ask(address, "nonsense\r\n\r\n").0, 400);

    let mut standby = crowd(3, 3, Records::default());
    (standby.leads, standby.own["stage"]) = (false, json!("standby"));
    publisher.publish(standby);
    assert_eq!(get(address, "/leader").0, 503);
    assert!(get(address, "/metrics").1.contains("rbd_guardian_stage{stage=\"standby\"} 1\n"));

    // A loop that hangs: nothing of what it left is told as if it were so.
    let mut old = crowd(3, 3, Records::default());
    old.boot = clock::boot().saturating_sub(Duration::from_secs(60));
    publisher.publish(old);
    assert_eq!(
        (get(address, "/healthz").0, get(address, "/leader").0, get(address, "/readyz").0),
        (503, 503, 503)
    );
    let page = get(address, "/").1;
    assert!(page.contains("<h1>unknown</h1>") && !page.contains("Members"), "{page}");
}

#[test]
fn half_open_connections_and_slow_readers_keep_nobody_waiting() {
    let (_publisher, address) = serve(crowd(500, 500, Records::default()));
    let half_open: Vec<TcpStream> = (0..150)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /metrics HT").unwrap();
            stream
        })
        .collect();
    let slow: Vec<TcpStream> = (0..80)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            stream
        })
        .collect();
    let began = Instant::now();
    assert_eq!(get(address, "/metrics").0, 200);
    println!("a scrape beside {} others took {:?}", half_open.len() + slow.len(), began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    // A half-open one is closed after some seconds.
    let mut first = &half_open[0];
    first.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).unwrap();
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[test]
fn events_are_told_once_in_order_and_a_reader_that_comes_back_misses_none() {
    let mut picture = crowd(3, 3, Records::default());
    picture.lines.push(line(1, "one"));
    let (publisher, address) = serve(picture);
    let open = |headers: &str, path: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes()).unwrap();
        BufReader::new(stream).lines().map_while(Result::ok)
    };
    let data = |mut lines: &mut dyn Iterator<Item = String>, name: &str| -> Value {
        let lines = &mut lines;
        lines.find(|line| *line == format!("event: {name}")).unwrap();
        let data = lines.find_map(|line| line.strip_prefix("data: ").map(str::to_owned)).unwrap();
        serde_json::from_str(&data).unwrap()
    };
    let mut stream = open("", "/api/v1/events");
    assert_eq!(data(&mut stream, "status")["stage"], "leading");
    let mut next = crowd(3, 3, records());
    for (seq, text) in [(1, "one"), (2, "two"), (3, "three")] {
        next.lines.push(line(seq, text));
    }
    publisher.publish(next);
    assert_eq!(data(&mut stream, "line")["text"], "two");
    assert_eq!(data(&mut stream, "line")["text"], "three");
    assert!(data(&mut stream, "status")["disarmed"].is_object());
    assert!(data(&mut stream, "beat")["at"].as_str().unwrap().parse::<Timestamp>().is_ok());
    let mut again = open("Last-Event-ID: 2\r\n", "/api/v1/events?page");
    assert_eq!(data(&mut again, "line")["text"], "three");
    assert!(data(&mut again, "page").as_str().unwrap().starts_with("<main class="));
}

/// The page in a real browser: both themes, a phone's width, no violation of accessibility rules, no request elsewhere, live, and
/// unknown once the guardian has gone (tests/browser/page.mjs).
#[test]
fn the_page_in_a_browser_is_live_and_says_when_it_is_old() {
    let cache =
        std::env::var("RBD_GUARDIAN_LAB_CACHE").unwrap_or_else(|_| "/var/cache/rbd-guardian-lab".to_owned());
    let modules = std::env::var("RBD_GUARDIAN_BROWSER").unwrap_or_else(|_| format!("{cache}/browser"));
    assert!(std::path::Path::new(&modules).join("node_modules").exists(), "{modules}: run tests/lab/setup");
    let mut picture = crowd(500, 10_000, records());
    picture.lines.push(line(1, "<img src=x onerror=alert(3)>"));
    let again = |before: &Published| Published {
        boot: clock::boot(),
        wall: clock::wall(),
        own: before.own.clone(),
        leads: true,
        core: before.core.clone(),
        sums: before.sums.clone(),
        lines: before.lines.clone(),
        ..Published::default()
    };
    let (publisher, address) = serve(again(&picture));
    // The event loop goes on publishing; Ceph answers it once it is told so.
    let (tell, told) = std::sync::mpsc::channel();
    let driver = std::thread::spawn(move || {
        while let Ok(()) | Err(RecvTimeoutError::Timeout) = told
            .recv_timeout(Duration::from_millis(250))
            .map(|()| picture.core.as_mut().unwrap().storage.fresh = true)
        {
            publisher.publish(again(&picture));
        }
    });
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/page.mjs");
    let mut command = std::process::Command::new("node");
    command.arg(script).args([&modules, &format!("http://{address}/")]);
    command.args(std::env::var("RBD_GUARDIAN_SCREENSHOTS").ok());
    let mut browser =
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut to = browser.stdin.take().unwrap();
    let mut said = BufReader::new(browser.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut wait = |what: &str| {
        let found = said.by_ref().inspect(|line| println!("{line}")).find(|line| line.starts_with(what));
        found.unwrap_or_else(|| panic!("the browser ended before it said {what}"))
    };
    assert_eq!(wait("word"), "word blind");
    tell.send(()).unwrap();
    writeln!(to, "disarmed").unwrap();
    assert_eq!(wait("word"), "word disarmed");
    drop(tell);
    driver.join().unwrap();
    writeln!(to, "gone").unwrap();
    assert!(wait("stale").contains("unknown"));
    let wrong: Vec<String> = said.filter(|line| line.starts_with("WRONG")).collect();
    let ended = browser.wait().unwrap();
    assert!(wrong.is_empty() && ended.success(), "{wrong:#?}");
}
