//! What several checks need to know, read once: links, the files of the agent, and the answers of the store.

mod agents;
mod devices;
mod others;
mod store;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use flannel_core::addr::{Family, LinkIndex, MacAddr, Mtu, PerFamily, Subnet};
use flannel_core::backend::Backend;
use flannel_core::config::NetworkConfig;
use flannel_core::error::chain;
use flannel_core::guarded;
use flannel_core::kernel::{Link, LinkAddress};
use flannel_core::lease::Lease;
use flannel_core::state_file::{self, Recalled, State};
use flannel_core::subnet_file::{self, MAX_BYTES, Previous};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::finding::Skip;
use crate::host::{Files, Host};
use crate::places::Places;

pub(crate) use agents::{AgentProcess, capabilities};
pub(crate) use devices::carries;
pub(crate) use others::OtherAgent;
pub use store::StoreToAsk;
pub(crate) use store::{Answers, Config, Outage};

/// The port of vxlan and of udp unless the config says otherwise (`vxlan_port` of the Linux kernel; upstream's
/// `pkg/backend/udp`).
const VXLAN_PORT: u16 = 8472;
const UDP_PORT: u16 = 8285;
/// The ports of wireguard's devices unless the config says otherwise (upstream's `pkg/backend/wireguard`).
const WIREGUARD_PORT: u16 = 51820;
const WIREGUARD_PORT_V6: u16 = 51821;

/// A UDP port of the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TunnelPort {
    pub(crate) port: u16,
    /// The key of `Backend` that sets it.
    pub(crate) key: &'static str,
    /// The device that receives there, if that is known by its name.
    pub(crate) device: Option<&'static str>,
}

/// All that checks may look at.
pub(crate) struct Facts {
    pub(crate) host: Host,
    pub(crate) places: Places,
    /// The status of the running agent as JSON, if somebody asked it.
    pub(crate) status: Option<Value>,
    links: Result<Vec<Link>, String>,
    addresses: Result<Vec<LinkAddress>, String>,
    /// The text of the subnet file, or why there is none.
    subnet_text: Result<String, std::io::Error>,
    pub(crate) previous: Previous,
    pub(crate) recalled: Recalled,
    /// The agents with our subnet file: one, as a rule.
    pub(crate) agents: Vec<AgentProcess>,
    /// The agents with another one, each with a network of its own.
    pub(crate) others: Vec<OtherAgent>,
    /// The backends that the agent has; empty if nobody said it.
    backends: Vec<Arc<dyn Backend>>,
    store: Option<StoreToAsk>,
    answers: OnceCell<Answers>,
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts")
            .field("host", &self.host)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

/// What a vxlan node publishes of itself (upstream's `pkg/backend/vxlan`, `vxlanLeaseAttrs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct VtepData {
    #[serde(rename = "VtepMAC")]
    mac: MacAddr,
}

impl Facts {
    /// Reads what needs no store.
    pub(crate) async fn read(
        host: Host,
        places: Places,
        store: Option<StoreToAsk>,
        status: Option<Value>,
        backends: Vec<Arc<dyn Backend>>,
    ) -> Result<Self, Skip> {
        let (links, addresses) = match host.open_kernel() {
            Ok(mut kernel) => {
                let said = |error| chain(&error);
                (kernel.links().await.map_err(said), kernel.addresses().await.map_err(said))
            }
            Err(error) => (Err(chain(&error)), Err(chain(&error))),
        };
        let (subnet_path, state_path): (PathBuf, PathBuf) =
            (host.path(&places.subnet_file), host.path(places.state()));
        let files = move || {
            let text = guarded::read(&subnet_path, MAX_BYTES);
            let text = text.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            (text, subnet_file::read_previous(&subnet_path), state_file::read(&state_path))
        };
        let (subnet_text, previous, recalled) = host.blocking(files).await?;
        let own_file = places.subnet_file.clone();
        let look = move |files: &Files| {
            let all = agents::find(files).into_iter();
            let (own, others): (Vec<_>, Vec<_>) =
                all.partition(|agent| others::is_same(&agent.subnet_file, &own_file));
            (own, others.into_iter().map(|agent| OtherAgent::read(files, agent)).collect())
        };
        let (agents, others) = host.look(look).await?;
        let answers = OnceCell::new();
        Ok(Self {
            host,
            places,
            status,
            links,
            addresses,
            subnet_text,
            previous,
            recalled,
            agents,
            others,
            backends,
            store,
            answers,
        })
    }

