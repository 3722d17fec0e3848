//! Two nodes with a pod each, and what can run on them.
//!
//! ```text
//! pod1 ── node1 ── eth0 ─ eth0 ── node2 ── pod2     10.1.N.2 and fd00:0:0:N::2, behind 192.0.2.N and fd00:aa::N
//! ```
#![allow(dead_code, unreachable_pub)]

pub mod naive;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use flannel_backend_udp::Layout;
use flannel_backend_udp::datapath::{
    Engine, EngineEvent, EngineOptions, ErrorSocket, ForwardingTable, Peer, SocketOptions, TableSpec, Tun,
    TunOptions, UnderlaySocket,
};
use flannel_core::addr::{Family, Mtu, PerFamily};
use flannel_lab::netns::Netns;

pub const PORT: u16 = 8285;
pub const MTU: u32 = 1472;

pub struct Lab {
    pub pods: [Netns; 2],
    pub nodes: [Netns; 2],
}

/// Which address family the datagrams have.
#[derive(Clone, Copy)]
pub struct Setup {
    pub layout: Layout,
    pub tun: TunOptions,
    pub socket: SocketOptions,
    pub underlay: Family,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            layout: Layout::OneThread,
            tun: TunOptions::default(),
            socket: SocketOptions::default(),
            underlay: Family::V4,
        }
    }
}

pub struct Running {
    pub engine: Engine,
    pub events: Arc<Mutex<Vec<EngineEvent>>>,
}

pub fn underlay(node: usize, family: Family) -> IpAddr {
    match family {
        Family::V4 => [192, 0, 2, node as u8].into(),
        Family::V6 => format!("fd00:aa::{node}").parse().unwrap(),
    }
}

pub fn pod(node: usize, family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 1, node as u8, 2].into(),
        Family::V6 => format!("fd00:0:0:{node}::2").parse().unwrap(),
    }
}

/// The table of a node whose only peer is the other.
pub fn spec(node: usize, family: Family) -> TableSpec {
    let subnets = |node: usize| {
        [format!("10.1.{node}.0/24"), format!("fd00:0:0:{node}::/64")]
            .map(|text| text.parse().unwrap())
            .to_vec()
    };
    let other = 3 - node;
    let own_addresses = PerFamily {
        v4: Some([10, 1, node as u8, 0].into()),
        v6: Some(format!("fd00:0:0:{node}::").parse().unwrap()),
    };
    let mtu = Mtu(if family == Family::V4 { MTU } else { MTU - 20 });
    let peer = Peer::new(SocketAddr::new(underlay(other, family), PORT), subnets(other));
    TableSpec::new(subnets(node), own_addresses).overlay_mtu(Some(mtu)).peers(vec![peer])
}

impl Lab {
    pub fn new() -> Self {
        let names = ["pod1", "pod2", "node1", "node2"];
        let [pod1, pod2, node1, node2] = names.map(|name| Netns::add(name).unwrap());
        let lab = Self { pods: [pod1, pod2], nodes: [node1, node2] };
        lab.nodes[0].ip("link add eth0 type veth peer name eth0 netns node2").unwrap();
        for number in 1..=2 {
            let (pod, node) = (lab.pod(number), lab.node(number));
            for netns in [pod, node] {
                netns.sysctl("net.ipv6.conf.all.accept_dad", "0").unwrap();
                netns.sysctl("net.ipv6.conf.default.accept_dad", "0").unwrap();
            }
            node.sysctl("net.ipv4.ip_forward", "1").unwrap();
            node.sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
            let lines = [
                format!("addr add 192.0.2.{number}/24 dev eth0"),
                format!("addr add fd00:aa::{number}/64 dev eth0 nodad"),
                "link set eth0 up".to_owned(),
                format!("link add pod type veth peer name eth0 netns pod{number}"),
                format!("addr add 10.1.{number}.1/24 dev pod"),
                format!("addr add fd00:0:0:{number}::1/64 dev pod nodad"),
                "link set pod up".to_owned(),
            ];
            node.ip_batch(&lines).unwrap();
            let lines = [
                format!("addr add 10.1.{number}.2/24 dev eth0"),
                format!("addr add fd00:0:0:{number}::2/64 dev eth0 nodad"),
                "link set eth0 up".to_owned(),
                format!("route add default via 10.1.{number}.1"),
                format!("route add default via fd00:0:0:{number}::1"),
            ];
            pod.ip_batch(&lines).unwrap();
        }
        lab
    }

    pub fn pod(&self, number: usize) -> &Netns {
        &self.pods[number - 1]
    }

    pub fn node(&self, number: usize) -> &Netns {
        &self.nodes[number - 1]
    }

    /// Gives the TUN its address, MTU and routes, as the reconciler would.
    pub fn configure(&self, number: usize, family: Family) {
        let mtu = if family == Family::V4 { MTU } else { MTU - 20 };
        let lines = [
            format!("addr add 10.1.{number}.0/32 dev flannel0"),
            format!("addr add fd00:0:0:{number}::/128 dev flannel0 nodad"),
            format!("link set flannel0 mtu {mtu} up"),
            "route add 10.1.0.0/16 dev flannel0".to_owned(),
            "route add fd00::/48 dev flannel0".to_owned(),
        ];
        self.node(number).ip_batch(&lines).unwrap();
    }

    /// Starts an engine on a node.
    pub fn start(&self, number: usize, setup: Setup) -> Running {
        self.start_with(number, setup, spec(number, setup.underlay))
    }

    pub fn start_with(&self, number: usize, setup: Setup, spec: TableSpec) -> Running {
        let events = Arc::new(Mutex::new(Vec::new()));
        let hook = Arc::clone(&events);
        let engine = self.node(number).enter(|| {
            let bind = |family| {
                let local = SocketAddr::new(underlay(number, family), PORT);
                (family == setup.underlay)
                    .then(|| Arc::new(UnderlaySocket::bind(local, setup.socket).unwrap()))
            };
            let tun = Arc::new(Tun::open("flannel0", setup.tun).unwrap());
            let table = ForwardingTable::new(spec, None);
            let on_event = Arc::new(move |event| hook.lock().unwrap().push(event));
            let errors = PerFamily::from_fn(|family| Some(ErrorSocket::open(family).unwrap()));
            let options = EngineOptions::new(tun, PerFamily::from_fn(bind), table, on_event);
            Engine::start(options.errors(errors).layout(setup.layout))
        });
        self.configure(number, setup.underlay);
        Running { engine: engine.unwrap().unwrap(), events }
    }

    /// Starts an engine on both nodes.
    pub fn start_both(&self, setup: Setup) -> [Running; 2] {
        [self.start(1, setup), self.start(2, setup)]
    }
}
