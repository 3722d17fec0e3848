//! Engines on real TUNs and sockets, between namespaces.

mod common;

use std::net::SocketAddr;
use std::process::Output;
use std::time::Duration;

use common::naive::Naive;
use common::{Lab, MTU, PORT, Running, Setup, pod, spec, underlay};
use flannel_backend_udp::Layout;
use flannel_backend_udp::datapath::{
    DropReason, EngineEvent, ForwardingTable, Peer, SocketOptions, TunOptions,
};
use flannel_core::addr::Family;
use flannel_lab::netns::Netns;
use flannel_lab::ping::{PingOptions, Pinger, ping};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::{test_name, transfer};

const LAYOUTS: [Layout; 3] = [Layout::Adaptive, Layout::OneThread, Layout::TwoThreads];

fn pings(lab: &Lab, family: Family, payload_size: usize, dont_fragment: bool) -> u64 {
    let options = PingOptions { payload_size, dont_fragment, ..PingOptions::default() };
    ping(lab.pod(1), pod(2, family), options).unwrap().received
}

/// Pings, TCP and UDP in both directions, whole and in order.
fn works(lab: &Lab, family: Family, bytes: usize) {
    assert_eq!(pings(lab, family, 56, true), 5);
    for (from, to) in [(1, 2), (2, 1)] {
        transfer::tcp(lab.pod(from), lab.pod(to), pod(to, family), bytes);
        assert_eq!(transfer::tcp_checksum_errors(lab.pod(to)), 0);
        let before = transfer::udp_overruns(lab.pod(to));
        let received =
            transfer::udp(lab.pod(from), lab.pod(to), pod(to, family), 2000, &[64, 64, 64, 1400, 9]);
        let arrived = received as u64 + transfer::udp_overruns(lab.pod(to)) - before;
        assert!(arrived > 1950, "{arrived} of 2000 datagrams");
    }
}

fn drops(running: &Running, reason: DropReason) -> u64 {
    let drops = running.engine.counters().drops;
    drops.iter().find(|(found, _)| *found == reason).map_or(0, |(_, count)| *count)
}

/// What `read` gives becomes `expected` within a few seconds: workers publish their counters after the
/// batch that they counted, which its packets can overtake.
#[track_caller]
fn becomes<T: PartialEq + std::fmt::Debug>(expected: &T, read: impl Fn() -> T) {
    let deadline = std::time::Instant::now() + Duration::from_secs(3);
    while read() != *expected && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(&read(), expected);
}

fn system_ping(netns: &Netns, args: &[&str]) -> String {
    let Output { stdout, .. } = netns.command("ping").args(args).output().unwrap();
    String::from_utf8(stdout).unwrap()
}

#[test]
fn carries_traffic_in_either_layout() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        for layout in LAYOUTS {
            let running = lab.start_both(Setup { layout, ..Setup::default() });
            works(&lab, Family::V4, 24 << 20);
            let full = MTU as usize - 28;
            assert_eq!(pings(&lab, Family::V4, full, true), 5, "the largest that fits");
            assert_eq!(pings(&lab, Family::V4, full + 1, true), 0, "one byte more doesn't");
            assert_eq!(pings(&lab, Family::V4, full + 4000, false), 5, "but in fragments");
            let counters = running[0].engine.counters();
            let path = running[0].engine.path();
            println!("{path}\n{counters:?}");
            // The small datagrams of the tests come singly, so the mean says less than it could.
            if path.tso {
                assert!(
                    counters.sent.packets > 2 * counters.sent.tun_packets,
                    "super-packets come: {counters:?}"
                );
                assert!(counters.sent.packets > 3 * counters.sent.trains, "trains go");
                assert!(counters.received.packets > 2 * counters.received.tun_packets, "super-packets go");
            }
            for running in running {
                assert!(running.events.lock().unwrap().is_empty());
                running.engine.stop();
            }
            assert_eq!(lab.node(1).link_index("flannel0").unwrap(), None, "it stopped and let go");
        }
    });
}

