//! The lab's machine with the kernel's own rbd driver: it boots, writes, is refused, hangs when cut off,
//! and leaves nothing.

// Tests tell what they skip and what they measured.
#![allow(clippy::print_stderr)]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::vm::{KrbdHost, Outcome};
use lab::{Errno, Lab, Topology, WriteLog as _, monotonic, wait_for};

const SOON: Duration = Duration::from_secs(30);

fn lab(ipv6: bool) -> Result<Lab> {
    let topology = Topology::small(&["v1"]);
    let lab = if ipv6 { topology.ipv6() } else { topology }.start()?;
    lab.ceph(&["osd", "pool", "create", "images", "8"])?;
    lab.rbd(&["pool", "init", "images"])?;
    lab.rbd(&["create", "images/disk", "--size", "8M", "--image-feature", "layering"])?;
    Ok(lab)
}

/// False, with the reason said, on a machine where set-up could not prepare the kernel.
fn can_boot() -> bool {
    KrbdHost::available().inspect_err(|reason| eprintln!("skipped: {reason}")).is_ok()
}

#[test]
fn writes_until_it_is_blocklisted() -> Result<()> {
    if !can_boot() {
        return Ok(());
    }
    let lab = lab(false)?;
    let began = monotonic();
    let host = KrbdHost::boot(&lab, "v1")?;
    let booted = monotonic();
    let disk = host.map("images", "disk")?;
    assert_eq!(disk.write_direct(3, SOON)?, Outcome::Acknowledged);
    let written = monotonic();
    eprintln!(
        "Linux {}: up after {:.1?}, first write after {:.1?}",
        host.kernel(),
        booted - began,
        written - began
    );
    assert!(lab.rbd(&["status", "images/disk"])?.contains(disk.client_address()));
    assert!(disk.client_address().starts_with(&host.ip().to_string()));

    let writer = disk.start_writer()?;
    writer.wait_for_acks(100, SOON)?;
    let before = monotonic();
    lab.ceph(&["osd", "blocklist", "add", disk.client_address()])?;
    assert_eq!(writer.wait_for_error(before, SOON)?, Errno::EIO);
    let refused = monotonic() + host.clock_error();
    let content = lab.content("images", "disk")?;
    assert_eq!(disk.write_direct(4, SOON)?, Outcome::Refused(Errno::EIO));
    wait_for("more errors", SOON, || Ok((writer.errors()?.len() > 10).then_some(())))?;
    assert_eq!(writer.acks_after(refused)?, 0);
    let newest = writer.log()?.iter().filter(|entry| entry.error.is_none()).map(|entry| entry.number).max();
    assert_eq!(content.newest(writer.id()), newest);
    writer.stop()?;

    // One checker reads what kernel and librbd writers leave.
    assert_eq!(lab.content("images", "disk")?, content);
    assert_eq!(content.torn, [] as [u64; 0]);
    disk.unmap()?;
    let pid = host.machine().pid();
    drop(host);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    Ok(())
}

#[test]
fn hangs_while_cut_off_and_writes_after() -> Result<()> {
    if !can_boot() {
        return Ok(());
    }
    let lab = lab(false)?;
    let host = KrbdHost::boot(&lab, "v1")?;
    let disk = host.map("images", "disk")?;
    let writer = disk.start_writer()?;
    writer.wait_for_acks(10, SOON)?;
    lab.cut("v1")?;
    assert_eq!(disk.write_direct(1, Duration::from_secs(2))?, Outcome::Hanging);
    // The machine itself answers all the same.
    assert_eq!(host.run("echo hello; exit 3", SOON)?, (3, "hello".to_owned()));
    lab.heal("v1")?;
    writer.wait_for_acks(10, SOON * 4)?;
    assert_eq!(disk.write_direct(2, SOON)?, Outcome::Acknowledged);
    Ok(())
}

#[test]
fn boots_again_as_another_client() -> Result<()> {
    if !can_boot() {
        return Ok(());
    }
    let lab = lab(false)?;
    let host = KrbdHost::boot(&lab, "v1")?;
    let before = host.map("images", "disk")?.client_address().to_owned();
    drop(host);
    let host = KrbdHost::boot(&lab, "v1")?;
    let disk = host.map("images", "disk")?;
    assert_eq!(disk.write_direct(1, SOON)?, Outcome::Acknowledged);
    assert_ne!(disk.client_address(), before);
    Ok(())
}

#[test]
fn speaks_ipv6() -> Result<()> {
    if !can_boot() {
        return Ok(());
    }
    let lab = lab(true)?;
    let host = KrbdHost::boot(&lab, "v1")?;
    let disk = host.map("images", "disk")?;
    assert!(disk.client_address().starts_with("[fd77::"), "{}", disk.client_address());
    assert_eq!(disk.write_direct(1, SOON)?, Outcome::Acknowledged);
    Ok(())
}

#[test]
fn says_why_it_cannot_map() -> Result<()> {
    if !can_boot() {
        return Ok(());
    }
    let lab = lab(false)?;
    let host = KrbdHost::boot(&lab, "v1")?;
    let error = host.map("images", "nothing").err().context("mapped an image that is not there")?;
    assert!(error.to_string().contains("No such file"), "{error:#}");
    Ok(())
}

#[test]
fn ends_with_the_lab() -> Result<()> {
    if !can_boot() {
        return Ok(());
    }
    let lab = lab(false)?;
    let host = KrbdHost::boot(&lab, "v1")?;
    let pid = host.machine().pid();
    drop(lab);
    wait_for("the emulator's end", SOON, || Ok(host.run("true", SOON).is_err().then_some(())))?;
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    Ok(())
}
