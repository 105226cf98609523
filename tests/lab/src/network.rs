//! The switch and the cables: a bridge in a network namespace of its own, one veth pair per host.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;

use crate::cage::{Cage, enter};
use crate::process::Process;

/// Hosts are numbered from here, so that their addresses are not mistaken for gateways.
const FIRST_HOST: u8 = 10;

#[derive(Debug)]
pub(crate) struct Network {
    switch: Process,
    ipv6: bool,
}

impl Network {
    pub(crate) fn start(cage: &Cage, ipv6: bool) -> Result<Network> {
        let switch = cage.anchor("the switch")?;
        // Without snooping: it would swallow the first neighbour solicitations of IPv6.
        ip(
            switch.pid(),
            "link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0\nlink set br0 up\n",
        )?;
        Ok(Network { switch, ipv6 })
    }

    /// The address of the host with this number.
    pub(crate) fn address(&self, number: u8) -> IpAddr {
        let last = FIRST_HOST + number;
        if self.ipv6 {
            Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last.into()).into()
        } else {
            Ipv4Addr::new(10, 77, 0, last).into()
        }
    }

    /// The network all hosts are in, as Ceph's `public network` wants it.
    pub(crate) fn range(&self) -> &'static str {
        if self.ipv6 { "fd77::/64" } else { "10.77.0.0/24" }
    }

    /// Plugs a host into the switch.
    pub(crate) fn plug(&self, host: Pid, number: u8) -> Result<()> {
        let port = port(number);
        ip(
            self.switch.pid(),
            &format!(
                "link add {port} type veth peer name eth0 netns {host}\nlink set {port} master br0\nlink set {port} up\n"
            ),
        )?;
        let (length, nodad) = if self.ipv6 { (64, "nodad") } else { (24, "") };
        ip(host, &format!("addr add {}/{length} dev eth0 {nodad}\nlink set eth0 up\n", self.address(number)))
    }

    /// Pulls a host's cable, at the switch's side, or plugs it in again.
    pub(crate) fn set_link(&self, number: u8, up: bool) -> Result<()> {
        ip(self.switch.pid(), &format!("link set {} {}\n", port(number), if up { "up" } else { "down" }))
    }

    pub(crate) fn switch(&self) -> Pid {
        self.switch.pid()
    }
}

/// Makes a host drop all that comes from or goes to a peer, or stop doing so.
pub(crate) fn set_filter(host: Pid, peer: IpAddr, dropped: bool) -> Result<()> {
    let family = if peer.is_ipv6() { "ip6" } else { "ip" };
    let table = format!("cut_{}", peer.to_string().replace(['.', ':'], "_"));
    let script = if dropped {
        format!(
            "table inet {table} {{
               chain in {{ type filter hook input priority 0; {family} saddr {peer} drop; }}
               chain out {{ type filter hook output priority 0; {family} daddr {peer} drop; }}
             }}\n"
        )
    } else {
        format!("delete table inet {table}\n")
    };
    feed(enter(host, &["--net"]).args(["nft", "-f", "-"]), &script)
}

fn port(number: u8) -> String {
    format!("port{number}")
}

fn ip(namespace: Pid, batch: &str) -> Result<()> {
    feed(enter(namespace, &["--net"]).args(["ip", "-batch", "-"]), batch)
}

fn feed(command: &mut Command, script: &str) -> Result<()> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no pipe")?.write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{command:?} refused {script:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
