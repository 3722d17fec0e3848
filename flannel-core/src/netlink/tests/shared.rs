//! Routes on links that others use, too, as a real kernel keeps them apart.

use flannel_lab::test_name;

use super::super::Netlink;
use super::sandbox::{ip, with_underlay};
use crate::addr::{Family, LinkIndex};
use crate::dataplane::{Object, Op, ROUTE_PROTOCOL, Route, Through};
use crate::kernel::{Exit, Kernel, KernelEvent};

/// The route of a host-gw peer.
fn route(family: Family, subnet: &str, via: &str, link: LinkIndex) -> Route {
    Route {
        dst: subnet.parse().unwrap(),
        metric: Route::default_metric(family),
        via: via.parse().ok(),
        link: Some(link),
        onlink: false,
        through: Through::Itself,
        protocol: ROUTE_PROTOCOL,
        mtu: None,
        plain: true,
    }
}

#[test]
fn marked_routes_are_found_on_any_link_and_nothing_else() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        ip("link set lo up");
        for (command, subnets) in [
            ("route add", ["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/24"]),
            ("-6 route add", ["fd00:1::/64", "fd00:2::/64", "fd00:3::/64", "fd00:4::/64"]),
        ] {
            let gateway = if command.starts_with("-6") { "2001:db8::9" } else { "192.0.2.9" };
            ip(&format!("{command} {} via {gateway} dev eth0 proto 102", subnets[0]));
            ip(&format!("{command} {} dev lo proto 102", subnets[1]));
            ip(&format!("{command} {} via {gateway} dev eth0", subnets[2]));
            ip(&format!("{command} {} via {gateway} dev eth0 table 77 proto 102", subnets[3]));
        }
        for (family, want) in
            [(Family::V4, ["10.1.0.0/24", "10.2.0.0/24"]), (Family::V6, ["fd00:1::/64", "fd00:2::/64"])]
        {
            let found = kernel.routes_by(family, ROUTE_PROTOCOL).await.unwrap();
            let mut found: Vec<_> = (found.iter())
                .map(|object| match object {
                    Object::Route(route) => route.dst.to_string(),
                    other => panic!("{other:?} is no route"),
                })
                .collect();
            found.sort();
            assert_eq!(found, want);
        }
    });
}

#[test]
fn blackholes_come_back_as_they_were_put_and_yield_to_every_other_route() {
    with_underlay(test_name!(), || async {
        let (mut kernel, mut other) = (Netlink::open().unwrap(), Netlink::open().unwrap());
        ip("link add cni0 type bridge");
        ip("link set cni0 up");
        for (family, subnet, address) in
            [(Family::V4, "10.1.0.0/24", "10.1.0.1/24"), (Family::V6, "fd00:1::/64", "fd00:1::1/64 nodad")]
        {
            let ours = Object::Route(Route::blackhole(subnet.parse().unwrap()));
            assert_eq!(kernel.execute(&[Op::Create(ours)]).await.unwrap(), []);
            while !other.events().await.contains(&KernelEvent::Put(ours)) {}
            assert_eq!(kernel.routes_by(family, ROUTE_PROTOCOL).await.unwrap(), [ours]);
            let dst = ours_address(family);
            assert_eq!(kernel.lookup(dst).await.unwrap(), None, "dropped");
            // A bridge that comes later has its traffic.
            ip(&format!("address add {address} dev cni0"));
            let cni0 = kernel.link("cni0").await.unwrap().unwrap().index;
            assert_eq!(kernel.lookup(dst).await.unwrap().map(|found| found.exit), Some(Exit::By(cni0)));
            // And one that was there before is no hindrance.
            let flag = if family == Family::V4 { "-4" } else { "-6" };
            ip(&format!("{flag} route del blackhole {subnet} proto 102"));
            while !kernel.events().await.contains(&KernelEvent::Gone(ours.key())) {}
            assert_eq!(kernel.execute(&[Op::Create(ours)]).await.unwrap(), []);
            assert_eq!(kernel.lookup(dst).await.unwrap().map(|found| found.exit), Some(Exit::By(cni0)));
            assert_eq!(kernel.execute(&[Op::Delete(ours)]).await.unwrap(), []);
            assert_eq!(kernel.routes_by(family, ROUTE_PROTOCOL).await.unwrap(), []);
            let show = ip(&format!("{flag} route show"));
            assert!(show.contains(&format!("{subnet} dev cni0 proto kernel")), "{show}");
        }
    });
}

/// An address in the own subnet of a family.
fn ours_address(family: Family) -> std::net::IpAddr {
    if family == Family::V4 { [10, 1, 0, 9].into() } else { "fd00:1::9".parse().unwrap() }
}

#[test]
fn a_route_moves_to_another_gateway_link_and_mark_in_place() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let eth0 = kernel.link("eth0").await.unwrap().unwrap().index;
        ip("link add old type veth peer name peer1");
        ip("link set old up");
        for (family, subnet, via, command) in [
            (Family::V4, "10.1.0.0/24", "192.0.2.9", "route add 10.1.0.0/24 via 10.1.0.0 dev old onlink"),
            (
                Family::V6,
                "fd00:1::/64",
                "2001:db8::9",
                "-6 route add fd00:1::/64 via fd00:1:: dev old onlink",
            ),
        ] {
            ip(command);
            let object = Object::Route(route(family, subnet, via, eth0));
            assert_eq!(kernel.execute(&[Op::Replace(object)]).await.unwrap(), []);
            let show = ip(if family == Family::V4 { "-4 route show" } else { "-6 route show" });
            let lines: Vec<_> = show.lines().filter(|line| line.starts_with(subnet)).collect();
            assert_eq!(lines.len(), 1, "{show}");
            assert!(lines[0].contains(&format!("via {via} dev eth0 proto 102")), "{show}");
        }
    });
}

