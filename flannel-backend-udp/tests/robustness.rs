//! What may not pass: raw datagrams against an engine, one table of cases.

mod common;

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use common::{Lab, PORT, Running, Setup, spec};
use flannel_backend_udp::datapath::{DropReason, ForwardingTable};
use flannel_backend_udp::testing::{Inner, fix_header};
use flannel_core::addr::{Family, PerFamily};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::{test_name, transfer};
use nix::sys::socket::sockopt::Ipv4RecvErr;
use nix::sys::socket::{ControlMessage, MsgFlags};

const POD_PORT: u16 = 7000;

fn count(running: &Running, reason: DropReason) -> u64 {
    let drops = running.engine.counters().drops;
    drops.iter().find(|(found, _)| *found == reason).map_or(0, |(_, count)| *count)
}

fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(3);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A packet from the peer's pod to ours.
fn inner(payload: &[u8]) -> Inner {
    Inner::udp(payload).from([10, 1, 2, 2]).to([10, 1, 1, 2]).ports(9, POD_PORT)
}

fn edited(edit: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = inner(b"hello").packet();
    edit(&mut packet);
    packet
}

#[test]
#[allow(clippy::too_many_lines)]
fn bad_datagrams_are_dropped_and_counted() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let mut table = spec(1, Family::V4);
        table.own_addresses = PerFamily { v6: None, ..table.own_addresses };
        table.allowed_sources = vec!["192.0.2.64/26".parse().unwrap()];
        let mut third = table.peers[0].clone();
        third.endpoint = ([192, 0, 2, 3], PORT).into();
        third.subnets = vec!["10.1.3.0/24".parse().unwrap(), "10.1.2.64/26".parse().unwrap()];
        table.peers.push(third);
        let running = lab.start_with(1, Setup::default(), table);
        // Or else the kernel's own router solicitations come to the TUN at some time, and are dropped, too.
        lab.node(1).sysctl("net.ipv6.conf.flannel0.disable_ipv6", "1").unwrap();
        for address in ["192.0.2.3", "192.0.2.66", "192.0.2.130"] {
            lab.node(2).ip(&format!("addr add {address}/24 dev eth0")).unwrap();
        }
        let bind = |address: [u8; 4], port| {
            let bound = lab.node(2).enter(|| UdpSocket::bind(SocketAddr::from((address, port))).unwrap());
            let socket = bound.unwrap();
            socket.connect(SocketAddr::from(([192, 0, 2, 1], PORT))).unwrap();
            socket
        };
        let peer = bind([192, 0, 2, 2], PORT);
        let behind_nat = bind([192, 0, 2, 2], 40_000);
        let allowed = bind([192, 0, 2, 66], PORT);
        let stranger = bind([192, 0, 2, 130], PORT);
        let pod = lab.pod(1).enter(|| UdpSocket::bind(("0.0.0.0", POD_PORT)).unwrap()).unwrap();
        pod.set_read_timeout(Some(Duration::from_secs(2))).unwrap();

        let refused: Vec<(&str, &UdpSocket, Vec<u8>, DropReason)> = vec![
            ("empty", &peer, vec![], DropReason::Truncated),
            ("one byte", &peer, vec![0x45], DropReason::Truncated),
            ("half a header", &peer, edited(|packet| packet.truncate(12)), DropReason::Truncated),
            ("half a packet", &peer, edited(|packet| packet.truncate(30)), DropReason::Truncated),
            ("version 0", &peer, edited(|packet| packet[0] = 0x05), DropReason::NotIp),
            ("version 5", &peer, edited(|packet| packet[0] = 0x55), DropReason::NotIp),
            ("short header", &peer, edited(|packet| packet[0] = 0x44), DropReason::BadHeader),
            ("header beyond packet", &peer, edited(|packet| packet[0] = 0x4f), DropReason::BadHeader),
            (
                "length below header",
                &peer,
                edited(|packet| packet[2..4].copy_from_slice(&[0, 19])),
                DropReason::BadHeader,
            ),
            ("bad header checksum", &peer, edited(|packet| packet[10] ^= 1), DropReason::BadChecksum),
            ("TTL 0", &peer, inner(b"x").ttl(0).packet(), DropReason::Expired),
            ("TTL 1", &peer, inner(b"x").ttl(1).packet(), DropReason::Expired),
            ("IPv6 in an IPv4 network", &peer, Inner::udp(b"x").v6().packet(), DropReason::FamilyDisabled),
            ("our source", &peer, inner(b"x").from([10, 1, 1, 9]).packet(), DropReason::SourceIsOurs),
            (
                "another's source",
                &peer,
                inner(b"x").from([10, 1, 3, 2]).packet(),
                DropReason::SourceIsAnothers,
            ),
            (
                "another's longer prefix",
                &peer,
                inner(b"x").from([10, 1, 2, 65]).packet(),
                DropReason::SourceIsAnothers,
            ),
            ("loopback source", &peer, inner(b"x").from([127, 0, 0, 1]).packet(), DropReason::BadSource),
            ("group source", &peer, inner(b"x").from([224, 0, 0, 1]).packet(), DropReason::BadSource),
            ("broadcast source", &peer, inner(b"x").from([255; 4]).packet(), DropReason::BadSource),
            // We are no router of another node: not to a peer, not to the world, not to our own underlay.
            ("for a peer's pod", &peer, inner(b"x").to([10, 1, 3, 2]).packet(), DropReason::NotForUs),
            ("for the world", &peer, inner(b"x").to([203, 0, 113, 1]).packet(), DropReason::NotForUs),
            ("for metadata", &peer, inner(b"x").to([169, 254, 169, 254]).packet(), DropReason::NotForUs),
            ("for our underlay", &peer, inner(b"x").to([192, 0, 2, 1]).packet(), DropReason::NotForUs),
            ("allowed, for another", &allowed, inner(b"x").to([10, 1, 3, 2]).packet(), DropReason::NotForUs),
            ("a stranger", &stranger, inner(b"x").packet(), DropReason::UnknownSender),
            ("a stranger's noise", &stranger, vec![0xff; 60_000], DropReason::UnknownSender),
            (
                "allowed, our source",
                &allowed,
                inner(b"x").from([10, 1, 1, 9]).packet(),
                DropReason::SourceIsOurs,
            ),
        ];
        for (what, socket, datagram, reason) in refused {
            let before = count(&running, reason);
            socket.send(&datagram).unwrap();
            until(what, || count(&running, reason) == before + 1);
        }
        let total =
            |running: &Running| running.engine.counters().drops.iter().map(|(_, count)| count).sum::<u64>();
        let dropped = total(&running);

        let taken: Vec<(&str, &UdpSocket, Vec<u8>)> = vec![
            ("plain", &peer, inner(b"hello").packet()),
            ("another port", &behind_nat, inner(b"hello").packet()),
            ("allowed", &allowed, inner(b"hello").packet()),
            ("allowed for another", &allowed, inner(b"hello").from([10, 1, 3, 7]).packet()),
            ("a client's source", &peer, inner(b"hello").from([203, 0, 113, 5]).packet()),
            ("TTL 2 and a host", &peer, inner(b"hello").ttl(3).packet()),
            ("bytes behind the packet", &peer, edited(|packet| packet.extend([0; 30]))),
        ];
        for (what, socket, datagram) in taken {
            socket.send(&datagram).unwrap();
            let mut buffer = [0; 100];
            let len = pod.recv(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(&buffer[..len], b"hello", "{what}");
        }
        assert_eq!(total(&running), dropped);
        let peers = running.engine.peers();
        assert_eq!((peers[0].admitted_packets, peers[1].admitted_packets), (1, 1), "{peers:?}");

        // Broken inside: not ours to judge, the pod's kernel drops it.
        peer.send(&edited(|packet| *packet.last_mut().unwrap() ^= 1)).unwrap();
        // A larger packet than anything here carries arrives in fragments.
        let large = inner(&[7; 4000]).packet();
        for (offset, range, more) in
            [(0_u16, 20..1420, 0x2000_u16), (175, 1420..2820, 0x2000), (350, 2820..4028, 0)]
        {
            let mut part = [&large[..20], &large[range.clone()]].concat();
            let len = part.len() as u16;
            part[2..4].copy_from_slice(&len.to_be_bytes());
            part[6..8].copy_from_slice(&(offset | more).to_be_bytes());
            fix_header(&mut part);
            peer.send(&part).unwrap();
        }
        let mut buffer = [0; 5000];
        assert_eq!(pod.recv(&mut buffer).unwrap(), 4000, "the broken one didn't come");
        assert!(buffer[..4000].iter().all(|byte| *byte == 7));
    });
}

