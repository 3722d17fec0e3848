//! What the host itself does with pods' packets: whether it forwards them, and which addresses of others hide peers.
//!
//! The loop never changes sysctls and addresses of others: this module only reports what they mean for this node's
//! pods.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::{Driver, Reconciler};
use crate::addr::{Family, LinkIndex, PerFamily, Subnet};
use crate::dataplane::{Object, ObjectKey};
use crate::events::NetworkEvent;
use crate::kernel::{ConfOf, Forwarding, KernelError, KernelEvent, Link, LinkAddress};
use crate::lease::LeaseKey;
use crate::peers::PeerTable;
use crate::status::{Harm, Problem, Reason, Subject};

/// The findings about the host.
#[derive(Debug, Default)]
pub(super) struct Host {
    /// The families for which forwarding was on once in this run: if it is off now, it is a problem even without pods.
    was_on: BTreeSet<Family>,
    /// The links whose forwarding settings matter.
    watched: BTreeSet<LinkIndex>,
    /// Links of others with an address in the network.
    strangers: BTreeSet<LinkIndex>,
    /// The problems that keep pods' packets from being forwarded.
    problems: Vec<Problem>,
    /// The addresses of others that hide peers.
    shadows: Vec<Problem>,
    /// The peers that can't be reached because of those.
    shadowed: PerFamily<BTreeSet<LeaseKey>>,
}

/// The input of the checks.
struct View<'a> {
    /// The overlay network of each family that is enabled, and this node's subnet of it.
    networks: PerFamily<Subnet>,
    own: PerFamily<Subnet>,
    /// The links by which packets of other nodes arrive.
    ingress: BTreeSet<(Family, LinkIndex)>,
    /// The link by which packets from the world arrive.
    underlay: Option<LinkIndex>,
    links: &'a [Link],
    addresses: &'a [LinkAddress],
    forwarding: BTreeMap<(Family, ConfOf), Forwarding>,
    was_on: &'a BTreeSet<Family>,
}

