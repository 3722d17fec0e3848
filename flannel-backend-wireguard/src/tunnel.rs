//! One device of this node: its link, and what is held in it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use flannel_core::addr::{Family, LinkIndex, Subnet};
use flannel_core::kernel::Link;
use flannel_core::lease::LeaseKey;
use flannel_core::peers::Peer;
use flannel_core::reconcile::Prune;
use flannel_core::status::{Session, SessionPath, Sessions};
use ipnetwork::IpNetwork;

use crate::config::{Mode, WireguardConfig};
use crate::device::{Change, Device, DeviceState};
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::plan::{Desired, DesiredPeer, Plan, Rules, STALE, Settled, Wish, plan};
use crate::roster::{On, Roster};
use crate::seen::Seen;

/// The names of Go flannel's devices.
const NAME: &str = "flannel-wg";
const NAME_V6: &str = "flannel-wg-v6";
/// Those of the second devices, which are there while a node changes its key.
const SECOND: &str = "flannel-wg-r";
const SECOND_V6: &str = "flannel-wg-v6-r";

/// A device.
pub(crate) struct Tunnel {
    /// Its name.
    pub(crate) name: &'static str,
    /// The families of pods that it carries.
    pub(crate) families: Vec<Family>,
    /// The key of a second device (see [`crate::rotation`]); `None` for a first device, which has the node's key.
    pub(crate) second_key: Option<PrivateKey>,
    /// Its link as last seen. Objects on it stay desired while it is missing.
    pub(crate) link: Option<Link>,
    /// Whether it is there.
    pub(crate) is_there: bool,
    /// The open device of that link.
    pub(crate) device: Option<Arc<dyn Device>>,
    /// Which published endpoints are in force.
    pub(crate) settled: Settled,
    /// What readers of the status see, too.
    shared: Arc<Shared>,
    /// The peers that are not as desired, as far as that is allowed now. They are looked at each time.
    open: BTreeSet<PublicKey>,
    /// What was desired of the device and of all peers when the content was compared last.
    basis: Option<Basis>,
    /// The latest handshake of all peers when the content was read last.
    latest: Option<SystemTime>,
}

/// What the status is made of when somebody asks for it.
struct Shared {
    name: &'static str,
    families: Vec<Family>,
    /// Whoever reads a status must not keep the device: one in user space ends with the last who has it.
    device: Mutex<Option<Weak<dyn Device>>>,
    /// The content as last read, with what was changed since; `None` if it is not known.
    seen: Mutex<Option<Seen>>,
    /// The peers that it should have.
    roster: Mutex<Roster>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is the same for all peers. When it changes, all are compared.
#[derive(Clone, PartialEq, Eq)]
struct Basis {
    private_key: PrivateKey,
    listen_port: u16,
    psk: Option<PresharedKey>,
    keepalive: u16,
    networks: Vec<Subnet>,
}

/// What came of holding a device's content.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// What was changed, in words.
    pub(crate) done: Option<String>,
    /// The latest handshake that lies in the future.
    pub(crate) ahead: Option<SystemTime>,
    /// Allowed addresses that could not be given to the peers that should have them.
    pub(crate) held_back: Vec<(IpNetwork, PublicKey)>,
    /// Peers that somebody else added.
    pub(crate) foreign: usize,
    /// How many peers were compared.
    #[cfg_attr(not(test), expect(dead_code, reason = "what a change costs is counted in tests"))]
    pub(crate) compared: usize,
}

/// What is the same for all devices of a node.
pub(crate) struct Common<'a> {
    pub(crate) config: &'a WireguardConfig,
    pub(crate) key: &'a PrivateKey,
    /// The networks of pods.
    pub(crate) networks: Vec<Subnet>,
}

impl Tunnel {
    /// The devices of a mode, for these families of pods.
    pub(crate) fn of_mode(mode: Mode, families: &[Family]) -> Vec<Self> {
        let name = |family: &Family| match family {
            Family::V4 => NAME,
            Family::V6 => NAME_V6,
        };
        match mode {
            Mode::Separate => families.iter().map(|family| Self::new(name(family), vec![*family])).collect(),
            _ => vec![Self::new(NAME, families.to_vec())],
        }
    }

