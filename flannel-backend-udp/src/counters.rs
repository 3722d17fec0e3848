//! The datapath's counters: packets, bytes, batches, and every drop with its reason.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use flannel_core::status::{Traffic, TrafficCounters};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The reason's name in metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// Fewer bytes than the headers say.
    Truncated = "truncated",
    /// More bytes than the receive slot has.
    Oversized = "oversized",
    /// Neither IPv4 nor IPv6.
    NotIp = "not_ip",
    /// An impossible header length.
    BadHeader = "bad_header",
    /// The IPv4 header's checksum is wrong.
    BadChecksum = "bad_checksum",
    /// A family that this network doesn't have.
    FamilyDisabled = "family_disabled",
    /// TTL or hop limit ran out.
    Expired = "expired",
    /// No peer has the destination.
    NoRoute = "no_route",
    /// A packet from the TUN whose destination is in our own subnet, so it should not have been routed here.
    OwnSubnet = "own_subnet",
    /// The destination is multicast or broadcast.
    Group = "group",
    /// Larger than the tunnel carries, and may not be fragmented.
    TooBig = "too_big",
    /// The TUN's offload header is invalid.
    BadOffload = "bad_offload",
    /// There is no socket of the family of the peer's endpoint.
    NoSocket = "no_socket",
    /// The socket's buffer stayed full.
    SocketFull = "socket_full",
    /// The underlay has no route to the peer.
    Unreachable = "unreachable",
    /// The kernel refused to send.
    SendFailed = "send_failed",
    /// The datagram came from an unknown underlay address.
    UnknownSender = "unknown_sender",
    /// The source is in our own subnet.
    SourceIsOurs = "source_is_ours",
    /// The source is in the subnet of a peer that isn't the sender.
    SourceIsAnothers = "source_is_anothers",
    /// The source can't be a host's address.
    BadSource = "bad_source",
    /// The destination is outside of our own subnet, and this node does not forward for others.
    NotForUs = "not_for_us",
    /// The segments are too small or too many to be cut.
    TinySegments = "tiny_segments",
    /// The kernel refused the packet on the TUN.
    TunRefused = "tun_refused",
    /// Of an encrypting tunnel: neither a message of its protocol, nor of the length that one has.
    BadMessage = "bad_message",
    /// Of an encrypting tunnel: a message of a session that there is not, or no longer.
    UnknownSession = "unknown_session",
    /// Of an encrypting tunnel: a message that its session's peer has not sent, or that was changed on the way.
    NotAuthentic = "not_authentic",
    /// Of an encrypting tunnel: a message that was received before, or that is too late to know.
    Replayed = "replayed",
    /// Of an encrypting tunnel: a packet without a session, and too many wait for one already; or there is no key.
    NoSession = "no_session",
    /// Of an encrypting tunnel: a peer of which no underlay address is known.
    NoEndpoint = "no_endpoint",
    /// Of an encrypting tunnel: a handshake that is invalid, repeated, or of an unknown peer.
    BadHandshake = "bad_handshake",
    /// Of an encrypting tunnel: more handshakes than it deals with. Those who sent them were asked to prove their address.
    HandshakeLimit = "handshake_limit",
}

/// One direction's numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Flow {
    /// Packets as they are on the wire.
    pub packets: u64,
    /// Their bytes, without the outer headers.
    pub bytes: u64,
    /// Reads or writes on the TUN: a super-packet counts once.
    pub tun_packets: u64,
    /// Datagrams or trains that were sent to or received from the socket.
    pub trains: u64,
    /// System calls on the socket that moved something.
    pub batches: u64,
}

/// What one thread has counted since it last published.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    pub(crate) sent: Flow,
    pub(crate) received: Flow,
    pub(crate) errors_sent: u64,
    pub(crate) errors_withheld: u64,
    pub(crate) gso_fallbacks: u64,
    drops: [u64; DropReason::ALL.len()],
    any_drops: bool,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            sent: Flow::default(),
            received: Flow::default(),
            errors_sent: 0,
            errors_withheld: 0,
            gso_fallbacks: 0,
            drops: [0; DropReason::ALL.len()],
            any_drops: false,
        }
    }
}

impl Tally {
    pub(crate) fn dropped(&mut self, reason: DropReason, packets: usize) {
        self.drops[reason as usize] += packets as u64;
        self.any_drops = true;
    }

    /// Adds everything to the shared counters and resets this tally.
    pub(crate) fn publish(&mut self, counters: &Counters) {
        counters.sent.add(&mut self.sent);
        counters.received.add(&mut self.received);
        for (shared, own) in [
            (&counters.errors_sent, &mut self.errors_sent),
            (&counters.errors_withheld, &mut self.errors_withheld),
            (&counters.gso_fallbacks, &mut self.gso_fallbacks),
        ] {
            add(shared, own);
        }
        if std::mem::take(&mut self.any_drops) {
            for (shared, own) in counters.drops.iter().zip(&mut self.drops) {
                add(shared, own);
            }
        }
    }
}

