//! The backend: from a network config to a running network.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flannel_backend_udp::Layout;
use flannel_core::addr::PerFamily;
use flannel_core::backend::{
    Backend, BackendError, DeviceKind, Driven, DriverMaker, DriverNeeds, KeyFile, Network, Registration,
};
use flannel_core::config::{ConfigError, NetworkConfig};
use flannel_core::kernel::{Kernel, KernelError, Link, OpenKernel};
use flannel_core::lease::Lease;
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;
use flannel_core::reconcile;
use flannel_core::state_file::{Device, State};
use tracing::{info, warn};

use crate::config::{KEYS, WireguardConfig};
use crate::driver::{Rotation, Side, WireguardDriver};
use crate::key::PublicKey;
use crate::key_file;
use crate::nat::NatOptions;
use crate::peer;
use crate::provider::{Chosen, Implementation, InKernel, Provider};

/// The WireGuard backend.
pub struct WireguardBackend {
    open: Box<OpenKernel>,
    makers: Makers,
    layout: Layout,
    key_file: PathBuf,
    rotate_every: Option<Duration>,
    nat: NatOptions,
}

/// Who makes the devices.
enum Makers {
    /// Whom an implementation means on this host.
    Of(Implementation),
    /// This one, whatever the host has.
    Given(Arc<dyn Provider>),
}

impl Default for WireguardBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl WireguardBackend {
    /// A backend with devices of the real kernel where that has them, else in user space, and with the key file of Go
    /// flannel ([`key_file::DEFAULT_PATH`]).
    pub fn new() -> Self {
        let open = |netns: &Netns| Ok(Box::new(Netlink::open_in(netns)?) as Box<dyn Kernel>);
        Self {
            open: Box::new(open),
            makers: Makers::Of(Implementation::default()),
            layout: Layout::default(),
            key_file: key_file::DEFAULT_PATH.into(),
            rotate_every: None,
            nat: NatOptions::default(),
        }
    }

    /// A backend for another kernel, such as a fake, and for other devices.
    pub fn with_kernel(
        open: impl Fn(&Netns) -> Result<Box<dyn Kernel>, KernelError> + Send + Sync + 'static,
        provider: Arc<dyn Provider>,
    ) -> Self {
        Self { open: Box::new(open), makers: Makers::Given(provider), ..Self::new() }
    }

    /// Sets who moves packets: the kernel or this process.
    #[must_use]
    pub fn implementation(self, implementation: Implementation) -> Self {
        Self { makers: Makers::Of(implementation), ..self }
    }

    /// Sets how many threads each device in user space has.
    #[must_use]
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// Sets the file with this node's private key. It is made if it is missing.
    #[must_use]
    pub fn key_file(self, path: impl Into<PathBuf>) -> Self {
        Self { key_file: path.into(), ..self }
    }

    /// Changes this node's key when it has been in use for this time, or up to a tenth longer. `None`, the default, is never.
    /// The age of a key is that of its file.
    #[must_use]
    pub fn rotate_every(self, interval: Option<Duration>) -> Self {
        Self { rotate_every: interval, ..self }
    }

    /// Sets what this node is to others across NATs: behind one, or a relay.
    #[must_use]
    pub fn nat(self, nat: NatOptions) -> Self {
        Self { nat, ..self }
    }
}

