use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::*;
use crate::forward::{ForwardingTable, Peer, TableCell, TableSpec};
use crate::socket::SocketOptions;
use crate::testing::{Inner, allocations};
use crate::tun::TunOptions;

const PEER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const US: Ipv4Addr = Ipv4Addr::LOCALHOST;
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const PORT: u16 = 8285;

fn spec() -> TableSpec {
    TableSpec {
        own_subnets: vec!["10.1.2.0/24".parse().unwrap()],
        own_addresses: PerFamily { v4: Some([10, 1, 2, 0].into()), v6: None },
        overlay_mtu: None,
        peers: vec![Peer {
            endpoint: (PEER, PORT).into(),
            other_sources: vec![],
            subnets: vec!["10.1.1.0/24".parse().unwrap()],
        }],
        allowed_sources: vec![],
    }
}

fn io() -> Io {
    let bind = |family| {
        (family == Family::V4).then(|| {
            Arc::new(UnderlaySocket::bind(SocketAddr::from((US, PORT)), SocketOptions::default()).unwrap())
        })
    };
    Io {
        tun: Arc::new(Tun::open("flannel0", TunOptions::default()).unwrap()),
        sockets: PerFamily::from_fn(bind),
        errors: PerFamily::from_fn(|family| ErrorSocket::open(family).ok()),
        counters: Counters::default(),
        stop: EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap(),
        handover: None,
    }
}

/// Both directions, errors, drops and a new table, on this thread, which counts what it allocates.
#[test]
fn the_packet_path_allocates_nothing() {
    in_sandbox(test_name!(), || {
        let here = Netns::add("here").unwrap();
        let test = || {
            let io = io();
            let lines = ["addr add 10.1.2.1/24 dev flannel0", "link set flannel0 mtu 1472 up"];
            here.ip_batch(&lines.map(str::to_owned)).unwrap();
            here.ip("route add 10.1.0.0/16 dev flannel0").unwrap();
            let cell = TableCell::new(ForwardingTable::new(spec(), None));
            let mut worker = Worker::new(&io, cell.reader(), Ways::Both);
            let peer = UdpSocket::bind((PEER, PORT)).unwrap();
            let stranger = UdpSocket::bind((STRANGER, PORT)).unwrap();
            let pod = UdpSocket::bind("10.1.2.1:0").unwrap();
            let packet = |inner: Inner| inner.from([10, 1, 1, 9]).to([10, 1, 2, 1]).packet();
            let good = [packet(Inner::udp(&[1; 900])), packet(Inner::tcp(&[2; 900]))];
            let spoofed = Inner::udp(b"x").from([10, 1, 2, 9]).packet();
            let bad = [packet(Inner::udp(b"x").ttl(1)), spoofed];
            let traffic = || {
                for _ in 0..50 {
                    good.iter().chain(&bad).for_each(|packet| {
                        peer.send_to(packet, (US, PORT)).unwrap();
                        stranger.send_to(packet, (US, PORT)).unwrap();
                    });
                    pod.send_to(&[3; 1200], "10.1.1.9:9").unwrap();
                    pod.send_to(&[3; 20], "10.1.3.9:9").unwrap();
                }
            };
            // The first of everything may set something up in the C library.
            let mut turns = |count: usize| {
                (0..count).for_each(|_| assert!(worker.turn(PollTimeout::from(10_u16)).unwrap()));
            };
            traffic();
            turns(20);
            let before = io.counters.snapshot();
            traffic();
            cell.set(ForwardingTable::new(spec(), Some(&cell.get())));
            let allocated = allocations(|| turns(40));
            assert_eq!(allocated, 0);
            let after = io.counters.snapshot();
            assert!(after.sent.packets - before.sent.packets >= 50, "and errors on their way back");
            assert!(after.errors_sent > before.errors_sent);
            assert_eq!(after.received.packets - before.received.packets, 100);
            assert!(after.drops.len() >= 3, "{after:?}");
        };
        here.enter(test).unwrap();
    });
}
