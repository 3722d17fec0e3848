//! What a WireGuard node publishes, and what a lease needs from this backend. Pure. Upstream:
//! `pkg/backend/wireguard/wireguard_network.go`.

use std::net::{IpAddr, SocketAddr};

use flannel_core::addr::{Family, LinkIndex, PerFamily, Subnet};
use flannel_core::dataplane::{Object, ROUTE_PROTOCOL, Route, Through};
use flannel_core::gojson::GoObject;
use flannel_core::lease::{BackendData, Lease, LeaseAttrs};
use flannel_core::peers::{Claim, Peer, PeerError};
use serde::Serialize;

use crate::config::{Mode, WireguardConfig};
use crate::key::PublicKey;

/// The name under which this backend publishes leases.
pub(crate) const KIND: &str = "wireguard";

/// `BackendData` and `BackendV6Data` of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WireguardData {
    /// The public key of the node's device.
    pub public_key: PublicKey,
    /// The UDP port that it receives on. Old writers left it out; then it is the port of the reader's own config.
    pub port: Option<u16>,
}

/// The data as serde writes it. The names and their order are upstream's.
#[derive(Serialize)]
struct Wire {
    #[serde(rename = "PublicKey")]
    public_key: String,
    #[serde(rename = "Port")]
    port: u16,
}

impl WireguardData {
    /// Reads what a node published, with names in any case.
    pub fn decode(data: &BackendData) -> Result<Self, String> {
        let object = GoObject::parse(data.as_str()).map_err(|error| format!("is no JSON object: {error}"))?;
        let key: Option<String> =
            object.get("PublicKey").map_err(|error| format!("has a bad PublicKey: {error}"))?;
        let key = key.ok_or("is no use: PublicKey is missing")?;
        let public_key = key.parse().map_err(|error| format!("is no use: PublicKey {error}"))?;
        let port: Option<i64> = object.get("Port").map_err(|error| format!("has a bad Port: {error}"))?;
        let port = port.filter(|port| *port != 0).map(u16::try_from).transpose();
        let port = port.map_err(|_| "is no use: Port is none of UDP")?;
        Ok(Self { public_key, port })
    }

    /// What a node publishes for one family.
    fn encode(public_key: PublicKey, port: u16) -> BackendData {
        let wire = Wire { public_key: public_key.to_string(), port };
        BackendData::encode(&wire).expect("a text and a number always encode")
    }
}

/// What this node publishes for the families of its pods: for each the port of the device that carries it. Go flannel
/// publishes `ListenPortV6` for IPv6 in each mode, although a single device does not receive there.
pub(crate) fn attrs(
    config: &WireguardConfig,
    key: PublicKey,
    families: &[Family],
    published: PerFamily<IpAddr>,
) -> LeaseAttrs {
    let data =
        |family: Family| families.contains(&family).then(|| WireguardData::encode(key, config.port(family)));
    LeaseAttrs {
        // An address of a family that is not enabled is published too if the operator gave one, as upstream does.
        public_ips: published,
        backend_type: KIND.to_owned(),
        backend_data: PerFamily::from_fn(data),
    }
}

/// How peers are reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paths<'a> {
    pub(crate) config: &'a WireguardConfig,
    /// The device of each family of pods; in the modes with a single device it is the same for both.
    pub(crate) links: &'a PerFamily<LinkIndex>,
    /// The addresses that this node publishes.
    pub(crate) ours: &'a PerFamily<IpAddr>,
}

