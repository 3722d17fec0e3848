//! Peers in the devices, as the records of their leases change.

use super::*;

#[tokio::test(start_paused = true)]
async fn peers_whose_records_are_unreadable_stay() {
    let mut host = Host::new(DUAL);
    host.store.put(PEER, &record(9));
    host.store.put("10.5.98.0-24", &record(8));
    let running = host.start().await;
    assert_eq!(host.peers("flannel-wg").len(), 2);
    host.previous = Some(running.stop().await);
    host.previous.as_mut().unwrap().leases.clear();
    // Not read once since the start.
    host.store.put("10.5.98.0-24", r#"{"PublicIP":"192.0.2.8","BackendType":"wireguard","BackendData":7}"#);
    host.store.remove(PEER);
    let _running = host.start().await;
    let left: Vec<_> = host.peers("flannel-wg").into_iter().map(|(key, _)| key).collect();
    assert_eq!(left, [key(8)]);
    host.store.remove("10.5.98.0-24");
    settle().await;
    assert_eq!(host.peers("flannel-wg"), []);
}

#[tokio::test(start_paused = true)]
async fn another_key_of_a_node_leaves_no_peer_behind() {
    let host = Host::new(DUAL);
    host.store.put(PEER, &record(9));
    let _running = host.start().await;
    host.devices.take_changes();
    host.store.put(PEER, &record(9).replace(&key(9).to_string(), &key(11).to_string()));
    settle().await;
    for name in ["flannel-wg", "flannel-wg-v6"] {
        assert_eq!(host.peers(name).into_iter().map(|(key, _)| key).collect::<Vec<_>>(), [key(11)]);
    }
    let changes = host.devices.take_changes();
    assert!(matches!(
        changes[..],
        [Change::RemovePeer(_), Change::Peer(..), Change::RemovePeer(_), Change::Peer(..)]
    ));
}

#[tokio::test(start_paused = true)]
async fn a_copied_key_is_a_conflict_and_takes_nothing() {
    let host = Host::new(DUAL);
    host.store.put(PEER, &record(9));
    let running = host.start().await;
    host.devices.take_changes();
    // Its public key with another address: only one node can have a key.
    host.store.put("10.5.50.0-24", &record(9).replace("192.0.2.9", "192.0.2.66"));
    // And this node's own.
    let own = host.key().public();
    host.store.put("10.5.51.0-24", &record(12).replace(&key(12).to_string(), &own.to_string()));
    settle().await;
    assert_eq!(host.devices.take_changes(), []);
    let rejected = running.status.borrow().rejected().join("\n");
    assert!(rejected.contains("its PublicKey is that of lease 10.5.99.0-24"), "{rejected}");
    assert!(rejected.contains("its PublicKey is that of this node"), "{rejected}");
}
