use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::segment::{Cut, cut};
use crate::testing::{Inner, intact};
use crate::vnet::VnetHeader;

const BOTH: Coalesce = Coalesce { tcp: true, udp: true };

/// What would be written to the TUN for these packets.
fn writes(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut coalescer = Coalescer::new(BOTH, packets.len().max(1));
    let buffer = packets.concat();
    let mut at = 0;
    for packet in packets {
        let ip = IpHeader::parse(packet).unwrap();
        coalescer.push(&buffer, at..at + packet.len(), &ip);
        at += packet.len();
    }
    let write = |index| {
        let mut write = coalescer.head(&buffer, index).bytes().to_vec();
        coalescer.body(index).for_each(|range| write.extend(&buffer[range]));
        write
    };
    let all: Vec<Range<usize>> = (0..coalescer.len()).flat_map(|index| coalescer.packets(index)).collect();
    assert_eq!(
        all.iter().map(ExactSizeIterator::len).sum::<usize>(),
        buffer.len(),
        "nothing is lost one by one"
    );
    assert!(all.iter().all(|range| IpHeader::parse(&buffer[range.clone()]).is_ok()));
    (0..coalescer.len()).map(write).collect()
}

/// What the kernel makes of a write: our own cutting, which is tested by itself.
fn cut_again(write: &[u8]) -> Vec<Vec<u8>> {
    let (vnet, packet) = write.split_at(VnetHeader::LEN);
    let vnet = VnetHeader::from_bytes(vnet.try_into().unwrap());
    let mut packet = packet.to_vec();
    let ip = IpHeader::parse(&packet).unwrap();
    assert_eq!(ip.total_len, packet.len());
    match cut(vnet, &mut packet, &ip).unwrap() {
        Cut::Whole => vec![packet],
        Cut::Segments(mut segments) => {
            let mut header = vec![0; segments.header_len()];
            let next =
                || segments.next(&packet, &mut header).map(|range| [&header[..], &packet[range]].concat());
            std::iter::from_fn(next).collect()
        }
    }
}

fn train(sizes: &[usize]) -> Vec<Inner> {
    let mut sequence = 1000;
    let packet = |size: &usize| {
        let inner = Inner::tcp(&vec![*size as u8; *size]).sequence(sequence);
        sequence += *size as u32;
        inner
    };
    sizes.iter().map(packet).collect()
}

fn bytes(inners: &[Inner]) -> Vec<Vec<u8>> {
    inners.iter().map(Inner::packet).collect()
}

fn counts(packets: &[Vec<u8>]) -> Vec<usize> {
    writes(packets).iter().map(|write| cut_again(write).len()).collect()
}

#[test]
fn a_train_becomes_one_write() {
    let packets = bytes(&train(&[100, 100, 100, 60]));
    let writes = writes(&packets);
    assert_eq!(writes.len(), 1);
    let vnet = VnetHeader::from_bytes(writes[0][..10].try_into().unwrap());
    let wanted =
        VnetHeader { flags: 1, gso_type: 1, header_len: 40, gso_size: 100, csum_start: 20, csum_offset: 16 };
    assert_eq!(vnet, wanted);
    assert_eq!(cut_again(&writes[0]).len(), 4);
}