    fn new(name: &'static str, families: Vec<Family>) -> Self {
        Self {
            name,
            families: families.clone(),
            second_key: None,
            link: None,
            is_there: false,
            device: None,
            settled: Settled::new(),
            shared: Arc::new(Shared {
                name,
                families,
                device: Mutex::default(),
                seen: Mutex::default(),
                roster: Mutex::default(),
            }),
            open: BTreeSet::new(),
            basis: None,
            latest: None,
        }
    }

    /// Takes over the peers that it should have. Before its link was seen first there are none. `wish` says whose case
    /// differs from that of others.
    pub(crate) fn set_peers(
        &self,
        peers: &[(&LeaseKey, &Peer)],
        wish: impl Fn(LinkIndex, PublicKey) -> Wish,
    ) {
        let Some(link) = self.link.as_ref().map(|link| link.index) else { return };
        let on = On { link, families: &self.families, wish: &|key| wish(link, key) };
        lock(&self.shared.roster).set(&on, peers.iter().copied());
    }

    /// The key of a lease, and whether the device has its peer as desired, as far as that was read.
    pub(crate) fn peer_of(&self, lease: &LeaseKey) -> Option<(PublicKey, bool)> {
        let roster = lock(&self.shared.roster);
        let key = roster.key_of(lease)?;
        let seen = lock(&self.shared.seen);
        let peer = seen.as_ref().and_then(|seen| seen.state().peers.get(&key));
        let wanted = roster.peers().get(&key);
        let is_there = peer.zip(wanted).is_some_and(|(peer, wanted)| peer.allowed_ips == wanted.allowed_ips);
        Some((key, is_there && self.is_there))
    }

    /// The second device beside this first one.
    pub(crate) fn second(&self, key: PrivateKey) -> Self {
        let name = if self.name == NAME_V6 { SECOND_V6 } else { SECOND };
        Self { second_key: Some(key), ..Self::new(name, self.families.clone()) }
    }

    /// The port on which it should receive.
    pub(crate) fn port(&self, config: &WireguardConfig) -> u16 {
        let family = self.families[0];
        if self.second_key.is_some() { config.second_port(family) } else { config.port(family) }
    }

