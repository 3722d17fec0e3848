//! Devices without TUN, sockets and threads, and any bytes as datagrams for them: for tests and fuzzing.

pub mod core;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use flannel_backend_udp::datapath::{DropReason, IpHeader, Opened, PeerIndex};

use super::control::answer;
use super::message::Message;
use super::noise::Identity;
use super::passage::data;
use super::peer::Post;
use super::setup::Setup;
use super::table::Table;
use crate::device::{Change, DeviceState, PeerChange};
use crate::key::{PrivateKey, PublicKey};

/// The MTU of these devices.
const MTU: usize = 1420;

/// A device that does what the real one does, at once and on the calling thread. What it would send is kept.
pub struct Node {
    setup: Setup,
    table: Table,
    address: SocketAddr,
    sent: Mutex<VecDeque<(Vec<u8>, SocketAddr)>>,
    armed: AtomicUsize,
}

impl Post for Node {
    fn post(&self, message: &[u8], to: SocketAddr) {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).push_back((message.to_vec(), to));
    }

    fn arm(&self) {
        self.armed.fetch_add(1, Ordering::Relaxed);
    }
}

impl Node {
    /// Node `number`, whose key is made of its number, at 192.0.2.`number`.
    pub fn new(number: u8) -> Self {
        let address = ([192, 0, 2, number], 51820).into();
        let (setup, table) = (Setup::default(), Table::default());
        let mut node = Self { setup, table, address, sent: Mutex::default(), armed: AtomicUsize::new(0) };
        node.apply(&Change::PrivateKey(private_key(number)));
        node
    }

    /// The same with node `other` as its peer, which has 10.0.`other`.0/24.
    pub fn knows(mut self, other: u8) -> Self {
        self.apply(&Change::Peer(public_key(other), peer_change(other)));
        self
    }

    /// Has it expect these nodes, which knew it before.
    pub fn expects(&mut self, others: &[u8]) {
        self.setup.expect(&others.iter().map(|other| public_key(*other)).collect::<Vec<_>>());
    }

    /// Makes a change.
    ///
    /// # Panics
    /// If the device refuses it.
    pub fn apply(&mut self, change: &Change) {
        self.setup.apply(change).expect("a valid change");
        self.table = self.setup.table();
    }

    /// What it contains.
    pub fn state(&self) -> DeviceState {
        self.setup.state(self.address.port())
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often its timers were armed.
    pub fn armed(&self) -> usize {
        self.armed.load(Ordering::Relaxed)
    }

    /// What it has sent since this was called last.
    pub fn sent(&self) -> Vec<(Vec<u8>, SocketAddr)> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    /// A packet from its TUN.
    pub fn send(&self, packet: &[u8], now: Instant) -> Result<(), DropReason> {
        let ip = IpHeader::parse(packet)?;
        let owner = self.table.allowed().owner(ip.destination).ok_or(DropReason::NoRoute)?;
        let peer = self.table.peer(PeerIndex(owner)).ok_or(DropReason::NoRoute)?;
        let mut padded = packet.to_vec();
        padded.resize(packet.len() + 16, 0xee);
        let mut out = vec![0; packet.len() + 148];
        if let Some(sealed) = peer.seal(now, &mut padded, (packet.len(), MTU), &mut out, self)? {
            self.post(&out[..sealed.len], sealed.to);
        }
        Ok(())
    }

    /// A datagram from the underlay; the packet, if it is one.
    pub fn receive(
        &self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        let receiver = match Message::parse(datagram)? {
            Message::Handshake => return answer(&self.table, from, datagram, now, self).map(|()| None),
            Message::Data { receiver } => receiver,
        };
        let mut out = vec![0; datagram.len()];
        match data(&self.table, now, from, receiver, datagram, &mut out, self)? {
            Opened::Message => Ok(None),
            Opened::Packet(peer, len) => {
                out.truncate(len);
                let ip = IpHeader::parse(&out)?;
                if !Table::may_send(&mut self.table.allowed().lookup(), peer, ip.source) {
                    return Err(DropReason::SourceIsAnothers);
                }
                Ok(Some(out))
            }
        }
    }

    /// Looks at the timers of all peers, and returns when they have to be looked at next.
    pub fn on_time(&self, now: Instant) -> Option<Instant> {
        self.table.peers().iter().filter_map(|peer| peer.on_time(now, self)).min()
    }

    /// Lets it begin a second without handshakes in which this many pass.
    #[cfg(test)]
    pub(crate) fn limit(&mut self, number: u8, handshakes: u64) {
        self.table.identity = Some(Identity::with_limit(&private_key(number), handshakes).into());
    }
}

/// Carries all that was sent between nodes, until nobody sends any more; returns the packets that arrived.
pub fn carry(nodes: &[&Node], now: Instant) -> Vec<Vec<u8>> {
    let mut arrived = Vec::new();
    loop {
        let sent: Vec<_> = nodes.iter().map(|node| (node.address(), node.sent())).collect();
        if sent.iter().all(|(_, messages)| messages.is_empty()) {
            return arrived;
        }
        for (from, messages) in sent {
            for (message, to) in messages {
                let receiver = nodes.iter().find(|node| node.address() == to);
                if let Some(Ok(Some(packet))) = receiver.map(|node| node.receive(from, &message, now)) {
                    arrived.push(packet);
                }
            }
        }
    }
}

/// The private key of node `number`.
pub fn private_key(number: u8) -> PrivateKey {
    let mut key = [number; 32];
    key[0] &= 0xf8;
    key[31] = (key[31] & 0x7f) | 0x40;
    PrivateKey(key)
}

/// The public key of node `number`.
pub fn public_key(number: u8) -> PublicKey {
    Identity::new(&private_key(number)).public()
}

/// Node `number` as a peer.
pub fn peer_change(number: u8) -> PeerChange {
    PeerChange {
        endpoint: Some(([192, 0, 2, number], 51820).into()),
        allowed_ips: format!("10.0.{number}.0/24").parse().ok().map(|net| [net].into()),
        ..PeerChange::default()
    }
}

/// An IPv4 packet without a transport header.
pub fn packet(from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 253, 0, 0];
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet.extend(from);
    packet.extend(to);
    packet.extend(payload);
    packet
}

