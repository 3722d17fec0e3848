//! Kernel objects as commands of iproute2, for operators who want to see, or do by hand, what the agent would do. Pure.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Address, FdbEntry, Neighbour, NextHop, Object, ObjectKey, ROUTE_PROTOCOL, Route, Through};
use crate::addr::{Family, LinkIndex};

/// The command that deletes an object; `name` returns the names of links. `None` for a next-hop object that is not a
/// spare one, since its id is not part of the value (see [`NextHop`]).
pub fn deletion(object: &Object, name: impl Fn(LinkIndex) -> String) -> Option<String> {
    let link = |index| word(&name(index));
    Some(match *object {
        Object::Address(Address { link: on, addr }) => format!("ip address del {addr} dev {}", link(on)),
        Object::Neighbour(Neighbour { link: on, addr, mac: _ }) => {
            format!("ip neigh del {addr} dev {}", link(on))
        }
        Object::Fdb(entry) => fdb("del", &entry, link),
        Object::NextHop(NextHop { spare, .. }) => format!("ip nexthop del id {}", spare?),
        Object::Route(route) => self::route(&route, link),
    })
}

/// The command that puts an object, in place of one with the same key if `replaces`. `id` returns the ids of next-hop
/// objects; `None` if such an id is needed and unknown.
pub fn put(
    object: &Object,
    replaces: bool,
    name: impl Fn(LinkIndex) -> String,
    mut id: impl FnMut(&NextHop) -> Option<u32>,
) -> Option<String> {
    let link = |index| word(&name(index));
    Some(match *object {
        Object::Address(Address { link: on, addr }) => {
            let more = match addr {
                // Nobody on a VXLAN would answer duplicate address detection.
                IpNetwork::V6(_) => " nodad",
                IpNetwork::V4(net) if net.prefix() < 31 => " broadcast +",
                IpNetwork::V4(_) => "",
            };
            format!("ip address replace {addr} dev {}{more}", link(on))
        }
        Object::Neighbour(Neighbour { link: on, addr, mac }) => {
            format!("ip neigh replace {addr} lladdr {mac} dev {} nud permanent", link(on))
        }
        Object::Fdb(entry) => fdb("replace", &entry, link) + " permanent",
        Object::NextHop(next_hop) => {
            let NextHop { link: on, gateway, .. } = next_hop;
            let (family, id) = (family_flag(Family::of(gateway)), id(&next_hop)?);
            format!(
                "ip {family} nexthop add id {id} via {gateway} dev {} onlink proto {ROUTE_PROTOCOL}",
                link(on)
            )
        }
        Object::Route(route) => {
            let Route { dst, metric, via, link: on, onlink, through, protocol, mtu, plain: _ } = route;
            let verb = if replaces { "replace" } else { "add" };
            let kind = if through == Through::Nowhere { "blackhole " } else { "" };
            let mut text = format!("ip {} route {verb} {kind}{dst}", family_flag(dst.family()));
            if let Some(ObjectKey::NextHop(on, gateway, spare)) = route.next_hop() {
                let id = id(&NextHop { link: on, gateway, spare })?;
                text.extend([format!(" nhid {id}")]);
            } else {
                text.extend(via.map(|via| gateway(dst.family(), via)));
                text.extend(on.map(|on| format!(" dev {}", link(on))));
                text.push_str(if onlink { " onlink" } else { "" });
            }
            text.extend((metric != Route::default_metric(dst.family())).then(|| format!(" metric {metric}")));
            text.extend([format!(" proto {protocol}")]);
            text.extend(mtu.map(|mtu| format!(" mtu lock {mtu}")));
            // Without this a replaced IPv4 route through an object keeps the MTU that it had (see `netlink::encode`).
            let may_keep = replaces && mtu.is_none() && dst.family() == Family::V4;
            text.push_str(if may_keep && route.next_hop().is_some() { " mtu 0" } else { "" });
            text
        }
    })
}

/// The command that shows an object. Without its id a next-hop object is shown with the others of its link.
pub fn look(
    object: &Object,
    name: impl Fn(LinkIndex) -> String,
    id: impl Fn(&NextHop) -> Option<u32>,
) -> String {
    let link = |index| word(&name(index));
    match *object {
        Object::Address(Address { link: on, addr }) => {
            format!("ip {} address show dev {} to {addr}", family_flag(Family::of(addr.ip())), link(on))
        }
        Object::Neighbour(Neighbour { link: on, addr, mac: _ }) => {
            format!("ip neigh show {addr} dev {}", link(on))
        }
        Object::Fdb(FdbEntry { link: on, mac, .. }) => {
            format!("bridge fdb show dev {} | grep -F {mac}", link(on))
        }
        Object::NextHop(next_hop) => match id(&next_hop) {
            Some(id) => format!("ip nexthop show id {id}"),
            None => format!("ip nexthop show dev {}", link(next_hop.link)),
        },
        Object::Route(Route { dst, .. }) => format!("ip {} route show {dst}", family_flag(dst.family())),
    }
}