#[test]
fn what_the_kernel_could_not_restore_stays_apart() {
    let change = |at: usize, edit: &dyn Fn(Inner) -> Inner| {
        let mut inners = train(&[100; 4]);
        inners[at] = edit(inners[at].clone());
        counts(&bytes(&inners))
    };
    assert_eq!(change(0, &|inner| inner), [4]);
    assert_eq!(change(2, &|inner| inner.sequence(5)), [2, 1, 1], "a gap");
    assert_eq!(change(2, &|inner| inner.ttl(9)), [2, 1, 1]);
    assert_eq!(change(2, &|inner| inner.tos(9)), [2, 1, 1]);
    assert_eq!(change(1, &|inner| inner.flags(flags::ACK | flags::PSH)), [2, 2], "a push ends it");
    assert_eq!(change(2, &|inner| inner.flags(flags::ACK | flags::FIN)), [2, 1, 1]);
    assert_eq!(change(2, &|inner| inner.flags(0x02)), [2, 1, 1]);
    assert_eq!(change(2, &|inner| inner.identification(7, false)), [2, 1, 1], "DF differs");
    assert_eq!(counts(&bytes(&train(&[100, 60, 100]))), [2, 1], "a shorter one ends it");
    assert_eq!(counts(&bytes(&train(&[60, 100, 100]))), [1, 2], "a longer one begins anew");
    assert_eq!(counts(&bytes(&train(&[100, 0, 100]))), [1, 1, 1], "an ACK alone stays between");
    assert_eq!(counts(&bytes(&train(&[1400; 70]))), [46, 24], "65535 bytes");
    assert_eq!(counts(&bytes(&train(&[10; 70]))), [64, 6]);
}

#[test]
fn identifications_count_up_where_they_matter() {
    let ids = |ids: [u16; 3], dont_fragment| {
        let inner = |id| Inner::udp(&[1; 50]).identification(id, dont_fragment);
        counts(&bytes(&ids.map(inner)))
    };
    assert_eq!(ids([0xffff, 0, 1], false), [3]);
    assert_eq!(ids([5, 6, 6], false), [2, 1]);
    assert_eq!(ids([5, 5, 9], true), [3]);
}

#[test]
fn a_wrong_checksum_is_passed_on_alone_as_it_is() {
    let mut packets = bytes(&train(&[100; 4]));
    packets[1][60] ^= 1;
    let writes = writes(&packets);
    assert_eq!(writes.len(), 3);
    assert_eq!(writes[1], [&[0; 10][..], &packets[1]].concat());
    // UDP without a checksum has none to verify.
    let mut packet = Inner::udp(&[1; 50]).packet();
    packet[26..28].fill(0);
    assert_eq!(counts(&[packet.clone(), packet]), [1, 1]);
}

#[test]
fn nothing_overtakes_a_fragment() {
    let udp = Inner::udp(&[1; 50]);
    let mut fragment = udp.packet();
    fragment[6] = 0x20;
    crate::testing::fix_header(&mut fragment);
    let packets = [udp.packet(), udp.packet(), fragment, udp.packet(), udp.packet()];
    assert_eq!(counts(&packets), [2, 1, 2]);
}

#[test]
fn flows_mix_without_stopping_each_other() {
    let a = train(&[100; 3]);
    let b: Vec<_> = train(&[100; 3]).into_iter().map(|inner| inner.ports(1, 2)).collect();
    let c: Vec<_> = train(&[100; 3]).into_iter().map(Inner::v6).collect();
    let mixed: Vec<_> =
        (0..3).flat_map(|index| [a[index].clone(), b[index].clone(), c[index].clone()]).collect();
    assert_eq!(counts(&bytes(&mixed)), [3, 3, 3]);
}

/// Packets of a few flows, as a network might mix them up.
fn traffic() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let packet = (0..4_u16, any::<bool>(), any::<bool>(), 0..5_usize, 0..12_u8);
    prop::collection::vec(packet, 1..120).prop_map(|drawn| {
        let mut sequences = HashMap::new();
        let mut packets = Vec::new();
        for (number, (port, tcp, v6, size, oddity)) in drawn.into_iter().enumerate() {
            let size = [0, 3, 60, 60, 1400][size];
            let sequence = sequences.entry((port, v6)).or_insert(u32::MAX - 500);
            let payload: Vec<u8> = (0..size).map(|at| (number + at) as u8).collect();
            let mut inner = if tcp { Inner::tcp(&payload) } else { Inner::udp(&payload) };
            inner = inner.ports(port, 80).sequence(*sequence).identification(number as u16, oddity != 1);
            if tcp {
                *sequence = sequence.wrapping_add(size as u32);
            }
            inner = match oddity {
                2 => inner.flags(flags::ACK | flags::PSH),
                3 => inner.flags(flags::ACK | flags::FIN),
                4 => inner.tos(3),
                _ => inner,
            };
            let mut packet = if v6 { inner.v6() } else { inner }.packet();
            let last = packet.len() - 1;
            match oddity {
                5 => packet[last] ^= 0x55,
                6 if !v6 => {
                    packet[6] |= 0x20;
                    crate::testing::fix_header(&mut packet);
                }
                _ => {}
            }
            packets.push(packet);
        }
        packets
    })
}

