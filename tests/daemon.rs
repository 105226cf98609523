//! The daemon on a real cluster: what it does when something is missing, who leads, and what is left when it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use flate2::read::MultiGzDecoder;
use lab::{Pool, Topology, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use common::{Answer, LIMIT, Site, Underway, answer};

const ASSERTED: [&str; 3] = ["--assert-powered-off", "--reason", "the test killed every client of it"];

/// A daemon of its own name, with a configuration and a socket of its own.
struct Daemon<'s> {
    site: &'s Site,
    name: &'static str,
    host: &'static str,
    running: Option<Underway>,
}

impl<'s> Daemon<'s> {
    fn new(site: &'s Site, name: &'static str, host: &'static str) -> Self {
        let daemon = Self { site, name, host, running: None };
        daemon.configure("");
        daemon
    }

    fn path(&self, ending: &str) -> PathBuf {
        self.site.lab.dir().join(format!("{}.{ending}", self.name))
    }

    /// Writes its configuration; `more` goes first.
    fn configure(&self, more: &str) {
        let members = ["n1", "n2"]
            .map(|name| format!("[[member]]\nname = \"{name}\"\naddresses = [\"{}\"]\n", self.site.ip(name)));
        let socket = self.path("sock");
        let recordings = self.path("recordings");
        fs::create_dir_all(&recordings).unwrap();
        let text = format!(
            "{more}\n[daemon]\nname = \"{}\"\nsocket = {socket:?}\nrecordings = {recordings:?}\nlog = \"json\"\n\
             lease = \"4s\"\n{}",
            self.name,
            members.concat()
        );
        fs::write(self.path("toml"), text).unwrap();
    }

    fn start(&mut self) {
        let command = self.site.command_with(&self.path("toml"), self.host, &["run"]);
        self.running = Some(self.site.start_command(command, &["run"]));
    }

    fn running(&self) -> &Underway {
        self.running.as_ref().unwrap()
    }

    /// Runs a verb beside it.
    fn verb(&self, words: &[&str]) -> Answer {
        let output = self.site.command_with(&self.path("toml"), self.host, words).output().unwrap();
        answer(words, &output)
    }

    /// Asks over the socket, as any script could: the last line of the answer.
    fn asks(&self, question: &str) -> Option<Value> {
        let mut stream = UnixStream::connect(self.path("sock")).ok()?;
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(format!("{question}\n").as_bytes()).ok()?;
        let last = BufReader::new(stream).lines().last()?.ok()?;
        Some(serde_json::from_str(&last).unwrap())
    }

    fn status(&self) -> Option<Value> {
        self.asks(r#"{"verb":"status"}"#).map(|line| line["status"].clone())
    }

    /// Waits until its status is like this.
    fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let found = wait_for(&format!("{}: {what}", self.name), LIMIT, || {
            last = self.status().unwrap_or_default();
            Ok(is(&last).then(|| last.clone()))
        });
        found.unwrap_or_else(|error| panic!("{error:#}: {last:#}\n{}", self.running().stderr()))
    }

    /// Waits for a recording that was made for this reason.
    fn recording(&self, why: &str) -> PathBuf {
        let found = wait_for(&format!("{}: a recording of why {why}", self.name), LIMIT, || {
            let files = fs::read_dir(self.path("recordings"))?.map(|entry| entry.unwrap().path());
            Ok(files.into_iter().find(|file| file.to_str().unwrap().ends_with(&format!("-{why}.jsonl.gz"))))
        });
        found.unwrap_or_else(|error| panic!("{error:#}: {}", self.running().stderr()))
    }

    /// Lines of its log with this code.
    fn logged(&self, code: &str) -> Vec<Value> {
        let lines = self.running().stderr();
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["code"] == code).collect()
    }

    /// Waits for such a line.
    fn hears(&self, code: &str, count: usize) -> Value {
        let line = wait_for(&format!("{}: {code} in the log", self.name), LIMIT, || {
            Ok(self.logged(code).get(count - 1).cloned())
        });
        line.unwrap_or_else(|error| panic!("{error:#}: {}", self.running().stderr()))
    }

    /// Ends it in the way of systemd; how long that took, and its log.
    fn end(&mut self) -> (Duration, Answer) {
        let running = self.running.take().unwrap();
        let began = Instant::now();
        running.signal(Signal::SIGTERM);
        let ended = running.answer();
        (began.elapsed(), ended)
    }
}

fn is_leading(status: &Value) -> bool {
    status["stage"] == "leading"
}

