//! Next-hop objects, as a real kernel keeps them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flannel_lab::test_name;

use super::super::Netlink;
use super::changes::{done, heard, ours};
use super::kernel::device;
use super::sandbox::{ip, with_underlay};
use crate::addr::{Family, LinkIndex};
use crate::dataplane::{Dataplane, NextHop, Object, ObjectKey, Op, ROUTE_PROTOCOL, Route, Through, plan};
use crate::kernel::{Kernel, KernelEvent, LinkOp};

/// A next-hop object of ours.
pub(super) fn next_hop(link: LinkIndex, gateway: &str) -> Object {
    Object::NextHop(NextHop { link, gateway: gateway.parse().unwrap(), spare: None })
}

/// A route through it.
fn route(link: LinkIndex, dst: &str, gateway: &str) -> Object {
    let via: IpAddr = gateway.parse().unwrap();
    Object::Route(Route {
        dst: dst.parse().unwrap(),
        metric: Route::default_metric(Family::of(via)),
        via: Some(via),
        link: Some(link),
        onlink: true,
        through: Through::Object,
        protocol: ROUTE_PROTOCOL,
        mtu: None,
        plain: true,
    })
}

/// The same route in another form. What goes through a spare object is never plain.
fn reform(object: Object, through: Through) -> Object {
    let Object::Route(route) = object else { panic!("{object:?} is no route") };
    Object::Route(Route { through, plain: !matches!(through, Through::Spare(_)), ..route })
}

/// A family's device, a subnet and its gateway.
pub(super) const FAMILIES: [(Family, &str, &str, &str); 2] = [
    (Family::V4, "flannel.1", "10.1.2.0/24", "10.1.2.0"),
    (Family::V6, "flannel-v6.1", "fd00:1:2::/64", "fd00:1:2::"),
];

pub(super) fn numbers(name: &str) -> Vec<u32> {
    let shown: serde_json::Value = serde_json::from_str(&ip(&format!("-j nexthop show dev {name}"))).unwrap();
    shown.as_array().unwrap().iter().map(|it| it["id"].as_u64().unwrap() as u32).collect()
}

#[test]
fn objects_and_their_routes_are_put_read_moved_and_deleted() {
    with_underlay(test_name!(), || async {
        for compat in ["1", "0"] {
            std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", compat).unwrap();
            let (mut kernel, mut hearer) = (Netlink::open().unwrap(), Netlink::open().unwrap());
            for (family, name, dst, gateway) in FAMILIES {
                let link = device(&mut kernel, family).await.index;
                let (object, route) = (next_hop(link, gateway), route(link, dst, gateway));
                for one in [&mut kernel, &mut hearer] {
                    assert_eq!(ours(one, link, family).await, BTreeSet::new());
                    heard(one, link).await;
                }

                done(&mut kernel, [Op::Create(object), Op::Create(route)]).await;
                assert_eq!(ours(&mut kernel, link, family).await, BTreeSet::from([object, route]));
                assert_eq!(heard(&mut kernel, link).await, [], "ours is no news");
                assert_eq!(heard(&mut hearer, link).await, [object, route].map(KernelEvent::Put));
                let shown = ip(&format!("nexthop show dev {name}"));
                assert!(shown.contains("proto 102 onlink") && numbers(name)[0] >> 24 == 102, "{shown}");

                // Another agent, or the next run, finds the same.
                let mut other = Netlink::open().unwrap();
                assert_eq!(ours(&mut other, link, family).await, BTreeSet::from([object, route]));

                // To a plain route and back, in place.
                let plain = reform(route, Through::Itself);
                done(&mut kernel, [Op::Replace(plain)]).await;
                assert_eq!(ours(&mut kernel, link, family).await, BTreeSet::from([object, plain]));
                done(&mut kernel, [Op::Replace(route), Op::Replace(route)]).await;
                assert_eq!(ours(&mut kernel, link, family).await, BTreeSet::from([object, route]));
                let events = heard(&mut hearer, link).await;
                assert_eq!(events[..2], [KernelEvent::Put(plain), KernelEvent::Put(route)], "{events:?}");

                // A route that goes through one is not deleted in the place of another.
                ip(&format!("route replace {dst} via {gateway} dev {name} onlink proto 102"));
                done(&mut kernel, [Op::Delete(route)]).await;
                assert_eq!(ours(&mut kernel, link, family).await, BTreeSet::from([object, plain]));
                done(&mut kernel, [Op::Replace(route), Op::Delete(route), Op::Delete(object)]).await;
                assert_eq!(ours(&mut kernel, link, family).await, BTreeSet::new());
                done(&mut kernel, [Op::Delete(route), Op::Delete(object)]).await;
                // Without its object a route can't be put, and that is said.
                let refused = kernel.execute(&[Op::Create(route)]).await.unwrap();
                assert!(refused[0].to_string().contains("next-hop object does not exist"), "{refused:?}");
                kernel.change_link(&LinkOp::Delete(link)).await.unwrap();
            }
        }
    });
}

