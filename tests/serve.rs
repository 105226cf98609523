//! A real Prometheus scrapes real guardians while a fence is made, breached and released: alerts fire and resolve, and every
//! query of the dashboard has data.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::fs;
use std::path::Path;

use common::guarded::SOON;
use common::guardian::Guardian;
use common::{LIMIT, Site};
use lab::{Host, Pool, Process, Topology, wait_for};
use serde_json::{Value, json};

const RULES: &str = include_str!("../deploy/prometheus/rbd-guardian.rules.yml");
const DASHBOARD: &str = include_str!("../deploy/grafana/rbd-guardian.json");

/// A Prometheus on a host of the lab, which ends with this.
struct Prometheus {
    host: Host,
    address: String,
    _process: Process,
}

impl Prometheus {
    /// Scrapes these four times a second. Rules fire at once: how long each waits is tested with promtool.
    fn start(host: &Host, dir: &Path, targets: &[String]) -> Self {
        let rules: Vec<String> = RULES
            .replace("4 * 3600", "0")
            .lines()
            .map(|line| match line.trim_start().starts_with("for:") {
                true => "        for: 0s".to_owned(),
                false => line.to_owned(),
            })
            .collect();
        fs::write(dir.join("rules.yml"), rules.join("\n")).unwrap();
        let config = json!({
            "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"},
            "rule_files": [dir.join("rules.yml")],
            "scrape_configs": [{"job_name": "rbd-guardian", "static_configs": [{"targets": targets}]}],
        });
        fs::write(dir.join("prometheus.yml"), config.to_string()).unwrap();
        let address = format!("{}:9090", host.ip());
        let words = [
            format!("--config.file={}", dir.join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", dir.join("tsdb").display()),
            format!("--web.listen-address={address}"),
        ];
        let process = host.spawn("prometheus", "prometheus", words).unwrap();
        let this = Self { host: host.clone(), address, _process: process };
        this.until("Prometheus to answer", |this| this.query("vector(1)").map(|found| found.len() == 1));
        this
    }

    fn get(&self, path: &str, query: &str) -> anyhow::Result<Value> {
        let url = format!("http://{}{path}", self.address);
        let mut command = self.host.bounded("curl", LIMIT);
        command.args(["--silent", "--show-error", "--noproxy", "*", "--get", "--data-urlencode"]);
        let output = command.arg(format!("query={query}")).arg(url).output()?;
        let answer: Value = serde_json::from_slice(&output.stdout)?;
        anyhow::ensure!(answer["status"] == "success", "{answer}");
        Ok(answer["data"].clone())
    }

    /// The samples that a query has.
    fn query(&self, query: &str) -> anyhow::Result<Vec<Value>> {
        let data = self.get("/api/v1/query", query)?;
        Ok(data["result"].as_array().cloned().unwrap_or_default())
    }

    fn fires(&self, alert: &str) -> anyhow::Result<bool> {
        let alerts = self.get("/api/v1/alerts", "")?;
        let mut firing = alerts["alerts"].as_array().into_iter().flatten();
        Ok(firing.any(|one| one["labels"]["alertname"] == alert && one["state"] == "firing"))
    }

    /// Whether an alert fired at any time: one that lasts a second may be over before it is asked for.
    fn fired(&self, alert: &str) -> anyhow::Result<bool> {
        let query = format!("count_over_time(ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}[10m])");
        Ok(!self.query(&query)?.is_empty())
    }

    #[track_caller]
    fn until(&self, what: &str, is: impl Fn(&Self) -> anyhow::Result<bool>) {
        // A guardian or Prometheus that does not answer yet is asked again.
        wait_for(what, SOON * 2, || Ok(is(self).unwrap_or_default().then_some(()))).unwrap_or_else(|error| {
            panic!("{error:#}: {:#}", self.get("/api/v1/alerts", "").unwrap_or_default())
        });
    }

    #[track_caller]
    fn fires_and_resolves(&self, alert: &str) {
        self.until(&format!("{alert} to fire"), |this| this.fired(alert));
        self.until(&format!("{alert} to resolve"), |this| Ok(!this.fires(alert)?));
        println!("{alert}: fired and resolved");
    }
}

/// Each query, as Grafana would send it.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let of = |panel: &Value| -> Vec<(String, String)> {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().unwrap().iter();
        let query = |target: &Value| {
            let expr = target["expr"].as_str().unwrap();
            expr.replace("$job", ".+").replace("$instance", ".+").replace("$__rate_interval", "2m")
        };
        targets.map(|target| (title.clone(), query(target))).collect()
    };
    panels.flat_map(of).collect()
}