#[test]
fn works_without_any_one_offload() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let tun = TunOptions::default();
        let socket = SocketOptions::default();
        let none = SocketOptions::default().gso(false).gro(false).batch(false).buffer(200 << 10);
        let cases = [
            ("no USO", tun.uso(false), socket),
            ("no TSO", tun.tso(false), socket),
            ("no header", tun.vnet_header(false), socket),
            ("no GSO", tun, socket.gso(false)),
            ("no GRO", tun, socket.gro(false)),
            ("no batches", tun, socket.batch(false)),
            ("nothing", TunOptions::NONE, none),
        ];
        for (what, tun, socket) in cases {
            let setup = Setup { tun, socket, ..Setup::default() };
            // Each against one that has everything, and against itself.
            for other in [Setup::default(), setup] {
                let running = [lab.start(1, setup), lab.start(2, other)];
                println!("{what}: {}", running[0].engine.path());
                let path = running[0].engine.path();
                assert!(!path.uso || tun.uso && tun.tso && tun.vnet_header);
                assert_eq!(path.sockets.v4.map(|socket| socket.batch), Some(socket.batch));
                works(&lab, Family::V4, 2 << 20);
            }
        }
    });
}

#[test]
fn ipv6_goes_over_both_underlays() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        for underlay in Family::ALL {
            let running = lab.start_both(Setup { underlay, ..Setup::default() });
            for family in Family::ALL {
                works(&lab, family, 8 << 20);
            }
            let counters = running[0].engine.counters();
            assert!(counters.sent.packets > 2 * counters.sent.tun_packets, "{counters:?}");
            assert_eq!(counters.gso_fallbacks, 0, "{underlay}");
        }
    });
}

#[test]
fn speaks_with_a_forwarder_of_single_packets() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let endpoint = |node| SocketAddr::new(underlay(node, Family::V4), PORT);
        for layout in LAYOUTS {
            let running = lab.start(1, Setup { layout, ..Setup::default() });
            let naive = Naive::start(lab.node(2), "flannel0", endpoint(2), endpoint(1));
            lab.configure(2, Family::V4);
            works(&lab, Family::V4, 8 << 20);
            assert_eq!(pings(&lab, Family::V4, MTU as usize - 28, true), 5);
            // Two hops over the tunnel in each direction, and each node's own.
            let text = system_ping(lab.pod(1), &["-c1", "-W1", "10.1.2.2"]);
            assert!(text.contains("ttl=60 "), "{text}");
            drop((running, naive));
        }
    });
}

#[test]
fn errors_come_as_from_a_router() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let running = lab.start_both(Setup::default());
        let from_pod = |args: &[&str]| system_ping(lab.pod(1), args);
        // Hop 1 is the kernel of node 1, 2 its engine, 3 the engine of node 2, 4 the kernel there.
        for (ttl, hop) in [("1", "10.1.1.1"), ("2", "10.1.1.0"), ("3", "10.1.2.0"), ("4", "10.1.2.0")] {
            let text = from_pod(&["-c1", "-W1", "-t", ttl, "10.1.2.2"]);
            assert!(text.contains(&format!("From {hop} icmp_seq=1 Time to live exceeded")), "{ttl}: {text}");
        }
        assert!(from_pod(&["-c1", "-W1", "-t", "5", "10.1.2.2"]).contains(" 0% packet loss"));
        let text = from_pod(&["-c1", "-W1", "10.1.77.2"]);
        assert!(text.contains("From 10.1.1.0 icmp_seq=1 Destination Net Unreachable"), "{text}");
        for (ttl, hop) in [("2", "fd00:0:0:1::"), ("3", "fd00:0:0:2::")] {
            let text = from_pod(&["-c1", "-W1", "-t", ttl, "fd00:0:0:2::2"]);
            assert!(text.contains(&format!("From {hop} icmp_seq=1 Time exceeded: Hop limit")), "{text}");
        }
        let text = from_pod(&["-c1", "-W1", "fd00:0:0:77::2"]);
        assert!(text.contains("From fd00:0:0:1:: icmp_seq=1 Destination unreachable: No route"), "{text}");
        let counted = || {
            let expired = running.each_ref().map(|running| drops(running, DropReason::Expired));
            (expired, drops(&running[0], DropReason::NoRoute), running[0].engine.counters().errors_sent)
        };
        becomes(&([2, 2], 2, 4), counted);
    });
}

