//! The verbs in the order of a failure, on a real cluster.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;
use std::time::Duration;

use common::{Answer, LIMIT, Site, answer};
use lab::{Pool, wait_for};
use rbd_guardian::descriptors;
use serde_json::Value;

const ASSERTED: [&str; 3] = ["--assert-powered-off", "--reason", "the test killed every client of it"];

#[test]
fn a_member_is_planned_fenced_shown_and_released() {
    let site = Site::small();
    site.lab.pool("images", Pool::replicated(16, 2)).unwrap();
    site.lab.image("images", "disk", 16).unwrap();
    let writer = site.lab.host("n1").writer("images", "disk", 1).unwrap();
    let host = format!("{}:0/0", site.ip("n1"));
    let client = writer.client_address().to_owned();

    let checks = site.guardian(&["doctor"]).expect(0).json;
    // Two copies are all that this lab keeps of the ledger.
    let good = |check: &Value| {
        ["ok", "note"].contains(&check["verdict"].as_str().unwrap()) || check["check"] == "ledger pool"
    };
    assert!(checks.as_array().unwrap().iter().all(good), "{checks:#}");

    let before = site.blocklist();
    let plan = site.guardian(&["plan", "n1"]).expect(0).json;
    assert_eq!(plan["state"], "planned");
    assert_eq!(plan["coverage"]["verdict"], "whole-host");
    assert_eq!(plan["entries"][0]["entry"], host);
    assert_eq!(plan["entries"][1]["entry"], client);
    assert_eq!(site.blocklist(), before, "plan changes nothing");

    let fence = site.guardian(&["fence", "n1", "--reason", "cable pulled"]).expect(0).json;
    assert_eq!(fence["state"], "sealed");
    assert_eq!(fence["fence"], plan["fence"]);
    assert_eq!(fence["reason"], "cable pulled");
    assert_eq!(fence["barrier"][0]["proved"], 16);
    assert_eq!(fence["coverage"]["known_clients"], 1);
    assert!(site.blocklist().contains_key(&host) && site.blocklist().contains_key(&client));
    println!("{fence:#}");

    let status = site.guardian(&["status"]).expect(0).json;
    let states = |status: &serde_json::Value| {
        [&status["members"][0]["state"], &status["members"][1]["state"]].map(ToString::to_string)
    };
    assert_eq!(states(&status), ["\"sealed\"", "\"watching\""], "{status:#}");
    assert_eq!(status["members"][0]["fence"], fence["fence"]);

    drop(writer);
    let id = fence["fence"].as_str().unwrap();
    let release = site.guardian(&[&["release", "--fence", id], ASSERTED.as_slice()].concat()).expect(0).json;
    assert_eq!((&release["state"], &release["removed"][0]), (&"released".into(), &host.clone().into()));
    assert_eq!(release["member"], "n1");
    assert!(!site.blocklist().contains_key(&host));
    assert!(site.blocklist().contains_key(&client), "INV-4: the old client stays refused");
    let status = site.guardian(&["status"]).expect(0).json;
    assert_eq!(states(&status), ["\"watching\"", "\"watching\""], "{status:#}");
}

/// What an operator runs makes a key that suffices for everything, and for nothing else.
#[test]
fn the_key_of_deploy_ceph_passes_the_doctor_and_cannot_read_an_image() {
    let site = Site::small();
    site.lab.pool("images", Pool::replicated(8, 2)).unwrap();
    site.lab.image("images", "disk", 16).unwrap();
    let keyring = site.lab.dir().join("operator.keyring");
    // One that everybody may read, from before.
    fs::write(&keyring, "").unwrap();
    fs::set_permissions(&keyring, Permissions::from_mode(0o644)).unwrap();
    let script = site.create_key();
    for _ in 0..2 {
        let made =
            site.lab.host("n2").bounded(&script, LIMIT).arg("operator").arg(&keyring).output().unwrap();
        assert!(made.status.success(), "{made:?}");
    }
    assert_eq!(fs::metadata(&keyring).unwrap().permissions().mode() & 0o777, 0o600);
    let keyring = keyring.to_str().unwrap();
    let as_operator = |program: &str, words: &[&str]| {
        let mut command = site.lab.host("guard").bounded(program, LIMIT);
        command.args(["--id", "operator", "--keyring", keyring]).args(words).output().unwrap()
    };
    let doctor = as_operator(env!("CARGO_BIN_EXE_rbd-guardian"), &["doctor"]);
    assert!(doctor.status.success(), "{doctor:?}");
    let told = |doctor: &Output| String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(told(&doctor).contains("only its owner can read it"), "{}", told(&doctor));
    fs::set_permissions(keyring, Permissions::from_mode(0o640)).unwrap();
    let doctor = as_operator(env!("CARGO_BIN_EXE_rbd-guardian"), &["doctor"]);
    assert!(told(&doctor).contains("others can read it (mode 640)"), "{}", told(&doctor));
    let export = as_operator("rbd", &["export", "images/disk", "-"]);
    assert!(!export.status.success() && export.stdout.is_empty(), "{export:?}");
}

