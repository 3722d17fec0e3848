//! WireGuard devices in user space on real TUNs and sockets, against each other and against others.

mod lab;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use flannel_backend_udp::Layout;
use flannel_backend_udp::datapath::{DropReason, EngineEvent, SocketOptions, TunOptions};
use flannel_backend_wireguard::device::{Change, Device as _, PeerChange};
use flannel_backend_wireguard::key::PublicKey;
use flannel_backend_wireguard::userspace::testing::{private_key, public_key};
use flannel_core::addr::Family;
use flannel_lab::ping::{PingOptions, Pinger};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

use lab::{Kind, Lab, MTU, PORT, SHARED, block_on, inside, outside, peer, shared, until};

#[test]
fn two_devices_carry_both_families_over_both_underlays() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        for underlay in Family::ALL {
            let [a, b] = lab.both_ours(underlay);
            for family in Family::ALL {
                lab.works(family, 8 << 20);
                lab.carries_udp(family);
            }
            let full = MTU as usize - 28;
            assert!(lab.is_silent(1, inside(2, Family::V4), full + 1), "one byte more doesn't fit");
            let counters = a.device.counters();
            println!("{}\n{counters:?}", a.device.path());
            if a.device.path().tso {
                assert!(counters.sent.packets > 2 * counters.sent.tun_packets, "super-packets come");
                assert!(counters.sent.packets > 3 * counters.sent.trains, "trains go");
                assert!(counters.received.packets > 2 * counters.received.tun_packets, "and are merged");
            }
            a.lost_nothing();
            b.lost_nothing();
            let (at_a, at_b) = (a.peer(2), b.peer(1));
            assert!(at_a.last_handshake.is_some() && at_b.last_handshake.is_some());
            assert!(at_a.tx_bytes > 16 << 20 && at_b.rx_bytes > 16 << 20, "{at_a:?} {at_b:?}");
            assert_eq!(at_b.endpoint, Some(SocketAddr::new(outside(1, underlay), PORT)));
            assert!(a.events.lock().unwrap().is_empty() && b.events.lock().unwrap().is_empty());
        }
    });
}

#[test]
fn works_in_each_layout_and_without_any_offload() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let none = SocketOptions::default().gso(false).gro(false).batch(false);
        let cases = [
            (Layout::OneThread, TunOptions::default(), SocketOptions::default()),
            (Layout::TwoThreads, TunOptions::default(), SocketOptions::default()),
            (Layout::TwoThreads, TunOptions::NONE, none),
        ];
        for (layout, tun, sockets) in cases {
            let devices = [1, 2].map(|number| {
                let ours = lab.ours(number, |options| options.layout(layout).tun(tun).sockets(sockets));
                ours.apply(&[Change::Peer(public_key(3 - number), peer(3 - number, Family::V4))]);
                ours
            });
            lab.works(Family::V4, 2 << 20);
            lab.carries_udp(Family::V4);
            drop(devices);
            assert_eq!(lab.node(1).link_index("wg0").unwrap(), None, "it stopped and let go");
        }
    });
}

