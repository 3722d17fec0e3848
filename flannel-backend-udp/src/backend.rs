//! The backend: from a network config to a running network.

use std::net::IpAddr;

use async_trait::async_trait;
use flannel_core::addr::{Family, PerFamily, Subnet};
use flannel_core::backend::{Backend, BackendError, Network, Registration, Underlay};
use flannel_core::kernel::OpenKernel;
use flannel_core::netlink::Netlink;
use flannel_core::reconcile;
use flannel_core::state_file::State;
use tracing::warn;

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
    /// The kernel knows nothing of peers: all packets for pods go to the TUN.
    fn routes_whole_network(&self) -> bool {
        true
    }

    fn kind(&self) -> &'static str {
        peer::KIND
    }

    async fn register(&self, registration: Registration<'_>) -> Result<Box<dyn Network>, BackendError> {
        let Registration { config, underlay, .. } = registration;
        let udp = UdpConfig::parse(&config.backend)?;
        for key in idle_keys(&config.backend) {
            warn!(key, "Backend key has no effect on udp");
        }
        let kernel = (self.open)().map_err(BackendError::no_kernel)?;
        let sides = PerFamily::try_from_fn(|family| {
            let Some(network) = config.networks.get(family) else { return Ok(None) };
            let (local, published) = addresses(underlay, family)?;
            Ok(Some(Side { network: network.network, local, published, subnet: None }))
        })
        .map_err(BackendError::Host)?;
        let driver = UdpDriver::new(udp.port, self.options.clone(), underlay.clone(), sides);
        let state = State {
            backend: peer::KIND.to_owned(),
            networks: config.networks.map(|_, network| network.network),
            ..State::default()
        };
        reconcile::register(driver, kernel, registration, state).await
    }
}

/// The local and the published address of an enabled family.
pub(crate) fn addresses(underlay: &Underlay, family: Family) -> Result<(IpAddr, IpAddr), String> {
    let both = underlay.local.get(family).zip(underlay.published.get(family));
    both.map(|(local, published)| (*local, *published)).ok_or_else(|| {
        format!("{family} is enabled, but underlay link {} has no {family} address", underlay.name)
    })
}
