//! Backends whose driver can run beside that of another one.

use async_trait::async_trait;

use super::{BackendError, Registration};
use crate::backend::Underlay;
use crate::config::NetworkConfig;
use crate::kernel::Kernel;
use crate::lease::LeaseAttrs;
use crate::netns::Netns;
use crate::reconcile::Driver;
use crate::state_file::State;

/// Makes the driver of a backend without registering it, so that a node can run it beside others.
///
/// Such a driver uses no device, port or file that another backend's driver uses, and its objects are on devices of its own,
/// or are routes to peers, which are the same for all drivers but for the way that they take.
#[async_trait]
pub trait DriverMaker: Send + Sync {
    /// The `BackendType` that leases of this backend have; empty for udp.
    fn lease_type(&self) -> &'static str;

    /// Whether packets between nodes are encrypted. A node never changes from such a backend to another one by itself.
    fn is_encrypted(&self) -> bool {
        false
    }

    /// Whether peers may be reached by another backend (`Backend.Fallback`) while the tunnel of this one is blocked. That takes probes
    /// which can send by hand through the tunnel ([`Tunnel::wrap`](super::Tunnel::wrap)) to see when it is open again.
    fn allows_detours(&self) -> bool {
        false
    }

    /// Makes the driver, and what the state file is to have of it. It may read the kernel, but changes nothing there: the loop
    /// asks the driver for its devices afterwards.
    async fn driver(&self, needs: DriverNeeds<'_>, kernel: &mut dyn Kernel) -> Result<Driven, BackendError>;
}

/// What a driver is made from.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct DriverNeeds<'a> {
    /// The network namespace of this node.
    pub netns: &'a Netns,
    /// The network config, whose `Backend` is that of this driver.
    pub config: &'a NetworkConfig,
    /// The link and addresses that carry the traffic between nodes.
    pub underlay: &'a Underlay,
    /// What this node has published, the most certain first: the store's record, then the last one that this node stored.
    pub known: &'a [&'a LeaseAttrs],
    /// What this node stored last.
    pub previous: Option<&'a State>,
}

impl<'a> DriverNeeds<'a> {
    /// What the driver of the configured backend is made from.
    pub fn of(registration: &Registration<'a>, known: &'a [&'a LeaseAttrs]) -> Self {
        let Registration { netns, config, underlay, previous, .. } = *registration;
        Self { netns, config, underlay, known, previous }
    }

    /// What the driver of any backend is made from.
    pub(crate) fn new(
        netns: &'a Netns,
        config: &'a NetworkConfig,
        underlay: &'a Underlay,
        known: &'a [&'a LeaseAttrs],
        previous: Option<&'a State>,
    ) -> Self {
        Self { netns, config, underlay, known, previous }
    }
}

/// A driver, and what the state file is to have of it.
pub struct Driven {
    /// The kind of the backend.
    pub kind: &'static str,
    /// The driver.
    pub driver: Box<dyn Driver>,
    /// The backend's part of the state file.
    pub state: State,
}

impl Driven {
    /// This driver with this part of the state file.
    pub fn new(kind: &'static str, driver: impl Driver + 'static, state: State) -> Self {
        Self { kind, driver: Box::new(driver), state }
    }
}
