//! Leases are dated by the folder's clock and compared with it, whatever the hosts' clocks say.

use super::*;
use crate::clock::ClockHand;

fn manager_with_hand(dir: &TempDir) -> (LocalSubnetManager, ClockHand) {
    let (clock, hand) = Clock::with_hand();
    (LocalSubnetManager::new(LocalOptions { clock, ..LocalOptions::new(dir.path()) }), hand)
}

fn skew(manager: &LocalSubnetManager) -> String {
    manager.status().borrow().clock.clone().unwrap_or_default()
}

fn date(dir: &TempDir, key: &str) -> SystemTime {
    fs::metadata(path(dir, key)).unwrap().modified().unwrap()
}

#[tokio::test]
async fn a_host_whose_clock_is_ahead_expires_nobody_and_says_so() {
    let dir = store(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.3.0"}"#);
    let there = [manager(&dir).acquire_lease(&attrs(1)).await, manager(&dir).acquire_lease(&attrs(2)).await];
    let there = there.map(Result::unwrap);
    let (ahead, hand) = manager_with_hand(&dir);
    hand.set_wall_ahead(Duration::from_hours(25));
    let own = ahead.acquire_lease(&attrs(3)).await.unwrap();
    assert!(there.iter().all(|lease| lease.key != own.key));
    assert_eq!(names(&dir).len(), 3, "nothing was cleaned away");
    let mut watch = ahead.watch_leases();
    let update = soon(watch.next()).await.unwrap().unwrap();
    assert!(matches!(&update, LeaseUpdate::Snapshot { leases, .. } if leases.len() == 3), "{update:?}");
    let told = skew(&ahead);
    assert!(told.contains("clock of this host is 90000 s ahead of that of the store's folder"), "{told}");

    // Its own lease is no longer in force for others than theirs are.
    ahead.acquire_lease(&attrs(3)).await.unwrap();
    assert!(date(&dir, &own.key.to_string()) <= SystemTime::now() + Duration::from_secs(1));
    let other = manager(&dir);
    assert_eq!(other.acquire_lease(&attrs(1)).await.unwrap(), there[0]);
    assert_eq!(skew(&other), "");
}

#[tokio::test]
async fn a_host_whose_clock_jumps_ahead_while_it_watches_expires_nobody() {
    let dir = store(V4);
    manager(&dir).acquire_lease(&attrs(1)).await.unwrap();
    let (ahead, hand) = manager_with_hand(&dir);
    let mut watch = ahead.watch_leases();
    soon(watch.next()).await.unwrap().unwrap();
    let mut status = ahead.status();
    for (is_ahead, time) in [(true, Duration::from_hours(25)), (false, Duration::ZERO)] {
        hand.set_wall_ahead(time);
        // A reason to look.
        fs::write(dir.path().join("config"), V4).unwrap();
        soon(async {
            tokio::select! {
                update = watch.next() => panic!("{update:?}"),
                status = status.wait_for(|status| status.clock.is_some() == is_ahead) => drop(status.unwrap()),
            }
        })
        .await;
    }
}

/// On a file system where each host dates files by its own clock, or by an older agent.
#[tokio::test]
async fn a_lease_that_is_dated_ahead_is_named() {
    let dir = store(V4);
    let lease = manager(&dir).acquire_lease(&attrs(1)).await.unwrap();
    let date_ahead = |key: &str| {
        let ahead = SystemTime::now() + Duration::from_hours(25);
        File::open(path(&dir, key)).unwrap().set_modified(ahead).unwrap();
    };
    put(&dir, "10.5.200.0-24", &attrs(7).to_json());
    put(&dir, "10.5.201.0-24", &attrs(8).to_json());
    date_ahead("10.5.200.0-24");
    let manager = manager(&dir);
    manager.acquire_lease(&attrs(1)).await.unwrap();
    let told = skew(&manager);
    assert!(told.contains("lease 10.5.200.0-24 of 192.0.2.7 is dated"), "{told}");
    assert!(told.contains("s ahead of the folder's clock; let all hosts set their clocks"), "{told}");
    date_ahead("10.5.201.0-24");
    manager.acquire_lease(&attrs(1)).await.unwrap();
    assert!(skew(&manager).contains(" and 1 more is dated"), "{}", skew(&manager));

    // Its holder dates it anew, once.
    let own = lease.key.to_string();
    date_ahead(&own);
    let held = renew(&manager, &lease);
    let begin = SystemTime::now();
    until(|| date(&dir, &own) < begin + Duration::from_hours(1)).await;
    let dated = date(&dir, &own);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(date(&dir, &own), dated);
    held.abort();
}

/// The clock of a file server that is set ahead: all leases are renewed before anybody takes them for expired.
#[tokio::test(start_paused = true)]
async fn a_folder_whose_clock_is_set_ahead_is_waited_for() {
    let dir = store(V4);
    let (manager, hand) = manager_with_hand(&dir);
    let own = manager.acquire_lease(&attrs(1)).await.unwrap();
    put(&dir, "10.5.200.0-24", &attrs(7).to_json());
    let mut watch = manager.watch_leases();
    let first = watch.next().await.unwrap().unwrap();
    assert!(matches!(first, LeaseUpdate::Snapshot { leases, .. } if leases.len() == 2));
    hand.set_file_clock_ahead(Duration::from_hours(25));
    let begin = tokio::time::Instant::now();
    let held = renew(&manager, &own);
    // An own record that is expired is written anew.
    let next = watch.next().await.unwrap().unwrap();
    assert!(matches!(&next, LeaseUpdate::Put(lease) if lease.key == own.key), "{next:?}");
    let next = watch.next().await.unwrap().unwrap();
    assert_eq!(next, LeaseUpdate::Removed("10.5.200.0-24".to_owned()), "its node is gone");
    let kept = begin.elapsed();
    assert!(kept >= Duration::from_secs(90), "{kept:?}");
    assert!(date(&dir, &own.key.to_string()) > SystemTime::now() + Duration::from_hours(24));
    held.abort();
}
