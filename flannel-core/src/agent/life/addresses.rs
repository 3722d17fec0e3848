//! Finds addresses of underlay, gateways and store that the pods' network covers. Such a config is refused, or the
//! addresses are named: packets to them may go to pods, and nothing else would show why.

use std::net::IpAddr;
use std::time::Duration;

use crate::addr::Family;
use crate::backend::Underlay;
use crate::config::NetworkConfig;
use crate::dataplane::{Object, ROUTE_PROTOCOL};
use crate::kernel::{Exit, Kernel, KernelError, Kinds, Scope};
use crate::lease::{Field, LeaseKey};
use crate::subnet::Remedy;
use crate::underlay::Needed;

/// How long a name may take to resolve. A name that takes longer is not checked.
const PATIENCE: Duration = Duration::from_secs(2);

/// The addresses that this node must reach without the overlay: underlay addresses, default gateways, and the store.
/// For those that the pods' networks cover, the route to them is looked up, too.
pub(super) async fn needed(
    kernel: &mut dyn Kernel,
    config: &NetworkConfig,
    underlay: &Underlay,
    store_hosts: &[String],
) -> Result<Vec<Needed>, KernelError> {
    let mut all = Needed::of_underlay(underlay);
    for family in config.families() {
        let gateways = kernel.default_routes(family).await?.into_iter().filter_map(|route| route.via);
        all.extend(gateways.map(|addr| Needed { addr, what: "the default gateway".to_owned(), way: None }));
    }
    for host in store_hosts {
        let what = match host.parse::<IpAddr>() {
            Ok(_) => "the store's endpoint".to_owned(),
            Err(_) => format!("the store's endpoint {host},"),
        };
        let found = resolve(host).await.into_iter();
        all.extend(found.map(|addr| Needed { addr, what: what.clone(), way: None }));
    }
    for needed in &mut all {
        if needed.covered_by(config).is_some() {
            needed.way = way(kernel, underlay, needed.addr).await?;
        }
    }
    Ok(all)
}

/// The addresses of a host.
async fn resolve(host: &str) -> Vec<IpAddr> {
    if let Ok(addr) = host.parse() {
        return vec![addr];
    }
    match tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(found)) => found.map(|socket| socket.ip()).collect(),
        _ => Vec::new(),
    }
}

/// The prefix length of the most specific route to an address, apart from ours. For this node's own address it is that
/// of the link's routes, by which peers on the link reach it.
async fn way(kernel: &mut dyn Kernel, underlay: &Underlay, addr: IpAddr) -> Result<Option<u8>, KernelError> {
    let is_own = underlay.local.iter().any(|(_, own)| *own == addr);
    let link = if is_own {
        Some(underlay.link)
    } else {
        // A refused look-up, as for an unreachable route, means that there is no route.
        let found = kernel.lookup(addr).await.ok().flatten();
        found.and_then(|route| match route.exit {
            Exit::By(link) | Exit::Several(link, _) => Some(link),
            Exit::Nowhere => None,
        })
    };
    let Some(link) = link else { return Ok(None) };
    let scope = Scope { link, family: Family::of(addr), kinds: Kinds::ROUTES };
    let lengths = kernel.objects(scope).await?.into_iter().filter_map(|object| match object {
        Object::Route(route) if route.dst.contains(addr) && route.protocol != ROUTE_PROTOCOL => {
            Some(route.dst.prefix())
        }
        _ => None,
    });
    Ok(lengths.max())
}

/// Remarks about addresses that the pods' network covers, in a cluster that works nevertheless.
pub(super) fn in_network(config: &NetworkConfig, needed: &[Needed]) -> Vec<String> {
    let named = needed.iter().filter_map(|needed| {
        let network = needed.covered_by(config)?;
        Some(format!(
            "{needed} lies inside the network {network} of the pods, so a pod's subnet can hide it; choose a network apart \
             from the nodes' addresses, their gateways and the store"
        ))
    });
    named.collect()
}

/// Remarks about underlay addresses inside the node's own subnet. The node keeps the subnet, since pods may run in it.
pub(super) fn in_subnet(key: LeaseKey, underlay: &Underlay, remedy: &Remedy) -> Vec<String> {
    let named = Needed::of_underlay(underlay).into_iter().filter_map(|Needed { addr: ip, .. }| {
        let family = Family::of(ip);
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
    use crate::addr::{LinkIndex, Mtu, PerFamily};
    use crate::config::LeaseSource;
    use crate::dataplane::{Route, Through};
    use crate::testing::FakeKernel;
    use crate::underlay;

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
            let found = [
                in_network(&config, &Needed::of_underlay(&underlay)),
                in_subnet(key, &underlay, &Remedy::default()),
            ];
            for (found, want) in found.iter().zip([network, subnet]) {
                assert_eq!(found.len(), usize::from(want.is_some()), "{local} {published}: {found:?}");
                assert!(want.is_none_or(|want| found[0].contains(want)), "{found:?}");
            }
        }
    }

    #[tokio::test]
    async fn addresses_need_no_resolver() {
        assert_eq!(resolve("2001:db8::1").await, ["2001:db8::1".parse::<IpAddr>().unwrap()]);
    }

    /// The backend's route for the whole network, 10.5.0.0/16: it takes packets for what only a wider route reaches.
    #[tokio::test]
    async fn what_one_route_for_all_pods_would_cut_is_told_by_the_routes() {
        let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#, LeaseSource::Store).unwrap();
        let how = underlay::Use { has_leases: true, is_routed_whole: true };
        for (local, routes, store, cut) in [
            ("10.5.9.7", &["10.5.9.0/24"][..], "192.0.2.9", None),
            ("10.5.9.7", &["10.5.0.0/16"], "192.0.2.9", Some("the underlay address of eth0 10.5.9.7")),
            ("10.5.9.7", &["10.0.0.0/8"], "192.0.2.9", Some("the underlay address of eth0 10.5.9.7")),
            ("192.0.2.1", &["192.0.2.0/24", "0.0.0.0/0"], "10.5.1.1", Some("the store's endpoint 10.5.1.1")),
            ("192.0.2.1", &["192.0.2.0/24", "0.0.0.0/0", "10.5.1.0/28"], "10.5.1.1", None),
            // Nothing led there before, and to what the network does not cover nothing matters.
            ("192.0.2.1", &["192.0.2.0/24"], "10.5.1.1", None),
            ("192.0.2.1", &["192.0.2.0/24", "0.0.0.0/0"], "203.0.113.1", None),
        ] {
            let mut kernel = FakeKernel::default();
            let link = kernel.add_link("eth0", 1500);
            for dst in routes {
                let route = Route::blackhole(dst.parse().unwrap());
                let route =
                    Route { link: Some(link), metric: 0, protocol: 2, through: Through::Itself, ..route };
                kernel.put(Object::Route(route), false);
            }
            let local = PerFamily { v4: local.parse().ok(), v6: None };
            let underlay = Underlay {
                name: "eth0".into(),
                link,
                mtu: Mtu(1500),
                local,
                published: local,
                reason: String::new(),
            };
            let needed = needed(&mut kernel, &config, &underlay, &[store.to_owned()]).await.unwrap();
            let told = underlay::hides(&config, &needed, how).map(|error| error.to_string());
            assert_eq!(told.is_some(), cut.is_some(), "{routes:?}: {told:?}");
            let wanted = cut
                .map(|what| format!("Network = 10.5.0.0/16: covers {what}: the backend's route would cut"));
            assert!(wanted.is_none_or(|wanted| told.as_ref().unwrap().contains(&wanted)), "{told:?}");
        }
    }
}
