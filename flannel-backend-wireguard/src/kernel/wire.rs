//! The messages of the family `wireguard` as bytes. Pure. Numbers in them are in the host's order, ports and addresses in
//! the network's.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flannel_core::addr::LinkIndex;
use flannel_core::netlink::generic::{AttrWriter, attrs_of};
use ipnetwork::IpNetwork;

#[cfg(test)]
use crate::device::PeerState;
use crate::device::{Change, DeviceState, PeerChange};
use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// `WG_GENL_NAME` and `WG_GENL_VERSION`.
pub(crate) const FAMILY: &str = "wireguard";
pub(crate) const VERSION: u8 = 1;
/// `WG_CMD_GET_DEVICE` and `WG_CMD_SET_DEVICE`.
pub(crate) const GET_DEVICE: u8 = 0;
pub(crate) const SET_DEVICE: u8 = 1;

/// `WGDEVICE_A_*`.
mod device {
    pub(super) const IFINDEX: u16 = 1;
    pub(super) const PRIVATE_KEY: u16 = 3;
    pub(super) const LISTEN_PORT: u16 = 6;
    pub(super) const FWMARK: u16 = 7;
    pub(super) const PEERS: u16 = 8;
}

/// `WGPEER_A_*`.
mod peer {
    pub(super) const PUBLIC_KEY: u16 = 1;
    pub(super) const PRESHARED_KEY: u16 = 2;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const ENDPOINT: u16 = 4;
    pub(super) const KEEPALIVE: u16 = 5;
    pub(super) const LAST_HANDSHAKE: u16 = 6;
    pub(super) const RX_BYTES: u16 = 7;
    pub(super) const TX_BYTES: u16 = 8;
    pub(super) const ALLOWED_IPS: u16 = 9;
    /// `WGPEER_F_REMOVE_ME` and `WGPEER_F_REPLACE_ALLOWEDIPS`.
    pub(super) const REMOVE: u32 = 1;
    pub(super) const REPLACE_ALLOWED_IPS: u32 = 2;
}

/// `WGALLOWEDIP_A_*`.
mod allowed {
    pub(super) const FAMILY: u16 = 1;
    pub(super) const ADDR: u16 = 2;
    pub(super) const MASK: u16 = 3;
}

/// How many bytes of peers are in one message at most. All peers of a message are in one attribute, whose length has 16
/// bits; half of that also fits every socket buffer.
const MESSAGE: usize = 32 << 10;
/// How many allowed addresses are in one item; a peer with more takes several.
const ADDRESSES: usize = 500;

/// The request to read a device.
pub(crate) fn get(link: LinkIndex) -> Vec<u8> {
    let mut attrs = AttrWriter::default();
    attrs.put(device::IFINDEX, &link.0.to_ne_bytes());
    attrs.bytes().to_vec()
}

/// The messages that make these changes, in order.
pub(crate) fn set(link: LinkIndex, changes: &[Change]) -> Vec<AttrWriter> {
    let mut writer =
        Writer { link, messages: Vec::new(), attrs: AttrWriter::default(), peers: AttrWriter::default() };
    for change in changes {
        match change {
            Change::PrivateKey(key) => writer.of_device(device::PRIVATE_KEY, &key.0),
            Change::ListenPort(port) => writer.of_device(device::LISTEN_PORT, &port.to_ne_bytes()),
            Change::RemovePeer(key) => writer.peer(|peer| {
                peer.put(peer::PUBLIC_KEY, &key.0);
                peer.put(peer::FLAGS, &peer::REMOVE.to_ne_bytes());
            }),
            Change::Peer(key, change) => writer.change(key, change),
        }
    }
    writer.end();
    writer.messages
}

/// Messages that are being written. Within one message the kernel looks at what concerns the device first, so peers end
/// a message as far as that is concerned.
struct Writer {
    link: LinkIndex,
    messages: Vec<AttrWriter>,
    attrs: AttrWriter,
    peers: AttrWriter,
}

impl Writer {
    fn end(&mut self) {
        let (mut attrs, peers) = (std::mem::take(&mut self.attrs), std::mem::take(&mut self.peers));
        if attrs.is_empty() && peers.is_empty() {
            return;
        }
        let mut message = AttrWriter::default();
        message.put(device::IFINDEX, &self.link.0.to_ne_bytes());
        message.append(&mut attrs);
        if !peers.is_empty() {
            message.nest(device::PEERS, |list| *list = peers);
        }
        self.messages.push(message);
    }

    fn of_device(&mut self, number: u16, value: &[u8]) {
        if !self.peers.is_empty() {
            self.end();
        }
        self.attrs.put(number, value);
    }

