//! The contract of backends as a test. It is written at [`crate::backend::Network`].

use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{FakeKernel, FakeStore};
use crate::addr::{LinkIndex, Mtu, PerFamily};
use crate::backend::{Backend, BackendError, NetworkStatus, Registration, Underlay};
use crate::config::{LeaseSource, NetworkConfig};
use crate::dataplane::{Dataplane, Op};
use crate::events::{NetworkEvent, NetworkEvents};
use crate::kernel::LinkAddress;
use crate::netns::Netns;
use crate::state_file::State;
use crate::status::PeerState;
use crate::subnet::SubnetManager;
use crate::underlay::UnderlayOptions;

/// A backend under test, with a kernel and a store in memory.
pub struct BackendSubject<'a> {
    /// Makes the backend on a kernel. The underlay is `eth0` with 192.0.2.1/24, `2001:db8::1/64` and 1500 bytes.
    pub make: &'a dyn Fn(FakeKernel) -> Box<dyn Backend>,
    /// The network config, as JSON in the store's form.
    pub config: &'a str,
    /// The records of two other nodes: key below `subnets/`, and value.
    pub peers: [(&'a str, &'a str); 2],
    /// An unusable value for the first of them, such as one without an address.
    pub unusable: &'a str,
    /// Whether the process itself carries the packets, so that the device ends with it, with all that is on it, and the
    /// next start makes it again.
    pub ends_with_process: bool,
}

/// A running network.
struct Running {
    status: watch::Receiver<NetworkStatus>,
    state: watch::Receiver<State>,
    events: NetworkEvents,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), BackendError>>,
}

impl Running {
    async fn stop(self) -> State {
        self.cancel.cancel();
        self.task.await.expect("the network panicked").expect("the network failed");
        self.state.borrow().clone()
    }

    fn state_of(&self, key: &str) -> Option<PeerState> {
        let key = key.parse().expect("a key of a lease");
        self.status.borrow().peer_list.get(&key).map(|peer| peer.state.clone())
    }

    fn events(&mut self) -> Vec<NetworkEvent> {
        let mut events = Vec::new();
        while let Some(Some(event)) = self.events.recv().now_or_never() {
            events.push(event);
        }
        events
    }
}

/// Waits longer than the loop waits before it publishes its status, and than its pauses between attempts.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(2)).await;
}

struct Host<'a> {
    subject: &'a BackendSubject<'a>,
    kernel: FakeKernel,
    store: FakeStore,
    config: NetworkConfig,
    underlay: Underlay,
}

impl<'a> Host<'a> {
    fn new(subject: &'a BackendSubject<'a>) -> Self {
        let kernel = FakeKernel::default();
        let link = kernel.add_link("eth0", 1500);
        for addr in ["192.0.2.1/24", "2001:db8::1/64"] {
            kernel.add_address(address(link, addr));
        }
        let config = NetworkConfig::parse(subject.config, LeaseSource::Store).expect("a good config");
        let local =
            |family| config.networks.get(family).map(|_| ["192.0.2.1", "2001:db8::1"][family as usize]);
        let addresses = PerFamily::from_fn(local).map(|_, addr| addr.parse().expect("an address"));
        let underlay = Underlay {
            name: "eth0".to_owned(),
            link,
            mtu: Mtu(1500),
            local: addresses,
            published: addresses,
            reason: "of the contract".to_owned(),
        };
        Self { subject, kernel, store: FakeStore::new(config.clone()), config, underlay }
    }

    async fn start(&self, previous: Option<&State>) -> Running {
        let backend = (self.subject.make)(self.kernel.clone());
        let options = UnderlayOptions::of_config(&self.config).iface("eth0");
        let netns = Netns::current().expect("a network namespace");
        let registration = Registration::new(&netns, &self.config, &self.underlay, &self.store)
            .previous(previous)
            .chosen_by(&options);
        let network = backend.register(registration).await.expect("it can be registered");
        assert_eq!(network.lease().attrs, *network.attrs().borrow(), "it publishes what the lease has");
        assert!(network.overlay_mtu() <= self.underlay.mtu, "nothing fits that does not fit the underlay");
        let (status, state, events) = (network.status(), network.state(), network.events());
        assert!(!status.borrow().synced, "no lease is known yet");
        let cancel = CancellationToken::new();
        let task = tokio::spawn(network.run(self.store.watch_leases(), cancel.clone()));
        settle().await;
        Running { status, state, events, cancel, task }
    }

    /// All objects except those that the host has without the backend.
    fn objects(&self) -> Dataplane {
        self.kernel.objects()
    }
}

fn is_repair(event: &NetworkEvent) -> bool {
    matches!(event, NetworkEvent::Repaired { .. })
}