fn guardian(site: &Site, name: &str) -> Guardian {
    let guardian = Guardian::new(site, name, name);
    let member = |name| format!("[[member]]\nname = \"{name}\"\naddresses = [\"{}\"]\n", site.ip(name));
    let serve = format!("[serve]\nlisten = \"{}:9976\"\n", site.ip(name));
    guardian.configure("", &[serve, member("n1"), member("n2")].concat());
    guardian
}

#[test]
fn alerts_fire_and_resolve_and_every_query_of_the_dashboard_has_data() {
    let site = Site::start(Topology::small(&["n1", "n2", "one", "two"]), &[]);
    site.lab.pool("images", Pool::replicated(16, 2)).unwrap();
    let [one, two] = ["one", "two"].map(|name| guardian(&site, name));
    one.start();
    one.wait_until_leading(LIMIT);
    two.start();
    two.wait_until_standby("one");
    let targets = ["one", "two"].map(|name| format!("{}:9976", site.ip(name)));
    let prometheus = Prometheus::start(site.lab.host("two"), site.lab.dir(), &targets);
    prometheus.until("both guardians to be scraped", |this| {
        Ok(this.query("rbd_guardian_leading == 1")?.len() == 1
            && this.query("rbd_guardian_leading == 0")?.len() == 1)
    });

    // A fence that one OSD holds up, whose entry is removed, and that is released.
    let ledgers = site.lab.ceph(&["osd", "map", "rbd-guardian", "ledger"]).unwrap();
    let acting = ledgers["acting"].as_array().unwrap();
    let silent = (0..3).find(|osd| !acting.contains(&json!(osd))).unwrap();
    let osd = site.lab.daemon(&format!("osd.{silent}"));
    // Marked down, its PGs would answer elsewhere before the alarm comes.
    site.lab.ceph(&["osd", "set", "nodown"]).unwrap();
    osd.stop().unwrap();
    one.verb(&["fence", "n1", "--reason", "a test", "--timeout", "5s"]).expect(3);
    prometheus.until("unproved PGs", |this| Ok(!this.query("rbd_guardian_pending_pgs > 0")?.is_empty()));
    prometheus.until("the fence to be pending for long", |this| this.fires("RbdGuardianFencePending"));
    osd.cont().unwrap();
    site.lab.ceph(&["osd", "unset", "nodown"]).unwrap();
    prometheus.fires_and_resolves("RbdGuardianFencePending");
    one.verb(&["fence", "n1", "--reason", "a test"]).expect(0);
    let entry = format!("{}:0/0", site.ip("n1"));
    site.lab.ceph(&["osd", "blocklist", "rm", &entry]).unwrap();
    prometheus.until("the breach", |this| this.fires("RbdGuardianFenceBreached"));
    prometheus.until("who removed it", |this| this.fires("RbdGuardianTampered"));

    // An operator disarms the guardians, by way of the one that does not lead.
    two.verb(&["disarm", "--for", "1h", "--reason", "new switches"]).expect(0);
    prometheus
        .until("both guardians to say so", |this| Ok(this.query("rbd_guardian_disarmed == 1")?.len() == 2));
    prometheus.until("the alert", |this| this.fires("RbdGuardianDisarmedLong"));

    let empty: Vec<(String, String)> =
        queries().into_iter().filter(|(_, query)| prometheus.query(query).unwrap().is_empty()).collect();
    assert!(empty.is_empty(), "no data: {empty:#?}");
    assert!(queries().len() > 20);

    two.verb(&["arm"]).expect(0);
    prometheus.fires_and_resolves("RbdGuardianDisarmedLong");

    // The leader dies; the other one takes over.
    one.kill();
    prometheus.until("a guardian that does not answer", |this| this.fires("RbdGuardianDown"));
    prometheus.fires_and_resolves("RbdGuardianNoLeader");
    two.wait_until_leading(LIMIT);
    two.kill();
    prometheus.until("no guardian", |this| this.fires("RbdGuardianAbsent"));
    // It fires for two minutes, however soon the entry was back.
    prometheus.fires_and_resolves("RbdGuardianFenceBreached");
    two.start();
    prometheus.fires_and_resolves("RbdGuardianAbsent");
    two.wait_until_leading(LIMIT);
    two.verb(&["release", "n1", "--assert-powered-off", "--reason", "no client of it ever ran"]).expect(0);
    prometheus.fires_and_resolves("RbdGuardianTampered");
}
