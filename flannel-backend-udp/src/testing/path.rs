//! The whole packet path as one function of bytes, for fuzzing: no sockets, no TUN.

use std::net::IpAddr;

use flannel_core::addr::{Mtu, PerFamily, Subnet};

use super::intact;
use crate::coalesce::{Coalesce, Coalescer};
use crate::forward::{ForwardingTable, Inbound, Lookup, Outbound, Peer, TableSpec};
use crate::packet::icmp::{IcmpError, MAX_ERROR, build};
use crate::packet::{Fragment, IpHeader, decrement_hop_limit};
use crate::segment::{Cut, MAX_HEADERS, MAX_SEGMENTS, cut, is_worth_cutting};
use crate::vnet::VnetHeader;

const CAPACITY: usize = 512;

/// A table in which a little of everything is.
fn table() -> ForwardingTable {
    let subnets =
        |texts: &[&str]| -> Vec<Subnet> { texts.iter().filter_map(|text| text.parse().ok()).collect() };
    let peer = |last, own: &[&str]| Peer {
        endpoint: ([192, 0, 2, last], 8285).into(),
        other_sources: vec![],
        subnets: subnets(own),
    };
    let spec = TableSpec {
        own_subnets: subnets(&["10.1.2.0/24", "fd00:2::/64"]),
        own_addresses: PerFamily { v4: Some([10, 1, 2, 0].into()), v6: "fd00:2::".parse().ok() },
        overlay_mtu: Some(Mtu(1472)),
        peers: vec![peer(1, &["10.1.1.0/24", "fd00:1::/64"]), peer(2, &["10.1.0.0/16", "10.1.1.128/25"])],
        allowed_sources: subnets(&["198.51.100.0/24"]),
    };
    ForwardingTable::new(spec, None)
}

/// Runs bytes through both directions and checks what must hold whatever they are.
///
/// The first bytes choose the outer source and how the rest is cut into datagrams, or are the
/// virtio-net header in front of a packet.
pub fn packet_path(data: &[u8]) {
    let Some((choice, rest)) = data.split_first_chunk::<3>() else { return };
    let table = table();
    let mut lookup = Lookup::new(&table);
    errors(rest);
    if choice[0] & 1 == 0 {
        if let Some((vnet, packet)) = rest.split_first_chunk() {
            from_tun(VnetHeader::from_bytes(*vnet), packet.to_vec(), &mut lookup);
        }
    } else {
        let source: IpAddr = match choice[0] >> 1 & 3 {
            0 => [192, 0, 2, 1].into(),
            1 => [192, 0, 2, 2].into(),
            2 => [198, 51, 100, 1].into(),
            _ => [203, 0, 113, 1].into(),
        };
        let segment = usize::from(u16::from_le_bytes([choice[1], choice[2]])).max(1);
        to_tun(source, segment, rest.to_vec(), &mut lookup);
    }
}

fn errors(packet: &[u8]) {
    let Ok(ip) = IpHeader::parse(packet) else { return };
    let from: IpAddr = if ip.source.is_ipv4() { [10, 1, 2, 0].into() } else { [0xfd; 16].into() };
    for error in [IcmpError::TimeExceeded, IcmpError::NoRoute, IcmpError::TooBig(Mtu(1400))] {
        let mut out = [0; MAX_ERROR];
        if let Some(len) = build(error, packet, &ip, from, &mut out) {
            assert!(intact(&out[..len]));
        }
    }
}

fn from_tun(vnet: VnetHeader, mut packet: Vec<u8>, lookup: &mut Lookup<'_>) {
    let Ok(ip) = IpHeader::parse(&packet) else { return };
    packet.truncate(ip.total_len);
    let Ok(cut) = cut(vnet, &mut packet, &ip) else { return };
    let largest = match &cut {
        Cut::Whole => packet.len(),
        Cut::Segments(segments) => segments.full_len(),
    };
    if !matches!(lookup.outbound(&ip, largest), Outbound::Send(_)) {
        return;
    }
    decrement_hop_limit(&mut packet);
    let Cut::Segments(mut segments) = cut else { return };
    assert!(segments.count() <= MAX_SEGMENTS, "no packet costs more");
    let mut header = [0; MAX_HEADERS];
    let header = &mut header[..segments.header_len()];
    let (mut count, mut payload) = (0, Vec::<u8>::new());
    while let Some(range) = segments.next(&packet, header) {
        let part = [&*header, &packet[range.clone()]].concat();
        let parsed = IpHeader::parse(&part).expect("what we cut can be read");
        assert_eq!(parsed.total_len, part.len());
        assert!(part.len() <= segments.full_len());
        // With extension headers the pseudo header may be another.
        assert!(!ip.is_plain || intact(&part));
        payload.extend(&packet[range]);
        count += 1;
    }
    assert_eq!(count, segments.count());
    assert_eq!(payload, &packet[header.len()..]);
}

