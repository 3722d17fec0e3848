//! The prober on the real kernel, whose loopback link answers for peers.

use std::net::IpAddr;
use std::process::Command;
use std::time::SystemTime;

use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use tokio::sync::mpsc;

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
