//! Doing what was planned.

use std::thread::sleep;

use flannel_lab::store::Server as _;

use crate::Fallible;
use crate::action::{Action, Drift, Kind, Piece};
use crate::identity;
use crate::lab::{Lab, NIC};
use crate::model::{Backend, NETWORKS, Side};
use crate::phantom::{host, subnet};
use crate::rules;
use crate::trouble;

/// A MAC that nobody has.
const NOBODY: &str = "02:de:ad:00:be:ef";
/// The number of a subnet that nobody has a lease of.
const STRAY: u8 = 190;

/// Does it all: the fault, its time, its end. Returns when nothing is in the way of recovery any more.
///
/// To the nodes `calm` nothing happens meanwhile but what this action brings.
pub(crate) fn perform(lab: &Lab, action: &Action, calm: &[u8]) -> Fallible<()> {
    use Kind::{
        AddressReuse, AgentAway, AgentKilled, AgentPaused, CarrierLoss, Compaction, CutOff, DeviceDeleted,
        DeviceDown, DeviceMac, Garbage, Meddled, NicFlap, NicPulled, NicRename, Partition, Refusing, Remade,
        Renumber, RenumberAway, Restored, RulesLost, Slow, StoreKilled, StorePaused, Tampered, WatchesCut,
    };
    let hold = || sleep(action.hold);
    let Some(number) = action.node else {
        match action.kind {
            StorePaused => {
                lab.store.pause()?;
                hold();
                lab.store.resume()?;
            }
            StoreKilled => {
                lab.store.kill()?;
                hold();
                lab.store.restart()?;
            }
            Compaction => lab.store.compact()?,
            CutOff => return trouble::cut_off(lab, action),
            Restored => return trouble::restore(lab, action, calm),
            WatchesCut => trouble::cut_watches(lab, action)?,
            Garbage | Slow | Refusing => return trouble::misbehave(lab, action),
            Tampered => return identity::tamper(lab, action),
            _ => {}
        }
        return lab.write(&action.put, &action.del);
    };
    let node = lab.node(number);
    let netns = node.netns();
    let link = lab.backend.link(action.v6);
    let damage = || action.drift.map_or(Ok(()), |drift| damage(lab, number, drift));
    match action.kind {
        DeviceDown => drop(netns.ip(&format!("link set {link} down"))?),
        DeviceDeleted => drop(netns.ip(&format!("link del {link}"))?),
        DeviceMac => drop(netns.ip(&format!("link set {link} address {NOBODY}"))?),
        RulesLost => rules::lose(netns, action.v6)?,
        NicFlap => {
            node.link_down(NIC)?;
            hold();
            node.link_up(NIC)?;
        }
        NicPulled => {
            node.delete_nic(NIC)?;
            hold();
            node.restore_nic(NIC)?;
        }
        CarrierLoss => {
            node.carrier_off(NIC)?;
            hold();
            node.carrier_on(NIC)?;
        }
        Partition => {
            node.partition()?;
            hold();
            node.heal()?;
        }
        NicRename => identity::rename_nic(lab, number, action)?,
        Renumber => identity::renumber(lab, number, action)?,
        RenumberAway => identity::renumber_away(lab, number, action)?,
        AddressReuse => identity::use_again(lab, number, action)?,
        Tampered => identity::tamper(lab, action)?,
        AgentKilled => {
            lab.agent(number).kill()?;
            lab.start_agent(number)?;
        }
        AgentPaused => {
            lab.agent(number).pause()?;
            damage()?;
            hold();
            lab.agent(number).resume()?;
        }
        AgentAway => {
            lab.agent(number).terminate()?;
            damage()?;
            hold();
            lab.start_agent(number)?;
        }
        Meddled => trouble::meddle(lab, node, action)?,
        Remade => trouble::make_anew(lab, node, action)?,
        _ => damage()?,
    }
    Ok(())
}

/// Damages one entry.
fn damage(lab: &Lab, number: u8, drift: Drift) -> Fallible<()> {
    let netns = lab.node(number).netns();
    let side = |victim| lab.lease(victim).and_then(|lease| lease.side(drift.v6).cloned());
    let own = side(crate::action::Victim::Node(number)).ok_or("a node without a lease")?;
    let victim = side(drift.victim).ok_or_else(|| format!("no lease of {:?}", drift.victim))?;
    let mut drift = drift;
    if drift.piece == Piece::NextHop {
        let (base, link) = (victim.base(), lab.backend.link(drift.v6));
        let hops = netns.ip(&format!("nexthop show dev {link}")).unwrap_or_default();
        if let Some(id) = next_hop(&hops, &base.to_string()) {
            let wrong = subnet(STRAY, drift.v6).network();
            netns.ip(&if drift.altered {
                format!("nexthop replace id {id} via {wrong} dev {link} onlink proto 102")
            } else {
                format!("nexthop del id {id}")
            })?;
            return Ok(());
        }
        drift.piece = Piece::Route;
    }
    for (is_bridge, command) in commands(lab.backend, drift, &own, &victim) {
        if is_bridge {
            netns.bridge(&command)?
        } else {
            netns.ip(&command)?
        };
    }
    Ok(())
}