/// Standard base64 of a key, as `wg` reads it.
pub fn base64(key: &[u8; 32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = key.chunks(3).flat_map(|chunk| {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        [bits >> 18, bits >> 12, bits >> 6, bits].map(|bits| char::from(DIGITS[bits as usize & 63]))
    });
    digits.take(43).chain(['=']).collect()
}

/// Two devices with a session, one of which is sent any bytes.
pub struct Target {
    peer: Node,
    node: Node,
}

impl Default for Target {
    fn default() -> Self {
        Self { peer: Node::new(1).knows(2), node: Node::new(2).knows(1) }
    }
}

impl Target {
    /// Sends bytes to the device, and checks what must hold whatever they are: nothing panics, only what is authentic is
    /// taken or moves the peer's endpoint, and the session carries packets as before.
    ///
    /// The first byte says what the rest is: a datagram from a stranger or from the peer's address; changes to a message
    /// of the peer, which are pairs of a place and a mask; or the packet in an authentic message.
    ///
    /// # Panics
    /// If one of these doesn't hold.
    pub fn receive(&self, bytes: &[u8]) {
        let Some((choice, rest)) = bytes.split_first() else { return };
        let now = Instant::now();
        self.works(now);
        let stranger: SocketAddr = ([203, 0, 113, 7], 9).into();
        match choice % 4 {
            0 => drop(self.node.receive(stranger, rest, now)),
            1 => drop(self.node.receive(self.peer.address(), rest, now)),
            2 => {
                let probe = packet([10, 0, 1, 1], [10, 0, 2, 1], &[choice >> 2; 40]);
                self.peer.send(&probe, now).expect("it has a session, or begins one");
                for (mut message, _) in self.peer.sent() {
                    let original = message.clone();
                    for pair in rest.as_chunks::<2>().0 {
                        let at = usize::from(pair[0]) % message.len();
                        message[at] ^= pair[1];
                    }
                    // The second MAC counts only under load.
                    let counts = if original[0] == 4 { message.len() } else { message.len() - 16 };
                    if message[..counts] != original[..counts] {
                        let taken = self.node.receive(stranger, &message, now);
                        assert!(taken.is_err(), "it was changed on the way: {taken:?}");
                    }
                }
            }
            _ => {
                let _ = self.peer.send(rest, now);
                if let [.., (message, _)] = &self.peer.sent()[..]
                    && let Ok(Some(packet)) = self.node.receive(self.peer.address(), message, now)
                {
                    assert_eq!(rest[..packet.len()], packet, "as it was sent");
                    let source = IpHeader::parse(&packet).expect("it was looked at").source;
                    let inside = matches!(source, IpAddr::V4(addr) if addr.octets()[..3] == [10, 0, 1]);
                    assert!(inside, "{source} is not the peer's");
                }
            }
        }
        self.works(now);
    }

    fn works(&self, now: Instant) {
        let nodes = [&self.peer, &self.node];
        for node in nodes {
            drop(node.sent());
        }
        let probe = packet([10, 0, 1, 1], [10, 0, 2, 1], b"still there");
        self.peer.send(&probe, now).expect("it has a session, or begins one");
        assert_eq!(carry(&nodes, now), [probe]);
        let state = self.node.state();
        let endpoint = state.peers[&public_key(1)].endpoint;
        assert_eq!(endpoint, Some(self.peer.address()));
    }
}
