//! The releases that are not this machine's own: their daemons run in the lab, tools and clients work with them, and nothing is left.

// Tests tell what they skip and what they measured.
#![allow(clippy::print_stderr)]

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Errno, Lab, Pool, Topology, World, WriteLog as _, monotonic};

const SOON: Duration = Duration::from_secs(60);

/// The folder of a world and a small lab of it; `None` where set-up has not prepared it.
fn lab(world: World) -> Result<Option<(std::path::PathBuf, Lab)>> {
    let folder = match world.folder() {
        Ok(folder) => folder.context("no folder")?,
        Err(reason) => {
            eprintln!("skipped: {reason:#}");
            return Ok(None);
        }
    };
    let began = monotonic();
    let lab = Topology::small(&["n1"]).world(world).start()?;
    eprintln!("{world:?} is up after {:.1?}", monotonic() - began);
    Ok(Some((folder, lab)))
}

/// Daemons and tools are of this version, and a client that is refused hears it.
fn serves(lab: &Lab, version: &str) -> Result<()> {
    let versions = lab.ceph(&["versions"])?;
    let overall = versions["overall"].as_object().context("no versions")?;
    assert_eq!(overall.values().filter_map(serde_json::Value::as_u64).sum::<u64>(), 5, "{versions}");
    let version = format!("ceph version {version}");
    assert!(overall.keys().all(|daemon| daemon.starts_with(&version)), "{versions}");
    assert!(lab.rbd(&["--version"])?.starts_with(&version));

    lab.pool("images", Pool::replicated(8, 2))?;
    lab.image("images", "img", 8)?;
    let writer = lab.host("n1").writer("images", "img", 4)?;
    writer.wait_for_acks(50, SOON)?;
    let before = monotonic();
    lab.ceph(&["osd", "blocklist", "add", writer.client_address()])?;
    ensure!(writer.wait_for_error(before, SOON)? == Errno::ESHUTDOWN);
    Ok(())
}

#[test]
fn the_second_release_serves_its_own_tools_and_the_machines() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let Some((folder, lab)) = lab(World::Second)? else { return Ok(()) };
    serves(&lab, "18.2.")?;
    // By its path, it is the machine's own.
    for words in [["create", "images/disk", "--size", "8M"].as_slice(), &["info", "images/disk"]] {
        let done = lab.host("admin").bounded("/usr/bin/rbd", SOON).args(words).output()?;
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let own = lab.host("admin").command("/usr/bin/rbd").arg("--version").output()?;
    assert!(!String::from_utf8_lossy(&own.stdout).contains(" 18.2."));
    drop(lab);
    assert_eq!(fs::read_to_string("/proc/self/mounts")?, mounts, "mounts are left");
    assert_eq!(fs::read_dir(folder.join("tmp"))?.count(), 0, "the folder was written to");
    Ok(())
}

#[test]
fn the_newest_release_is_the_root_of_its_lab() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let Some((folder, lab)) = lab(World::Newest)? else { return Ok(()) };
    serves(&lab, "20.2.")?;
    let dir = lab.dir().to_owned();
    let run = |program: &str, words: &[&str]| -> Result<String> {
        let done = lab.host("n1").bounded(program, SOON).args(words).output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8(done.stdout)?)
    };
    assert_eq!(run("/usr/bin/rbd", &["--version"])?, run("rbd", &["--version"])?);
    let own = run("chroot", &["/host", "rbd", "--version"])?;
    assert!(!own.contains(" 20.2."), "this machine's own lies below: {own}");
    run("touch", &["/usr/trace", "/root/trace"])?;
    drop(lab);
    assert_eq!(fs::read_to_string("/proc/self/mounts")?, mounts, "mounts are left");
    assert!(!folder.join("usr/trace").exists() && !folder.join("root/trace").exists(), "it was written to");
    assert!(!dir.exists(), "{} is left", dir.display());
    Ok(())
}
