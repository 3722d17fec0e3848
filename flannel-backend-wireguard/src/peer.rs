//! What a WireGuard node publishes, and what a lease needs from this backend. Pure. Upstream:
//! `pkg/backend/wireguard/wireguard_network.go`.

use std::net::{IpAddr, SocketAddr};

use flannel_core::addr::{Family, LinkIndex, PerFamily};
use flannel_core::dataplane::{Object, Route};
use flannel_core::gojson::GoObject;
use flannel_core::lease::{BackendData, Lease, LeaseAttrs};
use flannel_core::peers::{Claim, Peer, PeerError};
use serde::{Deserialize, Serialize};

use crate::config::{Mode, WireguardConfig};
use crate::key::PublicKey;
use crate::nat::NatData;
use crate::rotation::{Phase, Way};

/// The name under which this backend publishes leases.
pub(crate) const KIND: &str = "wireguard";

/// `BackendData` and `BackendV6Data` of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WireguardData {
    /// The public key of the node's device.
    pub public_key: PublicKey,
    /// The UDP port that it receives on. Old writers left it out; then it is the port of the reader's own config.
    pub port: Option<u16>,
    /// While the node changes its key: the next key, and where a second device has it already. Go flannel ignores it.
    pub next: Option<NextKey>,
    /// What the node says about NATs; empty where there are none. Go flannel ignores it.
    pub nat: NatData,
}

/// The next key of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct NextKey {
    /// The public key of the node's second device.
    pub public_key: PublicKey,
    /// The UDP port that this device receives on.
    pub port: u16,
}

impl NextKey {
    /// A key of a device that receives on this port.
    pub fn new(public_key: PublicKey, port: u16) -> Self {
        Self { public_key, port }
    }
}

/// The data as serde writes it. The names and their order are upstream's, but for `Next` and `Nat`, which upstream doesn't
/// have.
#[derive(Serialize)]
struct Wire<'a> {
    #[serde(rename = "PublicKey")]
    public_key: String,
    #[serde(rename = "Port")]
    port: u16,
    #[serde(rename = "Next", skip_serializing_if = "Option::is_none")]
    next: Option<Box<Wire<'a>>>,
    #[serde(rename = "Nat", skip_serializing_if = "Option::is_none")]
    nat: Option<&'a NatData>,
}

impl WireguardData {
    /// Reads what a node published, with names in any case.
    pub fn decode(data: &BackendData) -> Result<Self, String> {
        let object = GoObject::parse(data.as_str()).map_err(|error| format!("is no JSON object: {error}"))?;
        let (public_key, port) = decode_key(&object)?;
        let nat = object.raw("Nat").map(NatData::decode).unwrap_or_default();
        Ok(Self { public_key, port, next: decode_next(&object), nat })
    }

    /// Whether the node publishes more than Go flannel does.
    fn has_more(&self) -> bool {
        self.next.is_some() || !self.nat.is_empty()
    }

    /// What a node publishes for one family.
    fn encode(public_key: PublicKey, port: u16, next: Option<NextKey>, nat: Option<&NatData>) -> BackendData {
        let key = |key: PublicKey, port| Wire { public_key: key.to_string(), port, next: None, nat: None };
        let next = next.map(|next| Box::new(key(next.public_key, next.port)));
        let wire = Wire { next, nat, ..key(public_key, port) };
        BackendData::encode(&wire).expect("texts and numbers always encode")
    }
}

/// [`Peer::data`]: what a node publishes for each family beyond what Go flannel does. Only the driver reads it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct More {
    v4: Option<String>,
    v6: Option<String>,
}

impl More {
    fn add(&mut self, family: Family, data: &WireguardData) {
        if data.has_more() {
            let text =
                WireguardData::encode(data.public_key, data.port.unwrap_or(0), data.next, Some(&data.nat));
            let place = if family == Family::V4 { &mut self.v4 } else { &mut self.v6 };
            *place = Some(text.as_str().to_owned());
        }
    }

    fn encode(&self) -> Option<BackendData> {
        let is_any = self.v4.is_some() || self.v6.is_some();
        is_any.then(|| BackendData::encode(self).expect("texts always encode"))
    }
}

/// What a peer's node publishes beyond its key and endpoint, for the device of each family of pods.
pub(crate) fn more_of(peer: &Peer) -> PerFamily<WireguardData> {
    let more = peer.data.as_ref().and_then(|data| data.decode::<More>().ok()).unwrap_or_default();
    let read = |text: Option<String>| {
        let data = BackendData::parse(&text?).ok()??;
        WireguardData::decode(&data).ok()
    };
    PerFamily { v4: read(more.v4), v6: read(more.v6) }
}

fn decode_key(object: &GoObject) -> Result<(PublicKey, Option<u16>), String> {
    let key: Option<String> =
        object.get("PublicKey").map_err(|error| format!("has a bad PublicKey: {error}"))?;
    let key = key.ok_or("is no use: PublicKey is missing")?;
    let public_key = key.parse().map_err(|error| format!("is no use: PublicKey {error}"))?;
    let port: Option<i64> = object.get("Port").map_err(|error| format!("has a bad Port: {error}"))?;
    let udp = |port| u16::try_from(port).map_err(|_| format!("is no use: Port {port} is none of UDP"));
    Ok((public_key, port.filter(|port| *port != 0).map(udp).transpose()?))
}

