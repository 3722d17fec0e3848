//! One device in memory: what a change of one lease costs, and that nothing is missed by looking at so little.

use std::collections::BTreeMap;
use std::time::Duration;

use flannel_core::addr::{LinkIndex, Subnet};
use flannel_core::config::NetworkConfig;
use flannel_core::dataplane::{Object, Route};
use flannel_core::lease::Unknown;
use flannel_core::netns::Netns;
use flannel_core::peers::Claim;
use flannel_core::testing::FakeKernel;
use proptest::prelude::*;

use super::*;
use crate::device::PeerState;
use crate::plan::DesiredPeer;
use crate::provider::{Provider, create};
use crate::testing::FakeDevices;

/// A device with its tunnel, and the peers that it should have.
struct Bench {
    devices: FakeDevices,
    tunnel: Tunnel,
    config: WireguardConfig,
    leases: BTreeMap<LeaseKey, Peer>,
    wishes: BTreeMap<PublicKey, Wish>,
    unknown: Unknown,
}

fn key(n: u32) -> PublicKey {
    let mut key = [0; 32];
    key[..4].copy_from_slice(&n.to_be_bytes());
    PublicKey(key)
}

fn lease(n: u32) -> LeaseKey {
    format!("10.{}.{}.0-24", 128 + n / 256, n % 256).parse().unwrap()
}

fn network() -> Subnet {
    "10.128.0.0/9".parse().unwrap()
}

impl Bench {
    async fn new() -> Self {
        let (mut kernel, devices) = (FakeKernel::default(), FakeDevices::default());
        flannel_core::kernel::Kernel::change_link(&mut kernel, &create(NAME, flannel_core::addr::Mtu(1420)))
            .await
            .unwrap();
        let link = kernel.link_named(NAME).unwrap();
        let device = devices.open(&Netns::current().unwrap(), &link).await.unwrap();
        let text = r#"{"Network":"10.128.0.0/9","Backend":{"Type":"wireguard"}}"#;
        let config = NetworkConfig::parse(text, flannel_core::config::LeaseSource::Store).unwrap();
        let mut tunnel = Tunnel::new(NAME, vec![Family::V4]);
        (tunnel.link, tunnel.device, tunnel.is_there) = (Some(link), Some(device), true);
        let config = WireguardConfig::of(&config).unwrap();
        let (leases, wishes, unknown) = Default::default();
        Self { devices, tunnel, config, leases, wishes, unknown }
    }

    fn link(&self) -> LinkIndex {
        self.tunnel.link.as_ref().unwrap().index
    }

    /// Gives a lease to a key that is reached at this address.
    fn put(&mut self, n: u32, of: u32, at: u8) {
        let link = self.link();
        let (lease, address) = (lease(n), IpAddr::from([192, 0, 2, at]));
        let mut peer = Peer::default();
        let subnet = lease.subnets().v4.unwrap();
        peer.claims.extend([Claim::Subnet(subnet), Claim::Key(link, key(of).0, address, 51820)]);
        peer.objects.push(Object::Route(Route::by_device(subnet, link)));
        self.leases.insert(lease, peer);
    }

    async fn hold(&mut self, read: bool, is_synced: bool) -> Outcome {
        let peers: Vec<_> = self.leases.iter().collect();
        self.tunnel.set_peers(&peers, |_, key| self.wishes.get(&key).copied().unwrap_or_default());
        let key = PrivateKey([8; 32]);
        let common = Common { config: &self.config, key: &key, networks: vec![network()] };
        let prune = Prune::for_tests(is_synced, &self.unknown);
        self.tunnel.hold(read, &common, prune, SystemTime::now()).await.unwrap()
    }

    /// What is in the device, by who has which addresses.
    fn content(&self) -> BTreeMap<PublicKey, BTreeSet<IpNetwork>> {
        let peers = self.devices.state(self.link()).peers;
        peers.into_iter().map(|(key, peer)| (key, peer.allowed_ips)).collect()
    }

