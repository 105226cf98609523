//! The second Ceph release: its daemons run in the lab, and the machine's own tools work with them.

// Tests tell what they skip and what they measured.
#![allow(clippy::print_stderr)]

use std::fs;

use anyhow::{Context as _, Result};
use lab::release::second_release;
use lab::{Topology, monotonic};

#[test]
fn runs_and_serves_the_machines_own_tools() -> Result<()> {
    let release = match second_release() {
        Ok(release) => release,
        Err(reason) => {
            eprintln!("skipped: {reason:#}");
            return Ok(());
        }
    };
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let began = monotonic();
    let lab = Topology::small(&[]).release(&release).start()?;
    eprintln!("up after {:.1?}", monotonic() - began);

    let versions = lab.ceph(&["versions"])?;
    let overall = versions["overall"].as_object().context("no versions")?;
    assert_eq!(overall.values().filter_map(serde_json::Value::as_u64).sum::<u64>(), 5, "{versions}");
    assert!(overall.keys().all(|version| version.starts_with("ceph version 18.2.")), "{versions}");
    assert!(lab.rbd(&["--version"])?.starts_with("ceph version 18.2."));

    lab.ceph(&["osd", "pool", "create", "images", "8"])?;
    // By its path, it is the machine's own.
    for words in [
        ["pool", "init", "images"].as_slice(),
        &["create", "images/disk", "--size", "8M"],
        &["info", "images/disk"],
    ] {
        let done = lab
            .host("admin")
            .bounded("/usr/bin/rbd", std::time::Duration::from_secs(60))
            .args(words)
            .output()?;
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let own = lab.host("admin").command("/usr/bin/rbd").arg("--version").output()?;
    assert!(!String::from_utf8_lossy(&own.stdout).contains(" 18.2."));

    drop(lab);
    assert_eq!(fs::read_to_string("/proc/self/mounts")?, mounts, "mounts are left");
    assert_eq!(fs::read_dir(release.join("tmp"))?.count(), 0, "the release folder was written to");
    Ok(())
}
