//! The example that README shows, run for real: an agent comes up in a namespace, holds its devices, and leaves.

#[allow(dead_code, unreachable_pub)]
#[path = "../examples/agent.rs"]
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

/// A namespace with an underlay and a default route.
fn host(name: &str) -> Netns {
    let host = Netns::add(name).unwrap();
    for args in [
        "link add eth0 type veth peer name far",
        "addr add 192.0.2.1/24 dev eth0",
        "link set eth0 up",
        "link set far up",
        "route add default via 192.0.2.254",
    ] {
        host.ip(args).unwrap();
    }
    host
}

/// Runs this in a thread that works in a namespace.
fn within<T: Send>(host: &Netns, work: impl Future<Output = T> + Send) -> T {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work)
    };
    host.enter(run).unwrap()
}

async fn comes_up(agent: &Agent, host: &Netns, run: &Path) {
    let node = agent.ready().await.unwrap();
    assert_eq!(node.overlay_mtu.0, 1450);
    let file = fs::read_to_string(run.join("subnet.env")).unwrap();
    let subnet = node.lease.key.subnets().v4.unwrap();
    assert!(file.contains(&format!("FLANNEL_SUBNET={}\n", subnet.with_host(subnet.gateway()))), "{file}");
    assert!(file.ends_with("FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"), "{file}");
    let mut status = agent.status();
    status.wait_for(|status| status.readiness().is_ready()).await.unwrap();
    assert!(host.ip("link show flannel.1").is_ok());
}

#[test]
fn the_agent_of_the_readme_comes_up_repairs_and_leaves() {
    in_sandbox(test_name!(), || {
        let host = host("host");
        let (store, run) = (Path::new("/run/store"), Path::new("/run/agent"));
        fs::create_dir_all(store).unwrap();
        fs::write(store.join("config"), r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
        within(&host, async {
            let agent = example::start(store, run).unwrap();
            comes_up(&agent, &host, run).await;
            let first = agent.ready().await.unwrap().lease.key;
            // Kernel state stays over a stop, and the next agent takes it over.
            agent.stop().await.unwrap();
            let before = host.ip("-o link show flannel.1").unwrap();
            let agent = example::start(store, run).unwrap();
            comes_up(&agent, &host, run).await;
            assert_eq!(agent.ready().await.unwrap().lease.key, first);
            assert_eq!(host.ip("-o link show flannel.1").unwrap(), before, "the same device");
            host.ip("link del flannel.1").unwrap();
            let mut status = agent.status();
            let repaired = |it: &std::sync::Arc<_>| repairs(it) > 0;
            tokio::time::timeout(SOON, status.wait_for(repaired)).await.expect("it is repaired").unwrap();
            eventually(SOON, "the device", || host.ip("link show flannel.1").is_ok());

            agent.leave().await.unwrap();
            assert!(host.ip("link show flannel.1").is_err());
            assert_eq!(fs::read_dir(run).unwrap().count(), 0, "the files are gone");
            assert_eq!(fs::read_dir(store.join("subnets")).unwrap().count(), 0, "the lease is released");
        });
    });
}

fn repairs(status: &flannel_core::agent::AgentStatus) -> u64 {
    status.network.as_ref().map_or(0, |network| network.repairs)
}
