//! A host on the underlay that is no node sends tunnel packets, and so does a node whose packets leave by others.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use flannel_lab::stranger::{METADATA, Sink, Stranger, damaged, udp_packet, vxlan};
use flannel_lab::wait::wait_for;

use super::Scene;
use crate::Fallible;
use crate::action::Victim;
use crate::lab::LIMIT;
use crate::model::{Backend, Side};

/// Where ears are, on nodes, in pods and on the host that tells secrets.
const PORT: u16 = 9911;
const HONEST_PORT: u16 = 9912;
const MARK: &[u8] = b"from a stranger";
const HONEST: &[u8] = b"from a pod";
/// Some two thousand datagrams a second, since the queues before a tunnel are honest pods' as well.
const BATCH: usize = 40;
const PACE: Duration = Duration::from_millis(20);

/// A node as a target, in one family.
struct Target {
    side: Side,
    pod: IpAddr,
    /// Another node's pod, whose packets would be welcome.
    other_pod: IpAddr,
}

pub(super) fn run(scene: &Scene<'_>) -> Fallible<String> {
    honest_ones_arrive(scene)?;
    let lab = scene.lab;
    let mut sinks = vec![Sink::open(&scene.metadata, PORT, MARK)?];
    for (number, pod) in &*lab.pods() {
        sinks.push(Sink::open(pod.netns(), PORT, MARK)?);
        sinks.push(Sink::open(lab.node(*number).netns(), PORT, MARK)?);
    }
    let (mut whole, mut malformed, mut number) = (0_u64, 0_u64, 0);
    let families = lab.families();
    let strangers =
        families.iter().map(|v6| Stranger::in_netns(&scene.stranger, *v6)).collect::<Result<Vec<_>, _>>()?;
    // The last node's own host, which is a node to all others.
    let insider = lab.numbers().last().ok_or("there are no nodes")?;
    let insiders = families.iter().map(|v6| Stranger::in_netns(lab.node(insider).netns(), *v6));
    let insiders = insiders.collect::<Result<Vec<_>, _>>()?;
    let targets = families.iter().map(|v6| targets(scene, *v6)).collect::<Fallible<Vec<_>>>()?;
    while !scene.is_over() {
        for (family, targets) in targets.iter().enumerate() {
            let metadata = METADATA[usize::from(families[family])];
            for (at, target) in targets.iter().enumerate() {
                let to = SocketAddr::new(target.side.underlay, port(lab.backend, families[family]));
                let inside = [target.pod, target.side.base(), target.side.underlay, metadata];
                let datagrams = inside.map(|inner| tunnelled(lab.backend, target, target.other_pod, inner));
                for datagram in &datagrams {
                    whole += u64::from(strangers[family].send(to, datagram));
                }
                for _ in 0..BATCH / targets.len() {
                    number += 1;
                    let datagram = damaged(&datagrams[number % datagrams.len()], number);
                    malformed += u64::from(strangers[family].send(to, &datagram));
                }
                if at + 1 < usize::from(insider) {
                    let pod = targets[usize::from(insider) - 1].pod;
                    insiders[family].send(to, &tunnelled(lab.backend, target, pod, metadata));
                    whole += 1;
                }
            }
        }
        scene.sleep(PACE);
    }
    let heard = sinks.iter().filter(|sink| sink.count() > 0).map(|sink| {
        let from = sink.last_source().map(|ip| ip.to_string()).unwrap_or_default();
        format!(
            "{} datagrams of a stranger arrived in {}, the last one from {from}",
            sink.count(),
            sink.name()
        )
    });
    let heard = heard.collect::<Vec<_>>();
    if heard.is_empty() {
        Ok(format!("{whole} whole and {malformed} malformed datagrams sent, none arrived"))
    } else {
        Err(heard.join("\n").into())
    }
}

fn targets(scene: &Scene<'_>, v6: bool) -> Fallible<Vec<Target>> {
    let lab = scene.lab;
    let pod_of = |number: u8| {
        let pods = lab.pods();
        let pod = pods.get(&number).and_then(|pod| if v6 { pod.ipv6() } else { pod.ipv4() });
        pod.ok_or_else(|| format!("node{number} has no pod"))
    };
    let nodes = lab.numbers().count();
    let target = |number: u8| {
        let lease = lab.lease(Victim::Node(number)).ok_or_else(|| format!("node{number} has no lease"))?;
        let side = lease.side(v6).cloned().ok_or("a lease lacks a family")?;
        let other = u8::try_from(usize::from(number) % nodes + 1)?;
        Ok(Target { side, pod: pod_of(number)?, other_pod: pod_of(other)? })
    };
    lab.numbers().map(target).collect()
}

/// The port of a family's tunnel.
fn port(backend: Backend, v6: bool) -> u16 {
    match backend {
        Backend::Udp => 8285,
        Backend::Wireguard if v6 => 51821,
        Backend::Wireguard => 51820,
        Backend::Vxlan | Backend::HostGw | Backend::Ipip => 8472,
    }
}

/// What goes into a datagram to a target, of a packet that seems to come from a pod.
fn tunnelled(backend: Backend, target: &Target, from: IpAddr, to: IpAddr) -> Vec<u8> {
    let packet = udp_packet(SocketAddr::new(from, 1234), SocketAddr::new(to, PORT), MARK);
    match &target.side.mac {
        Some(mac) if backend == Backend::Vxlan => {
            let mut bytes = [0; 6];
            for (byte, text) in bytes.iter_mut().zip(mac.split(':')) {
                *byte = u8::from_str_radix(text, 16).unwrap_or_default();
            }
            vxlan(1, bytes, &packet)
        }
        _ => packet,
    }
}

/// What is to stay away from others must be able to get there: a pod's own datagrams do.
fn honest_ones_arrive(scene: &Scene<'_>) -> Fallible<()> {
    let pods = scene.lab.pods();
    let (Some(from), Some(to)) = (pods.get(&1), pods.get(&2)) else { return Err("there are no pods".into()) };
    let sinks =
        [Sink::open(to.netns(), HONEST_PORT, HONEST)?, Sink::open(&scene.metadata, HONEST_PORT, HONEST)?];
    for v6 in scene.lab.families() {
        let pod = if v6 { to.ipv6() } else { to.ipv4() };
        let metadata = METADATA[usize::from(v6)];
        for (address, sink) in [pod.unwrap_or(metadata), metadata].into_iter().zip(&sinks) {
            let before = sink.count();
            let any = if v6 { "[::]:0" } else { "0.0.0.0:0" };
            let socket = from.netns().enter(|| UdpSocket::bind(any))??;
            wait_for(LIMIT, &format!("a pod's datagram to {address} to arrive"), || {
                // What fails is sent again.
                let _ = socket.send_to(HONEST, (address, HONEST_PORT));
                sink.count() > before
            })?;
        }
    }
    Ok(())
}