    /// The key that it should have.
    pub(crate) fn key<'a>(&'a self, common: &'a Common<'_>) -> &'a PrivateKey {
        self.second_key.as_ref().unwrap_or(common.key)
    }

    /// The family that its problems concern; `None` for a device that carries all.
    pub(crate) fn family(&self) -> Option<Family> {
        match self.families[..] {
            [family] => Some(family),
            _ => None,
        }
    }

    /// Whether it can carry packets.
    pub(crate) fn is_up(&self) -> bool {
        self.is_there && self.link.as_ref().is_some_and(|link| link.up)
    }

    /// Forgets what was read.
    pub(crate) fn forget(&self) {
        *lock(&self.shared.seen) = None;
    }

    /// Sets key and port of a device that has none or others, before its link is set up.
    pub(crate) async fn prepare(&self, common: &Common<'_>) -> io::Result<()> {
        let Some(device) = &self.device else { return Ok(()) };
        let state = device.state().await?;
        let (key, port) = (self.key(common), self.port(common.config));
        let mut changes = Vec::new();
        if state.private_key.as_ref() != Some(key) {
            changes.push(Change::PrivateKey(key.clone()));
        }
        if state.listen_port != port {
            changes.push(Change::ListenPort(port));
        }
        if changes.is_empty() { Ok(()) } else { device.apply(&changes).await }
    }

    /// Compares the content with what it should be, and changes it. With `read` it is read first. Otherwise only those peers
    /// are compared that should be others than before, or were not as desired.
    pub(crate) async fn hold(
        &mut self,
        read: bool,
        common: &Common<'_>,
        prune: Prune<'_>,
        now: SystemTime,
    ) -> io::Result<Outcome> {
        let device = self.device.clone().filter(|_| self.is_there);
        *lock(&self.shared.device) = device.as_ref().map(Arc::downgrade);
        let Some(device) = device else { return Ok(Outcome::default()) };
        let is_read = read || lock(&self.shared.seen).is_none();
        if is_read {
            let state = device.state().await?;
            self.latest = state.peers.values().filter_map(|peer| peer.last_handshake).max();
            *lock(&self.shared.seen) = Some(Seen::new(state));
        }
        let basis = self.basis(common);
        let is_full = is_read || self.basis.as_ref() != Some(&basis);
        let (keys, planned) = self.plan(is_full, &basis, prune, now);
        if !planned.changes.is_empty() {
            // Should this not come to its end, nothing is known of the content.
            self.basis = None;
            if let Err(error) = device.apply(&planned.changes).await {
                self.forget();
                return Err(error);
            }
            if let Some(seen) = &mut *lock(&self.shared.seen) {
                seen.apply(&planned.changes);
            }
        }
        // What an earlier run stored of peers that are not known yet stays.
        self.settled.extend(planned.settled);
        let foreign = self.look_for_open(is_full, &keys, &basis.networks);
        self.basis = Some(basis);
        Ok(Outcome {
            done: describe(&planned.changes),
            ahead: self.latest.filter(|at| *at > now),
            held_back: planned.held_back,
            foreign,
            compared: keys.len(),
        })
    }

    fn basis(&self, common: &Common<'_>) -> Basis {
        Basis {
            private_key: self.key(common).clone(),
            listen_port: self.port(common.config),
            psk: common.config.psk.clone(),
            keepalive: common.config.keepalive,
            networks: common.networks.clone(),
        }
    }

    /// Plans the changes. Returns the keys that were compared with it.
    fn plan(
        &self,
        is_full: bool,
        basis: &Basis,
        prune: Prune<'_>,
        now: SystemTime,
    ) -> (BTreeSet<PublicKey>, Plan) {
        let networks = &basis.networks;
        let may_remove = |ip: IpNetwork| inside(&ip, networks).is_some_and(|subnet| prune.allows(subnet));
        let is_overlay = |ip: IpAddr| networks.iter().any(|network| network.contains(ip));
        let rules = Rules {
            now,
            may_remove: &may_remove,
            // A peer without any address is no longer needed by anybody, but the leases must be known.
            may_remove_empty: prune.is_synced(),
            is_overlay: &is_overlay,
        };
        let want = |peers| Desired {
            private_key: basis.private_key.clone(),
            listen_port: basis.listen_port,
            psk: basis.psk.clone(),
            keepalive: basis.keepalive,
            peers,
        };
        let (seen, mut roster) = (lock(&self.shared.seen), lock(&self.shared.roster));
        let Some(seen) = &*seen else { return Default::default() };
        let changed = roster.take_changed();
        if is_full {
            let keys = seen.state().peers.keys().chain(roster.peers().keys()).copied().collect();
            let want = want(roster.lend());
            let planned = plan(&want, seen.state(), &self.settled, &rules);
            roster.put_back(want.peers);
            return (keys, planned);
        }
        let keys: BTreeSet<PublicKey> = changed.union(&self.open).copied().collect();
        if keys.is_empty() {
            return Default::default();
        }
        let keys = seen.with_holders(&keys, roster.peers());
        let some = keys.iter().filter_map(|key| Some((*key, roster.peers().get(key)?.clone())));
        let planned = plan(&want(some.collect()), &seen.part(&keys), &self.settled, &rules);
        (keys, planned)
    }

    /// Finds those of the compared peers that must be looked at again. Returns how many of all are somebody else's.
    fn look_for_open(&mut self, is_full: bool, keys: &BTreeSet<PublicKey>, networks: &[Subnet]) -> usize {
        let (seen, roster) = (lock(&self.shared.seen), lock(&self.shared.roster));
        let Some(seen) = &*seen else { return 0 };
        let there = &seen.state().peers;
        let is_open = |key: &PublicKey| match (there.get(key), roster.peers().get(key)) {
            (Some(peer), Some(wanted)) => peer.allowed_ips != wanted.allowed_ips,
            (Some(_), None) | (None, Some(_)) => true,
            (None, None) => false,
        };
        if is_full {
            self.open.clear();
            self.settled.retain(|key, _| there.contains_key(key));
        }
        for key in keys {
            if is_open(key) {
                self.open.insert(*key);
            } else {
                self.open.remove(key);
            }
            if !there.contains_key(key) {
                self.settled.remove(key);
            }
        }
        let others = self.open.iter().filter(|key| !roster.peers().contains_key(*key));
        let is_foreign = |ips: &BTreeSet<IpNetwork>| ips.iter().any(|ip| inside(ip, networks).is_none());
        others.filter_map(|key| there.get(key)).filter(|peer| is_foreign(&peer.allowed_ips)).count()
    }
}

