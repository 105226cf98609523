//! Bad input and a bad world: each ends soon, with one line that says what to do and the code that scripts rely on,
//! and leaves nothing half-done.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{LIMIT, Site};
use lab::{Pool, Role, Topology, wait_for};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rbd-guardian");
/// What a verb may need beyond its own `--timeout`: a machine under load, the start of a process.
const SLACK: Duration = Duration::from_secs(20);

/// How a verb ended and what it said.
#[derive(Debug)]
struct Said {
    exit: Option<i32>,
    stdout: String,
    stderr: String,
    took: Duration,
}

fn said(command: &mut Command) -> Said {
    let began = Instant::now();
    let output = command.output().unwrap();
    Said {
        exit: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        took: began.elapsed(),
    }
}

impl Said {
    /// One line on stderr that names these, nothing on stdout, and this exit code.
    #[track_caller]
    fn one_line(&self, exit: i32, names: &[&str]) {
        print!("{exit}  {}", self.stderr);
        assert_eq!(self.exit, Some(exit), "{self:#?}");
        assert_eq!((self.stdout.as_str(), self.stderr.lines().count()), ("", 1), "{self:#?}");
        self.last_line(names);
    }

    /// The last line on stderr names these.
    #[track_caller]
    fn last_line(&self, names: &[&str]) {
        let line = self.stderr.lines().last().unwrap_or_default();
        assert!(line.starts_with("rbd-guardian: "), "{self:#?}");
        for name in names {
            assert!(line.contains(name), "{name} is not in: {line}");
        }
    }

    #[track_caller]
    fn within(&self, timeout: Duration) {
        assert!(self.took < timeout + SLACK, "{self:#?}");
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

#[test]
fn a_wrong_command_line_gets_one_line_that_says_what_is_right() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["fence"], &["MEMBER", "--address"]),
        (&["fenc", "n1"], &["'fenc'", "'fence'"]),
        (&["fence", "n1", "--forse"], &["'--forse'", "rbd-guardian [OPTIONS] fence"]),
        (&["fence", "n1", "--address", "10.0.0.5"], &["MEMBER", "--address"]),
        (&["fence", "n1", "--format", "yaml"], &["'yaml'", "table, json"]),
        (&["fence", "n1", "--timeout", "3"], &["'3'", "30s"]),
        (&["fence", "n1", "--timeout", "0s"], &["'0s'", "1s"]),
        (&["release"], &["MEMBER", "--fence"]),
        (&["release", "n1", "--assert-powered-off"], &["--reason"]),
        (&["plan", "--address", "n1"], &["'n1'", "10.0.0.5:0/123456", "[2001:db8::5]:0/0"]),
        (&["plan", "--address", "10.0.0.256"], &["'10.0.0.256'", "is not an address"]),
        (&["plan", "--address", "10.0.0.5:0/-1"], &["is not an address"]),
        (&["plan", "--address", "v1:10.0.0.5:0/1"], &["is not an address"]),
        (&["plan", "--address", "[10.0.0.5]:0/0"], &["is not an address"]),
        (&["plan", "--address", "10.0.0.0/24"], &["is a network", "each host"]),
        (&["plan", "--address", "10.0.0.5/32"], &["is a network"]),
        (&["plan", "--address", "fd77::/64"], &["is a network"]),
        (&["plan", "--address", "fe80::1%eth0"], &["link-local", "global address"]),
        (&["plan", "--address", "fe80::1"], &["link-local"]),
        (&["plan", "--address", "169.254.0.7"], &["link-local"]),
        (&["plan", "--address", "10.0.0.5:6800/42"], &["port 6800", "10.0.0.5:0/NONCE"]),
        (&["plan", "--address", "[fd77::5]:6800/42"], &["port 6800", "[fd77::5]:0/NONCE"]),
        (&["plan", "--address", "::ffff:10.0.0.5"], &["write it as IPv4"]),
        (&["plan", "--address", "0.0.0.0"], &["unspecified"]),
        (&["plan", "--address", "224.0.0.1"], &["multicast"]),
    ];
    for (words, names) in cases {
        said(Command::new(PROGRAM).args(*words)).one_line(2, names);
    }
    println!("{} command lines", cases.len());
}

