//! Nodes that move to another underlay address.

use super::*;

/// Runs a network that follows its underlay, with its lease held as an agent does.
async fn held(host: &Host) -> (Running, JoinHandle<()>, watch::Receiver<flannel_core::lease::LeaseAttrs>) {
    let network = host.register().await.unwrap();
    let (status, lease, attrs) = (network.status(), network.lease().clone(), network.attrs());
    let cancel = CancellationToken::new();
    let task = tokio::spawn(network.run(host.store.watch_leases(), cancel.clone()));
    let (store, follow) = (host.store.clone(), attrs.clone());
    let hold = tokio::spawn(async move {
        let held = flannel_core::subnet::renew_and_publish(&store, lease, follow).await;
        panic!("{held:?}");
    });
    settle().await;
    (Running { status, cancel, task }, hold, attrs)
}

#[tokio::test(start_paused = true)]
async fn a_new_underlay_address_changes_the_device_in_place_and_is_published_once() {
    let host = Host::new(true, DUAL);
    let (running, hold, _) = held(&host).await;
    let before = host.store.leases().remove(0);
    let links = ["flannel.1", "flannel-v6.1"].map(|name| host.kernel.link_named(name).unwrap());
    let mut watch = host.store.watch_leases();
    futures::StreamExt::next(&mut watch).await;
    host.kernel.take_link_ops();
    // It flaps: nobody hears of it.
    let eth0 = host.underlay.link;
    for _ in 0..3 {
        host.kernel.remove_address("192.0.2.1".parse().unwrap());
        give(&host.kernel, eth0, "192.0.2.77/24");
        tokio::time::sleep(Duration::from_millis(900)).await;
        host.kernel.remove_address("192.0.2.77".parse().unwrap());
        give(&host.kernel, eth0, "192.0.2.1/24");
        settle().await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((host.kernel.take_link_ops(), host.store.leases()), (vec![], vec![before.clone()]));

    for (gone, new) in [("192.0.2.1", "192.0.2.2/24"), ("2001:db8::1", "2001:db8::2/64")] {
        host.kernel.remove_address(gone.parse().unwrap());
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(running.status.borrow().underlay_problem().as_ref().unwrap().contains(gone));
        assert_eq!(host.kernel.take_link_ops(), [], "without a successor all stays");
        give(&host.kernel, eth0, new);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(running.status.borrow().underlay_problem(), None);
        let ops = host.kernel.take_link_ops();
        assert!(matches!(ops[..], [LinkOp::Change(..)]), "{ops:?}");
    }
    let after = host.store.leases().remove(0);
    assert_eq!((after.key, after.created), (before.key, before.created));
    assert_eq!(after.attrs.backend_data, before.attrs.backend_data, "the MACs stay");
    assert_eq!(after.attrs.public_ips.v4, "192.0.2.2".parse().ok());
    assert_eq!(after.attrs.public_ips.v6, "2001:db8::2".parse().ok());
    for (before, local) in links.iter().zip(["192.0.2.2", "2001:db8::2"]) {
        let now = host.kernel.link_named(&before.name).unwrap();
        assert_eq!((now.index, now.mac), (before.index, before.mac));
        assert_eq!(now.vxlan.unwrap().local, local.parse().ok());
    }
    let mut writes = 0;
    while let Some(update) = futures::FutureExt::now_or_never(futures::StreamExt::next(&mut watch)) {
        update.unwrap().unwrap();
        writes += 1;
    }
    assert_eq!(writes, 2, "one a change");
    hold.abort();
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn peers_follow_a_node_that_moved() {
    let host = Host::new(true, DUAL);
    host.store.put(PEER_KEY, PEER);
    let running = host.start().await;
    let moved = PEER.replace("192.0.2.9", "192.0.2.8").replace("2001:db8::9", "2001:db8::8");
    host.kernel.take_ops();
    host.store.put(PEER_KEY, &moved);
    settle().await;
    let ops = host.kernel.take_ops();
    assert!(ops.iter().all(|op| matches!(op.object(), Object::Fdb(_))), "{ops:?}");
    let remotes: Vec<_> = (host.kernel.objects().iter())
        .filter_map(|object| if let Object::Fdb(entry) = object { Some(entry.dst.to_string()) } else { None })
        .collect();
    assert_eq!(remotes, ["192.0.2.8", "2001:db8::8"]);
    running.stop().await;
}