impl View<'_> {
    fn name(&self, link: LinkIndex) -> &str {
        self.links.iter().find(|known| known.index == link).map_or("?", |known| known.name.as_str())
    }

    fn is_ours(&self, link: LinkIndex) -> bool {
        self.ingress.iter().any(|(_, ours)| *ours == link)
    }

    /// The links of others that are up and have an address in the network of its family.
    fn strangers(&self) -> impl Iterator<Item = (&LinkAddress, Family)> {
        let up = |link| self.links.iter().any(|known| known.index == link && known.up && !known.loopback);
        self.addresses.iter().filter_map(move |address| {
            let family = Family::of(address.addr.ip());
            let inside = self.networks.get(family)?.contains(address.addr.ip());
            (inside && !self.is_ours(address.link) && up(address.link)).then_some((address, family))
        })
    }

    /// The links by which packets of this node's pods arrive: those with an address in its own subnet.
    fn gateways(&self, family: Family) -> impl Iterator<Item = LinkIndex> {
        let own = self.own.get(family).copied();
        let inside = move |address: &LinkAddress| own.is_some_and(|own| own.contains(address.addr.ip()));
        self.strangers().filter(move |(address, of)| *of == family && inside(address)).map(|(it, _)| it.link)
    }

    /// Whether packets that arrive by a link are forwarded. An unknown setting counts as on.
    fn forwards(&self, family: Family, link: LinkIndex) -> bool {
        let of = |of| self.forwarding.get(&(family, of));
        match family {
            Family::V4 => of(ConfOf::Link(link)).is_none_or(|it| it.on),
            // `force_forwarding` of a link (Linux 6.17) would also do, but no netlink message has it.
            Family::V6 => of(ConfOf::All).is_none_or(|it| it.on),
        }
    }

    /// The sysctl that turns forwarding on for a link.
    fn sysctl(&self, family: Family, link: LinkIndex) -> String {
        let all_is_off = self.forwarding.get(&(family, ConfOf::All)).is_some_and(|all| !all.on);
        match family {
            Family::V4 if all_is_off => "net.ipv4.ip_forward".to_owned(),
            // With slashes, since names of devices have dots in them.
            Family::V4 => format!("net/ipv4/conf/{}/forwarding", self.name(link)),
            Family::V6 => "net.ipv6.conf.all.forwarding".to_owned(),
        }
    }

    /// Finds where this host does not forward pods' packets.
    fn judge_forwarding(&self) -> Vec<Problem> {
        let mut found: BTreeMap<(Family, String), Harm> = BTreeMap::new();
        for family in self.networks.families() {
            let gateways: BTreeSet<LinkIndex> = self.gateways(family).collect();
            let from_nodes: Vec<LinkIndex> =
                self.ingress.iter().filter(|(of, _)| *of == family).map(|(_, link)| *link).collect();
            // Without pods nobody is cut off, and CNI's bridge plugin turns forwarding on with the first pod.
            let has_pods = !gateways.is_empty() || self.was_on.contains(&family);
            let harm = |harm| if has_pods { harm } else { Harm::None };
            let of_all =
                gateways.iter().map(|link| (*link, if gateways.len() > 1 { Harm::Some } else { Harm::All }));
            let of_nodes = from_nodes.iter().map(|link| (*link, Harm::All));
            let of_world = self.underlay.iter().map(|link| (*link, Harm::World));
            for (link, bad) in of_all.chain(of_nodes).chain(of_world) {
                if !self.forwards(family, link) {
                    let worst = found.entry((family, self.sysctl(family, link))).or_insert(Harm::None);
                    *worst = (*worst).max(harm(bad));
                }
            }
        }
        found.into_iter().map(|((family, sysctl), harm)| forwarding_off(family, sysctl, harm)).collect()
    }

    /// Finds addresses of others whose routes take packets for peers.
    fn judge_strangers(&self, peers: &PeerTable) -> (Vec<Problem>, PerFamily<BTreeSet<LeaseKey>>) {
        let mut problems = Vec::new();
        let mut cut: PerFamily<BTreeSet<LeaseKey>> = PerFamily::default();
        for (address, family) in self.strangers() {
            let Some(covers) = Subnet::containing(address.addr.ip(), address.addr.prefix()) else { continue };
            for (peer, theirs) in peers.overlapping(covers) {
                let longer = covers.prefix() > theirs.prefix();
                // The kernel's route to an IPv6 prefix has a lower metric than ours. In IPv4 there is only one route to
                // a prefix with metric 0: ours, or ours is refused and reported.
                if !longer && (family == Family::V4 || covers != theirs) {
                    continue;
                }
                let name = self.name(address.link);
                let (addr, what) = (address.addr, if longer { "some packets" } else { "packets" });
                let cause = format!(
                    "address {addr} of link {name} is in the way: {what} to {theirs} of lease {peer} go to {name} and \
                     never leave this node"
                );
                let advice = format!("remove {addr} from {name}, or {name} if it is a leftover");
                let problem =
                    Problem::new(Subject::Foreign(name.to_owned()), Harm::Some, Reason::new(cause, advice));
                problems.push(Problem { peer: Some(peer), ..problem.of(family) });
                if !longer {
                    cut.get_mut(family).get_or_insert_default().insert(peer);
                }
            }
        }
        (problems, cut)
    }
}

fn forwarding_off(family: Family, sysctl: String, harm: Harm) -> Problem {
    let cuts = match harm {
        Harm::None => "no pod has its gateway on this node yet, and those to come will be cut",
        Harm::World => "pods reach no address outside of the cluster",
        Harm::Some => "some pods reach neither other nodes nor the world",
        _ => "pods reach neither other nodes nor the world",
    };
    let cause = format!("the kernel forwards no {family} packets, {sysctl} is 0: {cuts}");
    let advice = format!("run sysctl -w {sysctl}=1");
    Problem::new(Subject::Sysctl(sysctl), harm, Reason::new(cause, advice)).of(family)
}

