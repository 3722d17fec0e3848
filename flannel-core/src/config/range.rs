//! The network of one family and the subnets that a store hands out of it.

use std::net::IpAddr;

use super::{ConfigError, LeaseSource, PodNetwork, member};
use crate::addr::{Family, Subnet};
use crate::gojson::GoObject;

/// The subnets a store hands out: all those of `len` bits from `min` to `max`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetRange {
    pub(crate) min: Subnet,
    pub(crate) max: Subnet,
}

impl SubnetRange {
    /// The subnets from `min` to `max`. `None` if they are of two families or lengths, if `max` comes before `min`, or
    /// if a subnet has no room for pods: it takes two bits.
    pub fn new(min: Subnet, max: Subnet) -> Option<Self> {
        let has_room = min.prefix() > 0 && min.prefix() <= min.family().bits() - 2;
        (has_room && min.steps_to(max).is_some()).then_some(Self { min, max })
    }

    /// The first subnet.
    pub fn min(&self) -> Subnet {
        self.min
    }

    /// The last subnet, of the same length.
    pub fn max(&self) -> Subnet {
        self.max
    }

    /// The length of every subnet in bits.
    pub fn prefix(&self) -> u8 {
        self.min.prefix()
    }

    /// Whether `subnet` is one of the range.
    pub fn contains(&self, subnet: Subnet) -> bool {
        self.min.steps_to(subnet).is_some() && subnet.steps_to(self.max).is_some()
    }

    /// How many subnets there are.
    pub fn count(&self) -> u128 {
        self.min.steps_to(self.max).map_or(0, |steps| steps.saturating_add(1))
    }

    /// The subnet number `index`, counted from 0; `None` past the end.
    pub fn nth(&self, index: u128) -> Option<Subnet> {
        self.min.nth_next(index).filter(|subnet| self.contains(*subnet))
    }
}

/// The names of a family's keys in the configuration.
struct Names {
    network: &'static str,
    len: &'static str,
    min: &'static str,
    max: &'static str,
    example: &'static str,
}

fn names(family: Family) -> Names {
    match family {
        Family::V4 => Names {
            network: "Network",
            len: "SubnetLen",
            min: "SubnetMin",
            max: "SubnetMax",
            example: "10.244.0.0/16",
        },
        Family::V6 => Names {
            network: "IPv6Network",
            len: "IPv6SubnetLen",
            min: "IPv6SubnetMin",
            max: "IPv6SubnetMax",
            example: "fd00:10:244::/56",
        },
    }
}

pub(super) fn network_key(family: Family) -> &'static str {
    names(family).network
}

/// Reads a family's keys. The caller drops the result, good or bad, of a family that is not enabled.
pub(super) fn parse_network(
    object: &GoObject,
    family: Family,
    source: LeaseSource,
) -> Result<PodNetwork, ConfigError> {
    let names = names(family);
    let text: Option<String> = string_member(object, names.network)?;
    let bad = |problem: String| ConfigError::new(names.network, text.clone(), problem);
    let Some(written) = &text else {
        return Err(bad(format!("is missing, but {family} is enabled: set it, such as {:?}", names.example)));
    };
    let network: Subnet =
        written.parse().map_err(|_| bad(format!("must be a CIDR such as {:?}", names.example)))?;
    if network.family() != family {
        return Err(bad(format!("must be an {family} network such as {:?}", names.example)));
    }
    if let Some(why) = impossible(network) {
        return Err(bad(format!("{why}; choose one such as {:?}", names.example)));
    }
    let range = match source {
        LeaseSource::Store => Some(parse_range(object, &names, network)?),
        LeaseSource::Assigned => None,
    };
    Ok(PodNetwork { network, range })
}

/// The shortest prefix that a network may have. A network of three bits is an eighth of the address space, and in IPv6
/// all global addresses (`2000::/3`): packets to the Internet would go to pods.
const LARGEST: u8 = 4;

/// Why a network can't be used: no pod can have its addresses, or the node could reach nothing else. Each of these
/// ranges means the host itself, one link, or a group (RFC 6890).
fn impossible(network: Subnet) -> Option<String> {
    const RANGES: [(&str, &str); 8] = [
        ("0.0.0.0/8", "the unspecified address"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local addresses"),
        ("224.0.0.0/4", "multicast"),
        ("::/127", "loopback and the unspecified address"),
        ("::ffff:0:0/96", "IPv4-mapped addresses"),
        ("fe80::/10", "link-local addresses"),
        ("ff00::/8", "multicast"),
    ];
    if network.prefix() == 0 {
        return Some("must not be the whole address space".to_owned());
    }
    if network.prefix() < LARGEST {
        let parts = 1 << network.prefix();
        return Some(format!(
            "is 1/{parts} of the address space, and cuts nodes off from the world; use /{LARGEST} or smaller"
        ));
    }
    let overlaps = |range: &str| range.parse::<Subnet>().is_ok_and(|range| range.overlaps(network));
    let (range, what) = RANGES.into_iter().find(|(range, _)| overlaps(range))?;
    Some(format!("covers addresses of {range}, which is for {what}"))
}

/// Writes a family's keys, as [`parse_network`] reads them.
pub(super) fn write_network(
    network: &PodNetwork,
    family: Family,
    into: &mut serde_json::Map<String, serde_json::Value>,
) {
    let names = names(family);
    into.insert(names.network.to_owned(), network.network.to_string().into());
    if let Some(range) = network.range {
        into.insert(names.len.to_owned(), range.prefix().into());
        into.insert(names.min.to_owned(), range.min.base().to_string().into());
        into.insert(names.max.to_owned(), range.max.base().to_string().into());
    }
}

/// The names of a family's keys that have another value in `b` than in `a`. A bound or a length that is not written
/// follows the network and does not count as changed.
pub(super) fn changed_keys(a: &PodNetwork, b: &PodNetwork, family: Family) -> Vec<&'static str> {
    let names = names(family);
    let mut changed = Vec::new();
    if a.network != b.network {
        changed.push(names.network);
    }
    if let (Some(a), Some(b)) = (written(a), written(b)) {
        let keys = [(a.len != b.len, names.len), (a.min != b.min, names.min), (a.max != b.max, names.max)];
        changed.extend(keys.into_iter().filter(|(differs, _)| *differs).map(|(_, name)| name));
    }
    changed
}

