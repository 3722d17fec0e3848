//! Routes with a locked MTU, as a real kernel keeps them.

mod packets;

use std::collections::BTreeSet;
use std::time::Duration;

use flannel_lab::test_name;
use flannel_lab::wait::patiently;

use super::super::Netlink;
use super::changes::{done, heard, ours};
use super::kernel::device;
use super::next_hops::{FAMILIES, next_hop, numbers};
use super::sandbox::{ip, with_underlay};
use crate::addr::{Family, LinkIndex, Mtu};
use crate::dataplane::{Dataplane, Object, ObjectKey, Op, Route, Through, plan};
use crate::kernel::{Kernel, KernelEvent, LinkOp};

/// A route by each form, and what it needs: by device, with another metric, by gateway, through a next-hop object.
pub(super) fn forms(dst: &str, gateway: &str, link: LinkIndex) -> [(Option<Object>, Route); 4] {
    let by_device = Route::by_device(dst.parse().unwrap(), link);
    let by_gateway = Route { onlink: true, ..Route::by_node(by_device.dst, gateway.parse().unwrap(), link) };
    [
        (None, by_device),
        (None, Route { metric: 50, ..by_device }),
        (None, by_gateway),
        (Some(next_hop(link, gateway)), Route { through: Through::Object, ..by_gateway }),
    ]
}

/// How `ip route` is told of a route.
fn words(route: &Route, name: &str) -> String {
    let metric = route.metric;
    let by = match (route.through, route.via) {
        (Through::Object, _) => format!("nhid {}", numbers(name)[0]),
        (_, Some(via)) => format!("via {via} dev {name} onlink"),
        (_, None) => format!("dev {name}"),
    };
    format!("{} {by} metric {metric} proto 102", route.dst)
}

/// What is announced of routes, at once. The kernel announces all that a request does before it answers.
async fn told(kernel: &mut Netlink) -> Vec<KernelEvent> {
    let is_of_route = |event: &KernelEvent| {
        matches!(event, KernelEvent::Put(Object::Route(_)) | KernelEvent::Gone(ObjectKey::Route(..)))
    };
    let told = async {
        loop {
            let events: Vec<_> = kernel.events().await.into_iter().filter(is_of_route).collect();
            if !events.is_empty() {
                return events;
            }
        }
    };
    tokio::time::timeout(patiently(Duration::from_secs(5)), told).await.expect("nothing is announced")
}

#[test]
fn it_is_put_changed_and_taken_away_in_place_and_a_strange_one_is_repaired() {
    with_underlay(test_name!(), || async {
        for compat in ["1", "0"] {
            std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", compat).unwrap();
            let (mut kernel, mut other) = (Netlink::open().unwrap(), Netlink::open().unwrap());
            for (family, name, dst, gateway) in FAMILIES {
                let link = device(&mut kernel, family).await.index;
                // The mode only makes a difference to routes through objects.
                let forms = forms(dst, gateway, link).into_iter();
                for (helper, route) in forms.filter(|(helper, _)| compat == "1" || helper.is_some()) {
                    ours(&mut kernel, link, family).await;
                    done(&mut kernel, helper.map(Op::Create)).await;
                    ours(&mut other, link, family).await;
                    heard(&mut other, link).await;
                    course(&mut kernel, &mut other, (family, name), helper, route).await;
                    done(&mut kernel, helper.map(Op::Delete)).await;
                }
                kernel.change_link(&LinkOp::Delete(link)).await.unwrap();
            }
        }
    });
}

async fn course(
    kernel: &mut Netlink,
    other: &mut Netlink,
    (family, name): (Family, &str),
    helper: Option<Object>,
    route: Route,
) {
    let link = route.link.unwrap();
    let flag = if family == Family::V4 { "-4" } else { "-6" };
    let with = |mtu: Option<u32>| Object::Route(Route { mtu: mtu.map(Mtu), ..route });
    let all = |route| -> BTreeSet<Object> { helper.into_iter().chain([route]).collect() };
    let mut is_there = false;
    for mtu in [Some(1350), Some(1300), None, Some(1350), None] {
        let (want, put) = (Dataplane::from_iter(all(with(mtu))), with(mtu));
        let have: Dataplane = ours(kernel, link, family).await.into_iter().collect();
        let ops = plan(&want, &have);
        assert_eq!(ops, [if is_there { Op::Replace(put) } else { Op::Create(put) }]);
        is_there = true;
        done(kernel, ops).await;
        // In place: no deletion in between.
        assert_eq!(told(other).await, [KernelEvent::Put(put)]);
        assert_eq!(ours(kernel, link, family).await, all(put));
        let shown = ip(&format!("{flag} route show {}", route.dst));
        match mtu {
            Some(mtu) => assert!(shown.contains(&format!("mtu lock {mtu}")), "{shown}"),
            None => assert!(!shown.contains("mtu"), "{shown}"),
        }
    }
    let odd = Object::Route(Route { plain: false, ..route });
    let by_hand = [
        ("mtu lock 1200", with(Some(1200))),
        ("mtu 1200", odd),
        ("mtu lock 0", odd),
        ("mtu lock 1200 advmss 1100", odd),
        ("mtu lock 1200 hoplimit lock 9", odd),
    ];
    for ((metrics, seen), want) in by_hand.into_iter().zip([None, Some(1350)].into_iter().cycle()) {
        let want = with(want);
        ip(&format!("{flag} route change {} {metrics}", words(&route, name)));
        assert_eq!(told(other).await, [KernelEvent::Put(seen)], "{metrics}");
        let have: Dataplane = ours(kernel, link, family).await.into_iter().collect();
        let ops = plan(&Dataplane::from_iter(all(want)), &have);
        assert_eq!(ops, [Op::Replace(want)], "{metrics}");
        done(kernel, ops).await;
        assert_eq!(told(other).await, [KernelEvent::Put(want)], "{metrics}");
        assert_eq!(ours(kernel, link, family).await, all(want), "{metrics}");
    }
    done(kernel, [Op::Delete(with(Some(1350)))]).await;
    assert_eq!(told(other).await, [KernelEvent::Gone(with(None).key())]);
}
