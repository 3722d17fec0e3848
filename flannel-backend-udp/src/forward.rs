//! Decides which peer gets a packet, and whose packets are accepted: an immutable table and pure functions.

mod cell;
mod owners;
mod ranges;
mod verdict;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use flannel_core::addr::{Family, Mtu, PerFamily, Subnet};

pub use self::cell::{TableCell, TableReader};
pub use self::owners::{OwnerLookup, Owners};
pub use self::verdict::{Inbound, Outbound, Sender};

use crate::counters::{PeerCounters, PeerSnapshot};

/// A node that packets are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Where its datagrams go.
    pub endpoint: SocketAddr,
    /// More underlay addresses that it sends from; the endpoint's is always one of them.
    pub other_sources: Vec<IpAddr>,
    /// Its subnets of the overlay.
    pub subnets: Vec<Subnet>,
}

impl Peer {
    /// A node with this part of the overlay that sends from its endpoint alone.
    pub fn new(endpoint: SocketAddr, subnets: Vec<Subnet>) -> Self {
        Self { endpoint, other_sources: Vec::new(), subnets }
    }

    /// The same, which sends from these addresses, too.
    #[must_use]
    pub fn other_sources(self, other_sources: Vec<IpAddr>) -> Self {
        Self { other_sources, ..self }
    }
}

/// The input of a table. The default is a table of nobody, which delivers nothing.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TableSpec {
    /// This node's subnets. Only packets for them are delivered. They contain this node's address in the overlay.
    pub own_subnets: Vec<Subnet>,
    /// This node's addresses in the overlay, from which errors are sent. A family without one is not forwarded.
    pub own_addresses: PerFamily<IpAddr>,
    /// The largest packet the tunnel carries; `None` for no limit of our own.
    pub overlay_mtu: Option<Mtu>,
    /// The peers. Of two with one subnet the first gets it.
    pub peers: Vec<Peer>,
    /// Further underlay addresses from which datagrams are accepted.
    pub allowed_sources: Vec<Subnet>,
}

impl TableSpec {
    /// A node with these subnets and addresses in the overlay, without peers and without a limit of its own for packets.
    pub fn new(own_subnets: Vec<Subnet>, own_addresses: PerFamily<IpAddr>) -> Self {
        Self { own_subnets, own_addresses, ..Self::default() }
    }

    /// The same with these peers. Of two with one subnet the first gets it.
    #[must_use]
    pub fn peers(self, peers: Vec<Peer>) -> Self {
        Self { peers, ..self }
    }

    /// The same with another limit in bytes for packets.
    #[must_use]
    pub fn overlay_mtu(self, overlay_mtu: Option<Mtu>) -> Self {
        Self { overlay_mtu, ..self }
    }

    /// The same, which accepts datagrams from these underlay addresses, too.
    #[must_use]
    pub fn allowed_sources(self, allowed_sources: Vec<Subnet>) -> Self {
        Self { allowed_sources, ..self }
    }
}

/// A peer's index in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIndex(pub u32);

/// Stands for ourselves where a peer's index could be.
const OWN: u32 = u32::MAX;

/// An immutable table of all peers. Lease changes make a new one.
#[derive(Debug)]
pub struct ForwardingTable {
    peers: Vec<TablePeer>,
    by_source: HashMap<IpAddr, u32>,
    owners: Owners,
    allowed: Owners,
    own: Owners,
    own_addresses: PerFamily<IpAddr>,
    overlay_mtu: Option<Mtu>,
    refused: Vec<(Subnet, SocketAddr)>,
}

#[derive(Debug)]
struct TablePeer {
    endpoint: SocketAddr,
    other_sources: Vec<IpAddr>,
    counters: Arc<PeerCounters>,
}