#[async_trait]
impl Backend for WireguardBackend {
    fn kind(&self) -> &'static str {
        peer::KIND
    }

    fn devices(&self) -> &'static [DeviceKind] {
        const {
            &[
                DeviceKind::named("flannel-wg", "wireguard"),
                DeviceKind::named("flannel-wg-v6", "wireguard"),
                DeviceKind::named("flannel-wg", "tun"),
                DeviceKind::named("flannel-wg-v6", "tun"),
                // Those of a change of keys.
                DeviceKind::named("flannel-wg-r", "wireguard"),
                DeviceKind::named("flannel-wg-v6-r", "wireguard"),
                DeviceKind::named("flannel-wg-r", "tun"),
                DeviceKind::named("flannel-wg-v6-r", "tun"),
            ]
        }
    }

    /// The blackhole below the routes to peers is for the whole network.
    fn routes_whole_network(&self) -> bool {
        true
    }

    fn key_file(&self) -> Option<KeyFile> {
        Some(KeyFile::new(&self.key_file, key_file::public_key_of))
    }

    /// Peers with keys that no lease publishes. Devices in user space can be read by their own process alone.
    async fn strangers(
        &self,
        netns: &Netns,
        links: &[Link],
        leases: &[Lease],
    ) -> Result<Vec<String>, BackendError> {
        let is_ours = |link: &&Link| {
            let kind = link.kind.as_deref();
            self.devices().iter().any(|of| of.prefix == link.name && kind == Some("wireguard"))
        };
        let data = leases.iter().flat_map(|lease| lease.attrs.backend_data.iter());
        let data = data.filter_map(|(_, data)| peer::WireguardData::decode(data).ok());
        // A node that changes its key has two.
        let keys: BTreeSet<PublicKey> = data
            .flat_map(|it| [it.public_key].into_iter().chain(it.next.map(|next| next.public_key)))
            .collect();
        let provider = match &self.makers {
            Makers::Of(_) => &InKernel,
            Makers::Given(provider) => &**provider,
        };
        let mut found = Vec::new();
        for link in links.iter().filter(is_ours) {
            let unread = |source: io::Error| BackendError::Other {
                what: format!("read the peers of {}", link.name),
                source: Box::new(source),
            };
            let device = provider.open(netns, link).await.map_err(unread)?;
            let state = device.state().await.map_err(unread)?;
            for (key, peer) in state.peers.iter().filter(|(key, _)| !keys.contains(key)) {
                let ips: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
                found.push(format!("{} has the peer {key} with {}", link.name, ips.join(", ")));
            }
        }
        Ok(found)
    }

    fn check(&self, config: &NetworkConfig) -> Result<(), ConfigError> {
        WireguardConfig::of(config).map(drop)
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
impl DriverMaker for WireguardBackend {
    fn lease_type(&self) -> &'static str {
        peer::KIND
    }

    fn is_encrypted(&self) -> bool {
        true
    }

    async fn driver(&self, needs: DriverNeeds<'_>, _: &mut dyn Kernel) -> Result<Driven, BackendError> {
        let DriverNeeds { netns, config, underlay, previous, .. } = needs;
        let wireguard = WireguardConfig::of(config)?;
        for key in config.backend.names_besides(&KEYS) {
            warn!(key, "Backend key has no effect on wireguard");
        }
        let key = key_file::read_or_create(&self.key_file).map_err(|error| BackendError::Other {
            what: "get this node's WireGuard key".to_owned(),
            source: Box::new(error),
        })?;
        if let Some(why) = key_file::exposure(&self.key_file) {
            warn!(file = %self.key_file.display(), why, "this node's WireGuard key is not its own alone; used all the same");
        }
        let sides = PerFamily::try_from_fn(|family| {
            let Some(network) = config.networks.get(family) else { return Ok(None) };
            let (local, published) = underlay.addresses(family)?;
            Ok(Some(Side { network: network.network, local, published, subnet: None }))
        })
        .map_err(BackendError::Host)?;
        let recalled = previous.iter().flat_map(|previous| previous.leases.values());
        let recalled = recalled.map(|lease| lease.lease.clone()).collect();
        let chosen = match &self.makers {
            Makers::Of(implementation) => implementation.choose(netns, self.layout),
            Makers::Given(provider) => Chosen { provider: Arc::clone(provider), why: None },
        };
        info!(by = chosen.provider.name(), why = chosen.why, "WireGuard chosen");
        let kind = chosen.provider.kind();
        let own = previous.and_then(|previous| previous.own.as_ref()?.attrs.as_kind(peer::KIND, peer::KIND));
        let driver = WireguardDriver::new(
            netns.clone(),
            wireguard,
            underlay.clone(),
            sides,
            chosen,
            (key, self.key_file.clone()),
            Rotation::of(&self.key_file, self.rotate_every),
        )
        .recalling(recalled)
        .across_nats(self.nat, own.as_ref());
        let devices = driver.names().map(|name| Device::of_kind(name, kind)).collect::<Vec<_>>();
        let state = State::of_backend(peer::KIND, config).devices(devices);
        Ok(Driven::new(peer::KIND, driver, state))
    }
}

#[cfg(test)]
mod tests;