#[test]
fn a_smaller_path_is_sent_to_without_trains() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        let running = lab.start_both(Setup::default());
        lab.node(1).ip("route add 192.0.2.2/32 dev eth0 mtu 1300").unwrap();
        transfer::tcp(lab.pod(1), lab.pod(2), pod(2, Family::V4), 8 << 20);
        assert_eq!(pings(&lab, Family::V4, MTU as usize - 28, true), 5, "the outer packet is fragmented");
        let counters = running[0].engine.counters();
        assert!((1..10).contains(&counters.gso_fallbacks), "it is remembered: {counters:?}");
        assert_eq!(drops(&running[0], DropReason::SendFailed) + drops(&running[0], DropReason::TooBig), 0);
    });
}

#[test]
fn tables_change_under_traffic_without_loss() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        for layout in LAYOUTS {
            let running = lab.start_both(Setup { layout, ..Setup::default() });
            assert_eq!(pings(&lab, Family::V4, 56, true), 5);
            let options = PingOptions { interval: Duration::from_millis(1), ..PingOptions::default() };
            let pinger = Pinger::start(lab.pod(1), pod(2, Family::V4), options).unwrap();
            for round in 0..50_u8 {
                for (number, running) in (1..).zip(&running) {
                    let mut spec = spec(number, Family::V4);
                    // In front and in great number, so that indices change and building takes its time.
                    let others = (0..=u8::MAX).map(|low| {
                        let subnet = format!("10.2.{low}.0/24").parse().unwrap();
                        Peer::new(([172, 16, round, low], PORT).into(), vec![subnet])
                    });
                    spec.peers.splice(0..0, others);
                    let table = running.engine.table();
                    running.engine.set_table(ForwardingTable::new(spec, Some(&table)));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let report = pinger.stop();
            assert!(report.sent > 200);
            assert_eq!(report.lost, 0, "{report:?}");
            let peers = running[0].engine.peers();
            assert_eq!(peers.len(), 257);
            assert_eq!(peers[0].sent_packets, 0);
            becomes(&true, || running[0].engine.peers()[256].sent_packets >= report.sent);
        }
    });
}

#[test]
fn a_deleted_tun_is_reported_and_idling_costs_nothing() {
    in_sandbox(test_name!(), || {
        let lab = Lab::new();
        for layout in LAYOUTS {
            let running = lab.start(1, Setup { layout, ..Setup::default() });
            let switches = || -> u64 {
                let tasks = std::fs::read_dir("/proc/self/task").unwrap();
                let status = |task: std::io::Result<std::fs::DirEntry>| {
                    let text =
                        std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
                    let of_ours = text
                        .lines()
                        .next()
                        .is_some_and(|line| line.ends_with("udp") || line.contains("udp-"));
                    let line = text.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?;
                    of_ours.then(|| line.rsplit('\t').next().unwrap().parse::<u64>().unwrap())
                };
                tasks.filter_map(status).sum()
            };
            // The kernel says hello on the new link first.
            std::thread::sleep(Duration::from_millis(300));
            let before = switches();
            std::thread::sleep(Duration::from_millis(700));
            assert!(switches() - before < 5, "the threads sleep");
            lab.node(1).ip("link del flannel0").unwrap();
            let seen =
                || running.events.lock().unwrap().iter().any(|event| matches!(event, EngineEvent::TunGone));
            let deadline = std::time::Instant::now() + Duration::from_secs(3);
            while !seen() {
                assert!(std::time::Instant::now() < deadline, "{:?}", running.events.lock().unwrap());
                std::thread::sleep(Duration::from_millis(10));
            }
            running.engine.stop();
        }
    });
}