#[test]
fn a_number_that_somebody_else_has_is_passed_over() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let link = device(&mut kernel, Family::V4).await.index;
        kernel.next_hops.next = 0x6600_0100;
        for number in 0x6600_0100..0x6600_0110 {
            ip(&format!("nexthop add id {number} via 192.0.2.{} dev eth0", number & 0xff | 0x10));
        }
        let before = ip("nexthop show dev eth0");
        let pairs = ["10.1.1.0", "10.1.2.0", "10.1.3.0"]
            .map(|base| (next_hop(link, base), route(link, &format!("{base}/24"), base)));
        let all: BTreeSet<Object> = pairs.iter().flat_map(|(object, route)| [*object, *route]).collect();
        done(&mut kernel, all.iter().copied().map(Op::Create)).await;
        assert_eq!(ours(&mut kernel, link, Family::V4).await, all);
        assert_eq!(ip("nexthop show dev eth0"), before);
        assert_eq!(numbers("flannel.1").len(), 3);
        assert!(ip("route show").lines().filter(|line| line.contains("nhid")).count() == 3);
    });
}

#[test]
fn second_objects_converge_to_one_and_strangers_are_left_alone() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        for (family, name, dst, gateway) in FAMILIES {
            let link = device(&mut kernel, family).await.index;
            let (object, route) = (next_hop(link, gateway), route(link, dst, gateway));
            done(&mut kernel, [Op::Create(object)]).await;
            ours(&mut kernel, link, family).await;
            heard(&mut kernel, link).await;
            let second = |number| {
                Object::NextHop(NextHop { link, gateway: gateway.parse().unwrap(), spare: Some(number) })
            };
            ip(&format!("nexthop add id 5 via {gateway} dev {name} onlink proto 102"));
            assert_eq!(heard(&mut kernel, link).await, [KernelEvent::Put(second(5))]);
            // Strangers: another protocol, no gateway, a group, another link.
            ip(&format!("nexthop add id 6 via {gateway} dev {name} onlink"));
            let flag = if family == Family::V4 { "-4" } else { "-6" };
            ip(&format!("{flag} nexthop add id 7 dev {name} proto 102"));
            ip("nexthop add id 8 group 5/6 proto 102");
            ip("nexthop add id 9 via 192.0.2.9 dev eth0 proto 102");
            assert_eq!(heard(&mut kernel, link).await, []);
            ip(&format!("{flag} route add {dst} nhid 5 proto 102"));
            let at_second = reform(route, Through::Spare(5));
            assert_eq!(heard(&mut kernel, link).await, [KernelEvent::Put(at_second)]);
            let want = Dataplane::from_iter([object, route]);
            // As it is known from notifications, and read anew.
            for kernel in [&mut kernel, &mut Netlink::open().unwrap()] {
                let have: Dataplane = ours(kernel, link, family).await.into_iter().collect();
                assert_eq!(have.len(), 3, "{have:?}");
                assert_eq!(have.routes_through(&have.iter().last().unwrap().key()).count(), 0);
            }
            let have: Dataplane = ours(&mut kernel, link, family).await.into_iter().collect();
            let ops = plan(&want, &have);
            assert_eq!(ops, [Op::Replace(route), Op::Delete(second(5))]);
            done(&mut kernel, ops).await;
            assert_eq!(ours(&mut kernel, link, family).await, BTreeSet::from([object, route]));
            assert_eq!(numbers(name).len(), 3);
            // A route through a stranger is none of ours, whatever its protocol.
            ip(&format!("{flag} route replace {dst} nhid 6 proto 102"));
            let have = ours(&mut kernel, link, family).await;
            let seen = have.iter().find_map(|it| if let Object::Route(it) = it { Some(*it) } else { None });
            let seen = seen.unwrap();
            assert!(!seen.plain && seen.link == Some(link) && seen.through == Through::Itself, "{seen:?}");
            done(&mut kernel, [Op::Replace(route)]).await;
            assert_eq!(ours(&mut kernel, link, family).await, BTreeSet::from([object, route]));
            kernel.change_link(&LinkOp::Delete(link)).await.unwrap();
            ip("nexthop del id 9");
        }
    });
}

