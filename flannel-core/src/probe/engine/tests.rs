//! The prober on the real kernel, whose loopback link answers for peers.

use std::net::IpAddr;
use std::process::Command;
use std::time::SystemTime;

use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use tokio::sync::mpsc;

use super::peers::HOP_KNOWN;
use super::*;
use crate::status::{PeerState, PeerStatus};

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A network with one peer whose node has this address.
fn network(underlay: &str) -> NetworkStatus {
    let underlay = PerFamily { v4: underlay.parse().ok(), v6: None };
    let lease = "10.5.2.0-24".parse().unwrap();
    let mut peer = PeerStatus::new(lease, underlay, PeerState::Programmed, SystemTime::now());
    peer.path.v4 = Some(crate::status::PeerPath::new("test"));
    NetworkStatus {
        synced: true,
        peer_list: [peer].into_iter().collect(),
        overlay_mtu: Some(Mtu(1450)),
        ..NetworkStatus::default()
    }
}

/// A network with peers whose nodes have these addresses.
fn crowd(underlays: impl Iterator<Item = String>) -> NetworkStatus {
    let peers = (0_u16..).zip(underlays).map(|(number, underlay)| {
        let lease = format!("10.{}.{}.0-24", 6 + number / 256, number % 256).parse().unwrap();
        let underlay = PerFamily { v4: underlay.parse().ok(), v6: None };
        let mut peer = PeerStatus::new(lease, underlay, PeerState::Programmed, SystemTime::now());
        peer.path.v4 = Some(crate::status::PeerPath::new("test"));
        peer
    });
    NetworkStatus { synced: true, peer_list: peers.collect(), ..NetworkStatus::default() }
}

/// In a crowd, peers behind a gateway are visited as often as the budget permits, and only those on the link as seldom as the
/// table of neighbours asks for.
#[test]
fn only_peers_on_the_link_are_visited_seldom_for_the_table_of_neighbours() {
    in_sandbox(test_name!(), || {
        for line in [
            "link add eth0 type veth peer name end",
            "address add 192.0.2.1/24 dev eth0",
            "address add fd00:aa::1/64 dev eth0 nodad",
            "link set eth0 up",
            "link set end up",
            "route add 198.51.100.0/24 via 192.0.2.254",
            "route add fd00:bb::/64 via fd00:aa::ff",
        ] {
            ip(line);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let start = |status: NetworkStatus| {
                let status = watch::Sender::new(status);
                let options = ProbeOptions::new(ProbeInterval::Auto);
                let (own, probing) = ("10.5.1.0-24".parse().unwrap(), Some(Probing::new(Answers::Base)));
                let netns = Netns::current().unwrap();
                Prober::new(netns, options, probing, own, Mtu(1450), status.subscribe())
            };
            let near = |count: u8| (1..=count).map(|last| format!("192.0.2.{last}"));
            let far = |count: u8| (1..=count).map(|last| format!("198.51.100.{last}"));
            let intervals = |prober: &Prober| {
                [true, false].map(|on_link| prober.interval(Family::V4, on_link).as_millis())
            };
            // Few enough: nobody asks for routes.
            let mut prober = start(crowd(far(128)));
            prober.list(Instant::now()).await;
            assert_eq!((prober.on_link.v4, intervals(&prober)), (Some(128), [6_400; 2]));
            let mut prober = start(crowd(near(160).chain(far(240))));
            let listed = Instant::now();
            prober.list(listed).await;
            assert_eq!((prober.on_link.v4, intervals(&prober)), (Some(160), [75_000, 20_000]));
            assert_eq!(prober.shown.interval.as_secs(), 75, "until all are visited");
            // A visit sees a route that has changed, though not each visit looks.
            ip("route replace 198.51.100.0/24 dev eth0");
            let ids: Vec<u32> = prober.targets.keys().copied().collect();
            for (later, on_link) in [(HOP_KNOWN / 2, 160), (HOP_KNOWN, 400)] {
                for id in &ids {
                    prober.look_at_hop(*id, listed + later).await;
                }
                assert_eq!(prober.on_link.v4, Some(on_link), "{later:?}");
            }
            assert_eq!((prober.on_link.v4, prober.shown.interval.as_millis()), (Some(400), 187_500));
            for id in ids {
                prober.forget(id);
            }
            assert_eq!(prober.on_link.v4, Some(0));
            for (addr, is_one) in [("fd00:aa::9", true), ("fd00:bb::9", false), ("fd00:cc::9", true)] {
                assert_eq!(prober.neighbours.hop_to(addr.parse().unwrap()).await.on_link, is_one, "{addr}");
            }
        });
    });
}

/// Whoever was told of a fault is told of its end, also when the peer is at another address by then, of which nothing was
/// known.
#[test]
fn the_end_of_a_fault_is_told_whatever_became_of_the_target() {
    in_sandbox(test_name!(), || {
        ip("link set lo up");
        for address in ["10.5.1.0", "192.0.2.2", "192.0.2.3"] {
            ip(&format!("address add {address}/32 dev lo"));
        }
        // Nobody is at its other end.
        ip("link add silent type veth peer name end");
        ip("link set end up");
        ip("link set silent up");
        ip("route add 10.5.0.0/16 dev silent");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let status = watch::Sender::new(network("192.0.2.2"));
            let options = ProbeOptions::new(ProbeInterval::Auto);
            let (own, probing) = ("10.5.1.0-24".parse().unwrap(), Some(Probing::new(Answers::Base)));
            let netns = Netns::current().unwrap();
            let prober = Prober::new(netns, options, probing, own, Mtu(1450), status.subscribe());
            let shown = prober.status();
            let (sender, mut events) = mpsc::unbounded_channel();
            let run = prober.run(move |event| sender.send(event).unwrap());
            let course = async {
                let Some(ProbeEvent::Judged { verdict, evidence, .. }) = events.recv().await else { panic!() };
                assert_eq!(verdict, Verdict::TunnelBlocked, "{evidence:?}");
                assert_eq!(shown.borrow().counts.of(Verdict::TunnelBlocked), 1);
                ip("address add 10.5.2.0/32 dev lo");
                status.send_replace(network("192.0.2.3"));
                let Some(ProbeEvent::Judged { before, verdict, .. }) = events.recv().await else { panic!() };
                assert_eq!((before, verdict), (Verdict::Untested, Verdict::Reachable));
                let shown = shown.borrow();
                let probe = shown.peers.get(&"10.5.2.0-24".parse().unwrap()).unwrap().families.v4.as_ref().unwrap();
                assert_eq!(probe.underlay.target, IpAddr::from([192, 0, 2, 3]));
                assert!(probe.overlay.last_answer.is_some() && shown.counts.trouble() == 0);
                // A peer that is gone leaves nothing behind.
                status.send_replace(NetworkStatus { synced: true, ..NetworkStatus::default() });
            };
            let mut gone = shown.clone();
            tokio::select! {
                never = run => match never {},
                _ = async { course.await; gone.wait_for(|shown| shown.peers.is_empty()).await.map(drop) } => {}
            }
        });
    });
}
