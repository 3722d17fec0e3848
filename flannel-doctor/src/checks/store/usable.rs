//! Whether the agent of this host can use a network config: its backend, the backend's keys, and what the networks cover.

use std::net::IpAddr;

use flannel_core::addr::{Family, LinkIndex};
use flannel_core::config::NetworkConfig;
use flannel_core::kernel::Exit;
use flannel_core::reconcile::check_further;
use flannel_core::underlay::{Needed, Use, hides};

use crate::facts::{Answers, Facts};
use crate::finding::{Finding, Skip};

/// Why the agent would refuse a config, or would warn of it.
pub(super) async fn problems(
    facts: &Facts,
    answers: &Answers,
    config: &NetworkConfig,
) -> Result<Vec<Finding>, Skip> {
    let mut found = Vec::new();
    let backends = facts.backends();
    let kind = &config.backend.kind;
    let known = || backends.iter().map(|backend| backend.kind()).collect::<Vec<_>>().join(", ");
    let backend = backends.iter().find(|backend| backend.kind() == kind);
    match backend {
        None if backends.is_empty() => {}
        None => found.push(Finding::failure(
            format!("network config: Backend.Type = {kind:?}: the agent of this host has {}", known()),
            "name a backend that all nodes have; if none is named, it is udp",
        )),
        Some(backend) => {
            let checked = backend.check(config).and_then(|()| check_further(backends, config));
            found.extend(checked.err().map(|error| {
                Finding::failure(
                    error.to_string(),
                    "correct that key in the network config; no agent can start with it",
                )
            }));
        }
    }
    let covered: Vec<Needed> = needed(facts, answers)
        .await?
        .into_iter()
        .filter(|needed| needed.covered_by(config).is_some())
        .collect();
    let has_leases = has_leases(facts, answers, config);
    let how = |has_leases| Use {
        has_leases,
        is_routed_whole: backend.is_some_and(|backend| backend.routes_whole_network()),
    };
    let fix = "choose a network for pods apart from the nodes' addresses, their gateways and the store; docs/network-config.md has examples";
    if let Some(error) = hides(config, &covered, how(has_leases)) {
        found.push(Finding::failure(error.to_string(), fix));
    } else if let Some(error) = hides(config, &covered, how(false)) {
        // A cluster that works this way is not stopped by it.
        found.push(Finding::warning(error.to_string(), fix));
    }
    Ok(found)
}

/// Whether a node has a lease in the networks already, as far as it is known.
fn has_leases(facts: &Facts, answers: &Answers, config: &NetworkConfig) -> bool {
    let own = facts.own().map(|own| own.key).or(facts.previous.key);
    let listed = answers.leases.iter().flat_map(|listing| listing.leases.iter().map(|lease| lease.key));
    own.into_iter().chain(listed).any(|key| key.subnets().iter().any(|(_, subnet)| config.covers(*subnet)))
}

/// The addresses that this node must reach without the overlay: those that it publishes, else those of the links by which
/// default routes lead; the gateways of these; and the store's.
async fn needed(facts: &Facts, answers: &Answers) -> Result<Vec<Needed>, Skip> {
    let mut kernel = facts.host.open_kernel()?;
    let mut needed = Vec::new();
    let published = facts.own().map(|own| own.attrs.public_ips).unwrap_or_default();
    for family in Family::ALL {
        let routes = kernel.default_routes(family).await?;
        let links = routes.iter().flat_map(|route| match route.exit {
            Exit::Nowhere => Vec::new(),
            Exit::By(link) => vec![link],
            Exit::Several(first, second) => vec![first, second],
        });
        let links: Vec<LinkIndex> = links.collect();
        let gateways: Vec<IpAddr> = routes.iter().filter_map(|route| route.via).collect();
        let addresses = facts.addresses()?.iter().filter(|address| {
            let is_of_family = Family::of(address.addr.ip()) == family;
            let is_published = published.get(family).is_some_and(|ip| *ip == address.addr.ip());
            is_of_family
                && (is_published || published.is_empty() && address.global && links.contains(&address.link))
        });
        needed.extend(addresses.map(|address| {
            let link = facts.link(address.link).map_or("this host", |link| link.name.as_str());
            Needed { addr: address.addr.ip(), what: format!("the underlay address of {link}"), way: None }
        }));
        needed.extend(gateways.into_iter().map(|addr| Needed {
            addr,
            what: "the default gateway".to_owned(),
            way: None,
        }));
    }
    let servers = answers.hosts.iter().filter_map(|host| host.parse::<IpAddr>().ok());
    needed.extend(servers.map(|addr| Needed { addr, what: "the store's endpoint".to_owned(), way: None }));
    Ok(needed)
}
