//! Changes of the network config.

use flannel_core::subnet::{ConfigStream, SubnetError, SubnetManager};
use futures::StreamExt;

use crate::common::*;

const KEY: &str = "/coreos.com/network/config";

async fn told(changes: &mut ConfigStream) -> Result<Option<u16>, SubnetError> {
    soon(changes.next()).await.unwrap().map(|config| config.backend.get::<u16>("MTU").unwrap())
}

fn with_mtu(mtu: u16) -> String {
    V4.replace(r#""vxlan""#, &format!(r#""vxlan","MTU":{mtu}"#))
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_also_those_that_nobody_watched() {
    let mut etcd = start(V4);
    let store = manager(&etcd);
    store.network_config().await.unwrap();
    // Between the read and the watch.
    etcd.put(KEY, &with_mtu(1400)).unwrap();
    let mut changes = store.config_changes().unwrap();
    assert_eq!(told(&mut changes).await.unwrap(), Some(1400));
    etcd.put(KEY, &with_mtu(1300)).unwrap();
    assert_eq!(told(&mut changes).await.unwrap(), Some(1300));
    etcd.put(KEY, "{").unwrap();
    let problem = told(&mut changes).await.unwrap_err();
    assert!(matches!(problem, SubnetError::Config { .. }), "{problem}");

    // A server that is away says nothing of the config, and its watch goes on when it is back.
    etcd.kill().unwrap();
    let is_told = tokio::time::timeout(std::time::Duration::from_secs(1), changes.next()).await;
    assert!(is_told.is_err(), "{is_told:?}");
    etcd.restart().unwrap();
    etcd.put(KEY, &with_mtu(1350)).unwrap();
    assert_eq!(told(&mut changes).await.unwrap(), Some(1350));
    etcd.put(KEY, &with_mtu(1360)).unwrap();
    assert_eq!(told(&mut changes).await.unwrap(), Some(1360));
}
