//! Entity addresses: who a client is to the storage, and what a blocklist entry names.
//!
//! A client's identity is `IP:0/NONCE`: the IP the first monitor saw it come from, port 0 and a random nonce
//! that lives as long as the client instance (docs/facts/ceph.md#addresses-of-clients; `entity_addr_t::parse`, `src/msg/msg_types.cc`).
//! The type prefix (`v1:`, `v2:`, `any:`) takes no part in matching, so it is accepted and dropped.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address as the storage prints it: `10.0.0.5:0/123`, `[fd00::5]:6800/42`, `v1:10.0.0.5:6789/0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntityAddr {
    /// The IP the entity declared.
    pub ip: IpAddr,
    /// 0 for clients; the listening port for daemons.
    pub port: u16,
    /// Distinguishes instances on one IP and port; 0 together with port 0 in a blocklist entry means every one.
    pub nonce: u32,
}

/// One client instance: `IP:0/NONCE` with a nonce other than 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientAddr {
    /// The identity IP.
    pub ip: IpAddr,
    /// Never 0: with 0 the address would name the whole host.
    pub nonce: u32,
}

/// A blocklist entry of the kinds the guardian adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// `IP:0/0`: every client instance of the IP, present and future.
    Host(IpAddr),
    /// The range `IP/32` or `IP/128`: the same clients under a different key, so that one can be replaced
    /// while the other holds. Known since 16.2.11 (docs/facts/ceph.md#blocklist-entries).
    HostRange(IpAddr),
    /// `IP:0/NONCE`: one client instance.
    Client(ClientAddr),
}

/// Why a text is not an address that can be fenced. Each says what would be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    /// Not an address at all.
    #[error(
        "'{text}' is not an address: write 10.0.0.5 (a host), 10.0.0.5:0/123456 (a client), [2001:db8::5]:0/0"
    )]
    Malformed {
        /// What was given.
        text: String,
    },
    /// `10.0.0.0/24`: as a plain entry Ceph takes it for a client with nonce 24 and blocks nobody.
    #[error("'{text}' is a network: name each host's address (a network would fence hosts nobody looked at)")]
    Network {
        /// What was given.
        text: String,
    },
    /// A scope id or link-local prefix: Ceph compares addresses with their scope and may never match them.
    #[error(
        "'{text}' is a link-local address, which Ceph cannot match reliably: use the host's global address"
    )]
    LinkLocal {
        /// What was given.
        text: String,
    },
    /// 0.0.0.0, multicast, broadcast or an IPv4 address in IPv6 clothes.
    #[error("'{text}' is no host's address ({why})")]
    NotAHost {
        /// What was given.
        text: String,
        /// What it is instead.
        why: &'static str,
    },
    /// A client's port is 0; another port belongs to a daemon.
    #[error("'{text}' has port {port}: clients have port 0, write {ip}:0/NONCE or {ip}")]
    Port {
        /// What was given.
        text: String,
        /// Its IP, bracketed if v6.
        ip: String,
        port: u16,
    },
}

impl EntityAddr {
    /// The client instance this address names, if it is a client's (port 0, nonce set).
    pub fn client(self) -> Option<ClientAddr> {
        (self.port == 0 && self.nonce != 0).then_some(ClientAddr { ip: self.ip, nonce: self.nonce })
    }

    /// Is it the whole-host form `IP:0/0`?
    pub fn is_host(self) -> bool {
        self.port == 0 && self.nonce == 0
    }
}

impl FromStr for EntityAddr {
    type Err = AddrError;

    /// Accepts what Ceph prints: an optional type prefix, an IP (v6 bare or in brackets), port and nonce.
    fn from_str(text: &str) -> Result<Self, AddrError> {
        let malformed = || AddrError::Malformed { text: text.to_owned() };
        let bare = ["v1:", "v2:", "any:"].iter().find_map(|p| text.strip_prefix(p)).unwrap_or(text);
        let (place, nonce) = match bare.split_once('/') {
            Some((place, nonce)) if nonce.bytes().all(|byte| byte.is_ascii_digit()) => {
                (place, nonce.parse().map_err(|_| malformed())?)
            }
            Some(_) => return Err(malformed()),
            None => (bare, 0),
        };
        if let Ok(ip) = place.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            let bracketed = place.starts_with('[') || place.ends_with(']');
            let well_formed = !bracketed || (ip.is_ipv6() && place.starts_with('[') && place.ends_with(']'));
            return well_formed.then_some(Self { ip, port: 0, nonce }).ok_or_else(malformed);
        }
        let place = place.parse::<SocketAddr>().map_err(|_| malformed())?;
        Ok(Self { ip: place.ip(), port: place.port(), nonce })
    }
}

impl FromStr for Entry {
    type Err = AddrError;