fn family_flag(family: Family) -> &'static str {
    if family == Family::V4 { "-4" } else { "-6" }
}

fn gateway(family: Family, via: IpAddr) -> String {
    format!(" via {}{via}", if Family::of(via) == family { "" } else { "inet6 " })
}

fn fdb(verb: &str, entry: &FdbEntry, link: impl Fn(LinkIndex) -> String) -> String {
    let FdbEntry { link: on, mac, dst, port, vni, via } = *entry;
    let mut text = format!("bridge fdb {verb} {mac} dev {} dst {dst}", link(on));
    text.extend(port.map(|port| format!(" port {port}")));
    text.extend(vni.map(|vni| format!(" vni {vni}")));
    text.extend(via.map(|via| format!(" via {}", link(via))));
    text + " self"
}

/// A text as one word of a shell command.
pub fn word(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:=,@%+".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Names as much of a route as distinguishes it from others. The next hops of a route that is not plain are left out,
/// and so is the gateway of a route through a next-hop object: `ip route del` would not find the route by it.
fn route(route: &Route, link: impl Fn(LinkIndex) -> String) -> String {
    let Route { dst, metric, via, link: on, onlink: _, through, protocol, mtu: _, plain } = *route;
    let family = family_flag(dst.family());
    let kind = if through == Through::Nowhere { "blackhole " } else { "" };
    let mut text = format!("ip {family} route del {kind}{dst}");
    if plain && through == Through::Itself {
        text.extend(via.map(|via| gateway(dst.family(), via)));
        text.extend(on.map(|on| format!(" dev {}", link(on))));
    }
    text.extend((metric != 0).then(|| format!(" metric {metric}")));
    text.extend([format!(" proto {protocol}")]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{MacAddr, Mtu, Subnet};

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn words_are_quoted_where_a_shell_would_read_them() {
        for (text, want) in [
            ("/run/flannel/subnet.env", "/run/flannel/subnet.env"),
            ("10.5.1.0-24&fd00::-64", "'10.5.1.0-24&fd00::-64'"),
            ("it's $(x)", r"'it'\''s $(x)'"),
            ("", "''"),
        ] {
            assert_eq!(word(text), want);
        }
    }

    #[test]
    fn objects_are_told_as_commands() {
        let (link, mac) = (LinkIndex(3), MacAddr([2, 0, 0, 0, 0, 9]));
        let by_node = Route::by_node(subnet("10.5.2.0/24"), [192, 0, 2, 2].into(), LinkIndex(2));
        let entry = FdbEntry {
            link,
            mac,
            dst: [192, 0, 2, 2].into(),
            port: Some(1),
            vni: None,
            via: Some(LinkIndex(2)),
        };
        let next_hop = NextHop { link, gateway: [10, 5, 2, 0].into(), spare: Some(7) };
        for (object, want) in [
            (
                Object::Address(Address { link, addr: "10.5.1.0/32".parse().unwrap() }),
                "ip address del 10.5.1.0/32 dev flannel.1",
            ),
            (
                Object::Neighbour(Neighbour { link, addr: [10, 5, 2, 0].into(), mac }),
                "ip neigh del 10.5.2.0 dev flannel.1",
            ),
            (
                Object::Fdb(entry),
                "bridge fdb del 02:00:00:00:00:09 dev flannel.1 dst 192.0.2.2 port 1 via eth0 self",
            ),
            (Object::NextHop(next_hop), "ip nexthop del id 7"),
            (Object::Route(by_node), "ip -4 route del 10.5.2.0/24 via 192.0.2.2 dev eth0 proto 102"),
            (
                Object::Route(Route { via: "fe80::1".parse().ok(), ..by_node }),
                "ip -4 route del 10.5.2.0/24 via inet6 fe80::1 dev eth0 proto 102",
            ),
            (
                Object::Route(Route { plain: false, metric: 7, protocol: 3, ..by_node }),
                "ip -4 route del 10.5.2.0/24 metric 7 proto 3",
            ),
            (
                Object::Route(Route { through: Through::Object, ..by_node }),
                "ip -4 route del 10.5.2.0/24 proto 102",
            ),
            (
                Object::Route(Route::blackhole(subnet("fd00:1::/64"))),
                "ip -6 route del blackhole fd00:1::/64 metric 4294967294 proto 102",
            ),
        ] {
            let names = |link: LinkIndex| if link.0 == 3 { "flannel.1" } else { "eth0" }.to_owned();
            assert_eq!(deletion(&object, names).unwrap(), want);
        }
        let named = |link: LinkIndex| if link.0 == 3 { "flannel.1" } else { "eth0" }.to_owned();
        let id = |_: &NextHop| Some(9);
        let chosen = NextHop { spare: None, ..next_hop };
        let on_device = Route { via: Some([10, 5, 2, 0].into()), link: Some(link), onlink: true, ..by_node };
        for (object, replaces, want, show) in [
            (
                Object::Address(Address { link, addr: "fd00::1/128".parse().unwrap() }),
                false,
                "ip address replace fd00::1/128 dev flannel.1 nodad",
                "ip -6 address show dev flannel.1 to fd00::1/128",
            ),
            (
                Object::Neighbour(Neighbour { link, addr: [10, 5, 2, 0].into(), mac }),
                true,
                "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:09 dev flannel.1 nud permanent",
                "ip neigh show 10.5.2.0 dev flannel.1",
            ),
            (
                Object::Fdb(FdbEntry { port: None, via: None, ..entry }),
                false,
                "bridge fdb replace 02:00:00:00:00:09 dev flannel.1 dst 192.0.2.2 self permanent",
                "bridge fdb show dev flannel.1 | grep -F 02:00:00:00:00:09",
            ),
            (
                Object::NextHop(chosen),
                false,
                "ip -4 nexthop add id 9 via 10.5.2.0 dev flannel.1 onlink proto 102",
                "ip nexthop show id 9",
            ),
            (
                Object::Route(on_device),
                false,
                "ip -4 route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink proto 102",
                "ip -4 route show 10.5.2.0/24",
            ),
            (
                Object::Route(Route { through: Through::Object, ..on_device }),
                true,
                "ip -4 route replace 10.5.2.0/24 nhid 9 proto 102 mtu 0",
                "ip -4 route show 10.5.2.0/24",
            ),
            (
                Object::Route(Route::blackhole(subnet("fd00:1::/64"))),
                false,
                "ip -6 route add blackhole fd00:1::/64 metric 4294967294 proto 102",
                "ip -6 route show fd00:1::/64",
            ),
        ] {
            assert_eq!(put(&object, replaces, named, id).unwrap(), want);
            assert_eq!(look(&object, named, id), show);
        }
        assert_eq!(put(&Object::NextHop(chosen), false, named, |_| None), None);
        let unnumbered = Object::NextHop(NextHop { spare: None, ..next_hop });
        assert_eq!(deletion(&unnumbered, |_| String::new()), None);
    }

    #[test]
    fn an_mtu_is_locked_and_taken_away() {
        let link = LinkIndex(3);
        let [v4, v6] = ["10.5.2.0/24", "fd00:2::/64"].map(|dst| Route::by_device(subnet(dst), link));
        let locked = |route: Route| Route { mtu: Some(Mtu(1350)), ..route };
        let through = |route: Route| Route { via: Some(route.dst.base()), through: Through::Object, ..route };
        for (route, replaces, want) in [
            (locked(v4), false, "add 10.5.2.0/24 dev flannel.1 proto 102 mtu lock 1350"),
            (v4, true, "replace 10.5.2.0/24 dev flannel.1 proto 102"),
            (locked(through(v4)), true, "replace 10.5.2.0/24 nhid 9 proto 102 mtu lock 1350"),
            (through(v4), true, "replace 10.5.2.0/24 nhid 9 proto 102 mtu 0"),
            (through(v4), false, "add 10.5.2.0/24 nhid 9 proto 102"),
            (locked(through(v6)), true, "replace fd00:2::/64 nhid 9 proto 102 mtu lock 1350"),
            (through(v6), true, "replace fd00:2::/64 nhid 9 proto 102"),
        ] {
            let text = put(&Object::Route(route), replaces, |_| "flannel.1".to_owned(), |_| Some(9)).unwrap();
            assert_eq!(text[text.find("route ").unwrap()..], format!("route {want}"));
        }
    }
}
