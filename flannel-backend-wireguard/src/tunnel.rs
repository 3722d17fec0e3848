//! One device of this node: its link, and what is held in it.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use flannel_core::addr::{Family, Subnet};
use flannel_core::kernel::Link;
use flannel_core::reconcile::Prune;
use ipnetwork::IpNetwork;

use crate::config::{Mode, WireguardConfig};
use crate::device::{Change, Device, DeviceState};
use crate::key::{PrivateKey, PublicKey};
use crate::plan::{Desired, DesiredPeer, Rules, Settled, apply, plan};

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
    /// Its content as last read, with what was changed since; shared with the status.
    pub(crate) seen: Arc<Mutex<Option<DeviceState>>>,
    /// The peers that it should have.
    pub(crate) peers: BTreeMap<PublicKey, DesiredPeer>,
    /// Which published endpoints are in force.
    pub(crate) settled: Settled,
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
            families,
            second_key: None,
            link: None,
            is_there: false,
            device: None,
            seen: Arc::default(),
            peers: BTreeMap::new(),
            settled: Settled::new(),
        }
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

    /// Whether it can carry packets.
    pub(crate) fn is_up(&self) -> bool {
        self.is_there && self.link.as_ref().is_some_and(|link| link.up)
    }

    /// Forgets what was read.
    pub(crate) fn forget(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn seen(&self) -> Option<DeviceState> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, state: DeviceState) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
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

    /// Compares the content with what it should be, and changes it. With `read` it is read first.
    pub(crate) async fn hold(
        &mut self,
        read: bool,
        common: &Common<'_>,
        prune: Prune<'_>,
        now: SystemTime,
    ) -> io::Result<Outcome> {
        let Some(device) = self.device.clone().filter(|_| self.is_there) else {
            return Ok(Outcome::default());
        };
        let state = match self.seen().filter(|_| !read) {
            Some(state) => state,
            None => device.state().await?,
        };
        let networks = &common.networks;
        let is_inside = |ip: &IpNetwork| {
            let subnet = Subnet::containing(ip.ip(), ip.prefix());
            subnet.filter(|subnet| networks.iter().any(|network| network.covers(*subnet)))
        };
        let may_remove = |ip: IpNetwork| is_inside(&ip).is_some_and(|subnet| prune.allows(subnet));
        let is_overlay = |ip: IpAddr| networks.iter().any(|network| network.contains(ip));
        let want = Desired {
            private_key: self.key(common).clone(),
            listen_port: self.port(common.config),
            psk: common.config.psk.clone(),
            keepalive: common.config.keepalive,
            peers: self.peers.clone(),
        };
        let rules = Rules {
            now,
            may_remove: &may_remove,
            // A peer without any address is no longer needed by anybody, but the leases must be known.
            may_remove_empty: prune.is_synced(),
            is_overlay: &is_overlay,
        };
        let planned = plan(&want, &state, &self.settled, &rules);
        let mut after = state;
        if !planned.changes.is_empty() {
            self.forget();
            device.apply(&planned.changes).await?;
            apply(&mut after, &planned.changes);
        }
        // What an earlier run stored of peers that are not known yet stays.
        self.settled.extend(planned.settled);
        self.settled.retain(|key, _| after.peers.contains_key(key));
        let ahead = after.peers.values().filter_map(|peer| peer.last_handshake).filter(|at| *at > now).max();
        let is_foreign =
            |ips: &std::collections::BTreeSet<IpNetwork>| ips.iter().any(|ip| is_inside(ip).is_none());
        let others = after.peers.iter().filter(|(key, _)| !want.peers.contains_key(key));
        let foreign = others.filter(|(_, peer)| is_foreign(&peer.allowed_ips)).count();
        self.remember(after);
        let done = describe(&planned.changes);
        Ok(Outcome { done, ahead, held_back: planned.held_back, foreign })
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
