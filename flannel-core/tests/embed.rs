//! The examples of a store and of a backend of one's own, run by two agents of one process, in a namespace.

#[allow(dead_code, unreachable_pub)]
#[path = "../examples/own_backend.rs"]
mod own_backend;
#[allow(dead_code, unreachable_pub)]
#[path = "../examples/own_store.rs"]
mod own_store;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::addr::PerFamily;
use flannel_core::agent::leave::Removal;
use flannel_core::agent::{Agent, AgentEvent, Failure, Phase};
use flannel_core::backend::{Backend, BackendError, Network, Registration};
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey, LeaseUpdate};
use flannel_core::subnet::{Identity, LeaseStream, StoreStatus, SubnetError, SubnetManager};
use flannel_core::testing::{FakeStore, StoreBed, store_contract};
use flannel_core::underlay::UnderlayOptions;
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use futures::StreamExt;
use own_backend::ListBackend;
use own_store::MemoryStore;
use tokio::sync::{Notify, Semaphore, watch};

/// The example's store under test.
struct Bed(MemoryStore);

#[async_trait::async_trait]
impl StoreBed for Bed {
    async fn open(&self, _: u8, identity: Identity) -> Arc<dyn SubnetManager> {
        let store = self.0.join();
        store.identify(identity);
        Arc::new(store)
    }

    async fn write(&self, key: LeaseKey, attrs: &LeaseAttrs) {
        self.0.edit(key, Some(&attrs.to_json()));
    }

    async fn spoil(&self, key: LeaseKey) {
        self.0.edit(key, Some("garbage"));
    }

    async fn delete(&self, key: LeaseKey) {
        self.0.edit(key, None);
    }

    fn leases_end(&self) -> bool {
        false
    }
}

#[tokio::test(start_paused = true)]
async fn the_example_of_a_store_fulfils_the_contract() {
    store_contract(&Bed(store("vxlan"))).await;
}

const SOON: Duration = Duration::from_secs(10);

fn store(backend: &str) -> MemoryStore {
    let config = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{backend}"}}}}"#);
    MemoryStore::new(NetworkConfig::parse(&config, LeaseSource::Store).unwrap())
}

/// A network namespace with two links, each of which can be an underlay. The tests and their runtimes are outside of it.
struct Host(flannel_core::netns::Netns);

impl Host {
    fn agent(&self, store: impl SubnetManager + 'static, link: &str) -> Agent {
        self.agent_of(store, ListBackend, link)
    }

    fn agent_of(
        &self,
        store: impl SubnetManager + 'static,
        backend: impl Backend + 'static,
        link: &str,
    ) -> Agent {
        let underlay = UnderlayOptions::auto().iface(link);
        let agent = Agent::builder(Arc::new(store)).backend(backend).underlay(underlay);
        agent.netns(self.0.clone()).start().unwrap()
    }
}