impl ForwardingTable {
    /// Builds a table. Peers that `previous` had at the same endpoint keep their counters.
    pub fn new(spec: TableSpec, previous: Option<&Self>) -> Self {
        let kept: HashMap<_, _> = previous
            .into_iter()
            .flat_map(|table| &table.peers)
            .map(|peer| (peer.endpoint, Arc::clone(&peer.counters)))
            .collect();
        let mut prefixes = Owners::builder();
        for subnet in &spec.own_subnets {
            prefixes.claim(*subnet, OWN);
        }
        let mut table = Self {
            peers: Vec::with_capacity(spec.peers.len()),
            by_source: HashMap::with_capacity(spec.peers.len()),
            owners: Owners::default(),
            allowed: Owners::one(&spec.allowed_sources),
            own: Owners::one(&spec.own_subnets),
            own_addresses: spec.own_addresses,
            overlay_mtu: spec.overlay_mtu,
            refused: Vec::new(),
        };
        for peer in spec.peers {
            let index = table.peers.len() as u32;
            for subnet in peer.subnets {
                if !prefixes.claim(subnet, index) {
                    table.refused.push((subnet, peer.endpoint));
                }
            }
            for source in peer.other_sources.iter().copied().chain([peer.endpoint.ip()]) {
                table.by_source.entry(source).or_insert(index);
            }
            let counters = kept.get(&peer.endpoint).cloned().unwrap_or_default();
            table.peers.push(TablePeer {
                endpoint: peer.endpoint,
                other_sources: peer.other_sources,
                counters,
            });
        }
        table.owners = prefixes.flatten();
        table
    }

    /// Subnets that another peer had already, with the endpoint of the peer that was refused.
    pub fn refused(&self) -> &[(Subnet, SocketAddr)] {
        &self.refused
    }

    /// How many peers there are.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether there is no peer.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Where datagrams for a peer go.
    pub fn endpoint(&self, peer: PeerIndex) -> SocketAddr {
        self.peers[peer.0 as usize].endpoint
    }

    /// A peer's counters.
    pub fn counters(&self, peer: PeerIndex) -> &PeerCounters {
        &self.peers[peer.0 as usize].counters
    }

    /// This node's overlay address in a family.
    pub fn own_address(&self, family: Family) -> Option<IpAddr> {
        self.own_addresses.get(family).copied()
    }

    /// The counters of all peers, in the order they were given.
    pub fn snapshots(&self) -> Vec<PeerSnapshot> {
        self.peers.iter().map(|peer| peer.counters.snapshot(peer.endpoint)).collect()
    }

    /// Whether a packet for this address may be delivered: to a pod of this node, its bridge, or its own address in the
    /// overlay. It compares with one range for each family, and so leaves the cached answers to look-ups of sources.
    pub(crate) fn is_ours(&self, destination: IpAddr) -> bool {
        self.own.owner(destination).is_some()
    }

    /// Whether a peer sends from an underlay address.
    fn sends_from(&self, peer: u32, source: IpAddr) -> bool {
        let peer = &self.peers[peer as usize];
        peer.endpoint.ip() == source || peer.other_sources.contains(&source)
    }

    fn is_allowed(&self, source: IpAddr) -> bool {
        self.allowed.owner(source).is_some()
    }
}

/// Looks up owners in a table, and remembers the last answer for each family. It is for one table.
#[derive(Debug)]
pub struct Lookup<'t> {
    table: &'t ForwardingTable,
    owners: OwnerLookup<'t>,
}

impl<'t> Lookup<'t> {
    /// A look-up that remembers nothing yet.
    pub(crate) fn new(table: &'t ForwardingTable) -> Self {
        Self { table, owners: table.owners.lookup() }
    }

    /// The table.
    pub(crate) fn table(&self) -> &'t ForwardingTable {
        self.table
    }

    /// The owner of an overlay address: a peer's number or [`OWN`].
    fn owner(&mut self, addr: IpAddr) -> Option<u32> {
        self.owners.owner(addr)
    }
}

#[cfg(test)]
mod tests;
