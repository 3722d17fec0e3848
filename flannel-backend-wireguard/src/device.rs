//! The content of a WireGuard device as a value, and the changes that lead from one to another. The kernel's devices and
//! those in user space are changed and read alike (uapi `linux/wireguard.h`).
//!
//! The backend sets key and port of a new device before it sets its link up. What the kernel's devices do by themselves has
//! a default in [`Device`]: only devices with a datapath of their own implement it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use flannel_backend_udp::datapath::Path;
use flannel_core::addr::Mtu;
use flannel_core::status::Counters;
use ipnetwork::IpNetwork;

use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// What a device contains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// The device's key; `None` before the first was set.
    pub private_key: Option<PrivateKey>,
    /// The UDP port that it receives on.
    pub listen_port: u16,
    /// The mark of its own packets (`WGDEVICE_A_FWMARK`), 0 for none.
    pub fwmark: u32,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, PeerState>,
}

/// What a device knows of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerState {
    /// The key shared with it, besides the keys of both.
    pub preshared_key: Option<PresharedKey>,
    /// Where packets for it are sent: where it was last heard from, else what was set.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between packets that keep mappings of NATs open, 0 for none.
    pub keepalive: u16,
    /// The inner addresses that it may send from, and that packets for it are sent to.
    pub allowed_ips: BTreeSet<IpNetwork>,
    /// When the last handshake was completed.
    pub last_handshake: Option<SystemTime>,
    /// Bytes that were received from it, with those of handshakes.
    pub rx_bytes: u64,
    /// Bytes that were sent to it, likewise.
    pub tx_bytes: u64,
}

/// A change of a device. Each leaves all that it does not name as it is, sessions above all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets the key of the device. Sessions of the former key end.
    PrivateKey(PrivateKey),
    /// Sets the port that it receives on.
    ListenPort(u16),
    /// Adds a peer, or changes a known one.
    Peer(PublicKey, PeerChange),
    /// Removes a peer; without effect if there is none.
    RemovePeer(PublicKey),
}

/// What is set of a peer; `None` leaves it as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerChange {
    /// The shared key, or none (`Some(None)`).
    pub preshared_key: Option<Option<PresharedKey>>,
    /// Where packets are sent until the peer is heard from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalive packets, 0 for none.
    pub keepalive: Option<u16>,
    /// All its allowed addresses. One that another peer has is taken from that peer, so the caller removes it there first,
    /// knowingly.
    pub allowed_ips: Option<BTreeSet<IpNetwork>>,
}

/// Reads the content of a device.
pub type ReadState = dyn Fn() -> io::Result<DeviceState> + Send + Sync;

/// A device that exists, in the kernel or in this process.
#[async_trait]
pub trait Device: Send + Sync {
    /// Reads all of its content.
    async fn state(&self) -> io::Result<DeviceState>;

    /// Makes changes, in order. When one fails, those before it are in force.
    async fn apply(&self, changes: &[Change]) -> io::Result<()>;

    /// A function that reads the content on the calling thread, without waiting, for the status; `None` if there is no such
    /// way, and then the status has what was read last.
    fn reader(self: Arc<Self>) -> Option<Arc<ReadState>> {
        None
    }

    /// Tells the device the MTU of its link, up to which it pads packets.
    fn set_mtu(&self, mtu: Mtu) {
        let _ = mtu;
    }

    /// Names the peers that had sessions with an earlier device of this node. A device that lost those begins a handshake
    /// with each of them as soon as it is added, once and before packets ask for one.
    fn expect(&self, peers: &[PublicKey]) {
        let _ = peers;
    }

    /// Whether the device has stopped and moves no packets any more. Its link may still be there.
    fn has_ended(&self) -> bool {
        false
    }

    /// The way of packets through a datapath that is not the kernel's.
    fn path(&self) -> Option<Path> {
        None
    }

    /// Reads what such a datapath has counted, also after the device has ended.
    fn counters(&self) -> Option<Counters> {
        None
    }
}
