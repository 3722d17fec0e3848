//! Encoding and decoding, without a kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use neli::consts::nl::NlmF;
use neli::consts::rtnl::Rtm;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::super::fuzz::every_way;
use super::super::message::{Datagram, Message, Verdict, split};
use super::super::next_hops::NextHops;
use super::super::{encode, events, link};
use crate::addr::{Family, LinkIndex, MacAddr, Mtu, Subnet, Vni};
use crate::dataplane::{Address, FdbEntry, Neighbour, Object, Op, Route, Through};
use crate::kernel::{KernelEvent, LinkOp, VxlanLink};

/// The number of every next-hop object here.
const NUMBER: u32 = 0x6600_0007;

fn addr(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::V4 => any::<Ipv4Addr>().prop_map(IpAddr::from).boxed(),
        Family::V6 => any::<Ipv6Addr>().prop_map(IpAddr::from).boxed(),
    }
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn any_addr() -> impl Strategy<Value = IpAddr> {
    family().prop_flat_map(addr)
}

fn index() -> impl Strategy<Value = LinkIndex> {
    (1..=i32::MAX.cast_unsigned()).prop_map(LinkIndex)
}

fn subnet() -> impl Strategy<Value = Subnet> {
    (any_addr(), 0..=128_u8)
        .prop_map(|(addr, prefix)| Subnet::containing(addr, prefix.min(Family::of(addr).bits())).unwrap())
}

fn route() -> impl Strategy<Value = Route> {
    let shape = |dst: Subnet| {
        let via = option::of(addr(dst.family()));
        let mtu = option::of((1..=u32::MAX).prop_map(Mtu));
        (Just(dst), 1..=u32::MAX, via, option::of(index()), any::<bool>(), any::<u8>(), mtu)
    };
    let unicast =
        subnet().prop_flat_map(shape).prop_map(|(dst, metric, via, link, onlink, protocol, mtu)| Route {
            dst,
            metric,
            via,
            link,
            onlink,
            through: Through::Itself,
            protocol,
            mtu,
            plain: true,
        });
    prop_oneof![4 => unicast, 1 => subnet().prop_map(Route::blackhole)]
}

fn object() -> impl Strategy<Value = Object> {
    let mac = || any::<[u8; 6]>().prop_map(MacAddr);
    let vni = (0..=Vni::MAX).prop_map(|vni| Vni::new(vni).unwrap());
    prop_oneof![
        (index(), any_addr(), 0..=128_u8).prop_map(|(link, addr, prefix)| {
            let addr = IpNetwork::new(addr, prefix.min(Family::of(addr).bits())).unwrap();
            Object::Address(Address { link, addr })
        }),
        (index(), any_addr(), mac()).prop_map(|(link, addr, mac)| Object::Neighbour(Neighbour {
            link,
            addr,
            mac
        })),
        (index(), mac(), any_addr(), option::of(any::<u16>()), option::of(vni), option::of(index()))
            .prop_map(|(link, mac, dst, port, vni, via)| {
                Object::Fdb(FdbEntry { link, mac, dst, port, vni, via })
            }),
        route().prop_map(Object::Route),
    ]
}

fn datagram(op: &Op) -> Vec<u8> {
    let mut datagram = Datagram::default();
    encode::op(&mut datagram, op, Some(NUMBER), 7, false);
    datagram.bytes().to_vec()
}

fn decoded(datagram: &[u8]) -> Vec<KernelEvent> {
    let mut events = Vec::new();
    events::decode_all(datagram, 0xffff_ffff, &mut NextHops::default(), &mut events);
    events
}

proptest! {
    /// The kernel announces a new object in the form of the request that made it.
    #[test]
    fn what_is_encoded_is_decoded(object in object()) {
        prop_assert_eq!(decoded(&datagram(&Op::Create(object))), [KernelEvent::Put(object)]);
        prop_assert_eq!(decoded(&datagram(&Op::Replace(object))), [KernelEvent::Put(object)]);
        prop_assert_eq!(decoded(&datagram(&Op::Delete(object))), [KernelEvent::Gone(object.key())]);
    }

    #[test]
    fn messages_are_told_apart(objects in vec(object(), 0..20)) {
        let mut datagram = Datagram::default();
        for (seq, object) in (1..).zip(&objects) {
            encode::op(&mut datagram, &Op::Create(*object), Some(NUMBER), seq, seq as usize == objects.len());
        }
        let messages: Vec<_> = split(datagram.bytes()).map(Result::unwrap).collect();
        prop_assert_eq!(messages.len(), objects.len());
        for (seq, message) in (1..).zip(&messages) {
            prop_assert_eq!(message.seq, seq);
            prop_assert_eq!(message.flags.contains(NlmF::ACK), seq as usize == objects.len());
        }
        prop_assert_eq!(decoded(datagram.bytes()), objects.into_iter().map(KernelEvent::Put).collect::<Vec<_>>());
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..200), kind in 0..130_u16, flags: u16) {
        _ = decoded(&bytes);
        let message = Message {
            kind: Rtm::from(kind), flags: NlmF::from_bits_retain(flags), seq: 0, port: 0, body: &bytes,
        };
        every_way(&message);
        // The same behind a header that fits.
        let mut datagram = (bytes.len() as u32 + 16).to_ne_bytes().to_vec();
        datagram.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        datagram.extend([0; 8]);
        datagram.extend(&bytes);
        _ = decoded(&datagram);
    }

    /// Closer to the truth: a good message with some bytes changed, or cut off.
    #[test]
    fn damaged_messages_do_not_panic(
        object in object(), damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut: prop::sample::Index,
    ) {
        let mut bytes = datagram(&Op::Create(object));
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        _ = decoded(&bytes);
        _ = decoded(&bytes[..cut.index(bytes.len())]);
        for message in split(&bytes).flatten() {
            every_way(&message);
        }
    }

    #[test]
    fn damaged_links_do_not_panic(
        vxlan in vxlan(), damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut bytes = vxlan_datagram(&vxlan);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        _ = decoded(&bytes);
    }

    #[test]
    fn a_created_vxlan_is_decoded(vxlan in vxlan()) {
        let events = decoded(&vxlan_datagram(&vxlan));
        let [KernelEvent::Link(link)] = events.as_slice() else { panic!("{events:?}") };
        prop_assert_eq!(&link.name, "flannel.1");
        prop_assert_eq!(link.kind.as_deref(), Some("vxlan"));
        prop_assert_eq!(link.mtu, Mtu(1450));
        prop_assert_eq!(link.mac, Some(MacAddr([2, 0, 0, 0, 0, 1])));
        prop_assert_eq!(link.vxlan.as_ref(), Some(&vxlan));
    }
}

