//! The API server away, half dead, restored from a backup, or talking nonsense.

use std::time::Duration;

use flannel_core::clock::Clock;
use flannel_core::lease::LeaseUpdate;
use flannel_core::subnet::SubnetManager;
use flannel_lab::kube::fake::{Faults, KubeApiOptions};
use flannel_store_kube::{KubeOptions, KubeSubnetManager, KubeTimeouts};

use crate::common::*;

#[tokio::test]
async fn an_outage_is_waited_out_and_told() {
    let cluster = Cluster::start(V4);
    cluster.join_published(1);
    let manager = cluster.manager(1);
    let followed = Followed::new(&manager);
    until(|| followed.leases().len() == 1).await;
    assert!(manager.status().borrow().connected);
    cluster.api.stop_listening();
    cluster.api.disconnect();
    until(|| !manager.status().borrow().connected).await;
    let problem = manager.status().borrow().problem.clone();
    assert!(problem.contains(&cluster.api.url()), "{problem}");
    cluster.join_published(2);
    cluster.api.listen_again().unwrap();
    until(|| followed.leases().len() == 2).await;
    assert!(manager.status().borrow().connected);
    assert_eq!(*followed.removed.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_half_dead_connection_is_noticed() {
    let cluster = Cluster::start(V4);
    cluster.join_published(1);
    let manager = cluster.manager(1);
    let followed = Followed::new(&manager);
    until(|| followed.leases().len() == 1).await;
    cluster.api.set_faults(Faults { stall: true, ..Faults::default() });
    // By the silence, which is 2 s here and 80 s by default.
    until(|| !manager.status().borrow().connected).await;
    let refused = soon(manager.acquire_lease(&attrs(1))).await.unwrap_err();
    assert!(refused.is_transient(), "{refused}");
    cluster.api.set_faults(Faults::default());
    cluster.join_published(2);
    until(|| followed.leases().len() == 2).await;
    assert_eq!(*followed.removed.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn silence_without_bookmarks_costs_a_watch_and_no_list() {
    let options =
        KubeApiOptions { bookmark_interval: Duration::from_secs(3600), ..KubeApiOptions::default() };
    let cluster = Cluster::with(V4, options);
    cluster.join_published(1);
    let manager = cluster.manager(1);
    let followed = Followed::new(&manager);
    until(|| followed.leases().len() == 1).await;
    until(|| cluster.api.counts().watches >= 4).await;
    assert_eq!(cluster.api.counts().pages, 0);
    assert_eq!(
        cluster.api.requests().iter().filter(|it| it.query.contains_key("sendInitialEvents")).count(),
        1
    );
    let with = KubeApiOptions { bookmark_interval: Duration::from_millis(500), ..KubeApiOptions::default() };
    let cluster = Cluster::with(V4, with);
    cluster.join_published(1);
    let manager = cluster.manager(1);
    let _followed = Followed::new(&manager);
    until(|| cluster.api.counts().watches == 2).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(cluster.api.counts().watches, 2, "bookmarks are signs of life");
    assert!(manager.status().borrow().confirmed.unwrap().elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_restored_backup_takes_no_lease_away() {
    let cluster = Cluster::start(V4);
    cluster.join_published(1);
    cluster.join_published(2);
    let backup = cluster.api.snapshot();
    cluster.join_published(3);
    cluster.join_published(4);
    let manager = cluster.manager(1);
    let followed = Followed::new(&manager);
    until(|| followed.leases().len() == 4).await;
    cluster.api.restore(backup);
    until(|| manager.status().borrow().missing.len() == 2).await;
    // Deaf is what a watch would be that asks for a revision to come.
    cluster.join_published(5);
    until(|| followed.leases().len() == 5).await;
    assert_eq!(*followed.removed.lock().unwrap(), Vec::<String>::new());
    // One is back, and can be deleted for good.
    cluster.join_published(3);
    until(|| manager.status().borrow().missing.len() == 1).await;
    cluster.api.delete_node("n3");
    until(|| *followed.removed.lock().unwrap() == [key(3)]).await;
    assert_eq!(manager.status().borrow().missing, [key(4)]);
}

#[tokio::test]
async fn nonsense_in_a_watch_loses_nothing() {
    let cluster = Cluster::start(V4);
    cluster.join_published(1);
    let manager = cluster.manager(1);
    let followed = Followed::new(&manager);
    until(|| followed.leases().len() == 1).await;
    cluster.api.set_faults(Faults { garbage: true, ..Faults::default() });
    for number in 2..6 {
        cluster.join_published(number);
    }
    until(|| followed.leases().len() == 5).await;
    cluster.api.set_faults(Faults::default());
    cluster.join_published(6);
    until(|| followed.leases().len() == 6 && manager.status().borrow().connected).await;
    assert_eq!(*followed.removed.lock().unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_busy_or_broken_server_is_asked_again() {
    let cluster = Cluster::start(V4);
    cluster.join_published(1);
    for status in [429, 500, 503, 403] {
        cluster.api.set_faults(Faults { fail: Some(status), ..Faults::default() });
        let manager = cluster.manager(1);
        let mut watch = manager.watch_leases();
        let nothing =
            tokio::time::timeout(Duration::from_millis(600), futures::StreamExt::next(&mut watch)).await;
        assert!(nothing.is_err(), "{status}: {nothing:?}");
        let problem = manager.status().borrow().problem.clone();
        assert!(problem.contains(&status.to_string()), "{problem}");
        assert!(status != 403 || problem.contains("nodes: get, list, watch"), "{problem}");
        let refused = manager.acquire_lease(&attrs(1)).await.unwrap_err();
        assert!(refused.is_transient(), "{status}: {refused}");
        cluster.api.set_faults(Faults::default());
        assert!(matches!(next(&mut watch).await, LeaseUpdate::Snapshot { .. }), "{status}");
    }
}

#[tokio::test]
async fn a_list_that_breaks_off_is_no_snapshot() {
    let cluster = Cluster::with(V4, KubeApiOptions { watch_list: false, ..KubeApiOptions::default() });
    for number in 1..=20 {
        cluster.join_published(number);
    }
    let manager = cluster.manager(1);
    cluster.api.set_faults(Faults { fail_next: 5, ..Faults::default() });
    let mut watch = manager.watch_leases();
    assert_eq!(snapshot(&mut watch).await.0.len(), 20);
}

/// While a machine is suspended its timers stand still, and whoever keeps track of connections on the way forgets them.
#[tokio::test]
async fn after_a_suspend_the_own_node_and_all_others_are_looked_at_at_once() {
    let cluster = Cluster::start(V4);
    cluster.join(1);
    // None of these may be what helps.
    let long = Duration::from_mins(10);
    let timeouts = KubeTimeouts { request: long, silence: long, first_word: long, ..KubeTimeouts::default() };
    let (clock, hand) = Clock::with_hand();
    let manager = KubeSubnetManager::new(KubeOptions { timeouts, clock, ..cluster.options(1) }).unwrap();
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let held = tokio::spawn({
        let (manager, lease) = (manager.clone(), lease.clone());
        async move { manager.renew_lease(&lease).await }
    });
    let followed = Followed::new(&manager);
    cluster.join_published(3);
    // The list, and the watch that goes on from there.
    until(|| followed.leases().len() == 2 && cluster.api.counts().watches == 2).await;

    cluster.api.forget_connections();
    let mac = r#"{"VNI":1,"VtepMAC":"0a:00:00:00:00:aa"}"#.to_owned();
    cluster.annotate(1, &[("backend-data", Some(mac.clone()))]);
    cluster.join_published(4);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(followed.leases().len(), 2, "nobody can know");
    // A moment, or a clock that is set, is no reason to give up connections.
    hand.set_wall_clock();
    hand.suspend(Duration::from_millis(100));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(followed.leases().len(), 2);
    hand.suspend(Duration::from_hours(8));
    until(|| followed.leases().len() == 3).await;
    until(|| !cluster.annotations(1).contains(&("backend-data".to_owned(), mac.clone()))).await;
    assert_eq!(*followed.removed.lock().unwrap(), Vec::<String>::new());
    assert!(!held.is_finished() && manager.status().borrow().connected);
    held.abort();
}

/// Nobody tells that a connection comes from an address which the host has no more.
#[tokio::test]
async fn a_new_address_is_published_and_watched_from_over_new_connections() {
    let cluster = Cluster::start(V4);
    cluster.join(1);
    // None of these may be what helps.
    let long = Duration::from_mins(10);
    let timeouts = KubeTimeouts { request: long, silence: long, first_word: long, ..KubeTimeouts::default() };
    let manager = KubeSubnetManager::new(KubeOptions { timeouts, ..cluster.options(1) }).unwrap();
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let followed = Followed::new(&manager);
    until(|| followed.leases().len() == 1 && cluster.api.counts().watches == 2).await;
    cluster.api.forget_connections();
    soon(manager.publish(&lease, &attrs(2))).await.unwrap();
    assert!(cluster.annotations(1).contains(&("public-ip".to_owned(), "198.18.0.2".to_owned())));
    cluster.join_published(3);
    until(|| followed.leases().len() == 2).await;
    assert_eq!(*followed.removed.lock().unwrap(), Vec::<String>::new());
    assert!(manager.status().borrow().connected);
}