/// Ceph itself keeps the holder of such a key from blocklisting anything but the members' hosts.
#[test]
fn inv6_a_key_for_the_members_alone_blocklists_nothing_else() {
    let site = Site::small();
    site.lab.pool("images", Pool::replicated(8, 2)).unwrap();
    let keyring = site.lab.dir().join("operator.keyring");
    let script = site.create_key();
    let create = |addresses: &[String]| {
        let mut create = site.lab.host("admin").bounded(&script, LIMIT);
        let made = create.arg("operator").arg(&keyring).args(addresses).output().unwrap();
        assert!(made.status.success(), "{made:?}");
    };
    let [n1, n2, store] = ["n1", "n2", "store"].map(|name| site.ip(name));
    let as_operator = |program: &str, words: &[&str]| {
        let mut command = site.lab.host("guard").bounded(program, LIMIT);
        command.args(["--id", "operator", "--keyring"]).arg(&keyring).args(words).output().unwrap()
    };
    let blocklist = |words: &[&str]| as_operator("ceph", &[&["osd", "blocklist"], words].concat());
    let doctor = || {
        let mut command = site.lab.host("guard").bounded(env!("CARGO_BIN_EXE_rbd-guardian"), LIMIT);
        command.arg("--config").arg(site.lab.dir().join("rbd-guardian.toml"));
        command.args(["--id", "operator", "--keyring"]).arg(&keyring);
        answer(&["doctor"], &command.args(["--json", "doctor"]).output().unwrap())
    };
    let told = |doctor: &Answer| {
        let mut checks = doctor.json.as_array().unwrap().iter();
        checks.find(|check| check["check"] == "cap `osd blocklist`").unwrap().clone()
    };

    // Not all members.
    create(std::slice::from_ref(&n1));
    let one = told(&doctor().expect(1));
    assert_eq!(one["verdict"], "fail", "{one}");
    assert!(one["detail"].as_str().unwrap().contains(&format!("not allowed for {n2}")), "{one}");

    create(&[n1.clone(), n2.clone()]);
    let all = told(&doctor().expect(0));
    assert_eq!(
        (&all["verdict"], all["detail"].as_str().unwrap().contains("members")),
        (&"ok".into(), true),
        "{all}"
    );
    for ip in [&n1, &n2] {
        for words in [
            vec!["add", &format!("{ip}:0/0")],
            vec!["add", &format!("{ip}:0/4711")],
            vec!["range", "add", &format!("{ip}/32")],
        ] {
            let taken = blocklist(&words);
            assert!(taken.status.success(), "{words:?}: {taken:?}");
            let gone = blocklist(
                &words.iter().map(|word| if *word == "add" { "rm" } else { word }).collect::<Vec<_>>(),
            );
            assert!(gone.status.success(), "{words:?}: {gone:?}");
        }
    }
    let before = site.blocklist();
    let network = |bits: u8| format!("{n1}/{bits}");
    for words in [
        vec!["add", &format!("{store}:0/0")],
        vec!["add", &store],
        vec!["add", &format!("{store}:0/4711")],
        vec!["add", &format!("{n1}0:0/0")],
        vec!["range", "add", &format!("{store}/32")],
        vec!["range", "add", &network(16)],
        vec!["range", "add", &network(31)],
        vec!["range", "add", "0.0.0.0/0"],
    ] {
        let refused = blocklist(&words);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("EACCES"), "{words:?}: {refused:?}");
    }
    assert_eq!(site.blocklist(), before);

    // And it is all that a fence and a release need.
    let verb = |words: &[&str]| {
        let mut command = site.lab.host("guard").bounded(env!("CARGO_BIN_EXE_rbd-guardian"), LIMIT);
        command.arg("--config").arg(site.lab.dir().join("rbd-guardian.toml"));
        command.args(["--id", "operator", "--keyring"]).arg(&keyring);
        answer(words, &command.arg("--json").args(words).output().unwrap())
    };
    assert_eq!(verb(&["fence", "n1"]).expect(0).json["state"], "sealed");
    verb(&[&["release", "n1"], ASSERTED.as_slice()].concat()).expect(0);
}

