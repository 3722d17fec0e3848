//! What a node finds from an earlier run, or from Go flannel, and goes on with.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_device_key_and_sessions() {
    let mut host = Host::new(DUAL);
    host.store.put(PEER, &record(9));
    let running = host.start().await;
    let link = host.link("flannel-wg");
    // It was heard from behind a NAT since.
    host.devices.edit(link, |state| {
        let peer = state.peers.get_mut(&key(9)).unwrap();
        peer.endpoint = "203.0.113.7:4711".parse().ok();
        peer.last_handshake = SystemTime::now().checked_sub(Duration::from_secs(400));
    });
    host.previous = Some(running.stop().await);
    host.devices.take_changes();
    host.kernel.take_ops();
    host.kernel.take_link_ops();
    let running = host.start().await;
    tokio::time::sleep(Duration::from_secs(200)).await;
    let done = (host.devices.take_changes(), host.kernel.take_ops(), host.kernel.take_link_ops());
    assert_eq!(done, (vec![], vec![], vec![]), "a restart changes nothing");
    // The peer published another address meanwhile: it is silent, so it is tried there.
    host.previous = Some(running.stop().await);
    host.store.put(PEER, &record(9).replace("192.0.2.9", "192.0.2.19"));
    let _running = host.start().await;
    let change = PeerChange { endpoint: "192.0.2.19:51820".parse().ok(), ..PeerChange::default() };
    assert_eq!(host.devices.take_changes(), [Change::Peer(key(9), change)]);
}

/// Go flannel's device with its peers, and its route for the whole network.
#[tokio::test(start_paused = true)]
async fn a_go_nodes_device_is_taken_over_in_place() {
    let host = Host::new(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}"#);
    let go_key = key_file::create(&host.folder.path().join("wgkey")).unwrap();
    let mut kernel = host.kernel.clone();
    kernel.change_link(&crate::provider::create("flannel-wg", Mtu(1420))).await.unwrap();
    host.kernel.edit_link("flannel-wg", false, |link| link.up = true);
    let link = host.link("flannel-wg");
    let peer = |n: u8| PeerState {
        endpoint: format!("192.0.2.{n}:51820").parse().ok(),
        allowed_ips: [format!("10.5.{n}.0/24").parse().unwrap()].into(),
        last_handshake: Some(SystemTime::now()),
        ..PeerState::default()
    };
    host.devices.edit(link, |state| {
        (state.private_key, state.listen_port) = (Some(go_key), 51820);
        state.peers = [9, 10].map(|n| (key(n), peer(n))).into();
    });
    let whole = Route { protocol: 3, ..route("10.5.0.0/16", link) };
    host.kernel.put(Object::Route(whole), false);
    for n in [9, 10] {
        let value = record(n).replace(&format!(r#""2001:db8::{n}""#), "null");
        host.store.put(&format!("10.5.{n}.0-24"), &value);
    }
    host.kernel.take_link_ops();
    let network = host.register().await.unwrap();
    assert!(
        host.kernel.objects().get(&Object::Route(whole).key()).is_some(),
        "not before the leases are known"
    );
    let cancel = CancellationToken::new();
    let _task = tokio::spawn(network.run(host.store.watch_leases(), cancel.clone()));
    settle().await;
    assert_eq!(
        (host.devices.take_changes(), host.kernel.take_link_ops()),
        (vec![], vec![]),
        "sessions go on"
    );
    let objects = host.kernel.objects();
    assert_eq!(objects.get(&Object::Route(whole).key()), None, "it goes when all peers have routes");
    for n in [9, 10] {
        let route = Object::Route(route(&format!("10.5.{n}.0/24"), link));
        assert_eq!(objects.get(&route.key()), Some(route));
    }
    let ops = host.kernel.take_ops();
    assert_eq!(ops.last().map(flannel_core::dataplane::Op::key), Some(Object::Route(whole).key()));
}
