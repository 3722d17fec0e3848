//! The variables that commands get. Pure. Upstream: `Documentation/extension.md`.

use std::net::IpAddr;

use flannel_core::addr::{PerFamily, Subnet};
use flannel_core::lease::Lease;

/// What commands know of a node: of this one after a start, of another one otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Values {
    /// The networks of all pods.
    pub(crate) networks: PerFamily<Subnet>,
    /// The node's subnets.
    pub(crate) subnets: PerFamily<Subnet>,
    /// The addresses that the node publishes.
    pub(crate) public_ips: PerFamily<IpAddr>,
}

impl Values {
    /// The values of a lease, in the families of the network.
    pub(crate) fn of(lease: &Lease, networks: PerFamily<Subnet>) -> Self {
        let of_network = |family| networks.get(family).is_some();
        let public_ips =
            PerFamily::from_fn(|family| lease.attrs.underlay(family).ok().filter(|_| of_network(family)));
        let subnets = PerFamily::from_fn(|family| lease.subnet(family).filter(|_| of_network(family)));
        Self { networks, subnets, public_ips }
    }

    /// The variables. Those of a family that the node does not have are empty, so that `set -u` of a script accepts them.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let text = |value: Option<String>| value.unwrap_or_default();
        let subnet = |subnet: Option<Subnet>| text(subnet.map(|subnet| subnet.to_string()));
        let addr = |addr: Option<IpAddr>| text(addr.map(|addr| addr.to_string()));
        vec![
            ("NETWORK", subnet(self.networks.v4)),
            ("IPV6NETWORK", subnet(self.networks.v6)),
            ("SUBNET", subnet(self.subnets.v4)),
            ("IPV6SUBNET", subnet(self.subnets.v6)),
            ("PUBLIC_IP", addr(self.public_ips.v4)),
            ("PUBLIC_IPV6", addr(self.public_ips.v6)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::lease::LeaseAttrs;

    use super::*;

    fn text(networks: PerFamily<Subnet>) -> String {
        let value = r#"{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::9","BackendType":"extension"}"#;
        let key = "10.5.9.0-24&fd00:5:0:9::-64".parse().unwrap();
        let lease = Lease { key, attrs: LeaseAttrs::from_json(value).unwrap(), created: 1 };
        let variables = Values::of(&lease, networks).variables();
        variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn all_of_upstreams_variables_are_there_and_empty_without_a_family() {
        let v4 = PerFamily { v4: "10.5.0.0/16".parse().ok(), v6: None };
        assert_eq!(
            text(v4),
            "NETWORK=10.5.0.0/16 IPV6NETWORK= SUBNET=10.5.9.0/24 IPV6SUBNET= PUBLIC_IP=192.0.2.9 PUBLIC_IPV6="
        );
        assert_eq!(
            text(PerFamily { v6: "fd00:5::/48".parse().ok(), ..v4 }),
            "NETWORK=10.5.0.0/16 IPV6NETWORK=fd00:5::/48 SUBNET=10.5.9.0/24 IPV6SUBNET=fd00:5:0:9::/64 \
             PUBLIC_IP=192.0.2.9 PUBLIC_IPV6=2001:db8::9"
        );
    }
}
