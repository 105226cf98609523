//! The lab's Incus: what the tests of the guardian's daemon take for granted.

#![allow(clippy::disallowed_methods, clippy::print_stderr)] // A test runs programs and tells how long things take.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::incus::{Cluster, Container, POOL};
use lab::{Lab, Links, Topology, WriteLog as _, monotonic, wait_for};

const SOON: Duration = Duration::from_secs(30);
const MEMBERS: [&str; 3] = ["n1", "n2", "n3"];
/// Incus looks for members to heal once a minute; a new leader needs half of one, and its first try may fail.
const HEALED: Duration = Duration::from_secs(180);

/// Tells how long a stage took.
fn stage(began: &mut Instant, what: &str) {
    eprintln!("{what}: {:.1} s", began.elapsed().as_secs_f64());
    *began = Instant::now();
}

fn started(topology: Topology) -> Result<(Lab, Instant)> {
    let mut began = Instant::now();
    let lab = topology.start()?;
    stage(&mut began, "Ceph");
    Ok((lab, began))
}

/// A member that does not lead: a heal comes sooner when one of those is lost.
fn follower(cluster: &Cluster) -> Result<&'static str> {
    let leader = cluster.leader()?;
    MEMBERS.into_iter().find(|name| *name != leader).context("nobody else")
}

fn answers_ping(lab: &Lab, from: &str, to: &str) -> Result<bool> {
    let to = lab.host(to).incus_ip().context("no link for Incus")?.to_string();
    let ping = lab.host(from).command("ping").args(["-w1", "-c1", "-n", "-q", &to]).output()?;
    Ok(ping.status.success())
}

/// The addresses of an image's watchers are of these hosts, one each.
fn watched_from(lab: &Lab, container: &Container<'_>, hosts: &[&str]) -> Result<()> {
    let watchers = lab.watchers(POOL.1, &container.image())?;
    let from = |host: &&str| {
        let ip = lab.host(host).ip();
        let prefix = if ip.is_ipv6() { format!("[{ip}]:0/") } else { format!("{ip}:0/") };
        watchers.iter().filter(|watcher| watcher.address.starts_with(&prefix)).count() == 1
    };
    ensure!(watchers.len() == hosts.len() && hosts.iter().all(from), "{watchers:?}, not of {hosts:?}");
    Ok(())
}

#[test]
fn two_owners_write_when_only_incus_loses_a_member() -> Result<()> {
    let (lab, mut began) = started(Topology::apart())?;
    let cluster = lab.incus(&MEMBERS)?;
    stage(&mut began, "Incus");
    let lost = follower(&cluster)?;
    let container = cluster.launch("c1", lost)?;
    let old = container.wait_for_writer(lost, SOON)?;
    stage(&mut began, "container");
    watched_from(&lab, &container, &[lost])?;
    let watch = lab.watch(POOL.1)?;

    let other = MEMBERS.into_iter().find(|name| *name != lost).context("nobody else")?;
    ensure!(answers_ping(&lab, other, lost)?, "no answer with all cables in");
    let cut = monotonic();
    lab.cut_links(lost, Links::Incus)?;
    ensure!(!answers_ping(&lab, other, lost)?, "an answer through a cut cable");
    cluster.wait_for_status(lost, "Offline", SOON)?;
    stage(&mut began, "offline after the cut");
    let owner = wait_for("another location", HEALED, || {
        let at = container.location()?;
        Ok((at != lost).then_some(at))
    })?;
    let new = container.wait_for_writer(&owner, SOON)?;
    new.wait_for_acks(10, SOON)?;
    stage(&mut began, "healed after that");
    let heard = monotonic();
    // Nobody told the old one.
    watched_from(&lab, &container, &[lost, &owner])?;
    wait_for("both to write for a while", SOON, || {
        let counts = (old.acks_after(heard)?, new.acks_after(heard)?);
        // Or until one of them has fallen over the other's journal.
        let fell = !old.errors()?.is_empty() || !new.errors()?.is_empty();
        ensure!(fell || counts.0 > 1000 && counts.1 > 1000, "{counts:?}");
        Ok(Some(()))
    })?;
    ensure!(old.acks_after(heard)? > 0, "the old owner did not write");
    let seen = watch.first_from(&container.image(), lab.host(&owner).ip(), cut)?.context("never seen")?;
    ensure!(seen.after > cut && seen.watchers.len() == 2, "{seen:?}");
    let first = new.log()?.first().context("no entry")?.at;
    ensure!(seen.by < first, "{owner} wrote at {first:?} and watched at {seen:?}");
    eprintln!("the second watcher came {:.1} s after the cut", (seen.by - cut).as_secs_f64());

    // The new owner leaves in order; what the old one still has in memory comes after that.
    cluster.live()?.incus(&["stop", "c1", "--force"])?;
    container.sync(lost)?;
    cluster.member(lost).power_off()?;
    let disk = lab.disk(&container)?;
    stage(&mut began, "stopped and checked");
    let lost = new
        .acked_numbers()?
        .last()
        .is_some_and(|last| !disk.blocks.get(&new.id()).is_some_and(|blocks| blocks.contains(last)));
    eprintln!("e2fsck: {}, torn: {}, the new owner's last block lost: {lost}", disk.status, disk.torn.len());
    ensure!(disk.status == 4 && (lost || !disk.torn.is_empty()), "two writers, and no damage: {disk:?}");
    Ok(())
}