#[test]
fn noise_does_not_stop_it() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let running = lab.start_both(Setup::default());
        let noise = lab.node(2).enter(|| UdpSocket::bind("192.0.2.2:9999").unwrap()).unwrap();
        noise.connect("192.0.2.1:8285").unwrap();
        // The peer's own address, and headers with one field wrong at a time.
        let good = inner(&[5; 100]).packet();
        let mut state = 1_u32;
        for round in 0..20_000_usize {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut packet = good.clone();
            packet[round % 40] = (state >> 24) as u8;
            if round % 3 == 0 {
                fix_header(&mut good.clone());
                packet.truncate((state >> 8) as usize % 128);
            }
            let _ = noise.send(&packet);
        }
        let address: IpAddr = [10, 1, 2, 2].into();
        transfer::tcp(lab.pod(1), lab.pod(2), address, 1 << 20);
        assert!(running[0].events.lock().unwrap().is_empty());
        assert!(running[0].engine.counters().drops.len() > 3);
    });
}

#[test]
fn errors_are_rate_limited() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let running = lab.start_both(Setup::default());
        let pod = lab.pod(1).enter(|| UdpSocket::bind("10.1.1.2:0").unwrap()).unwrap();
        for _ in 0..2000 {
            // An error that came back is told here.
            let _ = pod.send_to(b"x", "10.1.77.7:7");
        }
        // The TUN's queue is shorter than this burst.
        until("many are counted", || count(&running[0], DropReason::NoRoute) >= 300);
        thread::sleep(Duration::from_millis(200));
        let counters = running[0].engine.counters();
        assert!(counters.errors_sent >= 50 && counters.errors_withheld > 0, "{counters:?}");
        assert_eq!(counters.errors_sent + counters.errors_withheld, count(&running[0], DropReason::NoRoute));
    });
}