/// Both begin once, with a shared key, roaming, and a start again on our side.
fn speaks_with(kind: Kind) {
    let lab = Lab::new();
    for ours_first in [true, false] {
        let ours = lab.ours(1, |options| options);
        ours.apply(&[Change::Peer(public_key(2), peer(2, Family::V4))]);
        ours.apply(&[Change::Peer(public_key(2), shared(SHARED))]);
        let other = lab.other(2, kind, Some(SHARED));
        let (from, to) = if ours_first { (1, 2) } else { (2, 1) };
        assert_eq!(lab.pings(from, inside(to, Family::V4), 56), 5, "{from} begins");
        for family in Family::ALL {
            // A kernel in a VM is slow.
            lab.works(family, if kind == Kind::Kernel { 256 << 10 } else { 2 << 20 });
        }
        assert_ne!(other.shows("latest-handshakes"), "0");
        ours.lost_nothing();

        // The other moves to another port, and is followed.
        other.set(&["listen-port", "51999"]);
        assert_eq!(lab.pings(2, inside(1, Family::V4), 56), 5);
        assert_eq!(ours.peer(2).endpoint, Some((outside(2, Family::V4), 51999).into()));
        other.set(&["listen-port", &PORT.to_string()]);
        assert_eq!(lab.pings(2, inside(1, Family::V4), 56), 5);

        // So are we.
        ours.apply(&[Change::ListenPort(PORT + 1)]);
        assert_eq!(lab.pings(1, inside(2, Family::V4), 56), 5);
        assert_eq!(other.shows("endpoints"), format!("192.0.2.1:{}", PORT + 1));
        ours.apply(&[Change::ListenPort(PORT)]);
        assert_eq!(lab.pings(1, inside(2, Family::V4), 56), 5);

        // We start again without a session. The other's first packet tells us.
        drop(ours);
        let ours = lab.ours(1, |options| options);
        ours.apply(&[Change::Peer(public_key(2), peer(2, Family::V4))]);
        ours.apply(&[Change::Peer(public_key(2), shared(SHARED))]);
        let options = PingOptions { interval: Duration::from_millis(20), ..PingOptions::default() };
        let pinger = Pinger::start(lab.node(2), inside(1, Family::V4), options).unwrap();
        until(|| ours.peer(2).last_handshake.is_some());
        let lost = pinger.stop().lost;
        println!("{kind:?}: {lost} pings of one each 20 ms lost at our restart");
        assert_eq!(lab.pings(2, inside(1, Family::V4), 56), 5);
        if kind == Kind::Kernel {
            lab.node(2).ip(&format!("link del {}", other.link)).unwrap();
        }
        drop(other);
        until(|| lab.node(2).link_index("other2").unwrap().is_none());
    }
}

#[test]
fn speaks_with_wireguard_go() {
    in_sandbox(test_name!(), || speaks_with(Kind::Go));
}

mod vm {
    use super::*;

    #[test]
    #[ignore = "needs a kernel with wireguard; .ci/vm runs it in a VM"]
    fn userspace_speaks_with_the_kernel() {
        in_sandbox(test_name!(), || speaks_with(Kind::Kernel));
    }
}

#[test]
fn changes_of_one_peer_lose_no_packet_of_another() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let [a, b] = lab.both_ours(Family::V4);
        assert_eq!(lab.pings(1, inside(2, Family::V4), 56), 5);
        let options = PingOptions { interval: Duration::from_millis(2), ..PingOptions::default() };
        let pinger = Pinger::start(lab.node(1), inside(2, Family::V4), options).unwrap();
        let key = |high: u8, low: u8| {
            let mut bytes = [high; 32];
            (bytes[0], bytes[31]) = (low, 0);
            PublicKey(bytes)
        };
        // A thousand peers come, change and go.
        let all: Vec<_> = (0..4).flat_map(|high| (0..250).map(move |low| (high + 10, low))).collect();
        let added = |(high, low): (u8, u8)| {
            let allowed_ips = Some([format!("10.{high}.{low}.0/24").parse().unwrap()].into());
            let endpoint = Some(([172, 16, high, low], PORT).into());
            Change::Peer(key(high, low), PeerChange { endpoint, allowed_ips, ..PeerChange::default() })
        };
        a.apply(&all.iter().copied().map(added).collect::<Vec<_>>());
        assert_eq!(a.peers().len(), 1001);
        for &(high, low) in all.iter().take(20) {
            let change = PeerChange { keepalive: Some(25), ..PeerChange::default() };
            a.apply(&[Change::Peer(key(high, low), change)]);
        }
        a.apply(&all.iter().map(|&(high, low)| Change::RemovePeer(key(high, low))).collect::<Vec<_>>());
        assert_eq!(a.peers().len(), 1);
        let report = pinger.stop();
        assert_eq!(report.lost, 0, "{report:?}");
        drop(b);
    });
}

