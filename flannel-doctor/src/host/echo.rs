//! One ICMP echo, small or of a certain size that must not be fragmented.

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use flannel_core::addr::Family;
use socket2::{Domain, Protocol, Socket, Type};

use super::sys;

/// ICMP type and code, checksum, identifier and number (RFC 792, RFC 4443 section 4).
const HEADER: usize = 8;
/// What tells this request from others, behind the header.
const COOKIE: usize = 16;
/// The payload of a small request in bytes, as `ping` has it.
const SMALL: usize = 56;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Echo {
    /// The answer came after this time.
    Answered(Duration),
    /// No answer came in time.
    Silent,
    /// The kernel of this host, or a router, has no way for it, or none for this size.
    Refused(io::ErrorKind),
}

impl Echo {
    pub(crate) fn is_answer(self) -> bool {
        matches!(self, Self::Answered(_))
    }
}

/// Sends a request from the calling thread's namespace and waits for its answer. `size` is that of the whole IP packet,
/// which then must not be fragmented. An error says that this process can't send such requests.
pub(crate) fn echo(to: IpAddr, size: Option<u32>, patience: Duration) -> io::Result<Echo> {
    let family = Family::of(to);
    let (domain, protocol, ip) = match family {
        Family::V4 => (Domain::IPV4, Protocol::ICMPV4, 20),
        Family::V6 => (Domain::IPV6, Protocol::ICMPV6, 40),
    };
    // Without CAP_NET_RAW, net.ipv4.ping_group_range may still allow the other kind.
    let socket = Socket::new(domain, Type::RAW, Some(protocol))
        .or_else(|_| Socket::new(domain, Type::DGRAM, Some(protocol)))?;
    if size.is_some() {
        sys::forbid_fragments(&socket, family)?;
    }
    let cookie = cookie();
    let request =
        request(family, cookie, size.map_or(SMALL, |size| (size as usize).saturating_sub(ip + HEADER)));
    let start = Instant::now();
    if let Err(error) = socket.send_to(&request, &SocketAddr::new(to, 0).into()) {
        return match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Err(error),
            _ => Ok(Echo::Refused(error.kind())),
        };
    }
    let mut buffer = vec![0; request.len() + 128];
    loop {
        let Some(left) = patience.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else {
            return Ok(Echo::Silent);
        };
        socket.set_read_timeout(Some(left))?;
        match (&socket).read(&mut buffer) {
            Ok(length) if is_answer(&buffer[..length], family, cookie) => {
                return Ok(Echo::Answered(start.elapsed()));
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Ok(Echo::Refused(error.kind())),
        }
    }
}

/// A value that no other request has.
fn cookie() -> [u8; COOKIE] {
    fastrand::u128(..).to_be_bytes()
}

fn request(family: Family, cookie: [u8; COOKIE], payload: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER + payload.max(COOKIE)];
    packet[0] = if family == Family::V4 { 8 } else { 128 };
    packet[HEADER..HEADER + COOKIE].copy_from_slice(&cookie);
    // For ICMPv6 the kernel puts in its own.
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Whether a packet is the answer to our request. Its cookie may be behind an IP header, which raw IPv4 sockets show.
fn is_answer(packet: &[u8], family: Family, cookie: [u8; COOKIE]) -> bool {
    let reply = if family == Family::V4 { 0 } else { 129 };
    let at = |header: usize| {
        let icmp = packet.get(header..)?;
        Some(*icmp.first()? == reply && icmp.get(HEADER..HEADER + COOKIE)? == cookie)
    };
    let behind = packet.first().map_or(0, |first| usize::from(first & 0xf) * 4);
    [0, behind].into_iter().any(|header| at(header) == Some(true))
}

/// The Internet checksum (RFC 1071).
fn checksum(packet: &[u8]) -> u16 {
    let words = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_answer_is_one() {
        let (ours, others) = (cookie(), cookie());
        assert_ne!(ours, others);
        let sent = request(Family::V4, ours, SMALL);
        assert_eq!(checksum(&sent), 0, "a packet with its checksum sums up to nothing");
        assert!(!is_answer(&sent, Family::V4, ours), "a request is none");
        let mut answer = sent.clone();
        answer[0] = 0;
        assert!(is_answer(&answer, Family::V4, ours) && !is_answer(&answer, Family::V4, others));
        let mut whole = vec![0x45; 20];
        whole.extend(answer);
        assert!(is_answer(&whole, Family::V4, ours));
        assert!(!is_answer(&whole[..30], Family::V4, ours) && !is_answer(&[], Family::V6, ours));
    }
}