fn to_tun(source: IpAddr, segment: usize, mut buffer: Vec<u8>, lookup: &mut Lookup<'_>) {
    let mut coalescer = Coalescer::new(Coalesce { tcp: true, udp: true }, CAPACITY);
    let sender = lookup.sender(source);
    if !is_worth_cutting(buffer.len(), segment) {
        return;
    }
    let (mut start, mut expected) = (0, Vec::new());
    while start < buffer.len() && !coalescer.is_full() {
        let end = (start + segment).min(buffer.len());
        if let Ok(ip) = IpHeader::parse(&buffer[start..end])
            && let Inbound::Accept(_) = lookup.inbound(sender, source, &ip)
        {
            assert!(lookup.table().is_ours(ip.destination), "no packet leaves this node again");
            let packet = &mut buffer[start..start + ip.total_len];
            if ip.is_intact(packet) {
                decrement_hop_limit(packet);
                coalescer.push(&buffer, start..start + ip.total_len, &ip);
                expected.push(start..start + ip.total_len);
            }
        }
        start = end;
    }
    let mut seen = Vec::new();
    for index in 0..coalescer.len() {
        seen.extend(coalescer.packets(index));
        let head = coalescer.head(&buffer, index);
        let mut write = head.bytes()[VnetHeader::LEN..].to_vec();
        coalescer.body(index).for_each(|range| write.extend(&buffer[range]));
        let ip = IpHeader::parse(&write).expect("what we write can be read");
        assert_eq!(ip.total_len, write.len());
        if head.packets() > 1 {
            assert!(ip.fragment == Fragment::Whole && ip.is_plain && ip.is_intact(&write));
            let vnet = head.bytes().first_chunk().map(|bytes| VnetHeader::from_bytes(*bytes));
            let vnet = vnet.expect("each write begins with one");
            let Ok(Cut::Segments(segments)) = cut(vnet, &mut write, &ip) else {
                panic!("it can be cut again")
            };
            assert_eq!(segments.count(), head.packets());
        }
    }
    seen.sort_by_key(|range| range.start);
    assert_eq!(seen, expected, "each packet leaves once");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Inner, fix_header};
    use super::*;

    /// Valid packets, some bytes changed afterwards.
    fn input() -> impl Strategy<Value = Vec<u8>> {
        let packet =
            (any::<bool>(), any::<bool>(), 0..200_usize, 0..6_u32).prop_map(|(tcp, v6, len, step)| {
                let payload = vec![7; len];
                let inner = if tcp { Inner::tcp(&payload) } else { Inner::udp(&payload) };
                let inner = inner.sequence(step * len as u32);
                let mut packet = if v6 { inner.v6() } else { inner }.packet();
                if !v6 {
                    fix_header(&mut packet);
                }
                packet
            });
        let change = (any::<prop::sample::Index>(), any::<u8>());
        let parts = (any::<[u8; 3]>(), any::<[u8; 10]>(), prop::collection::vec(packet, 1..8));
        (parts, prop::collection::vec(change, 0..4)).prop_map(|((mut choice, mut vnet, packets), changes)| {
            let inbound = choice[0] & 1 == 1;
            if inbound {
                let len = packets[0].len() as u16;
                choice[1..].copy_from_slice(&len.to_le_bytes());
            } else {
                // Mostly what the kernel could send.
                vnet[1] = [0, 1, 4, 5, 0x81, vnet[1]][usize::from(choice[1]) % 6];
                vnet[5] = 0;
            }
            let mut all = choice.to_vec();
            if !inbound {
                all.extend(vnet);
            }
            all.extend(packets.concat());
            for (index, byte) in changes {
                let at = index.index(all.len());
                all[at] = byte;
            }
            all
        })
    }

    /// The stored corpus of the fuzz target, and mutations of it.
    #[test]
    fn what_was_stored_and_its_neighbours_do_too() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/packet_path");
        flannel_core::testing::fuzz::replay(&folder, 20_000, packet_path);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn any_bytes_pass_or_are_dropped(data: Vec<u8>) {
            packet_path(&data);
        }

        #[test]
        fn nearly_valid_packets_do_too(data in input()) {
            packet_path(&data);
        }
    }
}
