//! Somebody fills the store with garbage.

use std::time::Duration;

use etcd_client::{Client, DeleteOptions, Txn, TxnOp};
use flannel_core::lease::LeaseUpdate;
use flannel_core::subnet::SubnetManager;

use crate::common::*;

const MANY: usize = 24_000;
/// What etcd takes in one transaction unless told otherwise.
const TXN: usize = 128;
/// It takes a second or two; each event once cost work for all garbage, which took a quarter of an hour.
const LONG: Duration = Duration::from_mins(2);

/// A flood, a good lease behind it, one bad key that comes and goes, and all garbage deleted in one revision.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_costs_a_good_lease_nothing_and_goes_at_once() {
    let etcd = start(V4);
    let manager = manager(&etcd);
    let mut watch = manager.watch_leases();
    next(&mut watch).await;
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    let ops: Vec<TxnOp> = (0..MANY).map(|n| TxnOp::put(path(format!("junk{n:05}")), "{", None)).collect();
    for part in ops.chunks(TXN) {
        client.txn(Txn::new().and_then(part)).await.unwrap();
    }
    etcd.put(&path("10.5.7.0-24"), &attrs(7).to_json()).unwrap();
    let follow = async {
        for n in 0..MANY {
            let update = next(&mut watch).await;
            assert!(matches!(update, LeaseUpdate::Unreadable(bad) if bad.key == format!("junk{n:05}")));
        }
        assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(_)));
        let shown = manager.status().borrow().unreadable.clone();
        assert_eq!((shown.count, shown.records.len()), (MANY, 20));

        // Another agent finds it all, and takes a subnet beside it.
        let other = crate::common::manager(&etcd);
        let mut found = other.watch_leases();
        let LeaseUpdate::Snapshot { leases, unreadable } = next(&mut found).await else { panic!() };
        assert_eq!((leases.len(), unreadable.len()), (1, MANY));
        other.acquire_lease(&attrs(8)).await.unwrap();
        assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(_)));

        let options = DeleteOptions::new().with_prefix();
        let deleted = client.delete(path("junk"), Some(options)).await.unwrap();
        assert_eq!(usize::try_from(deleted.deleted()), Ok(MANY));
        for _ in 0..MANY {
            assert!(matches!(next(&mut watch).await, LeaseUpdate::Removed(_)));
        }
        assert_eq!(manager.status().borrow().unreadable.count, 0);
    };
    tokio::time::timeout(LONG, follow).await.unwrap();
}
