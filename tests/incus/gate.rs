//! INV-2 on a real cluster: nothing is placed elsewhere before the seal, and nothing else is kept from working.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::process::Stdio;
use std::time::Instant;

use lab::incus::IMAGE;
use lab::{Links, Topology, wait_for};
use rbd_guardian::incus::block_on;
use rbd_guardian::incus::client::Client;
use rbd_guardian::incus::gate::keys::{self, KeysWrite, put_keys};
use rbd_guardian::incus::gate::refusal::{RefusalReason, refusal};
use rbd_guardian_core::model::epoch::GateEpoch;
use rbd_guardian_core::model::gate_keys::{GateContents, epoch};
use serde_json::{Value, json};

use crate::common::Answer;
use crate::common::guarded::{Guarded, HEALED, MEMBERS, SOON};
use crate::common::json::is_as_documented;
use crate::from;

const SITE: &str = "# of the site\nPREFERRED = \"n1\"\n\ndef instance_placement(request, candidate_members):\n\tlog_info('''placing\n%s''' % request.name)\n\tfor member in candidate_members:\n\t\tif request.config.get(\"user.prefers\", \"\") == member.server_name:\n\t\t\tset_target(member.server_name)\n";

/// On a member that can be reached.
fn incus(site: &Guarded, words: &[&str]) -> anyhow::Result<String> {
    site.cluster.live()?.incus(words)
}

fn gate(site: &Guarded, verb: &str) -> (i32, Value) {
    let answer = site.guardian(&["gate", verb]);
    println!("gate {verb}: {} {}", answer.exit, answer.stderr);
    (answer.exit, answer.json)
}

fn scriptlet(site: &Guarded) -> Option<String> {
    let server = site.cluster.live().unwrap().query("/1.0").unwrap();
    server["config"]["instances.placement.scriptlet"].as_str().map(str::to_owned)
}

/// What the gate may have changed: the configuration of project `default`, and of each member.
fn configuration(site: &Guarded) -> (Value, Vec<Value>) {
    let live = site.cluster.live().unwrap();
    let project = live.query("/1.0/projects/default").unwrap();
    let members = live.query("/1.0/cluster/members?recursion=1").unwrap();
    let members = members.as_array().unwrap().iter().map(|member| member["config"].clone());
    (json!([project["config"], project["description"]]), members.collect())
}

/// Tells one member that it may take the instances of these, on these pools.
pub(crate) fn tell(site: &Guarded, at: &str, open: &[&str], pools: &[&str]) -> KeysWrite {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    let contents = GateContents {
        open: names(open),
        members: names(&MEMBERS),
        pools: names(pools),
        ..GateContents::default()
    };
    let client = Client::open(&site.incus()).unwrap();
    let put = async || {
        let (told, _) = keys::read(&client).await.unwrap();
        // One that was set by hand does not count.
        let next = told.values().map(epoch).filter(|epoch| *epoch < GateEpoch(1000)).max().unwrap().next();
        let written = put_keys(&client, at, &contents, next, || true).await;
        let again = put_keys(&client, at, &contents, next, || true).await;
        assert!(matches!(again, KeysWrite::Stale { .. }), "an epoch twice: {again:?}");
        written
    };
    from(site.lab().host("guard"), || block_on(put()).unwrap())
}