fn member(status: &Value, name: &str) -> Value {
    let mut members = status["members"].as_array().unwrap().iter();
    members.find(|member| member["name"] == name).unwrap().clone()
}

#[test]
fn the_daemon_from_nothing_to_its_successor() {
    let site = Site::start(Topology::small(&["n1", "n2", "guard", "spare"]), &["n1", "n2"]);
    site.lab.pool("images", Pool::replicated(16, 2)).unwrap();
    site.lab.image("images", "disk", 16).unwrap();
    let writer = site.lab.host("n1").writer("images", "disk", 1).unwrap();
    let (host, client) = (format!("{}:0/0", site.ip("n1")), writer.client_address().to_owned());

    // Without Ceph it says so and goes on as soon as it is there.
    site.lab.cut("guard").unwrap();
    let mut first = Daemon::new(&site, "first", "guard");
    first.start();
    let status = first.until("no Ceph", |status| status["trouble"].is_string());
    assert_eq!(status["stage"], "connecting", "{status:#}");
    assert!(status["trouble"].as_str().unwrap().contains("no Ceph monitor answered"), "{status:#}");
    let unavailable = first.asks(&request("n1")).unwrap();
    assert!(unavailable["unavailable"].as_str().unwrap().contains("does not lead"), "{unavailable:#}");
    let mode = fs::metadata(first.path("sock")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "the socket is its owner's alone");
    site.lab.heal("guard").unwrap();
    let status = first.until("leading", is_leading);
    assert_eq!((&status["leader"]["guardian"], &status["leader"]["epoch"]), (&json!("first"), &json!(1)));
    println!("connected after {} ", first.hears("connected", 1)["timestamp"]);

    what_is_not_understood_is_told(&first);
    a_bad_configuration_changes_nothing(&first);

    out_of_time_a_fence_is_pending_and_the_daemon_goes_on(&site, &first);

    // A verb goes through the daemon, and everybody knows the same afterwards.
    let fence = first.verb(&["fence", "n1", "--reason", "cable pulled"]).expect(0).json;
    println!("{fence:#}");
    assert_eq!((&fence["state"], &fence["member"]), (&json!("sealed"), &json!("n1")));
    let pool = fence["barrier"].as_array().unwrap().iter().find(|pool| pool["pool"] == "images").unwrap();
    assert_eq!((&pool["proved"], &pool["pending"]), (&json!(16), &json!([])), "{fence:#}");
    assert_eq!(
        (&fence["coverage"]["verdict"], &fence["reason"]),
        (&json!("whole-host"), &json!("cable pulled"))
    );
    for entry in [&host, &client] {
        assert!(site.blocklist().contains_key(entry), "{entry}: {fence:#}");
    }
    let status = first.verb(&["status"]).expect(0).json;
    assert_eq!(member(&status, "n1")["state"], "sealed", "{status:#}");
    let ledger = first.verb(&["ledger"]).expect(0).json;
    let mut fences = ledger["fences"].as_array().unwrap().iter();
    let known = fences.find(|known| known["fence"] == fence["fence"]).unwrap();
    assert_eq!(known["state"], "sealed", "{ledger:#}");
    let refused = first.verb(&["fence", "n2"]).expect(4).json;
    assert_eq!(refused["refusals"][0]["code"], "storm-brake", "{refused:#}");

    // A second one waits, and says for whom.
    let mut second = Daemon::new(&site, "second", "spare");
    second.start();
    let status = second.until("standby", |status| status["trouble"].is_string());
    assert_eq!(status["stage"], "standby", "{status:#}");
    assert!(status["trouble"].as_str().unwrap().starts_with("first on "), "{status:#}");

    // Killed, it leaves the lead to the other one within the time of its lease, and the fence goes on.
    first.running().signal(Signal::SIGKILL);
    let killed = Instant::now();
    first.running.take().unwrap().killed();
    let status = second.until("leading", is_leading);
    println!("the second one led {:?} after the first was killed", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(10), "{status:#}");
    assert_eq!(status["leader"]["epoch"], 2);
    let status = second.until("the fence proved anew", |status| member(status, "n1")["state"] == "sealed");
    assert_eq!(member(&status, "n1")["fence"], fence["fence"]);

    // The same one, restarted on what it left: it is the standby now.
    first.start();
    first.until("standby", |status| status["trouble"].as_str().is_some_and(|t| t.starts_with("second on ")));

    an_entry_that_somebody_removes_is_put_back(&site, &second, &host);

    // Asked to end, each does so soon, names the fences it leaves, and leaves them.
    let (took, ended) = first.end();
    assert!(took < Duration::from_secs(2) && ended.exit == 0, "{took:?} {ended:#?}");
    let ending = second.hears("leading", 1);
    assert!(ending["message"].as_str().unwrap().contains("epoch 2"));
    let (took, ended) = second.end();
    assert!(took < Duration::from_secs(2) && ended.exit == 0, "{took:?} {ended:#?}");
    assert!(ended.stderr.contains("these fences stay in place") && ended.stderr.contains("n1"), "{ended:#?}");
    assert!(site.blocklist().contains_key(&host) && !second.path("sock").exists());
    assert_eq!(second.verb(&["ledger"]).expect(0).json["lease"], Value::Null, "the lease was given up");

    // With no daemon at all a verb leads for as long as it takes.
    drop(writer);
    let id = fence["fence"].as_str().unwrap();
    let words = [&["release", "--fence", id], ASSERTED.as_slice()].concat();
    let release = second.verb(&words).expect(0).json;
    assert_eq!((&release["state"], &release["member"]), (&json!("released"), &json!("n1")), "{release:#}");
    assert!(!site.blocklist().contains_key(&host) && site.blocklist().contains_key(&client), "INV-4");
    let ledger = second.verb(&["ledger"]).expect(0).json;
    assert_eq!((&ledger["leader"]["epoch"], &ledger["lease"]), (&json!(3), &Value::Null), "{ledger:#}");
}

