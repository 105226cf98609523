//! The lab's own tests: what the tests of the guardian take for granted.

#![allow(clippy::disallowed_methods, clippy::print_stderr)] // A test runs programs.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Errno, Lab, ObjectStore, Pool, Role, Topology, WriteLog as _, monotonic, wait_for};

const SOON: Duration = Duration::from_secs(30);

fn with_image(clients: &[&str]) -> Result<Lab> {
    let lab = Topology::small(clients).start()?;
    lab.pool("images", Pool::replicated(16, 2))?;
    lab.image("images", "img", 8)?;
    Ok(lab)
}

fn block(lab: &Lab, address: &str) -> Result<()> {
    lab.ceph(&["osd", "blocklist", "add", address]).map(drop)
}

#[test]
fn a_cut_host_writes_nothing_until_it_is_healed() -> Result<()> {
    let lab = with_image(&["n1"])?;
    let writer = lab.host("n1").writer("images", "img", 8)?;
    writer.wait_for_acks(100, SOON)?;
    lab.cut("n1")?;
    // Each command is answered long after a write would have been. Answers that had arrived are heard during the first.
    lab.content_hash("images", "img")?;
    let heard = writer.acked()?;
    for _ in 0..3 {
        lab.content_hash("images", "img")?;
    }
    let hash = lab.content_hash("images", "img")?;
    ensure!(writer.acked()? == heard, "acknowledged through a cut cable: {}", writer.acked()? - heard);
    lab.heal("n1")?;
    writer.wait_for_acks(100, SOON)?;
    ensure!(lab.content_hash("images", "img")? != hash, "healed, and yet nothing was written");
    lab.cut_pair("n1", "store")?;
    let hash = lab.content_hash("images", "img")?;
    ensure!(lab.content_hash("images", "img")? == hash, "written through a filter");
    lab.heal_pair("n1", "store")?;
    writer.wait_for_acks(100, SOON)?;
    ensure!(writer.errors()?.is_empty(), "errors: {:?}", writer.errors()?);
    Ok(())
}

#[test]
fn a_blocklisted_writer_hears_it_and_its_blocks_are_told_apart() -> Result<()> {
    let lab = with_image(&["n1", "n2"])?;
    let first = lab.host("n1").writer("images", "img", 4)?;
    first.wait_for_acks(50, SOON)?;
    let before = monotonic();
    block(&lab, first.client_address())?;
    ensure!(first.wait_for_error(before, SOON)? == Errno::ESHUTDOWN);
    let seen = lab.content("images", "img")?;
    ensure!(seen.torn.is_empty() && seen.newest(first.id()).is_some(), "{seen:?}");
    ensure!(lab.content("images", "img")? == seen, "it changed after the block");
    let on_disk = seen.blocks.values().flatten().copied().collect();
    ensure!(first.acked_numbers()?.is_superset(&on_disk), "on disk and not acknowledged");

    let second = lab.host("n2").writer("images", "img", 4)?;
    second.wait_for_acks(50, SOON)?;
    ensure!(lab.content("images", "img")?.blocks.contains_key(&second.id()));
    Ok(())
}

#[test]
fn daemons_stop_go_on_die_and_start() -> Result<()> {
    let three = Topology::new()
        .host("m1", &[Role::Mon("a"), Role::Mgr("x"), Role::Osd(0)])
        .host("m2", &[Role::Mon("b"), Role::Mgr("y"), Role::Osd(1)])
        .host("m3", &[Role::Mon("c"), Role::Mds("a"), Role::Osd(2)]);
    let lab = three.start()?;
    lab.pool("images", Pool::replicated(8, 3))?;
    let mut client = lab.host("admin").idle_client("images")?;
    let osd = lab.daemon("osd.0").pid()?;
    let command = fs::read(format!("/proc/{osd}/cmdline"))?;
    ensure!(
        command.starts_with(b"ceph-osd\0"),
        "{osd} is not the OSD itself: {}",
        String::from_utf8_lossy(&command)
    );

    ensure!(client.try_write("before")? == Ok(()));
    lab.daemon("osd.0").stop()?;
    wait_for("the OSD to be seen as stopped", SOON, || {
        Ok(fs::read_to_string(format!("/proc/{osd}/stat"))?.contains(") T ").then_some(()))
    })?;
    lab.daemon("osd.0").cont()?;
    ensure!(client.try_write("after")? == Ok(()));

    let leader = lab.mon_leader()?;
    lab.daemon(&leader).kill()?;
    wait_for("another leader", SOON, || Ok((lab.mon_leader()? != leader).then_some(())))?;
    lab.daemon(&leader).start()?;
    lab.wait_until_up()
}

