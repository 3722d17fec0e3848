//! Every way to damage the state of a backend with a command.

use super::Remote;

/// Addresses in our network that nobody has.
fn unused(base: &str) -> (&'static str, &'static str) {
    if base.contains(':') {
        ("fd00:10:244:fe::", "fd00:10:244:fe::/64")
    } else {
        ("10.244.254.0", "10.244.254.0/24")
    }
}

pub(super) fn vxlan_damages(two: &Remote, three: &Remote, own_base: &str) -> Vec<(&'static str, String)> {
    let Remote { device, subnet, base, mac, underlay } = two;
    let bits = if base.contains(':') { 128 } else { 32 };
    let (unused, unused_subnet) = unused(base);
    let stranger = "0a:00:00:00:00:99";
    let elsewhere = &three.underlay;
    vec![
        ("route deleted", format!("ip route del {subnet} dev {device}")),
        ("route changed", format!("ip route replace {subnet} via {} dev {device} onlink", three.base)),
        (
            "route with a locked MTU",
            format!("ip route replace {subnet} via {base} dev {device} onlink mtu lock 1300 proto 102"),
        ),
        ("leftover route", format!("ip route add {unused_subnet} via {unused} dev {device} onlink")),
        ("leftover marked route elsewhere", format!("ip route add {unused_subnet} dev lo proto 102")),
        ("neighbour deleted", format!("ip neigh del {base} dev {device}")),
        (
            "neighbour changed",
            format!("ip neigh replace {base} lladdr {stranger} dev {device} nud permanent"),
        ),
        ("neighbour not permanent", format!("ip neigh change {base} lladdr {mac} dev {device} nud stale")),
        ("leftover neighbour", format!("ip neigh add {unused} lladdr {stranger} dev {device} nud permanent")),
        ("FDB entry deleted", format!("bridge fdb del {mac} dev {device} dst {underlay}")),
        (
            "FDB entry changed",
            format!("bridge fdb replace {mac} dev {device} dst {elsewhere} self permanent"),
        ),
        (
            "FDB entry with a second remote",
            format!("bridge fdb append {mac} dev {device} dst {elsewhere} self permanent"),
        ),
        (
            "leftover FDB entry",
            format!("bridge fdb add {stranger} dev {device} dst {elsewhere} self permanent"),
        ),
        ("address deleted", format!("ip address del {own_base}/{bits} dev {device}")),
        ("leftover address", format!("ip address add {unused}/{bits} dev {device}")),
        ("MTU changed", format!("ip link set {device} mtu 1300")),
        ("MAC changed", format!("ip link set {device} address {stranger}")),
        ("learning changed", format!("ip link set {device} type vxlan id 1 learning")),
        ("down", format!("ip link set {device} down")),
        ("flapped", format!("ip link set {device} down; ip link set {device} up")),
        ("deleted", format!("ip link del {device}")),
        ("all routes flushed", format!("ip route flush dev {device} proto 102")),
        // Looks again until none is left, and gives up after ten rounds: then the agent was quicker each time.
        ("all neighbours flushed", format!("ip neigh flush dev {device} nud permanent || true")),
        (
            "deleted twice",
            format!("ip link del {device}; until ip link del {device} 2>/dev/null; do sleep 0.01; done"),
        ),
    ]
}

pub(super) fn vxlan_object_damages(
    two: &Remote,
    three: &Remote,
    own_base: &str,
) -> Vec<(&'static str, String)> {
    let Remote { device, subnet, base, .. } = two;
    let (unused, _) = unused(base);
    let number = format!("$(ip nexthop show dev {device} | grep 'via {base} ' | cut -d' ' -f2)");
    let hop = |gateway: &str| format!("via {gateway} dev {device} onlink");
    let mut damages = vxlan_damages(two, three, own_base);
    // What these commands ask for no route through an object has.
    damages.retain(|(name, _)| !["route deleted", "all routes flushed"].contains(name));
    damages.extend([
        ("route deleted", format!("ip route del {subnet}")),
        ("route made plain", format!("ip route replace {subnet} {} proto 102", hop(base))),
        ("route through its next hop with an MTU", format!("ip route replace {subnet} nhid {number} mtu lock 1300 proto 102")),
        ("next hop deleted", format!("ip nexthop del id {number}")),
        ("next hop led elsewhere", format!("ip nexthop replace id {number} {} proto 102", hop(&three.base))),
        ("next hop of another protocol",
            format!("n={number}; ip nexthop replace id $n {}; sleep 0.3; ip nexthop del id $n", hop(base))),
        ("all next hops flushed", "ip nexthop flush proto 102".to_owned()),
        ("leftover next hop", format!("ip nexthop add id 78 {} proto 102", hop(unused))),
        ("second next hop", format!("ip nexthop add id 79 {} proto 102", hop(base))),
        (
            "route through a foreign next hop",
            format!(
                "ip nexthop add id 80 {}; ip route replace {subnet} nhid 80 proto 102; sleep 0.3; ip nexthop del id 80",
                hop(base)
            ),
        ),
    ]);
    damages
}

pub(super) fn vxlan_direct_damages(
    two: &Remote,
    three: &Remote,
    own_base: &str,
) -> Vec<(&'static str, String)> {
    let mut damages = vxlan_object_damages(two, three, own_base);
    damages.retain(|(name, _)| !name.contains("route"));
    let on_underlay = |remote: &Remote| Remote { device: "eth0", ..remote.clone() };
    damages.extend(host_gw_damages(&on_underlay(two), &on_underlay(three), own_base));
    damages
}

