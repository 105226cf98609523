//! What a lab's daemons and clients read: ceph.conf, keyrings, the first monmap.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use uuid::Uuid;

use crate::topology::{ObjectStore, Role, Topology};

/// One key for all the lab's own entities: they trust each other, and `ceph-authtool` has to run only once.
pub(crate) struct Conf<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) fsid: Uuid,
    pub(crate) topology: &'a Topology,
    pub(crate) range: &'static str,
    /// Name and address of each monitor.
    pub(crate) mons: Vec<(&'a str, IpAddr)>,
}

impl Conf<'_> {
    /// Writes `ceph.conf`, the keyrings and `data/monmap`, with tools made by `tool`.
    pub(crate) fn write(&self, mut tool: impl FnMut(&str) -> Command) -> Result<()> {
        for sub in ["data", "log", "run"] {
            fs::create_dir(self.dir.join(sub))?;
        }
        fs::write(self.dir.join("ceph.conf"), self.ceph_conf())?;
        let key = run(tool("ceph-authtool").arg("--gen-print-key"))?;
        let admin = section("client.admin", key.trim(), "allow *");
        fs::write(self.dir.join("ceph.client.admin.keyring"), &admin)?;
        let mut daemons = admin + &section("mon.", key.trim(), "allow *");
        for role in self.topology.roles().filter(|role| !matches!(role, Role::Mon(_))) {
            let profile = match role {
                Role::Osd(_) => "allow profile osd",
                Role::Mgr(_) => "allow profile mgr",
                Role::Mds(_) | Role::Mon(_) => "allow profile mds",
            };
            daemons += &section(&role.name(), key.trim(), profile);
        }
        fs::write(self.dir.join("data/keyring"), daemons)?;
        let mut monmap = tool("monmaptool");
        monmap.args(["--create", "--clobber", "--enable-all-features", "--fsid"]).arg(self.fsid.to_string());
        for (name, address) in &self.mons {
            monmap.args(["--addv", name, &mon_address(*address)]);
        }
        run(monmap.arg(self.dir.join("data/monmap"))).map(drop)
    }

    fn ceph_conf(&self) -> String {
        let dir = self.dir.display();
        let ipv6 = self.topology.ipv6;
        let store = match self.topology.store {
            ObjectStore::Memory => "memstore",
            ObjectStore::Bluestore => "bluestore",
        };
        let hosts: Vec<_> = self.mons.iter().map(|(_, address)| mon_address(*address)).collect();
        let names: Vec<_> = self.mons.iter().map(|(name, _)| *name).collect();
        let osds = self.topology.roles().filter(|role| matches!(role, Role::Osd(_))).count();
        let mut conf = format!(
            "[global]
fsid = {fsid}
mon host = {hosts}
mon initial members = {names}
public network = {range}
ms bind ipv4 = {ipv4}
ms bind ipv6 = {ipv6}
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
run dir = {dir}/run
mon data = {dir}/memory/mon.$id
osd data = {dir}/data/osd.$id
mgr data = {dir}/data/mgr.$id
mds data = {dir}/data/mds.$id
osd pool default size = {size}
osd pool default min size = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = {store}
memstore device bytes = 4294967296
bluestore block size = 4294967296
bluestore cache autotune = false
bluestore cache size = 67108864
# Erasure-coded overwrites on memstore: the mon asks for bluestore only because of its checksums.
mon debug no require bluestore for ec overwrites = true
mon allow pool size one = true
mon allow pool delete = true
mon max pg per osd = 5000
mon data avail crit = 1
mon data avail warn = 1
auth allow insecure global id reclaim = false
# With few hosts, one that sees a dead OSD has to be believed.
mon osd min down reporters = 1
# Or the monitors wait longer each time for one that is lost again and again, as in the rounds of a test.
mon osd adjust heartbeat grace = false
# Fresh PG states, so that nobody waits 5 s to hear that a pool is clean.
mgr stats period = 1
mgr tick period = 1
# Each mgr module is a Python interpreter to start.
mgr disabled modules = alerts diskprediction_local influx insights iostat k8sevents localpool mirroring nfs osd_perf_query \
osd_support prometheus restful rook selftest snap_schedule stats telegraf test_orchestrator zabbix
",
            fsid = self.fsid,
            hosts = hosts.join(" "),
            names = names.join(" "),
            range = self.range,
            ipv4 = !ipv6,
            size = osds.clamp(1, 3),
        );
        for (option, value) in &self.topology.conf {
            let _ = writeln!(conf, "{option} = {value}");
        }
        for daemon in ["mon", "mgr", "osd", "mds"] {
            let _ = writeln!(conf, "[{daemon}]\nkeyring = {dir}/data/keyring");
        }
        // No cache in librbd: what rbd-fuse and the writers write goes to the OSDs, as with krbd.
        let _ = writeln!(conf, "[client]\nkeyring = {dir}/ceph.$name.keyring\nrbd cache = false");
        conf
    }
}

fn mon_address(address: IpAddr) -> String {
    let host = match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    format!("[v2:{host}:3300,v1:{host}:6789]")
}

fn section(name: &str, key: &str, mon: &str) -> String {
    format!(
        "[{name}]\n\tkey = {key}\n\tcaps mon = \"{mon}\"\n\tcaps mgr = \"allow *\"\n\tcaps osd = \"allow *\"\n\tcaps mds = \"allow *\"\n"
    )
}

/// Runs a command that is expected to succeed; its stdout.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        crate::process::describe(output.status),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}
