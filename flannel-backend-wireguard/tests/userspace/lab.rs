//! Two nodes on one wire, and devices on them: ours, or another implementation's, set up by `wg`.
//!
//! ```text
//! node1 ── eth0 ─ eth0 ── node2     10.9.N.1 and fd09::N in the tunnel, 192.0.2.N and fd00:aa::N outside
//! ```

#![allow(unreachable_pub)]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flannel_backend_udp::datapath::{DropReason, EngineEvent};
use flannel_backend_wireguard::device::{Change, Device as _, PeerChange, PeerState};
use flannel_backend_wireguard::key::{PresharedKey, PublicKey};
use flannel_backend_wireguard::userspace::testing::{base64, private_key, public_key};
use flannel_backend_wireguard::userspace::{UserspaceDevice, UserspaceOptions};
use flannel_core::addr::{Family, Mtu};
use flannel_lab::agent::{Agent, AgentBuilder};
use flannel_lab::netns::Netns;
use flannel_lab::ping::{PingOptions, ping};
use flannel_lab::transfer;

pub const PORT: u16 = 51820;
pub const MTU: u32 = 1420;
/// The key that all pairs share whose name says so.
pub const SHARED: [u8; 32] = [0x5a; 32];

pub struct Lab {
    nodes: Vec<Netns>,
}

pub fn outside(number: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => [192, 0, 2, number].into(),
        Family::V6 => format!("fd00:aa::{number}").parse().unwrap(),
    }
}

pub fn inside(number: u8, family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 9, number, 1].into(),
        Family::V6 => format!("fd09::{number}").parse().unwrap(),
    }
}

/// Node `number` as a peer, over an underlay of this family.
pub fn peer(number: u8, underlay: Family) -> PeerChange {
    let allowed = [format!("10.9.{number}.0/24"), format!("fd09::{number}/128")];
    PeerChange {
        endpoint: Some(SocketAddr::new(outside(number, underlay), PORT)),
        allowed_ips: Some(allowed.iter().map(|net| net.parse().unwrap()).collect()),
        ..PeerChange::default()
    }
}

impl Lab {
    /// Nodes 1 and 2.
    pub fn new() -> Self {
        let lab = Self { nodes: ["node1", "node2"].map(|name| Netns::add(name).unwrap()).into() };
        lab.node(1).ip("link add eth0 type veth peer name eth0 netns node2").unwrap();
        for number in 1..=2 {
            let lines = [
                format!("addr add {}/24 dev eth0", outside(number, Family::V4)),
                format!("addr add {}/64 dev eth0 nodad", outside(number, Family::V6)),
                "link set eth0 up".to_owned(),
            ];
            lab.node(number).ip_batch(&lines).unwrap();
        }
        lab
    }

    pub fn node(&self, number: u8) -> &Netns {
        &self.nodes[usize::from(number) - 1]
    }

    /// Gives a link the addresses and routes of the tunnel.
    pub fn configure(&self, number: u8, link: &str) {
        let lines = [
            format!("addr replace {}/32 dev {link}", inside(number, Family::V4)),
            format!("addr replace {}/128 dev {link} nodad", inside(number, Family::V6)),
            format!("link set {link} mtu {MTU} up"),
            format!("route replace 10.9.0.0/16 dev {link}"),
            format!("route replace fd09::/64 dev {link}"),
        ];
        self.node(number).ip_batch(&lines).unwrap();
    }

    /// A device of ours on a node, with its key and without peers.
    pub fn ours(&self, number: u8, adapt: impl FnOnce(UserspaceOptions) -> UserspaceOptions) -> Ours {
        let netns = flannel_core::netns::Netns::open(self.node(number).path()).unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let hook = Arc::clone(&events);
        let on_event = Arc::new(move |event| hook.lock().unwrap().push(event));
        let options = UserspaceOptions::new(netns, "wg0", on_event).listen_port(PORT);
        let device = UserspaceDevice::open(adapt(options)).unwrap();
        device.set_mtu(Mtu(MTU));
        let ours = Ours { device, events };
        ours.apply(&[Change::PrivateKey(private_key(number))]);
        self.configure(number, "wg0");
        ours
    }

    /// Both nodes with a device of ours that know each other.
    pub fn both_ours(&self, underlay: Family) -> [Ours; 2] {
        [1, 2].map(|number| {
            let ours = self.ours(number, |options| options);
            ours.apply(&[Change::Peer(public_key(3 - number), peer(3 - number, underlay))]);
            ours
        })
    }

