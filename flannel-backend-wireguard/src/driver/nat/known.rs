//! What a device knows of NATs: its programmed peers, and what they say of themselves and of others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use flannel_core::lease::LeaseKey;
use flannel_core::peers::{Claim, Peer};
use tokio::time::Instant;

use crate::key::PublicKey;
use crate::nat::{NatData, Observer, Pair, Table};
use crate::peer;
use crate::plan::Wish;
use crate::roster::key_on;
use crate::tunnel::Tunnel;

/// What there is of NATs on one device.
#[derive(Default)]
pub(super) struct OnDevice {
    /// When this node was last seen behind a NAT, and where; of an earlier run that is not known.
    pub(super) behind: Option<(Instant, Option<SocketAddr>)>,
    pub(super) peers: BTreeMap<PublicKey, Known>,
    pub(super) pairs: BTreeMap<PublicKey, Pair>,
    pub(super) wishes: BTreeMap<PublicKey, Wish>,
    pub(super) observer: Observer,
    pub(super) table: Table,
}

/// A programmed peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) lease: LeaseKey,
    pub(super) published: SocketAddr,
    /// The address of its device.
    pub(super) base: IpAddr,
    /// What it publishes; most publish nothing.
    pub(super) says: Option<NatData>,
}

impl OnDevice {
    /// Takes over the programmed peers. Returns whether some are new, and whether some say something else.
    pub(super) fn set_peers(&mut self, tunnel: &Tunnel, peers: &[(&LeaseKey, &Peer)]) -> (bool, bool) {
        let Some(link) = tunnel.link.as_ref().map(|link| link.index) else { return (false, false) };
        let family = tunnel.families[0];
        let mut next = BTreeMap::new();
        for (lease, peer) in peers {
            let Some((key, published)) = key_on(peer, link) else { continue };
            let says =
                peer.data.as_ref().and_then(|_| peer::more_of(peer).get(family).map(|data| data.nat.clone()));
            let subnets = peer.claims.iter().filter_map(|claim| match claim {
                Claim::Subnet(subnet) if tunnel.families.contains(&subnet.family()) => Some(subnet.base()),
                _ => None,
            });
            let Some(base) = subnets.min() else { continue };
            next.entry(key).or_insert(Known { lease: **lease, published, base, says });
        }
        let are_new = next.keys().any(|key| !self.peers.contains_key(key));
        let is_news = next != self.peers;
        self.peers = next;
        (are_new, is_news)
    }

    /// Where the nodes say that they see others: each place with the number of those who do, who are named by keys.
    pub(super) fn sightings(&self) -> BTreeMap<PublicKey, BTreeMap<SocketAddr, Vec<PublicKey>>> {
        let mut found: BTreeMap<PublicKey, BTreeMap<SocketAddr, Vec<PublicKey>>> = BTreeMap::new();
        for (by, known) in &self.peers {
            for (key, at) in known.says.iter().flat_map(|says| &says.seen) {
                found.entry(*key).or_default().entry(*at).or_default().push(*by);
            }
        }
        found
    }

    /// The keys of relays on offer.
    pub(super) fn offers(&self) -> BTreeSet<PublicKey> {
        let is_offer =
            |known: &Known| known.says.as_ref().is_some_and(|says| says.is_relay && !says.is_behind);
        self.peers.iter().filter(|(_, known)| is_offer(known)).map(|(key, _)| *key).collect()
    }
}