    /// Has a relay carry the packets of a peer; `None` for none.
    fn relay(&mut self, of: u32, relay: Option<u32>) {
        self.wishes.insert(key(of), Wish { relay: relay.map(key), ..Wish::default() });
    }

    /// The peers as a roster has them that saw no other list before.
    fn computed_anew(&self) -> BTreeMap<PublicKey, DesiredPeer> {
        let mut roster = Roster::default();
        let wish = |key| self.wishes.get(&key).copied().unwrap_or_default();
        let on = On { link: self.link(), families: &[Family::V4], wish: &wish };
        roster.set(&on, self.leases.iter());
        roster.peers().clone()
    }

    fn desired(&self) -> BTreeMap<PublicKey, BTreeSet<IpNetwork>> {
        let roster = lock(&self.tunnel.shared.roster);
        roster.peers().iter().map(|(key, peer)| (*key, peer.allowed_ips.clone())).collect()
    }
}

#[tokio::test]
async fn one_lease_of_ten_thousand_costs_one_comparison_and_one_change() {
    let mut bench = Bench::new().await;
    (0..10_000).for_each(|n| bench.put(n, n, 9));
    assert_eq!(bench.hold(true, true).await.compared, 10_000);
    let reads = bench.devices.reads();
    bench.devices.take_changes();
    // Another address, another lease of a key, a lease that goes, and one that comes.
    let leases = 10_000;
    for (what, change) in [
        ("moves", (|bench| bench.put(7, 7, 10)) as fn(&mut Bench)),
        ("goes", |bench| _ = bench.leases.remove(&lease(8))),
        ("comes", |bench| bench.put(10_001, 10_001, 11)),
        ("gets a second one", |bench| bench.put(10_002, 7, 10)),
        ("stays", |_| {}),
    ] {
        change(&mut bench);
        let outcome = bench.hold(false, true).await;
        let changes = bench.devices.take_changes();
        let most = usize::from(what != "stays");
        assert!(outcome.compared == most && changes.len() <= most, "{what}: {outcome:?} {changes:?}");
        assert!(bench.content().len().abs_diff(leases) <= 1, "{what}");
    }
    // A key that is exchanged is two: the new one must not take an address from who keeps it.
    bench.put(9, 20_000, 9);
    let outcome = bench.hold(false, true).await;
    assert_eq!((outcome.compared, bench.devices.take_changes().len()), (2, 2));
    assert_eq!(bench.devices.reads(), reads, "the device was not read again");
    assert_eq!(bench.content(), bench.desired());
}

#[tokio::test]
async fn what_could_not_be_done_is_looked_at_again_until_it_can() {
    let mut bench = Bench::new().await;
    let link = bench.link();
    // Before the first snapshot nothing goes, so somebody who is not desired keeps the address.
    let ips: BTreeSet<IpNetwork> = ["10.128.1.0/24".parse().unwrap()].into();
    let stranger = PeerState { allowed_ips: ips.clone(), ..PeerState::default() };
    bench.devices.edit(link, |state| _ = state.peers.insert(key(99), stranger));
    bench.put(1, 1, 9);
    let outcome = bench.hold(true, false).await;
    assert_eq!(outcome.held_back, [("10.128.1.0/24".parse().unwrap(), key(1))]);
    bench.put(2, 2, 9);
    let outcome = bench.hold(false, false).await;
    assert_eq!((outcome.compared, outcome.held_back.len()), (3, 1), "it is still said");
    let outcome = bench.hold(false, true).await;
    assert_eq!((outcome.compared, outcome.held_back.len()), (2, 0));
    assert_eq!(bench.content(), bench.desired());
    assert_eq!(bench.hold(false, true).await.compared, 0);
    // One outside of the network is never ours, and stays counted.
    let foreign =
        PeerState { allowed_ips: ["172.16.0.0/24".parse().unwrap()].into(), ..PeerState::default() };
    bench.devices.edit(link, |state| _ = state.peers.insert(key(77), foreign));
    assert_eq!(bench.hold(true, true).await.foreign, 1);
    bench.put(3, 3, 9);
    assert_eq!(bench.hold(false, true).await.foreign, 1);
}

