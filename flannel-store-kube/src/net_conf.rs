//! The network config in a file, as a `ConfigMap` is mounted. It is read at the start, and followed.

use std::io;
use std::sync::{Arc, PoisonError};

use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::guarded;
use flannel_core::subnet::kit::{ConfigFile, follow_config};
use flannel_core::subnet::{ConfigStream, SubnetError};

use super::Store;

impl Store {
    /// Reads the file.
    pub(super) fn config(&self) -> Result<NetworkConfig, SubnetError> {
        let path = &self.options.net_config;
        let place = || path.display().to_string();
        // Links are followed, since a `ConfigMap` is mounted with them.
        let text = match guarded::read_linked(path, NetworkConfig::MAX_BYTES as u64).and_then(guarded::text) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SubnetError::NoConfig { place: place() });
            }
            read => read.map_err(|error| SubnetError::Unavailable {
                what: format!("read {}", path.display()),
                source: error.into(),
            })?,
        };
        NetworkConfig::parse(&text, LeaseSource::Assigned)
            .map_err(|source| SubnetError::Config { place: place(), source })
    }
}

/// Yields the config whenever it differs from the last one that was returned, or the reason when it becomes unusable.
/// Never ends.
pub(super) fn changes(store: Arc<Store>) -> ConfigStream {
    let used = store
        .used_config
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
        .or_else(|| store.config().ok());
    let path = store.options.net_config.clone();
    follow_config(ConfigFile::new(path, move || store.config()), used)
}
