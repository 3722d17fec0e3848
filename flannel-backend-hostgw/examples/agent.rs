//! An agent of one's own: the library embedded in a program, with the local store and host-gw.
//!
//! Needs `CAP_NET_ADMIN` and a link with an address, so try it in a namespace:
//! ```text
//! unshare --user --map-root-user --net sh -c '
//!   ip link add eth0 type veth peer name eth1 && ip link set eth1 up && ip link set eth0 up &&
//!   ip address add 192.0.2.1/24 dev eth0 && cargo run -p flannel-backend-hostgw --example agent -- DIR eth0'
//! ```
//! where `DIR/config` is a network config such as `{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}`.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use flannel_backend_hostgw::HostGwBackend;
use flannel_core::backend::{Backend, Registration};
use flannel_core::kernel::Kernel;
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;
use flannel_core::state_file::{self, Host};
use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};
use flannel_core::subnet::{Identity, SubnetManager, hold_and_publish};
use flannel_core::underlay::{self, UnderlayOptions};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: agent DIR [INTERFACE]")?;
    // What the run before stored, so that leftovers are known as ours.
    let state_file = Path::new(&dir).join("example.state");
    let previous = state_file::read(&state_file).state;

    // What it says of this node, unless it came here with the disk of another host.
    let netns = Netns::current()?;
    let mut kernel = Netlink::open_in(&netns)?;
    let mut options = LocalOptions::new(dir);
    if let Some(state) = &previous {
        let host = Host::of(&kernel.links().await?, &kernel.addresses().await?, &state.networks);
        let place = LocalSubnetManager::new(options.clone()).place();
        options.identity = Identity::of_state(state, &place, state.stored_on(&host.macs));
    }
    let store = LocalSubnetManager::new(options);
    let config = store.network_config().await?;

    // Which link and addresses carry the traffic between nodes.
    let options = UnderlayOptions::of_config(&config).ifaces(args);
    let underlay = underlay::choose(&mut kernel, &options).await?;

    // Takes this node's subnet ..
    let registration =
        Registration::new(&netns, &config, &underlay, &store).previous(previous.as_ref()).chosen_by(&options);
    let network = HostGwBackend::new().register(registration).await?;
    let (lease, attrs) = (network.lease().clone(), network.attrs());
    println!("{lease} through {} with pod MTU {}", underlay.name, network.overlay_mtu());

    // .. and holds the routes to all others until it is cancelled.
    let (mut status, mut state) = (network.status(), network.state());
    let cancel = CancellationToken::new();
    let running = tokio::spawn(network.run(store.watch_leases(), cancel.clone()));
    status.wait_for(|status| status.synced).await?;
    println!("{} peers are in the kernel", status.borrow().peers);
    for refused in status.borrow().refused() {
        println!("refused for now: {refused}");
    }

    // A real agent holds its lease, and writes the state whenever it changes, for as long as it lives.
    let _ = tokio::time::timeout(Duration::from_secs(5), hold_and_publish(&store, lease, attrs)).await;
    state.borrow_and_update().write(&state_file)?;
    cancel.cancel();
    running.await??;
    Ok(())
}