#[test]
fn a_member_cut_from_all_comes_back_as_a_second_writer() -> Result<()> {
    let (lab, mut began) = started(Topology::hyperconverged())?;
    let cluster = lab.incus(&MEMBERS)?;
    stage(&mut began, "Incus");
    let lost = follower(&cluster)?;
    let container = cluster.launch("c1", lost)?;
    let old = container.wait_for_writer(lost, SOON)?;
    stage(&mut began, "container");

    lab.cut(lost)?;
    let cut = monotonic();
    let owner = wait_for("another location", HEALED, || {
        let at = container.location()?;
        Ok((at != lost).then_some(at))
    })?;
    container.wait_for_writer(&owner, SOON)?.wait_for_acks(10, HEALED)?;
    stage(&mut began, "healed after the cut");
    ensure!(old.taken_after(cut, 1)? == 0, "it wrote through a cut cable");
    lab.heal(lost)?;
    let back = monotonic();
    wait_for("two watchers", HEALED, || watched_from(&lab, &container, &[lost, &owner]).map(Some))?;
    wait_for("the old owner to write", HEALED, || Ok((old.acks_after(back)? > 0).then_some(())))?;
    stage(&mut began, "two writers after the cable was back");
    Ok(())
}

#[test]
fn losing_ceph_alone_moves_nothing() -> Result<()> {
    let (lab, _) = started(Topology::apart())?;
    let cluster = lab.incus(&MEMBERS)?;
    let container = cluster.launch("c1", "n2")?;
    let writer = container.wait_for_writer("n2", SOON)?;
    lab.cut_links("n2", Links::Ceph)?;
    let cut = monotonic();
    ensure!(answers_ping(&lab, "n1", "n2")?, "the wrong cable");
    // Longer than both thresholds: a member without heartbeats would be offline by now.
    wait_for("the thresholds to pass", SOON, || {
        ensure!(cluster.status("n2")? == "Online");
        Ok((monotonic() > cut + Duration::from_secs(16)).then_some(()))
    })?;
    ensure!(cluster.status("n2")? == "Online" && container.location()? == "n2");
    ensure!(writer.taken_after(cut, 1)? == 0, "it wrote through a cut cable");
    lab.heal_links("n2", Links::Ceph)?;
    writer.wait_for_acks(10, Duration::from_secs(60))?;
    ensure!(writer.errors()?.is_empty(), "{:?}", writer.errors()?);

    // Without incusd, or with one that is stuck, containers go on.
    let member = cluster.member("n2");
    member.kill_daemon()?;
    writer.wait_for_acks(10, SOON)?;
    member.start_daemon()?;
    member.wait_for_daemon()?;
    member.stop_daemon()?;
    writer.wait_for_acks(10, SOON)?;
    member.cont_daemon()?;
    wait_for("its incusd to answer", SOON, || member.query("/1.0").map(Some))?;
    ensure!(container.writers()?.len() == 1, "it was started again: {:?}", container.writers()?);

    // A power cut reaches what waits for a disk that does not answer, and so does the end of the lab.
    lab.cut("n2")?;
    let cut = monotonic();
    member.power_off()?;
    ensure!(writer.taken_after(cut, 1)? == 0);
    lab.heal("n2")?;
    member.power_on()?;
    let next = wait_for("a second start", Duration::from_secs(60), || {
        Ok(container.writers()?.into_iter().find(|next| next.id() != writer.id()))
    })?;
    next.wait_for_acks(10, SOON)?;
    lab.cut("n2")?;
    let dir = lab.dir().to_owned();
    drop(cluster);
    drop(lab);
    let left = left_of(&dir)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

#[test]
fn a_fenced_container_hears_it_and_what_was_acknowledged_stays() -> Result<()> {
    let (lab, mut began) = started(Topology::hyperconverged())?;
    let cluster = lab.incus(&MEMBERS)?;
    stage(&mut began, "Incus");
    let container = cluster.launch("c1", "n1")?;
    let writer = container.wait_for_writer("n1", SOON)?;
    writer.wait_for_acks(300, SOON)?;
    stage(&mut began, "container, and 300 writes");
    eprintln!("resident in all: {} MiB", resident()? >> 20);
    let fenced = monotonic();
    lab.ceph(&["osd", "blocklist", "add", &format!("{}:0/0", lab.host("n1").ip())])?;
    let errno = writer.wait_for_error(fenced, SOON)?;
    stage(&mut began, &format!("{errno} after the blocklist entry"));
    let refused = monotonic();
    wait_for("it to keep trying", SOON, || Ok((writer.errors()?.len() > 20).then_some(())))?;
    ensure!(writer.acks_after(refused)? == 0, "acknowledged after an error");
    let disk = lab.disk(&container)?;
    ensure!(disk.status == 0 && disk.torn.is_empty(), "{disk:?}");
    let last = writer.acked_numbers()?.last().copied().context("nothing acknowledged")?;
    ensure!(disk.blocks[&writer.id()].contains(&last), "{last} is lost");
    ensure!(lab.disk(&container)?.blocks == disk.blocks, "it changed behind the fence");
    Ok(())
}

#[test]
fn a_reboot_is_one() -> Result<()> {
    let (lab, _) = started(Topology::apart().ipv6())?;
    let cluster = lab.incus(&MEMBERS)?;
    let member = cluster.member("n1");
    let container = cluster.launch("c1", "n1")?;
    let before = member.uptime()?;
    let token = cluster.trust("guardian")?;
    ensure!(token.len() > 200 && !token.contains(char::is_whitespace), "not a token: {token:?}");
    let resources = member.query("/1.0/resources")?;
    ensure!(resources["system"]["uuid"] == member.uuid().to_string(), "{}", resources["system"]);
    let first = container.wait_for_writer("n1", SOON)?;

    let began = monotonic();
    member.pause()?;
    let paused = monotonic();
    ensure!(member.query_within(Duration::from_secs(2), "/1.0").is_err(), "it answers while it is paused");
    ensure!(first.acks_after(paused)? == 0, "its container writes while it is paused");
    member.resume()?;
    first.wait_for_acks(10, SOON)?;
    member.reboot()?;
    let since = (monotonic() - began).as_secs();
    wait_for("the member to be a member again", SOON, || member.uptime().map(Some))?;
    let after = member.uptime()?;
    eprintln!("uptime {before} s, then {after} s; pause and reboot took {since} s");
    ensure!(after < before && after <= i64::try_from(since)? + 30, "{before}, then {after}");
    // Incus starts what ran.
    let second = wait_for("a second start", Duration::from_secs(60), || {
        Ok(container.writers()?.into_iter().find(|writer| writer.id() != first.id()))
    })?;
    second.wait_for_acks(10, SOON)?;
    let ended = monotonic();
    ensure!(first.acks_after(ended)? == 0);
    ensure!(member.query("/1.0/resources")?["system"]["uuid"] == resources["system"]["uuid"]);

    // A move in order leaves one watcher, and no damage.
    cluster.wait_until_online()?;
    let live = cluster.live()?;
    live.incus(&["stop", "c1"])?;
    live.incus(&["move", "c1", "--target", "n3"])?;
    live.incus(&["start", "c1"])?;
    container.wait_for_writer("n3", SOON)?.wait_for_acks(10, SOON)?;
    // The watch of a client that was killed with its host stays for 30 s.
    wait_for("one watcher", Duration::from_secs(60), || watched_from(&lab, &container, &["n3"]).map(Some))?;
    live.incus(&["stop", "c1"])?;
    watched_from(&lab, &container, &[])?;
    let disk = lab.disk(&container)?;
    ensure!(disk.status == 0 && disk.torn.is_empty(), "{disk:?}");
    for writer in container.writers()? {
        let last = writer.acked_numbers()?.last().copied().context("nothing acknowledged")?;
        ensure!(disk.blocks[&writer.id()].contains(&last), "{last} of {writer:?} is lost");
    }
    live.incus(&["delete", "c1"])?;

    let memory = resident()?;
    eprintln!("resident in all: {} MiB", memory >> 20);
    let dir = lab.dir().to_owned();
    drop(cluster);
    drop(lab);
    let left = left_of(&dir)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// Bytes that a lab's processes hold, what they share counted once. They are the descendants of this test: it runs nothing else.
fn resident() -> Result<u64> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok())
            && let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status"))
            && let Some(parent) = status.lines().find_map(|line| line.strip_prefix("PPid:"))
        {
            parents.push((pid, parent.trim().parse::<u32>()?));
        }
    }
    let (mut below, mut known) = (vec![std::process::id()], 0);
    while known < below.len() {
        let parent = below[known];
        known += 1;
        below.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
    }
    let kib = below.iter().filter_map(|pid| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        rollup
            .lines()
            .find_map(|line| line.strip_prefix("Pss:"))?
            .trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
    });
    Ok(kib.sum::<u64>() << 10)
}

/// What a lab has left on the machine: its folder, mounts, loop devices, cgroups, and processes that name it.
fn left_of(dir: &Path) -> Result<Vec<String>> {
    let name = dir.file_name().and_then(|name| name.to_str()).context("an odd name")?;
    let mut left = Vec::new();
    if dir.exists() {
        left.push(dir.display().to_string());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    left.extend(mounts.lines().filter(|line| line.contains(name)).map(str::to_owned));
    for entry in fs::read_dir("/sys/block")? {
        if let Ok(backing) = fs::read_to_string(entry?.path().join("loop/backing_file"))
            && backing.contains(name)
        {
            left.push(backing);
        }
    }
    let groups = [Path::new("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup/unified")];
    let groups = groups.iter().map(|group| group.join(name)).filter(|group| group.exists());
    left.extend(groups.map(|group| group.display().to_string()));
    for entry in fs::read_dir("/proc")? {
        if let Ok(command) = fs::read(entry?.path().join("cmdline"))
            && String::from_utf8_lossy(&command).contains(name)
        {
            left.push(String::from_utf8_lossy(&command).replace('\0', " "));
        }
    }
    Ok(left)
}
