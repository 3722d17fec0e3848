//! ipip backend: pod packets travel between nodes inside IPv4 packets (RFC 2003), through one kernel device.
//!
//! # The way of a packet
//! A packet to a pod of another node takes the route `subnet via node dev flannel.ipip onlink`. The gateway is the other
//! node's address on the underlay. The device has no remote address of its own, so the kernel puts an IPv4 header to that
//! gateway around the packet and sends it there as protocol 4. Nothing but that one route is needed for a peer, and 20
//! bytes are added to a packet, where VXLAN adds 50. But the network between nodes must let protocol 4 pass, and IPv6 is
//! not carried.
//!
//! # What this crate adds to the core
//! [`IpipBackend`] implements [`flannel_core::backend::Backend`]. It makes the device, in its own numbers of
//! `linux/if_tunnel.h` ([`flannel_core::kernel::LinkKind`]), and gives the reconcile loop a driver that translates a lease
//! into one route. The device has Go flannel's name and attributes, and leases have its bytes, so that both can share a
//! cluster and take over from each other on a node. A change of the underlay's address changes the device in place, and no
//! route is lost. `tunl0`, which the kernel module makes in every network namespace, is left alone.
//!
//! With `DirectRouting` a peer whose underlay address is on-link gets the same route on the underlay's link instead
//! ([`flannel_core::on_link`] decides).

mod config;
mod device;
mod driver;
mod peer;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use flannel_core::backend::{
    Backend, BackendError, DeviceKind, Driven, DriverMaker, DriverNeeds, Network, Registration,
};
use flannel_core::config::{ConfigError, NetworkConfig};
use flannel_core::kernel::{Kernel, KernelError, OpenKernel};
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;
use flannel_core::reconcile;
use flannel_core::state_file::{Device, State};
use tracing::warn;

pub use config::IpipConfig;

use driver::IpipDriver;

/// The ipip backend.
pub struct IpipBackend {
    open: Box<OpenKernel>,
}

impl Default for IpipBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl IpipBackend {
    /// A backend for the real kernel.
    pub fn new() -> Self {
        Self::with_kernel(|netns| Ok(Box::new(Netlink::open_in(netns)?)))
    }

    /// A backend for another kernel, such as a fake.
    pub fn with_kernel(
        open: impl Fn(&Netns) -> Result<Box<dyn Kernel>, KernelError> + Send + Sync + 'static,
    ) -> Self {
        Self { open: Box::new(open) }
    }
}

#[async_trait]
impl Backend for IpipBackend {
    fn kind(&self) -> &'static str {
        peer::KIND
    }

    fn devices(&self) -> &'static [DeviceKind] {
        const { &[DeviceKind::named(device::NAME, device::LINK_KIND)] }
    }

    fn check(&self, config: &NetworkConfig) -> Result<(), ConfigError> {
        IpipConfig::of(config).map(drop)
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
impl DriverMaker for IpipBackend {
    fn lease_type(&self) -> &'static str {
        peer::KIND
    }

    async fn driver(&self, needs: DriverNeeds<'_>, _: &mut dyn Kernel) -> Result<Driven, BackendError> {
        let DriverNeeds { config, underlay, .. } = needs;
        let (network, ipip) = IpipConfig::of(config)?;
        for key in config.backend.names_besides(&config::KEYS) {
            warn!(key, "Backend key has no effect on ipip");
        }
        let driver = IpipDriver::new(ipip, network, underlay.clone())?;
        let device = Device::of_kind(device::NAME, device::LINK_KIND);
        let state = State::of_backend(peer::KIND, config).devices([device]);
        Ok(Driven::new(peer::KIND, driver, state))
    }
}
