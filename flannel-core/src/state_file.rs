//! What an agent remembers over restarts, in a file beside the subnet file.
//!
//! The file later proves that objects are ours although nothing in the kernel shows it: devices of an earlier backend,
//! routes of an earlier network, and routes that a Go agent wrote for a node that has left. It also has config and
//! leases, so that an agent can start while the store is unavailable ([`crate::remembering::Remembering`]). Without the
//! file, or with a damaged one, an agent still works: it leaves alone what it can't prove to be its own, and waits for
//! the store.

mod host;
mod keeper;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use host::{HostIdentity, StoredOn};
pub use keeper::Keeper;
pub use wire::StateError;

use crate::addr::{MacAddr, PerFamily, Subnet, Vni};
use crate::atomic_file;
use crate::config::{BackendConfig, NetworkConfig};
use crate::guarded;
use crate::kernel::{Link, VxlanLink};
use crate::lease::{AgedLease, Ages, Lease, LeaseKey};
use crate::proofs::Proven;

/// The largest file that is read, in bytes: enough for hundreds of bytes for each of more leases than any network has.
const MAX_BYTES: u64 = 64 << 20;

/// A device of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its kind (`IFLA_INFO_KIND`). The file names all kinds but `vxlan`, since older agents wrote none.
    #[serde(default = "vxlan", skip_serializing_if = "is_vxlan")]
    pub kind: String,
    /// Its VNI, if it is a VXLAN device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<Vni>,
}

fn vxlan() -> String {
    VxlanLink::KIND.to_owned()
}

fn is_vxlan(kind: &str) -> bool {
    kind == VxlanLink::KIND
}

impl Device {
    /// A VXLAN device.
    pub fn vxlan(name: impl Into<String>, vni: Vni) -> Self {
        Self { name: name.into(), kind: vxlan(), vni: Some(vni) }
    }

    /// A device of another kind, of which a host has only one with this name.
    pub fn of_kind(name: impl Into<String>, kind: impl Into<String>) -> Self {
        Self { name: name.into(), kind: kind.into(), vni: None }
    }

    /// Whether a link is this device: by name and kind, a VXLAN device by its VNI, too.
    pub fn is(&self, link: &Link) -> bool {
        let vni = link.vxlan.as_ref().map(|vxlan| vxlan.vni);
        link.name == self.name && link.kind.as_ref() == Some(&self.kind) && vni == self.vni
    }
}

/// The state that an agent remembers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct State {
    /// The kind of the backend.
    pub backend: String,
    /// The overlay networks.
    pub networks: PerFamily<Subnet>,
    /// The devices that the backend made.
    pub devices: Vec<Device>,
    /// The configs of the backends that the node ran beside the configured one.
    pub beside: Vec<BackendConfig>,
    /// What probes had proven about the ways to peers, as far as the agent acted on it.
    pub proven: BTreeMap<LeaseKey, Proven>,
    /// Whether others put the routes to peers, such as an operator's commands. Then a route without our protocol is
    /// theirs, even if it leads to a subnet by the node that had it.
    pub routes_of_others: bool,
    /// The leases of other nodes. In an older agent's file they have only underlay addresses.
    pub leases: BTreeMap<LeaseKey, Arc<AgedLease>>,
    /// The store that the leases came from ([`crate::subnet::SubnetManager::place`]); empty if unknown.
    pub store: String,
    /// The network config; `None` in an older agent's file.
    pub config: Option<NetworkConfig>,
    /// The lease of this node; `None` in an older agent's file.
    pub own: Option<Lease>,
    /// When this node first saw the values of its own lease in the store.
    pub own_ages: Ages,
    /// The underlay addresses that the store wanted this node to publish ([`crate::subnet::SubnetManager::wanted_ips`]).
    pub wanted_ips: PerFamily<IpAddr>,
    /// Underlay addresses that this node has published, the newest last. A record with one of them may be a former
    /// record of this node.
    pub former_ips: Vec<IpAddr>,
    /// The MACs of the host's own links ([`HostIdentity`]); empty in an older agent's file.
    pub host_macs: Vec<MacAddr>,
    /// When it was written, in seconds since 1970; 0 if that is unknown.
    pub saved: u64,
}

