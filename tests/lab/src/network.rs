//! The switch and the cables: two bridges in a network namespace of its own, and one veth pair per host to the first, which is Ceph's
//! public network. Hosts that have to do with Incus have another one to the second: either can be cut alone.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;

use crate::cage::{Cage, enter};
use crate::process::Process;

/// Hosts are numbered from here, so that their addresses are not mistaken for gateways.
const FIRST_HOST: u8 = 10;

/// Which of a host's cables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// All that it has.
    Both,
    /// That to Ceph, and to clients of Ceph: `eth0`.
    Ceph,
    /// That to the Incus cluster: `eth1`.
    Incus,
}

impl Links {
    fn are(self) -> &'static [Links] {
        match self {
            Links::Both => &[Links::Ceph, Links::Incus],
            Links::Ceph => &[Links::Ceph],
            Links::Incus => &[Links::Incus],
        }
    }

    /// The device in the host, the bridge, and the port at the switch.
    fn names(self, number: u8) -> (&'static str, &'static str, String) {
        match self {
            Links::Both | Links::Ceph => ("eth0", "br0", format!("port{number}")),
            Links::Incus => ("eth1", "br1", format!("incus{number}")),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Network {
    switch: Process,
    ipv6: bool,
}

impl Network {
    pub(crate) fn start(cage: &Cage, ipv6: bool) -> Result<Network> {
        let switch = cage.anchor("the switch")?;
        // Without snooping: it would swallow the first neighbour solicitations of IPv6.
        for bridge in ["br0", "br1"] {
            ip(
                switch.pid(),
                &format!(
                    "link add {bridge} type bridge forward_delay 0 stp_state 0 mcast_snooping 0\nlink set {bridge} up\n"
                ),
            )?;
        }
        Ok(Network { switch, ipv6 })
    }

    /// The address of the host with this number, in Ceph's public network.
    pub(crate) fn address(&self, number: u8) -> IpAddr {
        self.address_on(Links::Ceph, number)
    }

    /// The address of the host with this number at one of its links.
    pub(crate) fn address_on(&self, link: Links, number: u8) -> IpAddr {
        let last = FIRST_HOST + number;
        let net = match link {
            Links::Both | Links::Ceph => 77,
            Links::Incus => 78,
        };
        if self.ipv6 {
            Ipv6Addr::new(if net == 77 { 0xfd77 } else { 0xfd78 }, 0, 0, 0, 0, 0, 0, last.into()).into()
        } else {
            Ipv4Addr::new(10, net, 0, last).into()
        }
    }

    /// The network all hosts are in, as Ceph's `public network` wants it.
    pub(crate) fn range(&self) -> &'static str {
        if self.ipv6 { "fd77::/64" } else { "10.77.0.0/24" }
    }

    /// Plugs a host into the switch.
    pub(crate) fn plug(&self, host: Pid, number: u8, links: Links) -> Result<()> {
        for link in links.are() {
            let (device, bridge, port) = link.names(number);
            ip(
                self.switch.pid(),
                &format!(
                    "link add {port} type veth peer name {device} netns {host}\nlink set {port} master {bridge}\nlink set {port} up\n"
                ),
            )?;
            let (length, nodad) = if self.ipv6 { (64, "nodad") } else { (24, "") };
            let address = self.address_on(*link, number);
            ip(host, &format!("addr add {address}/{length} dev {device} {nodad}\nlink set {device} up\n"))?;
        }
        Ok(())
    }

    /// Pulls a host's cables, at the switch's side, or plugs them in again.
    pub(crate) fn set_links(&self, number: u8, links: Links, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        let lines = links.are().iter().map(|link| format!("link set {} {state}\n", link.names(number).2));
        ip(self.switch.pid(), &lines.collect::<String>())
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
