//! The ways between the pods that are compared.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use flannel_backend_udp::engine::EngineOptions;
use flannel_backend_udp::socket::ErrorSocket;
use flannel_backend_udp::{
    Engine, ForwardingTable, Layout, SocketOptions, TableSpec, Tun, TunOptions, UnderlaySocket,
};
use flannel_core::addr::{Family, Mtu, PerFamily};

use super::common::naive::Naive;
use super::common::{Lab, underlay};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Auto,
    One,
    Two,
    Naive,
    Vxlan,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Auto, Self::One, Self::Two, Self::Naive, Self::Vxlan];

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| format!("{kind:?}").eq_ignore_ascii_case(name))
    }
}

enum Running {
    Engines([Engine; 2]),
    Naive(#[allow(dead_code, reason = "it runs until it is dropped")] [Naive; 2]),
    Kernel,
}

pub struct Method {
    pub kind: Kind,
    number: u8,
    running: Running,
}

impl Method {
    pub fn start(lab: &Lab, kind: Kind) -> Self {
        let number = 10 + kind as u8;
        let device = format!("m{number}");
        let engine = |node, layout| start_engine(lab, node, number, &device, layout);
        let naive = |node: usize| {
            let at = |node| SocketAddr::new(underlay(node, Family::V4), 8000 + u16::from(number));
            Naive::start(lab.node(node), &device, at(node), at(3 - node))
        };
        let running = match kind {
            Kind::Auto => Running::Engines([1, 2].map(|node| engine(node, Layout::Adaptive))),
            Kind::One => Running::Engines([1, 2].map(|node| engine(node, Layout::OneThread))),
            Kind::Two => Running::Engines([1, 2].map(|node| engine(node, Layout::TwoThreads))),
            Kind::Naive => Running::Naive([1, 2].map(naive)),
            Kind::Vxlan => {
                for node in 1..=2 {
                    let (local, remote) = (underlay(node, Family::V4), underlay(3 - node, Family::V4));
                    let kind = format!("type vxlan id 9 local {local} remote {remote} dstport 4789 dev eth0");
                    lab.node(node).ip(&format!("link add {device} {kind}")).unwrap();
                }
                Running::Kernel
            }
        };
        for node in 1..=2 {
            let other = 3 - node;
            let (mtu, via) = match kind {
                Kind::Vxlan => (1450, format!("via 10.{number}.0.{other} onlink")),
                _ => (1472, String::new()),
            };
            let lines = [
                format!("addr add 10.{number}.0.{node}/32 dev {device}"),
                format!("link set {device} mtu {mtu} up"),
                format!("route add 10.{number}.{other}.0/24 {via} dev {device}"),
                format!("addr add 10.{number}.{node}.1/24 dev pod"),
            ];
            lab.node(node).ip_batch(&lines).unwrap();
            lab.pod(node).ip(&format!("addr add 10.{number}.{node}.2/24 dev eth0")).unwrap();
            let route =
                format!("route add 10.{number}.{other}.0/24 via 10.{number}.{node}.1 advmss {}", mtu - 40);
            lab.pod(node).ip(&route).unwrap();
        }
        Self { kind, number, running }
    }

    pub fn pod(&self, node: u8) -> IpAddr {
        [10, self.number, node, 2].into()
    }

    pub fn describe(&self) {
        if let Running::Engines([first, _]) = &self.running {
            println!("{:?}: {}", self.kind, first.path());
        }
    }

    pub fn summary(&self) {
        if let Running::Engines(engines) = &self.running {
            for engine in engines {
                println!("{:?}: {:?}", self.kind, engine.counters());
            }
        }
    }
}

fn start_engine(lab: &Lab, node: usize, number: u8, device: &str, layout: Layout) -> Engine {
    let other = 3 - node;
    let at = |node| SocketAddr::new(underlay(node, Family::V4), 8000 + u16::from(number));
    let subnet = |node: usize| vec![format!("10.{number}.{node}.0/24").parse().unwrap()];
    let table = TableSpec {
        own_subnets: subnet(node),
        own_addresses: PerFamily { v4: Some([10, number, 0, node as u8].into()), v6: None },
        overlay_mtu: Some(Mtu(1472)),
        peers: vec![flannel_backend_udp::Peer {
            endpoint: at(other),
            other_sources: vec![],
            subnets: subnet(other),
        }],
        allowed_sources: vec![],
    };
    let start = || {
        let socket = UnderlaySocket::bind(at(node), SocketOptions::default()).unwrap();
        Engine::start(EngineOptions {
            tun: Arc::new(Tun::open(device, TunOptions::default()).unwrap()),
            sockets: PerFamily { v4: Some(Arc::new(socket)), v6: None },
            errors: PerFamily::from_fn(|family| ErrorSocket::open(family).ok()),
            layout,
            table: ForwardingTable::new(table, None),
            on_event: Arc::new(|event| eprintln!("{event:?}")),
        })
    };
    lab.node(node).enter(start).unwrap().unwrap()
}
