//! One ICMP echo, one second: what Incus asks before it heals (`ping -w1 -c1`, docs/facts/incus.md#healing).

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{UdpSocket, lookup_host};

use crate::deadline::within;

/// As long as Incus waits.
const WAIT: Duration = Duration::from_secs(1);
/// Tells our answers from those to others on a raw socket.
const MARK: &[u8] = b"rbd-guardian";

/// Does the host answer? A host that nothing leads to does not.
///
/// # Errors
/// It could not be asked: the name is unknown, or the guardian may not send an echo.
pub(super) async fn ping(host: &str) -> Result<bool, String> {
    let mut found = match within(WAIT, lookup_host((host, 0))).await {
        Ok(found) => found.map_err(|error| format!("cannot resolve {host}: {error}"))?,
        Err(_) => return Err(format!("cannot resolve {host} within {WAIT:?}")),
    };
    let address = found.next().ok_or_else(|| format!("{host} has no address"))?;
    match within(WAIT, echo(address)).await {
        Ok(Ok(())) => Ok(true),
        Ok(Err(error)) if error.kind() == ErrorKind::PermissionDenied => {
            Err("not permitted: CAP_NET_RAW is missing (AmbientCapabilities= of the unit)".to_owned())
        }
        Ok(Err(error)) if unreachable(&error) => Ok(false),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Ok(false),
    }
}

#[allow(clippy::wildcard_enum_match_arm)] // The kernel's list.
fn unreachable(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable)
}

/// Sends a request and awaits its answer.
async fn echo(address: SocketAddr) -> io::Result<()> {
    let (socket, raw) = open(address.ip())?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::from(address))?;
    // To the runtime every connected socket of packets is alike.
    let socket = UdpSocket::from_std(socket.into())?;
    // The number tells this request's answer from one that comes late to the last.
    let id = nonce();
    socket.send(&request(address.ip(), id)).await?;
    loop {
        let mut buffer = [0; 256];
        let len = socket.recv(&mut buffer).await?;
        let packet = &buffer[..len];
        // Only a raw IPv4 socket gets the IP header, too (raw(7)); its length is in words.
        let header = match (raw, address.ip()) {
            (true, IpAddr::V4(_)) => packet.first().map_or(0, |first| usize::from(first & 0xf) * 4),
            (true | false, IpAddr::V4(_) | IpAddr::V6(_)) => 0,
        };
        if packet.get(header..).is_some_and(|packet| is_answer(packet, address.ip(), id)) {
            return Ok(());
        }
    }
}

/// A socket for pings where the kernel gives one to everybody (`net.ipv4.ping_group_range`), else a raw one.
fn open(ip: IpAddr) -> io::Result<(Socket, bool)> {
    let (domain, protocol) = match ip {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    Socket::new(domain, Type::DGRAM, Some(protocol))
        .map(|socket| (socket, false))
        .or_else(|_| Ok((Socket::new(domain, Type::RAW, Some(protocol))?, true)))
}

/// Differs from one request to the next.
fn nonce() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// RFC 792 and RFC 4443: type, code, checksum, identifier, sequence number, data. A ping socket sets the identifier,
/// so it is the sequence number that is looked at; the kernel makes IPv6's checksum, and a ping socket's.
fn request(ip: IpAddr, sequence: u16) -> Vec<u8> {
    let kind = if ip.is_ipv4() { 8 } else { 128 };
    let mut packet = vec![kind, 0, 0, 0, 0, 0];
    packet.extend(sequence.to_be_bytes());
    packet.extend(MARK);
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn is_answer(packet: &[u8], ip: IpAddr, sequence: u16) -> bool {
    let kind = if ip.is_ipv4() { 0 } else { 129 };
    packet.first() == Some(&kind)
        && packet.get(6..8) == Some(&sequence.to_be_bytes())
        && packet.get(8..) == Some(MARK)
}

/// RFC 1071.
fn checksum(packet: &[u8]) -> u16 {
    let words = packet.chunks(2).map(|pair| match pair {
        [high, low] => u16::from_be_bytes([*high, *low]),
        [high] => u16::from_be_bytes([*high, 0]),
        _ => 0,
    });
    let sum = words.fold(0_u16, |sum, word| {
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    });
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_sums_up_to_nothing_and_is_no_answer() {
        let v4 = "127.0.0.1".parse().unwrap();
        let packet = request(v4, 7);
        assert_eq!(checksum(&packet), 0, "RFC 1071: the sum over the whole packet, its checksum included");
        assert!(!is_answer(&packet, v4, 7));
        let mut answer = packet;
        answer[0] = 0;
        assert!(is_answer(&answer, v4, 7) && !is_answer(&answer, v4, 8));
    }

    #[tokio::test]
    async fn this_host_answers_and_an_unroutable_one_does_not() {
        match ping("127.0.0.1").await {
            Ok(answered) => assert!(answered),
            Err(why) => assert!(why.contains("CAP_NET_RAW"), "{why}"),
        }
        assert_ne!(ping("240.0.0.1").await, Ok(true), "nobody has an address of class E");
        assert!(ping("no.such.host.invalid").await.is_err());
    }
}