#[test]
fn an_idle_client_is_refused_on_ipv6_too() -> Result<()> {
    let lab = Topology::small(&["n1"]).ipv6().start()?;
    lab.pool("images", Pool::replicated(1, 2))?;
    let mut client = lab.host("n1").idle_client("images")?;
    ensure!(client.address().starts_with(&format!("[{}]:0/", lab.host("n1").ip())), "{}", client.address());
    ensure!(client.try_write("o")? == Ok(()));
    block(&lab, &format!("[{}]:0/0", lab.host("n1").ip()))?;
    wait_for("the refusal", SOON, || Ok((client.try_write("o")? == Err(Errno::ESHUTDOWN)).then_some(())))
}

#[test]
fn a_disk_can_be_mounted_and_handed_over() -> Result<()> {
    let lab = Topology::small(&["n1", "n2"]).start()?;
    lab.pool("images", Pool::replicated(8, 2))?;
    lab.pool("coded", Pool::erasure_coded(8))?;
    lab.image_with("images", "img", 64, &["--image-feature=layering", "--data-pool=coded"])?;
    let folder = lab.dir().join("mnt");
    let mut disk = lab.host("n1").map("images", "img")?;
    disk.mkfs_ext4()?;
    disk.mount(&folder)?;
    fs::write(lab.host("n1").root().join(folder.strip_prefix("/")?).join("file"), "of n1")?;
    ensure!(!folder.join("file").exists(), "the mount is seen outside of its host");
    let watchers = lab.watchers("images", "img")?;
    ensure!(
        watchers.len() == 1 && watchers[0].address.starts_with(&format!("{}:0/", lab.host("n1").ip())),
        "{watchers:?}"
    );
    disk.umount()?;
    drop(disk);

    let mut disk = lab.host("n2").map("images", "img")?;
    disk.mount(&folder)?;
    ensure!(
        fs::read_to_string(lab.host("n2").root().join(folder.strip_prefix("/")?).join("file"))? == "of n1"
    );
    // A disk whose client is refused must not keep the lab from ending.
    block(&lab, &format!("{}:0/0", lab.host("n2").ip()))?;
    let device = disk.path().to_owned();
    let dir = lab.dir().to_owned();
    drop(lab);
    ensure!(!dir.exists() && left_of(&dir)?.is_empty(), "left: {:?}, {}", left_of(&dir)?, device.display());
    Ok(())
}

#[test]
fn a_disk_that_hangs_can_still_be_dropped() -> Result<()> {
    let lab = with_image(&["n1"])?;
    let folder = lab.dir().join("mnt");
    let mut disk = lab.host("n1").map("images", "img")?;
    disk.mkfs_ext4()?;
    disk.mount(&folder)?;
    lab.cut("n1")?;
    let copied = lab.host("n1").bounded("cp", SOON).arg("/bin/sh").arg(&folder).output()?;
    ensure!(copied.status.success(), "a copy into the cache: {copied:?}");
    let began = monotonic();
    drop(disk);
    drop(lab);
    ensure!(monotonic() - began < SOON, "it took {:?}", monotonic() - began);
    Ok(())
}

