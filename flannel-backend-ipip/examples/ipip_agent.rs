//! An agent of one's own with ipip and the local store, on a link of one's choice, without rules and subnet file. It
//! remembers what is its own, so that it can be removed later.
//!
//! Needs `CAP_NET_ADMIN`, a kernel with the module `ipip`, and a link with an address, so try it in a namespace:
//! ```text
//! unshare --user --map-root-user --net sh -c '
//!   ip link add eth0 type veth peer name eth1 && ip link set eth1 up && ip link set eth0 up &&
//!   ip address add 192.0.2.1/24 dev eth0 && cargo run -p flannel-backend-ipip --example ipip_agent -- DIR eth0'
//! ```
//! where `DIR/config` is a network config such as `{"Network":"10.244.0.0/16","Backend":{"Type":"ipip"}}`.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use flannel_backend_ipip::IpipBackend;
use flannel_core::agent::{Agent, AgentError};
use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};
use flannel_core::times::rfc3339;
use flannel_core::underlay::UnderlayOptions;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: ipip_agent DIR [INTERFACE]")?;
    let agent = start(Path::new(&dir), args)?;
    let mut events = agent.events();
    while let Some(event) = events.recv().await {
        println!("{} {:?}", rfc3339(event.time), event.event);
    }
    Ok(agent.ended().await?)
}

/// The agent, with the store in this folder.
pub fn start(dir: &Path, ifaces: impl Iterator<Item = String>) -> Result<Agent, AgentError> {
    Agent::builder(Arc::new(LocalSubnetManager::new(LocalOptions::new(dir))))
        .backend(IpipBackend::new())
        .underlay(UnderlayOptions::auto().ifaces(ifaces))
        .state_file(dir.join("example.state"))
        .start()
}
