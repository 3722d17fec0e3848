use super::*;
use crate::packet::checksum::Sum;
use crate::testing::{Inner, fix_header, intact};

/// A super-packet as the kernel hands it over: the checksum is that of the pseudo header alone.
fn offloaded(inner: &Inner, gso_type: u8, gso_size: u16) -> (VnetHeader, Vec<u8>) {
    let mut packet = inner.packet();
    let ip = IpHeader::parse(&packet).unwrap();
    let csum_offset = if ip.protocol == TCP { 16 } else { 6 };
    let sum = ip.pseudo_sum(&packet, packet.len() - ip.header_len).folded();
    put16(&mut packet, ip.header_len + usize::from(csum_offset), sum);
    let csum_start = ip.header_len as u16;
    let flags = VnetHeader::NEEDS_CHECKSUM;
    (VnetHeader { flags, gso_type, header_len: 0, gso_size, csum_start, csum_offset }, packet)
}

fn parts(vnet: VnetHeader, packet: &mut [u8]) -> Result<Vec<Vec<u8>>, SegmentError> {
    let ip = IpHeader::parse(packet).unwrap();
    match cut(vnet, packet, &ip)? {
        Cut::Whole => Ok(vec![packet.to_vec()]),
        Cut::Segments(mut segments) => {
            let mut parts = Vec::new();
            let mut header = vec![0; segments.header_len()];
            while let Some(payload) = segments.next(packet, &mut header) {
                parts.push([&header, &packet[payload]].concat());
            }
            assert_eq!(parts.len(), segments.count());
            assert!(parts.iter().rev().skip(1).all(|part| part.len() == segments.full_len()));
            Ok(parts)
        }
    }
}

#[test]
fn a_super_packet_becomes_packets_that_stand_alone() {
    let payload: Vec<u8> = (0..4000_u32).map(|byte| byte as u8).collect();
    let bits = flags::ACK | flags::PSH | flags::FIN | flags::CWR;
    let tcp = Inner::tcp(&payload).sequence(u32::MAX - 1000).flags(bits).identification(0xffff, false);
    let udp = Inner::udp(&payload);
    let cases = [
        (tcp.clone(), VnetHeader::GSO_TCPV4 | VnetHeader::GSO_ECN, 40),
        (tcp.v6(), VnetHeader::GSO_TCPV6, 60),
        (udp.clone(), VnetHeader::GSO_UDP_L4, 28),
        (udp.v6(), VnetHeader::GSO_UDP_L4, 48),
    ];
    for (inner, kind, headers) in cases {
        let (vnet, mut packet) = offloaded(&inner, kind, 1400);
        let parts = parts(vnet, &mut packet).unwrap();
        assert_eq!(
            parts.iter().map(Vec::len).collect::<Vec<_>>(),
            [1400, 1400, 1200].map(|len| len + headers)
        );
        assert!(parts.iter().all(|part| intact(part)), "{kind}");
        let joined: Vec<u8> = parts.iter().flat_map(|part| part[headers..].to_vec()).collect();
        assert_eq!(joined, payload);
        if kind & 0x7f == VnetHeader::GSO_TCPV4 {
            let seen: Vec<_> = parts.iter().map(|part| TcpHeader::parse(&part[20..]).unwrap()).collect();
            assert_eq!(seen[1].sequence, (u32::MAX - 1000).wrapping_add(1400), "it wraps");
            assert_eq!(seen[0].flags, flags::ACK | flags::CWR);
            assert_eq!(seen[1].flags, flags::ACK);
            assert_eq!(seen[2].flags, flags::ACK | flags::PSH | flags::FIN);
            let ids: Vec<_> = parts.iter().map(|part| be16(part, 4)).collect();
            assert_eq!(ids, [0xffff, 0, 1]);
        }
    }
}

/// RFC 8200 section 8.1: behind a routing header, the sum counts the last hop, not the next.
#[test]
fn behind_a_source_route_the_last_hop_counts() {
    for inner in [Inner::tcp(&[7; 4000]).v6(), Inner::udp(&[7; 4000]).v6()] {
        let direct = inner.packet();
        let kind = if direct[6] == TCP { VnetHeader::GSO_TCPV6 } else { VnetHeader::GSO_UDP_L4 };
        let last_hop: [u8; 16] = direct[24..40].try_into().unwrap();
        let (mut vnet, mut packet) = offloaded(&inner, kind, 1000);
        // Type 2, one segment left, and the last hop (RFC 6275 section 6.4).
        let routing: Vec<u8> = [packet[6], 2, 2, 1, 0, 0, 0, 0].into_iter().chain(last_hop).collect();
        packet.splice(40..40, routing);
        packet[6] = 43;
        packet[24..40].copy_from_slice(&[0xfd; 16]);
        put16(&mut packet, 4, (direct.len() - 40 + 24) as u16);
        vnet.csum_start = 64;
        let parts = parts(vnet, &mut packet).unwrap();
        assert_eq!(parts.len(), 4);
        for mut part in parts {
            // As it arrives: the last hop is the destination, and no segment is left.
            let (kind, len) = (part[40], part.len() - 40 - 24);
            part.drain(40..64);
            part[6] = kind;
            part[24..40].copy_from_slice(&last_hop);
            put16(&mut part, 4, len as u16);
            assert!(intact(&part));
        }
    }
}

