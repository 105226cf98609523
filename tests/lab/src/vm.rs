//! A host with the kernel's own rbd driver: what Incus users have.
//!
//! The machine that runs the lab need not have that driver: an emulated one boots Debian's kernel (about 4
//! s) and takes over the address and the cable of one of the lab's hosts, so that [`Lab::cut`] and
//! [`Lab::heal`] work on it as on any other. Its processor and its memory are a process of the lab's and
//! end with it.

mod channel;
mod clock;
mod mapping;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::Pid;

use self::channel::{Answer, Channel};
use self::clock::Clock;
pub use self::mapping::{KrbdWriter, Mapping, Outcome};
use crate::cache;
use crate::cage::enter;
use crate::lab::Lab;
use crate::process::Process;
use crate::wait::report;

/// Boot takes 4 s on an idle machine; under full load several times that.
const BOOT: Duration = Duration::from_secs(120);
/// For what the machine does without the cluster.
const LOCAL: Duration = Duration::from_secs(20);
/// For what it does with a cluster that answers: mapping, unmapping.
const CLUSTER: Duration = Duration::from_secs(60);

/// A running machine with the kernel's rbd driver. Dropped, it is gone at once, as if its power had been cut.
#[derive(Debug)]
pub struct KrbdHost {
    channel: Mutex<Channel>,
    name: String,
    ip: IpAddr,
    kernel: String,
    /// What the driver needs to reach the cluster: `MON name=admin,secret=KEY`.
    cluster: String,
    /// Where the machine's writers say what was acknowledged.
    acks: PathBuf,
    clock: Clock,
    machine: Process,
}

impl KrbdHost {
    /// Whether this machine can boot one.
    ///
    /// # Errors
    /// Set-up could not prepare the kernel: why, in one line. Tests print it and skip.
    pub fn available() -> Result<()> {
        cache::prepared("krbd").map(drop)
    }

    /// Boots the machine in place of the lab's host `name`, which must run no daemon: only the machine has
    /// its address then. A host whose machine was dropped can boot again.
    ///
    /// [`Lab::cut_pair`] does not work on it: that filters what the replaced host itself sends and gets.
    ///
    /// Console and kernel messages go to `log/NAME.console` in the lab's directory.
    ///
    /// # Errors
    /// As [`KrbdHost::available`]; no such host; no sign of life within two minutes.
    pub fn boot(lab: &Lab, name: &str) -> Result<KrbdHost> {
        let files = cache::prepared("krbd")?;
        let host = lab.host(name);
        let ip = host.ip();
        bridge(host.anchor)?;

        let log = lab.dir().join("log");
        let acks = log.join(format!("{name}.acks"));
        let (mut channel, theirs) = Channel::pair()?;
        let mut qemu = host.lasting("qemu-system-x86_64");
        qemu.args(machine(&files, &log.join(format!("{name}.console")), &acks, ip))
            .stdin(theirs.try_clone()?)
            .stdout(theirs)
            .stderr(File::create(log.join(format!("{name}.qemu")))?);
        let machine = Process::spawn(&format!("the machine {name}"), &mut qemu, 2)?;
        // Only the machine may hold the other end: its end is what tells that it has ended.
        drop(qemu);
        let kernel =
            channel.greeting(BOOT).with_context(|| format!("booting {name}, see {}", log.display()))?;
        let clock = Clock::compare(&mut channel)?;
        report(&format!("{name} runs Linux {kernel}; clocks compared to {:.1?}", clock.error()));
        Ok(KrbdHost {
            channel: Mutex::new(channel),
            name: name.to_owned(),
            ip,
            kernel,
            cluster: cluster(lab)?,
            acks,
            clock,
            machine,
        })
    }

    /// Its address on the lab's network: that of the host it replaced.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The release of its kernel, as `uname -r` has it.
    #[must_use]
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// How much later than true the times of its writers may be.
    #[must_use]
    pub fn clock_error(&self) -> Duration {
        self.clock.error()
    }

    /// The emulator: stop and continue it to freeze the whole machine (its clock goes on).
    #[must_use]
    pub fn machine(&self) -> &Process {
        &self.machine
    }

    /// Runs a line of shell (busybox) in the machine; exit status and what it printed, up to 32 KiB.
    ///
    /// # Errors
    /// The machine is gone, or the command has not ended after `deadline`. It goes on then, and others can
    /// be run beside it.
    pub fn run(&self, command: &str, deadline: Duration) -> Result<(i32, String)> {
        match self.ask(command, deadline)? {
            Some(Answer { status, output }) => Ok((status, output)),
            None => bail!("{}: {command:?} has not ended after {deadline:.0?}", self.name),
        }
    }

