//! `DirectRouting` on a fake kernel.

use flannel_core::addr::Subnet;
use flannel_core::lease::LeaseKey;

use super::*;

const DIRECT: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

/// A route through the underlay link that the host has.
fn of_host(host: &Host, dst: &str, via: Option<&str>) -> Object {
    let dst: Subnet = dst.parse().unwrap();
    let metric = if dst.base().is_ipv4() { 0 } else { 256 };
    let via = via.map(|via| via.parse().unwrap());
    let route = Route::by_node(dst, host.underlay.local.v4.unwrap(), host.underlay.link);
    Object::Route(Route { metric, via, protocol: 2, plain: false, ..route })
}

fn direct_host() -> Host {
    let host = Host::new(true, DIRECT);
    for (dst, via) in [("192.0.2.0/24", None), ("2001:db8::/64", None), ("0.0.0.0/0", Some("192.0.2.254"))] {
        host.kernel.put(of_host(&host, dst, via), false);
    }
    host
}

/// The links of the routes to the peer, in both families.
fn links(host: &Host) -> Vec<String> {
    let objects = host.kernel.objects();
    let name = |link| {
        ["eth0", "flannel.1", "flannel-v6.1"]
            .into_iter()
            .find(|name| host.kernel.link_named(name).is_some_and(|it| Some(it.index) == link))
    };
    let to_peer = |object: Object| match object {
        Object::Route(route) if route.protocol == 102 && route.via.is_some() => {
            Some(name(route.link)?.to_owned())
        }
        _ => None,
    };
    objects.iter().filter_map(to_peer).collect()
}

/// The ways to the peer by the status, in both families.
async fn paths(running: &Running) -> Vec<String> {
    tokio::time::sleep(Duration::from_millis(251)).await;
    let status = running.status.borrow();
    let peer = status.peer_list.get(&PEER_KEY.parse().unwrap()).unwrap();
    peer.path.iter().map(|(_, path)| path.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_peer_moves_by_one_replaced_route_a_family() {
    let host = direct_host();
    host.store.put(PEER_KEY, PEER);
    let running = host.start().await;
    assert_eq!(links(&host), ["eth0", "eth0"]);
    assert_eq!(host.kernel.objects().len(), all(true) + 4, "all that encapsulation needs is there, too");
    let datapath = running.status.borrow().datapath.clone().unwrap();
    assert!(datapath.ends_with("on-link peers directly through eth0"), "{datapath}");
    let want = host.kernel.objects();
    for (dst, via, which) in [
        ("192.0.2.9/32", "192.0.2.254", ["flannel.1", "eth0"]),
        ("2001:db8::8/125", "2001:db8::254", ["eth0", "flannel-v6.1"]),
    ] {
        for (put, links_now) in [(true, which), (false, ["eth0", "eth0"])] {
            host.kernel.take_ops();
            let route = of_host(&host, dst, Some(via));
            if put {
                host.kernel.put(route, true);
            } else {
                host.kernel.delete(&route.key(), true);
            }
            settle().await;
            assert_eq!(links(&host), links_now);
            let names = links_now.map(|link| if link == "eth0" { "direct" } else { "vxlan" });
            assert_eq!(paths(&running).await, names);
            let ops = host.kernel.take_ops();
            assert!(matches!(ops[..], [Op::Replace(Object::Route(_))]), "{ops:?}");
        }
    }
    assert_eq!(host.kernel.objects(), want);
    // In silence: the resync finds it.
    let gone = of_host(&host, "192.0.2.0/24", None);
    host.kernel.delete(&gone.key(), false);
    resync().await;
    assert_eq!(links(&host), ["flannel.1", "eth0"]);
    assert!(running.status.borrow().refused().is_empty());
}

#[tokio::test(start_paused = true)]
async fn routes_that_say_nothing_of_nodes_cost_nothing() {
    let host = direct_host();
    host.store.put(PEER_KEY, PEER);
    let _running = host.start().await;
    host.kernel.take_dumps();
    host.kernel.take_ops();
    for (dst, via) in [
        ("198.51.100.0/24", Some("192.0.2.254")),
        ("0.0.0.0/0", Some("192.0.2.253")),
        ("2001:db8:7::/48", Some("2001:db8::254")),
        ("192.0.2.0/24", None),
    ] {
        host.kernel.put(of_host(&host, dst, via), true);
        settle().await;
    }
    assert_eq!((host.kernel.take_dumps(), host.kernel.take_ops()), (0, vec![]));
}

#[tokio::test(start_paused = true)]
async fn what_a_go_node_left_is_adopted_in_both_modes() {
    for (on_link, link, replaced) in [(true, "eth0", 2), (false, "flannel.1", 2)] {
        let mut host = if on_link { direct_host() } else { Host::new(true, DIRECT) };
        let of_go = |dst: &str, node: &str| {
            let route = Route::by_node(dst.parse().unwrap(), node.parse().unwrap(), host.underlay.link);
            Object::Route(Route { protocol: 3, ..route })
        };
        for route in [of_go("10.5.99.0/24", "192.0.2.9"), of_go("fd00:5:0:99::/64", "2001:db8::9")] {
            host.kernel.put(route, false);
        }
        let attrs = LeaseAttrs::from_json(r#"{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::9"}"#).unwrap();
        let key: LeaseKey = PEER_KEY.parse().unwrap();
        let leases = [(key, Arc::new(Lease { key, attrs, created: 1 }.into()))].into();
        let mut previous = State::default();
        (previous.backend, previous.leases) = ("vxlan".into(), leases);
        host.previous = Some(previous);
        host.store.put(PEER_KEY, PEER);
        let running = host.start().await;
        assert_eq!(links(&host)[0], link);
        let ops = host.kernel.take_ops();
        assert_eq!(ops.iter().filter(|op| matches!(op, Op::Replace(_))).count(), replaced, "{ops:?}");
        assert!(running.status.borrow().refused().is_empty());
    }
}