#[test]
fn a_wrong_configuration_is_told_with_file_and_line() {
    let folder = std::env::temp_dir().join(format!("rbd-guardian-errors-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let file = folder.join("wrong.toml");
    let cases: &[(&str, &[&str])] = &[
        ("[ceph]\nid = \"x\"\n[policy\n", &["line 3", "expected `]`"]),
        ("[polcy]\n", &["line 1", "`polcy`", "`policy`"]),
        ("\n[policy]\nexpire = 5\n", &["line 3", "integer `5`"]),
        ("[policy]\nexpire = \"6years\"\n", &["policy.expire", "5 years"]),
        ("[policy]\nexpire = \"soon\"\n", &["policy.expire", "90days"]),
        ("[policy]\nmax_fenced_members = 0\n", &["policy.max_fenced_members", "at least 1"]),
        ("[policy]\nprotected = [\"all\"]\n", &["policy.protected", "'all'"]),
        ("[[member]]\naddresses = []\n", &["line 1", "`name`"]),
        (
            "[[member]]\nname = \"a\"\naddresses = [\"10.0.0.5:0/7\"]\n",
            &["'a'", "one client instance", "10.0.0.5"],
        ),
        ("[[member]]\nname = \"a\"\naddresses = [\"10.0.0.0/24\"]\n", &["'a'", "is a network"]),
        ("[[member]]\nname = \"a\"\n[[member]]\nname = \"a\"\n", &["'a'", "twice"]),
    ];
    let status = |path: &str| said(Command::new(PROGRAM).args(["--config", path, "status"]));
    for (text, names) in cases {
        fs::write(&file, text).unwrap();
        let said = status(file.to_str().unwrap());
        said.one_line(2, names);
        said.last_line(&["wrong.toml"]);
    }
    fs::remove_dir_all(&folder).unwrap();
    status(file.to_str().unwrap()).one_line(2, &["cannot read", "wrong.toml"]);
    println!("{} configurations", cases.len() + 1);
}

/// A cluster with three monitors and a standby mgr, a writer on `n1`, and the guardian on `guard`.
struct World {
    site: Site,
    _writer: lab::Writer,
}

impl World {
    fn new() -> Self {
        let topology = Topology::new()
            .host("store", &[Role::Mon("a"), Role::Mgr("x"), Role::Osd(0), Role::Osd(1)])
            .host("m2", &[Role::Mon("b"), Role::Mgr("y")])
            .host("m3", &[Role::Mon("c")])
            .host("n1", &[])
            .host("n2", &[])
            .host("guard", &[]);
        let site = Site::start(topology, &["n1", "n2", "store", "m2"]);
        site.lab.pool("images", Pool::replicated(16, 2)).unwrap();
        site.lab.image("images", "disk", 16).unwrap();
        let writer = site.lab.host("n1").writer("images", "disk", 1).unwrap();
        Self { site, _writer: writer }
    }

    /// A verb on `guard`, with nothing on the command line but this; the lab's ceph.conf is in the environment.
    fn verb(&self, words: &[&str]) -> Command {
        let mut command = self.site.lab.host("guard").bounded(PROGRAM, LIMIT);
        command.arg("--config").arg(self.file("rbd-guardian.toml")).args(words);
        command
    }

    fn file(&self, name: &str) -> String {
        self.site.lab.dir().join(name).display().to_string()
    }

    /// Writes a file into the lab's folder.
    fn write(&self, name: &str, text: &str) -> String {
        let path = self.file(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Does it, and shows that the blocklist is the same in every osdmap epoch since. A young cluster makes epochs
    /// of its own, so their number proves nothing.
    #[track_caller]
    fn unchanged<T>(&self, what: impl FnOnce() -> T) -> T {
        let (before, epoch) = (self.site.blocklist(), self.site.epoch());
        let done = what();
        for epoch in epoch..=self.site.epoch() {
            let dump = self.site.lab.ceph_json(&json!({"prefix": "osd dump", "epoch": epoch})).unwrap();
            assert_eq!(dump["blocklist"].as_object().unwrap(), &before, "half-done in epoch {epoch}");
        }
        done
    }
}

/// What librados answers with one errno, ends the process at or prints on stdout has its own sentence and code, and stdout
/// stays the answer's.
#[test]
fn a_ceph_configuration_that_cannot_work_gets_its_own_sentence() {
    let folder = std::env::temp_dir().join(format!("rbd-guardian-ceph-conf-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let at = |name: &str| folder.join(name).display().to_string();
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    write("config.toml", "");
    let keyring = |client: &str, key: &str| format!("[{client}]\n\tkey = {key}\n");
    let aes = "AQAj4V1mAAAAABAAg5IaCOsKXKMXxSjCkCRWxA==";
    write("keyring", &keyring("client.guardian", aes));
    write("stranger", &keyring("client.stranger", aes));
    write("broken", &keyring("client.guardian", "hello"));
    // As `ceph-authtool --gen-key` of 20.2.4 makes them: 60 characters.
    let newer = "AgAj4V1mAAAAACAABwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    assert_eq!(newer.len(), 60);
    write("newer", &keyring("client.guardian", newer));
    // Nobody listens there.
    let here = "[global]\nmon host = 127.0.0.1:1\n";
    let log = at("librados.log");
    let cases: &[(&str, &str, &str, i32, &[&str])] = &[
        (
            "no monitors",
            "[global]\nfsid = 6f1c0a52-7ed5-4a8e-8a3c-9f0f0d8a4d10\n",
            "keyring",
            2,
            &["mon_host", "--conf"],
        ),
        (
            "a name",
            "[global]\nmon host = mon.nowhere.invalid\n",
            "keyring",
            5,
            &["mon.nowhere.invalid", "DNS"],
        ),
        (
            "one name",
            "[global]\nmon host = 127.0.0.1:1,mon.nowhere.invalid\n",
            "keyring",
            5,
            &["mon.nowhere.invalid"],
        ),
        ("no address", "[global]\nmon host = [v2:1.2.3:x\n", "keyring", 2, &["mon_host"]),
        ("a BOM", &format!("\u{feff}{here}"), "keyring", 2, &["line 1", "byte order mark"]),
        ("an NBSP", &format!("{here}mon\u{a0}x = 1\n"), "keyring", 2, &["line 3", "non-breaking space"]),
        ("an umlaut", &format!("{here}\n[client.b\u{fc}ro]\n"), "keyring", 2, &["line 4", "U+00FC"]),
        (
            "a comment",
            &format!("{here}# b\u{fc}ro\nlog file = {log}\n"),
            "keyring",
            5,
            &["127.0.0.1", "quorum"],
        ),
        ("a stranger's key", here, "stranger", 2, &["client.guardian", "stranger", "ceph auth get"]),
        ("a broken key", here, "broken", 2, &["damaged", "broken"]),
        ("a newer key", here, "newer", 2, &["aes256k", "19.2.6", "20.2.4", "newer"]),
    ];
    for (what, conf, keyring, exit, names) in cases {
        write("ceph.conf", conf);
        let (config, conf, keyring) = (at("config.toml"), at("ceph.conf"), at(keyring));
        let words = ["-c", &config, "--conf", &conf, "--keyring", &keyring, "plan", "--address", "10.0.0.5"];
        let said = said(Command::new(PROGRAM).args(words).args(["--timeout", "3s", "--json"]));
        println!("{what}: {exit}  {}", said.stderr);
        assert_eq!((said.exit, said.stdout.as_str()), (Some(*exit), ""), "{what}: {said:#?}");
        said.last_line(names);
    }
    assert!(!folder.join("librados.log").exists(), "a log file of librados");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_bad_world_gets_one_line_that_says_what_to_do_and_nothing_is_half_done() {
    let world = World::new();
    wrong_keys_and_names(&world);
    missing_caps(&world);
    nobody_reads_the_answer(&world);
    blocklisted_itself(&world);
    no_quorum(&world);
}

fn wrong_keys_and_names(world: &World) {
    let key = |name: &str| format!("[client.{name}]\n\tkey = AQAj4V1mAAAAABAAg5IaCOsKXKMXxSjCkCRWxA==\n");
    let wrong = world.write("wrong.keyring", &key("guardian"));
    let stranger = world.write("stranger.keyring", &key("stranger"));
    let garbage = world.write("garbage.keyring", "not a keyring\n");
    world.write("bare.toml", "[[member]]\nname = \"bare\"\n");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["--keyring", &wrong], 1, &["refuse client.guardian", "ceph auth get client.guardian"]),
        (&["--id", "stranger", "--keyring", &stranger], 1, &["refuse client.stranger"]),
        (&["--id", "nobody"], 2, &["no keyring for client.nobody", "--keyring"]),
        (&["--keyring", "/nowhere"], 2, &["/nowhere", "ceph auth get client.guardian"]),
        (&["--keyring", &garbage], 2, &["garbage.keyring"]),
        (&["--conf", "/nowhere"], 2, &["/nowhere", "--conf"]),
        (&["--conf", &garbage], 2, &["garbage.keyring"]),
    ];
    world.unchanged(|| {
        for (words, exit, names) in cases {
            let words = [*words, &["fence", "n1", "--timeout", "10s"]].concat();
            said(&mut world.verb(&words)).one_line(*exit, names);
        }
    });
    let asserted = ["--assert-powered-off", "--reason", "test"];
    let release = |words: &[&'static str]| [&["release"], words, &asserted].concat();
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&release(&["n9"]), 4, &["'n9'", "n1"]),
        (&release(&["--fence", "F-1"]), 2, &["F-1"]),
        (&["release", "n1"], 4, &["--assert-powered-off"]),
        (&["watchers", "--pool", "backups"], 2, &["'backups'", "images"]),
    ];
    world.unchanged(|| {
        for (words, exit, names) in cases {
            said(&mut world.verb(words)).one_line(*exit, names);
        }
        for (config, member, name) in [("rbd-guardian.toml", "n9", "n1"), ("bare.toml", "bare", "addresses")]
        {
            let config = world.file(config);
            let said = said(
                world.site.lab.host("guard").bounded(PROGRAM, LIMIT).args(["-c", &config, "fence", member]),
            );
            print!("4  {}", said.stderr);
            assert_eq!((said.exit, said.stdout.as_str()), (Some(4), ""), "{said:#?}");
            assert!(said.stderr.contains(&format!("'{member}'")) && said.stderr.contains(name), "{said:#?}");
            said.last_line(&["nothing was changed"]);
        }
    });
}

fn no_quorum(world: &World) {
    let lab = &world.site.lab;
    let timeout = Duration::from_secs(3);
    let some: [(&[&str], &[&str]); 2] = [
        (&["mon.b", "mon.c"], &["fence n1", "status", "doctor"]),
        (&["mon.a", "mon.b", "mon.c"], &["fence n1"]),
    ];
    for (stopped, verbs) in some {
        world.unchanged(|| {
            stopped.iter().for_each(|mon| lab.daemon(mon).stop().unwrap());
            if !stopped.contains(&"mon.a") {
                wait_until_it_is_alone(world, "mon.a");
            }
            for verb in verbs {
                let words: Vec<&str> = verb.split(' ').chain(["--timeout", "3s"]).collect();
                let said = said(&mut world.verb(&words));
                said.one_line(5, &["quorum"]);
                said.within(timeout);
            }
            ctrl_c_ends_a_fence_that_hangs(world);
            stopped.iter().for_each(|mon| lab.daemon(mon).cont().unwrap());
            lab.wait_until_up().unwrap();
            println!("no quorum with {} of 3 monitors stopped", stopped.len());
        });
    }
}

/// Until its lease is over a monitor still answers for a quorum that is gone.
fn wait_until_it_is_alone(world: &World, mon: &str) {
    let socket = world.file(&format!("run/{mon}.asok"));
    wait_for("the end of the quorum", LIMIT, || {
        let mut ask = world.site.lab.host("admin").bounded("ceph", LIMIT);
        let status = ask.args(["--admin-daemon", &socket, "mon_status"]).output()?.stdout;
        let status: Value = serde_json::from_slice(&status)?;
        Ok(status["quorum"].as_array().is_some_and(Vec::is_empty).then_some(()))
    })
    .unwrap();
}

fn ctrl_c_ends_a_fence_that_hangs(world: &World) {
    let config = world.file("rbd-guardian.toml");
    let words = ["--config", &config, "fence", "n1", "--timeout", "1h"];
    let mut fence = world.site.lab.host("guard").spawn("interrupted", PROGRAM, words).unwrap();
    let pid = fence.pid().to_string();
    // Connecting: it has begun to talk to monitors.
    wait_for("the connection's threads", LIMIT, || {
        Ok((fs::read_dir(format!("/proc/{pid}/task"))?.count() > 4).then_some(()))
    })
    .unwrap();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let status = fence.wait(SLACK).unwrap();
    let text = fs::read_to_string(world.file("log/interrupted.out")).unwrap();
    print!("5  {text}");
    assert_eq!((status.code(), text.lines().count()), (Some(5), 1), "{text}");
    assert!(text.contains("interrupted") && text.contains("nothing was changed"), "{text}");
}

/// Every clause of deploy/ceph is needed: without it the verb that needs it names it, and so does `doctor`.
fn missing_caps(world: &World) {
    let all =
        [("mon", include_str!("../deploy/ceph/mon.caps")), ("osd", include_str!("../deploy/ceph/osd.caps"))];
    let mut tried = 0;
    for (kind, text) in all {
        for missing in text.trim().split(", ") {
            tried += 1;
            let id = format!("lesser-{tried}");
            let lesser: Vec<&str> = text.trim().split(", ").filter(|clause| *clause != missing).collect();
            let caps = all.map(
                |(k, text)| {
                    if k == kind { (k, lesser.join(", ")) } else { (k, text.trim().to_owned()) }
                },
            );
            world.site.lab.key(&id, &[(caps[0].0, &caps[0].1), (caps[1].0, &caps[1].1)]).unwrap();
            println!("without {kind} {missing}:");
            without(world, &id, missing);
        }
    }
    println!("{tried} caps");
}

fn without(world: &World, id: &str, missing: &str) {
    if missing.contains("mds-failover") {
        // Only a real mds can be refused to be failed: tests/protected.rs does it.
        return;
    }
    let verb = |words: &[&str]| said(&mut world.verb(&[&["--id", id, "--json"], words].concat()));
    let doctor = world.unchanged(|| verb(&["doctor"]));
    if missing == "allow r" {
        doctor.one_line(1, &["mon `allow r`", "deploy/ceph"]);
        return world.unchanged(|| verb(&["fence", "n1"]).one_line(1, &["mon `allow r`", "deploy/ceph"]));
    }
    let checks = doctor.json();
    let names = |text: &Value| text.as_str().unwrap().contains(missing);
    let failed = checks.as_array().unwrap().iter().filter(|check| check["verdict"] == "fail");
    let told = failed.filter(|check| names(&check["detail"])).count();
    assert!(doctor.exit == Some(1) && told > 0, "{doctor:#?}");
    if missing.ends_with("\"osd blocklist\"") {
        let fence = world.unchanged(|| verb(&["fence", "n1"]));
        assert_eq!(fence.exit, Some(1), "{fence:#?}");
        fence.last_line(&[missing]);
    } else if missing.ends_with("\"mgr fail\"") {
        let active = world.site.lab.ceph(&["mgr", "dump"]).unwrap()["active_name"].clone();
        let host = if active == "x" { "store" } else { "m2" };
        let fence = world.unchanged(|| verb(&["fence", host]));
        assert_eq!(fence.exit, Some(1), "{fence:#?}");
        fence.last_line(&[missing]);
    } else if missing.ends_with(" rbd-guardian.") {
        let fence = verb(&["fence", "n1", "--timeout", "3s"]);
        assert_eq!((fence.exit, &fence.json()["state"]), (Some(3), &"pending".into()), "{fence:#?}");
        fence.last_line(&[missing, "run it again"]);
        release(world, "n1");
    } else if missing.contains("rwx") {
        let show = verb(&["ledger", "show"]);
        assert_eq!(show.exit, Some(1), "{show:#?}");
        show.last_line(&[missing]);
    } else if !missing.ends_with("\"mds fail\"") && !missing.contains("break_lock") {
        // What it cannot read it does not need: the fence goes on and says what it did not see.
        let plan = world.unchanged(|| verb(&["plan", "n1"])).json();
        let notes = plan["coverage"]["notes"].as_array().unwrap();
        assert!(notes.iter().any(names), "{plan:#}");
    }
}

fn release(world: &World, member: &str) {
    let words = ["release", member, "--assert-powered-off", "--reason", "test"];
    world.site.guardian(&words).expect(0);
}

/// INV-6: the monitors would obey a guardian on the lost side.
fn blocklisted_itself(world: &World) {
    let own = format!("{}:0/0", world.site.ip("guard"));
    world.site.lab.ceph(&["osd", "blocklist", "add", &own]).unwrap();
    let fence = world.unchanged(|| said(&mut world.verb(&["fence", "n1", "--json"])));
    assert_eq!(fence.exit, Some(4), "{fence:#?}");
    assert_eq!(fence.json()["refusals"][0]["code"], "fenced-itself");
    world.site.lab.ceph(&["osd", "blocklist", "rm", &own]).unwrap();
    assert_eq!(world.site.guardian(&["fence", "n1"]).expect(0).json["state"], "sealed");
    release(world, "n1");
}

fn nobody_reads_the_answer(world: &World) {
    for verb in ["watchers", "status", "doctor"] {
        let mut child =
            world.verb(&[verb, "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{verb}: {output:?}");
    }
}