#[test]
fn nothing_is_placed_elsewhere_before_the_seal() {
    let site = Guarded::without_daemon(Topology::apart());
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
    incus(&site, &["project", "set", "default", "user.of-the-site=kept"]).unwrap();
    incus(&site, &["config", "set", &format!("instances.placement.scriptlet={SITE}")]).unwrap();
    let before = (scriptlet(&site), configuration(&site));

    // A member that is down while it is installed.
    site.cluster.member(lost).kill_daemon().unwrap();
    site.cluster.wait_for_status(lost, "Offline", SOON).unwrap();
    let (exit, answer) = gate(&site, "install");
    assert_eq!((exit, answer["state"].as_str()), (3, Some("partial")), "{answer}");
    site.cluster.member(lost).start_daemon().unwrap();
    site.cluster.wait_for_status(lost, "Online", SOON).unwrap();
    stage("installed while a member was down");
    let (exit, _) = gate(&site, "install");
    assert_eq!(exit, 0);
    let installed = scriptlet(&site);
    let (exit, answer) = gate(&site, "install");
    assert_eq!((exit, scriptlet(&site)), (0, installed), "nothing is done twice");
    assert_eq!(answer["site_scriptlet"].as_str(), Some(SITE));
    is_as_documented("gate", &answer);
    assert_eq!(answer["members"].as_object().unwrap().len(), 3);

    // A cut-off member shows with the next change of any key what it does not run.
    site.lab().cut_links(lost, Links::Incus).unwrap();
    site.cluster.wait_for_status(lost, "Offline", SOON).unwrap();
    assert_eq!(gate(&site, "remove").0, 3);
    assert_eq!((scriptlet(&site), configuration(&site)), before, "as it was, byte for byte");
    assert_eq!(gate(&site, "install").0, 3);
    site.lab().heal_links(lost, Links::Incus).unwrap();
    site.cluster.wait_for_status(lost, "Online", SOON).unwrap();
    site.cluster.set(&[("user.any", "key")]).unwrap();
    // One that is back may need longer than a probe waits for its first answer.
    wait_for("what the member runs", SOON, || {
        let (exit, answer) = gate(&site, "show");
        let shows = answer["members"][lost].as_str().unwrap_or_default().contains("does not run it");
        Ok((exit == 3 && shows).then_some(()))
    })
    .unwrap();
    assert_eq!(gate(&site, "install").0, 0);
    stage("a member that only shows it");

    // A healthy cluster.
    incus(&site, &["create", IMAGE, "free"]).unwrap();
    incus(&site, &["create", IMAGE, "wished", "--config", &format!("user.prefers={other}")]).unwrap();
    assert_eq!(site.listed("wished"), other, "the site's scriptlet is asked");
    incus(&site, &["move", "wished", "--target", lost]).unwrap();
    assert_eq!(site.listed("wished"), lost);
    incus(&site, &["copy", "wished", "copied"]).unwrap();
    incus(&site, &["snapshot", "create", "wished", "s1"]).unwrap();
    for name in ["wished", "copied", "free"] {
        incus(&site, &["delete", name]).unwrap();
    }
    let container = site.cluster.launch("c1", lost).unwrap();
    container.wait_for_writer(lost, SOON).unwrap();
    incus(&site, &["cluster", "evacuate", lost, "--force"]).unwrap();
    assert_ne!(site.listed("c1"), lost);
    incus(&site, &["cluster", "restore", lost, "--force"]).unwrap();
    assert_eq!(site.listed("c1"), lost);
    container.wait_for_writer(lost, SOON).unwrap();
    stage("a healthy cluster");

    // A lost member.
    let log = site.lab().dir().join("monitor.json");
    let mut monitor = site.cluster.member(&leader).client(HEALED * 3);
    monitor
        .args(["monitor", "--type=logging", "--format=json"])
        .stdout(Stdio::from(File::create(&log).unwrap()));
    let mut monitor = monitor.spawn().unwrap();
    site.cluster.set(&[("cluster.healing_threshold", "15")]).unwrap();
    site.lab().cut_links(lost, Links::Incus).unwrap();
    site.cluster.wait_for_status(lost, "Offline", SOON).unwrap();
    let member = site.cluster.member(other);
    let refused = |what: Result<String, _>| {
        let error: anyhow::Error = what.expect_err("refused");
        refusal(&format!("{error:#}")).unwrap_or_else(|| panic!("{error:#}"))
    };
    let moved = refused(member.incus(&["move", "c1", "--target", other]));
    assert_eq!((moved.member.as_deref(), moved.why), (Some(lost), RefusalReason::NotSealed));
    wait_for("a refused heal", HEALED, || {
        let text = fs::read_to_string(&log)?;
        let healing =
            text.lines().filter(|line| line.contains("healing cluster") || line.contains("heal cluster"));
        Ok(healing.filter_map(refusal).find(|refusal| refusal.why == RefusalReason::NotSealed))
    })
    .unwrap();
    assert_eq!(site.listed("c1"), lost);
    stage("a refused heal");

    // Keys that no guardian wrote open nothing: in the project, and at a member without the epoch of its other keys.
    let seal = format!("user.rbd-guardian.seal.{lost}");
    let not_sealed = |at: &str| {
        let moved = refused(member.incus(&["move", "c1", "--target", at]));
        assert_eq!((moved.member.as_deref(), moved.why), (Some(lost), RefusalReason::NotSealed), "to {at}");
        assert_eq!(site.listed("c1"), lost);
    };
    incus(&site, &["project", "set", "default", &format!("{seal}=sealed")]).unwrap();
    not_sealed(other);
    let (_, answer) = gate(&site, "show");
    assert_eq!(answer["project"][&seal], "sealed", "{answer}");
    incus(&site, &["project", "unset", "default", &seal]).unwrap();
    incus(&site, &["cluster", "set", other, &format!("{seal}=sealed")]).unwrap();
    not_sealed(other);

    // A write that has reached one member only opens that one.
    assert_eq!(tell(&site, &leader, &[lost], &[]), KeysWrite::Applied);
    not_sealed(other);
    assert_eq!(tell(&site, &leader, &[], &["remote"]), KeysWrite::Applied);
    assert_eq!(tell(&site, other, &[lost], &[]), KeysWrite::Applied);
    not_sealed(&leader);
    let moved = refused(member.incus(&["move", "c1", "--target", other]));
    assert_eq!(moved.why, RefusalReason::NotCovered("remote".to_owned()));
    assert_eq!(site.listed("c1"), lost);
    // No epoch that somebody set keeps a guardian from writing.
    let set = format!("user.rbd-guardian.epoch={}", u64::MAX);
    incus(&site, &["cluster", "set", other, &set]).unwrap();
    assert_eq!(tell(&site, other, &[lost], &["remote"]), KeysWrite::Applied);
    wait_for("another location", HEALED, || Ok((site.listed("c1") != lost).then_some(()))).unwrap();
    assert_eq!(site.listed("c1"), other, "only that one may take it");
    stage("healed after the seal");
    let _ = monitor.kill();
    let _ = monitor.wait();

    site.lab().heal_links(lost, Links::Incus).unwrap();
    // Sealed by the word of any member; what one that is lost is told is of the database, as everything of it is.
    for (told, next) in [(other, Some(lost)), (lost, None)] {
        let create = incus(&site, &["create", IMAGE, "no", "--target", lost]);
        assert_eq!(refused(create).why, RefusalReason::TargetSealed, "{told} is told that {lost} is sealed");
        if let Some(next) = next {
            assert_eq!(tell(&site, next, &[lost], &["remote"]), KeysWrite::Applied);
        }
        assert_eq!(tell(&site, told, &[], &["remote"]), KeysWrite::Applied);
    }
    assert_eq!(configuration(&site).0[0]["user.of-the-site"], json!("kept"));

    // A gate that was changed by hand.
    let edited = scriptlet(&site).unwrap().replace("== epoch", "!= \"\"");
    incus(&site, &["config", "set", &format!("instances.placement.scriptlet={edited}")]).unwrap();
    let Answer { exit, stderr: said, .. } = site.guardian(&["gate", "remove"]);
    assert!(exit == 4 && said.contains("+ ") && said.contains("!= \"\""), "{said}");
    // Nothing is sent while the member that is back counts as alive and does not answer yet.
    let removed = wait_for("the gate to be removed", SOON, || {
        let answer = site.guardian(&["gate", "remove", "--force"]);
        Ok((answer.exit == 0).then_some(answer.stderr))
    });
    assert!(removed.as_ref().is_ok_and(|said| said.contains("healing")), "{removed:?}");
    assert_eq!((scriptlet(&site), configuration(&site)), before, "as it was, byte for byte");
}
