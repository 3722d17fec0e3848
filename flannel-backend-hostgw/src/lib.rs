//! host-gw backend: pod packets travel between nodes without encapsulation, since every node is the gateway of its own
//! pods.
//!
//! # The way of a packet
//! A packet to a pod of another node takes the route `subnet via node dev eth0`. The gateway is the other node's
//! address on the underlay; the kernel resolves its MAC as for any neighbour and sends the packet there, without
//! encapsulation and at the full MTU. The other node forwards it to its pod. Nothing is added to the packet and only
//! that one route is needed, so this is the fastest backend. But all nodes must be on one layer 2 segment, and the
//! network between them must let packets with pod addresses through.
//!
//! # What this crate adds to the core
//! [`HostGwBackend`] implements [`flannel_core::backend::Backend`]. It has no device: it watches the underlay link, and
//! gives the reconcile loop a driver that translates a lease into one route for each family. The link belongs to the
//! host, so a route is ours only by its protocol and destination ([`flannel_core::ownership`]); foreign routes are
//! never touched. A node that is not on-link, and so can't be a gateway, is reported by name and tried again when the
//! link or its addresses change; it delays no other.
//!
//! Leases are those of Go flannel, so that both can share a cluster. Routes that a Go node left are adopted: they get
//! our protocol in place, without a lost packet.

mod driver;
mod peer;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use async_trait::async_trait;
use flannel_core::addr::{Family, PerFamily};
use flannel_core::backend::{
    Backend, BackendError, Driven, DriverMaker, DriverNeeds, HostProblem, Network, Registration, Underlay,
};
use flannel_core::kernel::{Kernel, KernelError, OpenKernel};
use flannel_core::lease::LeaseAttrs;
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;
use flannel_core::reconcile;
use flannel_core::state_file::State;
use tracing::warn;

use driver::HostGwDriver;

/// The host-gw backend.
pub struct HostGwBackend {
    open: Box<OpenKernel>,
}

impl Default for HostGwBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl HostGwBackend {
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
impl Backend for HostGwBackend {
    fn kind(&self) -> &'static str {
        peer::KIND
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
impl DriverMaker for HostGwBackend {
    fn lease_type(&self) -> &'static str {
        peer::KIND
    }

    async fn driver(&self, needs: DriverNeeds<'_>, _: &mut dyn Kernel) -> Result<Driven, BackendError> {
        let DriverNeeds { config, underlay, .. } = needs;
        for key in config.backend.names_besides(&[]) {
            warn!(key, "Backend key has no effect on host-gw");
        }
        let families: Vec<Family> = config.families().collect();
        let addresses = gateways(&families, underlay)?;
        let driver = HostGwDriver::new(underlay.clone(), addresses);
        Ok(Driven::new(peer::KIND, driver, State::of_backend(peer::KIND, config)))
    }
}

/// The address of each enabled family at which this node is a gateway for the others.
///
/// The published address must be the link's: others use it as a gateway, which can't work behind NAT. Upstream checks
/// only IPv4.
fn gateways(families: &[Family], underlay: &Underlay) -> Result<PerFamily<IpAddr>, HostProblem> {
    PerFamily::try_from_fn(|family| {
        if !families.contains(&family) {
            return Ok(None);
        }
        let (local, published) = underlay.addresses(family)?;
        if local != published {
            let (backend, link) = (peer::KIND, underlay.name.clone());
            return Err(HostProblem::BehindNat { backend, family, published, local, link });
        }
        Ok(Some(local))
    })
}

/// What this node publishes: its addresses, and no data.
fn attrs(underlay: &Underlay) -> LeaseAttrs {
    LeaseAttrs {
        // An address of a family that is not enabled is published too if the operator gave one, as upstream does.
        public_ips: underlay.published,
        backend_type: peer::KIND.to_owned(),
        ..LeaseAttrs::default()
    }
}
