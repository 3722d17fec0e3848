//! Kernel objects as commands of iproute2, for operators who want to see, or do by hand, what the agent would do. Pure.

use super::{Address, FdbEntry, Neighbour, NextHop, Object, Route, Through};
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
        Object::Fdb(entry) => fdb(&entry, link),
        Object::NextHop(NextHop { spare, .. }) => format!("ip nexthop del id {}", spare?),
        Object::Route(route) => self::route(&route, link),
    })
}

fn fdb(entry: &FdbEntry, link: impl Fn(LinkIndex) -> String) -> String {
    let FdbEntry { link: on, mac, dst, port, vni, via } = *entry;
    let mut text = format!("bridge fdb del {mac} dev {} dst {dst}", link(on));
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
    let Route { dst, metric, via, link: on, onlink: _, through, protocol, plain } = *route;
    let family = if dst.family() == Family::V4 { "-4" } else { "-6" };
    let kind = if through == Through::Nowhere { "blackhole " } else { "" };
    let mut text = format!("ip {family} route del {kind}{dst}");
    if plain && through == Through::Itself {
        text.extend(via.map(|via| {
            let other = if Family::of(via) == dst.family() { "" } else { "inet6 " };
            format!(" via {other}{via}")
        }));
        text.extend(on.map(|on| format!(" dev {}", link(on))));
    }
    text.extend((metric != 0).then(|| format!(" metric {metric}")));
    text.extend([format!(" proto {protocol}")]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{MacAddr, Subnet};

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
        let unnumbered = Object::NextHop(NextHop { spare: None, ..next_hop });
        assert_eq!(deletion(&unnumbered, |_| String::new()), None);
    }
}