#[tokio::test]
async fn a_relay_has_the_addresses_of_who_it_carries_for_and_gives_them_back() {
    let mut bench = Bench::new().await;
    (1..=3).for_each(|n| bench.put(n, n, 9));
    bench.hold(true, true).await;
    let ips = |bench: &Bench| [1, 2, 3].map(|n| bench.content().get(&key(n)).map_or(9, BTreeSet::len));
    bench.relay(2, Some(1));
    bench.devices.take_changes();
    let outcome = bench.hold(false, true).await;
    assert_eq!((ips(&bench), outcome.compared), ([2, 0, 1], 2));
    let order: Vec<PublicKey> = bench.devices.take_changes().iter().map(changed).collect();
    assert_eq!(order, [key(2), key(1)], "first who had them gives them up");
    let shown = Shown::default();
    shown.set(std::slice::from_ref(&bench.tunnel));
    let paths = || shown.sessions().read().iter().map(|session| session.path).collect::<Vec<_>>();
    assert_eq!(paths(), [None, Some(SessionPath::Relay(lease(1))), None]);
    assert_eq!(bench.tunnel.peer_of(&lease(2)), Some((key(2), true)), "as it should be");
    bench.relay(2, Some(3));
    bench.hold(false, true).await;
    assert_eq!(ips(&bench), [1, 0, 2]);
    // One that is no peer carries nothing.
    let relay = bench.leases.remove(&lease(3));
    bench.hold(false, true).await;
    assert_eq!(ips(&bench), [1, 1, 9]);
    bench.leases.extend(relay.map(|relay| (lease(3), relay)));
    bench.hold(false, true).await;
    assert_eq!(ips(&bench), [1, 0, 2]);
    bench.relay(2, None);
    bench.hold(false, true).await;
    assert_eq!(ips(&bench), [1, 1, 1]);
}

fn changed(change: &Change) -> PublicKey {
    match change {
        Change::Peer(key, _) | Change::RemovePeer(key) => *key,
        Change::PrivateKey(_) | Change::ListenPort(_) => PublicKey([0; 32]),
    }
}

#[tokio::test]
async fn a_changed_key_or_port_of_this_node_compares_all_and_a_failure_reads_again() {
    let mut bench = Bench::new().await;
    (0..5).for_each(|n| bench.put(n, n, 9));
    bench.hold(true, true).await;
    bench.config.keepalive = 25;
    assert_eq!(bench.hold(false, true).await.compared, 5);
    assert!(bench.devices.state(bench.link()).peers.values().all(|peer| peer.keepalive == 25));
    let reads = bench.devices.reads();
    bench.devices.fail(Some(io::ErrorKind::PermissionDenied));
    bench.put(6, 6, 9);
    let peers: Vec<_> = bench.leases.iter().collect();
    bench.tunnel.set_peers(&peers, |_, _| Wish::default());
    let key = PrivateKey([8; 32]);
    let common = Common { config: &bench.config, key: &key, networks: vec![network()] };
    let prune = Prune::for_tests(true, &bench.unknown);
    assert!(bench.tunnel.hold(false, &common, prune, SystemTime::now()).await.is_err());
    bench.devices.fail(None);
    bench.hold(false, true).await;
    assert_eq!(bench.devices.reads(), reads + 1);
    assert_eq!(bench.content(), bench.desired());
}

