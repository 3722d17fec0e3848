//! Which devices of the host carry this agent's overlay, and which are another agent's.

use std::net::IpAddr;

use flannel_core::addr::Family;
use flannel_core::kernel::Link;

use super::{Facts, OtherAgent};
use crate::finding::sample;

impl Facts {
    /// The devices that carry this agent's overlay: those that the state file names. Where it names none (udp's is not in
    /// it, and an agent in Go writes no such file) they are those with names of flannel's and an address of this node's
    /// subnets. A host may have several agents, and another one's devices are none of ours.
    pub(crate) fn overlay_links(&self) -> impl Iterator<Item = &Link> {
        self.links.as_deref().unwrap_or_default().iter().filter(|link| self.is_ours(link))
    }

    fn is_ours(&self, link: &Link) -> bool {
        let state = self.recalled.state.as_ref();
        if let Some(state) = state.filter(|state| !state.devices.is_empty()) {
            // Second devices are there while a node changes its key.
            let first = link.name.strip_suffix("-r").filter(|_| state.backend == "wireguard");
            return state.devices.iter().any(|of| of.name == link.name || first == Some(of.name.as_str()));
        }
        if state.is_some_and(|state| self.has_no_devices(&state.backend)) {
            return false;
        }
        let addresses: Vec<IpAddr> = self.addresses_of(link).collect();
        let subnets = self.subnets();
        let is_own = |ip: &IpAddr| subnets.iter().any(|(_, subnet)| subnet.contains(*ip));
        let may_be = subnets.is_empty() || addresses.is_empty() || addresses.iter().any(is_own);
        self.is_flannels(link) && may_be && self.other_with(link).is_none()
    }

    fn has_no_devices(&self, backend: &str) -> bool {
        let of_kind = self.backends.iter().find(|known| known.kind() == backend);
        of_kind.map_or(backend == "host-gw", |backend| backend.devices().is_empty())
    }

    /// The addresses of a link that are not link-local.
    fn addresses_of(&self, link: &Link) -> impl Iterator<Item = IpAddr> {
        let all = self.addresses.as_deref().unwrap_or_default().iter();
        let of_link = all.filter(|address| address.link == link.index).map(|address| address.addr.ip());
        of_link.filter(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()))
    }

    /// Whether a link has a name and a kind of flannel's devices, whichever agent's.
    pub(crate) fn is_flannels(&self, link: &Link) -> bool {
        let kind = link.kind.as_deref();
        let mut kinds = self.backends.iter().flat_map(|backend| backend.devices());
        is_overlay_name(&link.name) && matches!(kind, Some("vxlan" | "tun" | "ipip" | "wireguard"))
            || kinds.any(|of| of.is_only && of.prefix == link.name && kind == Some(of.kind))
    }

    /// The other agent of this host that has a link.
    pub(crate) fn other_with(&self, link: &Link) -> Option<&OtherAgent> {
        let addresses: Vec<IpAddr> = self.addresses_of(link).collect();
        self.others.iter().find(|other| other.has(link, &addresses))
    }

    /// The agents besides ours of which nothing is known but that they run, and so not what is theirs.
    pub(crate) fn unknown_others(&self) -> Option<String> {
        let unknown = self.others.iter().filter(|other| !other.is_known());
        let pids: Vec<String> = unknown.map(|other| other.process.pid.to_string()).collect();
        (!pids.is_empty()).then(|| sample(&pids))
    }

    /// The VXLAN device for a family.
    pub(crate) fn vtep(&self, family: Family) -> Option<&Link> {
        let prefix = if family == Family::V4 { "flannel." } else { "flannel-v6." };
        self.overlay_links().find(|link| link.name.starts_with(prefix))
    }

    /// The links of underlay and overlay that IPv6 needs. If the underlay's IPv6 address is gone, its link is the one that
    /// the device is bound to, or that has the IPv4 address.
    pub(crate) fn links_with_ipv6(&self) -> Vec<&Link> {
        let publishes = self.own().is_some_and(|own| own.attrs.public_ips.get(Family::V6).is_some());
        let lower = || {
            let vxlan = self.vtep(Family::V6).and_then(|link| link.vxlan.as_ref());
            vxlan.and_then(|vxlan| self.link(vxlan.lower?))
        };
        let underlay = self
            .underlay_link(Family::V6)
            .or_else(|| lower().or_else(|| self.underlay_link(Family::V4)).filter(|_| publishes));
        self.overlay_links().filter(|link| carries(link, Family::V6)).chain(underlay).collect()
    }
}

/// Whether a device has a name of flannel's: `flannel.1`, `flannel-v6.1`, `flannel0`.
fn is_overlay_name(name: &str) -> bool {
    let number = name.strip_prefix("flannel-v6.").or_else(|| name.strip_prefix("flannel."));
    let number = number.or_else(|| name.strip_prefix("flannel"));
    if matches!(name, "flannel.ipip" | "flannel-wg" | "flannel-wg-v6") {
        return true;
    }
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether a device of the overlay carries packets of a family: vxlan has one for each, wireguard as a rule, udp one for
/// both.
pub(crate) fn carries(link: &Link, family: Family) -> bool {
    match link.name.as_str() {
        name if name.starts_with("flannel-v6.") || name == "flannel-wg-v6" => family == Family::V6,
        name if name.starts_with("flannel.") => family == Family::V4,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        for (name, is_ours) in [
            ("flannel.1", true),
            ("flannel-v6.4096", true),
            ("flannel0", true),
            ("flannel-wg", true),
            ("flannel-wg-v6", true),
            ("flannel-wg1", false),
            ("flannel", false),
            ("flannel.a", false),
            ("eth0", false),
        ] {
            assert_eq!(is_overlay_name(name), is_ours, "{name}");
        }
    }
}
