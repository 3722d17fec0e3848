//! What a thread of the datapath does with packets: finds the peer whose allowed addresses contain the destination, and
//! seals; opens, and checks that the source is among the sender's allowed addresses ("cryptokey routing", paper
//! section 2).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use flannel_backend_udp::datapath::{
    Batch, Cipher, DropReason, Inbound, IpHeader, Opened, Outbound, OwnerLookup, Passage, PeerIndex, Sealed,
    Sender, TableReader,
};
use flannel_core::addr::Family;

use super::Shared;
use super::message::Message;
use super::noise::{DATA_OVERHEAD, Data, LONGEST_HANDSHAKE};
use super::peer::{Peer, Post};
use super::table::Table;

/// One thread's view of the device.
pub(crate) struct WireGuard {
    shared: Arc<Shared>,
    reader: TableReader<Table>,
}

impl WireGuard {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let reader = shared.cell.reader();
        Self { shared, reader }
    }
}

impl Passage for WireGuard {
    const SEALS: bool = true;

    type Batch<'b> = Sealing<'b>;

    fn begin(&mut self, now: Instant) -> Sealing<'_> {
        let table = self.reader.refresh();
        let mtu = self.shared.mtu.load(Ordering::Relaxed) as usize;
        Sealing { shared: &self.shared, table, allowed: table.allowed().lookup(), now, mtu }
    }
}

/// One batch.
pub(crate) struct Sealing<'b> {
    shared: &'b Shared,
    table: &'b Table,
    allowed: OwnerLookup<'b>,
    now: Instant,
    mtu: usize,
}

impl Batch for Sealing<'_> {
    const IS_HOP: bool = false;
    const SEALS: bool = true;

    type Cipher = Self;

    fn cipher(&mut self) -> Option<&mut Self> {
        Some(self)
    }

    fn outbound(&mut self, ip: &IpHeader, _: usize) -> Outbound {
        match self.allowed.owner(ip.destination) {
            Some(peer) => Outbound::Send(PeerIndex(peer)),
            // The kernel's hellos on the link, above all.
            None if ip.is_to_group() => Outbound::Drop(DropReason::Group, None),
            None => Outbound::Drop(DropReason::NoRoute, None),
        }
    }

    fn endpoint(&self, peer: PeerIndex) -> SocketAddr {
        let endpoint = self.table.peer(peer).and_then(Peer::endpoint);
        endpoint.unwrap_or_else(|| SocketAddr::new(Family::V4.unspecified(), 0))
    }

    fn sent(&mut self, _: PeerIndex, _: u64, _: u64) {}

    fn sender(&self, _: IpAddr) -> Sender {
        Sender::Stranger
    }

    fn inbound(&mut self, sender: Sender, _: IpAddr, ip: &IpHeader) -> Inbound {
        match sender {
            Sender::Peer(peer) if Table::may_send(&mut self.allowed, peer, ip.source) => {
                Inbound::Accept(Some(peer))
            }
            _ => Inbound::Drop(DropReason::SourceIsAnothers, None),
        }
    }

    fn received(&mut self, _: Sender, _: PeerIndex, _: u64, _: u64) {}

    fn error_source(&self, _: Family) -> Option<IpAddr> {
        None
    }
}

impl Cipher for Sealing<'_> {
    const OVERHEAD: usize = DATA_OVERHEAD + 16;
    const LONGEST: usize = LONGEST_HANDSHAKE;

    fn seal(
        &mut self,
        peer: PeerIndex,
        packet: &mut [u8],
        len: usize,
        out: &mut [u8],
    ) -> Result<Option<Sealed>, DropReason> {
        let peer = self.table.peer(peer).ok_or(DropReason::NoRoute)?;
        peer.seal(self.now, packet, (len, self.mtu), out, self.shared)
    }

    fn open(&mut self, source: SocketAddr, datagram: &[u8], out: &mut [u8]) -> Result<Opened, DropReason> {
        match Message::parse(datagram)? {
            Message::Handshake => self.shared.inbox.push(datagram, source).map(|()| Opened::Message),
            Message::Data { receiver } => {
                data(self.table, self.now, source, receiver, datagram, out, self.shared)
            }
        }
    }
}

/// Opens a data message of the session `receiver`.
pub(crate) fn data(
    table: &Table,
    now: Instant,
    source: SocketAddr,
    receiver: u32,
    datagram: &[u8],
    out: &mut [u8],
    post: &dyn Post,
) -> Result<Opened, DropReason> {
    let reason = match table.of_session(receiver) {
        Some((index, peer)) => match peer.open(now, source, receiver, datagram, out, post) {
            Ok(Data::Packet(len)) => return Ok(Opened::Packet(index, len)),
            Ok(Data::Keepalive) => return Ok(Opened::Message),
            Err(reason) => reason,
        },
        None => DropReason::UnknownSession,
    };
    if reason == DropReason::UnknownSession
        && let Some(peer) = table.of_endpoint(&source)
    {
        peer.knock(now, post);
    }
    Err(reason)
}