#[tokio::test]
async fn sessions_are_read_from_the_device_when_asked_and_named_by_lease() {
    let mut bench = Bench::new().await;
    let link = bench.link();
    bench.put(1, 1, 9);
    bench.put(2, 2, 10);
    bench.put(3, 2, 10);
    bench.hold(true, true).await;
    let last = SystemTime::now().checked_sub(Duration::from_secs(3));
    bench.devices.edit(link, |state| {
        let peer = state.peers.get_mut(&key(1)).unwrap();
        (peer.last_handshake, peer.tx_bytes, peer.rx_bytes) = (last, 5, 7);
        peer.endpoint = "203.0.113.7:4711".parse().ok();
        state.peers.remove(&key(2));
    });
    let shown = Shown::default();
    let read = shown.sessions();
    assert_eq!(read.read(), [], "none is shown");
    shown.set(std::slice::from_ref(&bench.tunnel));
    let sessions = read.read();
    let one = Session::new(lease(1), NAME, &[Family::V4], "192.0.2.9:51820".parse().ok())
        .handshake(last, STALE, SystemTime::now())
        .carried(5, 7)
        .endpoint("203.0.113.7:4711".parse().ok());
    let none = |n| Session::new(lease(n), NAME, &[Family::V4], "192.0.2.10:51820".parse().ok());
    assert_eq!(sessions, [one, none(2), none(3)]);
    assert_eq!(bench.tunnel.peer_of(&lease(1)), Some((key(1), true)));
    assert_eq!(bench.tunnel.peer_of(&lease(4)), None);
    bench.devices.fail(Some(io::ErrorKind::PermissionDenied));
    assert_eq!(read.read(), [], "a device that can't be read tells nothing");
    bench.devices.fail(None);
    bench.tunnel.device = None;
    assert_eq!(read.read(), [], "nobody but the driver keeps the device");
}

/// What happens: a lease gets a key and an address, or goes; the device is read or not; the leases are known or not.
#[derive(Debug, Clone)]
enum Step {
    Put(u32, u32, u8),
    Remove(u32),
    /// Somebody else gives an address to a key.
    Meddle(u32, u32),
    /// A peer gets a relay, or none.
    Relay(u32, Option<u32>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u32..4, 0_u32..4, 9_u8..11).prop_map(|(n, of, at)| Step::Put(n, of, at)),
        2 => (0_u32..4).prop_map(Step::Remove),
        1 => (0_u32..4, 0_u32..6).prop_map(|(n, of)| Step::Meddle(n, of)),
        3 => (0_u32..4, proptest::option::of(0_u32..5)).prop_map(|(of, relay)| Step::Relay(of, relay)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Few peers and addresses, so that they are exchanged all the time.
    #[test]
    fn looking_at_little_comes_to_the_same_as_looking_at_all(
        steps in proptest::collection::vec((step(), any::<bool>()), 1..24),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut bench = Bench::new().await;
            bench.hold(true, false).await;
            for (step, is_synced) in steps {
                let mut read = false;
                match step {
                    Step::Put(n, of, at) => bench.put(n, of, at),
                    Step::Remove(n) => _ = bench.leases.remove(&lease(n)),
                    Step::Relay(of, relay) => bench.relay(of, relay),
                    Step::Meddle(n, of) => {
                        let ip = IpNetwork::from(lease(n).subnets().v4.unwrap());
                        bench.devices.edit(bench.link(), |state| {
                            state.peers.values_mut().for_each(|peer| _ = peer.allowed_ips.remove(&ip));
                            state.peers.entry(key(of)).or_default().allowed_ips.insert(ip);
                        });
                        read = true;
                    }
                }
                bench.hold(read, is_synced).await;
                let peers = lock(&bench.tunnel.shared.roster).peers().clone();
                prop_assert_eq!(peers, bench.computed_anew());
                prop_assert_eq!(
                    lock(&bench.tunnel.shared.seen).as_ref().map(|seen| seen.state().clone()),
                    Some(bench.devices.state(bench.link()))
                );
                if is_synced {
                    prop_assert_eq!(bench.content(), bench.desired());
                }
                prop_assert_eq!(
                    lock(&bench.tunnel.shared.seen).clone(),
                    Some(Seen::new(bench.devices.state(bench.link())))
                );
            }
            Ok(())
        })?;
    }
}