#[test]
fn a_table_without_the_peer_closes_the_door() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let running = lab.start_both(Setup::default());
        assert!(flannel_lab::ping::reaches(lab.pod(1), [10, 1, 2, 2].into()).unwrap());
        let mut closed = spec(1, Family::V4);
        closed.peers.clear();
        running[0].engine.set_table(ForwardingTable::new(closed, None));
        assert!(!flannel_lab::ping::reaches(lab.pod(2), [10, 1, 1, 2].into()).unwrap());
        assert!(count(&running[0], DropReason::UnknownSender) > 0);
        assert_eq!(running[0].engine.peers().len(), 0);
    });
}

/// What a router without a way on does: the sender learns of it.
#[test]
fn an_underlay_without_a_way_is_reported() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let running = lab.start(1, Setup::default());
        lab.node(1).ip("link set eth0 down").unwrap();
        let pod = lab.pod(1).enter(|| UdpSocket::bind(("0.0.0.0", POD_PORT)).unwrap()).unwrap();
        pod.connect(SocketAddr::from(([10, 1, 2, 2], 9))).unwrap();
        nix::sys::socket::setsockopt(&pod, Ipv4RecvErr, &true).unwrap();
        pod.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // As a single packet, and as a super-packet, of which the first part is reported.
        let many: Vec<IoSlice<'_>> = vec![IoSlice::new(&[1; 1000]); 8];
        for (what, send) in [
            ("one", &(|| pod.send(&[1; 1400]).map(drop)) as &dyn Fn() -> std::io::Result<()>),
            ("a train", &|| send_train(&pod, &many, 1000)),
        ] {
            let before = (count(&running, DropReason::Unreachable), running.engine.counters().errors_sent);
            send().unwrap();
            let error = pod.recv(&mut [0; 10]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH), "{what}: {error}");
            let packets = if what == "one" { 1 } else { 8 };
            // Counts are published when the batch is through, a moment after the error.
            until(what, || {
                let sent = running.engine.counters().errors_sent;
                (count(&running, DropReason::Unreachable) - before.0, sent > before.1) == (packets, true)
            });
        }
    });
}

/// Sends datagrams of `size` bytes in one call, so that they come to the TUN as one super-packet.
fn send_train(socket: &UdpSocket, parts: &[IoSlice<'_>], size: u16) -> std::io::Result<()> {
    let control = [ControlMessage::UdpGsoSegments(&size)];
    nix::sys::socket::sendmsg::<()>(socket.as_raw_fd(), parts, &control, MsgFlags::empty(), None)?;
    Ok(())
}
