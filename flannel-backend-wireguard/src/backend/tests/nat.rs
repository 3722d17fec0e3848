//! Nodes behind NATs and public ones, on kernels, devices and a store in memory.

use super::*;
use crate::nat::NatOptions;

const V4: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}"#;
const PEERS: [&str; 3] = ["10.5.97.0-24", "10.5.98.0-24", "10.5.99.0-24"];

/// The record of node `n`, with this about NATs.
fn record_with(n: u8, nat: &str) -> String {
    let key = key(n);
    format!(
        r#"{{"PublicIP":"192.0.2.{n}","BackendType":"wireguard","BackendData":{{"PublicKey":"{key}","Port":51820,"Nat":{nat}}}}}"#
    )
}

/// What a node publishes about NATs.
fn published(running: &Running) -> String {
    let record: serde_json::Value = serde_json::from_str(&running.attrs.borrow().to_json()).unwrap();
    record["BackendData"]["Nat"].to_string()
}

fn notes(running: &Running) -> String {
    running.status.borrow().device_problem().unwrap_or_default()
}

impl Host {
    /// A handshake with node `n`, which was at this place.
    fn meet(&self, n: u8, at: &str) {
        self.devices.edit(self.link("flannel-wg"), |state| {
            let peer = state.peers.get_mut(&key(n)).unwrap();
            (peer.last_handshake, peer.endpoint) = (Some(SystemTime::now()), at.parse().ok());
            peer.rx_bytes += 92;
        });
    }

    fn peer(&self, n: u8) -> PeerState {
        self.devices.state(self.link("flannel-wg")).peers.remove(&key(n)).unwrap()
    }

    async fn start_as(&self, nat: NatOptions) -> Running {
        let netns = Netns::current().unwrap();
        let registration = Registration::new(&netns, &self.config, &self.underlay, &self.store);
        let backend = self.backend().nat(nat);
        let network = backend.register(registration.previous(self.previous.as_ref())).await.unwrap();
        let (status, state, attrs) = (network.status(), network.state(), network.attrs());
        let cancel = CancellationToken::new();
        let task = tokio::spawn(network.run(self.store.watch_leases(), cancel.clone()));
        settle().await;
        Running { status, state, attrs, cancel, task }
    }
}

async fn look() {
    tokio::time::sleep(Duration::from_secs(4)).await;
}

#[tokio::test(start_paused = true)]
async fn a_public_node_publishes_who_is_elsewhere_once_a_handshake_proved_it() {
    let host = Host::new(V4);
    for (lease, n) in PEERS.iter().zip([7, 8, 9]) {
        host.store.put(lease, &record(n));
    }
    let running = host.start().await;
    look().await;
    assert_eq!(published(&running), "null", "what it always published");
    host.devices.edit(host.link("flannel-wg"), |state| {
        // Somebody wrote that; no handshake proved it.
        state.peers.get_mut(&key(7)).unwrap().endpoint = "198.51.100.7:1".parse().ok();
    });
    host.meet(8, "192.0.2.8:51820");
    host.meet(9, "198.51.100.9:40000");
    look().await;
    assert_eq!(published(&running), format!(r#"{{"Seen":{{"{}":"198.51.100.9:40000"}}}}"#, key(9)));
    host.meet(9, "192.0.2.9:51820");
    look().await;
    assert_eq!(published(&running), "null");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_seen_elsewhere_is_behind_a_nat_and_tries_others_where_they_are_seen() {
    let mut host = Host::new(V4);
    host.store.put(PEERS[0], &record(7));
    host.store.put(PEERS[2], &record(6));
    host.store.put(PEERS[1], &record_with(8, r#"{"Behind":true}"#));
    let running = host.start().await;
    let own = host.key().public();
    host.devices.take_changes();
    let sees = format!(r#"{{"Seen":{{"{own}":"198.51.100.1:51820","{}":"198.51.100.8:4000"}}}}"#, key(8));
    host.store.put(PEERS[0], &record_with(7, &sees));
    look().await;
    assert_eq!(published(&running), "null", "a node with which there is no session can't know");
    host.meet(7, "192.0.2.7:51820");
    look().await;
    assert_eq!(published(&running), r#"{"Behind":true}"#);
    assert!(
        notes(&running).contains("behind a NAT (peers see it at 198.51.100.1:51820)"),
        "{}",
        notes(&running)
    );
    assert_eq!(host.peer(7).keepalive, 25);
    assert_eq!((host.peer(8).keepalive, host.peer(8).endpoint), (25, "198.51.100.8:4000".parse().ok()));
    // A node of Go flannel is no other peer than before, but that its session is kept open.
    let changed = host.devices.take_changes().into_iter().filter_map(|change| match change {
        Change::Peer(of, change) if of == key(6) => Some(change),
        _ => None,
    });
    let kept_open = PeerChange { keepalive: Some(25), ..PeerChange::default() };
    assert_eq!(changed.collect::<Vec<_>>(), [kept_open]);
    // A restart knows it at once; it is forgotten when nobody says so any more.
    let attrs = running.attrs.borrow().clone();
    let own = Lease { attrs, ..host.register().await.unwrap().lease().clone() };
    let mut previous = running.stop().await;
    previous.own = Some(own);
    host.previous = Some(previous);
    host.store.put(PEERS[0], &record(7));
    let running = host.start().await;
    assert_eq!(published(&running), r#"{"Behind":true}"#);
    tokio::time::sleep(Duration::from_secs(700)).await;
    assert_eq!(published(&running), "null");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn flags_say_it_at_once_and_a_relay_behind_a_nat_is_none() {
    let host = Host::new(V4);
    for (behind, relay, want) in [
        (true, false, r#"{"Behind":true}"#),
        (false, true, r#"{"Relay":true}"#),
        (true, true, r#"{"Behind":true}"#),
        (false, false, "null"),
    ] {
        let running = host.start_as(NatOptions::new(behind, relay)).await;
        assert_eq!(published(&running), want);
        look().await;
        assert_eq!(notes(&running).contains("no relay in spite of --relay"), behind && relay);
        running.stop().await;
    }
}
