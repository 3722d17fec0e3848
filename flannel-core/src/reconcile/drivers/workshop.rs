//! What drivers are made from, and which a network config lets this node make.

use std::sync::Arc;

use crate::backend::{Backend, DriverMaker, Underlay};
use crate::config::{BackendConfig, ConfigError, NetworkConfig};
use crate::netns::Netns;

/// What further drivers are made from.
pub(super) struct Workshop {
    pub(super) netns: Netns,
    /// The network config in force.
    pub(super) config: NetworkConfig,
    pub(super) underlay: Underlay,
    pub(super) backends: Vec<Arc<dyn Backend>>,
    /// The config of each backend that this node ran when it stored its state last, besides the configured one.
    pub(super) recalled: Vec<BackendConfig>,
}

impl Workshop {
    pub(super) fn maker(&self, kind: &str) -> Option<(&'static str, &dyn DriverMaker)> {
        let backend = self.backends.iter().find(|backend| backend.kind() == kind)?;
        Some((backend.kind(), backend.drivers()?))
    }

    /// Whether packets by this backend are encrypted between nodes.
    pub(super) fn is_encrypted(&self, kind: &str) -> bool {
        self.maker(kind).is_some_and(|(_, maker)| maker.is_encrypted())
    }

    /// The network config with this backend.
    pub(super) fn config_of(&self, backend: &BackendConfig) -> NetworkConfig {
        NetworkConfig { backend: backend.clone(), ..self.config.clone() }
    }

    /// The config of a backend that this node may run.
    pub(super) fn allowed(&self, kind: &str) -> Option<BackendConfig> {
        let further = self.config.backend.mixing.further();
        let detours = self.recalled.iter().flat_map(|former| &former.mixing.fallback);
        let all = [&self.config.backend].into_iter().chain(further).chain(&self.recalled).chain(detours);
        all.into_iter().find(|config| config.kind == kind).cloned()
    }

    /// The kinds of the backends that this node may run.
    pub(super) fn all_allowed(&self) -> Vec<&'static str> {
        let kinds = self.backends.iter().filter(|backend| backend.drivers().is_some()).map(|it| it.kind());
        kinds.filter(|kind| self.allowed(kind).is_some()).collect()
    }
}

/// Checks the backends that a network config names beside its own (`Backend.Accept`, `Backend.Fallback`): that they are among
/// these, can share a node, and can be used with the keys that the config gives them, and that detours are possible from
/// the own one.
///
/// # Errors
/// The first key that can't be used, with its place in the config.
pub fn check_further(backends: &[Arc<dyn Backend>], config: &NetworkConfig) -> Result<(), ConfigError> {
    let find = |kind: &str| backends.iter().find(|it| it.kind() == kind).and_then(|it| it.drivers());
    let own = find(&config.backend.kind);
    for detour in &config.backend.mixing.fallback {
        let wrong =
            |problem: String| Err(ConfigError::new(detour.place(), Some(detour.kind.clone()), problem));
        let kind = &config.backend.kind;
        if own.is_some_and(DriverMaker::is_encrypted) {
            return wrong(format!(
                "packets that {kind} encrypts would travel by another backend; leave Fallback out"
            ));
        }
        if !own.is_some_and(DriverMaker::allows_detours) {
            let known: Vec<&str> = backends
                .iter()
                .filter(|it| it.drivers().is_some_and(DriverMaker::allows_detours))
                .map(|it| it.kind())
                .collect();
            return wrong(format!(
                "probes can't prove that the way by {kind} is blocked, only that by {}; leave Fallback out",
                known.join(" and ")
            ));
        }
    }
    for accepted in config.backend.mixing.further() {
        let key = accepted.place().to_owned();
        let value = Some(accepted.kind.clone());
        let Some(backend) = backends.iter().find(|backend| backend.kind() == accepted.kind) else {
            let known: Vec<&str> =
                backends.iter().filter(|it| it.drivers().is_some()).map(|it| it.kind()).collect();
            return Err(ConfigError::new(
                key,
                value,
                format!("is no backend that can share a node; those are {}", known.join(", ")),
            ));
        };
        if backend.drivers().is_none() {
            return Err(ConfigError::new(
                key,
                value,
                "can't share a node with another backend; leave it out",
            ));
        }
        let config = NetworkConfig { backend: accepted.clone(), ..config.clone() };
        backend.check(&config).map_err(|error| error.placed(accepted))?;
    }
    Ok(())
}
