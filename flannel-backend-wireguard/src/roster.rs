//! The peers that one device should have, and whose leases they are for. It is kept incrementally: what is the same as before
//! costs a comparison, and only what differs is looked at again. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use flannel_core::addr::{Family, LinkIndex};
use flannel_core::lease::LeaseKey;
use flannel_core::peers::{Claim, Peer};
use ipnetwork::IpNetwork;

use crate::key::PublicKey;
use crate::plan::{DesiredPeer, Wish};

/// The desired peers of a device.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    peers: BTreeMap<PublicKey, DesiredPeer>,
    entries: BTreeMap<LeaseKey, Entry>,
    /// The leases of each key: two leases of one node share it.
    leases: BTreeMap<PublicKey, BTreeSet<LeaseKey>>,
    /// The leases whose packets each relay carries.
    relayed: BTreeMap<PublicKey, BTreeSet<LeaseKey>>,
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
    /// How the case of a key differs from that of others.
    pub(crate) wish: &'a dyn Fn(PublicKey) -> Wish,
}

/// What a lease needs of the device.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    key: PublicKey,
    published: SocketAddr,
    wish: Wish,
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
            let wish = (on.wish)(key);
            let is_known = self.entries.get_mut(lease).is_some_and(|entry| {
                entry.list = list;
                (entry.key, entry.published, entry.wish) == (key, published, wish)
                    && entry.subnets.iter().copied().eq(subnets_of(peer, on.families))
            });
            if !is_known {
                let subnets = subnets_of(peer, on.families).collect();
                differing.push((*lease, Entry { key, published, wish, subnets, list }));
            }
        }
        let mut keys = BTreeSet::new();
        let gone: Vec<_> = self.entries.extract_if(.., |_, entry| entry.list != list).collect();
        for (lease, entry) in gone {
            self.unlink(lease, &entry, &mut keys);
        }
        for (lease, entry) in differing {
            if let Some(before) = self.entries.remove(&lease) {
                self.unlink(lease, &before, &mut keys);
            }
            keys.extend([entry.key].into_iter().chain(entry.wish.relay));
            self.leases.entry(entry.key).or_default().insert(lease);
            if let Some(relay) = entry.wish.relay {
                self.relayed.entry(relay).or_default().insert(lease);
            }
            self.entries.insert(lease, entry);
        }
        // A relay may have come or gone, and with it the way of others.
        let relayed = keys.iter().filter_map(|key| self.relayed.get(key)).flatten();
        let relayed: Vec<PublicKey> = relayed.filter_map(|lease| self.key_of(lease)).collect();
        keys.extend(relayed);
        for key in &keys {
            self.decide(*key);
        }
        self.changed.append(&mut keys);
    }

    /// Forgets an entry in the indexes. Names the keys that it concerns.
    fn unlink(&mut self, lease: LeaseKey, entry: &Entry, keys: &mut BTreeSet<PublicKey>) {
        let of_relay = entry.wish.relay.map(|relay| (relay, &mut self.relayed));
        for (key, index) in [(entry.key, &mut self.leases)].into_iter().chain(of_relay) {
            keys.insert(key);
            if let Some(leases) = index.get_mut(&key) {
                leases.remove(&lease);
                if leases.is_empty() {
                    index.remove(&key);
                }
            }
        }
    }

    /// The relay of a lease, if it is a peer.
    fn relay_of(&self, entry: &Entry) -> Option<PublicKey> {
        entry.wish.relay.filter(|relay| *relay != entry.key && self.leases.contains_key(relay))
    }

    /// Computes a peer from its leases, and from those for which it is the relay.
    fn decide(&mut self, key: PublicKey) {
        let own = self.leases.get(&key).into_iter().flatten();
        let own: Vec<&Entry> = own.filter_map(|lease| self.entries.get(lease)).collect();
        let Some(first) = own.first() else {
            self.peers.remove(&key);
            return;
        };
        let (published, wish) = (first.published, first.wish);
        let relayed = self.relayed.get(&key).into_iter().flatten();
        let relayed = relayed.filter_map(|lease| self.entries.get(lease));
        let relayed = relayed.filter(|entry| self.relay_of(entry) == Some(key));
        let own = own.into_iter().filter(|entry| self.relay_of(entry).is_none());
        let allowed_ips = own.chain(relayed).flat_map(|entry| entry.subnets.iter().copied()).collect();
        self.peers.insert(key, DesiredPeer { published, allowed_ips, wish });
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

    /// The relay that carries the packets of a key, by its first lease.
    pub(crate) fn relay_lease(&self, key: &PublicKey) -> Option<LeaseKey> {
        let entry = self.entries.get(self.leases.get(key)?.first()?)?;
        self.leases.get(&self.relay_of(entry)?)?.first().copied()
    }

    /// The key of a lease.
    pub(crate) fn key_of(&self, lease: &LeaseKey) -> Option<PublicKey> {
        self.entries.get(lease).map(|entry| entry.key)
    }
}

/// The key that a peer has on a link, and where it receives.
pub(crate) fn key_on(peer: &Peer, link: LinkIndex) -> Option<(PublicKey, SocketAddr)> {
    keys(peer).find(|(on, ..)| *on == link).map(|(_, key, at)| (key, at))
}

/// The keys that a peer has on our devices, and where it receives.
pub(crate) fn keys(peer: &Peer) -> impl Iterator<Item = (LinkIndex, PublicKey, SocketAddr)> + '_ {
    peer.claims.iter().filter_map(|claim| match claim {
        Claim::Key(link, key, at, port) => Some((*link, PublicKey(*key), SocketAddr::new(*at, *port))),
        _ => None,
    })
}

/// The subnets of a peer in these families.
pub(crate) fn subnets_of<'a>(peer: &'a Peer, families: &'a [Family]) -> impl Iterator<Item = IpNetwork> + 'a {
    peer.claims.iter().filter_map(|claim| match claim {
        Claim::Subnet(subnet) if families.contains(&subnet.family()) => Some(IpNetwork::from(*subnet)),
        _ => None,
    })
}
