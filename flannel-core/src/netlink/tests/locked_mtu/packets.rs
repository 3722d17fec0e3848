//! What a locked MTU does to packets: those of pods keep to it, and full-size probes still leave, by which the prober finds
//! out that they get through again.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, SystemTime};

use flannel_lab::netns::Netns as LabNetns;
use flannel_lab::test_name;
use flannel_lab::wait::{eventually, patiently};
use tokio::sync::watch;

use super::super::super::Netlink;
use super::super::changes::done;
use super::super::sandbox::{ip, with_underlay};
use super::forms;
use crate::addr::{Family, Mtu, PerFamily};
use crate::backend::{Answers, NetworkStatus, Probing};
use crate::dataplane::{Object, Op, Route};
use crate::kernel::Kernel;
use crate::netns::Netns;
use crate::probe::{ProbeInterval, ProbeOptions, ProbeStatus, Prober, Verdict};
use crate::status::{PeerPath, PeerState, PeerStatus};

const DEADLINE: Duration = Duration::from_secs(20);

/// Bytes of an IP header and a UDP header.
const fn headers(family: Family) -> usize {
    match family {
        Family::V4 => 28,
        Family::V6 => 48,
    }
}

/// A family's subnet of the peer, the begin of its addresses, and the peer's gateway.
const PEER: [(Family, &str, &str, &str); 2] = [
    (Family::V4, "10.9.0.0/24", "10.9.0.", "192.0.2.2"),
    (Family::V6, "fd00:9::/64", "fd00:9::", "2001:db8::2"),
];

/// This namespace between a pod and a peer, which is behind `eth0`. All links have an MTU of 1500.
fn pod_and_peer() -> (LabNetns, LabNetns) {
    let (pod, peer) = (LabNetns::add("pod").unwrap(), LabNetns::add("peer").unwrap());
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{key}"), "1").unwrap();
    }
    // A router asks for neighbours from a link-local address.
    for line in [
        "address add fe80::1/64 dev eth0 nodad",
        "address add 10.8.0.0/32 dev eth0",
        "address add fd00:8::/128 dev eth0 nodad",
        "link set peer0 netns peer",
        "link add pod0 type veth peer name eth0 netns pod",
        "link set pod0 up",
        "address add 10.8.0.1/24 dev pod0",
        "address add fd00:8::1/64 dev pod0 nodad",
        "address add fe80::1/64 dev pod0 nodad",
    ] {
        ip(line);
    }
    let addresses = (0..=16).flat_map(|last| {
        let of =
            |(.., begin, _): (Family, &str, &str, &str)| format!("address add {begin}{last} dev peer0 nodad");
        PEER.map(of)
    });
    let lines = ["link set peer0 up", "address add 192.0.2.2/24 dev peer0"].map(str::to_owned);
    let more = ["address add 2001:db8::2/64 dev peer0 nodad", "route add default via 192.0.2.1"];
    let more = more.into_iter().chain(["route add ::/0 via 2001:db8::1"]).map(str::to_owned);
    peer.ip_batch(&lines.into_iter().chain(addresses).chain(more).collect::<Vec<_>>()).unwrap();
    for line in [
        "link set eth0 up",
        "address add 10.8.0.2/24 dev eth0",
        "address add fd00:8::2/64 dev eth0 nodad",
        "route add default via 10.8.0.1",
        "-6 route add default via fd00:8::1",
    ] {
        pod.ip(line).unwrap();
    }
    (pod, peer)
}

#[test]
fn forwarded_packets_keep_to_it_while_it_is_there() {
    with_underlay(test_name!(), || async {
        let (pod, peer) = pod_and_peer();
        let mut kernel = Netlink::open().unwrap();
        let eth0 = kernel.link("eth0").await.unwrap().unwrap().index;
        let arrived = peer.enter(|| UdpSocket::bind("[::]:7777")).unwrap().unwrap();
        arrived.set_read_timeout(Some(patiently(DEADLINE))).unwrap();
        for (_, dst, begin, gateway) in PEER {
            // Each try has an address of its own, of which the pod has no path MTU yet.
            let mut number = 0;
            for (helper, route) in forms(dst, gateway, eth0) {
                done(&mut kernel, helper.map(Op::Create)).await;
                for (at, mtu) in [None, Some(1350), Some(1300), None].into_iter().enumerate() {
                    let route = Object::Route(Route { mtu: mtu.map(Mtu), ..route });
                    done(&mut kernel, [if at == 0 { Op::Create(route) } else { Op::Replace(route) }]).await;
                    number += 1;
                    let to: IpAddr = format!("{begin}{number}").parse().unwrap();
                    forwards(&pod, &arrived, to, mtu.map(|mtu| mtu as usize));
                }
                done(&mut kernel, [Op::Delete(Object::Route(route))]).await;
                done(&mut kernel, helper.map(Op::Delete)).await;
            }
        }
    });
}

