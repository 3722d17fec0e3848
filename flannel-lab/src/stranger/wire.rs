//! Packets as bytes: whole ones, their way through a tunnel, and what noise makes of them. Pure.

use std::net::{IpAddr, SocketAddr};

/// The protocol number of UDP (RFC 768).
const UDP: u8 = 17;
/// A header of UDP, in bytes.
const UDP_HEADER: usize = 8;

/// A UDP packet with its IP header and right checksums: IPv4 (RFC 791) or IPv6 (RFC 8200).
///
/// # Panics
///
/// If the addresses are of two families, or it gets longer than 65,535 bytes.
pub fn udp_packet(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(UDP_HEADER + payload.len()).expect("a packet has 65,535 bytes at most");
    let mut udp = Vec::new();
    for word in [from.port(), to.port(), udp_len, 0] {
        udp.extend(word.to_be_bytes());
    }
    udp.extend(payload);
    // The pseudo-header of both families comes to the same sum: addresses, protocol, length (RFC 8200, 8.1).
    let pseudo =
        [address(from.ip()), address(to.ip()), vec![0, UDP], udp_len.to_be_bytes().to_vec()].concat();
    let sum = match checksum(&[&pseudo, &udp]) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut packet = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let len = (udp_len + 20).to_be_bytes();
            let mut header = vec![0x45, 0, len[0], len[1], 0, 0, 0x40, 0, 64, UDP, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&[&header]).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let len = udp_len.to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, len[0], len[1], UDP, 64];
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        _ => panic!("{from} and {to} are of two families"),
    };
    packet.extend(udp);
    packet
}

/// A packet in an Ethernet frame to a MAC, in VXLAN (RFC 7348): what goes into a datagram.
pub fn vxlan(vni: u32, mac: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let vni = vni.to_be_bytes();
    let ether_type: [u8; 2] =
        if packet.first().is_some_and(|byte| byte >> 4 == 6) { [0x86, 0xdd] } else { [8, 0] };
    let header = [8, 0, 0, 0, vni[1], vni[2], vni[3], 0];
    // A locally administered source that no node has.
    let source = [0x02, 0x57, 0x77, 0, 0, 1];
    [&header[..], &mac, &source, &ether_type, packet].concat()
}

/// Damage number `number` of a datagram: the same number, the same damage.
///
/// Every cut, every byte flipped, every byte at its bounds, runs of one byte, and noise of all lengths come
/// within some multiples of its length.
pub fn damaged(datagram: &[u8], number: usize) -> Vec<u8> {
    let (kind, place) = (number % 6, number / 6);
    let mut bytes = datagram.to_vec();
    let at = place % bytes.len().max(1);
    match kind {
        0 => bytes.truncate(at),
        1 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (place % 8)),
        2 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = 0xff),
        3 => bytes.iter_mut().skip(at).take(2).for_each(|byte| *byte = 0),
        4 => bytes.iter_mut().skip(at).for_each(|byte| *byte = 0xff),
        _ => {
            let mut rng = fastrand::Rng::with_seed(place as u64);
            bytes = std::iter::repeat_with(|| rng.u8(..)).take(place % 1400).collect();
        }
    }
    bytes
}

fn address(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071) of parts that each but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 =
        words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(from: &str, to: &str) -> Vec<u8> {
        udp_packet(from.parse().unwrap(), to.parse().unwrap(), b"odd")
    }

    /// A header with a right checksum in it sums up to zero.
    #[test]
    fn checksums_are_right() {
        let v4 = packet("10.1.2.3:7", "10.1.3.4:9999");
        assert_eq!(checksum(&[&v4[..20]]), 0);
        let pseudo = [&v4[12..20], &[0, UDP, 0, 11]].concat();
        assert_eq!((v4.len(), checksum(&[&pseudo, &v4[20..]])), (31, 0));
        let v6 = packet("[fd00::1]:7", "[fd00::2]:9999");
        let pseudo = [&v6[8..40], &[0, 0, 0, 11, 0, 0, 0, UDP]].concat();
        assert_eq!((v6.len(), checksum(&[&pseudo, &v6[40..]])), (51, 0));
    }

    #[test]
    fn frames_name_what_is_in_them() {
        let v4 = vxlan(1, [0xff; 6], &packet("10.1.2.3:7", "10.1.3.4:9"));
        assert_eq!((&v4[..8], &v4[20..22]), (&[8, 0, 0, 0, 0, 0, 1, 0][..], &[8, 0][..]));
        assert_eq!(vxlan(1, [0xff; 6], &packet("[fd00::1]:7", "[fd00::2]:9"))[20..22], [0x86, 0xdd]);
    }

    #[test]
    fn damage_is_the_same_again_and_of_every_kind() {
        let whole = packet("10.1.2.3:7", "10.1.3.4:9");
        let all = (0..6 * 1400).map(|number| damaged(&whole, number)).collect::<Vec<_>>();
        assert_eq!(all, (0..6 * 1400).map(|number| damaged(&whole, number)).collect::<Vec<_>>());
        let lengths = all.iter().map(Vec::len).collect::<std::collections::BTreeSet<_>>();
        assert!((0..1400).all(|length| lengths.contains(&length)), "{lengths:?}");
        let changed_at =
            |at: usize| all.iter().any(|bytes| bytes.len() == whole.len() && bytes[at] != whole[at]);
        assert!((0..whole.len()).all(changed_at));
        assert!((0..100).all(|number| damaged(&[], number).is_empty() || number % 6 == 5));
    }
}
