//! An immutable table of a device's peers. Changes make a new one, which shares the peers, and with them their sessions.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use flannel_backend_udp::datapath::{OwnerLookup, Owners, PeerIndex};
use flannel_core::addr::Subnet;

use super::noise::Identity;
use super::peer::Peer;
use crate::key::PublicKey;

/// The peers, and how each is found.
#[derive(Default)]
pub(crate) struct Table {
    pub(crate) identity: Option<Arc<Identity>>,
    peers: Vec<Arc<Peer>>,
    by_key: HashMap<PublicKey, u32>,
    by_index: HashMap<u32, u32>,
    /// Where peers were when the table was made. Only a hint.
    by_endpoint: HashMap<SocketAddr, u32>,
    allowed: Owners,
}

impl Table {
    /// A table of these peers, each with the addresses that it may send from.
    pub(crate) fn new(
        identity: Option<Arc<Identity>>,
        peers: impl IntoIterator<Item = (Arc<Peer>, Vec<Subnet>)>,
    ) -> Self {
        let mut table = Self { identity, ..Self::default() };
        let mut allowed = Vec::new();
        for (number, (peer, subnets)) in (0..).zip(peers) {
            allowed.extend(subnets.into_iter().map(|subnet| (subnet, number)));
            table.by_key.insert(peer.key, number);
            table.by_index.insert(peer.index, number);
            if let Some(endpoint) = peer.endpoint() {
                table.by_endpoint.insert(endpoint, number);
            }
            table.peers.push(peer);
        }
        table.allowed = Owners::new(allowed);
        table
    }

    pub(crate) fn peers(&self) -> &[Arc<Peer>] {
        &self.peers
    }

    /// Whose addresses are whose.
    pub(crate) fn allowed(&self) -> &Owners {
        &self.allowed
    }

    /// Whether a peer may send packets with this source.
    pub(crate) fn may_send(allowed: &mut OwnerLookup<'_>, peer: PeerIndex, source: IpAddr) -> bool {
        allowed.owner(source) == Some(peer.0)
    }

    pub(crate) fn peer(&self, index: PeerIndex) -> Option<&Peer> {
        self.peers.get(index.0 as usize).map(|peer| &**peer)
    }

    /// The peer of the session with this index.
    pub(crate) fn of_session(&self, receiver: u32) -> Option<(PeerIndex, &Peer)> {
        self.at(self.by_index.get(&(receiver >> 8)))
    }

    pub(crate) fn of_key(&self, key: &PublicKey) -> Option<&Peer> {
        self.at(self.by_key.get(key)).map(|(_, peer)| peer)
    }

    /// The peer that was at this address last.
    pub(crate) fn of_endpoint(&self, endpoint: &SocketAddr) -> Option<&Peer> {
        self.at(self.by_endpoint.get(endpoint)).map(|(_, peer)| peer)
    }

    fn at(&self, number: Option<&u32>) -> Option<(PeerIndex, &Peer)> {
        let number = *number?;
        self.peers.get(number as usize).map(|peer| (PeerIndex(number), &**peer))
    }
}
