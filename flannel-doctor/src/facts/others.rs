//! Agents of this host with another subnet file: each has a network of its own, and what is theirs is no fault of ours.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use flannel_core::addr::{PerFamily, Subnet};
use flannel_core::kernel::Link;
use flannel_core::state_file::{self, Device};
use flannel_core::subnet_file;

use super::agents::AgentProcess;
use crate::host::Files;

/// An agent besides ours, and what its files say.
#[derive(Debug, Clone)]
pub(crate) struct OtherAgent {
    pub(crate) process: AgentProcess,
    /// Its devices; empty if it has none, or no state file that can be read.
    devices: Vec<Device>,
    /// Its networks, and its own subnets.
    pub(crate) networks: PerFamily<Subnet>,
    pub(crate) subnets: PerFamily<Subnet>,
}

impl OtherAgent {
    /// Reads the files of an agent where it sees them: in a container these may be other ones than the host's.
    pub(super) fn read(files: &Files, process: AgentProcess) -> Self {
        let seen_by_it = |path: &Path| {
            let below = path.strip_prefix("/").unwrap_or(path);
            files.path(Path::new("/proc").join(process.pid.to_string()).join("root").join(below))
        };
        let places = |path: &PathBuf| [seen_by_it(path), files.path(path)];
        let state = places(&process.state_file).iter().find_map(|path| state_file::read(path).state);
        let previous = places(&process.subnet_file).map(|path| subnet_file::read_previous(&path));
        let previous = previous.into_iter().find(|previous| previous.key.is_some()).unwrap_or_default();
        let own = state.as_ref().and_then(|state| state.own.as_ref()).map(|own| own.key);
        Self {
            devices: state.as_ref().map(|state| state.devices.clone()).unwrap_or_default(),
            networks: state.map_or(previous.networks, |state| state.networks),
            subnets: own.or(previous.key).map(|key| key.subnets()).unwrap_or_default(),
            process,
        }
    }

    /// Whether one of its files told what is its.
    pub(super) fn is_known(&self) -> bool {
        !self.networks.is_empty()
    }

    /// Whether a link with these addresses is its device.
    pub(super) fn has(&self, link: &Link, addresses: &[IpAddr]) -> bool {
        let is_inside = |ip: &IpAddr| self.subnets.iter().any(|(_, subnet)| subnet.contains(*ip));
        self.devices.iter().any(|device| device.name == link.name) || addresses.iter().any(is_inside)
    }
}

/// Whether two paths of subnet files mean one. `/var/run` is `/run` on every host of our time.
pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    let plain = |path: &Path| {
        path.strip_prefix("/var/run").map_or_else(|_| path.to_owned(), |rest| Path::new("/run").join(rest))
    };
    plain(one) == plain(other)
}