/// The subnet of pods that an allowed address is; `None` if it is outside of the networks of pods.
fn inside(ip: &IpNetwork, networks: &[Subnet]) -> Option<Subnet> {
    let subnet = Subnet::containing(ip.ip(), ip.prefix());
    subnet.filter(|subnet| networks.iter().any(|network| network.covers(*subnet)))
}

/// The devices as the status reads them. There may be second ones for a while.
#[derive(Clone, Default)]
pub(crate) struct Shown(Arc<Mutex<Vec<Arc<Shared>>>>);

impl Shown {
    /// Shows these devices from now on.
    pub(crate) fn set(&self, tunnels: &[Tunnel]) {
        *lock(&self.0) = tunnels.iter().map(|tunnel| Arc::clone(&tunnel.shared)).collect();
    }

    /// Reads the sessions of all devices that are shown when it is asked.
    pub(crate) fn sessions(&self) -> Sessions {
        let shown = self.clone();
        Sessions::new(move || {
            let devices = lock(&shown.0).clone();
            devices.iter().flat_map(|device| device.sessions()).collect()
        })
    }
}

impl Shared {
    /// The sessions with the peers that the device should have, as they are now. It asks the device, where that can be done
    /// without waiting; if it does not answer there are none.
    fn sessions(&self) -> Vec<Session> {
        let device = lock(&self.device).as_ref().and_then(Weak::upgrade);
        let now = SystemTime::now();
        let Some(device) = device else { return Vec::new() };
        match device.reader() {
            Some(read) => read().map_or_else(|_| Vec::new(), |state| self.joined(&state, now)),
            None => lock(&self.seen).as_ref().map_or_else(Vec::new, |seen| self.joined(seen.state(), now)),
        }
    }

    fn joined(&self, state: &DeviceState, now: SystemTime) -> Vec<Session> {
        let roster = lock(&self.roster);
        let mut sessions = Vec::with_capacity(roster.peers().len());
        for (key, DesiredPeer { published, wish, .. }) in roster.peers() {
            let peer = state.peers.get(key);
            let path = match roster.relay_lease(key) {
                Some(relay) => Some(SessionPath::Relay(relay)),
                None => wish.is_nat.then_some(SessionPath::Nat),
            };
            for lease in roster.leases_of(key) {
                let session = Session::new(*lease, self.name, &self.families, Some(*published)).path(path);
                sessions.push(match peer {
                    None => session,
                    Some(peer) => session
                        .handshake(peer.last_handshake, STALE, now)
                        .carried(peer.tx_bytes, peer.rx_bytes)
                        .endpoint(peer.endpoint),
                });
            }
        }
        sessions
    }
}

/// What was changed, without secrets; `None` if nothing was.
fn describe(changes: &[Change]) -> Option<String> {
    let count = |is: fn(&Change) -> bool| changes.iter().filter(|change| is(change)).count();
    let mut parts = Vec::new();
    if count(|change| matches!(change, Change::PrivateKey(_))) > 0 {
        parts.push("private key set".to_owned());
    }
    for change in changes {
        if let Change::ListenPort(port) = change {
            parts.push(format!("UDP port set to {port}"));
        }
    }
    let put = count(|change| matches!(change, Change::Peer(..)));
    let removed = count(|change| matches!(change, Change::RemovePeer(_)));
    parts.extend((put > 0).then(|| format!("peers put: {put}")));
    parts.extend((removed > 0).then(|| format!("peers removed: {removed}")));
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests;