impl Host {
    /// The problems that keep pods' packets from being forwarded.
    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The addresses of others that hide peers.
    pub(super) fn shadows(&self) -> &[Problem] {
        &self.shadows
    }

    /// The peers of a family that can't be reached because of those.
    pub(super) fn shadowed(&self, family: Family) -> impl Iterator<Item = &LeaseKey> {
        self.shadowed.get(family).into_iter().flatten()
    }

    /// Whether addresses of others are in the network, so that a new peer may be hidden.
    pub(super) fn has_strangers(&self) -> bool {
        !self.strangers.is_empty()
    }
}

impl<D: Driver> Reconciler<D> {
    /// Whether after this notification the loop must look at the host again.
    pub(super) fn concerns_host(&self, event: &KernelEvent) -> bool {
        let inside = |addr: ipnetwork::IpNetwork| {
            let networks = self.record.networks();
            networks.get(Family::of(addr.ip())).is_some_and(|network| network.contains(addr.ip()))
        };
        match event {
            KernelEvent::Forwarding(Forwarding { of, .. }) => match of {
                ConfOf::All => true,
                ConfOf::Default => false,
                ConfOf::Link(link) => self.host.watched.contains(link),
            },
            KernelEvent::Put(Object::Address(address)) => {
                !self.devices.links.contains(&address.link) && inside(address.addr)
            }
            KernelEvent::Gone(ObjectKey::Address(link, addr)) => {
                !self.devices.links.contains(link) && inside(*addr)
            }
            KernelEvent::Link(link) => self.host.strangers.contains(&link.index),
            KernelEvent::LinkGone(link, _) => self.host.strangers.contains(link),
            KernelEvent::Overrun => true,
            _ => false,
        }
    }

    /// Reads forwarding settings and addresses, and updates the findings.
    pub(super) async fn look_at_host(&mut self) -> Result<(), KernelError> {
        let networks = self.record.networks();
        let mut forwarding = BTreeMap::new();
        for family in networks.families() {
            let all = self.kernel.forwarding(family).await?;
            forwarding.extend(all.into_iter().map(|it| ((family, it.of), it)));
        }
        let (links, addresses) = (self.kernel.links().await?, self.kernel.addresses().await?);
        let own = PerFamily::from_fn(|family| networks.get(family).and(self.own.subnet(family)));
        let of_devices = |link: &LinkIndex| self.devices.links.contains(link);
        let scopes = self.driver.scopes().into_iter().filter(|scope| of_devices(&scope.link));
        let view = View {
            networks,
            own,
            ingress: scopes.map(|scope| (scope.family, scope.link)).collect(),
            underlay: self.underlay.as_ref().map(|follower| follower.current.link),
            links: &links,
            addresses: &addresses,
            forwarding,
            was_on: &self.host.was_on,
        };
        let problems = view.judge_forwarding();
        let (shadows, shadowed) = view.judge_strangers(&self.peers);
        let before = [&self.host.problems[..], &self.host.shadows].concat();
        let after = [&problems[..], &shadows].concat();
        for news in after.iter().filter(|it| !before.contains(it)) {
            self.events.send(NetworkEvent::HostCutsPods { reason: news.to_string() });
        }
        for gone in before.iter().filter(|it| after.iter().all(|now| now.subject != it.subject)) {
            self.events.send(NetworkEvent::HostCutsNoMore { reason: gone.reason.cause.clone() });
        }
        let was_on =
            networks.families().filter(|family| problems.iter().all(|it| it.family != Some(*family)));
        let was_on = self.host.was_on.iter().copied().chain(was_on).collect();
        let gateways = networks.families().flat_map(|family| view.gateways(family).collect::<Vec<_>>());
        let watched =
            view.ingress.iter().map(|(_, link)| *link).chain(view.underlay).chain(gateways).collect();
        let strangers = view.strangers().map(|(address, _)| address.link).collect();
        self.host = Host { was_on, watched, strangers, problems, shadows, shadowed };
        Ok(())
    }
}
