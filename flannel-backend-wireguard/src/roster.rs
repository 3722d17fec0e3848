//! The peers that one device should have, and whose leases they are for. It is kept incrementally: what is the same as before
//! costs a comparison, and only what differs is looked at again. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use flannel_core::addr::{Family, LinkIndex};
use flannel_core::lease::LeaseKey;
use flannel_core::peers::{Claim, Peer};
use ipnetwork::IpNetwork;

use crate::key::PublicKey;
use crate::plan::DesiredPeer;

/// The desired peers of a device.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    peers: BTreeMap<PublicKey, DesiredPeer>,
    entries: BTreeMap<LeaseKey, Entry>,
    /// The leases of each key: two leases of one node share it.
    leases: BTreeMap<PublicKey, BTreeSet<LeaseKey>>,
    /// The keys whose peer differs from the one that was there when this was asked last.
    changed: BTreeSet<PublicKey>,
    /// The number of the present list.
    list: u64,
}

/// The device whose peers they are.
pub(crate) struct On<'a> {
    pub(crate) link: LinkIndex,
    /// The families of pods that it carries.
    pub(crate) families: &'a [Family],
    /// The keepalive interval of a key, if it is not that of the config.
    pub(crate) keepalive: &'a dyn Fn(PublicKey) -> Option<u16>,
}

/// What a lease needs of the device.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    key: PublicKey,
    published: SocketAddr,
    keepalive: Option<u16>,
    subnets: Vec<IpNetwork>,
    /// The last list that it was in.
    list: u64,
}

impl Roster {
    /// Takes over all peers with a key on this device.
    pub(crate) fn set<'a>(&mut self, on: &On<'_>, peers: impl Iterator<Item = (&'a LeaseKey, &'a Peer)>) {
        self.list += 1;
        let list = self.list;
        let mut differing = Vec::new();
        for (lease, peer) in peers {
            let Some((key, published)) = key_on(peer, on.link) else { continue };
            let keepalive = (on.keepalive)(key);
            let is_known = self.entries.get_mut(lease).is_some_and(|entry| {
                entry.list = list;
                (entry.key, entry.published, entry.keepalive) == (key, published, keepalive)
                    && entry.subnets.iter().copied().eq(subnets_of(peer, on.families))
            });
            if !is_known {
                let subnets = subnets_of(peer, on.families).collect();
                differing.push((*lease, Entry { key, published, keepalive, subnets, list }));
            }
        }
        let mut keys = BTreeSet::new();
        for (lease, entry) in self.entries.extract_if(.., |_, entry| entry.list != list) {
            keys.insert(entry.key);
            self.leases.entry(entry.key).or_default().remove(&lease);
        }
        for (lease, entry) in differing {
            let key = entry.key;
            if let Some(before) = self.entries.insert(lease, entry) {
                keys.insert(before.key);
                self.leases.entry(before.key).or_default().remove(&lease);
            }
            keys.insert(key);
            self.leases.entry(key).or_default().insert(lease);
        }
        for key in &keys {
            self.decide(*key);
        }
        self.changed.append(&mut keys);
    }

    /// Computes a peer from its leases.
    fn decide(&mut self, key: PublicKey) {
        let leases = self.leases.get(&key).into_iter().flatten();
        let mut entries = leases.filter_map(|lease| self.entries.get(lease));
        let Some(first) = entries.next() else {
            self.peers.remove(&key);
            self.leases.remove(&key);
            return;
        };
        let mut allowed_ips: BTreeSet<IpNetwork> = first.subnets.iter().copied().collect();
        allowed_ips.extend(entries.flat_map(|entry| entry.subnets.iter().copied()));
        let (published, keepalive) = (first.published, first.keepalive);
        self.peers.insert(key, DesiredPeer { published, allowed_ips, keepalive });
    }

    /// The desired peers.
    pub(crate) fn peers(&self) -> &BTreeMap<PublicKey, DesiredPeer> {
        &self.peers
    }

    /// Lends the desired peers, for as long as nobody else looks at the roster. They are given back by [`Self::put_back`].
    pub(crate) fn lend(&mut self) -> BTreeMap<PublicKey, DesiredPeer> {
        std::mem::take(&mut self.peers)
    }

    /// Takes back what [`Self::lend`] gave.
    pub(crate) fn put_back(&mut self, peers: BTreeMap<PublicKey, DesiredPeer>) {
        self.peers = peers;
    }

    /// The keys whose peer changed since this was asked last.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<PublicKey> {
        std::mem::take(&mut self.changed)
    }

    /// The leases of a key.
    pub(crate) fn leases_of(&self, key: &PublicKey) -> impl Iterator<Item = &LeaseKey> {
        self.leases.get(key).into_iter().flatten()
    }

    /// The key of a lease.
    pub(crate) fn key_of(&self, lease: &LeaseKey) -> Option<PublicKey> {
        self.entries.get(lease).map(|entry| entry.key)
    }
}

/// The key that a peer has on a link, and where it receives.
fn key_on(peer: &Peer, link: LinkIndex) -> Option<(PublicKey, SocketAddr)> {
    peer.claims.iter().find_map(|claim| match claim {
        Claim::Key(on, key, at, port) if *on == link => Some((PublicKey(*key), SocketAddr::new(*at, *port))),
        _ => None,
    })
}

/// The subnets of a peer in these families.
fn subnets_of<'a>(peer: &'a Peer, families: &'a [Family]) -> impl Iterator<Item = IpNetwork> + 'a {
    peer.claims.iter().filter_map(|claim| match claim {
        Claim::Subnet(subnet) if families.contains(&subnet.family()) => Some(IpNetwork::from(*subnet)),
        _ => None,
    })
}
