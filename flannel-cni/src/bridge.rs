//! Detects the most frequent reason why a bridge refuses a pod: it still has the address of an earlier subnet.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use serde_json::Value;

use crate::cidr::Cidr;
use crate::delegate;
use crate::netconf::Object;

/// An address of a link, with the length of its prefix.
pub type LinkAddress = (IpAddr, u8);

/// What to do about the addresses of the bridge in a delegate's config; `None` if they are right, or do not concern us.
pub fn advice(config: &Object) -> Option<String> {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let is_gateway = config.get("isGateway") == Some(&Value::Bool(true));
    let is_host_local = config.get("ipam")?.get("type")? == "host-local";
    if text("type") != Some("bridge") || !is_gateway || !is_host_local {
        return None;
    }
    let bridge = text("bridge").unwrap_or("cni0");
    let subnets = delegate::subnets(config);
    let stale = stale(&addresses(bridge), &subnets);
    sentence(bridge, &stale, &subnets)
}

/// The addresses that keep the bridge plugin from giving the bridge the subnets' gateways: any other of
/// IPv4, and of IPv6 those whose subnet overlaps. Upstream: containernetworking/plugins, `bridge.go`, `ensureAddr`.
fn stale(addresses: &[LinkAddress], subnets: &[Cidr]) -> Vec<LinkAddress> {
    let mut stale = Vec::new();
    for subnet in subnets {
        if addresses.contains(&(subnet.gateway(), subnet.prefix())) {
            continue;
        }
        stale.extend(addresses.iter().filter(|(address, len)| {
            let overlaps = Cidr::around(*address, *len).is_some_and(|other| other.overlaps(subnet));
            address.is_ipv4() == subnet.is_ipv4() && (address.is_ipv4() || overlaps)
        }));
    }
    stale
}

fn sentence(bridge: &str, stale: &[LinkAddress], subnets: &[Cidr]) -> Option<String> {
    if stale.is_empty() {
        return None;
    }
    let join = |texts: Vec<String>, with: &str| texts.join(with);
    let has = join(stale.iter().map(|(address, len)| format!("{address}/{len}")).collect(), ", ");
    let ours = join(subnets.iter().map(ToString::to_string).collect(), ", ");
    let command = |(address, len): &LinkAddress| format!("ip address del {address}/{len} dev {bridge}");
    let commands = join(stale.iter().map(command).collect(), " && ");
    Some(format!(
        "{bridge} has {has} of an earlier subnet, and this node's subnet is {ours}. Run: {commands}; the next ADD gives \
         {bridge} its address. Pods that have addresses of the earlier subnet are cut off and have to be made anew"
    ))
}

/// The addresses of a link, none if there is no such link.
fn addresses(link: &str) -> Vec<LinkAddress> {
    let all = getifaddrs().into_iter().flatten().filter(|entry| entry.interface_name == link);
    all.filter_map(|entry| {
        let (address, mask) = (ip(&entry.address?)?, ip(&entry.netmask?)?);
        let len = match mask {
            IpAddr::V4(v4) => v4.to_bits().leading_ones(),
            IpAddr::V6(v6) => v6.to_bits().leading_ones(),
        };
        Some((address, u8::try_from(len).ok()?))
    })
    .collect()
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> LinkAddress {
        let (address, len) = text.split_once('/').unwrap();
        (address.parse().unwrap(), len.parse().unwrap())
    }

    #[test]
    fn other_addresses_are_stale_unless_the_gateway_is_there() {
        let subnets: Vec<Cidr> = ["10.1.17.0/24", "fd00:0:0:1::/64"].map(|text| text.parse().unwrap()).into();
        for (addresses, expected) in [
            (&[][..], &[][..]),
            (&["10.1.17.1/24"], &[]),
            (&["10.1.5.1/24"], &["10.1.5.1/24"]),
            (&["10.1.17.1/16"], &["10.1.17.1/16"]),
            (&["10.1.5.1/24", "10.1.17.1/24"], &[]),
            (&["fe80::1/64", "fd00:0:0:2::1/64"], &[]),
            (&["fd00:0:0:1::9/64", "10.1.17.1/24"], &["fd00:0:0:1::9/64"]),
        ] {
            let addresses: Vec<_> = addresses.iter().map(|text| at(text)).collect();
            let expected: Vec<_> = expected.iter().map(|text| at(text)).collect();
            assert_eq!(stale(&addresses, &subnets), expected, "{addresses:?}");
        }
    }

    #[test]
    fn the_sentence_has_the_commands() {
        let subnets = ["10.1.17.0/24".parse().unwrap()];
        let text = sentence("cni0", &[at("10.1.5.1/24"), at("10.1.6.1/24")], &subnets).unwrap();
        assert!(
            text.contains("Run: ip address del 10.1.5.1/24 dev cni0 && ip address del 10.1.6.1/24 dev cni0;"),
            "{text}"
        );
        assert_eq!(sentence("cni0", &[], &subnets), None);
    }

    #[test]
    fn addresses_are_those_of_the_kernel() {
        assert!(addresses("lo").contains(&at("127.0.0.1/8")));
        assert_eq!(addresses("no such link"), []);
    }
}