pub(super) fn host_gw_damages(two: &Remote, three: &Remote, _: &str) -> Vec<(&'static str, String)> {
    let Remote { device, subnet, base, underlay, .. } = two;
    let (_, unused) = unused(base);
    let right = format!("{subnet} via {underlay} dev {device}");
    vec![
        ("route deleted", format!("ip route del {subnet}")),
        (
            "deleted twice",
            format!("ip route del {subnet}; until ip route del {subnet} 2>/dev/null; do sleep 0.01; done"),
        ),
        ("route changed", format!("ip route replace {subnet} via {} dev {device} proto 102", three.underlay)),
        ("route as Go writes it", format!("ip route replace {right}")),
        ("route that takes the gateway for on-link", format!("ip route replace {right} onlink proto 102")),
        ("route with an MTU", format!("ip route replace {right} mtu 1400 proto 102")),
        ("route with a locked MTU", format!("ip route replace {right} mtu lock 1400 proto 102")),
        ("route with another metric", format!("ip route add {right} metric 77 proto 102")),
        ("route to nowhere", format!("ip route replace {subnet} dev lo proto 102")),
        ("leftover route", format!("ip route add {unused} via {underlay} dev {device} proto 102")),
        ("leftover route elsewhere", format!("ip route add {unused} dev lo proto 102")),
        ("all routes flushed", "ip route flush proto 102".to_owned()),
    ]
}

pub(super) fn udp_damages(two: &Remote, _: &Remote, own_base: &str) -> Vec<(&'static str, String)> {
    let Remote { device, base, .. } = two;
    let (network, bits) = if base.contains(':') { ("fd00:10:244::/56", 128) } else { ("10.244.0.0/16", 32) };
    let (unused, unused_subnet) = unused(base);
    vec![
        ("route deleted", format!("ip route del {network} dev {device}")),
        ("route with an MTU", format!("ip route replace {network} dev {device} mtu 1400")),
        ("leftover route", format!("ip route add {unused_subnet} dev {device}")),
        ("leftover marked route elsewhere", format!("ip route add {unused_subnet} dev lo proto 102")),
        ("address deleted", format!("ip address del {own_base}/{bits} dev {device}")),
        ("leftover address", format!("ip address add {unused}/{bits} dev {device}")),
        ("MTU changed", format!("ip link set {device} mtu 1300")),
        ("down", format!("ip link set {device} down")),
        ("flapped", format!("ip link set {device} down; ip link set {device} up")),
        ("deleted", format!("ip link del {device}")),
        ("all routes flushed", format!("ip route flush dev {device} proto 102")),
        (
            "deleted twice",
            format!("ip link del {device}; until ip link del {device} 2>/dev/null; do sleep 0.01; done"),
        ),
    ]
}

pub(super) fn wireguard_damages(two: &Remote, _: &Remote, own_base: &str) -> Vec<(&'static str, String)> {
    let Remote { device, subnet, base, .. } = two;
    let (unused, unused_subnet) = unused(base);
    let (network, bits) = if base.contains(':') { ("fd00:10:244::/56", 128) } else { ("10.244.0.0/16", 32) };
    vec![
        ("route deleted", format!("ip route del {subnet} dev {device}")),
        ("route changed", format!("ip route replace {subnet} dev lo proto 102")),
        ("route with an MTU", format!("ip route replace {subnet} dev {device} mtu 1400 proto 102")),
        (
            "route with a locked MTU",
            format!("ip route replace {subnet} dev {device} mtu lock 1400 proto 102"),
        ),
        ("leftover route", format!("ip route add {unused_subnet} dev {device}")),
        ("route of a Go agent", format!("ip route add {network} dev {device} proto boot")),
        ("blackhole deleted", format!("ip route del blackhole {network} proto 102")),
        ("address deleted", format!("ip address del {own_base}/{bits} dev {device}")),
        ("leftover address", format!("ip address add {unused}/{bits} dev {device}")),
        ("MTU changed", format!("ip link set {device} mtu 1300")),
        ("down", format!("ip link set {device} down")),
        ("flapped", format!("ip link set {device} down; ip link set {device} up")),
        ("deleted", format!("ip link del {device}")),
        ("all routes flushed", format!("ip route flush dev {device} proto 102")),
    ]
}

pub(super) fn ipip_damages(two: &Remote, three: &Remote, own_base: &str) -> Vec<(&'static str, String)> {
    let Remote { device, subnet, base, underlay, .. } = two;
    let (unused, unused_subnet) = unused(base);
    vec![
        ("route deleted", format!("ip route del {subnet}")),
        (
            "route changed",
            format!("ip route replace {subnet} via {} dev {device} onlink proto 102", three.underlay),
        ),
        ("route that is not onlink", format!("ip route replace {subnet} dev {device} proto 102")),
        (
            "leftover route",
            format!("ip route add {unused_subnet} via {underlay} dev {device} onlink proto 102"),
        ),
        ("leftover marked route elsewhere", format!("ip route add {unused_subnet} dev lo proto 102")),
        ("address deleted", format!("ip address del {own_base}/32 dev {device}")),
        ("another address", format!("ip address add {unused}/32 dev {device}")),
        ("device down", format!("ip link set {device} down")),
        ("another MTU", format!("ip link set {device} mtu 1300")),
        ("another local address", format!("ip link set {device} type ipip local 192.168.77.99")),
        ("a fixed TTL", format!("ip tunnel change {device} mode ipip ttl 3 pmtudisc")),
        ("device deleted", format!("ip link del {device}")),
    ]
}
