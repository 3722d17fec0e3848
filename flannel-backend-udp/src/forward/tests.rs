use super::*;
use crate::counters::DropReason;
use crate::packet::IpHeader;
use crate::packet::icmp::IcmpError;
use crate::testing::Inner;

const PORT: u16 = 8285;

fn subnets(texts: &[&str]) -> Vec<Subnet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn peer(endpoint: [u8; 4], own: &[&str]) -> Peer {
    Peer { endpoint: (endpoint, PORT).into(), other_sources: vec![], subnets: subnets(own) }
}

/// We are 10.1.1.0/24; peer 1 has 10.1.2.0/24, peer 2 10.1.0.0/16 around all, peer 3 a part of peer 1's.
fn spec() -> TableSpec {
    TableSpec {
        own_subnets: subnets(&["10.1.1.0/24"]),
        own_addresses: PerFamily { v4: Some([10, 1, 1, 0].into()), v6: None },
        overlay_mtu: Some(Mtu(1472)),
        peers: vec![
            peer([192, 0, 2, 1], &["10.1.2.0/24"]),
            peer([192, 0, 2, 2], &["10.1.0.0/16"]),
            peer([192, 0, 2, 3], &["10.1.2.128/25"]),
        ],
        allowed_sources: subnets(&["198.51.100.0/24"]),
    }
}

fn header(inner: &Inner) -> IpHeader {
    IpHeader::parse(&inner.packet()).unwrap()
}

/// To a pod of ours.
fn to_us() -> Inner {
    Inner::udp(b"x").to([10, 1, 1, 2])
}

#[test]
fn packets_go_to_the_longest_prefix() {
    let table = ForwardingTable::new(spec(), None);
    let mut lookup = Lookup::new(&table);
    let mut to = |addr: [u8; 4]| lookup.outbound(&header(&Inner::udp(b"x").to(addr)), 29);
    assert_eq!(to([10, 1, 2, 5]), Outbound::Send(PeerIndex(0)));
    assert_eq!(to([10, 1, 2, 127]), Outbound::Send(PeerIndex(0)));
    assert_eq!(to([10, 1, 2, 128]), Outbound::Send(PeerIndex(2)));
    assert_eq!(to([10, 1, 3, 1]), Outbound::Send(PeerIndex(1)));
    let lost = |reason, error| Outbound::Drop(reason, Some(error));
    assert_eq!(to([10, 1, 1, 9]), lost(DropReason::OwnSubnet, IcmpError::HostUnreachable));
    assert_eq!(to([10, 2, 0, 1]), lost(DropReason::NoRoute, IcmpError::NoRoute));
    assert_eq!(to([224, 0, 0, 1]), Outbound::Drop(DropReason::Group, None));
}

#[test]
fn what_may_not_leave_is_told() {
    let table = ForwardingTable::new(spec(), None);
    let mut lookup = Lookup::new(&table);
    let mut out = |inner: &Inner, largest| lookup.outbound(&header(inner), largest);
    let udp = Inner::udp(b"x");
    for ttl in [0, 1] {
        let wanted = Outbound::Drop(DropReason::Expired, Some(IcmpError::TimeExceeded));
        assert_eq!(out(&udp.clone().ttl(ttl), 29), wanted);
    }
    assert_eq!(out(&udp.clone().ttl(2), 29), Outbound::Send(PeerIndex(0)));
    assert_eq!(out(&udp, 1472), Outbound::Send(PeerIndex(0)));
    assert_eq!(out(&udp, 1473), Outbound::Drop(DropReason::TooBig, Some(IcmpError::TooBig(Mtu(1472)))));
    assert_eq!(out(&udp.clone().identification(1, false), 1473), Outbound::Send(PeerIndex(0)));
    assert_eq!(out(&udp.v6(), 50), Outbound::Drop(DropReason::FamilyDisabled, None));
}