/// Runs a test with a host.
fn on_a_host<T: Future<Output = ()>>(name: &str, test: impl FnOnce(Host) -> T) {
    in_sandbox(name, || {
        let host = Netns::add("host").unwrap();
        for (link, addr) in [("eth0", "192.0.2.1/24"), ("eth1", "198.51.100.1/24")] {
            host.ip(&format!("link add {link} type veth peer name {link}-far")).unwrap();
            host.ip(&format!("addr add {addr} dev {link}")).unwrap();
            host.ip(&format!("link set {link} up")).unwrap();
            host.ip(&format!("link set {link}-far up")).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let host = Host(flannel_core::netns::Netns::open(host.path()).unwrap());
        let test = async { tokio::time::timeout(6 * SOON, test(host)).await };
        runtime.block_on(test).expect("it ends in time");
    });
}

#[test]
fn agents_with_a_store_and_a_backend_of_ones_own_find_each_other() {
    on_a_host(test_name!(), |host| async move {
        let store = store("list");
        let one = host.agent(store.join(), "eth0");
        let first = one.ready().await.unwrap().lease.key;
        let two = host.agent(store.join(), "eth1");
        let node = two.ready().await.unwrap();
        assert_eq!((&*node.backend, node.underlay.name.as_str()), ("list", "eth1"));
        assert!(!host.0.is_current(), "what is outside of the agents' namespace has no such link");
        assert_ne!(node.lease.key, first);
        let mut status = one.status();
        let sees = |peers| move |it: &Arc<_>| peers_of(it) == Some(peers);
        status.wait_for(sees(1)).await.unwrap();
        // A plan changes nothing; leaving takes the node out of the store.
        let plan = two.plan_leave().await.unwrap();
        let goes: Vec<_> = plan.removals.iter().map(Removal::lease).collect();
        assert_eq!(goes, [Some(node.lease.key)], "{plan:?}");
        assert!(peers_of(&two.status().borrow()).is_some() && peers_of(&status.borrow()) == Some(1));
        two.leave().await.unwrap();
        status.wait_for(sees(0)).await.unwrap();
        one.stop().await.unwrap();
        assert_eq!(std::fs::read_dir("/run/flannel").map_or(0, Iterator::count), 0, "no file is written");
    });
}

fn peers_of(status: &flannel_core::agent::AgentStatus) -> Option<usize> {
    Some(status.network.as_ref()?.peers)
}

/// What the store wants published is asked for by the agent, not by its caller, and wins over what that said.
#[test]
fn addresses_that_the_store_wants_are_published() {
    on_a_host(test_name!(), |host| async move {
        let config = NetworkConfig::parse(
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"list"}}"#,
            LeaseSource::Store,
        );
        let store = FakeStore::new(config.unwrap());
        let ip = |text: &str| PerFamily { v4: text.parse().ok(), v6: None };
        store.set_wanted_ips(ip("203.0.113.7"));
        let underlay = UnderlayOptions::auto().iface("eth0").public_ips(ip("203.0.113.9"));
        let agent = Agent::builder(Arc::new(store.clone())).backend(ListBackend).underlay(underlay);
        let agent = agent.netns(host.0).start().unwrap();
        let node = agent.ready().await.unwrap();
        assert_eq!(node.lease.attrs.public_ips, ip("203.0.113.7"));
        assert_eq!(store.leases()[0].attrs.public_ips, ip("203.0.113.7"));
        agent.stop().await.unwrap();
    });
}

#[test]
fn a_backend_that_was_not_handed_in_ends_the_agent_by_name() {
    on_a_host(test_name!(), |host| async move {
        let agent = host.agent(store("vxlan"), "eth0");
        let mut events = agent.events();
        let error = agent.ready().await.unwrap_err();
        let Failure::UnknownBackend(unknown) = error.failure() else { panic!("{error:?}") };
        assert_eq!((&*unknown.kind, &unknown.known[..]), ("vxlan", &["list".to_owned()][..]));
        let mut all = Vec::new();
        while let Some(event) = events.recv().await {
            all.push(event.event);
        }
        let error = Some(flannel_core::error::chain(&error));
        assert_eq!(all[all.len() - 2..], [AgentEvent::Stopping, AgentEvent::Ended { error }]);
    });
}

#[test]
fn an_agent_outside_of_a_runtime_says_so() {
    let agent = Agent::builder(Arc::new(store("list"))).backend(ListBackend);
    let error = agent.start().unwrap_err();
    assert!(matches!(error.failure(), Failure::NoRuntime), "{error:?}");
}

/// A store whose leases take as long as a test wants.
struct Slow {
    store: MemoryStore,
    /// Rung when a lease is asked for.
    asked: Arc<Notify>,
    /// Has a permit for each lease that may be given out.
    gate: Arc<Semaphore>,
}

#[async_trait::async_trait]
impl SubnetManager for Slow {
    async fn network_config(&self) -> Result<NetworkConfig, SubnetError> {
        self.store.network_config().await
    }

    async fn published_attrs(&self, ips: &PerFamily<IpAddr>) -> Result<Option<LeaseAttrs>, SubnetError> {
        self.store.published_attrs(ips).await
    }

    async fn acquire_lease(&self, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        self.asked.notify_one();
        self.gate.acquire().await.expect("it is never closed").forget();
        self.store.acquire_lease(attrs).await
    }

