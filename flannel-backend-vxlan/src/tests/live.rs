//! A config that changes while the backend runs, on a fake kernel.

use flannel_core::config::ConfigError;
use flannel_core::kernel::Link;

use super::*;

fn dual(keys: &str) -> String {
    DUAL.replace(r#""vxlan""#, &format!(r#""vxlan"{keys}"#))
}

/// Two families and one peer that is on-link.
async fn bench() -> (Host, Running, watch::Receiver<State>) {
    let host = Host::new(true, DUAL);
    for (dst, metric) in [("192.0.2.0/24", 0), ("2001:db8::/64", 256)] {
        let route = Route::by_node(dst.parse().unwrap(), [0, 0, 0, 0].into(), host.underlay.link);
        host.kernel
            .put(Object::Route(Route { metric, via: None, protocol: 2, plain: false, ..route }), false);
    }
    host.store.put(PEER_KEY, PEER);
    let network = host.register().await.unwrap();
    let (status, state) = (network.status(), network.state());
    let cancel = CancellationToken::new();
    let task = tokio::spawn(network.run(host.store.watch_leases(), cancel.clone()));
    told().await;
    host.kernel.take_ops();
    host.kernel.take_link_ops();
    (host, Running { status, cancel, task }, state)
}

impl Host {
    async fn change(&self, keys: &str) {
        self.store.set_config(config(&dual(keys)));
        told().await;
    }

    fn devices(&self) -> Vec<Link> {
        ["flannel.1", "flannel-v6.1"].map(|name| self.kernel.link_named(name).unwrap()).to_vec()
    }
}

/// Waits until the status says all that there is to say, however much it said just before.
async fn told() {
    tokio::time::sleep(std::time::Duration::from_millis(251)).await;
}

#[tokio::test(start_paused = true)]
async fn mtu_and_learning_change_the_devices_in_place_and_nothing_else() {
    let (host, running, state) = bench().await;
    let (before, objects) = (host.devices(), host.kernel.objects());
    host.change(r#","MTU":1400,"Learning":true"#).await;
    let ops = host.kernel.take_link_ops();
    for of_device in ops.chunks(2) {
        assert!(matches!(of_device, [LinkOp::Change(..), LinkOp::SetMtu(..)]), "{ops:?}");
    }
    assert_eq!(ops.len(), 4);
    for (before, now) in before.iter().zip(host.devices()) {
        assert_eq!((now.index, now.mac, now.up), (before.index, before.mac, true));
        assert_eq!(now.mtu.0, before.mtu.0 - 100);
        assert!(now.vxlan.unwrap().learning);
    }
    let status = running.status.borrow().clone();
    assert_eq!((status.overlay_mtu, status.restart_needed(), status.repairs), (Some(Mtu(1330)), None, 0));
    assert_eq!((status.device_problem(), status.config_problem()), (None, None));
    let stored = state.borrow().config.clone();
    assert_eq!(stored.as_ref(), Some(&config(&dual(r#","MTU":1400,"Learning":true"#))));
    host.change("").await;
    assert_eq!((host.devices(), running.status.borrow().overlay_mtu), (before, Some(Mtu(1430))));
    assert_eq!((host.kernel.take_ops(), host.kernel.objects()), (vec![], objects));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn direct_routing_moves_each_peer_by_one_replaced_route_a_family() {
    let (host, running, _) = bench().await;
    let objects = host.kernel.objects();
    let links = || {
        let all = host.kernel.objects();
        let to_peer = |object| match object {
            Object::Route(Route { via: Some(_), link, protocol: 102, .. }) => link,
            _ => None,
        };
        all.iter().filter_map(to_peer).collect::<Vec<_>>()
    };
    let eth0 = host.underlay.link;
    let replaced = |ops: &[Op]| ops.iter().filter(|op| matches!(op, Op::Replace(Object::Route(_)))).count();
    let encapsulated = links();
    host.change(r#","DirectRouting":true"#).await;
    assert_eq!(links(), [eth0, eth0]);
    let ops = host.kernel.take_ops();
    // And the route to the IPv6 gateway, for the way back.
    assert_eq!((replaced(&ops), ops.len()), (2, 3), "{ops:?}");
    assert_eq!(running.status.borrow().repairs, 0);
    // It is followed from now on.
    let on_link = Object::Route(Route::by_node("192.0.2.0/24".parse().unwrap(), [0, 0, 0, 0].into(), eth0));
    host.kernel.delete(&on_link.key(), true);
    told().await;
    assert_eq!(links(), [encapsulated[0], eth0]);
    host.kernel.take_ops();
    let repairs = running.status.borrow().repairs;
    host.change("").await;
    assert_eq!(links(), encapsulated);
    let ops = host.kernel.take_ops();
    assert_eq!((replaced(&ops), ops.len()), (1, 2), "{ops:?}");
    assert_eq!(host.kernel.objects().len(), objects.len() - 1, "all but the route that was taken away");
    assert_eq!((host.kernel.take_link_ops(), running.status.borrow().repairs), (vec![], repairs));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_takes_a_restart_is_named_until_it_is_changed_back() {
    let (host, running, state) = bench().await;
    let restart = || running.status.borrow().restart_needed().unwrap_or_default();
    host.change(r#","vni":7,"MTU":1400,"Accept":["udp"]"#).await;
    assert!(
        restart().starts_with("network config: Backend.Accept, Backend.VNI changed, which takes a restart;"),
        "{}",
        restart()
    );
    assert_eq!(running.status.borrow().overlay_mtu, Some(Mtu(1330)), "what can be had is");
    assert_eq!(state.borrow().config, Some(config(DUAL)), "a start without the store knows this one");
    let widened = DUAL.replace("10.5.0.0/16", "10.4.0.0/15").replace("vxlan", "host-gw");
    host.store.set_config(config(&widened));
    told().await;
    assert!(restart().contains(": Network, Backend.Type changed"), "{}", restart());
    host.change("").await;
    assert_eq!((restart(), running.status.borrow().overlay_mtu), (String::new(), Some(Mtu(1430))));
    assert!(running.status.borrow().synced && host.kernel.take_ops().is_empty());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_config_that_cant_be_used_changes_nothing() {
    let (host, running, state) = bench().await;
    let before = host.devices();
    let problem = || running.status.borrow().config_problem().unwrap_or_default();
    for (keys, why) in [
        (r#","MTU":100,"Learning":true"#, "Backend.MTU = 100: must be 0"),
        (r#","MTU":1300,"Learning":true"#, "Backend.MTU = 1300: must be at least 1350"),
        (r#","Learning":"yes","MTU":1400"#, "Backend.Learning = \"yes\""),
    ] {
        host.change(keys).await;
        assert!(
            problem().contains(why) && problem().contains("the running config stays in force"),
            "{}",
            problem()
        );
        assert_eq!((host.devices(), host.kernel.take_link_ops()), (before.clone(), vec![]));
    }
    host.store.spoil_config(ConfigError::new("JSON", None, "no JSON object"));
    told().await;
    assert!(problem().starts_with("config at the store in memory can't be used: network config: JSON"));
    assert_eq!(
        (running.status.borrow().restart_needed(), state.borrow().config.clone()),
        (None, Some(config(DUAL)))
    );
    host.change("").await;
    assert_eq!(problem(), "");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_device_that_the_kernel_does_not_change_keeps_all_that_hangs_on_it() {
    let (host, running, _) = bench().await;
    let (before, objects) = (host.devices(), host.kernel.objects());
    host.kernel.refuse_link(|_| Some(libc::EOPNOTSUPP));
    host.change(r#","Learning":true"#).await;
    resync().await;
    let problem = running.status.borrow().device_problem().unwrap_or_default();
    assert!(problem.contains("flannel.1") && problem.contains("flannel-v6.1"), "{problem}");
    assert_eq!((host.devices(), host.kernel.objects()), (before, objects));
    host.kernel.refuse_nothing();
    resync().await;
    assert_eq!(running.status.borrow().device_problem(), None);
    assert!(host.devices().into_iter().all(|link| link.vxlan.unwrap().learning));
    running.stop().await;
}
