//! A device that somebody deletes.

use flannel_core::events::NetworkEvent;
use futures::FutureExt as _;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_deleted_device_is_told_as_recreated_and_counts_as_one_repair() {
    let host = Host::new(true, DUAL);
    host.store.put("10.244.5.0-24&fd00:10:244:5::-64", &super::incremental::value(5, 5));
    let network = host.register().await.unwrap();
    let (status, mut events) = (network.status(), network.events());
    let cancel = CancellationToken::new();
    let task = tokio::spawn(network.run(host.store.watch_leases(), cancel.clone()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let objects = host.kernel.objects();
    while events.recv().now_or_never().is_some() {}

    host.kernel.delete_link("flannel.1");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(host.kernel.link_named("flannel.1").is_some());
    assert_eq!(host.kernel.objects().len(), objects.len());
    let mut seen = Vec::new();
    while let Some(Some(event)) = events.recv().now_or_never() {
        seen.push(event);
    }
    let is_recreated = |event: &&NetworkEvent| matches!(event, NetworkEvent::DeviceRecreated { link, .. } if link == "flannel.1");
    let is_repaired = |event: &&NetworkEvent| matches!(event, NetworkEvent::Repaired { device: true, .. });
    assert_eq!(seen.iter().filter(is_recreated).count(), 1, "{seen:?}");
    assert!(!seen.iter().any(|event| matches!(event, NetworkEvent::DeviceCreated { .. })), "{seen:?}");
    assert_eq!((seen.iter().filter(is_repaired).count(), status.borrow().repairs), (1, 1), "{seen:?}");
    cancel.cancel();
    task.await.unwrap().unwrap();
}