/// The number of the next-hop object with this gateway.
fn next_hop(hops: &str, gateway: &str) -> Option<u32> {
    hops.lines().find_map(|line| {
        let words = line.split_whitespace().collect::<Vec<_>>();
        let is_it = words.windows(2).any(|pair| pair == ["via", gateway]);
        words.get(1).filter(|_| is_it)?.parse().ok()
    })
}

/// The commands that do it; of `bridge` if the flag says so, else of `ip`.
fn commands(backend: Backend, drift: Drift, own: &Side, victim: &Side) -> Vec<(bool, String)> {
    let Drift { piece, altered, v6, .. } = drift;
    let (link, family) = (backend.link(v6), if v6 { "-6" } else { "-4" });
    let Side { subnet: dst, underlay, mac } = victim;
    let (base, mac) = (victim.base(), mac.as_deref().unwrap_or(NOBODY));
    // The fabric, which is there and is nobody's node.
    let fabric = host(1, v6);
    let wrong = subnet(STRAY, v6);
    let ip = |command: String| (false, command);
    let put_route = |dst, tunnel_end| match backend {
        Backend::Vxlan => {
            ip(format!("{family} route replace {dst} via {tunnel_end} dev {link} onlink proto 102"))
        }
        Backend::HostGw => ip(format!("{family} route replace {dst} via {fabric} dev {link} proto 102")),
        Backend::Udp | Backend::Wireguard => ip(format!("{family} route replace {dst} dev {link} proto 102")),
        Backend::Ipip => ip(format!("{family} route replace {dst} via {fabric} dev {link} onlink proto 102")),
    };
    let put_neighbour = |addr| ip(format!("neigh replace {addr} lladdr {NOBODY} dev {link} nud permanent"));
    match piece {
        // udp has one route for all.
        Piece::Route if backend == Backend::Udp => {
            vec![ip(format!("{family} route del {} dev {link}", NETWORKS[usize::from(v6)]))]
        }
        // Through WireGuard there is no other way than the device.
        Piece::Route if altered && backend == Backend::Wireguard => {
            vec![ip(format!("{family} route replace {dst} via {fabric} dev {NIC} proto 102"))]
        }
        Piece::Route | Piece::NextHop if altered => vec![put_route(*dst, wrong.network())],
        Piece::Route | Piece::NextHop => vec![ip(format!("{family} route del {dst}"))],
        Piece::Neighbour if altered => vec![put_neighbour(base)],
        Piece::Neighbour => vec![ip(format!("neigh del {base} dev {link}"))],
        Piece::Fdb if altered => vec![(true, format!("fdb replace {mac} dev {link} dst {fabric}"))],
        Piece::Fdb => vec![(true, format!("fdb del {mac} dev {link} dst {underlay}"))],
        Piece::Address => {
            let length = if v6 { 128 } else { 32 };
            vec![ip(format!("address del {}/{length} dev {link}", own.base()))]
        }
        Piece::Stray if backend == Backend::Vxlan => {
            vec![put_neighbour(wrong.network()), put_route(wrong, wrong.network())]
        }
        Piece::Stray => vec![put_route(wrong, wrong.network())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Victim;
    use crate::phantom::Phantom;
    use flannel_lab::cluster::Families;

    #[test]
    fn next_hops_are_found_by_their_gateway() {
        let hops =
            "id 7 via 10.42.1.0 dev flannel.1 scope link proto 102 onlink \nid 8 via 10.42.10.0 dev x \n";
        assert_eq!(next_hop(hops, "10.42.10.0"), Some(8));
        assert_eq!(next_hop(hops, "10.42.1"), None);
    }

    #[test]
    fn drift_is_what_one_would_type() {
        let lease = |number, backend| {
            Phantom { subnet: number, host: 100 + number, mac: 1 }.lease(backend, Families::Dual)
        };
        let lines = |backend, piece, altered, v6| {
            let drift = Drift { piece, altered, victim: Victim::Phantom(2), v6 };
            let (own, victim) = (lease(1, backend), lease(2, backend));
            let commands = commands(backend, drift, own.side(v6).unwrap(), victim.side(v6).unwrap());
            commands.into_iter().map(|(_, command)| command).collect::<Vec<_>>().join("; ")
        };
        for (backend, piece, altered, v6, want) in [
            (Backend::Vxlan, Piece::Route, false, false, "-4 route del 10.42.2.0/24"),
            (
                Backend::Vxlan,
                Piece::Route,
                true,
                true,
                "-6 route replace fd00:42:0:2::/64 via fd00:42:0:be:: dev flannel-v6.1 onlink proto 102",
            ),
            (
                Backend::Vxlan,
                Piece::Fdb,
                true,
                false,
                "fdb replace 02:f1:a0:04:00:01 dev flannel.1 dst 192.168.77.1",
            ),
            (Backend::Vxlan, Piece::Address, false, true, "address del fd00:42:0:1::/128 dev flannel-v6.1"),
            (
                Backend::HostGw,
                Piece::Stray,
                true,
                false,
                "-4 route replace 10.42.190.0/24 via 192.168.77.1 dev eth0 proto 102",
            ),
            (Backend::Udp, Piece::Route, true, true, "-6 route del fd00:42::/48 dev flannel0"),
            (
                Backend::Wireguard,
                Piece::Route,
                true,
                false,
                "-4 route replace 10.42.2.0/24 via 192.168.77.1 dev eth0 proto 102",
            ),
        ] {
            assert_eq!(lines(backend, piece, altered, v6), want);
        }
    }
}
