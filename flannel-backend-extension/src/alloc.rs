//! alloc backend: a lease, and nothing else. Upstream: `pkg/backend/alloc/alloc.go`.

use async_trait::async_trait;
use flannel_core::backend::{Backend, BackendError, Driven, HostProblem, Network, Registration, Underlay};
use flannel_core::config::{BackendConfig, ConfigError};
use flannel_core::dataplane::Object;
use flannel_core::kernel::{Kernel, KernelError, KernelEvent, OpenKernel, Scope};
use flannel_core::lease::{Lease, LeaseAttrs};
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;
use flannel_core::peers::{Claim, Peer, PeerError};
use flannel_core::reconcile::{self, AppliedConfig, Devices, Driver};
use flannel_core::state_file::State;
use tracing::warn;

use crate::node::Node;

/// The name that the network config gives. Leases have none, as upstream's have.
const KIND: &str = "alloc";

/// The alloc backend. It acquires this node's lease, and carries no packets: something else must route to each node's
/// subnet, such as the route table of a cloud, or a router that is configured by hand. Leases of others are read, so that
/// the status has them and conflicts are named; nothing is done for them.
pub struct AllocBackend {
    open: Box<OpenKernel>,
}

impl Default for AllocBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl AllocBackend {
    /// A backend for the real kernel, which it only reads.
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
impl Backend for AllocBackend {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn register(&self, registration: Registration<'_>) -> Result<Box<dyn Network>, BackendError> {
        let Registration { netns, config, underlay, .. } = registration;
        for key in config.backend.names_besides(&[]) {
            warn!(key, "Backend key has no effect on alloc");
        }
        let kernel = (self.open)(netns).map_err(BackendError::no_kernel)?;
        let driver = AllocDriver { node: Node::new(config, underlay)? };
        let state = State::of_backend(KIND, config).with_routes_of_others();
        reconcile::register(Driven::new(KIND, driver, state), kernel, registration).await
    }
}

struct AllocDriver {
    node: Node,
}

#[async_trait]
impl Driver for AllocDriver {
    async fn ensure_devices(&mut self, kernel: &mut dyn Kernel) -> Result<Devices, KernelError> {
        self.node.look(kernel).await
    }

    fn set_lease(&mut self, lease: &Lease) {
        self.node.own = Some(lease.key);
    }

    fn set_underlay(&mut self, underlay: &Underlay) -> Result<(), HostProblem> {
        self.node.set_underlay(underlay)
    }

    /// The backend has no keys, so changes have no effect.
    fn apply_config(&mut self, _: &BackendConfig, _: Vec<String>) -> Result<AppliedConfig, ConfigError> {
        Ok(AppliedConfig::default())
    }

    fn attrs(&self) -> LeaseAttrs {
        LeaseAttrs { public_ips: self.node.underlay.published, ..LeaseAttrs::default() }
    }

    fn own_objects(&self) -> Vec<Object> {
        Vec::new()
    }

    fn own_claims(&self) -> Vec<Claim> {
        self.node.claims()
    }

    fn peer(&self, lease: &Lease) -> Result<Peer, PeerError> {
        if !lease.attrs.backend_type.is_empty() {
            PeerError::check_backend(&lease.attrs, KIND)?;
        }
        self.node.peer(lease)
    }

    fn scopes(&self) -> Vec<Scope> {
        Vec::new()
    }

    fn owns(&self, _: &Object) -> bool {
        false
    }

    fn concerns(&self, event: &KernelEvent) -> bool {
        self.node.concerns(event)
    }
}
