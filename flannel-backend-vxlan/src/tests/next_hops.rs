//! The two forms of routes, and the way from one to the other.

use flannel_core::addr::Subnet;
use flannel_core::dataplane::{NextHop, ObjectKey, Through};

use super::*;

fn routes(host: &Host) -> Vec<Route> {
    let objects = host.kernel.objects();
    objects.iter().filter_map(|it| if let Object::Route(it) = it { Some(it) } else { None }).collect()
}

fn next_hops(host: &Host) -> Vec<Object> {
    let objects = host.kernel.objects();
    objects.iter().filter(|object| matches!(object, Object::NextHop(_))).collect()
}

/// A leftover of a peer that is gone.
fn leftover(host: &Host, subnet: &str) -> [Object; 2] {
    let link = host.kernel.link_named("flannel.1").unwrap().index;
    let dst: Subnet = subnet.parse().unwrap();
    let route = Route { dst, via: Some(dst.base()), link: Some(link), ..routes(host)[0] };
    [Object::NextHop(NextHop { link, gateway: dst.base(), spare: None }), Object::Route(route)]
}

#[tokio::test(start_paused = true)]
async fn the_form_is_what_the_kernel_has_and_the_operator_wants() {
    for (has, wanted, through, says) in [
        (true, NextHopObjects::Auto, Through::Object, "routes through next-hop objects"),
        (true, NextHopObjects::Off, Through::Itself, "plain routes (next-hop objects are switched off)"),
        (false, NextHopObjects::Auto, Through::Itself, "plain routes (the kernel has no next-hop objects"),
        (false, NextHopObjects::Off, Through::Itself, "plain routes (next-hop objects are switched off)"),
    ] {
        let mut host = Host::new(has, DUAL);
        host.next_hop_objects = wanted;
        host.store.put(PEER_KEY, PEER);
        let running = host.start().await;
        let routes = routes(&host);
        assert!(routes.len() == 2 && routes.iter().all(|route| route.through == through), "{routes:?}");
        let datapath = running.status.borrow().datapath.clone().unwrap();
        assert!(datapath.starts_with(says), "{datapath}");
        assert_eq!(
            next_hops(&host).len(),
            if through == Through::Object { 2 } else { 0 },
            "nothing of the trial"
        );
        assert!(running.status.borrow().refused().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_with_the_other_form_moves_routes_in_place() {
    let mut host = Host::new(true, DUAL);
    host.store.put(PEER_KEY, PEER);
    for (wanted, kinds) in [
        (NextHopObjects::Off, ["C"; 8].as_slice()),
        (NextHopObjects::Auto, &["C", "D", "C", "D", "C", "C", "R", "R"]),
        (NextHopObjects::Off, &["R", "R", "D", "D"]),
    ] {
        host.next_hop_objects = wanted;
        host.start().await.stop().await;
        let kind = |op: &Op| match op {
            Op::Create(_) => "C",
            Op::Replace(Object::Route(_)) => "R",
            Op::Replace(_) => "?",
            Op::Delete(Object::NextHop(_)) => "D",
            Op::Delete(_) => "!",
        };
        let ops = host.kernel.take_ops();
        assert_eq!(ops.iter().map(kind).collect::<Vec<_>>(), kinds, "{wanted:?}: {ops:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_stays_while_a_route_goes_through_it() {
    let mut host = Host::new(true, DUAL);
    host.store.put(PEER_KEY, PEER);
    host.start().await.stop().await;
    host.next_hop_objects = NextHopObjects::Off;
    // The kernel refuses to move the IPv4 route.
    host.kernel.refuse(|op| match op {
        Op::Replace(Object::Route(route)) if route.dst.base().is_ipv4() => Some(libc::ENOMEM),
        _ => None,
    });
    let running = host.start().await;
    assert_eq!(running.status.borrow().refused().len(), 1);
    let left = routes(&host);
    assert_eq!((left[0].through, left[1].through), (Through::Object, Through::Itself), "not lost");
    assert_eq!(next_hops(&host).len(), 1);
    host.kernel.refuse_nothing();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(routes(&host).iter().all(|route| route.through == Through::Itself));
    assert_eq!(next_hops(&host), [], "it goes as soon as the route has left");
}

#[tokio::test(start_paused = true)]
async fn objects_that_go_take_routes_along_and_both_come_back() {
    let host = Host::new(true, DUAL);
    host.store.put(PEER_KEY, PEER);
    let _running = host.start().await;
    let want = host.kernel.objects();
    for announced in [true, false] {
        for object in next_hops(&host) {
            host.kernel.delete(&object.key(), announced);
        }
        assert_eq!(routes(&host), []);
        if announced {
            settle().await;
        } else {
            resync().await;
        }
        assert_eq!(host.kernel.objects(), want, "announced: {announced}");
    }
    // Silently gone, and then the peer's routes are to be put: the next hop is missed at once.
    host.kernel.take_ops();
    let [next_hop, _] = [0, 1].map(|at| next_hops(&host)[at]);
    host.kernel.delete(&next_hop.key(), false);
    let [route] = [want.iter().find(|it| matches!(it, Object::Route(_))).unwrap().key()];
    host.kernel.delete(&route, true);
    settle().await;
    assert_eq!(host.kernel.objects(), want);
}

#[tokio::test(start_paused = true)]
async fn leftovers_and_second_objects_go_after_the_first_snapshot() {
    let host = Host::new(true, DUAL);
    host.store.put(PEER_KEY, PEER);
    host.start().await.stop().await;
    let want = host.kernel.objects();
    let [next_hop, route] = leftover(&host, "10.5.7.0/24");
    let unused = leftover(&host, "10.5.8.0/24")[0];
    let Object::NextHop(first) = next_hops(&host)[0] else { unreachable!() };
    let second = Object::NextHop(NextHop { spare: Some(5), ..first });
    let stranger = Object::NextHop(NextHop { gateway: [172, 16, 0, 1].into(), ..first });
    for object in [next_hop, route, unused, second, stranger] {
        host.kernel.put(object, false);
    }
    // The peer's route goes through the second.
    host.kernel
        .put(Object::Route(Route { through: Through::Spare(5), plain: false, ..routes(&host)[1] }), false);
    let network = host.register().await.unwrap();
    assert_eq!(next_hops(&host).len(), 6, "nothing goes before the leases are known");
    drop(network);
    host.kernel.take_ops();
    let _running = host.start().await;
    let mut clean = want;
    clean.insert(stranger);
    assert_eq!(host.kernel.objects(), clean);
    assert_eq!(host.kernel.take_ops().iter().filter(|op| matches!(op, Op::Replace(_))).count(), 1);
    let key = ObjectKey::NextHop(first.link, first.gateway, Some(6));
    let another = Object::NextHop(NextHop { spare: Some(6), ..first });
    host.kernel.put(another, true);
    settle().await;
    assert_eq!(host.kernel.objects().get(&key), None, "one that appears later goes, too");
}
