//! INV-2 on a real cluster: nothing is placed elsewhere before the seal, and nothing else is kept from working.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::from;
use lab::incus::{Cluster, IMAGE};
use lab::{Lab, Links, Topology, wait_for};
use rbd_guardian::config::Config;
use rbd_guardian::domain::guardian::gate::own_keys;
use rbd_guardian::incus::block_on;
use rbd_guardian::incus::client::Client;
use rbd_guardian::incus::gate::keys::{Written, put_keys};
use rbd_guardian::incus::gate::place::read;
use rbd_guardian::incus::gate::refusal::{Why, refusal};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rbd-guardian");
const MEMBERS: [&str; 3] = ["n1", "n2", "n3"];
const SOON: Duration = Duration::from_secs(60);
/// Incus looks for members to heal once a minute, and its first try may fail.
const HEALED: Duration = Duration::from_secs(180);
const SITE: &str = "# of the site\nPREFERRED = \"n1\"\n\ndef instance_placement(request, candidate_members):\n\tlog_info('''placing\n%s''' % request.name)\n\tfor member in candidate_members:\n\t\tif request.config.get(\"user.prefers\", \"\") == member.server_name:\n\t\t\tset_target(member.server_name)\n";

struct Site {
    lab: Lab,
    cluster: Cluster,
    config: PathBuf,
}

impl Site {
    fn start() -> Self {
        let lab = Topology::apart().start().unwrap();
        let cluster = lab.incus(&MEMBERS).unwrap();
        let config = lab.dir().join("guardian.toml");
        let site = Self { lab, cluster, config };
        let at = |name: &str| site.lab.dir().join(name).display().to_string();
        let configure = |endpoints: &str| {
            let files = ["guardian.crt", "guardian.key", "cluster.crt"].map(at);
            let text = format!(
                "[incus]\nendpoints = [{endpoints}]\ncertificate = {:?}\nkey = {:?}\ncluster_certificate = {:?}\n",
                files[0], files[1], files[2]
            );
            fs::write(&site.config, text).unwrap();
        };
        configure("");
        let token = site.cluster.trust("rbd-guardian").unwrap();
        let (exit, answer, said) = site.guardian(&["incus", "enroll", &token]);
        assert_eq!(exit, 0, "{said}");
        let endpoints: Vec<_> =
            answer["endpoints"].as_array().unwrap().iter().map(Value::to_string).collect();
        configure(&endpoints.join(", "));
        site
    }

