//! Two nodes share a folder as their store: both take a lease, one of them watches.
//!
//! `cargo run -p flannel-core --example local_store`

use std::error::Error;

use flannel_core::addr::PerFamily;
use flannel_core::lease::LeaseAttrs;
use flannel_core::subnet::SubnetManager;
use flannel_core::subnet::local::{LocalOptions, LocalSubnetManager};
use futures::StreamExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("config"), r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#)?;
    let node = || LocalSubnetManager::new(LocalOptions::new(dir.path()));
    let attrs = |last| LeaseAttrs {
        public_ips: PerFamily { v4: Some([192, 0, 2, last].into()), v6: None },
        backend_type: "vxlan".to_owned(),
        ..LeaseAttrs::default()
    };

    let first = node();
    let lease = first.acquire_lease(&attrs(11)).await?;
    println!("192.0.2.11 has {lease}");
    let mut watch = first.watch_leases();
    println!("{:?}", watch.next().await);

    let lease = node().acquire_lease(&attrs(12)).await?;
    println!("192.0.2.12 has {lease}");
    println!("{:?}", watch.next().await);
    println!("{:?}", first.status().borrow());
    Ok(())
}
