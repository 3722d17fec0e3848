//! What a device contained when it was read last, with what was changed since. It has an index by allowed address, so that a
//! change of one peer looks at that peer and at whoever has its addresses, however many there are. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use crate::device::{Change, DeviceState};
use crate::key::PublicKey;
use crate::plan::DesiredPeer;

/// A device's content with its index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    state: DeviceState,
    /// Who has each allowed address: a device gives it to one peer only.
    holders: BTreeMap<IpNetwork, PublicKey>,
}

impl Seen {
    /// What was read.
    pub(crate) fn new(state: DeviceState) -> Self {
        let of_peers = state.peers.iter();
        let holders =
            of_peers.flat_map(|(key, peer)| peer.allowed_ips.iter().map(|ip| (*ip, *key))).collect();
        Self { state, holders }
    }

    pub(crate) fn state(&self) -> &DeviceState {
        &self.state
    }

    /// Those of these peers that should be there, and whoever has an address that one of them should have.
    pub(crate) fn with_holders(
        &self,
        keys: &BTreeSet<PublicKey>,
        wanted: &BTreeMap<PublicKey, DesiredPeer>,
    ) -> BTreeSet<PublicKey> {
        let ips = keys.iter().filter_map(|key| wanted.get(key)).flat_map(|peer| &peer.allowed_ips);
        let holders = ips.filter_map(|ip| self.holders.get(ip));
        keys.iter().chain(holders).copied().collect()
    }

    /// A device that contains nothing but these peers.
    pub(crate) fn part(&self, keys: &BTreeSet<PublicKey>) -> DeviceState {
        let peers = keys.iter().filter_map(|key| Some((*key, self.state.peers.get(key)?.clone())));
        DeviceState {
            private_key: self.state.private_key.clone(),
            listen_port: self.state.listen_port,
            fwmark: self.state.fwmark,
            peers: peers.collect(),
        }
    }

    /// Follows changes that were made.
    pub(crate) fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::PrivateKey(key) => {
                    // The kernel removes a peer with the device's own key.
                    self.remove(&key.public());
                    self.state.private_key = Some(key.clone());
                }
                Change::ListenPort(port) => self.state.listen_port = *port,
                Change::RemovePeer(key) => self.remove(key),
                Change::Peer(key, change) => {
                    if let Some(ips) = &change.allowed_ips {
                        self.give(*key, ips);
                    }
                    let peer = self.state.peers.entry(*key).or_default();
                    if let Some(psk) = &change.preshared_key {
                        peer.preshared_key.clone_from(psk);
                    }
                    peer.endpoint = change.endpoint.or(peer.endpoint);
                    peer.keepalive = change.keepalive.unwrap_or(peer.keepalive);
                }
            }
        }
    }

    /// Gives a peer these addresses and no others. Whoever had one of them has it no more.
    fn give(&mut self, key: PublicKey, ips: &BTreeSet<IpNetwork>) {
        let before = std::mem::take(&mut self.state.peers.entry(key).or_default().allowed_ips);
        for ip in before.difference(ips) {
            self.holders.remove(ip);
        }
        for ip in ips {
            let holder = self.holders.insert(*ip, key).filter(|holder| *holder != key);
            if let Some(other) = holder.and_then(|holder| self.state.peers.get_mut(&holder)) {
                other.allowed_ips.remove(ip);
            }
        }
        self.state.peers.entry(key).or_default().allowed_ips.clone_from(ips);
    }

    fn remove(&mut self, key: &PublicKey) {
        for ip in self.state.peers.remove(key).into_iter().flat_map(|peer| peer.allowed_ips) {
            self.holders.remove(&ip);
        }
    }
}

/// The content of a device after these changes.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn apply(state: &mut DeviceState, changes: &[Change]) {
    let mut seen = Seen::new(std::mem::take(state));
    seen.apply(changes);
    *state = seen.state;
}