    fn guardian(&self, words: &[&str]) -> (i32, Value, String) {
        let mut verb = self.lab.host("guard").bounded(PROGRAM, SOON);
        verb.arg("--config").arg(&self.config).arg("--json").args(words);
        let output = verb.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        println!("{words:?}: {said}{}", String::from_utf8_lossy(&output.stdout));
        (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
    }

    fn gate(&self, verb: &str) -> (i32, Value) {
        let (exit, answer, _) = self.guardian(&["gate", verb]);
        (exit, answer)
    }

    /// On a member that can be reached.
    fn incus(&self, words: &[&str]) -> anyhow::Result<String> {
        self.cluster.live()?.incus(words)
    }

    fn scriptlet(&self) -> Option<String> {
        let server = self.cluster.live().unwrap().query("/1.0").unwrap();
        server["config"]["instances.placement.scriptlet"].as_str().map(str::to_owned)
    }

    fn project(&self) -> Value {
        let mut project = self.cluster.live().unwrap().query("/1.0/projects/default").unwrap();
        project.as_object_mut().unwrap().remove("used_by");
        project
    }

    /// Adds keys to those that are there.
    fn put(&self, more: &[(&str, &str)]) -> Written {
        let client = Client::open(&Config::load(Some(&self.config)).unwrap().incus).unwrap();
        let put = || {
            block_on(async {
                let view = read(&client).await.unwrap();
                let mut keys: BTreeMap<String, String> = own_keys(&view);
                keys.extend(
                    more.iter().map(|(key, value)| (format!("user.rbd-guardian.{key}"), (*value).to_owned())),
                );
                let epoch = rbd_guardian::domain::guardian::gate::epoch(&view) + 1;
                let written = put_keys(&client, &keys, epoch).await;
                assert!(
                    matches!(put_keys(&client, &keys, epoch).await, Written::Stale { .. }),
                    "an epoch twice"
                );
                written
            })
            .unwrap()
        };
        from(self.lab.host("guard"), put)
    }

    /// From the listing, which does not ask the instance's own member alone.
    fn location(&self, name: &str) -> String {
        wait_for("a listing", SOON, || {
            let listed = self.cluster.live()?.query("/1.0/instances?recursion=1")?;
            let here = listed.as_array().into_iter().flatten().find(|instance| instance["name"] == name);
            Ok(here.and_then(|instance| instance["location"].as_str().map(str::to_owned)))
        })
        .unwrap()
    }
}

#[test]
fn nothing_is_placed_elsewhere_before_the_seal() {
    let site = Site::start();
    let mut began = Instant::now();
    let mut stage = |what: &str| {
        println!("{what}: {:.1} s", began.elapsed().as_secs_f64());
        began = Instant::now();
    };
    let leader = site.cluster.leader().unwrap();
    let others: Vec<&str> = MEMBERS.into_iter().filter(|name| *name != leader).collect();
    let (lost, other) = (others[0], others[1]);
    // A member without instances is healed without asking anybody, and then counts as evacuated.
    site.cluster.set(&[("cluster.healing_threshold", "0")]).unwrap();
    site.incus(&["project", "set", "default", "user.of-the-site", "kept"]).unwrap();
    site.incus(&["config", "set", "instances.placement.scriptlet", SITE]).unwrap();
    let before = (site.scriptlet(), site.project());

    // A member that is down while it is installed.
    site.cluster.member(lost).kill_daemon().unwrap();
    site.cluster.wait_for_status(lost, "Offline", SOON).unwrap();
    let (exit, answer) = site.gate("install");
    assert_eq!((exit, answer["state"].as_str()), (3, Some("partial")), "{answer}");
    site.cluster.member(lost).start_daemon().unwrap();
    site.cluster.wait_for_status(lost, "Online", SOON).unwrap();
    stage("installed while a member was down");
    let (exit, _) = site.gate("install");
    assert_eq!(exit, 0);
    let installed = site.scriptlet();
    let (exit, answer) = site.gate("install");
    assert_eq!((exit, site.scriptlet()), (0, installed), "nothing is done twice");
    assert_eq!(answer["site_scriptlet"].as_str(), Some(SITE));
    assert_eq!(answer["members"].as_object().unwrap().len(), 3);

    // A cut-off member shows with the next change of any key what it does not run.
    site.lab.cut_links(lost, Links::Incus).unwrap();
    site.cluster.wait_for_status(lost, "Offline", SOON).unwrap();
    assert_eq!(site.guardian(&["gate", "remove"]).0, 3);
    assert_eq!((site.scriptlet(), site.project()), before, "as it was, byte for byte");
    assert_eq!(site.gate("install").0, 3);
    site.lab.heal_links(lost, Links::Incus).unwrap();
    site.cluster.wait_for_status(lost, "Online", SOON).unwrap();
    site.cluster.set(&[("user.any", "key")]).unwrap();
    let (exit, answer) = site.gate("show");
    let shows = answer["members"][lost].as_str().unwrap_or_default().contains("does not run it");
    assert!(exit == 3 && shows, "{answer}");
    assert_eq!(site.gate("install").0, 0);
    stage("a member that only shows it");

    // A healthy cluster.
    assert_eq!(site.put(&[("pools", "")]), Written::Applied);
    site.incus(&["create", IMAGE, "free"]).unwrap();
    site.incus(&["create", IMAGE, "wished", "--config", &format!("user.prefers={other}")]).unwrap();
    assert_eq!(site.location("wished"), other, "the site's scriptlet is asked");
    site.incus(&["move", "wished", "--target", lost]).unwrap();
    assert_eq!(site.location("wished"), lost);
    site.incus(&["copy", "wished", "copied"]).unwrap();
    site.incus(&["snapshot", "create", "wished", "s1"]).unwrap();
    for name in ["wished", "copied", "free"] {
        site.incus(&["delete", name]).unwrap();
    }
    let container = site.cluster.launch("c1", lost).unwrap();
    container.wait_for_writer(lost, SOON).unwrap();
    site.incus(&["cluster", "evacuate", lost, "--force"]).unwrap();
    assert_ne!(site.location("c1"), lost);
    site.incus(&["cluster", "restore", lost, "--force"]).unwrap();
    assert_eq!(site.location("c1"), lost);
    container.wait_for_writer(lost, SOON).unwrap();
    stage("a healthy cluster");

    // A lost member.
    let log = site.lab.dir().join("monitor.json");
    let mut monitor = site.cluster.member(&leader).client(HEALED * 3);
    monitor
        .args(["monitor", "--type=logging", "--format=json"])
        .stdout(Stdio::from(File::create(&log).unwrap()));
    let mut monitor = monitor.spawn().unwrap();
    site.cluster.set(&[("cluster.healing_threshold", "15")]).unwrap();
    site.lab.cut_links(lost, Links::Incus).unwrap();
    site.cluster.wait_for_status(lost, "Offline", SOON).unwrap();
    let member = site.cluster.member(other);
    let refused = |what: Result<String, _>| {
        let error: anyhow::Error = what.expect_err("refused");
        refusal(&format!("{error:#}")).unwrap_or_else(|| panic!("{error:#}"))
    };
    let moved = refused(member.incus(&["move", "c1", "--target", other]));
    assert_eq!((moved.member.as_deref(), moved.why), (Some(lost), Why::NotSealed));
    wait_for("a refused heal", HEALED, || {
        let text = fs::read_to_string(&log)?;
        let healing =
            text.lines().filter(|line| line.contains("healing cluster") || line.contains("heal cluster"));
        Ok(healing.filter_map(refusal).find(|refusal| refusal.why == Why::NotSealed))
    })
    .unwrap();
    assert_eq!(site.location("c1"), lost);
    stage("a refused heal");

    let seal = format!("seal.{lost}");
    assert_eq!(site.put(&[(&seal, "sealed")]), Written::Applied);
    let moved = refused(member.incus(&["move", "c1", "--target", other]));
    assert_eq!(moved.why, Why::NotCovered("remote".to_owned()));
    assert_eq!(site.location("c1"), lost);
    assert_eq!(site.put(&[("pools", "remote")]), Written::Applied);
    wait_for("another location", HEALED, || Ok((site.location("c1") != lost).then_some(()))).unwrap();
    stage("healed after the seal");
    let _ = monitor.kill();
    let _ = monitor.wait();

    site.lab.heal_links(lost, Links::Incus).unwrap();
    let create = site.incus(&["create", IMAGE, "no", "--target", lost]);
    assert_eq!(refused(create).why, Why::TargetSealed);
    assert_eq!(site.project()["config"]["user.of-the-site"], json!("kept"));

    // A gate that was changed by hand.
    let edited = site.scriptlet().unwrap().replace("== \"sealed\"", "!= \"\"");
    site.incus(&["config", "set", "instances.placement.scriptlet", &edited]).unwrap();
    let (exit, _, said) = site.guardian(&["gate", "remove"]);
    assert!(exit == 4 && said.contains("+ ") && said.contains("!= \"\""), "{said}");
    let (_, _, said) = site.guardian(&["gate", "remove", "--force"]);
    assert!(said.contains("healing"), "{said}");
    assert_eq!((site.scriptlet(), site.project()), before, "as it was, byte for byte");
}