/// `make`s the corpus of core/tests/replay anew where it is told a folder (core/tests/replay/README.md).
#[test]
fn what_led_to_it_is_saved_and_replays_exactly() {
    let site = Site::start(Topology::small(&["n1", "n2", "guard"]), &["n1", "n2"]);
    site.lab.pool("images", Pool::replicated(16, 2)).unwrap();
    site.lab.image("images", "disk", 16).unwrap();
    let writer = site.lab.host("n1").writer("images", "disk", 1).unwrap();
    let mut daemon = Daemon::new(&site, "first", "guard");
    daemon.start();
    daemon.until("leading", is_leading);

    let fence = daemon.verb(&["fence", "n1", "--reason", "cable pulled"]).expect(0).json;
    daemon.verb(&["fence", "n2"]).expect(4);
    let refused = daemon.recording("refused");
    an_entry_that_somebody_removes_is_put_back(&site, &daemon, &format!("{}:0/0", site.ip("n1")));
    let breached = daemon.recording("breached");
    drop(writer);
    let words = [&["release", "--fence", fence["fence"].as_str().unwrap()], ASSERTED.as_slice()].concat();
    daemon.verb(&words).expect(0);
    daemon.running().signal(Signal::SIGUSR1);
    let asked = daemon.recording("asked");

    let mut inputs = 0;
    for (name, file) in [("refusal", refused), ("breach", breached), ("fence-and-release", asked)] {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let replayed = daemon.verb(&["replay", file.to_str().unwrap()]).expect(0).json;
        println!("{name}: {replayed}");
        let replayed = replayed["recording"]["inputs"].as_u64().unwrap();
        assert!(replayed > inputs, "each goes on from the one before");
        inputs = replayed;
        let mut text = String::new();
        MultiGzDecoder::new(fs::File::open(&file).unwrap()).read_to_string(&mut text).unwrap();
        assert!(text.contains("cable pulled") && !text.contains("PRIVATE KEY"));
        if let Some(folder) = std::env::var_os("GUARDIAN_CORPUS") {
            fs::write(PathBuf::from(folder).join(name).with_extension("jsonl"), &text).unwrap();
        }
        let other = text.replacen(
            r#"{"effect":{"read-maps":{"after":0}}}"#,
            r#"{"effect":{"read-maps":{"after":1}}}"#,
            1,
        );
        fs::write(&file, other).unwrap();
        let told = daemon.verb(&["replay", file.to_str().unwrap()]).expect(1).json["difference"].to_string();
        assert!(told.contains("line ") && told.contains("after\\\":0"), "{told}");
    }
    assert_eq!(daemon.logged("recording").len(), 3, "{}", daemon.running().stderr());
    an_operator_goes_over_the_brake(&daemon);

    // Where it cannot be saved that is all that happens.
    fs::remove_dir_all(daemon.path("recordings")).unwrap();
    daemon.running().signal(Signal::SIGUSR1);
    assert!(daemon.hears("recording", 4)["message"].to_string().contains("not saved"));
    assert!(is_leading(&daemon.status().unwrap()));
}

