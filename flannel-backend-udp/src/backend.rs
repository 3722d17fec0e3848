//! The backend: from a network config to a running network.

#[cfg(test)]
mod tests;

use async_trait::async_trait;
use flannel_core::addr::PerFamily;
use flannel_core::backend::{
    Backend, BackendError, DeviceKind, Driven, DriverMaker, DriverNeeds, Network, Registration,
};
use flannel_core::config::{ConfigError, NetworkConfig};
use flannel_core::kernel::{Kernel, OpenKernel};
use flannel_core::netlink::Netlink;
use flannel_core::reconcile;
use flannel_core::state_file::State;
use tracing::warn;

use crate::config::{KEYS, UdpConfig};
use crate::driver::{Side, UdpDriver};
use crate::options::UdpOptions;
use crate::peer;

/// The udp backend. TUN and sockets are those of the network namespace that it is registered for.
pub struct UdpBackend {
    options: UdpOptions,
    open: Box<OpenKernel>,
}

impl UdpBackend {
    /// A backend with these options.
    pub fn new(options: UdpOptions) -> Self {
        Self { options, open: Box::new(|netns| Ok(Box::new(Netlink::open_in(netns)?))) }
    }
}

#[async_trait]
impl Backend for UdpBackend {
    /// The kernel knows nothing of peers: all packets for pods go to the TUN.
    fn routes_whole_network(&self) -> bool {
        true
    }

    fn kind(&self) -> &'static str {
        peer::KIND
    }

    fn devices(&self) -> &'static [DeviceKind] {
        const { &[DeviceKind::new("flannel", "tun")] }
    }

    fn check(&self, config: &NetworkConfig) -> Result<(), ConfigError> {
        UdpConfig::parse(&config.backend).map(drop)
    }

    fn drivers(&self) -> Option<&dyn DriverMaker> {
        Some(self)
    }

    async fn register(&self, registration: Registration<'_>) -> Result<Box<dyn Network>, BackendError> {
        let mut kernel = (self.open)(registration.netns).map_err(BackendError::no_kernel)?;
        let driven = self.driver(DriverNeeds::of(&registration, &[]), &mut *kernel).await?;
        reconcile::register(driven, kernel, registration).await
    }
}

#[async_trait]
impl DriverMaker for UdpBackend {
    fn lease_type(&self) -> &'static str {
        ""
    }

    fn allows_detours(&self) -> bool {
        true
    }

    async fn driver(&self, needs: DriverNeeds<'_>, _: &mut dyn Kernel) -> Result<Driven, BackendError> {
        let DriverNeeds { netns, config, underlay, .. } = needs;
        let udp = UdpConfig::parse(&config.backend)?;
        for key in config.backend.names_besides(&KEYS) {
            warn!(key, "Backend key has no effect on udp");
        }
        let sides = PerFamily::try_from_fn(|family| {
            let Some(network) = config.networks.get(family) else { return Ok(None) };
            let (local, published) = underlay.addresses(family)?;
            Ok(Some(Side { network: network.network, local, published, subnet: None }))
        })
        .map_err(BackendError::Host)?;
        let driver = UdpDriver::new(netns.clone(), udp.port, self.options.clone(), underlay.clone(), sides);
        Ok(Driven::new(peer::KIND, driver, State::of_backend(peer::KIND, config)))
    }
}