    /// Another implementation's device on a node, which knows the other node.
    pub fn other(&self, number: u8, kind: Kind, shared: Option<[u8; 32]>) -> Other {
        let (netns, link) = (self.node(number), format!("other{number}"));
        let socket = format!("/var/run/wireguard/{link}.sock");
        // One that an earlier process left would be taken for this one's.
        let _ = std::fs::remove_file(&socket);
        let agent = match kind {
            Kind::Go => {
                let builder = AgentBuilder::new("wireguard-go", "wireguard-go").args(["-f", &link]);
                Some(
                    builder
                        .env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
                        .netns(netns)
                        .start()
                        .unwrap(),
                )
            }
            Kind::Kernel => {
                netns.ip(&format!("link add {link} type wireguard")).unwrap();
                None
            }
        };
        until(|| kind == Kind::Kernel || std::path::Path::new(&socket).exists());
        let file = |name: &str, key: [u8; 32]| {
            let path = format!("/run/{link}.{name}");
            std::fs::write(&path, base64(&key)).unwrap();
            path
        };
        let (port, key) = (PORT.to_string(), file("key", private_key(number).0));
        netns.run("wg", &["set", &link, "listen-port", &port, "private-key", &key]).unwrap();
        let other = Other { netns: netns.clone(), link: link.clone(), _agent: agent };
        let peer = base64(&public_key(3 - number).0);
        let endpoint = SocketAddr::new(outside(3 - number, Family::V4), PORT).to_string();
        let allowed = format!("10.9.{0}.0/24,fd09::{0}/128", 3 - number);
        let mut args = vec!["set", &link, "peer", &peer, "endpoint", &endpoint, "allowed-ips", &allowed];
        let path = shared.map(|shared| file("psk", shared));
        if let Some(path) = &path {
            args.extend(["preshared-key", path]);
        }
        netns.run("wg", &args).unwrap();
        self.configure(number, &link);
        other
    }

    /// How many of five pings are answered, however long it takes.
    pub fn pings(&self, from: u8, to: IpAddr, payload_size: usize) -> u64 {
        let timeout = Duration::from_secs(20);
        let options = PingOptions { payload_size, timeout, dont_fragment: true, ..PingOptions::default() };
        ping(self.node(from), to, options).unwrap().received
    }

    /// Whether five pings are not answered soon.
    pub fn is_silent(&self, from: u8, to: IpAddr, payload_size: usize) -> bool {
        let options = PingOptions { payload_size, dont_fragment: true, ..PingOptions::default() };
        ping(self.node(from), to, options).unwrap().received == 0
    }

    /// Pings up to the full size, and TCP in both directions.
    pub fn works(&self, family: Family, bytes: usize) {
        let full = MTU as usize - if family == Family::V4 { 28 } else { 48 };
        assert_eq!(self.pings(1, inside(2, family), 56), 5);
        assert_eq!(self.pings(2, inside(1, family), full), 5, "the largest that fits");
        for (from, to) in [(1, 2), (2, 1)] {
            let (from, to, address) = (self.node(from), self.node(to), inside(to, family));
            transfer::tcp(from, to, address, bytes);
            assert_eq!(transfer::tcp_checksum_errors(to), 0);
        }
    }

    /// UDP of several sizes in both directions, whole and in order.
    pub fn carries_udp(&self, family: Family) {
        for (from, to) in [(1, 2), (2, 1)] {
            let (from, to, address) = (self.node(from), self.node(to), inside(to, family));
            // Some may find the receiver's buffer full, on a busy machine many.
            let received = transfer::udp(from, to, address, 1000, &[64, 64, 64, 1300, 9]);
            assert!(received > 300, "{received} of 1000 datagrams");
        }
    }
}

/// A device of ours, and what happened to it.
pub struct Ours {
    pub device: UserspaceDevice,
    pub events: Arc<Mutex<Vec<EngineEvent>>>,
}

impl Ours {
    pub fn apply(&self, changes: &[Change]) {
        block_on(self.device.apply(changes)).unwrap();
    }

    pub fn peers(&self) -> BTreeMap<PublicKey, PeerState> {
        block_on(self.device.state()).unwrap().peers
    }

    pub fn peer(&self, number: u8) -> PeerState {
        self.peers()[&public_key(number)].clone()
    }

    /// How many packets were dropped, but for the kernel's hellos on the link.
    pub fn dropped(&self) -> u64 {
        let drops = self.device.counters().drops;
        drops.iter().filter(|(reason, _)| *reason != DropReason::Group).map(|(_, count)| count).sum()
    }

    /// Holds that no packet was dropped but the kernel's hellos on the link.
    #[track_caller]
    pub fn lost_nothing(&self) {
        let mut drops = self.device.counters().drops;
        drops.retain(|(reason, _)| *reason != DropReason::Group);
        assert!(drops.is_empty(), "{drops:?}");
    }

    pub fn drops(&self, reason: DropReason) -> u64 {
        let drops = self.device.counters().drops;
        drops.iter().find(|(found, _)| *found == reason).map_or(0, |(_, count)| *count)
    }
}

/// Who else speaks WireGuard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Go,
    Kernel,
}

/// Another implementation's device.
pub struct Other {
    netns: Netns,
    pub link: String,
    _agent: Option<Agent>,
}

impl Other {
    /// Changes it by `wg set`.
    pub fn set(&self, what: &[&str]) {
        self.netns.run("wg", &[&["set", &self.link], what].concat()).unwrap();
    }

    /// What `wg show` says of a device's only peer.
    pub fn shows(&self, what: &str) -> String {
        let text = self.netns.run("wg", &["show", &self.link, what]).unwrap();
        text.trim().rsplit('\t').next().unwrap_or_default().to_owned()
    }
}

pub fn shared(key: [u8; 32]) -> PeerChange {
    PeerChange { preshared_key: Some(Some(PresharedKey(key))), ..PeerChange::default() }
}

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Waits until something is so.
#[track_caller]
pub fn until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not become so");
        std::thread::sleep(Duration::from_millis(5));
    }
}
