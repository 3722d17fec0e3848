//! The table that there should be. Pure.

use super::{GateOptions, Mode, Tunnels, table_name};
use crate::addr::{Family, Subnet};
use crate::netlink::nftables::{Chain, Hook, Key, Ruling, Set, Table, Term};

/// How many strangers are counted one by one.
pub(super) const MOST_STRANGERS: u32 = 1024;
/// How long one is remembered after its last packet, in milliseconds.
const MEMORY: u64 = 600_000;
/// `NF_INET_PRE_ROUTING`, before connection tracking puts back addresses of replies: what honest nodes send is for
/// this node's own subnet until then.
const BEFORE_ROUTING: Hook = Hook { number: 0, priority: -300 };
/// `NF_INET_LOCAL_IN`, before the rules of others.
const INPUT: Hook = Hook { number: 1, priority: -200 };

/// The set of underlay addresses of a family from which packets are let in.
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

/// The set that counts packets that came out of the overlay for elsewhere, by source and destination.
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

/// The table for these tunnels. `mode` may be less than what was asked for; with [`Mode::Off`] there is none.
///
/// ```text
/// input ─ UDP, port, VNI ─► tunnel4: source in @nodes4 or allowed? ─ return
///                                    else note in @strangers4, drop
/// prerouting ─ from our device ─► overlay: to an own subnet, or not forwarded? ─ return
///                                    else note in @strays4, drop
/// ```
pub(super) fn table(tunnels: &Tunnels, options: &GateOptions, mode: Mode) -> Option<Table> {
    if mode == Mode::Off {
        return None;
    }
    let families: Vec<Family> = tunnels.devices.families().collect();
    let mut sets: Vec<Set> = families.iter().map(|it| set(nodes(*it), Key::Addr(*it), None)).collect();
    let memory = Some((MOST_STRANGERS, MEMORY));
    sets.extend(families.iter().map(|it| set(strangers(*it), Key::Addr(*it), memory)));
    // A packet of either family can be in either tunnel.
    sets.extend(Family::ALL.map(|it| set(strays(it), Key::Pair(it), memory)));
    let mut chains: Vec<Chain> =
        families.iter().map(|it| tunnel_chain(*it, &options.allow_from, mode)).collect();
    chains.push(overlay_chain(tunnels, mode));
    chains.push(Chain {
        name: "input".to_owned(),
        hook: Some(INPUT),
        rules: families.iter().map(|it| to_tunnel(*it, tunnels)).collect(),
    });
    chains.push(Chain {
        name: "prerouting".to_owned(),
        hook: Some(BEFORE_ROUTING),
        rules: tunnels.devices.iter().map(|(_, device)| out_of_tunnel(device)).collect(),
    });
    Some(Table { name: table_name(tunnels.vni), sets, chains })
}

fn set(name: &str, key: Key, dynamic: Option<(u32, u64)>) -> Set {
    Set { name: name.to_owned(), key, dynamic }
}

fn jump(chain: &str) -> Term {
    Term::Then(Ruling::Jump(chain.to_owned()))
}

fn to_tunnel(family: Family, tunnels: &Tunnels) -> Vec<Term> {
    vec![Term::Family(family), Term::UdpPort(tunnels.port), Term::Vni(tunnels.vni), jump(tunnel(family))]
}

fn out_of_tunnel(device: &str) -> Vec<Term> {
    vec![Term::From(device.to_owned()), jump("overlay")]
}

fn tunnel_chain(family: Family, allow_from: &[Subnet], mode: Mode) -> Chain {
    let pass = || Term::Then(Ruling::Return);
    // The family is known here; `nft` shows addresses as such only where a rule says it again.
    let is = || Term::Family(family);
    let mut rules = vec![vec![is(), Term::SrcInSet(family, nodes(family).to_owned()), pass()]];
    let allowed = allow_from.iter().filter(|subnet| subnet.family() == family);
    rules.extend(allowed.map(|subnet| vec![is(), Term::Src(*subnet), pass()]));
    // The counter before the set counts on when that is full.
    rules.push(vec![is(), Term::Count, Term::Note(Key::Addr(family), strangers(family).to_owned())]);
    rules.extend((mode == Mode::Enforce).then(|| vec![Term::Then(Ruling::Drop)]));
    Chain { name: tunnel(family).to_owned(), hook: None, rules }
}

fn overlay_chain(tunnels: &Tunnels, mode: Mode) -> Chain {
    let pass = || Term::Then(Ruling::Return);
    let own = tunnels.subnets.iter();
    let mut rules: Vec<Vec<Term>> =
        own.map(|(family, subnet)| vec![Term::Family(family), Term::Dst(*subnet), pass()]).collect();
    rules.push(vec![Term::StaysHere, pass()]);
    let note = |family| {
        vec![Term::Family(family), Term::Count, Term::Note(Key::Pair(family), strays(family).to_owned())]
    };
    rules.extend(Family::ALL.map(note));
    rules.extend((mode == Mode::Enforce).then(|| vec![Term::Then(Ruling::Drop)]));
    Chain { name: "overlay".to_owned(), hook: None, rules }
}
