//! Addresses that a node must reach without the overlay, and pod networks that would hide them. Pure.
//!
//! If a network covers such an address, sooner or later a route to pods takes the packets for it. If no node has a
//! lease in the network yet, the config is refused with the reason. A cluster that already works this way only gets a
//! warning, so that an upgrade does not stop it, unless the backend's single route for the whole network would hide the
//! address at once.

use std::fmt;
use std::net::IpAddr;

use super::chosen::Underlay;
use crate::addr::{Family, Subnet};
use crate::config::{ConfigError, NetworkConfig};

/// An address that this node must reach without the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// The address.
    pub addr: IpAddr,
    /// What it is, such as `the gateway of eth0`.
    pub what: String,
    /// The prefix length of the present route to it; `None` if there is none, or if it is this host itself.
    pub way: Option<u8>,
}

impl fmt::Display for Needed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.what, self.addr)
    }
}

impl Needed {
    /// The underlay addresses of this node, each once. Their routes matter for peers on the same link.
    pub fn of_underlay(underlay: &Underlay) -> Vec<Self> {
        let is_nat = |(family, ip): &(Family, &IpAddr)| underlay.local.get(*family) != Some(*ip);
        let all = underlay.local.iter().chain(underlay.published.iter().filter(is_nat));
        let what = format!("the underlay address of {}", underlay.name);
        all.map(|(_, addr)| Self { addr: *addr, what: what.clone(), way: None }).collect()
    }

    /// The pod network that covers it.
    pub fn covered_by(&self, config: &NetworkConfig) -> Option<Subnet> {
        let network = config.networks.get(Family::of(self.addr))?.network;
        network.contains(self.addr).then_some(network)
    }

    /// Whether a route for the whole network would take the packets to it.
    fn is_cut_by(&self, network: Subnet) -> bool {
        self.way.is_some_and(|way| way <= network.prefix())
    }
}

/// The circumstances of a config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Whether a node already has a lease in it, this one or another.
    pub has_leases: bool,
    /// Whether the backend has one route for the whole network.
    pub is_routed_whole: bool,
}

/// Why a config must not be used on this node: the addresses that its networks would hide.
pub fn hides<'a>(
    config: &NetworkConfig,
    needed: impl IntoIterator<Item = &'a Needed>,
    how: Use,
) -> Option<ConfigError> {
    needed.into_iter().find_map(|needed| {
        let network = needed.covered_by(config)?;
        let is_cut = how.is_routed_whole && needed.is_cut_by(network);
        if !is_cut && how.has_leases {
            return None;
        }
        let harm = if is_cut { "the backend's route would cut this node from it" } else { "a route to pods would hide it" };
        let problem = format!("covers {needed}: {harm}; choose a network apart from the nodes' addresses, their gateways and the store");
        let key = NetworkConfig::network_key(Family::of(needed.addr));
        Some(ConfigError::new(key, Some(network.to_string()), problem))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LeaseSource;

    #[test]
    fn what_would_be_hidden_is_refused_unless_the_cluster_works_so() {
        let config = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
        let config = NetworkConfig::parse(config, LeaseSource::Store).unwrap();
        // Who: in a new network, in one with leases, and in one with leases and a route for the whole.
        for (addr, way, new, used, whole) in [
            ("192.0.2.1", Some(24), false, false, false),
            ("10.6.0.1", Some(24), false, false, false),
            ("10.5.9.7", None, true, false, false),
            ("10.5.9.7", Some(24), true, false, false),
            ("10.5.9.7", Some(17), true, false, false),
            // As specific as the backend's route, or less so: that one takes its packets.
            ("10.5.9.7", Some(16), true, false, true),
            ("10.5.9.7", Some(8), true, false, true),
            ("10.5.9.7", Some(0), true, false, true),
            ("fd00:5::9", Some(64), true, false, false),
            ("fd00:5::9", Some(48), true, false, true),
            ("fd00:6::9", Some(0), false, false, false),
        ] {
            let needed = Needed { addr: addr.parse().unwrap(), what: "the gateway of eth0".into(), way };
            let refused = |has_leases, is_routed_whole| {
                let found = hides(&config, [&needed], Use { has_leases, is_routed_whole });
                if let Some(error) = &found {
                    let (key, value) = if addr.contains(':') {
                        ("IPv6Network", "fd00:5::/48")
                    } else {
                        ("Network", "10.5.0.0/16")
                    };
                    assert_eq!((error.key.as_str(), error.value.as_deref()), (key, Some(value)));
                    assert!(error.problem.contains(&format!("the gateway of eth0 {addr}")), "{error}");
                    assert!(error.problem.contains("choose a network apart from"), "{error}");
                }
                found.is_some()
            };
            assert_eq!(
                [refused(false, false), refused(true, false), refused(true, true)],
                [new, used, whole],
                "{addr} {way:?}"
            );
        }
    }
}
