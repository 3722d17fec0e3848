//! An agent of one's own, as README shows it: the local store, VXLAN, firewall rules, and the files that container
//! runtimes read.
//!
//! Needs `CAP_NET_ADMIN`, so try it in a namespace:
//! `unshare --user --map-root-user --net cargo run -p flannel-backend-vxlan --example agent -- STORE RUN`
//! where `STORE/config` is a network config such as `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`, and the
//! subnet file goes to the folder `RUN`.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use flannel_backend_vxlan::VxlanBackend;
use flannel_core::agent::{Agent, AgentError, FirewallOptions};
use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: agent STORE RUN";
    let mut args = std::env::args_os().skip(1);
    let (store, run) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let agent = start(Path::new(&store), Path::new(&run))?;
    let node = agent.ready().await?;
    println!("{} by {}, pod MTU {}", node.lease, node.underlay.name, node.overlay_mtu);
    tokio::signal::ctrl_c().await?;
    agent.stop().await?;
    Ok(())
}

/// The agent.
pub fn start(store: &Path, run: &Path) -> Result<Agent, AgentError> {
    let store = LocalSubnetManager::new(LocalOptions::new(store));
    Agent::builder(Arc::new(store))
        .backend(VxlanBackend::new())
        .firewall(FirewallOptions::masquerade())
        .state_file(run.join("subnet.env.state"))
        .subnet_file(run.join("subnet.env"))
        .start()
}
