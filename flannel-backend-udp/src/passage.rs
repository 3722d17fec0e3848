//! What a datapath does with packets between the TUN and the sockets: the part of the loop that differs between tunnels.
//!
//! The udp backend forwards packets as they are; a tunnel that encrypts has a [`Cipher`] besides. All else is the same for
//! both: offloads, batches, trains, merging, threads. The loop is compiled for each passage of its own, so one without a
//! cipher pays nothing for those that have one.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use flannel_core::addr::Family;

use crate::counters::DropReason;
use crate::forward::{ForwardingTable, Inbound, Lookup, Outbound, PeerIndex, Sender, TableReader};
use crate::packet::IpHeader;

/// One thread's view of where packets go and whose are accepted.
pub trait Passage: Send {
    /// Whether batches have a cipher. Buffers for sealed and opened packets are made only then.
    const SEALS: bool;

    /// What one batch of packets is decided by.
    type Batch<'b>: Batch
    where
        Self: 'b;

    /// Begins a batch with whatever is newest, without waiting.
    fn begin(&mut self, now: Instant) -> Self::Batch<'_>;
}

/// The decisions about one batch of packets. None of them waits or allocates.
pub trait Batch {
    /// Whether the tunnel is a hop of its own, so that it lowers the hop limit of a packet at each end.
    const IS_HOP: bool;

    /// Whether there is a cipher.
    const SEALS: bool;

    /// What seals and opens packets; [`Plain`] where nothing does.
    type Cipher: Cipher;

    /// The cipher, if datagrams are not the packets themselves.
    fn cipher(&mut self) -> Option<&mut Self::Cipher>;

    /// Decides about a packet from the TUN. `largest` is the length in bytes of its largest part on the wire.
    fn outbound(&mut self, ip: &IpHeader, largest: usize) -> Outbound;

    /// Where datagrams for a peer go. A cipher says that itself.
    fn endpoint(&self, peer: PeerIndex) -> SocketAddr;

    /// Counts what was sent to a peer.
    fn sent(&mut self, peer: PeerIndex, datagrams: u64, bytes: u64);

    /// Who sent a datagram, by its underlay address. Not asked where there is a cipher, which knows better.
    fn sender(&self, source: IpAddr) -> Sender;

    /// Decides about a packet of `sender`, from the underlay address `source`.
    fn inbound(&mut self, sender: Sender, source: IpAddr, ip: &IpHeader) -> Inbound;

    /// Counts what was accepted from a peer.
    fn received(&mut self, sender: Sender, peer: PeerIndex, packets: u64, bytes: u64);

    /// The address from which ICMP errors about packets of a family are sent; without one, none are.
    fn error_source(&self, family: Family) -> Option<IpAddr>;
}

/// Seals packets into datagrams and opens datagrams.
pub trait Cipher {
    /// Bytes that sealing adds to a packet at most, padding included.
    const OVERHEAD: usize;
    /// Bytes of the longest message of its own that may be written instead of a packet.
    const LONGEST: usize;

    /// Seals the packet that is the first `len` bytes of `packet`, and writes the datagram to `out`, which has `OVERHEAD`
    /// bytes more, and `LONGEST` at least. At least 16 bytes follow the packet, and may be overwritten with padding.
    ///
    /// `Ok(None)` if there is nothing to send now. What is written may be another message than the packet, such as the
    /// beginning of a handshake.
    fn seal(
        &mut self,
        peer: PeerIndex,
        packet: &mut [u8],
        len: usize,
        out: &mut [u8],
    ) -> Result<Option<Sealed>, DropReason>;

    /// Opens a datagram into `out`, which is as long.
    fn open(&mut self, source: SocketAddr, datagram: &[u8], out: &mut [u8]) -> Result<Opened, DropReason>;
}

/// A datagram to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Its bytes.
    pub len: usize,
    /// Where it goes.
    pub to: SocketAddr,
}

/// What a datagram contained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// A packet of this many bytes from this peer.
    Packet(PeerIndex, usize),
    /// A message of the tunnel itself, which has been dealt with.
    Message,
}

/// The cipher of tunnels without one. There is no value of it.
#[derive(Debug, Clone, Copy)]
pub enum Plain {}

impl Cipher for Plain {
    const OVERHEAD: usize = 0;
    const LONGEST: usize = 0;

    fn seal(
        &mut self,
        _: PeerIndex,
        _: &mut [u8],
        _: usize,
        _: &mut [u8],
    ) -> Result<Option<Sealed>, DropReason> {
        match *self {}
    }

    fn open(&mut self, _: SocketAddr, _: &[u8], _: &mut [u8]) -> Result<Opened, DropReason> {
        match *self {}
    }
}

impl Passage for TableReader<ForwardingTable> {
    const SEALS: bool = false;

    type Batch<'b> = Lookup<'b>;

    fn begin(&mut self, _: Instant) -> Lookup<'_> {
        Lookup::new(self.refresh())
    }
}

impl Batch for Lookup<'_> {
    const IS_HOP: bool = true;
    const SEALS: bool = false;

    type Cipher = Plain;

    fn cipher(&mut self) -> Option<&mut Plain> {
        None
    }

    fn outbound(&mut self, ip: &IpHeader, largest: usize) -> Outbound {
        self.outbound(ip, largest)
    }

    fn endpoint(&self, peer: PeerIndex) -> SocketAddr {
        self.table().endpoint(peer)
    }

    fn sent(&mut self, peer: PeerIndex, datagrams: u64, bytes: u64) {
        self.table().counters(peer).sent(datagrams, bytes);
    }

    fn sender(&self, source: IpAddr) -> Sender {
        self.sender(source)
    }

    fn inbound(&mut self, sender: Sender, source: IpAddr, ip: &IpHeader) -> Inbound {
        self.inbound(sender, source, ip)
    }

    fn received(&mut self, sender: Sender, peer: PeerIndex, packets: u64, bytes: u64) {
        let counters = self.table().counters(peer);
        counters.received(packets, bytes);
        if sender == Sender::Allowed {
            counters.admitted(packets);
        }
    }

    fn error_source(&self, family: Family) -> Option<IpAddr> {
        self.error_source(family)
    }
}