fn address(link: LinkIndex, addr: &str) -> LinkAddress {
    let addr = addr.parse().expect("an address");
    let (global, deprecated, permanent, temporary, tentative) = (true, false, true, false, false);
    LinkAddress { link, addr, global, deprecated, permanent, temporary, tentative }
}

/// Checks that a backend keeps the contract. Needs a runtime with paused time.
///
/// # Panics
///
/// If the backend breaks a promise; the message says which.
pub async fn backend_contract(subject: BackendSubject<'_>) {
    let host = Host::new(&subject);
    let [(first, value), (second, other)] = subject.peers;
    host.store.put(first, value);
    let mut running = host.start(None).await;
    assert!(running.status.borrow().synced, "the first snapshot is programmed");
    assert_eq!(
        running.state_of(first),
        Some(PeerState::Programmed),
        "{:?}",
        running.status.borrow().problems
    );
    let path = running.status.borrow().peer_list.iter().all(|peer| !peer.path.is_empty());
    assert!(path, "the way to each peer is told");
    let own = running.state.borrow().own.as_ref().map(|own| own.key);
    let own = own.expect("what is stored has this node's lease");
    assert!(running.status.borrow().peer_list.get(&own).is_none(), "this node is no peer of itself");
    let with_first = host.objects();
    assert!(!with_first.is_empty(), "a peer needs objects");

    // A deleted object is put back, with an event.
    running.events();
    for object in with_first.iter().collect::<Vec<_>>() {
        host.kernel.delete(&object.key(), true);
        settle().await;
        assert_eq!(host.objects(), with_first, "{object} is put back");
        let told = running.events();
        assert!(told.iter().any(is_repair), "{object}: {told:?}");
    }

    // Devices follow the underlay's MTU, which is no repair.
    for mtu in [Mtu(1400), Mtu(1500)] {
        host.kernel.edit_link("eth0", true, |link| link.mtu = mtu);
        settle().await;
        let told = running.events();
        assert!(!told.iter().any(is_repair), "the underlay's MTU is {mtu} now: {told:?}");
        let overlay = running.status.borrow().overlay_mtu;
        assert!(overlay.is_none_or(|overlay| overlay <= mtu), "{overlay:?} do not fit {mtu}");
        assert_eq!(host.objects(), with_first, "no object depends on the underlay's MTU");
    }

    // A peer that is added or removed causes no operation on objects of others.
    host.kernel.take_ops();
    host.store.put(second, other);
    settle().await;
    assert_eq!(running.state_of(second), Some(PeerState::Programmed));
    let touched: Vec<Op> = host.kernel.take_ops();
    let is_of_first = |op: &Op| with_first.get(&op.key()).is_some();
    assert!(!touched.iter().any(is_of_first), "{touched:?}");
    host.store.remove(second);
    settle().await;
    assert_eq!((host.objects(), running.state_of(second)), (with_first.clone(), None));

    // A record that can't be used counts as unknown, not as deleted.
    host.store.put(first, subject.unusable);
    settle().await;
    assert_eq!(host.objects(), with_first, "the last good state stays");
    let state = running.state_of(first);
    assert!(matches!(state, Some(PeerState::Rejected(_))), "{state:?}");
    host.store.put(first, value);
    settle().await;

    // An agent that ends leaves everything, and the next one adopts everything.
    let stored = running.stop().await;
    assert_eq!(host.objects(), with_first, "an end takes nothing away");
    host.kernel.take_ops();
    host.kernel.take_link_ops();
    let running = host.start(Some(&stored)).await;
    let with_first = if subject.ends_with_process {
        let again = host.objects();
        assert_eq!(
            again.iter().count(),
            with_first.iter().count(),
            "a restart makes all of it again: {again:?}"
        );
        again
    } else {
        // Operations with which the backend tests the kernel concern no existing objects.
        let changed: Vec<Op> = host.kernel.take_ops().into_iter().filter(is_of_first).collect();
        let done = (changed, host.kernel.take_link_ops());
        assert_eq!(done, (Vec::new(), Vec::new()), "a restart changes nothing");
        assert_eq!(host.objects(), with_first, "a restart changes nothing");
        with_first
    };
    assert_eq!(running.state_of(first), Some(PeerState::Programmed));

    // A link that is down does not change the desired state.
    host.kernel.edit_link("eth0", true, |link| (link.up, link.carrier) = (false, false));
    settle().await;
    host.kernel.edit_link("eth0", true, |link| (link.up, link.carrier) = (true, true));
    settle().await;
    assert_eq!(host.objects(), with_first, "all is there again");
    assert_eq!(running.state_of(first), Some(PeerState::Programmed));
    running.stop().await;
}
