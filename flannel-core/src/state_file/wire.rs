//! The format of the state file: JSON with a version and a checksum. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::{fmt, io};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Device, State};
use crate::addr::{Family, MacAddr, PerFamily, Subnet};
use crate::config::{BackendConfig, ConfigError, LeaseSource, NetworkConfig};
use crate::gojson::GoObject;
use crate::lease::{AgedLease, Ages, Lease, LeaseAttrs, LeaseKey, LeaseKeyError, UnreadableRecord};
use crate::proofs::Proven;
use crate::secret::json_error;

/// The version that is written. Another format gets another number. Version 1 had no config, and addresses of nodes
/// instead of leases.
const VERSION: u32 = 2;

/// Why the bytes of a state file can't be used. Each text goes on after the name of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// They are not JSON, or not that of a state. The text has positions only, since the config in it may hold secrets.
    #[error("is no state of an agent: {0}")]
    Json(String),
    /// An agent of another version wrote it.
    #[error("has version {0} of another agent; this one reads up to {VERSION}")]
    Version(u32),
    /// The checksum differs.
    #[error("is damaged: its checksum does not fit")]
    Damaged,
    /// The key of a node in a file of an older agent is none.
    #[error("has the node {key:?}: {source}")]
    Node {
        /// The key.
        key: String,
        /// What is wrong with it.
        source: LeaseKeyError,
    },
    /// The network config in it can't be used.
    #[error("has a config that can't be used: {0}")]
    Config(ConfigError),
    /// The lease of the node itself is unreadable.
    #[error("has an own lease that can't be used: {0}")]
    Own(UnreadableRecord),
}

#[derive(Deserialize)]
struct Envelope {
    version: u32,
    /// The checksum of the bytes of `state`, as they are written.
    checksum: String,
    state: Box<RawValue>,
}

#[derive(Deserialize)]
struct WireV1 {
    backend: String,
    networks: Vec<Subnet>,
    devices: Vec<Device>,
    nodes: BTreeMap<String, Vec<IpAddr>>,
}

/// Everything but the leases of others, which are encoded one by one, since there may be very many.
#[derive(Serialize, Deserialize)]
struct Wire<Leases> {
    saved: u64,
    store: String,
    backend: String,
    networks: Vec<Subnet>,
    devices: Vec<Device>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    beside: Vec<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    proven: BTreeMap<String, Proven>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    routes_of_others: bool,
    config: Option<Box<RawValue>>,
    own: Option<(String, WireLease)>,
    /// At most one of each family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    wanted_ips: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former_ips: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    host_macs: Vec<MacAddr>,
    leases: Leases,
}

struct OneByOne<'a>(&'a BTreeMap<LeaseKey, Arc<AgedLease>>);

impl Serialize for OneByOne<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.0.iter().map(|(key, lease)| (key.to_string(), WireLease::of(lease, lease.ages))),
        )
    }
}

#[derive(Serialize, Deserialize)]
struct WireLease {
    created: u64,
    /// The attributes in the store's form.
    attrs: Box<RawValue>,
    /// The ages: one if all are the same, else all five. None in the file of an older agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ages: Vec<u32>,
}

impl WireLease {
    fn of(lease: &Lease, ages: Ages) -> Self {
        let all @ [first, ..] = ages.to_array();
        let ages = match all {
            _ if ages == Ages::default() => Vec::new(),
            _ if ages == Ages::all(first) => vec![first],
            _ => all.to_vec(),
        };
        Self { created: lease.created, attrs: raw(lease.attrs.to_json()), ages }
    }

    fn ages(&self) -> Ages {
        match self.ages[..] {
            [subnet, ip4, ip6, data4, data6] => Ages::from_array([subnet, ip4, ip6, data4, data6]),
            [all] => Ages::all(all),
            _ => Ages::default(),
        }
    }

    fn read(&self, key: &str) -> Result<Lease, UnreadableRecord> {
        Lease::decode(key, self.attrs.get().as_bytes(), self.created)
    }
}

fn raw(json: String) -> Box<RawValue> {
    RawValue::from_string(json).expect("what encodes itself is JSON")
}

pub(super) fn encode(state: &State, saved: u64) -> String {
    let mut bytes = Vec::new();
    write(state, saved, &mut bytes).expect("memory takes all that is written");
    String::from_utf8(bytes).expect("JSON is text")
}

/// Writes the bytes of the file. The checksum comes first, so the state is encoded twice: of ten thousand peers that takes some
/// milliseconds, and a copy in memory would take some megabytes.
pub(super) fn write(state: &State, saved: u64, out: &mut dyn io::Write) -> io::Result<()> {
    let wire = Wire {
        saved,
        store: state.store.clone(),
        backend: state.backend.clone(),
        networks: state.networks.iter().map(|(_, network)| *network).collect(),
        devices: state.devices.clone(),
        beside: state.beside.iter().map(|backend| raw(backend.json().to_owned())).collect(),
        proven: state.proven.iter().map(|(key, proven)| (key.to_string(), proven.clone())).collect(),
        routes_of_others: state.routes_of_others,
        config: state.config.as_ref().map(|config| raw(config.to_json())),
        own: state.own.as_ref().map(|own| (own.key.to_string(), WireLease::of(own, state.own_ages))),
        wanted_ips: state.wanted_ips.iter().map(|(_, ip)| *ip).collect(),
        former_ips: state.former_ips.clone(),
        host_macs: state.host_macs.clone(),
        leases: OneByOne(&state.leases),
    };
    let mut checksum = Checksum::default();
    serde_json::to_writer(&mut checksum, &wire)?;
    out.write_all(head(VERSION, checksum).as_bytes())?;
    serde_json::to_writer(&mut *out, &wire)?;
    out.write_all(b"}\n")
}

