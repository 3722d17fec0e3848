//! Shows a cluster's network config and follows its leases; writes nothing.
//!
//! `cargo run -p flannel-store-etcd --example etcd_store -- http://127.0.0.1:2379`

use std::error::Error;

use flannel_core::lease::{LeaseTable, LeaseUpdate};
use flannel_core::subnet::SubnetManager;
use flannel_store_etcd::{EtcdOptions, EtcdSubnetManager};
use futures::StreamExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoints: Vec<String> = std::env::args().skip(1).collect();
    let store = EtcdSubnetManager::new(EtcdOptions::new(endpoints))?;
    println!("{:#?}", store.network_config().await?);
    let mut table = LeaseTable::default();
    let mut watch = store.watch_leases();
    while let Some(update) = watch.next().await {
        let update = update?;
        if let LeaseUpdate::Unreadable(bad) = &update {
            println!("{} can't be read: {}", bad.key, bad.reason);
        }
        for change in table.apply(update) {
            match change.after {
                Some(lease) => println!("{} at {:?}", lease.key, lease.attrs.public_ips),
                None => println!("{} is gone", change.key),
            }
        }
    }
    Ok(())
}
