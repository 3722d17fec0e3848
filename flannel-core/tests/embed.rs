//! The examples of a store and of a backend of one's own, run by two agents of one process, in a namespace.

#[allow(dead_code, unreachable_pub)]
#[path = "../examples/own_backend.rs"]
mod own_backend;
#[allow(dead_code, unreachable_pub)]
#[path = "../examples/own_store.rs"]
mod own_store;

use std::sync::Arc;
use std::time::Duration;

use flannel_core::addr::PerFamily;
use flannel_core::agent::leave::Removal;
use flannel_core::agent::{Agent, AgentEvent, Failure};
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::lease::{LeaseAttrs, LeaseKey};
use flannel_core::subnet::{Identity, SubnetManager};
use flannel_core::testing::{FakeStore, StoreBed, store_contract};
use flannel_core::underlay::UnderlayOptions;
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use own_backend::ListBackend;
use own_store::MemoryStore;

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

/// Runs a test in a namespace with two links, each of which can be an underlay.
fn on_a_host(name: &str, test: impl Future<Output = ()> + Send) {
    in_sandbox(name, || {
        let host = Netns::add("host").unwrap();
        for (link, addr) in [("eth0", "192.0.2.1/24"), ("eth1", "198.51.100.1/24")] {
            host.ip(&format!("link add {link} type veth peer name {link}-far")).unwrap();
            host.ip(&format!("addr add {addr} dev {link}")).unwrap();
            host.ip(&format!("link set {link} up")).unwrap();
            host.ip(&format!("link set {link}-far up")).unwrap();
        }
        let runtime = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let test = async { tokio::time::timeout(6 * SOON, test).await };
            runtime.block_on(test).expect("it ends in time");
        };
        host.enter(runtime).unwrap();
    });
}

fn agent(store: MemoryStore, link: &str) -> Agent {
    let underlay = UnderlayOptions::auto().iface(link);
    Agent::builder(Arc::new(store)).backend(ListBackend).underlay(underlay).start().unwrap()
}

#[test]
fn agents_with_a_store_and_a_backend_of_ones_own_find_each_other() {
    on_a_host(test_name!(), async {
        let store = store("list");
        let one = agent(store.join(), "eth0");
        let first = one.ready().await.unwrap().lease.key;
        let two = agent(store.join(), "eth1");
        let node = two.ready().await.unwrap();
        assert_eq!((&*node.backend, node.underlay.name.as_str()), ("list", "eth1"));
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
    on_a_host(test_name!(), async {
        let config = NetworkConfig::parse(
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"list"}}"#,
            LeaseSource::Store,
        );
        let store = FakeStore::new(config.unwrap());
        let ip = |text: &str| PerFamily { v4: text.parse().ok(), v6: None };
        store.set_wanted_ips(ip("203.0.113.7"));
        let underlay = UnderlayOptions::auto().iface("eth0").public_ips(ip("203.0.113.9"));
        let agent = Agent::builder(Arc::new(store.clone())).backend(ListBackend).underlay(underlay);
        let agent = agent.start().unwrap();
        let node = agent.ready().await.unwrap();
        assert_eq!(node.lease.attrs.public_ips, ip("203.0.113.7"));
        assert_eq!(store.leases()[0].attrs.public_ips, ip("203.0.113.7"));
        agent.stop().await.unwrap();
    });
}

#[test]
fn a_backend_that_was_not_handed_in_ends_the_agent_by_name() {
    on_a_host(test_name!(), async {
        let agent = agent(store("vxlan"), "eth0");
        let mut events = agent.events();
        let error = agent.ready().await.unwrap_err();
        let Failure::UnknownBackend(unknown) = error.failure() else { panic!("{error:?}") };
        assert_eq!((&*unknown.kind, &unknown.known[..]), ("vxlan", &["list".to_owned()][..]));
        let mut all = Vec::new();
        while let Some(event) = events.recv().await {
            all.push(event);
        }
        assert!(matches!(all.last(), Some(AgentEvent::Stopping)), "{all:?}");
    });
}

#[test]
fn an_agent_outside_of_a_runtime_says_so() {
    let agent = Agent::builder(Arc::new(store("list"))).backend(ListBackend);
    let error = agent.start().unwrap_err();
    assert!(matches!(error.failure(), Failure::NoRuntime), "{error:?}");
}