    /// Reads what [`Display`](fmt::Display) prints. A range has no port: `10.0.0.5/32`, where `10.0.0.5:0/32` is a
    /// client.
    fn from_str(text: &str) -> Result<Self, AddrError> {
        if let Some((ip, bits)) = text.split_once('/')
            && let Ok(ip) = ip.parse::<IpAddr>()
        {
            let whole = if ip.is_ipv4() { Ipv4Addr::BITS } else { Ipv6Addr::BITS };
            let network = || AddrError::Network { text: text.to_owned() };
            return (bits.parse() == Ok(whole)).then_some(Self::HostRange(ip)).ok_or_else(network);
        }
        let addr: EntityAddr = text.parse()?;
        if addr.port != 0 {
            let (text, ip) = (text.to_owned(), bracketed(addr.ip));
            return Err(AddrError::Port { text, ip, port: addr.port });
        }
        Ok(addr.client().map_or(Self::Host(addr.ip), Self::Client))
    }
}

/// What an operator may name on the command line or in the configuration.
///
/// # Errors
/// Everything that is not exactly a host (`10.0.0.5`, `10.0.0.5:0/0`) or a client (`10.0.0.5:0/123`).
pub fn parse_target(text: &str) -> Result<Entry, AddrError> {
    let owned = || text.to_owned();
    if text.contains('%') {
        return Err(AddrError::LinkLocal { text: owned() });
    }
    if let Some((ip, bits)) = text.split_once('/') {
        let ip = ip.trim_start_matches('[').trim_end_matches(']');
        if ip.parse::<IpAddr>().is_ok() && bits.parse::<u32>().is_ok() {
            return Err(AddrError::Network { text: owned() });
        }
    }
    if ["v1:", "v2:", "any:"].iter().any(|prefix| text.starts_with(prefix)) {
        return Err(AddrError::Malformed { text: owned() });
    }
    if !text.contains('/') && text.trim_matches(['[', ']']).parse::<IpAddr>().is_err() {
        return Err(AddrError::Malformed { text: owned() });
    }
    let addr: EntityAddr = text.parse()?;
    check_host(addr.ip).map_err(|why| match why {
        NotHost::LinkLocal => AddrError::LinkLocal { text: owned() },
        NotHost::Other(why) => AddrError::NotAHost { text: owned(), why },
    })?;
    if addr.port != 0 {
        return Err(AddrError::Port { text: owned(), ip: bracketed(addr.ip), port: addr.port });
    }
    Ok(addr.client().map_or(Entry::Host(addr.ip), Entry::Client))
}

enum NotHost {
    LinkLocal,
    Other(&'static str),
}

fn check_host(ip: IpAddr) -> Result<(), NotHost> {
    let why = match ip {
        IpAddr::V4(ip) if ip.is_link_local() => return Err(NotHost::LinkLocal),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => return Err(NotHost::LinkLocal),
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            "an IPv4 address written as IPv6: write it as IPv4"
        }
        _ if ip.is_unspecified() => "the unspecified address",
        _ if ip.is_multicast() => "a multicast address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "the broadcast address",
        IpAddr::V4(_) | IpAddr::V6(_) => return Ok(()),
    };
    Err(NotHost::Other(why))
}

fn bracketed(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

impl fmt::Display for EntityAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", bracketed(self.ip), self.port, self.nonce)
    }
}

impl From<ClientAddr> for EntityAddr {
    fn from(client: ClientAddr) -> Self {
        Self { ip: client.ip, port: 0, nonce: client.nonce }
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        EntityAddr::from(*self).fmt(f)
    }
}

impl Entry {
    /// The IP all of whose clients, or one of whose clients, the entry names.
    pub fn ip(self) -> IpAddr {
        match self {
            Self::Host(ip) | Self::HostRange(ip) => ip,
            Self::Client(client) => client.ip,
        }
    }

    /// The client instance, if it names one.
    pub fn client(self) -> Option<ClientAddr> {
        match self {
            Self::Client(client) => Some(client),
            Self::Host(_) | Self::HostRange(_) => None,
        }
    }

    /// Does it name every client of its IP?
    pub fn is_host(self) -> bool {
        match self {
            Self::Host(_) | Self::HostRange(_) => true,
            Self::Client(_) => false,
        }
    }

    /// `host` or `client`, as the command-line contract prints it.
    pub fn kind(self) -> &'static str {
        if self.is_host() { "host" } else { "client" }
    }
}

impl fmt::Display for Entry {
    /// The text the `osd blocklist` command takes for it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Host(ip) => EntityAddr { ip, port: 0, nonce: 0 }.fmt(f),
            Self::HostRange(ip @ IpAddr::V4(_)) => write!(f, "{ip}/{}", Ipv4Addr::BITS),
            Self::HostRange(ip @ IpAddr::V6(_)) => write!(f, "{ip}/{}", Ipv6Addr::BITS),
            Self::Client(client) => client.fmt(f),
        }
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for ClientAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for EntityAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for ClientAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let addr = EntityAddr::deserialize(deserializer)?;
        addr.client().ok_or_else(|| serde::de::Error::custom(format!("{addr} is no client instance")))
    }
}