    fn peer(&mut self, fill: impl FnOnce(&mut AttrWriter)) {
        let mut item = AttrWriter::default();
        item.nest(0, fill);
        if self.peers.len() + item.len() > MESSAGE {
            self.end();
        }
        self.peers.append(&mut item);
    }

    fn change(&mut self, key: &PublicKey, change: &PeerChange) {
        let list: Vec<IpNetwork> = change.allowed_ips.iter().flatten().copied().collect();
        let mut parts = list.chunks(ADDRESSES);
        let first = parts.next().unwrap_or(&[]);
        self.peer(|item| {
            item.put(peer::PUBLIC_KEY, &key.0);
            if let Some(psk) = &change.preshared_key {
                // All zeros take the key away.
                item.put(peer::PRESHARED_KEY, &psk.as_ref().map_or([0; 32], |psk| psk.0));
            }
            if change.allowed_ips.is_some() {
                item.put(peer::FLAGS, &peer::REPLACE_ALLOWED_IPS.to_ne_bytes());
            }
            if let Some(endpoint) = change.endpoint {
                item.put(peer::ENDPOINT, &socket_address(endpoint));
            }
            if let Some(keepalive) = change.keepalive {
                item.put(peer::KEEPALIVE, &keepalive.to_ne_bytes());
            }
            allowed_ips(item, first);
        });
        for part in parts {
            self.peer(|item| {
                item.put(peer::PUBLIC_KEY, &key.0);
                allowed_ips(item, part);
            });
        }
    }
}

fn allowed_ips(item: &mut AttrWriter, list: &[IpNetwork]) {
    if list.is_empty() {
        return;
    }
    item.nest(peer::ALLOWED_IPS, |item| {
        for ip in list {
            item.nest(0, |item| {
                item.put(allowed::FAMILY, &address_family(ip.is_ipv4()).to_ne_bytes());
                match ip.ip() {
                    IpAddr::V4(addr) => item.put(allowed::ADDR, &addr.octets()),
                    IpAddr::V6(addr) => item.put(allowed::ADDR, &addr.octets()),
                }
                item.put(allowed::MASK, &[ip.prefix()]);
            });
        }
    });
}

/// `AF_INET` or `AF_INET6`, in the width of a `sa_family_t`.
const fn address_family(is_v4: bool) -> u16 {
    (if is_v4 { libc::AF_INET } else { libc::AF_INET6 }).cast_unsigned() as u16
}

