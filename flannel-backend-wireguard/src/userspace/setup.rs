//! What a device was told: its key, its peers, and which of them has which addresses.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::addr::Subnet;
use ipnetwork::IpNetwork;

use super::noise::Identity;
use super::peer::Peer;
use super::table::Table;
use crate::device::{Change, DeviceState, PeerChange, PeerState};
use crate::key::{PrivateKey, PublicKey};

/// Time between handshakes that are begun with expected peers, so that the answers of a thousand don't come at once.
const GREETINGS: Duration = Duration::from_millis(2);

/// The configuration of a device. Peers, with their sessions, are shared with the tables made of it.
#[derive(Default)]
pub(crate) struct Setup {
    private_key: Option<PrivateKey>,
    identity: Option<Arc<Identity>>,
    peers: BTreeMap<PublicKey, Arc<Peer>>,
    /// Each allowed address belongs to one peer.
    allowed: HashMap<Subnet, PublicKey>,
    /// Peers that had sessions with an earlier device.
    expected: HashSet<PublicKey>,
    /// When the next handshake with one of them may begin.
    next_greeting: Option<Instant>,
}

impl Setup {
    /// Has handshakes begin with these peers as soon as they are added, as far as they are not there.
    pub(crate) fn expect(&mut self, peers: &[PublicKey]) {
        self.expected.extend(peers.iter().filter(|key| !self.peers.contains_key(key)));
    }

    /// Makes a change of the key or of a peer.
    pub(crate) fn apply(&mut self, change: &Change) -> io::Result<()> {
        match change {
            Change::PrivateKey(key) => self.set_key(key),
            Change::Peer(key, change) => return self.change_peer(*key, change),
            Change::RemovePeer(key) => self.remove_peer(key),
            Change::ListenPort(_) => {}
        }
        Ok(())
    }

    fn set_key(&mut self, key: &PrivateKey) {
        if self.private_key.as_ref() == Some(key) {
            return;
        }
        let identity = Arc::new(Identity::new(key));
        // As in the kernel, a device is no peer of itself.
        self.remove_peer(&identity.public());
        for peer in self.peers.values() {
            peer.set_identity(Some(&identity));
        }
        (self.private_key, self.identity) = (Some(key.clone()), Some(identity));
    }

    fn change_peer(&mut self, key: PublicKey, change: &PeerChange) -> io::Result<()> {
        let identity = self.identity.as_deref();
        if identity.is_some_and(|identity| identity.public() == key) {
            let text = format!("{key:?} is the device's own key, so it can't be a peer's");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let now = Instant::now();
        if !self.peers.contains_key(&key) {
            let index = self.free_index();
            let peer = Peer::new(key, index, identity, now);
            if self.expected.remove(&key) {
                let at = self.next_greeting.map_or(now, |at| at.max(now));
                self.next_greeting = Some(at + GREETINGS);
                peer.greet(at);
            }
            self.peers.insert(key, Arc::new(peer));
        }
        if let Some(peer) = self.peers.get(&key) {
            peer.change(change, self.identity.as_deref(), now);
        }
        if let Some(allowed) = &change.allowed_ips {
            self.allowed.retain(|_, owner| *owner != key);
            let subnets = allowed.iter().filter_map(|net| Subnet::containing(net.ip(), net.prefix()));
            self.allowed.extend(subnets.map(|subnet| (subnet, key)));
        }
        Ok(())
    }

    fn remove_peer(&mut self, key: &PublicKey) {
        if let Some(peer) = self.peers.remove(key) {
            // A table that is still in use must not keep its keys.
            peer.set_identity(None);
            self.allowed.retain(|_, owner| owner != key);
        }
    }

    /// A random index that no peer has. Random, so that messages of sessions before a restart meet none of these.
    fn free_index(&self) -> u32 {
        loop {
            let index = fastrand::u32(..1 << 24);
            if self.peers.values().all(|peer| peer.index != index) {
                return index;
            }
        }
    }

    /// The table for the datapath.
    pub(crate) fn table(&self) -> Table {
        let mut subnets: HashMap<PublicKey, Vec<Subnet>> = HashMap::new();
        for (subnet, key) in &self.allowed {
            subnets.entry(*key).or_default().push(*subnet);
        }
        let peers = self.peers.iter().map(|(key, peer)| {
            let subnets = subnets.remove(key).unwrap_or_default();
            (Arc::clone(peer), subnets)
        });
        Table::new(self.identity.clone(), peers)
    }

    /// What the device contains.
    pub(crate) fn state(&self, listen_port: u16) -> DeviceState {
        let mut allowed: HashMap<PublicKey, BTreeSet<IpNetwork>> = HashMap::new();
        for (subnet, key) in &self.allowed {
            allowed.entry(*key).or_default().insert(subnet.with_host(subnet.base()));
        }
        let peers = self.peers.iter().map(|(key, peer)| {
            let allowed_ips = allowed.remove(key).unwrap_or_default();
            (*key, PeerState { allowed_ips, ..peer.state() })
        });
        let peers = peers.collect();
        DeviceState { private_key: self.private_key.clone(), listen_port, fwmark: 0, peers }
    }
}
