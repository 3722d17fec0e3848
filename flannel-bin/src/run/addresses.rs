//! Underlay addresses where pods' addresses are: named, since nothing else tells why such packets go astray.

use std::net::IpAddr;

use flannel_core::addr::Family;
use flannel_core::backend::Underlay;
use flannel_core::config::NetworkConfig;
use flannel_core::lease::{Field, LeaseKey};
use flannel_core::subnet::Remedy;

/// The underlay addresses of this node, each once.
fn addresses(underlay: &Underlay) -> impl Iterator<Item = (Family, IpAddr)> {
    let published = underlay.published.iter().filter(|(family, ip)| underlay.local.get(*family) != Some(ip));
    underlay.local.iter().chain(published).map(|(family, ip)| (family, *ip))
}

/// Underlay addresses inside the network of the pods.
pub(super) fn in_network(config: &NetworkConfig, underlay: &Underlay) -> Vec<String> {
    let named = addresses(underlay).filter_map(|(family, ip)| {
        let network = config.networks.get(family)?.network;
        network.contains(ip).then(|| {
            format!(
                "the underlay address {ip} of {} lies inside the network {network} of the pods, so a pod's subnet can hide \
                 nodes; choose a network apart from the nodes' addresses",
                underlay.name
            )
        })
    });
    named.collect()
}

/// Underlay addresses inside the node's own subnet, which it keeps: pods may run in it.
pub(super) fn in_subnet(key: LeaseKey, underlay: &Underlay, remedy: &Remedy) -> Vec<String> {
    let named = addresses(underlay).filter_map(|(family, ip)| {
        let subnet = key.subnet(family)?;
        subnet.contains(ip).then(|| {
            format!(
                "this node's own subnet {subnet} holds its underlay address {ip}, so other nodes refuse its lease; {}",
                remedy.advise(key, Field::Subnet(family))
            )
        })
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use flannel_core::addr::{LinkIndex, Mtu, PerFamily};
    use flannel_core::config::LeaseSource;

    use super::*;

    #[test]
    fn an_address_among_the_pods_is_named_once() {
        let config = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
        let config = NetworkConfig::parse(config, LeaseSource::Store).unwrap();
        let key: LeaseKey = "10.5.1.0-24&fd00:5:0:1::-64".parse().unwrap();
        for (local, published, network, subnet) in [
            ("192.0.2.1", "192.0.2.1", None, None),
            ("10.5.9.7", "10.5.9.7", Some("10.5.9.7"), None),
            ("10.5.1.7", "10.5.1.7", Some("10.5.1.7"), Some("10.5.1.7")),
            ("192.0.2.1", "10.5.1.7", Some("10.5.1.7"), Some("10.5.1.7")),
            ("10.5.9.7", "203.0.113.1", Some("10.5.9.7"), None),
        ] {
            let one = |text: &str| PerFamily { v4: text.parse().ok(), v6: "fd00:77::1".parse().ok() };
            let underlay = Underlay {
                name: "eth0".into(),
                link: LinkIndex(2),
                mtu: Mtu(1500),
                local: one(local),
                published: one(published),
                reason: String::new(),
            };
            let found = [in_network(&config, &underlay), in_subnet(key, &underlay, &Remedy::default())];
            for (found, want) in found.iter().zip([network, subnet]) {
                assert_eq!(found.len(), usize::from(want.is_some()), "{local} {published}: {found:?}");
                assert!(want.is_none_or(|want| found[0].contains(want)), "{found:?}");
            }
        }
    }
}