    pub(crate) fn links(&self) -> Result<&[Link], Skip> {
        self.links.as_deref().map_err(|why| Skip::new(format!("links can't be read: {why}")))
    }

    pub(crate) fn addresses(&self) -> Result<&[LinkAddress], Skip> {
        self.addresses.as_deref().map_err(|why| Skip::new(format!("addresses can't be read: {why}")))
    }

    pub(crate) fn link(&self, index: LinkIndex) -> Option<&Link> {
        self.links.as_deref().ok()?.iter().find(|link| link.index == index)
    }

    /// The subnet file, or why it can't be read.
    pub(crate) fn subnet_text(&self) -> &Result<String, std::io::Error> {
        &self.subnet_text
    }

    /// A value of the subnet file.
    pub(crate) fn subnet_value(&self, name: &str) -> Option<String> {
        subnet_file::value_of(self.subnet_text.as_ref().ok()?, name)
    }

    /// The largest packet of a pod, by the subnet file.
    pub(crate) fn pod_mtu(&self) -> Option<Mtu> {
        self.subnet_value("FLANNEL_MTU")?.parse().ok().map(Mtu)
    }

    /// What the state file has.
    pub(crate) fn state(&self) -> Result<&State, Skip> {
        let path = self.places.state();
        self.recalled.state.as_ref().ok_or_else(|| match &self.recalled.problem {
            Some(why) if self.recalled.is_denied => {
                Skip::denied(format!("the state file {} {why}", path.display()))
            }
            Some(why) => Skip::new(format!("the state file {} can't be used: {why}", path.display())),
            None => Skip::new(format!("there is no state file {}", path.display())),
        })
    }

    /// This node's lease, by the state file.
    pub(crate) fn own(&self) -> Option<&Lease> {
        self.recalled.state.as_ref()?.own.as_ref()
    }

    /// The same, for checks that can't be done without.
    pub(crate) fn needed_own(&self) -> Result<&Lease, Skip> {
        self.state()?.own.as_ref().ok_or_else(|| Skip::new("the state file has no lease of this node"))
    }

    /// Why no other node is known, for checks that can't be done without.
    pub(crate) fn no_peer(&self) -> Skip {
        self.state().err().unwrap_or_else(|| Skip::new("no other node is known to the state file"))
    }

