//! The verbs in the order of a failure, on a real cluster.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use std::time::Duration;

use common::Site;
use lab::{Pool, wait_for};

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
    assert!(checks.as_array().unwrap().iter().all(|check| check["verdict"] == "ok"), "{checks:#}");

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