#[test]
fn what_somebody_put_in_the_place_of_ours_is_not_deleted() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let link = kernel.link("eth0").await.unwrap().unwrap().index;
        for (family, subnet, via, flag) in
            [(Family::V4, "10.1.0.0/24", "192.0.2.9", "-4"), (Family::V6, "fd00:1::/64", "2001:db8::9", "-6")]
        {
            let ours = Object::Route(route(family, subnet, via, link));
            assert_eq!(kernel.execute(&[Op::Create(ours)]).await.unwrap(), []);
            // The same route, but not marked: the difference that nobody would see without the protocol.
            ip(&format!("{flag} route replace {subnet} via {via} dev eth0 proto 3"));
            assert_eq!(kernel.execute(&[Op::Delete(ours)]).await.unwrap(), [], "ours is gone");
            assert!(ip(&format!("{flag} route show")).contains(subnet), "{family}");
        }
    });
}

#[test]
fn a_gateway_off_link_is_refused_with_a_known_errno() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let link = kernel.link("eth0").await.unwrap().unwrap().index;
        ip("route add default via 192.0.2.254");
        ip("-6 route add default via 2001:db8::254");
        for (family, subnet, via) in
            [(Family::V4, "10.1.0.0/24", "198.51.100.9"), (Family::V6, "fd00:1::/64", "2001:db8:1::9")]
        {
            let object = Object::Route(route(family, subnet, via, link));
            let refused = kernel.execute(&[Op::Create(object)]).await.unwrap();
            let known = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EINVAL];
            assert!(refused.len() == 1 && known.contains(&refused[0].errno), "{family}: {refused:?}");
            println!("{family}: {}", refused[0]);
        }
    });
}

/// What somebody does to a route of ours in the verbs of `ip route`, and whether ours is there no more.
const TAKEOVERS: [(&str, &str, bool); 5] = [
    ("replaced", "replace SUBNET via NEXT dev eth0", true),
    ("replaced by one on another link", "replace SUBNET dev other", true),
    (
        "replaced by several next hops",
        "replace SUBNET nexthop via NEXT dev eth0 nexthop via LAST dev eth0",
        true,
    ),
    // In IPv6 it becomes a second next hop of ours, in IPv4 a route behind ours.
    ("appended", "append SUBNET via NEXT dev eth0", false),
    // In IPv4 a route in front of ours, in IPv6 the same as appended.
    ("prepended", "prepend SUBNET via NEXT dev eth0", false),
];

#[test]
fn who_holds_the_key_of_a_route_is_read_in_the_kernels_order_and_a_replace_takes_it_back() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let eth0 = kernel.link("eth0").await.unwrap().unwrap().index;
        ip("link add other type veth peer name peer1");
        ip("link set other up");
        for (family, subnet, via, next, last, flag) in [
            (Family::V4, "10.1.0.0/24", "192.0.2.9", "192.0.2.99", "192.0.2.98", "-4"),
            (Family::V6, "fd00:1::/64", "2001:db8::9", "2001:db8::99", "2001:db8::98", "-6"),
        ] {
            let ours = route(family, subnet, via, eth0);
            let object = Object::Route(ours);
            let keys = [object.key()].into();
            for (what, command, is_gone) in TAKEOVERS {
                // It hears nothing of what was before.
                let mut kernel = Netlink::open().unwrap();
                assert_eq!(kernel.execute(&[Op::Create(object)]).await.unwrap(), [], "{family} {what}");
                let command = command.replace("SUBNET", subnet).replace("NEXT", next).replace("LAST", last);
                ip(&format!("{flag} route {command}"));
                // No notification says that ours is gone, only what came.
                let mut events = kernel.events().await;
                while !events.iter().any(|event| matches!(event, KernelEvent::Put(Object::Route(it)) if it.protocol != ROUTE_PROTOCOL && it.dst == ours.dst)) {
                    events = kernel.events().await;
                }
                assert!(!events.contains(&KernelEvent::Gone(object.key())), "{family} {what}");
                let holders = kernel.routes_at(family, &keys).await.unwrap();
                assert_eq!(
                    holders.contains(&ours),
                    !is_gone && family == Family::V4,
                    "{family} {what}: {holders:?}"
                );
                let in_use = kernel.lookup(ours.dst.base()).await.unwrap().unwrap();
                let first = holders[0];
                assert!(
                    first.link.is_none_or(|link| (Exit::By(link), first.via) == (in_use.exit, in_use.via)),
                    "{family} {what}"
                );
                assert_eq!(first == ours, family == Family::V4 && what == "appended", "{holders:?}");
                // As the loop does.
                let behind = holders[1..].iter().filter(|route| **route == ours);
                let mut ops: Vec<Op> = behind.map(|route| Op::Delete(Object::Route(*route))).collect();
                if first != ours {
                    ops.push(Op::Replace(object));
                }
                assert_eq!(kernel.execute(&ops).await.unwrap(), [], "{family} {what}");
                assert_eq!(kernel.routes_at(family, &keys).await.unwrap()[0], ours, "{family} {what}");
                ip(&format!("{flag} route flush {subnet}"));
                assert_eq!(kernel.routes_at(family, &keys).await.unwrap(), []);
            }
        }
    });
}
