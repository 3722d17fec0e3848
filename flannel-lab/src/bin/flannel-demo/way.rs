//! How packets get from node1 to node2: what the demo damages.

use crate::Fallible;
use crate::lab::{Lab, network, store};
use crate::leases;

/// How packets of node1 get to the pods of node2, in one family.
#[derive(Debug)]
pub(crate) struct Way {
    /// Whether that is IPv6.
    pub(crate) v6: bool,
    /// The pods of node2.
    pub(crate) subnet: String,
    /// The subnet's first address, which stands for node2 on the overlay.
    pub(crate) gateway: String,
    /// The link that the route goes through.
    pub(crate) link: String,
    /// The inner MAC and the underlay address of node2, if its backend has tunnel ends.
    pub(crate) tunnel: Option<(String, String)>,
    /// Whether the link is a TUN, whose agent carries the packets.
    pub(crate) is_tun: bool,
}

impl Way {
    /// The way as routes and leases have it now.
    pub(crate) fn find(lab: &Lab, v6: bool) -> Fallible<Self> {
        let families = lab.envs[&2].families();
        let family = families.iter().find(|family| family.gateway.is_ipv6() == v6);
        let gateway = family.ok_or("node2 has no subnet in this family")?.gateway;
        let subnet = format!("{}/{}", gateway.network(), gateway.prefix());
        let node = lab.node(1).netns();
        // The route of udp leads to all nodes.
        let subnet = if lab.is_udp() { network(v6).to_owned() } else { subnet };
        let route = node.ip(&format!("{} route show {subnet}", flag(v6)))?;
        let link = link_of(&route).ok_or_else(|| format!("node1 has no route to {subnet}"))?.to_owned();
        let leases = leases::read(&store())?;
        let lease = leases.into_iter().find(|lease| lease.subnet == subnet && lease.vtep_mac != "-");
        let tunnel = lease.map(|lease| (lease.vtep_mac, lease.node));
        let gateway = gateway.network().to_string();
        Ok(Self { v6, subnet, gateway, link, tunnel, is_tun: lab.is_udp() })
    }
}

/// What makes `ip` keep to a family.
pub(crate) fn flag(v6: bool) -> &'static str {
    if v6 { "-6" } else { "-4" }
}

/// The link of a route.
fn link_of(route: &str) -> Option<&str> {
    let mut words = route.split_whitespace().skip_while(|word| *word != "dev");
    words.nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_name_their_link() {
        assert_eq!(link_of("10.42.2.0/24 via 10.42.2.0 dev flannel.1 onlink\n"), Some("flannel.1"));
        assert_eq!(link_of(""), None);
    }
}