fn request(member: &str) -> String {
    json!({"verb": "fence", "target": {"member": member}, "accept_incomplete": false, "reason": null, "by": "test"})
        .to_string()
}

/// What is in the ledger is changed as another version would have written it.
fn rados(site: &Site, words: &[&str]) -> String {
    let mut command = site.lab.host("admin").bounded("rados", LIMIT);
    command.args(["--pool", "rbd-guardian", "--namespace", "rbd-guardian"]).args(words);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn record(site: &Site, key: &str) -> Value {
    let file = site.lab.dir().join("record");
    rados(site, &["getomapval", "ledger", key, file.to_str().unwrap()]);
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

#[test]
fn inv8_a_ledger_of_a_newer_version_is_refused_politely_and_one_of_an_older_version_is_read() {
    let site = Site::start(Topology::small(&["n1", "n2", "guard"]), &["n1", "n2"]);
    site.lab.pool("images", Pool::replicated(16, 2)).unwrap();
    let mut daemon = Daemon::new(&site, "first", "guard");
    daemon.start();
    daemon.until("leading", is_leading);
    let fence = daemon.verb(&["fence", "n1", "--reason", "cable pulled"]).expect(0).json;
    daemon.end();

    // Only what the first version of a fence's record had to have, and its entries.
    let key = format!("fence/{}", fence["fence"].as_str().unwrap());
    let mut older = record(&site, &key);
    let had =
        ["v", "id", "member", "state", "entries", "coverage", "in_doubt", "breaches", "seen", "by", "since"];
    older.as_object_mut().unwrap().retain(|field, _| had.contains(&field.as_str()));
    rados(&site, &["setomapval", "ledger", &key, &older.to_string()]);
    daemon.start();
    daemon.until("the older fence proved anew", |status| {
        let proved = status["fences"][0]["proofs"].as_array().is_some_and(|proofs| !proofs.is_empty());
        is_leading(status) && member(status, "n1")["state"] == "sealed" && proved
    });
    wait_for("the record in the form of now", LIMIT, || {
        Ok(record(&site, &key)["proofs"].as_array().is_some_and(|proofs| !proofs.is_empty()).then_some(()))
    })
    .unwrap();

    // A newer guardian raises the form under one that leads: nothing more is recorded or fenced, and it says why.
    let form = record(&site, "meta");
    rados(&site, &["setomapval", "ledger", "meta", r#"{"v":9}"#]);
    let before = site.blocklist();
    let words = ["fence", "n2", "--over-brake", "--reason", "x", "--timeout", "8s"];
    daemon.verb(&words).expect(5);
    let status = daemon.until("it cannot record", |status| status["cannot_record"].is_string());
    assert!(status["cannot_record"].as_str().unwrap().contains("form 9"), "{status:#}");
    assert_eq!((site.blocklist(), member(&status, "n1")["state"].clone()), (before.clone(), json!("sealed")));
    let alarms = status["alarms"].as_array().unwrap();
    assert!(alarms.iter().any(|alarm| alarm["code"] == "cannot-record"), "{status:#}");
    let doctor = daemon.verb(&["doctor"]).expect(1).json.to_string();
    assert!(doctor.contains("form 9") && doctor.contains("update"), "{doctor}");

    // Begun on it, it does not lead, stays up, and is asked in vain.
    daemon.end();
    let shown = daemon.verb(&["ledger", "show"]).expect(0);
    assert!(shown.json["newer"] == 9 && shown.stderr.contains("update it"), "{shown:#?}");
    for words in [&["fence", "n2"][..], &["release", "n1", "--assert-powered-off", "--reason", "x"]] {
        let told = daemon.verb(words).expect(1).stderr;
        assert!(told.contains("form 9") && told.contains("update this guardian"), "{told}");
    }
    assert_eq!(site.blocklist(), before);
    daemon.start();
    daemon.until("the newer form", |status| status["trouble"].to_string().contains("form 9"));
    let told = daemon.verb(&["fence", "n2"]).expect(1).stderr;
    assert!(told.contains("form 9") && told.contains("update this guardian"), "{told}");
    let shown = daemon.verb(&["status"]).expect(0).json.to_string();
    assert!(shown.contains("form 9") && shown.contains("update this guardian"), "{shown}");
    assert_eq!(site.blocklist(), before);
    // Going back goes on.
    rados(&site, &["setomapval", "ledger", "meta", &form.to_string()]);
    let status = daemon.until("leading again", is_leading);
    assert_eq!(daemon.logged("no-ledger").len(), 1, "told once: {}", daemon.running().stderr());
    assert_eq!(member(&status, "n1")["fence"], fence["fence"]);
}

/// INV-6: for one fence, with a reason, on record.
fn an_operator_goes_over_the_brake(daemon: &Daemon<'_>) {
    daemon.verb(&["fence", "n1"]).expect(0);
    let refused = daemon.verb(&["fence", "n2"]).expect(4).json;
    assert!(refused["refusals"][0]["reason"].as_str().unwrap().contains("--over-brake"), "{refused:#}");
    let unsaid = daemon.asks(&request("n2").replace(r#""by""#, r#""over_brake":true,"by""#)).unwrap();
    assert_eq!(unsaid["refused"][0]["code"], "no-reason", "{unsaid:#}");
    daemon.verb(&["fence", "n2", "--over-brake", "--reason", "the rack burnt"]).expect(0);
    let status = daemon.verb(&["status"]).expect(0).json;
    let mut fences = status["fences"].as_array().unwrap().iter();
    let over = fences.find(|fence| fence["over_brake"] == true).unwrap();
    assert_eq!((&over["member"], &over["reason"]), (&json!("n2"), &json!("the rack burnt")), "{status:#}");
    let trail = daemon.verb(&["ledger", "audit"]).expect(0).json.to_string();
    assert!(trail.contains("goes over the storm brake: the rack burnt"), "{trail}");
}

/// With an OSD silent that the ledger does not need.
fn out_of_time_a_fence_is_pending_and_the_daemon_goes_on(site: &Site, daemon: &Daemon<'_>) {
    let ledger = site.lab.ceph(&["osd", "map", "rbd-guardian", "ledger"]).unwrap();
    let acting = ledger["acting"].as_array().unwrap();
    let silent = (0..3).find(|osd| !acting.contains(&json!(osd))).unwrap();
    let silent = site.lab.daemon(&format!("osd.{silent}"));
    silent.stop().unwrap();
    let answer = daemon.verb(&["fence", "n1", "--reason", "cable pulled", "--timeout", "8s"]).expect(3);
    assert!(answer.stderr.contains("the leading guardian continues with it"), "{}", answer.stderr);
    let state = answer.json["state"].as_str().unwrap();
    assert!(["committed", "pending"].contains(&state), "{:#}", answer.json);
    silent.cont().unwrap();
    daemon.until("sealed", |status| member(status, "n1")["state"] == "sealed");
}

fn what_is_not_understood_is_told(daemon: &Daemon<'_>) {
    for question in ["", "status", r#"{"verb":"explode"}"#] {
        let told = daemon.asks(question).unwrap();
        assert!(told["failed"].as_str().unwrap().contains(r#"{"verb":"status"}"#), "{question}: {told}");
    }
}

fn a_bad_configuration_changes_nothing(daemon: &Daemon<'_>) {
    let good = fs::read_to_string(daemon.path("toml")).unwrap();
    fs::write(daemon.path("toml"), format!("[policy]\nexpire = 5\n{good}")).unwrap();
    daemon.running().signal(Signal::SIGHUP);
    let refused = daemon.hears("bad-configuration", 1)["message"].to_string();
    assert!(refused.contains("line 2") && refused.contains("the previous one stays in use"), "{refused}");
    assert!(is_leading(&daemon.status().unwrap()), "it goes on");
    assert_eq!(daemon.logged("reloaded").len(), 0);
    // The old one stays: the member that the new one no longer has is still known.
    fs::write(daemon.path("toml"), &good).unwrap();
    daemon.running().signal(Signal::SIGHUP);
    daemon.hears("reloaded", 1);
    assert_eq!(daemon.logged("restart-needed").len(), 0);
    fs::write(daemon.path("toml"), good.replace("4s", "5s")).unwrap();
    daemon.running().signal(Signal::SIGHUP);
    daemon.hears("restart-needed", 1);
    fs::write(daemon.path("toml"), &good).unwrap();
    daemon.running().signal(Signal::SIGHUP);
    daemon.hears("reloaded", 3);
}

/// INV-3, by the loop that looks at every epoch.
fn an_entry_that_somebody_removes_is_put_back(site: &Site, daemon: &Daemon<'_>, host: &str) {
    site.lab.ceph(&["osd", "blocklist", "rm", host]).unwrap();
    wait_for("the entry to stand again", LIMIT, || Ok(site.blocklist().contains_key(host).then_some(())))
        .unwrap();
    let breached = daemon.hears("breached", 1);
    assert_eq!(breached["member"], "n1", "{breached:#}");
    daemon.until("sealed again", |status| member(status, "n1")["state"] == "sealed");
}
