//! Members that come back before Incus has healed them: one that was not fenced never notices, one that was is shown
//! as stranded, with commands that work.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::incus::{Container, ContainerWriter};
use lab::{Links, Topology, WriteLog as _, monotonic, wait_for};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::common::guarded::{Guarded, HEALED, MEMBERS, SOON, alarm, member};

/// From `Online` to the alarm.
const TOLD: Duration = Duration::from_secs(5);

/// A healing that is not due while a test looks.
const LATER: &str = "120";
const DUE: &str = "15";

#[test]
fn inv6_who_incus_would_leave_alone_is_not_fenced_and_who_is_stranded_is_told_what_to_do() {
    let site = Guarded::start(Topology::apart());
    let recordings = records(&site);
    let leader = site.cluster.leader().unwrap();
    let lost = MEMBERS.into_iter().find(|name| *name != leader).unwrap();
    let [first, second] = ["c1", "c2"].map(|name| site.cluster.launch(name, lost).unwrap());
    let writers = [&first, &second].map(|container| container.wait_for_writer(lost, SOON).unwrap());
    site.wait_until_known(lost);
    let began = monotonic();
    let stage = |what: &str| println!("{:.1} s: {what}", (monotonic() - began).as_secs_f64());

    site.cluster.set(&[("cluster.healing_threshold", LATER)]).unwrap();
    for links in [Links::Both, Links::Incus] {
        site.lab().cut_links(lost, links).unwrap();
        site.cluster.wait_for_status(lost, "Offline", SOON).unwrap();
        site.wait_for_state(lost, "suspect", SOON);
        site.lab().heal_links(lost, links).unwrap();
        site.cluster.wait_for_status(lost, "Online", SOON).unwrap();
        site.wait_for_state(lost, "watching", SOON);
        never_noticed(&site, lost, &writers);
        stage(&format!("{links:?} cut until it was offline"));
    }
    site.cluster.set(&[("cluster.healing_threshold", DUE)]).unwrap();
    without_the_storage(&site, lost, &writers);
    stage("Ceph cut for longer than both thresholds");

    // Sealed, and back before its healing, which would take its instances in the moment in which it is sealed.
    site.cluster.set(&[("cluster.healing_threshold", LATER)]).unwrap();
    site.lab().cut_links(lost, Links::Incus).unwrap();
    site.wait_for_state(lost, "suspect", SOON);
    site.guardian(&["fence", lost, "--reason", "its link is cut"]).expect(0);
    site.lab().heal_links(lost, Links::Incus).unwrap();
    site.cluster.wait_for_status(lost, "Online", SOON).unwrap();
    let online = monotonic();
    let status = site.wait_for_state(lost, "stranded", TOLD);
    stage(&format!("stranded, {:.2?} after it was online", monotonic() - online));
    let stranded = alarm(&status, "stranded", lost);
    println!("{stranded:#}");
    for writer in &writers {
        writer.wait_for_error(Duration::ZERO, SOON).unwrap();
    }
    follow(&site, &stranded, &first);
    stage("its commands were typed");
    assert_ne!(first.location().unwrap(), lost);
    site.wait_for_status("the second one alone to be stranded", SOON, |status| {
        let alarm = alarm(status, "stranded", lost);
        let text = alarm["text"].as_str().unwrap_or_default();
        text.contains("c2") && !text.contains("c1")
    });
    let after = monotonic();
    first.wait_for_writer(&first.location().unwrap(), SOON).unwrap().wait_for_acks(10, SOON).unwrap();
    for writer in &writers {
        assert_eq!(writer.acks_after(after).unwrap(), 0, "a stale container writes");
    }

    // The other way: its reboot releases it, and then what could not start is started.
    site.cluster.member(lost).reboot().unwrap();
    site.wait_for_state(lost, "watching", SOON);
    stage("released");
    // A member that booted while it was fenced tries its storage pool again once a minute.
    let again = wait_for("the second one's next start", HEALED, || {
        Ok(second.writers()?.into_iter().rfind(|writer| writer.id() != writers[1].id()))
    });
    let again = again.unwrap_or_else(|error| panic!("{error:#}: {}", site.log_text()));
    assert_eq!((again.member(), second.location().unwrap().as_str()), (lost, lost));
    again.wait_for_acks(10, SOON).unwrap();
    stage("the second one runs again");
    replays(&site, &recordings, "stranded");
    for container in [&first, &second] {
        site.cluster.live().unwrap().incus(&["stop", container.name(), "--force"]).unwrap();
        let disk = site.lab().disk(container).unwrap();
        assert!(disk.status == 0 && disk.torn.is_empty(), "{disk:?}");
        for writer in container.writers().unwrap() {
            if let Some(last) = writer.acked_numbers().unwrap().last() {
                assert!(disk.blocks[&writer.id()].contains(last), "{last} of {writer:?} is lost");
            }
        }
    }
}

