//! The desired tables. Pure.

use super::{GateOptions, Mode, Tunnels, table_name};
use crate::addr::{Family, Subnet};
use crate::netlink::nftables::{Chain, Hook, HookKind, Key, Ruling, Sense, Set, Table, TableFamily, Term};

/// How many strangers are counted individually.
pub(super) const MOST_STRANGERS: u32 = 1024;
/// How long a stranger is remembered after its last packet, in milliseconds.
const MEMORY: u64 = 600_000;
/// `NF_INET_LOCAL_IN`, with a priority before the rules of others.
const INPUT: Hook = Hook { kind: HookKind::Filter, number: 1, priority: -200, link: None, drops: false };

/// `NF_NETDEV_INGRESS` of a device: only packets out of the overlay pass the rules. The hook is before connection
/// tracking, which restores the addresses of replies: at that point all packets from honest nodes are for this node's
/// own subnet.
fn ingress(device: &str) -> Hook {
    Hook { kind: HookKind::Filter, number: 0, priority: 0, link: Some(device.to_owned()), drops: false }
}

/// The set of underlay addresses of a family that are admitted.
pub(super) fn nodes(family: Family) -> &'static str {
    match family {
        Family::V4 => "nodes4",
        Family::V6 => "nodes6",
    }
}

/// The set that counts the packets of each stranger.
pub(super) fn strangers(family: Family) -> &'static str {
    match family {
        Family::V4 => "strangers4",
        Family::V6 => "strangers6",
    }
}

/// The set that counts packets out of the overlay for other destinations, by source and destination.
pub(super) fn strays(family: Family) -> &'static str {
    match family {
        Family::V4 => "strays4",
        Family::V6 => "strays6",
    }
}

fn tunnel(family: Family) -> &'static str {
    match family {
        Family::V4 => "tunnel4",
        Family::V6 => "tunnel6",
    }
}

fn ingress_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "ingress4",
        Family::V6 => "ingress6",
    }
}

/// The tables for these tunnels: first the one for underlay packets, then the one for overlay packets. `mode` may be
/// less strict than the options; with [`Mode::Off`] there are none.
///
/// ```text
/// inet:   input ─ UDP, port ─ source in @nodes4? ─ return
///                 UDP, port, VNI ─► tunnel4: allowed? ─ return, else note in @strangers4, drop
/// netdev: ingress of our device ─► overlay: to an own subnet, or not forwarded? ─ return
///                                           else note in @strays4, drop
/// ```
///
/// Nearly all packets come from nodes, so the first rule checks as little as possible: a packet with another VNI from a
/// node needs no check.
pub(super) fn tables(tunnels: &Tunnels, options: &GateOptions, mode: Mode) -> Option<[Table; 2]> {
    if mode == Mode::Off {
        return None;
    }
    let name = table_name(tunnels.vni);
    let families: Vec<Family> = tunnels.devices.families().collect();
    let memory = Some((MOST_STRANGERS, MEMORY));

    let mut sets: Vec<Set> = families.iter().map(|it| set(nodes(*it), Key::Addr(*it), None)).collect();
    sets.extend(families.iter().map(|it| set(strangers(*it), Key::Addr(*it), memory)));
    let mut chains: Vec<Chain> =
        families.iter().map(|it| tunnel_chain(*it, &options.allow_from, mode)).collect();
    let from_nodes = families.iter().map(|it| from_node(*it, tunnels));
    let rules = from_nodes.chain(families.iter().map(|it| to_tunnel(*it, tunnels))).collect();
    chains.push(Chain { name: "input".to_owned(), hook: Some(INPUT), rules });
    let underlay = Table { family: TableFamily::Inet, name: name.clone(), sets, chains };

    // A packet of either family can be in either tunnel.
    let sets = Family::ALL.map(|it| set(strays(it), Key::Pair(it), memory)).into();
    let mut chains = vec![overlay_chain(tunnels, mode)];
    chains.extend(tunnels.devices.iter().map(|(family, device)| Chain {
        name: ingress_of(family).to_owned(),
        hook: Some(ingress(device)),
        rules: vec![vec![jump("overlay")]],
    }));
    let overlay = Table { family: TableFamily::Netdev, name, sets, chains };
    Some([underlay, overlay])
}

fn set(name: &str, key: Key, dynamic: Option<(u32, u64)>) -> Set {
    Set { name: name.to_owned(), key, dynamic }
}

fn jump(chain: &str) -> Term {
    Term::Then(Ruling::Jump(chain.to_owned()))
}

fn pass() -> Term {
    Term::Then(Ruling::Return)
}

fn from_node(family: Family, tunnels: &Tunnels) -> Vec<Term> {
    let is_node = Term::SrcInSet(family, nodes(family).to_owned());
    vec![Term::Family(family), Term::UdpPort(tunnels.port), is_node, pass()]
}

fn to_tunnel(family: Family, tunnels: &Tunnels) -> Vec<Term> {
    vec![Term::Family(family), Term::UdpPort(tunnels.port), Term::Vni(tunnels.vni), jump(tunnel(family))]
}

fn tunnel_chain(family: Family, allow_from: &[Subnet], mode: Mode) -> Chain {
    // The family is known here, but `nft` prints addresses as such only if the rule has the family, too.
    let is = || Term::Family(family);
    let allowed = allow_from.iter().filter(|subnet| subnet.family() == family);
    let mut rules: Vec<Vec<Term>> =
        allowed.map(|subnet| vec![is(), Term::Src(*subnet, Sense::Is), pass()]).collect();
    // The counter comes before the set, so that it still counts when the set is full.
    rules.push(vec![is(), Term::Count, Term::Note(Key::Addr(family), strangers(family).to_owned())]);
    rules.extend((mode == Mode::Enforce).then(|| vec![Term::Then(Ruling::Drop)]));
    Chain { name: tunnel(family).to_owned(), hook: None, rules }
}

/// Frames without an IP packet, such as ARP, are ignored.
fn overlay_chain(tunnels: &Tunnels, mode: Mode) -> Chain {
    let own = tunnels.subnets.iter();
    let mut rules: Vec<Vec<Term>> = own
        .map(|(family, subnet)| vec![Term::Carries(family), Term::Dst(*subnet, Sense::Is), pass()])
        .collect();
    rules.push(vec![Term::StaysHere, pass()]);
    let note = |family| {
        vec![Term::Carries(family), Term::Count, Term::Note(Key::Pair(family), strays(family).to_owned())]
    };
    rules.extend(Family::ALL.map(note));
    let drop = |family| vec![Term::Carries(family), Term::Then(Ruling::Drop)];
    rules.extend(Family::ALL.map(drop).into_iter().filter(|_| mode == Mode::Enforce));
    Chain { name: "overlay".to_owned(), hook: None, rules }
}
