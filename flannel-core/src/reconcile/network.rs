//! The network of every backend that uses the reconcile loop: from a driver to a lease and a running loop.

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::drivers::Drivers;
use super::{Devices, Driver, Reconciler};
use crate::addr::{Mtu, Subnet};
use crate::backend::{BackendError, Driven, HostProblem, Network, NetworkStatus, Probing, Registration};
use crate::events::{NetworkEvent, NetworkEventSender, NetworkEvents};
use crate::heartbeat::Pulse;
use crate::inspect::Inspector;
use crate::kernel::{Kernel, LinkAddress};
use crate::lease::{Lease, LeaseAttrs};
use crate::state_file::{HostIdentity, State};
use crate::subnet::{LeaseStream, SubnetError, SubnetManager};
use crate::underlay::Follower;

/// How many times other backend data is chosen at the start. It is drawn from far more values than there are nodes, so
/// even a second attempt is rare.
const MOST_CLAIMED: usize = 8;

/// A registered backend with its reconcile loop.
struct DrivenNetwork {
    lease: Lease,
    overlay_mtu: Mtu,
    reconciler: Reconciler<Drivers>,
}

/// Registers a backend that is a [`Driver`]: makes its devices, acquires the lease with its attributes, and puts the
/// objects that this node itself needs.
///
/// The devices come first, so that the published data is true from the first moment.
pub fn register(
    driven: Driven,
    kernel: Box<dyn Kernel>,
    registration: Registration<'_>,
) -> BoxFuture<'_, Result<Box<dyn Network>, BackendError>> {
    // As a trait object the loop is compiled here, and not again in every crate that awaits it.
    Box::pin(bring_up(driven, kernel, registration))
}

async fn bring_up(
    driven: Driven,
    mut kernel: Box<dyn Kernel>,
    registration: Registration<'_>,
) -> Result<Box<dyn Network>, BackendError> {
    super::drivers::check_further(registration.beside, registration.config)?;
    let state = driven.state.clone();
    let mut drivers = Drivers::new(driven, &registration);
    drivers.recall(&mut *kernel, registration.previous).await;
    let events = registration.events.cloned().unwrap_or_default();
    let devices = ensure_devices(&mut drivers, &mut *kernel, &events).await?;
    let overlay_mtu = devices.overlay_mtu.unwrap_or(registration.underlay.mtu);
    let (host, addresses) = read_host(&mut *kernel, &state).await?;
    registration.subnets.avoid(&registration.underlay.local);
    let lease = acquire(&mut drivers, &mut *kernel, registration.subnets, &events).await?;
    debug!(subnet = %lease.key, underlay = registration.underlay.name, %overlay_mtu, "lease acquired");
    drivers.set_lease(&lease);
    let mut state = State {
        store: registration.subnets.place(),
        config: Some(registration.config.clone()),
        own: Some(lease.clone()),
        wanted_ips: registration.subnets.wanted_ips().await?,
        host_macs: host.macs,
        ..state
    };
    if let Some(previous) = registration.previous {
        let published = previous.own.iter().flat_map(|own| own.attrs.public_ips.iter().map(|(_, ip)| *ip));
        state.remember_ips(previous.former_ips.iter().copied().chain(published));
    }
    let networks: Vec<Subnet> = state.networks.iter().map(|(_, network)| *network).collect();
    let devices: Vec<String> = state.devices.iter().map(|device| device.name.clone()).collect();
    let mut reconciler = Reconciler::new(drivers, kernel, lease.key, state, registration.previous);
    reconciler.events = events;
    reconciler.netns = Some(registration.netns.clone());
    reconciler.advise(registration.subnets.remedy());
    reconciler.place(registration.underlay.link, &addresses);
    if let Some(options) = registration.chosen_by {
        let mut options = options.clone();
        options.overlay.learn(networks, lease.key.subnets().iter().map(|(_, subnet)| *subnet), devices);
        reconciler.follow(Follower::new(options, registration.underlay.clone()));
    }
    if let Some(changes) = registration.subnets.config_changes() {
        reconciler.follow_config(registration.config.clone(), changes);
    }
    if let Some(told) = registration.told {
        reconciler.fold_config(Ok(told.clone()));
    }
    if registration.blackholes {
        reconciler.keep_blackholes();
    }
    reconciler.prepare().await?;
    Ok(Box::new(DrivenNetwork { lease, overlay_mtu, reconciler }))
}

