//! Keeping the own lease, publishing it again, and giving it back.

use super::*;

#[tokio::test]
async fn renews_in_time_and_without_news_for_others() {
    let dir = store(V4);
    let mut options = LocalOptions::new(dir.path());
    (options.ttl, options.renew_margin) = (Duration::from_secs(1), Duration::from_millis(700));
    let manager = LocalSubnetManager::new(options);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let held = renew(&manager, &lease);
    let mut watch = manager.watch_leases();
    soon(watch.next()).await.unwrap().unwrap();
    let quiet = tokio::time::timeout(Duration::from_millis(2500), watch.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert!(!held.is_finished());
    let file = fs::metadata(path(&dir, &lease.key.to_string())).unwrap();
    assert!(file.modified().unwrap().elapsed().unwrap() < Duration::from_secs(1));
    held.abort();
}

#[tokio::test]
async fn a_deleted_or_changed_lease_is_put_back() {
    let dir = store(V4);
    let manager = manager(&dir);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let held = renew(&manager, &lease);
    let file = path(&dir, &lease.key.to_string());
    let is_back = || fs::read_to_string(&file).is_ok_and(|text| text == attrs(1).to_json());
    tokio::time::sleep(Duration::from_millis(100)).await;
    fs::remove_file(&file).unwrap();
    until(is_back).await;
    fs::remove_dir_all(dir.path().join("subnets")).unwrap();
    until(is_back).await;
    fs::write(&file, "{").unwrap();
    until(is_back).await;
    fs::write(&file, r#"{"PublicIP":"192.0.2.1"}"#).unwrap();
    until(is_back).await;
    assert!(!held.is_finished() && manager.status().borrow().lease_lost.is_none());
    held.abort();
}

#[tokio::test]
async fn a_lease_that_another_node_has_is_lost() {
    for (key, value) in [("", attrs(9).to_json()), ("10.5.0.0-17", attrs(9).to_json())] {
        let dir = store(r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.100.0"}"#);
        let manager = manager(&dir);
        let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
        let held = renew(&manager, &lease);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let own = lease.key.to_string();
        if key.is_empty() {
            let temporary = dir.path().join("temporary");
            fs::write(&temporary, &value).unwrap();
            fs::rename(temporary, path(&dir, &own)).unwrap();
        } else {
            put(&dir, key, &value);
            fs::remove_file(path(&dir, &own)).unwrap();
        }
        let error = soon(held).await.unwrap();
        assert!(matches!(&error, SubnetError::LeaseLost { holder, .. } if holder == "192.0.2.9"), "{error}");
        assert!(manager.status().borrow().lease_lost.as_ref().unwrap().contains("192.0.2.9"));
    }
}

#[tokio::test]
async fn publishes_again_under_the_same_key_in_one_write() {
    let dir = store(DUAL);
    let manager = manager(&dir);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let file = path(&dir, &lease.key.to_string());
    let moved = LeaseAttrs { public_ips: attrs(7).public_ips, ..attrs(1) };
    let again = manager.publish(&lease, &moved).await.unwrap();
    assert_eq!((again.key, &again.attrs), (lease.key, &moved));
    assert_eq!(fs::read_to_string(&file).unwrap(), moved.to_json());
    let written = fs::metadata(&file).unwrap().ino();
    assert_eq!(manager.publish(&lease, &moved).await.unwrap(), again, "it is there already");
    assert_eq!(fs::metadata(&file).unwrap().ino(), written);
    // A reservation stays one, a deleted record comes back, and another node's stays.
    fs::set_permissions(&file, Permissions::from_mode(0o400)).unwrap();
    let again = manager.publish(&again, &attrs(1)).await.unwrap();
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o400);
    fs::remove_file(&file).unwrap();
    assert_eq!(manager.publish(&again, &moved).await.unwrap().attrs, moved);
    fs::remove_file(&file).unwrap();
    put(&dir, &lease.key.to_string(), &attrs(9).to_json());
    let lost = manager.publish(&lease, &moved).await.unwrap_err();
    assert!(matches!(lost, SubnetError::LeaseLost { .. }), "{lost}");
    assert!(manager.status().borrow().lease_lost.is_some());
    assert_eq!(fs::read_to_string(&file).unwrap(), attrs(9).to_json());
}

#[tokio::test]
async fn releases_the_own_lease_and_no_other() {
    let dir = store(DUAL);
    let manager = manager(&dir);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let key = lease.key.to_string();
    put(&dir, &key, &attrs(9).to_json());
    let lost = manager.release_lease(&lease).await.unwrap_err();
    assert!(matches!(lost, SubnetError::LeaseLost { .. }), "{lost}");
    put(&dir, &key, "{");
    assert!(matches!(manager.release_lease(&lease).await.unwrap_err(), SubnetError::Conflict(_)));
    assert_eq!(names(&dir).len(), 1);
    put(&dir, &key, &lease.attrs.to_json());
    for _ in 0..2 {
        manager.release_lease(&lease).await.unwrap();
        assert!(names(&dir).is_empty(), "and what is gone is no failure");
    }
}

/// Two agents of one host that slept: the time of both files is almost over when they wake.
#[tokio::test]
async fn after_a_suspend_each_agent_renews_at_once_and_takes_no_other_for_gone() {
    let dir = store(V4);
    let (clock, hand) = Clock::with_hand();
    let managers = [1, 2].map(|_| {
        LocalSubnetManager::new(LocalOptions { clock: clock.clone(), ..LocalOptions::new(dir.path()) })
    });
    let mut held = Vec::new();
    for (node, manager) in (1..).zip(&managers) {
        let lease = manager.acquire_lease(&attrs(node)).await.unwrap();
        held.push((renew(manager, &lease), path(&dir, &lease.key.to_string())));
    }
    let mut watch = managers[0].watch_leases();
    let first = soon(watch.next()).await.unwrap().unwrap();
    assert!(matches!(first, LeaseUpdate::Snapshot { leases, .. } if leases.len() == 2));
    tokio::time::sleep(Duration::from_millis(200)).await;
    hand.suspend(Duration::from_mins(60 * 23 + 30));
    until(|| {
        let is_new = |file: &PathBuf| fs::metadata(file).unwrap().modified().unwrap() > SystemTime::now();
        held.iter().all(|(_, file)| is_new(file))
    })
    .await;
    assert!(tokio::time::timeout(Duration::from_secs(1), watch.next()).await.is_err(), "nothing changed");
    for (task, _) in held {
        task.abort();
    }
}

#[tokio::test]
async fn any_lifetime_of_an_embedder_gives_a_lease_that_is_renewed() {
    for ttl in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
        let dir = store(V4);
        let mut options = LocalOptions::new(dir.path());
        options.ttl = ttl;
        let manager = LocalSubnetManager::new(options);
        let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
        let held = renew(&manager, &lease);
        let mut status = manager.status();
        let term =
            soon(status.wait_for(|status| status.lease_term.is_some())).await.unwrap().lease_term.unwrap();
        let lifetime = term.expires.duration_since(term.renewed).unwrap();
        assert!((1..=10 * 366 * 86_400).contains(&lifetime.as_secs()), "{ttl:?}: {lifetime:?}");
        // A renewal that panicked would end the watch over the own record.
        let file = path(&dir, &lease.key.to_string());
        for _ in 0..2 {
            fs::remove_file(&file).unwrap();
            until(|| file.exists()).await;
        }
        assert!(!held.is_finished(), "{ttl:?}");
        held.abort();
    }
}
