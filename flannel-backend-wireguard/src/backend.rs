//! The backend: from a network config to a running network.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::addr::PerFamily;
use flannel_core::backend::{Backend, BackendError, DeviceKind, Network, Registration};
use flannel_core::config::{ConfigError, NetworkConfig};
use flannel_core::kernel::{Kernel, KernelError, OpenKernel};
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;
use flannel_core::reconcile;
use flannel_core::state_file::{Device, State};
use tracing::warn;

use crate::config::{KEYS, WireguardConfig};
use crate::driver::{Side, WireguardDriver};
use crate::key_file;
use crate::peer;
use crate::provider::{InKernel, Provider};

/// The WireGuard backend.
pub struct WireguardBackend {
    open: Box<OpenKernel>,
    provider: Arc<dyn Provider>,
    key_file: PathBuf,
}

impl Default for WireguardBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl WireguardBackend {
    /// A backend with devices of the real kernel, and the key file of Go flannel ([`key_file::DEFAULT_PATH`]).
    pub fn new() -> Self {
        Self::with_kernel(|netns| Ok(Box::new(Netlink::open_in(netns)?)), Arc::new(InKernel))
    }

    /// A backend for another kernel, such as a fake, and for other devices.
    pub fn with_kernel(
        open: impl Fn(&Netns) -> Result<Box<dyn Kernel>, KernelError> + Send + Sync + 'static,
        provider: Arc<dyn Provider>,
    ) -> Self {
        Self { open: Box::new(open), provider, key_file: key_file::DEFAULT_PATH.into() }
    }

    /// Sets the file with this node's private key. It is made if it is missing.
    #[must_use]
    pub fn key_file(self, path: impl Into<PathBuf>) -> Self {
        Self { key_file: path.into(), ..self }
    }
}

#[async_trait]
impl Backend for WireguardBackend {
    fn kind(&self) -> &'static str {
        peer::KIND
    }

    fn devices(&self) -> &'static [DeviceKind] {
        const { &[DeviceKind::named("flannel-wg", "wireguard"), DeviceKind::named("flannel-wg-v6", "wireguard")] }
    }

    /// The blackhole below the routes to peers is for the whole network.
    fn routes_whole_network(&self) -> bool {
        true
    }

    fn check(&self, config: &NetworkConfig) -> Result<(), ConfigError> {
        WireguardConfig::of(config).map(drop)
    }

    async fn register(&self, registration: Registration<'_>) -> Result<Box<dyn Network>, BackendError> {
        let Registration { netns, config, underlay, .. } = registration;
        let wireguard = WireguardConfig::of(config)?;
        for key in config.backend.names_besides(&KEYS) {
            warn!(key, "Backend key has no effect on wireguard");
        }
        let key = key_file::read_or_create(&self.key_file).map_err(|error| BackendError::Other {
            what: "get this node's WireGuard key".to_owned(),
            source: Box::new(error),
        })?;
        let kernel = (self.open)(netns).map_err(BackendError::no_kernel)?;
        let sides = PerFamily::try_from_fn(|family| {
            let Some(network) = config.networks.get(family) else { return Ok(None) };
            let (local, published) = underlay.addresses(family)?;
            Ok(Some(Side { network: network.network, local, published, subnet: None }))
        })
        .map_err(BackendError::Host)?;
        let recalled = registration.previous.iter().flat_map(|previous| previous.leases.values());
        let recalled = recalled.map(|lease| lease.lease.clone()).collect();
        let driver = WireguardDriver::new(
            netns.clone(),
            wireguard,
            underlay.clone(),
            sides,
            Arc::clone(&self.provider),
            (key, self.key_file.clone()),
        )
        .recalling(recalled);
        let kind = self.provider.kind();
        let devices = driver.names().map(|name| Device::of_kind(name, kind)).collect::<Vec<_>>();
        let state = State::of_backend(peer::KIND, config).devices(devices);
        reconcile::register(driver, kernel, registration, state).await
    }
}

#[cfg(test)]
mod tests;
