//! The backend: from a network config to a running network.

use async_trait::async_trait;
use flannel_core::addr::{Mtu, PerFamily, Subnet};
use flannel_core::backend::{Backend, BackendError, Network, NetworkStatus, Registration};
use flannel_core::kernel::{Kernel, KernelError};
use flannel_core::lease::Lease;
use flannel_core::netlink::Netlink;
use flannel_core::reconcile::{Driver, Reconciler};
use flannel_core::state_file::State;
use flannel_core::subnet::LeaseStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::config::{UdpConfig, idle_keys};
use crate::driver::{Side, UdpDriver};
use crate::engine::Layout;
use crate::peer;

/// What an operator can choose for one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdpOptions {
    /// How many threads move packets.
    pub layout: Layout,
    /// Underlay addresses, besides those that peers publish, from which datagrams are accepted.
    pub allow_from: Vec<Subnet>,
}

/// Opens a connection to the kernel.
type OpenKernel = dyn Fn() -> Result<Box<dyn Kernel>, KernelError> + Send + Sync;

/// The udp backend. TUN, sockets and threads are those of the network namespace in which the runtime's
/// threads run.
pub struct UdpBackend {
    options: UdpOptions,
    open: Box<OpenKernel>,
}

impl UdpBackend {
    /// A backend with these options.
    pub fn new(options: UdpOptions) -> Self {
        Self { options, open: Box::new(|| Ok(Box::new(Netlink::open()?))) }
    }
}

#[async_trait]
impl Backend for UdpBackend {
    fn kind(&self) -> &'static str {
        peer::KIND
    }

    async fn register(&self, registration: Registration<'_>) -> Result<Box<dyn Network>, BackendError> {
        let Registration { config, underlay, subnets, previous } = registration;
        let udp = UdpConfig::parse(&config.backend)?;
        for key in idle_keys(&config.backend) {
            warn!(key, "Backend key has no effect on udp");
        }
        let mut kernel = (self.open)().map_err(|source| BackendError::Kernel {
            what: "open netlink sockets (the agent needs CAP_NET_ADMIN)".to_owned(),
            source,
        })?;
        let sides = PerFamily::try_from_fn(|family| {
            let Some(network) = config.networks.get(family) else { return Ok(None) };
            match (underlay.local.get(family), underlay.published.get(family)) {
                (Some(local), Some(published)) => {
                    let (local, published) = (*local, *published);
                    Ok(Some(Side { network: network.network, local, published, subnet: None }))
                }
                _ => Err(BackendError::Host(format!(
                    "{family} is enabled, but underlay link {} has no {family} address",
                    underlay.name
                ))),
            }
        })?;
        let attrs = peer::attrs(underlay.published, sides.v6.is_some(), udp.port);
        let mut driver = UdpDriver::new(udp.port, self.options.clone(), underlay.clone(), sides);
        // The datapath comes first, so that what is published is true from the first moment.
        let devices = driver
            .ensure_devices(&mut *kernel)
            .await
            .map_err(|source| BackendError::Kernel { what: "read the TUN".to_owned(), source })?;
        if let Some(problem) = devices.problem {
            return Err(BackendError::Host(problem));
        }
        let overlay_mtu = devices.overlay_mtu.ok_or_else(|| BackendError::Host("no TUN".to_owned()))?;
        let lease = subnets.acquire_lease(&attrs).await?;
        debug!(subnet = %lease.key, underlay = %underlay.name, %overlay_mtu, "lease acquired");
        driver.set_lease(&lease);
        let state = State {
            backend: peer::KIND.to_owned(),
            networks: config.networks.map(|_, network| network.network),
            ..State::default()
        };
        let mut reconciler = Reconciler::new(driver, kernel, lease.key, state, previous);
        reconciler.prepare().await?;
        Ok(Box::new(UdpNetwork { lease, overlay_mtu, reconciler }))
    }
}

/// A registered udp backend.
struct UdpNetwork {
    lease: Lease,
    overlay_mtu: Mtu,
    reconciler: Reconciler<UdpDriver>,
}

#[async_trait]
impl Network for UdpNetwork {
    fn lease(&self) -> &Lease {
        &self.lease
    }

    fn overlay_mtu(&self) -> Mtu {
        self.overlay_mtu
    }

    fn status(&self) -> watch::Receiver<NetworkStatus> {
        self.reconciler.status()
    }

    fn state(&self) -> watch::Receiver<State> {
        self.reconciler.state()
    }

    async fn run(
        self: Box<Self>,
        leases: LeaseStream,
        cancel: CancellationToken,
    ) -> Result<(), BackendError> {
        self.reconciler.run(leases, cancel).await
    }
}