impl<'de> Deserialize<'de> for EntityAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The keys of the blocklist that name every client of the entry's IP.
pub(crate) fn host_keys(entry: Entry) -> [Entry; 2] {
    [Entry::Host(entry.ip()), Entry::HostRange(entry.ip())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addr(text: &str) -> EntityAddr {
        text.parse().unwrap()
    }

    #[test]
    fn reads_what_the_storage_prints() {
        let client = EntityAddr { ip: "10.77.0.11".parse().unwrap(), port: 0, nonce: 525_740_053 };
        for text in ["10.77.0.11:0/525740053", "v1:10.77.0.11:0/525740053", "any:10.77.0.11:0/525740053"] {
            assert_eq!(addr(text), client);
        }
        assert_eq!(addr("[fd77::b]:0/7").to_string(), "[fd77::b]:0/7");
        assert_eq!(addr("v2:[fd77::1]:6800/42").port, 6800);
        assert!(addr("fd77::b").is_host());
        assert!(addr("10.0.0.5").is_host());
    }

    #[test]
    fn takes_hosts_and_clients_as_targets() {
        let ip: IpAddr = "10.0.0.5".parse().unwrap();
        assert_eq!(parse_target("10.0.0.5").unwrap(), Entry::Host(ip));
        assert_eq!(parse_target("10.0.0.5:0/0").unwrap(), Entry::Host(ip));
        assert_eq!(parse_target("10.0.0.5:0/9").unwrap(), Entry::Client(ClientAddr { ip, nonce: 9 }));
        let v6: IpAddr = "2001:db8::5".parse().unwrap();
        assert_eq!(parse_target("[2001:db8::5]:0/0").unwrap(), Entry::Host(v6));
        assert_eq!(parse_target("2001:db8::5").unwrap(), Entry::Host(v6));
    }

    #[test]
    fn refuses_each_bad_target_with_its_own_reason() {
        use AddrError::{LinkLocal, Malformed, Network, NotAHost, Port};
        let reason = |text: &str| parse_target(text).unwrap_err();
        assert!(matches!(reason("10.0.0.0/24"), Network { .. }));
        assert!(matches!(reason("10.0.0.5/32"), Network { .. }));
        assert!(matches!(reason("fd77::/64"), Network { .. }));
        assert!(matches!(reason("fe80::1%eth0"), LinkLocal { .. }));
        assert!(matches!(reason("fe80::1"), LinkLocal { .. }));
        assert!(matches!(reason("169.254.1.1"), LinkLocal { .. }));
        assert!(matches!(reason("::ffff:10.0.0.5"), NotAHost { .. }));
        assert!(matches!(reason("0.0.0.0"), NotAHost { .. }));
        assert!(matches!(reason("10.0.0.5:6800/1"), Port { port: 6800, .. }));
        for text in [
            "",
            "n1",
            "10.0.0",
            "10.0.0.5:0",
            "10.0.0.5:0/+5",
            "10.0.0.5:0/",
            "10.0.0.5:0/-1",
            "[10.0.0.5]",
            "10.0.0.5:0/4294967296",
        ] {
            assert!(matches!(reason(text), Malformed { .. }), "{text}");
        }
        assert!(matches!(reason("v1:10.0.0.5:0/1"), Malformed { .. }));
    }

    proptest! {
        #[test]
        fn printing_and_reading_agree(v6: bool, bits: u128, port: u16, nonce: u32) {
            let v4 = Ipv4Addr::from_bits((bits >> 96) as u32);
            let ip = if v6 { IpAddr::V6(Ipv6Addr::from_bits(bits)) } else { IpAddr::V4(v4) };
            let addr = EntityAddr { ip, port, nonce };
            prop_assert_eq!(addr.to_string().parse::<EntityAddr>(), Ok(addr));
        }

        #[test]
        fn an_entry_is_read_as_it_is_printed(v6: bool, bits: u128, nonce in 1u32..) {
            let v4 = Ipv4Addr::from_bits((bits >> 96) as u32);
            let ip = if v6 { IpAddr::V6(Ipv6Addr::from_bits(bits)) } else { IpAddr::V4(v4) };
            for entry in [Entry::Host(ip), Entry::HostRange(ip), Entry::Client(ClientAddr { ip, nonce })] {
                prop_assert_eq!(entry.to_string().parse::<Entry>(), Ok(entry));
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,60}") {
            let _ = parse_target(&text);
            let _ = text.parse::<EntityAddr>();
            let _ = text.parse::<Entry>();
        }
    }
}
