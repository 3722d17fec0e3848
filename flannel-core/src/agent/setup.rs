//! What was said of an agent.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::UnknownBackend;
use super::firewall::FirewallOptions;
use super::place::Place;
use crate::backend::{Backend, DeviceKind};
use crate::kernel::KernelError;
use crate::netns::Netns;
use crate::probe::ProbeOptions;
use crate::subnet::SubnetManager;
use crate::underlay::UnderlayOptions;

/// The backends of an agent. The network config names one of them by its kind.
#[derive(Clone, Default)]
pub(super) struct Backends(Vec<Arc<dyn Backend>>);

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|backend| backend.kind())).finish()
    }
}

impl Backends {
    /// Adds a backend; of two of the same kind the first counts.
    pub(super) fn add(&mut self, backend: Arc<dyn Backend>) {
        self.0.push(backend);
    }

    /// The backend of a kind.
    pub(super) fn find(&self, kind: &str) -> Result<Arc<dyn Backend>, UnknownBackend> {
        let found = self.0.iter().find(|backend| backend.kind() == kind).cloned();
        found.ok_or_else(|| {
            let known = self.0.iter().map(|backend| backend.kind().to_owned()).collect();
            UnknownBackend { kind: kind.to_owned(), known }
        })
    }

    /// All of them.
    pub(super) fn all(&self) -> &[Arc<dyn Backend>] {
        &self.0
    }

    /// The devices that they make.
    pub(super) fn devices(&self) -> Vec<DeviceKind> {
        self.0.iter().flat_map(|backend| backend.devices().iter().copied()).collect()
    }
}

/// What was said of an agent.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) store: Arc<dyn SubnetManager>,
    pub(super) backends: Backends,
    pub(super) underlay: UnderlayOptions,
    pub(super) subnet_file: Option<PathBuf>,
    pub(super) state_file: Option<PathBuf>,
    pub(super) blackholes: bool,
    pub(super) firewall: FirewallOptions,
    pub(super) probes: ProbeOptions,
    pub(super) remarks: Vec<String>,
    /// The network namespace; `None` for that of the thread that starts the agent.
    pub(super) netns: Option<Netns>,
    pub(super) place: Place,
}

impl Setup {
    pub(super) fn netns(&self) -> Result<Netns, KernelError> {
        Ok(self.netns.clone().map_or_else(Netns::current, Ok)?)
    }
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup")
            .field("store", &self.store.place())
            .field("backends", &self.backends)
            .field("subnet_file", &self.subnet_file)
            .finish_non_exhaustive()
    }
}