#[test]
fn strangers_and_hostile_bytes_change_nothing() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let [a, b] = lab.both_ours(Family::V4);
        assert_eq!(lab.pings(1, inside(2, Family::V4), 56), 5);
        lab.node(1).ip("addr add 192.0.2.99/24 dev eth0").unwrap();
        let open = |local: IpAddr| UdpSocket::bind(SocketAddr::new(local, 0)).unwrap();
        let stranger = lab.node(1).enter(|| open([192, 0, 2, 99].into())).unwrap();
        let options = PingOptions { interval: Duration::from_millis(2), ..PingOptions::default() };
        let pinger = Pinger::start(lab.node(1), inside(2, Family::V4), options).unwrap();
        let before = b.peer(1);
        let target = SocketAddr::new(outside(2, Family::V4), PORT);
        let mut sent = 0;
        for round in 0..2000_u32 {
            let kind = (round % 6) as u8;
            let len = match kind {
                1 => 148,
                2 => 92,
                3 => 64,
                _ => (round * 7 % 1500) as usize,
            };
            let mut bytes: Vec<u8> = (0..len).map(|at| (at as u32 * 31 + round) as u8).collect();
            if let Some(head) = bytes.first_chunk_mut() {
                *head = u32::from(kind).to_le_bytes();
            }
            stranger.send_to(&bytes, target).unwrap();
            sent += 1;
        }
        until(|| b.dropped() >= sent);
        assert_eq!(b.dropped(), sent, "{:?}", b.device.counters().drops);
        let report = pinger.stop();
        assert_eq!(report.lost, 0, "{report:?}");
        assert_eq!(b.peer(1).endpoint, before.endpoint);
        assert_eq!(b.peer(1).last_handshake, before.last_handshake);
        drop(a);
    });
}

#[test]
fn addresses_of_others_are_refused_both_ways() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let [a, b] = lab.both_ours(Family::V4);
        assert_eq!(lab.pings(1, inside(2, Family::V4), 56), 5);
        // Nobody has the destination.
        assert!(lab.is_silent(1, [10, 9, 77, 1].into(), 56));
        until(|| a.drops(DropReason::NoRoute) >= 5);
        // The sender hasn't the source.
        lab.node(1).ip("addr add 10.9.55.1/32 dev wg0").unwrap();
        let source = Some([10, 9, 55, 1].into());
        let options = PingOptions { source, ..PingOptions::default() };
        let report = flannel_lab::ping::ping(lab.node(1), inside(2, Family::V4), options).unwrap();
        assert_eq!(report.received, 0);
        until(|| b.drops(DropReason::SourceIsAnothers) >= 5);
        assert_eq!(b.drops(DropReason::SourceIsAnothers), report.sent);
    });
}

#[test]
fn nothing_runs_while_all_is_quiet_and_a_deleted_tun_is_told() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let ours = lab.ours(1, |options| options);
        ours.apply(&[Change::Peer(public_key(2), peer(2, Family::V4))]);
        let switches = || -> u64 {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap();
            let of_task = |task: std::io::Result<std::fs::DirEntry>| {
                let text = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
                let ours = text.lines().next().is_some_and(|line| line.contains("wireguard"));
                let line = text.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?;
                ours.then(|| line.rsplit('\t').next().unwrap().parse::<u64>().unwrap())
            };
            tasks.filter_map(of_task).sum()
        };
        // The kernel says hello on the new link first; then come two looks at the same number.
        let quiet_for = |time: Duration| {
            let before = switches();
            std::thread::sleep(time);
            switches() == before
        };
        until(|| quiet_for(Duration::from_millis(700)));
        lab.node(1).ip("link del wg0").unwrap();
        until(|| ours.events.lock().unwrap().iter().any(|event| matches!(event, EngineEvent::TunGone)));
    });
}

#[test]
fn a_device_says_what_it_refuses_and_shows_no_key() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let ours = lab.ours(1, |options| options);
        let error = block_on(ours.device.apply(&[
            Change::Peer(public_key(2), peer(2, Family::V4)),
            Change::Peer(public_key(1), peer(1, Family::V4)),
            Change::RemovePeer(public_key(2)),
        ]))
        .unwrap_err();
        assert!(error.to_string().contains("own key"), "{error}");
        assert_eq!(ours.peers().len(), 1, "what came before it is in force");
        let taken = lab.node(1).enter(|| UdpSocket::bind("0.0.0.0:7777").unwrap()).unwrap();
        let error = block_on(ours.device.apply(&[Change::ListenPort(7777)])).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        assert_eq!(block_on(ours.device.state()).unwrap().listen_port, PORT);
        drop(taken);
        let shown = format!("{:?} {:?}", ours.device, block_on(ours.device.state()).unwrap());
        let hex = private_key(1).0.map(|byte| format!("{byte:02x}")).concat();
        assert!(!shown.contains(&hex) && !shown.contains(&format!("{:?}", private_key(1).0)), "{shown}");
    });
}
