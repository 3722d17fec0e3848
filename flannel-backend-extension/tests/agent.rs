//! The example, run for real: commands make the routes of a node, and what is gone when the agent starts again is removed.

#[allow(dead_code, unreachable_pub)]
#[path = "../examples/extension_agent.rs"]
mod example;

use std::fs;
use std::path::Path;
use std::time::Duration;

use flannel_core::agent::Agent;
use flannel_lab::netns::Netns;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

const SOON: Duration = Duration::from_secs(20);
const CONFIG: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.100.0","Backend":{"Type":"extension",
    "SubnetAddCommand":"ip route replace $SUBNET via $PUBLIC_IP","SubnetRemoveCommand":"ip route del $SUBNET"}}"#;
const PEER: &str = r#"{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"extension"}"#;

fn host() -> Netns {
    let host = Netns::add("host").unwrap();
    for args in [
        "link add eth0 type veth peer name far",
        "addr add 192.0.2.1/24 dev eth0",
        "link set eth0 up",
        "link set far up",
    ] {
        host.ip(args).unwrap();
    }
    host
}

async fn start(store: &Path) -> Agent {
    let agent = example::start(store, ["eth0".to_owned()].into_iter()).unwrap();
    let node = agent.ready().await.unwrap();
    assert_eq!(node.overlay_mtu.0, 1500);
    agent
}

#[test]
fn the_agent_of_the_example_runs_commands_in_its_namespace() {
    in_sandbox(test_name!(), || {
        let (host, store) = (host(), Path::new("/run/store"));
        let peer = store.join("subnets/10.244.99.0-24");
        fs::create_dir_all(store).unwrap();
        fs::write(store.join("config"), CONFIG).unwrap();
        let route = || host.ip("route show 10.244.99.0/24").unwrap();
        let work = async {
            let agent = start(store).await;
            fs::write(&peer, PEER).unwrap();
            eventually(SOON, "the route", || route().contains("via 192.0.2.9 dev eth0"));
            let stored = || fs::read_to_string(store.join("example.state")).unwrap_or_default();
            eventually(SOON, "the state file to have the node", || stored().contains("10.244.99.0-24"));
            agent.stop().await.unwrap();
            assert!(!route().is_empty(), "what commands made stays");
            fs::remove_file(&peer).unwrap();
            let agent = start(store).await;
            eventually(SOON, "the route to go", || route().is_empty());
            agent.leave().await.unwrap();
        };
        let run = || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(work);
        };
        host.enter(run).unwrap();
    });
}
