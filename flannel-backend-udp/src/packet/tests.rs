use super::icmp::{IcmpError, MAX_ERROR, build};
use super::*;
use crate::testing::{Inner, intact};

#[test]
fn impossible_lengths_are_refused() {
    let good = Inner::udp(b"hello").packet();
    assert!(IpHeader::parse(&good).is_ok());
    let with = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        IpHeader::parse(&packet).map(drop)
    };
    assert_eq!(IpHeader::parse(&[]), Err(HeaderError::Truncated));
    assert_eq!(IpHeader::parse(&good[..19]), Err(HeaderError::Truncated));
    assert_eq!(IpHeader::parse(&good[..good.len() - 1]), Err(HeaderError::Truncated));
    assert_eq!(with(0, 0x55), Err(HeaderError::Version));
    assert_eq!(with(0, 0x44), Err(HeaderError::Length), "a header of 16 bytes");
    assert_eq!(with(0, 0x4f), Err(HeaderError::Length), "a header longer than the packet");
    assert_eq!(with(3, 19), Err(HeaderError::Length));
    assert_eq!(with(2, 0xff), Err(HeaderError::Truncated));
    assert_eq!(IpHeader::parse(&[0x60; 39]), Err(HeaderError::Truncated));
    let v6 = Inner::udp(b"hello").v6().packet();
    assert_eq!(IpHeader::parse(&v6[..v6.len() - 1]), Err(HeaderError::Truncated));
}

#[test]
fn fragments_are_told_apart() {
    let fragment = |word: u16| {
        let mut packet = Inner::udp(b"hello").packet();
        put16(&mut packet, 6, word);
        IpHeader::parse(&packet).unwrap().fragment
    };
    assert_eq!(fragment(0x4000), Fragment::Whole);
    assert_eq!(fragment(0x2000), Fragment::First);
    assert_eq!(fragment(0x2001), Fragment::Later);
    assert_eq!(fragment(0x0001), Fragment::Later);
}

#[test]
fn extension_headers_lead_to_the_transport() {
    let mut packet = Inner::udp(b"hello").v6().packet();
    let plain = IpHeader::parse(&packet).unwrap();
    assert!(plain.is_plain && plain.protocol == transport::UDP && plain.header_len == 40);
    // A hop-by-hop header, then a later fragment's.
    packet[6] = 0;
    packet.splice(40..40, [44, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 8, 0, 0, 0, 1]);
    let len = packet.len() - 40;
    put16(&mut packet, 4, len as u16);
    let header = IpHeader::parse(&packet).unwrap();
    assert_eq!((header.header_len, header.protocol), (56, transport::UDP));
    assert!(header.fragment == Fragment::Later && !header.is_plain);
    // One that claims to be longer than the packet.
    packet[41] = 200;
    let header = IpHeader::parse(&packet).unwrap();
    assert_eq!((header.header_len, header.protocol), (40, ExtensionHeaders::NO_NEXT_HEADER));
}

#[test]
fn the_hop_limit_goes_down_and_never_round() {
    for inner in [Inner::udp(b"x"), Inner::udp(b"x").v6()] {
        for (ttl, left) in [(64, 63), (1, 0), (0, 0)] {
            let mut packet = inner.clone().ttl(ttl).packet();
            decrement_hop_limit(&mut packet);
            let header = IpHeader::parse(&packet).unwrap();
            assert_eq!(header.hop_limit, left);
            assert!(header.is_intact(&packet) && intact(&packet));
        }
    }
}

#[test]
fn errors_quote_the_packet_and_are_intact() {
    let payload = [7; 2000];
    let cases = [
        (IcmpError::TimeExceeded, (11, 0), (3, 0)),
        (IcmpError::NoRoute, (3, 0), (1, 0)),
        (IcmpError::HostUnreachable, (3, 1), (1, 3)),
        (IcmpError::TooBig(Mtu(1400)), (3, 4), (2, 0)),
    ];
    for (error, v4, v6) in cases {
        for (inner, wanted, limit) in [(Inner::udp(&payload), v4, 576), (Inner::udp(&payload).v6(), v6, 1280)]
        {
            let packet = inner.packet();
            let ip = IpHeader::parse(&packet).unwrap();
            let from: IpAddr =
                if ip.source.is_ipv4() { [10, 1, 0, 0].into() } else { "fd00::1".parse().unwrap() };
            let mut out = [0; MAX_ERROR];
            let len = build(error, &packet, &ip, from, &mut out).unwrap();
            let answer = IpHeader::parse(&out[..len]).unwrap();
            assert_eq!((answer.source, answer.destination, len), (from, ip.source, limit));
            assert!(answer.is_intact(&out) && intact(&out[..len]));
            let body = &out[answer.header_len..len];
            assert_eq!((body[0], body[1]), wanted);
            assert_eq!(&body[8..], &packet[..body.len() - 8]);
            if let IcmpError::TooBig(mtu) = error {
                assert_eq!(be32(body, 4), mtu.0);
            }
        }
    }
}

#[test]
fn some_packets_are_never_answered() {
    let answers = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = Inner::udp(b"hello").packet();
        edit(&mut packet);
        let ip = IpHeader::parse(&packet).unwrap();
        build(IcmpError::NoRoute, &packet, &ip, [10, 1, 0, 0].into(), &mut [0; MAX_ERROR]).is_some()
    };
    assert!(answers(&|_| {}));
    assert!(answers(&|packet| put16(packet, 6, 0x2000)), "a first fragment");
    assert!(!answers(&|packet| put16(packet, 6, 0x0001)), "a later fragment");
    assert!(!answers(&|packet| packet[16] = 224), "to a group");
    assert!(!answers(&|packet| packet[16..20].fill(255)), "to everyone");
    for source in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]] {
        assert!(!answers(&|packet| packet[12..16].copy_from_slice(&source)), "from {source:?}");
    }
    let icmp = |kind: u8| {
        answers(&|packet| {
            packet[9] = transport::ICMP;
            packet[20] = kind;
        })
    };
    assert!(icmp(8) && !icmp(3) && !icmp(11) && !icmp(5));
    let to_v6 = |kind: u8| {
        let mut packet = Inner::udp(b"hello").v6().packet();
        (packet[6], packet[40]) = (transport::ICMPV6, kind);
        let ip = IpHeader::parse(&packet).unwrap();
        build(IcmpError::NoRoute, &packet, &ip, "fd00::1".parse().unwrap(), &mut [0; MAX_ERROR])
    };
    assert!(to_v6(128).is_some() && to_v6(1).is_none());
    let other = Inner::udp(b"hello").packet();
    let ip = IpHeader::parse(&other).unwrap();
    assert!(
        build(IcmpError::NoRoute, &other, &ip, "fd00::1".parse().unwrap(), &mut [0; MAX_ERROR]).is_none()
    );
}

use flannel_core::addr::Mtu;
