//! An agent of one's own with wireguard and the local store, on a link of one's choice, without rules and subnet file. It
//! remembers what is its own, so that what an earlier run left, with another backend, too, is removed.
//!
//! Needs `CAP_NET_ADMIN`, a kernel with wireguard and a link with an address, so try it in a namespace:
//! ```text
//! unshare --user --map-root-user --net sh -c '
//!   ip link add eth0 type veth peer name eth1 && ip link set eth1 up && ip link set eth0 up &&
//!   ip address add 192.0.2.1/24 dev eth0 && cargo run -p flannel-backend-wireguard --example wireguard_agent -- DIR eth0'
//! ```
//! where `DIR/config` is a network config such as `{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}`.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use flannel_backend_wireguard::WireguardBackend;
use flannel_core::agent::Agent;
use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};
use flannel_core::times::rfc3339;
use flannel_core::underlay::UnderlayOptions;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: wireguard_agent DIR [INTERFACE]")?;
    let store = LocalSubnetManager::new(LocalOptions::new(&dir));
    let underlay = UnderlayOptions::auto().ifaces(args);
    let agent = Agent::builder(Arc::new(store))
        .backend(WireguardBackend::new().key_file(Path::new(&dir).join("wgkey")))
        .underlay(underlay)
        .state_file(Path::new(&dir).join("example.state"))
        .start()?;
    let mut events = agent.events();
    while let Some(event) = events.recv().await {
        println!("{} {:?}", rfc3339(event.time), event.event);
    }
    Ok(agent.ended().await?)
}