/// `struct sockaddr_in` or `struct sockaddr_in6`.
fn socket_address(at: SocketAddr) -> Vec<u8> {
    let mut bytes = address_family(at.is_ipv4()).to_ne_bytes().to_vec();
    bytes.extend(at.port().to_be_bytes());
    match at {
        SocketAddr::V4(at) => {
            bytes.extend(at.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(at) => {
            bytes.extend(at.flowinfo().to_be_bytes());
            bytes.extend(at.ip().octets());
            bytes.extend(at.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// Collects the messages of a dump.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    state: DeviceState,
}

impl Reader {
    /// Adds the attributes of the next message.
    pub(crate) fn add(&mut self, message: &[u8]) -> Result<(), String> {
        for (number, value) in attrs_of(message) {
            match number {
                device::PRIVATE_KEY => {
                    self.state.private_key =
                        Some(array(value, "private key")?).filter(|key| *key != [0; 32]).map(PrivateKey);
                }
                device::LISTEN_PORT => self.state.listen_port = u16::from_ne_bytes(array(value, "port")?),
                device::FWMARK => self.state.fwmark = u32::from_ne_bytes(array(value, "mark")?),
                device::PEERS => {
                    for (_, item) in attrs_of(value) {
                        self.peer(item)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The whole content.
    pub(crate) fn finish(self) -> DeviceState {
        self.state
    }

    /// Adds one item: a peer, or further allowed addresses of one.
    fn peer(&mut self, item: &[u8]) -> Result<(), String> {
        let key = attrs_of(item).find(|(number, _)| *number == peer::PUBLIC_KEY);
        let (_, key) = key.ok_or("a peer without a public key")?;
        let state = self.state.peers.entry(PublicKey(array(key, "public key")?)).or_default();
        for (number, value) in attrs_of(item) {
            match number {
                peer::PRESHARED_KEY => {
                    let psk: [u8; 32] = array(value, "preshared key")?;
                    state.preshared_key = (psk != [0; 32]).then_some(PresharedKey(psk));
                }
                peer::ENDPOINT => state.endpoint = endpoint(value)?,
                peer::KEEPALIVE => state.keepalive = u16::from_ne_bytes(array(value, "keepalive")?),
                peer::LAST_HANDSHAKE => state.last_handshake = time(value)?,
                peer::RX_BYTES => state.rx_bytes = u64::from_ne_bytes(array(value, "counter")?),
                peer::TX_BYTES => state.tx_bytes = u64::from_ne_bytes(array(value, "counter")?),
                peer::ALLOWED_IPS => add_allowed(&mut state.allowed_ips, value)?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn add_allowed(list: &mut BTreeSet<IpNetwork>, value: &[u8]) -> Result<(), String> {
    for (_, item) in attrs_of(value) {
        let field = |number| attrs_of(item).find(|(found, _)| *found == number).map(|(_, value)| value);
        let addr = field(allowed::ADDR).ok_or("an allowed address without an address")?;
        let addr = if let Ok(octets) = <[u8; 4]>::try_from(addr) {
            IpAddr::V4(octets.into())
        } else {
            IpAddr::V6(array::<16>(addr, "allowed address")?.into())
        };
        let [mask] = array(field(allowed::MASK).ok_or("an allowed address without a length")?, "length")?;
        list.insert(IpNetwork::new(addr, mask).map_err(|error| error.to_string())?);
    }
    Ok(())
}

/// `None` for a peer without an endpoint.
fn endpoint(value: &[u8]) -> Result<Option<SocketAddr>, String> {
    let short = || "an endpoint that is too short".to_owned();
    let family = u16::from_ne_bytes(part(value, 0).ok_or_else(short)?);
    let port = u16::from_be_bytes(part(value, 2).ok_or_else(short)?);
    match i32::from(family) {
        libc::AF_INET => {
            let addr: [u8; 4] = part(value, 4).ok_or_else(short)?;
            Ok(Some(SocketAddr::new(Ipv4Addr::from(addr).into(), port)))
        }
        libc::AF_INET6 => {
            let addr: [u8; 16] = part(value, 8).ok_or_else(short)?;
            let scope = u32::from_ne_bytes(part(value, 24).ok_or_else(short)?);
            Ok(Some(SocketAddrV6::new(Ipv6Addr::from(addr), port, 0, scope).into()))
        }
        libc::AF_UNSPEC => Ok(None),
        other => Err(format!("an endpoint of address family {other}")),
    }
}

/// `struct __kernel_timespec`; zero stands for never.
fn time(value: &[u8]) -> Result<Option<SystemTime>, String> {
    let short = || "a time that is too short".to_owned();
    let seconds = i64::from_ne_bytes(part(value, 0).ok_or_else(short)?);
    let nanos = i64::from_ne_bytes(part(value, 8).ok_or_else(short)?);
    if (seconds, nanos) == (0, 0) {
        return Ok(None);
    }
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else { return Ok(None) };
    if nanos >= 1_000_000_000 {
        return Ok(None);
    }
    Ok(UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)))
}

fn part<const N: usize>(value: &[u8], at: usize) -> Option<[u8; N]> {
    value.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn array<const N: usize>(value: &[u8], what: &str) -> Result<[u8; N], String> {
    value.try_into().map_err(|_| format!("a {what} of {} bytes, not {N}", value.len()))
}

/// The state of a peer as it is in a dump, for tests.
#[cfg(test)]
pub(crate) fn dumped(key: &PublicKey, state: &PeerState) -> AttrWriter {
    let mut item = AttrWriter::default();
    item.put(peer::PUBLIC_KEY, &key.0);
    item.put(peer::PRESHARED_KEY, &state.preshared_key.as_ref().map_or([0; 32], |psk| psk.0));
    if let Some(endpoint) = state.endpoint {
        item.put(peer::ENDPOINT, &socket_address(endpoint));
    }
    item.put(peer::KEEPALIVE, &state.keepalive.to_ne_bytes());
    let since = state.last_handshake.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let (seconds, nanos) = (since.as_secs().cast_signed(), i64::from(since.subsec_nanos()));
    item.put(peer::LAST_HANDSHAKE, &[seconds.to_ne_bytes(), nanos.to_ne_bytes()].concat());
    item.put(peer::RX_BYTES, &state.rx_bytes.to_ne_bytes());
    item.put(peer::TX_BYTES, &state.tx_bytes.to_ne_bytes());
    let list: Vec<IpNetwork> = state.allowed_ips.iter().copied().collect();
    allowed_ips(&mut item, &list);
    item
}

#[cfg(test)]
mod tests;