    async fn publish(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, SubnetError> {
        self.store.publish(lease, attrs).await
    }

    async fn renew_lease(&self, lease: &Lease) -> Result<Infallible, SubnetError> {
        self.store.renew_lease(lease).await
    }

    async fn release_lease(&self, lease: &Lease) -> Result<(), SubnetError> {
        self.store.release_lease(lease).await
    }

    fn watch_leases(&self) -> LeaseStream {
        self.store.watch_leases()
    }

    fn status(&self) -> watch::Receiver<StoreStatus> {
        self.store.status()
    }

    fn place(&self) -> String {
        self.store.place()
    }
}

async fn leases(store: &MemoryStore) -> usize {
    match store.watch_leases().next().await {
        Some(Ok(LeaseUpdate::Snapshot { leases, .. })) => leases.len(),
        other => panic!("a watch begins with a snapshot: {other:?}"),
    }
}

/// An agent that is stopped or dropped while it waits for a lease takes none later; the next one gets one.
#[test]
fn who_goes_while_a_lease_is_taken_leaves_none() {
    on_a_host(test_name!(), |host| async move {
        let (store, asked, gate) = (store("list"), Arc::<Notify>::default(), Arc::new(Semaphore::new(0)));
        let agent = || {
            let (store, asked, gate) = (store.join(), Arc::clone(&asked), Arc::clone(&gate));
            host.agent(Slow { store, asked, gate }, "eth0")
        };
        let stopped = agent();
        asked.notified().await;
        stopped.stop().await.unwrap();
        let dropped = agent();
        asked.notified().await;
        let (mut status, mut events) = (dropped.status(), dropped.events());
        drop(dropped);
        let ended = status.wait_for(|status| status.phase == Phase::Ended { error: None }).await;
        assert!(ended.is_ok_and(|status| status.node.is_none()));
        let mut last = None;
        while let Some(event) = events.recv().await {
            last = Some(event.event);
        }
        assert_eq!(last, Some(AgentEvent::Ended { error: None }));
        gate.add_permits(3);
        let next = agent();
        let lease = next.ready().await.unwrap().lease;
        assert_eq!((leases(&store).await, gate.available_permits()), (1, 2), "only {lease} was taken");
        next.stop().await.unwrap();
    });
}

/// A backend with a bug.
struct Broken;

#[async_trait::async_trait]
impl Backend for Broken {
    fn kind(&self) -> &'static str {
        "list"
    }

    async fn register(&self, _: Registration<'_>) -> Result<Box<dyn Network>, BackendError> {
        panic!("a bug of a backend");
    }
}

#[test]
fn a_panic_ends_its_own_agent_as_an_error() {
    on_a_host(test_name!(), |host| async move {
        let store = store("list");
        let well = host.agent(store.join(), "eth0");
        well.ready().await.unwrap();
        let broken = host.agent_of(store.join(), Broken, "eth1");
        let mut events = broken.events();
        let error = broken.ready().await.unwrap_err();
        assert!(matches!(error.failure(), Failure::Crashed(_)), "{error:?}");
        let told = Some(flannel_core::error::chain(&error));
        assert_eq!(broken.status().borrow().phase, Phase::Ended { error: told.clone() });
        let mut last = None;
        while let Some(event) = events.recv().await {
            last = Some(event.event);
        }
        assert_eq!(last, Some(AgentEvent::Ended { error: told }));
        assert!(broken.stop().await.is_err() && well.status().borrow().readiness().is_ready());
        well.stop().await.unwrap();
    });
}

/// Whatever a config says, it is refused by name or can be used: no literal of an embedder's ends in a panic later.
#[tokio::test]
async fn what_an_embedder_says_is_refused_by_name_or_works() {
    for text in [
        "",
        "null",
        "{}",
        r#"{"EnableIPv4":false}"#,
        r#"{"EnableIPv4":false,"Network":"10.244.0.0/16"}"#,
        r#"{"EnableIPv6":true,"Network":"10.244.0.0/16"}"#,
        r#"{"Network":"10.244.0.0/32"}"#,
        r#"{"Network":"10.244.0.0/31"}"#,
        r#"{"Network":"10.244.0.0/30","SubnetLen":31}"#,
        r#"{"Network":"10.244.0.0/16","SubnetLen":32}"#,
        r#"{"Network":"0.0.0.0/0"}"#,
        r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.9.0","SubnetMax":"10.244.8.0"}"#,
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/128"}"#,
        r#"{"Network":"10.244.0.0/16"}"#,
    ] {
        for source in [LeaseSource::Store, LeaseSource::Assigned] {
            let config = match NetworkConfig::parse(text, source) {
                Ok(config) => config,
                Err(error) => {
                    assert!(!error.to_string().is_empty() && !error.key.contains(' '), "{text}: {error}");
                    continue;
                }
            };
            assert!(config.families().next().is_some(), "{text}: a config has a network");
            assert!(!UnderlayOptions::of_config(&config).families().is_empty(), "{text}");
            let store = MemoryStore::new(config);
            let public_ips = PerFamily { v4: "192.0.2.1".parse().ok(), v6: "2001:db8::1".parse().ok() };
            let attrs = LeaseAttrs { public_ips, ..LeaseAttrs::default() };
            if let Err(error) = store.acquire_lease(&attrs).await {
                assert!(!error.is_transient(), "{text}: {error}");
            }
        }
    }
    assert!(!UnderlayOptions::auto().families().is_empty(), "there is always a family to look for");
}
