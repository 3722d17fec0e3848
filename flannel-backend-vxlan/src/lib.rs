//! VXLAN backend: pod packets travel between nodes in UDP, through one kernel VXLAN device per address
//! family.
//!
//! # The way of a packet
//! A packet to a pod of another node takes the route `subnet via base dev flannel.1 onlink`. The gateway is the base
//! address of the peer's subnet, which no pod has. A permanent neighbour entry maps it to the MAC of the peer's VTEP,
//! and an FDB entry maps that MAC to the peer's underlay address. The kernel wraps the frame in UDP (RFC 7348) and
//! sends it there. No packet passes through user space, and none has to wait for address resolution.
//!
//! # What this crate adds to the core
//! [`VxlanBackend`] implements [`flannel_core::backend::Backend`]. It makes the devices, publishes their MACs in the
//! lease, and gives the reconcile loop a driver that translates a lease into a few objects for each family. Wire
//! formats, device names and attributes are those of Go flannel, so that both can share a cluster and take over from
//! each other on a node.
//!
//! Where the kernel has next-hop objects, routes go through them ([`NextHopObjects`]).
//!
//! With `DirectRouting` a peer whose underlay address is on-link gets a plain route to its node instead
//! ([`flannel_core::on_link`] decides). All other objects of the peer stay, so a change costs one replaced route.

mod config;
mod device;
mod driver;
mod next_hops;
mod overhead;
mod peer;
#[cfg(test)]
mod tests;
mod tunnel;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use flannel_core::addr::{Family, MacAddr, PerFamily};
use flannel_core::backend::{
    Backend, BackendError, DeviceKind, Driven, DriverMaker, DriverNeeds, HostProblem, Network, Registration,
    Underlay,
};
use flannel_core::config::{ConfigError, NetworkConfig};
use flannel_core::firewall::gate::{Desk, Gate, GateOptions};
use flannel_core::kernel::{Kernel, KernelError, OpenKernel};
use flannel_core::lease::LeaseAttrs;
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;
use flannel_core::reconcile;
use flannel_core::state_file::{Device, State};
use tracing::warn;

pub use config::VxlanConfig;
pub use next_hops::NextHopObjects;
pub use peer::VxlanData;
pub use tunnel::TxChecksum;

use driver::{Side, VxlanDriver};
use next_hops::Form;
use tunnel::Checksums;

/// Draws a VTEP MAC for a node that has none, or whose MAC another node had first.
pub type DrawMac = dyn Fn() -> MacAddr + Send + Sync;

/// The VXLAN backend.
pub struct VxlanBackend {
    open: Box<OpenKernel>,
    next_hop_objects: NextHopObjects,
    told_form: Arc<Mutex<Option<Form>>>,
    draw_mac: Arc<DrawMac>,
    gate: Option<GateOptions>,
    tx_checksum: TxChecksum,
}

impl Default for VxlanBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl VxlanBackend {
    /// A backend for the real kernel.
    pub fn new() -> Self {
        Self::with_kernel(|netns| Ok(Box::new(Netlink::open_in(netns)?)))
    }

    /// A backend for another kernel, such as a fake.
    pub fn with_kernel(
        open: impl Fn(&Netns) -> Result<Box<dyn Kernel>, KernelError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            open: Box::new(open),
            next_hop_objects: NextHopObjects::default(),
            told_form: Arc::default(),
            draw_mac: Arc::new(MacAddr::random),
            gate: None,
            tx_checksum: TxChecksum::Keep,
        }
    }

    /// Sets what to do with packets from hosts that are not nodes. Without it nothing is done, and a table of an
    /// earlier run stays.
    #[must_use]
    pub fn strict_underlay(self, gate: GateOptions) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// Sets whether the devices complete the checksums of pods' packets. By default they are left as they are.
    #[must_use]
    pub fn tx_checksum(self, tx_checksum: TxChecksum) -> Self {
        Self { tx_checksum, ..self }
    }

    /// Sets how new VTEP MACs are drawn. By default they are random.
    #[must_use]
    pub fn draw_macs(self, draw_mac: impl Fn() -> MacAddr + Send + Sync + 'static) -> Self {
        Self { draw_mac: Arc::new(draw_mac), ..self }
    }

    /// Sets whether routes go through next-hop objects. By default they do if the kernel has them.
    #[must_use]
    pub fn next_hop_objects(self, next_hop_objects: NextHopObjects) -> Self {
        Self { next_hop_objects, ..self }
    }
}