async fn ensure_devices(
    driver: &mut impl Driver,
    kernel: &mut dyn Kernel,
    events: &NetworkEventSender,
) -> Result<Devices, BackendError> {
    let mut devices = driver.ensure_devices(kernel).await.map_err(|source| BackendError::Kernel {
        what: "read the links of the backend".to_owned(),
        source,
    })?;
    for event in devices.events.drain(..) {
        events.send(event);
    }
    match devices.problems.text() {
        Some(problem) => Err(HostProblem::Device(problem).into()),
        None => Ok(devices),
    }
}

/// Acquires the lease. While a lease of another node has the same backend data, it chooses other data.
async fn acquire(
    driver: &mut impl Driver,
    kernel: &mut dyn Kernel,
    subnets: &dyn SubnetManager,
    events: &NetworkEventSender,
) -> Result<Lease, BackendError> {
    for _ in 0..MOST_CLAIMED {
        let before = driver.attrs().backend_data;
        match subnets.acquire_lease(&driver.attrs()).await {
            Err(SubnetError::Claimed { key, family })
                if driver.resign(&[family], &mut std::iter::empty()) =>
            {
                let after = driver.attrs().backend_data;
                let [before, after] =
                    [before, after].map(|data| data.get(family).map(|data| data.as_str().to_owned()));
                let lease = key.to_string();
                events.send(NetworkEvent::BackendDataChanged { family, lease, before, after });
                ensure_devices(driver, kernel, events).await?;
            }
            acquired => return Ok(acquired?),
        }
    }
    Ok(subnets.acquire_lease(&driver.attrs()).await?)
}

/// Reads what distinguishes this host from one with a copy of its disk, and its addresses.
async fn read_host(
    kernel: &mut dyn Kernel,
    state: &State,
) -> Result<(HostIdentity, Vec<LinkAddress>), BackendError> {
    let unread =
        |source| BackendError::Kernel { what: "read the host's links and addresses".to_owned(), source };
    let links = kernel.links().await.map_err(unread)?;
    let addresses = kernel.addresses().await.map_err(unread)?;
    Ok((HostIdentity::of(&links, &addresses, &state.networks), addresses))
}

#[async_trait]
impl Network for DrivenNetwork {
    fn lease(&self) -> &Lease {
        &self.lease
    }

    fn overlay_mtu(&self) -> Mtu {
        self.overlay_mtu
    }

    fn status(&self) -> watch::Receiver<NetworkStatus> {
        self.reconciler.status()
    }

    fn events(&self) -> NetworkEvents {
        self.reconciler.events()
    }

    fn inspector(&self) -> Option<Inspector> {
        Some(self.reconciler.inspector())
    }

    fn probing(&self) -> Option<Probing> {
        self.reconciler.driver.probing()
    }

    fn probing_changes(&self) -> Option<watch::Receiver<Option<Probing>>> {
        Some(self.reconciler.probing.subscribe())
    }

    fn state(&self) -> watch::Receiver<State> {
        self.reconciler.state()
    }

    fn attrs(&self) -> watch::Receiver<LeaseAttrs> {
        self.reconciler.attrs()
    }

    fn pulse(&self) -> Option<Pulse> {
        Some(self.reconciler.pulse())
    }

    async fn run(
        self: Box<Self>,
        leases: LeaseStream,
        cancel: CancellationToken,
    ) -> Result<(), BackendError> {
        self.reconciler.run(leases, cancel).await
    }
}
