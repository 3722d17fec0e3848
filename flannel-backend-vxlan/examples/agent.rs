//! An agent of one's own: the library embedded in a program, with the local store.
//!
//! Needs `CAP_NET_ADMIN`, so try it in a namespace:
//! `unshare --user --map-root-user --net cargo run -p flannel-backend-vxlan --example agent -- DIR`
//! where `DIR/config` is a network config such as `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`.

use std::error::Error;
use std::time::Duration;

use flannel_backend_vxlan::VxlanBackend;
use flannel_core::backend::{Backend, Registration};
use flannel_core::netlink::Netlink;
use flannel_core::netns::Netns;
use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};
use flannel_core::subnet::{SubnetManager, hold_and_publish};
use flannel_core::underlay::{self, UnderlayOptions};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: agent DIR [INTERFACE]")?;

    let store = LocalSubnetManager::new(LocalOptions::new(dir));
    let config = store.network_config().await?;

    // Which link and addresses carry the traffic between nodes.
    let netns = Netns::current()?;
    let options = UnderlayOptions::of_config(&config).ifaces(args);
    let underlay = underlay::choose(&mut Netlink::open_in(&netns)?, &options).await?;

    // Makes the devices and takes this node's subnet ..
    let registration = Registration::new(&netns, &config, &underlay, &store).chosen_by(&options);
    let network = VxlanBackend::new().register(registration).await?;
    let (lease, attrs) = (network.lease().clone(), network.attrs());
    println!("{lease} through {} with pod MTU {}", underlay.name, network.overlay_mtu());

    // .. and holds the kernel in the wanted state until it is cancelled.
    let mut status = network.status();
    let cancel = CancellationToken::new();
    let running = tokio::spawn(network.run(store.watch_leases(), cancel.clone()));
    status.wait_for(|status| status.synced).await?;
    println!("{} peers are in the kernel", status.borrow().peers);

    // A real agent holds its lease for as long as it lives; the example does for five seconds.
    let _ = tokio::time::timeout(Duration::from_secs(5), hold_and_publish(&store, lease, attrs)).await;
    cancel.cancel();
    running.await??;
    Ok(())
}