#[test]
fn datagrams_are_taken_from_peers_alone() {
    let mut spec = spec();
    spec.peers[0].other_sources.push([203, 0, 113, 9].into());
    let table = ForwardingTable::new(spec, None);
    let lookup = Lookup::new(&table);
    assert_eq!(lookup.sender([192, 0, 2, 1].into()), Sender::Peer(PeerIndex(0)));
    assert_eq!(lookup.sender([203, 0, 113, 9].into()), Sender::Peer(PeerIndex(0)));
    assert_eq!(lookup.sender([198, 51, 100, 77].into()), Sender::Allowed);
    assert_eq!(lookup.sender([198, 51, 101, 77].into()), Sender::Stranger);
    assert_eq!(lookup.sender("fd00::1".parse().unwrap()), Sender::Stranger);
}

#[test]
fn sources_belong_to_their_sender() {
    let table = ForwardingTable::new(spec(), None);
    let mut lookup = Lookup::new(&table);
    let mut taken = |outer: [u8; 4], inner: [u8; 4]| {
        let sender = lookup.sender(outer.into());
        lookup.inbound(sender, outer.into(), &header(&to_us().from(inner)))
    };
    let refused = |reason| Inbound::Drop(reason, None);
    let (first, allowed) = ([192, 0, 2, 1], [198, 51, 100, 1]);
    assert_eq!(taken(first, [10, 1, 2, 5]), Inbound::Accept(Some(PeerIndex(0))));
    assert_eq!(taken(first, [10, 1, 2, 200]), refused(DropReason::SourceIsAnothers));
    assert_eq!(taken(first, [10, 1, 3, 1]), refused(DropReason::SourceIsAnothers));
    assert_eq!(taken(first, [10, 1, 1, 1]), refused(DropReason::SourceIsOurs));
    assert_eq!(taken(first, [203, 0, 113, 5]), Inbound::Accept(Some(PeerIndex(0))), "a client's address");
    assert_eq!(taken(first, [127, 0, 0, 1]), refused(DropReason::BadSource));
    assert_eq!(taken(first, [255; 4]), refused(DropReason::BadSource));
    assert_eq!(taken(allowed, [10, 1, 2, 5]), Inbound::Accept(Some(PeerIndex(0))));
    assert_eq!(taken(allowed, [203, 0, 113, 5]), Inbound::Accept(None));
    assert_eq!(taken(allowed, [10, 1, 1, 1]), refused(DropReason::SourceIsOurs));
    assert_eq!(taken([192, 0, 2, 99], [10, 1, 2, 5]), refused(DropReason::UnknownSender));
    let v6 = lookup.inbound(Sender::Peer(PeerIndex(0)), first.into(), &header(&Inner::udp(b"x").v6()));
    assert_eq!(v6, refused(DropReason::FamilyDisabled));
    let old = header(&to_us().from([10, 1, 2, 5]).ttl(1));
    let wanted = Inbound::Drop(DropReason::Expired, Some(IcmpError::TimeExceeded));
    assert_eq!(lookup.inbound(Sender::Peer(PeerIndex(0)), first.into(), &old), wanted);
}