fn vxlan() -> impl Strategy<Value = VxlanLink> {
    let flags = (any::<bool>(), any::<bool>());
    (0..=Vni::MAX, any::<u16>(), option::of(any_addr()), option::of(index()), flags).prop_map(
        |(vni, port, local, lower, (learning, gbp))| VxlanLink {
            vni: Vni::new(vni).unwrap(),
            port,
            local,
            lower,
            learning,
            gbp,
            foreign: false,
        },
    )
}

fn vxlan_datagram(vxlan: &VxlanLink) -> Vec<u8> {
    let (name, mac) = ("flannel.1", MacAddr([2, 0, 0, 0, 0, 1]));
    let mut datagram = Datagram::default();
    link::change(&mut datagram, &LinkOp::create_vxlan(name, mac, Mtu(1450), vxlan), 1);
    datagram.bytes().to_vec()
}

/// One message in a header of its own.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as u32 + 16).to_ne_bytes().to_vec();
    bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    bytes.extend([7_u32.to_ne_bytes(), 9_u32.to_ne_bytes()].concat());
    bytes.extend(body);
    bytes
}

fn verdict(datagram: &[u8]) -> Option<Verdict> {
    split(datagram).next().unwrap().unwrap().verdict().unwrap()
}

#[test]
fn verdicts_carry_errno_and_text() {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    const TLVS: u16 = 0x200;
    let errno = (-libc::EEXIST).to_ne_bytes();
    // Attribute 1 of 4 + 5 bytes, padded.
    let text = [9_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat();
    let text = [text.as_slice(), b"oops\0\0\0\0"].concat();
    let request = message(24, 0, &[0xff; 12]);
    let refused = |text: &str| Some(Verdict { errno: libc::EEXIST, text: text.to_owned() });

    let body = [errno.as_slice(), &request, &text].concat();
    assert_eq!(verdict(&message(ERROR, TLVS, &body)), refused("oops"), "behind the whole request");
    let body = [errno.as_slice(), &request[..16], &text].concat();
    assert_eq!(verdict(&message(ERROR, TLVS | 0x100, &body)), refused("oops"), "behind its header");
    let body = [errno.as_slice(), &request].concat();
    assert_eq!(verdict(&message(ERROR, 0, &body)), refused(""));
    let body = [errno.as_slice(), &text].concat();
    assert_eq!(verdict(&message(DONE, TLVS | 2, &body)), refused("oops"), "at the end of a dump");

    let done = Some(Verdict { errno: 0, text: String::new() });
    assert_eq!(verdict(&message(ERROR, 0x100, &[[0; 4].as_slice(), &request[..16]].concat())), done);
    assert_eq!(verdict(&message(DONE, 2, &[])), done);
    assert_eq!(verdict(&message(24, 0, &[])), None);
}

#[test]
fn a_missing_capability_is_named() {
    let reason = Verdict { errno: libc::EPERM, text: String::new() }.reason();
    assert!(reason.contains("CAP_NET_ADMIN"), "{reason}");
    let error = Verdict { errno: libc::EPERM, text: "no".to_owned() }.refused("create link x".to_owned());
    assert_eq!(error.to_string(), "kernel refused to create link x (no; the process lacks CAP_NET_ADMIN)");
}

#[test]
fn what_can_not_be_decoded_is_an_overrun() {
    assert_eq!(decoded(&message(24, 0, &[1, 2, 3])), [KernelEvent::Overrun]);
    assert_eq!(decoded(&[1, 2, 3]), [KernelEvent::Overrun]);
    assert_eq!(decoded(&message(4, 0, &[])), [KernelEvent::Overrun], "NLMSG_OVERRUN");
    assert_eq!(decoded(&message(4000, 0, &[1, 2, 3])), [], "unknown kinds are none of our business");
}

#[test]
fn a_gateway_of_the_other_family_is_not_plain() {
    let route = Route {
        dst: "10.0.0.0/24".parse().unwrap(),
        metric: 5,
        via: Some("fe80::1".parse().unwrap()),
        link: Some(LinkIndex(3)),
        onlink: true,
        through: Through::Itself,
        protocol: 4,
        mtu: None,
        plain: true,
    };
    let events = decoded(&datagram(&Op::Create(Object::Route(route))));
    assert_eq!(events, [KernelEvent::Put(Object::Route(Route { plain: false, ..route }))]);
}