/// What precedes the state in its envelope.
fn head(version: u32, checksum: Checksum) -> String {
    format!(r#"{{"version":{version},"checksum":"{checksum}","state":"#)
}

pub(super) fn decode(bytes: &[u8]) -> Result<State, StateError> {
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(bad)?;
    if ![1, VERSION].contains(&envelope.version) {
        return Err(StateError::Version(envelope.version));
    }
    if envelope.checksum != Checksum::of(envelope.state.get()).to_string() {
        return Err(StateError::Damaged);
    }
    if envelope.version == 1 { decode_v1(envelope.state.get()) } else { decode_v2(envelope.state.get()) }
}

fn decode_v1(text: &str) -> Result<State, StateError> {
    let wire: WireV1 = serde_json::from_str(text).map_err(bad)?;
    let lease = |(key, ips): (String, Vec<IpAddr>)| {
        let key: LeaseKey = key.parse().map_err(|source| StateError::Node { key, source })?;
        let attrs = LeaseAttrs { public_ips: per_family(&ips, Family::of), ..LeaseAttrs::default() };
        Ok((key, Arc::new(Lease { key, attrs, created: 0 }.into())))
    };
    Ok(State {
        backend: wire.backend,
        networks: per_family(&wire.networks, Subnet::family),
        devices: wire.devices,
        leases: wire.nodes.into_iter().map(lease).collect::<Result<_, StateError>>()?,
        ..State::default()
    })
}

fn decode_v2(text: &str) -> Result<State, StateError> {
    let wire: Wire<BTreeMap<String, WireLease>> = serde_json::from_str(text).map_err(bad)?;
    let config = |json: &RawValue| {
        // The stored config has all defaults written out, so it shows whether the store assigns subnets.
        let object = GoObject::parse(json.get()).unwrap_or_default();
        let has_range = ["SubnetLen", "IPv6SubnetLen"].iter().any(|name| object.raw(name).is_some());
        let source = if has_range { LeaseSource::Store } else { LeaseSource::Assigned };
        NetworkConfig::parse(json.get(), source).map_err(StateError::Config)
    };
    // A peer that can't be decoded is left out.
    let lease = |(key, lease): (&String, &WireLease)| {
        let aged = AgedLease { ages: lease.ages(), lease: lease.read(key).ok()? };
        Some((aged.key, Arc::new(aged)))
    };
    let own_ages = wire.own.as_ref().map(|(_, own)| own.ages()).unwrap_or_default();
    let own = |(key, lease): (String, WireLease)| lease.read(&key).map_err(StateError::Own);
    Ok(State {
        backend: wire.backend,
        networks: per_family(&wire.networks, Subnet::family),
        devices: wire.devices,
        beside: wire
            .beside
            .iter()
            .map(|json| BackendConfig::stored(json.get()))
            .collect::<Result<_, _>>()
            .map_err(StateError::Config)?,
        proven: wire.proven.into_iter().filter_map(|(key, it)| Some((key.parse().ok()?, it))).collect(),
        routes_of_others: wire.routes_of_others,
        leases: wire.leases.iter().filter_map(lease).collect(),
        store: wire.store,
        config: wire.config.as_deref().map(config).transpose()?,
        own: wire.own.map(own).transpose()?,
        own_ages,
        wanted_ips: per_family(&wire.wanted_ips, Family::of),
        former_ips: wire.former_ips,
        host_macs: wire.host_macs,
        saved: wire.saved,
    })
}

#[expect(clippy::needless_pass_by_value, reason = "what `map_err` wants")]
fn bad(error: serde_json::Error) -> StateError {
    StateError::Json(json_error(&error))
}

/// The last value of each family.
fn per_family<T: Copy>(values: &[T], family_of: impl Fn(T) -> Family) -> PerFamily<T> {
    PerFamily::from_fn(|family| values.iter().rev().copied().find(|value| family_of(*value) == family))
}

/// Puts an envelope around a state, for tests.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn sealed(version: u32, state: &str) -> String {
    format!("{}{state}}}", head(version, Checksum::of(state)))
}

/// FNV-1a of 64 bits: against damage, not against forgery.
#[derive(Clone, Copy)]
struct Checksum(u64);

impl Default for Checksum {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Checksum {
    fn of(text: &str) -> Self {
        text.bytes().fold(Self::default(), Self::step)
    }

    fn step(self, byte: u8) -> Self {
        Self((self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

impl io::Write for Checksum {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        *self = bytes.iter().copied().fold(*self, Self::step);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
