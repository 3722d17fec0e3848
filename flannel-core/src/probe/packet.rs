//! The bytes of probes: ICMP echoes with a token, and whole IP packets around them. Pure.
//!
//! The token is the first part of every payload and says which probe it is. It begins with a number that the prober has
//! drawn for itself, so that packets of other programs and of other hosts are not taken for answers.

use std::net::IpAddr;

/// Bytes of a token.
pub(super) const TOKEN_LEN: usize = 16;
/// Bytes of an echo's header (RFC 792, RFC 4443).
pub(super) const ECHO_HEADER: usize = 8;
/// ICMP and UDP over IPv4, and ICMP over IPv6, as headers number them.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// The hop limit of packets that are sent in a tunnel by hand.
const HOP_LIMIT: u8 = 64;

/// What is in each probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    /// Drawn once by each prober.
    pub(super) secret: u64,
    /// The number of the probe.
    pub(super) number: u32,
}

impl Token {
    pub(super) fn to_bytes(self) -> [u8; TOKEN_LEN] {
        let mut bytes = *b"flpb............";
        bytes[4..12].copy_from_slice(&self.secret.to_be_bytes());
        bytes[12..].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    /// Reads the token at the beginning of a payload; `None` if it has none, or that of another prober.
    pub(super) fn number_in(payload: &[u8], secret: u64) -> Option<u32> {
        let bytes = payload.get(..TOKEN_LEN)?;
        let (magic, rest) = bytes.split_at(4);
        let (theirs, number) = rest.split_at(8);
        (magic == b"flpb" && theirs == secret.to_be_bytes())
            .then(|| u32::from_be_bytes(number.try_into().expect("four bytes are left")))
    }
}

/// The bytes of the IP header that comes before an echo.
pub(super) fn ip_header_len(addr: IpAddr) -> usize {
    if addr.is_ipv4() { 20 } else { 40 }
}

/// An echo request with this token, so long that the packet has `size` bytes with its IP header, at least as many as
/// header and token take. Its checksum is complete for IPv4; for IPv6 the kernel completes it, which knows the source.
pub(super) fn echo(dst: IpAddr, id: u16, token: Token, size: u32) -> Vec<u8> {
    let least = ECHO_HEADER + TOKEN_LEN;
    let len = (size as usize).saturating_sub(ip_header_len(dst)).max(least);
    let mut packet = vec![0; len];
    packet[0] = if dst.is_ipv4() { ECHO_REQUEST } else { ECHO_REQUEST_V6 };
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&(token.number as u16).to_be_bytes());
    packet[ECHO_HEADER..least].copy_from_slice(&token.to_bytes());
    if dst.is_ipv4() {
        let sum = checksum(0, &packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// An ICMP echo request that is sent once, and how its answer is told from others: for a program that asks one question,
/// where an agent's probes keep many.
#[derive(Debug, Clone)]
pub struct EchoRequest {
    bytes: Vec<u8>,
    token: Token,
    is_v4: bool,
}

impl EchoRequest {
    /// A request to this address, so long that the packet has `size` bytes with its IP header, at least as many as it
    /// takes.
    pub fn new(to: IpAddr, size: u32) -> Self {
        let token = Token { secret: fastrand::u64(..), number: fastrand::u32(..) };
        Self { bytes: echo(to, 0, token, size), token, is_v4: to.is_ipv4() }
    }

    /// The ICMP message, for a raw socket or a ping socket of its family. The kernel completes its checksum for IPv6.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether what such a socket received is the answer. A raw socket of IPv4 gives the IP header, too.
    pub fn is_answered_by(&self, received: &[u8]) -> bool {
        let Token { secret, number } = self.token;
        [false, self.is_v4].into_iter().any(|has_ip_header| {
            let payload = reply_payload(received, self.is_v4, has_ip_header);
            payload.and_then(|payload| Token::number_in(payload, secret)) == Some(number)
        })
    }
}

/// A whole IP packet with a small echo request, to be sent in a tunnel by hand.
pub(super) fn echo_packet(src: IpAddr, dst: IpAddr, id: u16, token: Token) -> Option<Vec<u8>> {
    let mut echo = echo(dst, id, token, 0);
    let len = echo.len() as u16;
    let mut packet = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = [0; 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&(20 + len).to_be_bytes());
            (header[8], header[9]) = (HOP_LIMIT, ICMP);
            header[12..16].copy_from_slice(&src.octets());
            header[16..].copy_from_slice(&dst.octets());
            let sum = checksum(0, &header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header.to_vec()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = [0; 40];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&len.to_be_bytes());
            (header[6], header[7]) = (ICMPV6, HOP_LIMIT);
            header[8..24].copy_from_slice(&src.octets());
            header[24..].copy_from_slice(&dst.octets());
            // The pseudo header of RFC 8200 section 8.1.
            let pseudo = u32::from(len) + u32::from(ICMPV6);
            let sum = checksum(add(pseudo, &header[8..]), &echo);
            echo[2..4].copy_from_slice(&sum.to_be_bytes());
            header.to_vec()
        }
        _ => return None,
    };
    packet.append(&mut echo);
    Some(packet)
}

/// The payload of an echo reply. A raw socket of IPv4 gives the IP header, too.
pub(super) fn reply_payload(packet: &[u8], is_v4: bool, has_ip_header: bool) -> Option<&[u8]> {
    let icmp = if has_ip_header {
        let header = usize::from(packet.first()? & 0xf) * 4;
        packet.get(header..)?
    } else {
        packet
    };
    let reply = if is_v4 { ECHO_REPLY } else { ECHO_REPLY_V6 };
    (*icmp.first()? == reply).then(|| icmp.get(ECHO_HEADER..))?
}

/// The payload of an echo request of ours that an ICMP error quotes.
pub(super) fn quoted_payload(icmp: &[u8]) -> Option<&[u8]> {
    matches!(*icmp.first()?, ECHO_REQUEST | ECHO_REQUEST_V6).then(|| icmp.get(ECHO_HEADER..))?
}

fn add(sum: u32, bytes: &[u8]) -> u32 {
    let pairs = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    pairs.fold(sum, |sum, pair| sum + pair)
}

/// The internet checksum (RFC 1071) of bytes after what was summed up before.
fn checksum(sum: u32, bytes: &[u8]) -> u16 {
    let mut sum = add(sum, bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Token = Token { secret: 0x0102_0304_0506_0708, number: 77 };

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn tokens_are_read_from_replies_and_from_quotes() {
        let mut packet = echo(addr("10.5.2.0"), 9, TOKEN, 100);
        assert_eq!(packet.len(), 80);
        assert_eq!(checksum(0, &packet), 0, "a sum over its own checksum is zero");
        assert_eq!(Token::number_in(quoted_payload(&packet).unwrap(), TOKEN.secret), Some(77));
        assert_eq!(Token::number_in(quoted_payload(&packet).unwrap(), 1), None, "of somebody else");
        assert_eq!(reply_payload(&packet, true, false), None, "a request is no reply");
        packet[0] = ECHO_REPLY;
        let number = |packet: &[u8], has| Token::number_in(reply_payload(packet, true, has)?, TOKEN.secret);
        assert_eq!(number(&packet, false), Some(77));
        let with_header = [&[0x45; 20][..], &packet].concat();
        assert_eq!(number(&with_header, true), Some(77));
        for len in 0..ECHO_HEADER + TOKEN_LEN {
            assert_eq!(number(&packet[..len], false), None, "{len} bytes");
        }
    }

    #[test]
    fn only_its_own_answer_is_the_answer_to_a_request() {
        for to in ["10.5.2.0", "fd00:5::"].map(addr) {
            let (ours, others) = (EchoRequest::new(to, 84), EchoRequest::new(to, 84));
            assert!(!ours.is_answered_by(ours.bytes()), "a request is none");
            let mut answer = ours.bytes().to_vec();
            answer[0] = if to.is_ipv4() { ECHO_REPLY } else { ECHO_REPLY_V6 };
            assert!(ours.is_answered_by(&answer) && !others.is_answered_by(&answer));
            let whole = [&[0x45; 20][..], &answer].concat();
            assert_eq!(ours.is_answered_by(&whole), to.is_ipv4());
            assert!(!ours.is_answered_by(&whole[..30]) && !ours.is_answered_by(&[]));
        }
    }

    #[test]
    fn whole_packets_have_valid_checksums() {
        let v4 = echo_packet(addr("192.0.2.1"), addr("10.5.2.0"), 9, TOKEN).unwrap();
        assert_eq!((v4.len(), checksum(0, &v4[..20]), checksum(0, &v4[20..])), (44, 0, 0));
        let v6 = echo_packet(addr("2001:db8::1"), addr("fd00:5::"), 9, TOKEN).unwrap();
        let pseudo = add(24 + u32::from(ICMPV6), &v6[8..40]);
        assert_eq!((v6.len(), checksum(pseudo, &v6[40..])), (64, 0));
        assert_eq!(echo_packet(addr("192.0.2.1"), addr("fd00:5::"), 9, TOKEN), None);
    }

    #[test]
    fn sizes_count_the_ip_header_and_have_room_for_the_token() {
        assert_eq!(echo(addr("10.5.2.0"), 1, TOKEN, 1450).len(), 1430);
        assert_eq!(echo(addr("fd00:5::"), 1, TOKEN, 1430).len(), 1390);
        assert_eq!(echo(addr("fd00:5::"), 1, TOKEN, 0).len(), 24);
    }
}