/// From here on the daemon saves its recordings there.
fn records(site: &Guarded) -> PathBuf {
    let folder = site.path("recordings");
    fs::create_dir(&folder).unwrap();
    site.configure(&format!("recordings = {folder:?}"));
    site.stop_daemon();
    site.start_daemon();
    site.wait_until_watching();
    folder
}

/// All that the daemon decided is had again from what it took in. Kept for core/tests/replay where a folder is named.
fn replays(site: &Guarded, folder: &Path, name: &str) {
    site.with_daemon(|daemon| kill(daemon.pid(), Signal::SIGUSR1)).unwrap();
    let file = wait_for("a recording", SOON, || {
        let files = fs::read_dir(folder)?.map(|entry| entry.unwrap().path());
        Ok(files.into_iter().find(|file| file.to_str().unwrap().ends_with("-asked.jsonl.gz")))
    });
    let file = file.unwrap();
    let replayed = site.guardian(&["replay", file.to_str().unwrap()]).expect(0).json;
    println!("{} bytes: {replayed:#}", fs::metadata(&file).unwrap().len());
    if let Some(corpus) = std::env::var_os("GUARDIAN_CORPUS") {
        fs::copy(&file, PathBuf::from(corpus).join(name).with_extension("jsonl.gz")).unwrap();
    }
}

/// No fence, no entry, no error, no second start, and they go on.
#[track_caller]
fn never_noticed(site: &Guarded, lost: &str, writers: &[ContainerWriter]) {
    let status = site.status().unwrap();
    assert_eq!(status["fences"], Value::Array(Vec::new()), "{status:#}");
    assert!(site.site.blocklist().is_empty(), "{:?}", site.site.blocklist());
    assert_eq!(site.logged("intended", lost), Vec::<Value>::new());
    for writer in writers {
        writer.wait_for_acks(10, SOON).unwrap();
        assert!(writer.errors().unwrap().is_empty(), "{:?}", writer.errors().unwrap());
    }
    for container in ["c1", "c2"].map(|name| site.cluster.container(name)) {
        assert_eq!(container.writers().unwrap().len(), 1, "it was started again");
        assert_eq!(container.location().unwrap(), lost);
    }
}

/// Incus sees it, so it is not lost, whatever the storage sees.
fn without_the_storage(site: &Guarded, lost: &str, writers: &[ContainerWriter]) {
    site.lab().cut_links(lost, Links::Ceph).unwrap();
    let cut = monotonic();
    wait_for("the thresholds to pass", SOON, || {
        let status = site.status().unwrap();
        assert_eq!(member(&status, lost)["state"], "watching", "{status:#}");
        Ok((monotonic() > cut + Duration::from_secs(20)).then_some(()))
    })
    .unwrap();
    assert_eq!(site.cluster.status(lost).unwrap(), "Online");
    for writer in writers {
        assert_eq!(writer.taken_after(cut, 1).unwrap(), 0, "it wrote through a cut cable");
    }
    site.lab().heal_links(lost, Links::Ceph).unwrap();
    never_noticed(site, lost, writers);
}

/// Types the commands that an alarm advises for a container.
fn follow(site: &Guarded, stranded: &Value, container: &Container<'_>) {
    let advice = stranded["advice"].as_array().unwrap().iter().map(|line| line.as_str().unwrap());
    let its =
        |line: &&str| line.split_whitespace().any(|word| word.trim_end_matches(';') == container.name());
    let line = advice.filter(|line| line.starts_with("or incus ")).find(its).unwrap();
    for command in line.strip_prefix("or ").unwrap().split("; ") {
        let words: Vec<&str> = command.strip_prefix("incus ").unwrap().split(' ').collect();
        println!("typed: {command}");
        let live = site.cluster.live().unwrap();
        let Err(error) = live.incus(&words) else { continue };
        // What it says of the disk that cannot be written any more does not matter, as the alarm tells; what it did does.
        println!("said: {error:#}");
        match words[0] {
            "stop" => live
                .incus(&["info", container.name()])
                .map(|info| assert!(info.contains("STOPPED"), "{info}")),
            "move" => container.location().map(|location| assert_eq!(location, words[3])),
            _ => Err(error),
        }
        .unwrap();
    }
}
