//! The lease watch, in good times and bad.

use std::cell::RefCell;
use std::time::Duration;

use flannel_core::lease::LeaseUpdate;
use flannel_core::subnet::SubnetManager;
use flannel_lab::etcd::{Etcd, EtcdOptions as LabOptions};
use flannel_store_etcd::{EtcdOptions, EtcdSubnetManager, EtcdTimeouts};
use futures::StreamExt;

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn tells_what_happens_and_skips_what_it_cannot_read() {
    let etcd = start(V4);
    let first = manager(&etcd).acquire_lease(&attrs(1)).await.unwrap();
    let watching = manager(&etcd);
    let mut watch = watching.watch_leases();
    let update = next(&mut watch).await;
    assert_eq!(update, LeaseUpdate::Snapshot { leases: vec![first.clone()], unreadable: vec![].into() });
    let second = manager(&etcd).acquire_lease(&attrs(2)).await.unwrap();
    assert_eq!(next(&mut watch).await, LeaseUpdate::Put(second.clone()));

    etcd.put(&path("x10.5.1.0-24"), "{}").unwrap();
    etcd.put(&path(second.key), "{").unwrap();
    etcd.put(&format!("{PREFIX}/subnets_and_more"), "not ours").unwrap();
    assert!(matches!(next(&mut watch).await, LeaseUpdate::Unreadable(bad) if bad.key == "x10.5.1.0-24"));
    assert!(
        matches!(next(&mut watch).await, LeaseUpdate::Unreadable(bad) if bad.key == second.key.to_string())
    );
    assert_eq!(watching.status().borrow().unreadable.count, 2);
    etcd.del(&path("x10.5.1.0-24")).unwrap();
    assert_eq!(next(&mut watch).await, LeaseUpdate::Removed("x10.5.1.0-24".to_owned()));
    etcd.put(&path(second.key), &attrs(2).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseUpdate::Put(second.clone()));
    assert!(watching.status().borrow().unreadable.count == 0);
    etcd.del(&path(second.key)).unwrap();
    assert_eq!(next(&mut watch).await, LeaseUpdate::Removed(second.key.to_string()));

    etcd.put(&path("junk"), "{").unwrap();
    let mut fresh = manager(&etcd).watch_leases();
    let LeaseUpdate::Snapshot { leases, unreadable } = next(&mut fresh).await else { panic!() };
    assert_eq!((leases, unreadable.len()), (vec![first], 1));
}