    /// The leases of other nodes, by the state file.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Lease> {
        let state = self.recalled.state.as_ref();
        let own = self.own().map(|own| own.key);
        let leases = state.into_iter().flat_map(|state| state.leases.values());
        leases.map(|lease| &lease.lease).filter(move |lease| Some(lease.key) != own)
    }

    /// This node's subnets, by the state file or else the subnet file.
    pub(crate) fn subnets(&self) -> PerFamily<Subnet> {
        let own = self.own().map(|own| own.key).or(self.previous.key);
        own.map(|key| key.subnets()).unwrap_or_default()
    }

    /// The overlay networks, by the state file or else the subnet file.
    pub(crate) fn networks(&self) -> PerFamily<Subnet> {
        let state = self.recalled.state.as_ref().map(|state| state.networks);
        state.filter(|networks| !networks.is_empty()).unwrap_or(self.previous.networks)
    }

    /// The same, else those of the config in the store: where no agent has run yet.
    pub(crate) async fn all_networks(&self) -> PerFamily<Subnet> {
        let known = self.networks();
        if !known.is_empty() {
            return known;
        }
        match self.answers().await.map(|answers| &answers.config) {
            Ok(Config::Read(config)) => config.networks.map(|_, network| network.network),
            _ => known,
        }
    }

    /// The backends that the agent has; empty if nobody said it.
    pub(crate) fn backends(&self) -> &[Arc<dyn Backend>] {
        &self.backends
    }

    /// The network config that the agent used last.
    pub(crate) fn config(&self) -> Option<&NetworkConfig> {
        self.recalled.state.as_ref()?.config.as_ref()
    }

    /// The kind of the backend; `None` if nothing on this host tells it.
    pub(crate) fn backend(&self) -> Option<&str> {
        let state = self.recalled.state.as_ref()?;
        Some(state.backend.as_str()).filter(|kind| !kind.is_empty())
    }

    /// The UDP ports of the tunnel, with the keys of the network config that set them: one, or one for each device with a port
    /// of its own. There are none for a backend without tunnel, or an unknown one.
    pub(crate) fn tunnel_ports(&self) -> Vec<TunnelPort> {
        let of = |key, usual, device: Option<&'static str>| {
            let configured = self.config().and_then(|config| config.backend.get::<u16>(key).ok()?);
            let port = configured.filter(|port| *port > 0).unwrap_or(usual);
            TunnelPort { port, key, device }
        };
        let has = |name: &str| {
            let devices = self.recalled.state.iter().flat_map(|state| &state.devices);
            devices.clone().any(|device| device.name == name)
        };
        match self.backend() {
            Some("vxlan") => vec![of("Port", VXLAN_PORT, None)],
            Some("udp") => vec![of("Port", UDP_PORT, None)],
            Some("wireguard") => {
                let both = [
                    of("ListenPort", WIREGUARD_PORT, Some("flannel-wg")),
                    of("ListenPortV6", WIREGUARD_PORT_V6, Some("flannel-wg-v6")),
                ];
                both.into_iter().filter(|it| it.device.is_some_and(has)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The UDP port of the tunnel that carries a family; `None` if there is none.
    pub(crate) fn tunnel_port(&self, family: Family) -> Option<u16> {
        let ports = self.tunnel_ports();
        let is_of_v6 = |it: &&TunnelPort| it.device == Some("flannel-wg-v6");
        let of_v6 = ports.iter().find(is_of_v6).filter(|_| family == Family::V6);
        of_v6.or(ports.first()).map(|it| it.port)
    }

    /// The links of others with an address in this node's subnet: the bridge of the pods, as a rule.
    pub(crate) fn gateway_links(&self) -> Vec<(Family, &Link)> {
        let subnets = self.subnets();
        let overlay: Vec<_> = self.overlay_links().map(|link| link.index).collect();
        let addresses = self.addresses.as_deref().unwrap_or_default().iter();
        let inside = addresses.filter_map(|address| {
            let family = Family::of(address.addr.ip());
            let is_inside = subnets.get(family)?.contains(address.addr.ip());
            (is_inside && !overlay.contains(&address.link)).then_some((family, address.link))
        });
        inside.filter_map(|(family, index)| Some((family, self.link(index)?))).collect()
    }

    /// The link with an underlay address that this node publishes.
    pub(crate) fn underlay_link(&self, family: Family) -> Option<&Link> {
        let own = self.own()?.attrs.public_ips.get(family).copied()?;
        self.link_with(own)
    }

    /// The link that has an address.
    pub(crate) fn link_with(&self, ip: IpAddr) -> Option<&Link> {
        let addresses = self.addresses.as_deref().ok()?;
        self.link(addresses.iter().find(|address| address.addr.ip() == ip)?.link)
    }

    /// The answers of the store, which is asked once for all checks.
    pub(crate) async fn answers(&self) -> Result<&Answers, Skip> {
        let store = self.store.as_ref().ok_or_else(|| Skip::new("no store was given"))?;
        Ok(self.answers.get_or_init(|| store.ask()).await)
    }

    /// The answers of a store that answered.
    pub(crate) async fn answered(&self) -> Result<&Answers, Skip> {
        let answers = self.answers().await?;
        match answers.outage() {
            Some(Outage::Silent(why)) => Err(Skip::new(format!("the store did not answer: {why}"))),
            Some(Outage::Unusable(why)) => Err(Skip::new(format!("the store can't be asked: {why}"))),
            Some(Outage::Denied(why)) => Err(Skip::denied(format!("the store can't be asked: {why}"))),
            None => Ok(answers),
        }
    }
}

/// The VTEP MAC that a lease publishes in a family.
pub(crate) fn vtep_mac(lease: &Lease, family: Family) -> Option<MacAddr> {
    let data: VtepData = lease.attrs.backend_data.get(family)?.decode().ok()?;
    Some(data.mac)
}