/// The objects and claims of another node's lease: a route for each subnet, and a key with its endpoint for each
/// device.
pub(crate) fn peer(lease: &Lease, paths: &Paths<'_>) -> Result<Peer, PeerError> {
    PeerError::check_backend(&lease.attrs, KIND)?;
    let mut peer = Peer::default();
    for (family, subnet) in lease.key.subnets().iter() {
        peer.claims.push(Claim::Subnet(*subnet));
        let Some(link) = paths.links.get(family) else { continue };
        peer.objects.push(Object::Route(route(*subnet, *link)));
        let by = match paths.config.mode {
            Mode::Separate => family,
            _ => by_family(paths, &lease.attrs.public_ips),
        };
        let Endpoint { key, at } = endpoint(&lease.attrs, by, paths.config)?;
        let key = Claim::Key(*link, key.0, at.ip(), at.port());
        let of_family = lease.attrs.underlay(family).ok().map(Claim::Underlay);
        for claim in [Claim::Underlay(at.ip()), key].into_iter().chain(of_family) {
            if !peer.claims.contains(&claim) {
                peer.claims.push(claim);
            }
        }
    }
    if peer.objects.is_empty() && !paths.links.is_empty() {
        return Err(PeerError::no_common_family());
    }
    Ok(peer)
}

/// The route to a subnet through a device: WireGuard itself knows which peer has it.
pub(crate) fn route(dst: Subnet, link: LinkIndex) -> Route {
    Route {
        dst,
        metric: Route::default_metric(dst.family()),
        via: None,
        link: Some(link),
        onlink: false,
        through: Through::Itself,
        protocol: ROUTE_PROTOCOL,
        plain: true,
    }
}

/// Where a node is reached, and its key.
struct Endpoint {
    key: PublicKey,
    at: SocketAddr,
}

/// The endpoint that a node publishes in one family of the underlay.
fn endpoint(attrs: &LeaseAttrs, by: Family, config: &WireguardConfig) -> Result<Endpoint, PeerError> {
    let unreadable = |why: String| PeerError::Unreadable(format!("{by}: {why}"));
    let address = attrs.underlay(by).map_err(|why| unreadable(why.to_string()))?;
    let data = |family: Family| -> Result<Option<WireguardData>, PeerError> {
        let bad = |why: String| unreadable(format!("{} {why}; {}", data_field(family), LeaseAttrs::MEND));
        attrs.backend_data.get(family).map(WireguardData::decode).transpose().map_err(bad)
    };
    let missing = || unreadable(format!("{} is missing; {}", data_field(by), LeaseAttrs::MEND));
    let (key, port) = match config.mode {
        Mode::Separate => {
            let data = data(by)?.ok_or_else(missing)?;
            (data.public_key, data.port.unwrap_or(config.port(by)))
        }
        // A single device has one key and one port. What Go flannel publishes for IPv6 is no port of it.
        _ => match (data(Family::V4)?, data(Family::V6)?) {
            (Some(v4), _) => (v4.public_key, v4.port.unwrap_or(config.listen_port)),
            (None, Some(v6)) => {
                let port = v6.port.filter(|port| *port != config.listen_port_v6);
                (v6.public_key, port.unwrap_or(config.listen_port))
            }
            (None, None) => return Err(missing()),
        },
    };
    Ok(Endpoint { key, at: SocketAddr::new(address, port) })
}

/// By which family of the underlay a peer of a single device is reached, by upstream's rule: by IPv4, unless that would
/// be behind a NAT and both have IPv6 addresses of the world.
fn by_family(paths: &Paths<'_>, theirs: &PerFamily<IpAddr>) -> Family {
    let is_private = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if ip.is_private());
    let is_global = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if !ip.is_unique_local());
    match paths.config.mode {
        Mode::Ipv4 => Family::V4,
        Mode::Ipv6 => Family::V6,
        Mode::Separate | Mode::Auto => {
            let Some(v6) = &theirs.v6 else { return Family::V4 };
            let (Some(v4), Some(_)) = (&theirs.v4, &paths.ours.v4) else { return Family::V6 };
            let both_global = is_global(v6) && paths.ours.v6.as_ref().is_some_and(is_global);
            if is_private(v4) && both_global { Family::V6 } else { Family::V4 }
        }
    }
}

/// The member of a record that holds a family's data.
fn data_field(family: Family) -> &'static str {
    match family {
        Family::V4 => "BackendData",
        Family::V6 => "BackendV6Data",
    }
}

#[cfg(test)]
mod tests;