/// How old all knowledge is, the answers of one watch say.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_watch_of_all_leases_is_asked_for_its_progress() {
    let etcd = start(V4);
    let confirm = Duration::from_millis(50);
    let timeouts = EtcdTimeouts { confirm, ..EtcdTimeouts::default() };
    let store = EtcdSubnetManager::new(EtcdOptions { timeouts, ..options(&etcd) }).unwrap();
    // Messages of the agent to open watches, and all that it sends to them.
    let counts = || {
        let metrics = etcd.metrics().unwrap();
        ["started", "msg_received"].map(|what| {
            let watch = format!("grpc_server_{what}_total{{grpc_method=\"Watch\"");
            metrics
                .iter()
                .filter(|(name, _)| name.starts_with(&watch))
                .map(|(_, count)| format!("{count:.0}").parse::<u64>().unwrap())
                .sum::<u64>()
        })
    };
    let lease = store.acquire_lease(&attrs(1)).await.unwrap();
    let held = renew(&store, &lease);
    let mut config = store.config_changes().unwrap();
    let changes = tokio::spawn(async move { while config.next().await.is_some() {} });
    until(|| counts() == [2, 2]).await;
    tokio::time::sleep(20 * confirm).await;
    assert_eq!(counts(), [2, 2], "two watches, and no question");

    let mut watch = store.watch_leases();
    next(&mut watch).await;
    let watching = tokio::spawn(async move { while watch.next().await.is_some() {} });
    until(|| counts()[1] >= 8).await;
    assert!(!held.is_finished() && !changes.is_finished() && !watching.is_finished());
    changes.abort();
    watching.abort();
    held.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn sees_a_lease_run_out() {
    let etcd = start(V4);
    let mut watch = manager(&etcd).watch_leases();
    next(&mut watch).await;
    let id = etcd.grant_lease(Duration::from_secs(2)).unwrap();
    etcd.put_on_lease(&path("10.5.7.0-24"), &attrs(7).to_json(), id).unwrap();
    assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(_)));
    assert_eq!(next(&mut watch).await, LeaseUpdate::Removed("10.5.7.0-24".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn resumes_after_a_restart_of_the_server() {
    let mut etcd = start(V4);
    let watching = manager(&etcd);
    let mut watch = watching.watch_leases();
    next(&mut watch).await;
    etcd.kill().unwrap();
    assert!(is_quiet(&mut watch, Duration::from_secs(1)).await);
    assert!(!watching.status().borrow().connected);
    etcd.restart().unwrap();
    etcd.put(&path("10.5.7.0-24"), &attrs(7).to_json()).unwrap();
    // No second snapshot: it goes on where it was.
    assert!(
        matches!(next(&mut watch).await, LeaseUpdate::Put(lease) if lease.key.to_string() == "10.5.7.0-24")
    );
    assert!(watching.status().borrow().connected);
}

#[tokio::test(flavor = "multi_thread")]
async fn notices_a_server_that_hangs() {
    let etcd = start(V4);
    let watching = manager(&etcd);
    let mut watch = watching.watch_leases();
    next(&mut watch).await;
    etcd.pause().unwrap();
    let start = std::time::Instant::now();
    while watching.status().borrow().connected {
        assert!(is_quiet(&mut watch, Duration::from_millis(200)).await);
        assert!(start.elapsed() < Duration::from_secs(12), "not noticed");
    }
    etcd.resume().unwrap();
    etcd.put(&path("10.5.7.0-24"), &attrs(7).to_json()).unwrap();
    assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_again_when_its_revision_was_compacted() {
    let mut etcd = start(V4);
    let gone = manager(&etcd).acquire_lease(&attrs(1)).await.unwrap();
    let mut watch = manager(&etcd).watch_leases();
    next(&mut watch).await;
    etcd.kill().unwrap();
    assert!(is_quiet(&mut watch, Duration::from_secs(1)).await);
    etcd.restart().unwrap();
    // The stream is not polled meanwhile, so it does not resume.
    etcd.del(&path(gone.key)).unwrap();
    etcd.put(&path("10.5.7.0-24"), &attrs(7).to_json()).unwrap();
    etcd.put(&path("10.5.8.0-24"), &attrs(8).to_json()).unwrap();
    etcd.compact().unwrap();
    let LeaseUpdate::Snapshot { leases, .. } = next(&mut watch).await else { panic!() };
    let keys: Vec<_> = leases.iter().map(|lease| lease.key.to_string()).collect();
    assert_eq!(keys, ["10.5.7.0-24", "10.5.8.0-24"]);
    etcd.del(&path("10.5.7.0-24")).unwrap();
    assert_eq!(next(&mut watch).await, LeaseUpdate::Removed("10.5.7.0-24".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_again_when_the_store_was_set_up_anew() {
    let dir = tempfile::tempdir().unwrap();
    let port = flannel_lab::etcd::free_port().unwrap();
    let fresh = |name: &str| {
        let data_dir = Some(dir.path().join(name));
        Etcd::start(quick(LabOptions { client_port: Some(port), data_dir, ..LabOptions::default() })).unwrap()
    };
    let etcd = fresh("one");
    etcd.put(&format!("{PREFIX}/config"), V4).unwrap();
    let manager = manager(&etcd);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    for _ in 0..20 {
        etcd.put("/elsewhere", "moves the revision on").unwrap();
    }
    let mut watch = manager.watch_leases();
    next(&mut watch).await;
    let held = renew(&manager, &lease);
    drop(etcd);
    assert!(is_quiet(&mut watch, Duration::from_millis(500)).await);
    let etcd = fresh("two");
    etcd.put(&path("10.5.7.0-24"), &attrs(7).to_json()).unwrap();
    let LeaseUpdate::Snapshot { leases, .. } = next(&mut watch).await else { panic!() };
    assert!(leases.iter().any(|lease| lease.key.to_string() == "10.5.7.0-24"));
    // The own lease is put there, too.
    until(|| etcd.get(&path(lease.key)).unwrap().is_some()).await;
    assert!(!held.is_finished());
    held.abort();
}

thread_local! {
    /// What this thread logged.
    static LOG: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct ThreadLog;

impl std::io::Write for ThreadLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.with_borrow_mut(|log| log.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_outage_is_two_lines_in_the_log() {
    // One for all threads: with one for each, tests beside this one would switch lines off for it.
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(|| ThreadLog).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let mut etcd = start(V4);
    let manager = manager(&etcd);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let held = renew(&manager, &lease);
    let mut watch = manager.watch_leases();
    next(&mut watch).await;
    etcd.kill().unwrap();
    assert!(is_quiet(&mut watch, Duration::from_secs(4)).await);
    etcd.restart().unwrap();
    etcd.put(&path("10.5.7.0-24"), &attrs(7).to_json()).unwrap();
    assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(_)));
    held.abort();
    let text = String::from_utf8(LOG.take()).unwrap();
    let lines = |word: &str| text.lines().filter(|line| line.contains(word)).count();
    assert_eq!((lines("store unavailable"), lines("store is back")), (1, 1), "{text}");
    assert!(text.lines().count() <= 5, "{text}");
}