fn add(shared: &AtomicU64, own: &mut u64) {
    if *own != 0 {
        shared.fetch_add(std::mem::take(own), Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct FlowCounters {
    packets: AtomicU64,
    bytes: AtomicU64,
    tun_packets: AtomicU64,
    trains: AtomicU64,
    batches: AtomicU64,
}

impl FlowCounters {
    fn add(&self, own: &mut Flow) {
        add(&self.packets, &mut own.packets);
        add(&self.bytes, &mut own.bytes);
        add(&self.tun_packets, &mut own.tun_packets);
        add(&self.trains, &mut own.trains);
        add(&self.batches, &mut own.batches);
    }

    fn get(&self) -> Flow {
        Flow {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            tun_packets: self.tun_packets.load(Ordering::Relaxed),
            trains: self.trains.load(Ordering::Relaxed),
            batches: self.batches.load(Ordering::Relaxed),
        }
    }
}

/// A datapath's counters, which its threads add to after each batch. They outlive the threads.
#[derive(Debug)]
pub struct Counters {
    sent: FlowCounters,
    received: FlowCounters,
    errors_sent: AtomicU64,
    errors_withheld: AtomicU64,
    gso_fallbacks: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            sent: FlowCounters::default(),
            received: FlowCounters::default(),
            errors_sent: AtomicU64::new(0),
            errors_withheld: AtomicU64::new(0),
            gso_fallbacks: AtomicU64::new(0),
            drops: [const { AtomicU64::new(0) }; DropReason::ALL.len()],
        }
    }
}

impl Counters {
    /// Counts packets that were dropped outside of the datapath's threads.
    pub fn dropped(&self, reason: DropReason, packets: u64) {
        self.drops[reason as usize].fetch_add(packets, Ordering::Relaxed);
    }

    /// The present values. They are not from one instant, since threads count on.
    pub fn snapshot(&self) -> Snapshot {
        let drops = DropReason::ALL.iter().map(|reason| (*reason, self.drops(*reason)));
        Snapshot {
            sent: self.sent.get(),
            received: self.received.get(),
            errors_sent: self.errors_sent.load(Ordering::Relaxed),
            errors_withheld: self.errors_withheld.load(Ordering::Relaxed),
            gso_fallbacks: self.gso_fallbacks.load(Ordering::Relaxed),
            drops: drops.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// How many packets were dropped for a reason.
    pub(crate) fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].load(Ordering::Relaxed)
    }
}

/// The counters at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// From the TUN to peers.
    pub sent: Flow,
    /// From peers to the TUN.
    pub received: Flow,
    /// ICMP errors sent.
    pub errors_sent: u64,
    /// ICMP errors that the rate limit withheld.
    pub errors_withheld: u64,
    /// Trains that had to be sent datagram by datagram after the kernel refused them.
    pub gso_fallbacks: u64,
    /// Drops by reason, without reasons that never occurred.
    pub drops: Vec<(DropReason, u64)>,
}

impl Snapshot {
    /// The same as the status of an agent has it, under this name.
    pub fn traffic(&self, of: &str) -> TrafficCounters {
        let traffic = |flow: Flow| Traffic::new(flow.packets, flow.bytes);
        let carried = TrafficCounters::new(of, traffic(self.sent), traffic(self.received));
        self.drops.iter().fold(carried, |all, (reason, packets)| all.dropped(reason.name(), *packets))
    }
}

/// One peer's counters. The next table keeps them for the same endpoint.
#[derive(Debug, Default)]
pub struct PeerCounters {
    sent_packets: AtomicU64,
    sent_bytes: AtomicU64,
    received_packets: AtomicU64,
    received_bytes: AtomicU64,
    admitted_packets: AtomicU64,
}

impl PeerCounters {
    pub(crate) fn sent(&self, packets: u64, bytes: u64) {
        self.sent_packets.fetch_add(packets, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, packets: u64, bytes: u64) {
        self.received_packets.fetch_add(packets, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn admitted(&self, packets: u64) {
        self.admitted_packets.fetch_add(packets, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self, endpoint: SocketAddr) -> PeerSnapshot {
        PeerSnapshot {
            endpoint,
            sent_packets: self.sent_packets.load(Ordering::Relaxed),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            received_packets: self.received_packets.load(Ordering::Relaxed),
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
            admitted_packets: self.admitted_packets.load(Ordering::Relaxed),
        }
    }
}

/// One peer's counters at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerSnapshot {
    /// Which peer.
    pub endpoint: SocketAddr,
    /// Packets sent to it.
    pub sent_packets: u64,
    /// Bytes sent to it.
    pub sent_bytes: u64,
    /// Packets accepted from it, by its underlay address or by the allow list.
    pub received_packets: u64,
    /// Bytes accepted from it.
    pub received_bytes: u64,
    /// Packets from its subnet that only the allow list admitted: the peer sends from an address that it does not
    /// publish.
    pub admitted_packets: u64,
}