#[test]
fn two_labs_with_the_same_addresses_do_not_meet() -> Result<()> {
    thread::scope(|scope| {
        let labs = [(); 2].map(|()| scope.spawn(|| with_image(&["n1"])));
        let [one, two] = labs.map(|lab| lab.join().expect("no panic"));
        let (one, two) = (one?, two?);
        ensure!(one.host("n1").ip() == two.host("n1").ip() && one.dir() != two.dir());
        ensure!(one.ceph(&["fsid"])? != two.ceph(&["fsid"])?);
        let writer = two.host("n1").writer("images", "img", 4)?;
        block(&one, &format!("{}:0/0", one.host("n1").ip()))?;
        one.cut("n1")?;
        drop(one);
        writer.wait_for_acks(50, SOON)?;
        ensure!(writer.errors()?.is_empty());
        Ok(())
    })
}

#[test]
fn on_bluestore_an_osd_survives_its_death() -> Result<()> {
    let lab = Topology::small(&[]).objectstore(ObjectStore::Bluestore).start()?;
    lab.pool("images", Pool::replicated(8, 1))?;
    lab.image("images", "img", 8)?;
    let writer = lab.host("admin").writer("images", "img", 4)?;
    writer.wait_for_acks(200, SOON)?;
    for osd in ["osd.0", "osd.1", "osd.2"] {
        lab.daemon(osd).kill()?;
        lab.daemon(osd).start()?;
    }
    lab.wait_until_up()?;
    lab.wait_until_clean("images")?;
    writer.wait_for_acks(200, SOON)?;
    ensure!(lab.content("images", "img")?.torn.is_empty());
    Ok(())
}

/// Not a test: what the next one kills.
#[test]
#[ignore = "run by nothing_is_left_after_sigkill, which ends it"]
fn a_lab_that_is_held() -> Result<()> {
    let lab = with_image(&["n1"])?;
    let writer = lab.host("n1").writer("images", "img", 4)?;
    let mut disk = lab.host("n1").map("images", "img")?;
    disk.mkfs_ext4()?;
    disk.mount(&lab.dir().join("mnt"))?;
    lab.daemon("osd.1").stop()?;
    eprintln!("held: {} {}", lab.dir().display(), lab.init_pid());
    thread::park();
    drop(writer);
    Ok(())
}

#[test]
fn nothing_is_left_after_sigkill() -> Result<()> {
    let mut holder = Command::new(std::env::current_exe()?)
        .args(["--exact", "a_lab_that_is_held", "--ignored", "--nocapture"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = BufReader::new(holder.stderr.take().context("no pipe")?);
    let held =
        stderr.lines().map_while(Result::ok).find_map(|line| line.strip_prefix("held: ").map(str::to_owned));
    let held = held.context("the lab was not started")?;
    let (dir, init) = held.split_once(' ').context("no pid")?;
    let namespaces = namespaces_of(init)?;
    ensure!(!left_of(Path::new(dir))?.is_empty(), "the test would not see anything");
    holder.kill()?;
    holder.wait()?;
    wait_for("everything of the lab to go", SOON, || {
        let left = left_of(Path::new(dir))?;
        ensure!(left.is_empty() && !Path::new(dir).exists(), "left: {left:?}");
        let inhabited: Vec<_> =
            pids()?.filter(|pid| namespaces_of(pid).is_ok_and(|others| others == namespaces)).collect();
        ensure!(inhabited.is_empty(), "in its pid namespace: {inhabited:?}");
        Ok(Some(()))
    })
}

fn pids() -> Result<impl Iterator<Item = String>> {
    let names = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())))
}

fn namespaces_of(pid: &str) -> Result<u64> {
    Ok(fs::metadata(format!("/proc/{pid}/ns/pid"))?.ino())
}

/// Processes that name a lab's directory, in their arguments or in their mounts, and loop devices that stand on it.
fn left_of(dir: &Path) -> Result<Vec<String>> {
    let dir = dir.to_str().context("a path")?;
    let mut left = Vec::new();
    for pid in pids()? {
        for (file, what) in [("cmdline", "process"), ("mounts", "mount in"), ("environ", "environment of")] {
            let text = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            if String::from_utf8_lossy(&text).contains(dir) {
                left.push(format!("{what} {pid}"));
            }
        }
    }
    for device in fs::read_dir("/sys/block")? {
        let device = device?;
        if fs::read_to_string(device.path().join("loop/backing_file")).is_ok_and(|file| file.starts_with(dir))
        {
            left.push(device.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(left)
}