/// A member adds entries as librbd does, and lifts none: `profile rbd` has `osd blocklist` with `blocklistop=add` alone
/// (`MonCap::expand_profile`).
#[test]
fn inv3_a_members_key_removes_no_entry() {
    let site = Site::small();
    site.lab.pool("images", Pool::replicated(8, 2)).unwrap();
    let keyring = site.lab.dir().join("member.keyring");
    let caps = ["mon", "profile rbd", "osd", "profile rbd pool=images"];
    let mut create = site.lab.host("admin").bounded("ceph", LIMIT);
    create.args(["auth", "get-or-create", "client.member", "-o"]).arg(&keyring).args(caps);
    assert!(create.status().unwrap().success());
    let blocklist = |words: &[&str]| {
        let mut command = site.lab.host("n1").bounded("ceph", LIMIT);
        command.args(["--id", "member", "--keyring"]).arg(&keyring).args(["osd", "blocklist"]);
        command.args(words).output().unwrap()
    };
    site.guardian(&["fence", "n1", "--although-reachable", "--reason", "test"]).expect(0);
    let held = site.blocklist();
    let n2 = site.ip("n2");
    let other = format!("{n2}:0/4711");
    let taken = blocklist(&["add", &other]);
    assert!(taken.status.success(), "the key works: {taken:?}");
    let host = format!("{}:0/0", site.ip("n1"));
    for words in [vec!["rm", &host], vec!["rm", &other], vec!["clear"], vec!["range", "rm", &host]] {
        let refused = blocklist(&words);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("EACCES"), "{words:?}: {refused:?}");
    }
    let now = site.blocklist();
    assert!(held.iter().all(|entry| now.contains_key(entry.0)), "{held:?} {now:?}");
}

/// With 16, librados once ended the process: `munmap_chunk(): invalid pointer`.
#[test]
fn with_too_few_descriptors_it_says_so_and_a_pending_seal_names_them() {
    let site = Site::small();
    site.lab.pool("images", Pool::replicated(8, 2)).unwrap();
    let with = |limit: u64, words: &[&str]| {
        let mut command = site.lab.host("guard").bounded("sh", LIMIT);
        command.args(["-c", "ulimit -n \"$0\"; exec \"$@\"", &limit.to_string()]);
        command.arg(env!("CARGO_BIN_EXE_rbd-guardian"));
        command
            .arg("--config")
            .arg(site.lab.dir().join("rbd-guardian.toml"))
            .arg("--keyring")
            .arg(&site.keyring);
        command.args(words).output().unwrap()
    };
    let fence = ["--timeout", "10s", "fence", "n1"];
    for (limit, words) in [(12, fence.as_slice()), (16, &fence), (19, &fence), (24, &["run"])] {
        let refused = with(limit, words);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{limit}: {refused:?}");
        let told = format!("only {limit} file descriptors are allowed");
        assert!(said.contains(&told) && said.contains("LimitNOFILE"), "{said}");
    }
    // It connects, and has none left for the OSDs.
    let pending = with(descriptors::LEAST, &fence);
    let said = String::from_utf8_lossy(&pending.stderr).into_owned();
    assert_eq!(pending.status.code(), Some(3), "{pending:?}");
    assert!(said.contains("this process has used all its file descriptors ("), "{said}");
    assert_eq!(site.guardian(&["fence", "n1"]).expect(0).json["state"], "sealed");
}

/// INV-6: a gateway is a client like any other to the storage, but not a guest's.
#[test]
fn inv6_a_bare_address_where_a_registered_service_runs_is_refused() {
    let site = Site::small();
    site.lab.pool("images", Pool::replicated(8, 2)).unwrap();
    let gateway = "import rados, time\nr = rados.Rados(conffile='')\nr.connect()\n\
                   r.service_daemon_register('rgw', 'x', {})\nwhile True: time.sleep(60)";
    let mut gateway = site.lab.host("n2").spawn("gateway", "/usr/bin/python3", ["-c", gateway]).unwrap();
    wait_for("the mgr to list the gateway", Duration::from_secs(60), || {
        let services = site.lab.ceph(&["service", "dump"])?;
        Ok(services["services"]["rgw"]["daemons"]["x"].is_object().then_some(()))
    })
    .unwrap();
    let refused = site.guardian(&["fence", "--address", &site.ip("n2")]).expect(4).json;
    assert_eq!(refused["refusals"][0]["code"], "daemons-at-address");
    assert!(refused["refusals"][0]["reason"].as_str().unwrap().contains("rgw.x"), "{refused:#}");
    site.guardian(&["plan", "n2"]).expect(0);
    gateway.kill().unwrap();
}