/// Checks that the largest packet that gets from the pod to this address has the size of this MTU, and that the pod is told.
fn forwards(pod: &LabNetns, arrived: &UdpSocket, to: IpAddr, mtu: Option<usize>) {
    let family = Family::of(to);
    let pods = pod.enter(|| UdpSocket::bind((family.unspecified(), 0))).unwrap().unwrap();
    let send = |size: usize| assert!(pods.send_to(&vec![0; size - headers(family)], (to, 7777)).is_ok());
    if let Some(mtu) = mtu {
        send(mtu + 1);
        eventually(DEADLINE, "the pod to be told of the MTU", || {
            let known = pod.ip(&format!("route get {to}")).unwrap();
            if known.contains(&format!("mtu {mtu}")) { Ok(()) } else { Err(known) }
        });
    }
    let fits = mtu.unwrap_or(1500);
    send(fits);
    let mut buffer = [0; 2000];
    assert_eq!(arrived.recv(&mut buffer).unwrap(), fits - headers(family), "{to} with {mtu:?}");
}

/// The prober's own packets are as large as the link permits: with a locked MTU it would never see that a hole is gone.
#[test]
fn full_size_probes_leave_whatever_it_is() {
    with_underlay(test_name!(), || async {
        let (_pod, peer) = pod_and_peer();
        let nft = |line: &str| peer.run("nft", &[line]).unwrap();
        for line in [
            "add table inet seen",
            "add chain inet seen in { type filter hook prerouting priority -500; }",
            "add counter inet seen v4",
            "add counter inet seen v6",
            "add counter inet seen fragments",
            "add rule inet seen in ip length 1500 icmp type echo-request counter name v4",
            "add rule inet seen in ip6 length 1460 icmpv6 type echo-request counter name v6",
            "add rule inet seen in ip frag-off & 0x3fff != 0 counter name fragments",
            "add rule inet seen in exthdr frag exists counter name fragments",
        ] {
            nft(line);
        }
        let mut kernel = Netlink::open().unwrap();
        let eth0 = kernel.link("eth0").await.unwrap().unwrap().index;
        for (_, dst, _, gateway) in PEER {
            let route = Route::by_node(dst.parse().unwrap(), gateway.parse().unwrap(), eth0);
            done(&mut kernel, [Op::Create(Object::Route(Route { mtu: Some(Mtu(1350)), ..route }))]).await;
        }
        let counted = peer.clone();
        let packets = move |counter: &str| {
            let shown = counted.run("nft", &[&format!("list counter inet seen {counter}")]).unwrap();
            let count = shown.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
            count.and_then(|count| count.parse::<u64>().ok()).ok_or(shown)
        };
        let status = watch::Sender::new(network());
        let (options, probing) = (ProbeOptions::new(ProbeInterval::Auto), Some(Probing::new(Answers::Base)));
        let (netns, own) = (Netns::current().unwrap(), "10.8.0.0-24&fd00:8::-64".parse().unwrap());
        let prober = Prober::new(netns, options, probing, own, Mtu(1500), status.subscribe());
        let mut shown = prober.status();
        let course = async move {
            let all = |shown: &ProbeStatus| shown.counts.of(Verdict::Reachable) == 2;
            tokio::time::timeout(patiently(DEADLINE), shown.wait_for(all)).await.unwrap().unwrap();
            let count = move || {
                let full = || Ok::<_, String>((packets("v4")?, packets("v6")?));
                eventually(DEADLINE, "full-size echoes of both families", || match full()? {
                    (0, _) | (_, 0) => Err("not yet".to_owned()),
                    _ => Ok(()),
                });
                assert_eq!(packets("fragments"), Ok(0));
                // Other packets of this node keep to the MTU.
                for (family, _, begin, _) in PEER {
                    let before = packets("fragments").unwrap();
                    let socket = UdpSocket::bind((family.unspecified(), 0)).unwrap();
                    socket.send_to(&vec![0; 1500 - headers(family)], (format!("{begin}1"), 7777)).unwrap();
                    eventually(DEADLINE, "fragments", || {
                        packets("fragments").is_ok_and(|now| now >= before + 2)
                    });
                }
            };
            tokio::task::spawn_blocking(count).await.unwrap();
        };
        tokio::select! {
            never = prober.run(|_| ()) => match never {},
            () = course => {}
        }
    });
}

/// A network with one peer, in both families.
fn network() -> NetworkStatus {
    let underlay = PerFamily { v4: "192.0.2.2".parse().ok(), v6: "2001:db8::2".parse().ok() };
    let lease = "10.9.0.0-24&fd00:9::-64".parse().unwrap();
    let mut peer = PeerStatus::new(lease, underlay, PeerState::Programmed, SystemTime::now());
    peer.path = PerFamily { v4: Some(PeerPath::new("test")), v6: Some(PeerPath::new("test")) };
    NetworkStatus {
        synced: true,
        peer_list: [peer].into_iter().collect(),
        overlay_mtu: Some(Mtu(1500)),
        ..NetworkStatus::default()
    }
}