#[async_trait]
impl Backend for VxlanBackend {
    fn kind(&self) -> &'static str {
        peer::KIND
    }

    fn devices(&self) -> &'static [DeviceKind] {
        const { &[DeviceKind::new("flannel.", "vxlan"), DeviceKind::new("flannel-v6.", "vxlan")] }
    }

    fn check(&self, config: &NetworkConfig) -> Result<(), ConfigError> {
        VxlanConfig::of(config).map(drop)
    }

    fn drivers(&self) -> Option<&dyn DriverMaker> {
        Some(self)
    }

    async fn register(&self, registration: Registration<'_>) -> Result<Box<dyn Network>, BackendError> {
        VxlanConfig::of(registration.config)?;
        let mut kernel = (self.open)(registration.netns).map_err(BackendError::no_kernel)?;
        let Registration { underlay, subnets, previous, .. } = registration;
        let published = subnets.published_attrs(&underlay.published).await?;
        let stored = previous.and_then(|previous| previous.own.as_ref()).map(|own| &own.attrs);
        let known: Vec<&LeaseAttrs> = published.iter().chain(stored).collect();
        let driven = self.driver(DriverNeeds::of(&registration, &known), &mut *kernel).await?;
        reconcile::register(driven, kernel, registration).await
    }
}

#[async_trait]
impl DriverMaker for VxlanBackend {
    fn lease_type(&self) -> &'static str {
        peer::KIND
    }

    fn allows_detours(&self) -> bool {
        true
    }

    async fn driver(&self, needs: DriverNeeds<'_>, kernel: &mut dyn Kernel) -> Result<Driven, BackendError> {
        let DriverNeeds { netns, config, underlay, known, .. } = needs;
        let vxlan = VxlanConfig::of(config)?;
        for key in config.backend.names_besides(&config::KEYS) {
            warn!(key, "Backend key has no effect on Linux");
        }
        let gate = match &self.gate {
            Some(options) => Some(open_gate(netns, options).await?),
            None => None,
        };
        let sides = sides(config, &vxlan, underlay, known, &*self.draw_mac, kernel).await?;
        let mut driver = VxlanDriver::new(vxlan, underlay.clone(), sides, self.next_hop_objects);
        driver.told_form = Arc::clone(&self.told_form);
        driver.draw_mac = Arc::clone(&self.draw_mac);
        driver.gate = gate;
        driver.checksums = Checksums::new(self.tx_checksum);
        Ok(Driven::new(peer::KIND, driver, state(config, &vxlan)))
    }
}

async fn open_gate(netns: &Netns, options: &GateOptions) -> Result<(Gate, Desk), BackendError> {
    Gate::open(netns, options.clone()).await.map_err(|source| BackendError::Kernel {
        what: format!(
            "keep strangers out of the tunnels (--strict-underlay={}), which takes a kernel with nf_tables (modprobe \
             nf_tables) and CAP_NET_ADMIN",
            options.mode
        ),
        source,
    })
}

/// Determines the addresses and the MAC of each enabled family. The MAC is the one that this node published, by the
/// first of `known` that has one, else that of an existing device, else a new one.
async fn sides(
    config: &NetworkConfig,
    vxlan: &VxlanConfig,
    underlay: &Underlay,
    known: &[&LeaseAttrs],
    draw_mac: &DrawMac,
    kernel: &mut dyn Kernel,
) -> Result<PerFamily<Side>, BackendError> {
    let mut sides = PerFamily::default();
    for (family, network) in config.networks.iter() {
        let (local, published_ip) = underlay.addresses(family).map_err(HostProblem::from)?;
        let name = device::device_name(vxlan, family);
        let found = kernel.link(&name).await;
        let found =
            found.map_err(|source| BackendError::Kernel { what: format!("read link {name}"), source })?;
        let adopted = found.filter(|link| link.vxlan.is_some()).and_then(|link| link.mac);
        let recorded = known.iter().find_map(|attrs| peer::published_mac(&attrs.backend_data, family));
        let mac = recorded.or(adopted).filter(|mac| mac.is_unicast()).unwrap_or_else(draw_mac);
        let side = Side { network: network.network, local, published: published_ip, mac, subnet: None };
        *sides.get_mut(family) = Some(side);
    }
    Ok(sides)
}

/// What to store for the next start, without the nodes.
fn state(config: &NetworkConfig, vxlan: &VxlanConfig) -> State {
    let device = |family| Device::vxlan(device::device_name(vxlan, family), vxlan.vni);
    State::of_backend(peer::KIND, config).devices(config.families().map(device))
}

/// What this node publishes.
fn attrs(vxlan: &VxlanConfig, underlay: &Underlay, sides: &PerFamily<Side>) -> LeaseAttrs {
    let data = |family: Family| sides.get(family).map(|side| peer::own_data(vxlan.vni, side.mac));
    LeaseAttrs {
        // An address of a family that is not enabled is published too if the operator gave one, as upstream does.
        public_ips: underlay.published,
        backend_type: peer::KIND.to_owned(),
        backend_data: PerFamily::from_fn(data),
        ..LeaseAttrs::default()
    }
}

/// Compiles the code in the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