/// What a flow is, for comparing: addresses, protocol, ports.
fn flow(packet: &[u8]) -> Vec<u8> {
    let ip = IpHeader::parse(packet).unwrap();
    let addresses = if ip.source.is_ipv4() { &packet[12..20] } else { &packet[8..40] };
    [addresses, &[ip.protocol], &packet[ip.header_len..ip.header_len + 4]].concat()
}

/// A packet without what cutting may count anew: the identification under DF, and the sums over it.
fn comparable(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let ip = IpHeader::parse(&packet).unwrap();
    if ip.source.is_ipv4() && ip.dont_fragment {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever goes in comes out: every packet, byte for byte, in order within its flow.
    #[test]
    fn coalescing_and_cutting_again_changes_nothing(packets in traffic()) {
        let out: Vec<Vec<u8>> = writes(&packets).iter().flat_map(|write| cut_again(write)).collect();
        prop_assert_eq!(out.len(), packets.len());
        let by_flow = |packets: &[Vec<u8>]| {
            let mut flows: HashMap<_, Vec<_>> = HashMap::new();
            for packet in packets {
                flows.entry(flow(packet)).or_default().push(comparable(packet));
            }
            flows
        };
        prop_assert_eq!(by_flow(&out), by_flow(&packets));
        let broken = |packets: &[Vec<u8>]| packets.iter().filter(|packet| !intact(packet)).count();
        prop_assert_eq!(broken(&out), broken(&packets), "no checksum is broken, and none is mended");
    }

    /// Nor does cutting and coalescing.
    #[test]
    fn cutting_and_coalescing_again_keeps_the_payload(
        payload in prop::collection::vec(any::<u8>(), 1..6000), size in 100..1500_u16, tcp: bool, v6: bool,
    ) {
        let inner = if tcp { Inner::tcp(&payload) } else { Inner::udp(&payload) };
        let mut packet = if v6 { inner.v6() } else { inner }.packet();
        let ip = IpHeader::parse(&packet).unwrap();
        let gso_type = match (tcp, v6) {
            (true, false) => VnetHeader::GSO_TCPV4,
            (true, true) => VnetHeader::GSO_TCPV6,
            _ => VnetHeader::GSO_UDP_L4,
        };
        let vnet = VnetHeader { gso_type, gso_size: size, ..VnetHeader::default() };
        let Cut::Segments(mut segments) = cut(vnet, &mut packet, &ip).unwrap() else { panic!("it is cut") };
        let header_len = segments.header_len();
        let mut header = vec![0; header_len];
        let mut parts = Vec::new();
        while let Some(range) = segments.next(&packet, &mut header) {
            parts.push([&header[..], &packet[range]].concat());
        }
        prop_assert!(parts.iter().all(|part| intact(part)));
        let writes = writes(&parts);
        prop_assert_eq!(writes.len(), 1);
        prop_assert_eq!(&writes[0][VnetHeader::LEN + header_len..], &payload[..]);
    }
}

/// What our own cutting refuses is not made: a node's pod may be another overlay's node.
#[test]
fn packets_of_a_few_bytes_stay_alone() {
    for inner in [Inner::udp(&[7; 7]), Inner::udp(&[7; 7]).v6()] {
        assert_eq!(counts(&bytes(&[inner.clone(), inner.clone(), inner])), [1, 1, 1]);
    }
    assert_eq!(counts(&bytes(&train(&[7, 7, 7]))), [1, 1, 1]);
    assert_eq!(counts(&bytes(&train(&[8, 8, 8]))), [3]);
    assert_eq!(counts(&bytes(&train(&[100, 100, 1]))), [3], "the last one may be shorter");
}