impl State {
    /// The state of a backend when it registers: its kind, and the networks of its config.
    pub fn of_backend(kind: &str, config: &NetworkConfig) -> Self {
        let networks = config.networks.map(|_, network| network.network);
        Self { backend: kind.to_owned(), networks, ..Self::default() }
    }

    /// The same, with the devices that the backend made.
    #[must_use]
    pub fn devices(self, devices: impl IntoIterator<Item = Device>) -> Self {
        Self { devices: devices.into_iter().collect(), ..self }
    }

    /// The same of a backend for which others put the routes to peers.
    #[must_use]
    pub fn with_routes_of_others(self) -> Self {
        Self { routes_of_others: true, ..self }
    }

    /// The same, with the lease of this node.
    #[must_use]
    pub fn own(self, own: Lease) -> Self {
        Self { own: Some(own), ..self }
    }

    /// The leases of all nodes with their ages, if they came from this store ([`crate::subnet::SubnetManager::place`]).
    pub fn ages_at(&self, place: &str) -> impl Iterator<Item = (&Lease, Ages)> + Clone {
        let is_there = self.store.is_empty() || self.store == place;
        let own = self.own.iter().map(|own| (own, self.own_ages));
        let others = self.leases.values().map(|lease| (&lease.lease, lease.ages));
        own.chain(others).filter(move |_| is_there)
    }

    /// The bytes of the file.
    pub fn encode(&self) -> String {
        wire::encode(self, self.saved)
    }

    /// Reads the bytes of a file.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        wire::decode(bytes)
    }

    /// Replaces the file atomically, with mode 0600 and the present date.
    pub fn write(&self, path: &Path) -> Result<(), StateFileError> {
        let saved = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        atomic_file::make_folder_of(path)
            .and_then(|()| atomic_file::replace_with(path, 0o600, &mut |out| wire::write(self, saved, out)))
            .map_err(|source| StateFileError { path: path.to_owned(), source })
    }
}

/// How long ago something was saved, as text for the log.
pub fn age(saved: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match now.checked_sub(saved) {
        _ if saved == 0 => "at an unknown time".to_owned(),
        Some(seconds @ 0..120) => format!("{seconds} s ago"),
        Some(seconds @ 120..7200) => format!("{} min ago", seconds / 60),
        Some(seconds @ 7200..172_800) => format!("{} h ago", seconds / 3600),
        Some(seconds) => format!("{} days ago", seconds / 86_400),
        None => "at a time that this host's clock has not reached".to_owned(),
    }
}

/// The state file can't be written.
#[derive(Debug, thiserror::Error)]
#[error("can't write the state file {}", path.display())]
#[non_exhaustive]
pub struct StateFileError {
    /// The path of the file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// The result of reading a state file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recalled {
    /// The state; `None` if there is none that can be used.
    pub state: Option<State>,
    /// Why a file that is there can't be used, for the log.
    pub problem: Option<String>,
    /// Whether this process may not read the file; then another user, such as root, may, and nothing is wrong with it.
    pub is_denied: bool,
}

/// Reads what an earlier run stored. It never fails: without it the agent can only prove less.
pub fn read(path: &Path) -> Recalled {
    let bytes = match guarded::read(path, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Recalled::default(),
        Err(error) => {
            let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
            return Recalled { state: None, problem: Some(format!("can't be read: {error}")), is_denied };
        }
    };
    match State::decode(&bytes) {
        Ok(state) => Recalled { state: Some(state), ..Recalled::default() },
        Err(error) => Recalled { problem: Some(error.to_string()), ..Recalled::default() },
    }
}