/// The values that must have been written to get a range; `None` for a value that no text would have led to.
struct Written {
    len: Option<u8>,
    min: Option<IpAddr>,
    max: Option<IpAddr>,
}

fn written(network: &PodNetwork) -> Option<Written> {
    let range = network.range?;
    let len = range.prefix();
    let unless =
        |subnet: Subnet, usual: Option<Subnet>| Some(subnet.base()).filter(|_| usual != Some(subnet));
    Some(Written {
        len: Some(len).filter(|len| *len != usual_len(network.network)),
        min: unless(range.min, first(network.network, len)),
        max: unless(range.max, last(network.network, len)),
    })
}

/// The first subnet of the network, which is skipped unless asked for, as upstream does.
fn first(network: Subnet, len: u8) -> Option<Subnet> {
    Subnet::containing(network.base(), len).and_then(|first| first.nth_next(1))
}

fn last(network: Subnet, len: u8) -> Option<Subnet> {
    Subnet::containing(network.last(), len)
}

/// Upstream's default: /24 (/64), or longer where the network has no room for four of them.
fn usual_len(network: Subnet) -> u8 {
    let usual = match network.family() {
        Family::V4 => 24,
        Family::V6 => 64,
    };
    usual.max(network.prefix() + 2)
}

fn parse_range(object: &GoObject, names: &Names, network: Subnet) -> Result<SubnetRange, ConfigError> {
    let len = subnet_len(object, names, network)?;
    let first = first(network, len).expect("a network holds at least four subnets, so it has a second");
    let last = last(network, len).expect("the length fits the family");
    let min = bound(object, names.min, network, len)?.unwrap_or(first);
    let max = bound(object, names.max, network, len)?.unwrap_or(last);
    if min.base() > max.base() {
        let value = Some(min.base().to_string());
        let problem = format!("lies after {} {}; no subnet is left", names.max, max.base());
        return Err(ConfigError::new(names.min, value, problem));
    }
    Ok(SubnetRange::new(min, max).expect("length and order were checked"))
}

fn subnet_len(object: &GoObject, names: &Names, network: Subnet) -> Result<u8, ConfigError> {
    let bits = network.family().bits();
    let given: Option<u64> = member(object, "", names.len)?;
    let Some(len) = given.filter(|len| *len > 0) else {
        let limit = bits - 4;
        if network.prefix() > limit {
            let problem = format!("is too small to divide; use /{limit} or larger, or set {}", names.len);
            return Err(ConfigError::new(names.network, Some(network.to_string()), problem));
        }
        return Ok(usual_len(network));
    };
    let bad = |problem: String| Err(ConfigError::new(names.len, Some(len.to_string()), problem));
    if len > u64::from(bits) - 2 {
        return bad(format!("must be at most {}", bits - 2));
    }
    if len < u64::from(network.prefix()) + 2 {
        return bad(format!(
            "must be at least {}, so that {network} holds four subnets",
            network.prefix() + 2
        ));
    }
    Ok(len as u8)
}

/// `SubnetMin` or `SubnetMax`: inside the network and aligned. The zero address counts as absent.
fn bound(object: &GoObject, name: &str, network: Subnet, len: u8) -> Result<Option<Subnet>, ConfigError> {
    let Some(text) = string_member(object, name)? else { return Ok(None) };
    let bad = |problem: String| ConfigError::new(name, Some(text.clone()), problem);
    let addr: IpAddr =
        text.parse().map_err(|_| bad(format!("must be an address such as \"{}\"", network.base())))?;
    if addr.is_unspecified() {
        return Ok(None);
    }
    if !network.contains(addr) {
        return Err(bad(format!("must lie inside the network {network}")));
    }
    let aligned = Subnet::containing(addr, len).expect("the network's family was checked");
    if aligned.base() != addr {
        return Err(bad(format!("is not the start of a /{len} subnet; {} would be", aligned.base())));
    }
    Ok(Some(aligned))
}

/// A member that upstream reads through its IP types: `null` and numbers are errors.
fn string_member(object: &GoObject, name: &str) -> Result<Option<String>, ConfigError> {
    let Some(raw) = object.raw(name) else { return Ok(None) };
    if raw == "null" {
        return Err(ConfigError::new(
            name,
            Some("null".into()),
            "must be a string; leave the key out for the default",
        ));
    }
    member(object, "", name)
}