    /// Maps an image with the driver, as client.admin.
    ///
    /// # Errors
    /// The driver refuses, with its reason; no such image; the cluster does not answer.
    pub fn map(&self, pool: &str, image: &str) -> Result<Mapping<'_>> {
        // The driver is in single-major mode: `add` answers EINVAL. What is new afterwards is ours.
        let (status, output) = self.run(
            &format!(
                "cd /sys/bus/rbd/devices && before=\" $(echo *) \" && \
                 echo '{} {pool} {image} -' >/sys/bus/rbd/add_single_major && \
                 for n in *; do case \"$before\" in *\" $n \"*) ;; *) echo $n $(cat $n/client_addr) ;; esac; done",
                self.cluster
            ),
            CLUSTER,
        )?;
        ensure!(status == 0, "{}: mapping {pool}/{image}: {output}", self.name);
        let (number, client) =
            output.split_once(' ').with_context(|| format!("no new mapping: {output:?}"))?;
        Ok(Mapping::new(self, number.parse()?, client))
    }

    fn ask(&self, command: &str, deadline: Duration) -> Result<Option<Answer>> {
        // The channel stays in step whatever happens to a caller.
        self.channel
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .run(command, deadline)
            .with_context(|| self.name.clone())
    }
}

/// Lets a tap device have the host's cable, in the host's own network namespace. Once: it outlives a machine
/// that is to boot again.
fn bridge(host: Pid) -> Result<()> {
    let bridged = enter(host, &["--net"]).args(["ip", "link", "show", "tap0"]).output()?;
    if bridged.status.success() {
        return Ok(());
    }
    let script = "addr flush dev eth0
link add br0 type bridge forward_delay 0 mcast_snooping 0
tuntap add dev tap0 mode tap
link set eth0 master br0
link set tap0 master br0
link set tap0 up
link set br0 up
";
    let mut ip = enter(host, &["--net"]).args(["ip", "-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    ip.stdin.take().context("no pipe")?.write_all(script.as_bytes())?;
    ensure!(ip.wait()?.success(), "cannot bridge the machine's cable");
    Ok(())
}

/// The emulator's command line. No KVM: where nested virtualization is patchy, distribution kernels do not
/// boot on it.
fn machine(files: &Path, console: &Path, acks: &Path, ip: IpAddr) -> Vec<OsString> {
    let (length, last) = match ip {
        IpAddr::V4(v4) => (24, v4.octets()[3]),
        IpAddr::V6(v6) => (64, v6.octets()[15]),
    };
    let file = |id: &str, path: &Path| {
        let mut value = OsString::from(format!("file,id={id},path="));
        value.push(path);
        value
    };
    let mut words: Vec<OsString> = vec!["-kernel".into(), files.join("vmlinuz").into()];
    words.extend(["-initrd".into(), files.join("initramfs").into()]);
    words.extend(["-append".into(), format!("console=ttyS0 panic=-1 LAB_ADDRESS={ip}/{length}").into()]);
    words.extend(["-chardev".into(), file("console", console), "-chardev".into(), file("acks", acks)]);
    words.extend(
        "-M q35,accel=tcg -cpu max -m 384 -nodefaults -display none -no-reboot -serial chardev:console \
         -chardev stdio,id=commands,signal=off -device virtio-serial-pci \
         -device virtserialport,chardev=commands,nr=1 -device virtserialport,chardev=acks,nr=2 \
         -netdev tap,id=net,ifname=tap0,script=no,downscript=no"
            .split_whitespace()
            .map(OsString::from),
    );
    words.extend([
        "-device".into(),
        format!("virtio-net-pci,netdev=net,romfile=,mac=52:54:00:00:00:{last:02x}").into(),
    ]);
    words
}

/// Monitors and key, in the driver's own notation. It speaks to the monitors' old port.
fn cluster(lab: &Lab) -> Result<String> {
    let dump = lab.ceph(&["mon", "dump"])?;
    let mut mons = Vec::new();
    for mon in dump["mons"].as_array().context("no monitors")? {
        let addresses = mon["public_addrs"]["addrvec"].as_array().context("no addresses")?;
        let old = addresses
            .iter()
            .find(|address| address["type"] == "v1")
            .and_then(|address| address["addr"].as_str());
        mons.push(old.context("a monitor without the old protocol")?.to_owned());
    }
    let key = lab.ceph(&["auth", "print-key", "client.admin"])?;
    let Some(key) = key["key"].as_str().or(key.as_str()) else { bail!("no key: {key}") };
    Ok(format!("{} name=admin,secret={key}", mons.join(",")))
}