#[test]
fn a_checksum_left_to_us_is_completed() {
    for inner in [Inner::tcp(b"hello"), Inner::udp(b"hello"), Inner::udp(b"hello").v6(), Inner::tcp(b"").v6()]
    {
        let (vnet, mut packet) = offloaded(&inner, VnetHeader::GSO_NONE, 0);
        assert_eq!(parts(vnet, &mut packet).unwrap(), [inner.packet()]);
    }
    // A UDP sum of zero is sent as all ones.
    let mut inner = Inner::udp(&[0, 0]);
    let packet = inner.packet();
    let ip = IpHeader::parse(&packet).unwrap();
    let rest = ip.pseudo_sum(&packet, 10).bytes(&packet[20..26]).bytes(&[0, 0]).folded();
    inner = Inner::udp(&(!rest).to_be_bytes());
    let (vnet, mut packet) = offloaded(&inner, VnetHeader::GSO_NONE, 0);
    let done = parts(vnet, &mut packet).unwrap().remove(0);
    assert_eq!(be16(&done, 26), 0xffff);
    assert!(intact(&done) && Sum::default().bytes(&done[..20]).is_intact());
}

#[test]
fn nonsense_is_refused() {
    let tcp = Inner::tcp(&[1; 100]);
    let refused = |edit: &dyn Fn(&mut VnetHeader, &mut Vec<u8>)| {
        let (mut vnet, mut packet) = offloaded(&tcp, VnetHeader::GSO_TCPV4, 40);
        edit(&mut vnet, &mut packet);
        parts(vnet, &mut packet).map(|parts| parts.len())
    };
    assert_eq!(refused(&|_, _| {}), Ok(3));
    assert_eq!(refused(&|vnet, _| vnet.gso_size = 0), Err(SegmentError::NoSegmentSize));
    for tiny in 1..MIN_SEGMENT as u16 {
        assert_eq!(refused(&|vnet, _| vnet.gso_size = tiny), Err(SegmentError::TinySegments), "{tiny}");
    }
    assert_eq!(refused(&|vnet, _| vnet.gso_size = MIN_SEGMENT as u16), Ok(13), "the kernel's smallest");
    assert_eq!(refused(&|vnet, _| vnet.gso_size = 5000), Ok(1), "larger than the payload: one segment");
    assert_eq!(refused(&|vnet, _| vnet.gso_type = VnetHeader::GSO_TCPV6), Err(SegmentError::WrongProtocol));
    assert_eq!(refused(&|vnet, _| vnet.gso_type = VnetHeader::GSO_UDP_L4), Err(SegmentError::WrongProtocol));
    assert_eq!(refused(&|vnet, _| vnet.gso_type = 3), Err(SegmentError::UnknownKind), "UFO");
    assert_eq!(refused(&|_, packet| packet[32] = 0x40), Err(SegmentError::TransportHeader));
    assert_eq!(refused(&|_, packet| packet[6] = 0x20), Err(SegmentError::Fragment));
    let long = &|_: &mut VnetHeader, packet: &mut Vec<u8>| {
        packet.truncate(40);
        put16(packet, 2, 40);
        packet[32] = 0xf0;
        fix_header(packet);
    };
    assert_eq!(refused(long), Err(SegmentError::TransportHeader), "options longer than the packet");
    let whole = |vnet: &mut VnetHeader| vnet.gso_type = VnetHeader::GSO_NONE;
    let far = |vnet: &mut VnetHeader, _: &mut Vec<u8>| {
        whole(vnet);
        vnet.csum_offset = 119;
    };
    assert_eq!(refused(&far), Err(SegmentError::ChecksumPlace));
    let into_header = |vnet: &mut VnetHeader, _: &mut Vec<u8>| {
        whole(vnet);
        vnet.csum_start = 0;
    };
    assert_eq!(refused(&into_header), Err(SegmentError::ChecksumPlace));
}

/// A pod with `NET_RAW` chooses the segment size: 60,000 segments of one byte held up the worker for 14 ms.
#[test]
fn a_super_packet_costs_no_more_than_its_bytes() {
    for (len, size, wanted) in [
        (60_000, 1, Err(SegmentError::TinySegments)),
        (60_000, 7, Err(SegmentError::TinySegments)),
        (60_000, 100, Err(SegmentError::TinySegments)),
        (512 * 100, 100, Ok(512)),
        (512 * 100 + 1, 100, Err(SegmentError::TinySegments)),
        (512 * 8, 8, Ok(512)),
        (512 * 8 + 1, 8, Err(SegmentError::TinySegments)),
        (60_000, 1400, Ok(43)),
        // One segment costs what a packet does, whatever its size.
        (1, 1, Ok(1)),
        (0, 1, Ok(1)),
    ] {
        let payload = vec![7; len];
        let (tcp, udp) = (Inner::tcp(&payload), Inner::udp(&payload));
        for (inner, kind) in [
            (tcp.clone(), VnetHeader::GSO_TCPV4),
            (tcp.v6(), VnetHeader::GSO_TCPV6),
            (udp.clone(), VnetHeader::GSO_UDP_L4),
            (udp.v6(), VnetHeader::GSO_UDP_L4),
        ] {
            let (vnet, mut packet) = offloaded(&inner, kind, size);
            let found = parts(vnet, &mut packet).map(|parts| parts.len());
            assert_eq!(found, wanted, "{len} bytes by {size}, kind {kind}");
        }
    }
}