#[test]
fn what_others_do_to_ours_is_heard() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        for (family, name, dst, gateway) in FAMILIES {
            let link = device(&mut kernel, family).await.index;
            let (object, route) = (next_hop(link, gateway), route(link, dst, gateway));
            ours(&mut kernel, link, family).await;
            let put = [Op::Create(object), Op::Create(route)];
            let gone = KernelEvent::Gone(object.key());
            let v6_alone = (family == Family::V6).then_some(KernelEvent::Gone(route.key()));

            done(&mut kernel, put).await;
            heard(&mut kernel, link).await;
            ip(&format!("nexthop del id {}", numbers(name)[0]));
            let mut events = heard(&mut kernel, link).await;
            assert!(events.contains(&gone), "{events:?}");
            events.retain(|event| *event != gone);
            assert_eq!(events, v6_alone.clone().into_iter().collect::<Vec<_>>(), "IPv4 goes in silence");

            done(&mut kernel, put).await;
            heard(&mut kernel, link).await;
            ip("nexthop flush proto 102");
            assert!(heard(&mut kernel, link).await.contains(&gone));

            // Changed in place: it is another's now.
            done(&mut kernel, put).await;
            heard(&mut kernel, link).await;
            let other = if family == Family::V4 { "10.9.9.9" } else { "fd00:9::9" };
            let number = numbers(name)[0];
            ip(&format!("nexthop replace id {number} via {other} dev {name} onlink proto 102"));
            let events = heard(&mut kernel, link).await;
            assert!(events.contains(&gone), "{events:?}");
            assert!(events.contains(&KernelEvent::Put(next_hop(link, other))), "{events:?}");
            assert!(matches!(ours(&mut kernel, link, family).await.last(),
                Some(Object::Route(it)) if it.via == other.parse().ok() && it.through == Through::Object));

            // A device that is set down loses them without a notification, and reading tells.
            ip(&format!("link set {name} down"));
            ip(&format!("link set {name} up"));
            assert_eq!(ours(&mut kernel, link, family).await, BTreeSet::new());
            let key = ObjectKey::NextHop(link, gateway.parse().unwrap(), None);
            assert!(!heard(&mut kernel, link).await.contains(&KernelEvent::Gone(key)));
            done(&mut kernel, put).await;
            assert_eq!(ours(&mut kernel, link, family).await, BTreeSet::from([object, route]));
            kernel.change_link(&LinkOp::Delete(link)).await.unwrap();
        }
    });
}