/// The next key. One that can't be used is none: the node is reached by its present key, as Go flannel reaches it.
fn decode_next(object: &GoObject) -> Option<NextKey> {
    let next = GoObject::parse(object.raw("Next")?).ok()?;
    let (public_key, port) = decode_key(&next).ok()?;
    Some(NextKey { public_key, port: port? })
}

/// What this node publishes for the families of its pods: for each the port of the device that carries it. Go flannel
/// publishes `ListenPortV6` for IPv6 in each mode, although a single device does not receive there. `next` is the key of
/// this node's second devices; `nat` is what there is to say of NATs.
pub(crate) fn attrs(
    config: &WireguardConfig,
    (key, next): (PublicKey, Option<PublicKey>),
    families: &[Family],
    published: PerFamily<IpAddr>,
    nat: &PerFamily<NatData>,
) -> LeaseAttrs {
    let data = |family: Family| {
        let next = next.map(|next| NextKey::new(next, config.second_port(family)));
        let nat = nat.get(family).filter(|nat| !nat.is_empty());
        families.contains(&family).then(|| WireguardData::encode(key, config.port(family), next, nat))
    };
    LeaseAttrs {
        // An address of a family that is not enabled is published too if the operator gave one, as upstream does.
        public_ips: published,
        backend_type: KIND.to_owned(),
        backend_data: PerFamily::from_fn(data),
        ..LeaseAttrs::default()
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
    /// This node's second devices, while it or another node changes its key.
    pub(crate) second: Second<'a>,
}

/// The second devices of this node.
#[derive(Clone, Copy)]
pub(crate) struct Second<'a> {
    /// Those that are there, as [`Paths::links`].
    pub(crate) links: &'a PerFamily<LinkIndex>,
    /// Whether they are there for this node's own next key, which is for all peers.
    pub(crate) is_own: bool,
    /// By which device a node is reached, by its keys on both, and where it is in the change of its key.
    pub(crate) way: &'a dyn Fn(Family, Keys) -> Way,
}

impl std::fmt::Debug for Second<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Second")
            .field("links", self.links)
            .field("is_own", &self.is_own)
            .finish_non_exhaustive()
    }
}

/// The keys of a peer on the first and on the second device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keys {
    pub(crate) first: PublicKey,
    pub(crate) second: PublicKey,
    pub(crate) phase: Phase,
}

/// The objects and claims of another node's lease: a route for each subnet, and a key with its endpoint for each
/// device. [`Peer::data`] is what [`more_of`] reads.
pub(crate) fn peer(lease: &Lease, paths: &Paths<'_>) -> Result<Peer, PeerError> {
    PeerError::check_backend(&lease.attrs, KIND)?;
    let (mut peer, mut more) = (Peer::default(), More::default());
    for (family, subnet) in lease.key.subnets().iter() {
        peer.claims.push(Claim::Subnet(*subnet));
        let Some(link) = paths.links.get(family) else { continue };
        let by = match paths.config.mode {
            Mode::Separate => family,
            _ => by_family(paths, &lease.attrs.public_ips),
        };
        let Endpoint { data, at } = endpoint(&lease.attrs, by, paths.config)?;
        more.add(family, &data);
        let (key, next) = (data.public_key, data.next);
        let first = Claim::Key(*link, key.0, at.ip(), at.port());
        let second = paths.second.links.get(family).filter(|_| next.is_some() || paths.second.is_own);
        let mut by_link = *link;
        let second = second.map(|link| {
            let phase = Phase::of(key, next.map(|next| next.public_key));
            // The second device of a node that does not change its key has the present one, on the port that the config
            // gives it. Should its config be another one, its packets tell.
            let by_config = NextKey::new(key, paths.config.second_port(by));
            let NextKey { public_key: of_second, port } = next.unwrap_or(by_config);
            if (paths.second.way)(family, Keys { first: key, second: of_second, phase }) == Way::Second {
                by_link = *link;
            }
            Claim::Key(*link, of_second.0, at.ip(), port)
        });
        peer.objects.push(Object::Route(Route::by_device(*subnet, by_link)));
        let of_family = lease.attrs.underlay(family).ok().map(Claim::Underlay);
        for claim in [Claim::Underlay(at.ip()), first].into_iter().chain(second).chain(of_family) {
            if !peer.claims.contains(&claim) {
                peer.claims.push(claim);
            }
        }
    }
    if peer.objects.is_empty() && !paths.links.is_empty() {
        return Err(PeerError::no_common_family());
    }
    peer.data = more.encode();
    Ok(peer)
}

/// Where a node is reached, and what it publishes there.
struct Endpoint {
    data: WireguardData,
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
    let (data, port) = match config.mode {
        Mode::Separate => {
            let data = data(by)?.ok_or_else(missing)?;
            let port = data.port.unwrap_or(config.port(by));
            (data, port)
        }
        // A single device has one key and one port. What Go flannel publishes for IPv6 is no port of it.
        _ => match (data(Family::V4)?, data(Family::V6)?) {
            (Some(v4), _) => {
                let port = v4.port.unwrap_or(config.listen_port);
                (v4, port)
            }
            (None, Some(v6)) => {
                let port = v6.port.filter(|port| *port != config.listen_port_v6);
                (v6, port.unwrap_or(config.listen_port))
            }
            (None, None) => return Err(missing()),
        },
    };
    Ok(Endpoint { data, at: SocketAddr::new(address, port) })
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