/// What a node may send us, and what would make us its router: the way to another peer, to our underlay, to a cloud's
/// metadata, and to the world, masqueraded as ourselves.
#[test]
fn only_the_own_subnet_is_delivered_to() {
    let v6 = |text: &str| -> IpAddr { text.parse().unwrap() };
    let mut spec = spec();
    spec.own_subnets.push("fd00:1::/64".parse().unwrap());
    spec.own_addresses.v6 = Some(v6("fd00:1::"));
    spec.peers[0].subnets.push("fd00:2::/64".parse().unwrap());
    let table = ForwardingTable::new(spec, None);
    let mut lookup = Lookup::new(&table);
    let (peer, allowed) = ([192, 0, 2, 1], [198, 51, 100, 1]);
    for (to, what, taken) in [
        ("10.1.1.2", "a pod", true),
        ("10.1.1.0", "our own address in the overlay", true),
        ("10.1.1.1", "the bridge", true),
        ("10.1.1.255", "the last address of the subnet", true),
        ("10.1.0.255", "one before it, of a peer", false),
        ("10.1.2.0", "one behind it, of a peer", false),
        ("10.1.2.5", "a pod of the sender", false),
        ("10.1.2.200", "a pod of another peer", false),
        ("10.9.0.1", "nobody's part of the network", false),
        ("192.0.2.7", "the underlay", false),
        ("169.254.169.254", "a cloud's metadata", false),
        ("203.0.113.1", "the world", false),
        ("127.0.0.1", "loopback", false),
        ("0.0.0.0", "the unspecified address", false),
        ("224.0.0.1", "a group", false),
        ("255.255.255.255", "the broadcast address", false),
        ("fd00:1::2", "a pod", true),
        ("fd00:1::", "our own address in the overlay", true),
        ("fd00:1::1", "the bridge", true),
        ("fd00:1:0:1::", "one behind the subnet", false),
        ("fd00:2::5", "a pod of the sender", false),
        ("fd00:ec2::254", "a cloud's metadata", false),
        ("2001:db8::1", "the world", false),
        ("::1", "loopback", false),
        ("ff02::1", "a group", false),
        ("fe80::1", "a link's own address", false),
    ] {
        let from = if v6(to).is_ipv4() { "10.1.2.5" } else { "fd00:2::5" };
        let inner = header(&Inner::udp(b"x").from(v6(from)).to(v6(to)));
        for outer in [peer, allowed] {
            let sender = lookup.sender(outer.into());
            let wanted = if taken {
                Inbound::Accept(Some(PeerIndex(0)))
            } else {
                Inbound::Drop(DropReason::NotForUs, None)
            };
            assert_eq!(lookup.inbound(sender, outer.into(), &inner), wanted, "{to}, {what}, by {outer:?}");
        }
    }
    // A packet that is not for us makes no error, however old it is.
    let old = header(&Inner::udp(b"x").from([10, 1, 2, 5]).to([203, 0, 113, 1]).ttl(1));
    let verdict = lookup.inbound(Sender::Peer(PeerIndex(0)), peer.into(), &old);
    assert_eq!(verdict, Inbound::Drop(DropReason::NotForUs, None));
}

#[test]
fn peers_behind_one_address_may_send_what_either_may() {
    let mut spec = spec();
    spec.peers[1].endpoint = ([192, 0, 2, 1], PORT + 1).into();
    let table = ForwardingTable::new(spec, None);
    let mut lookup = Lookup::new(&table);
    let outer = [192, 0, 2, 1].into();
    let inner = header(&to_us().from([10, 1, 3, 1]));
    let sender = lookup.sender(outer);
    assert_eq!(lookup.inbound(sender, outer, &inner), Inbound::Accept(Some(PeerIndex(1))));
}

#[test]
fn the_first_keeps_a_subnet_and_counters_go_on() {
    let mut second = spec();
    second.peers.push(peer([192, 0, 2, 4], &["10.1.2.0/24", "10.1.1.0/24", "10.9.0.0/24"]));
    let table = ForwardingTable::new(spec(), None);
    table.counters(PeerIndex(0)).sent(5, 500);
    let next = ForwardingTable::new(second, Some(&table));
    let endpoint = SocketAddr::from(([192, 0, 2, 4], PORT));
    assert_eq!(
        next.refused().iter().map(|(subnet, _)| subnet.to_string()).collect::<Vec<_>>(),
        ["10.1.2.0/24", "10.1.1.0/24"]
    );
    assert!(next.refused().iter().all(|(_, who)| *who == endpoint));
    assert_eq!(next.snapshots()[0].sent_packets, 5);
    assert_eq!((next.len(), next.snapshots()[3].endpoint), (4, endpoint));
}

#[test]
fn ten_thousand_peers_are_told_apart() {
    let peers = (0..10_000_u32).map(|number| {
        let base = (10 << 24) + (1 << 16) + (number << 8);
        let subnet = Subnet::exact(std::net::Ipv4Addr::from_bits(base).into(), 24).unwrap();
        let endpoint = SocketAddr::from((std::net::Ipv4Addr::from_bits((172 << 24) + number), PORT));
        Peer { endpoint, other_sources: vec![], subnets: vec![subnet] }
    });
    let spec = TableSpec { own_subnets: vec![], peers: peers.collect(), ..spec() };
    let table = ForwardingTable::new(spec, None);
    let mut lookup = Lookup::new(&table);
    for number in [0, 1, 4999, 9999] {
        let to = std::net::Ipv4Addr::from_bits((10 << 24) + (1 << 16) + (number << 8) + 7);
        let verdict = lookup.outbound(&header(&Inner::udp(b"x").to(to)), 29);
        assert_eq!(verdict, Outbound::Send(PeerIndex(number)));
    }
}
