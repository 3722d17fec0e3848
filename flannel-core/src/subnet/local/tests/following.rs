//! What a watch tells, and how it looks at the folder.

use super::*;

#[tokio::test]
async fn the_watch_tells_what_happens() {
    let dir = store(V4);
    let first = manager(&dir).acquire_lease(&attrs(1)).await.unwrap();
    let watching = manager(&dir);
    let mut watch = watching.watch_leases();
    let update = soon(watch.next()).await.unwrap().unwrap();
    assert_eq!(
        update,
        LeaseUpdate::Snapshot { leases: vec![first.clone()], unreadable: UnreadableRecords::default() }
    );

    let second = manager(&dir).acquire_lease(&attrs(2)).await.unwrap();
    assert_eq!(soon(watch.next()).await.unwrap().unwrap(), LeaseUpdate::Put(second.clone()));
    let mut changed = attrs(2);
    changed.backend_type = "host-gw".to_owned();
    let second = manager(&dir).acquire_lease(&changed).await.unwrap();
    assert_eq!(soon(watch.next()).await.unwrap().unwrap(), LeaseUpdate::Put(second.clone()));
    put(&dir, &second.key.to_string(), "{");
    assert!(
        matches!(soon(watch.next()).await, Some(Ok(LeaseUpdate::Unreadable(bad))) if bad.key == second.key.to_string())
    );
    fs::remove_file(path(&dir, &second.key.to_string())).unwrap();
    assert_eq!(soon(watch.next()).await.unwrap().unwrap(), LeaseUpdate::Removed(second.key.to_string()));
    assert!(watching.status().borrow().unreadable.count == 0);

    // The folder goes: nothing is removed. It comes back: a snapshot.
    fs::rename(dir.path().join("subnets"), dir.path().join("elsewhere")).unwrap();
    let update = tokio::time::timeout(Duration::from_millis(300), watch.next()).await;
    assert!(update.is_err(), "{update:?}");
    assert!(!watching.status().borrow().connected);
    make_subnets(&dir);
    let update = soon(watch.next()).await.unwrap().unwrap();
    assert_eq!(update, LeaseUpdate::Snapshot { leases: vec![], unreadable: UnreadableRecords::default() });
    assert!(watching.status().borrow().connected);
    put(&dir, "10.5.8.0-24", &attrs(8).to_json());
    // The file may be seen before and after its content.
    loop {
        match soon(watch.next()).await.unwrap().unwrap() {
            LeaseUpdate::Put(lease) => break assert_eq!(lease.key.to_string(), "10.5.8.0-24"),
            other => assert!(matches!(other, LeaseUpdate::Unreadable(_)), "{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_folder_without_config_is_no_empty_store() {
    let dir = store(V4);
    let manager = manager(&dir);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let mut watch = manager.watch_leases();
    soon(watch.next()).await.unwrap().unwrap();
    let held = renew(&manager, &lease);
    let hidden = dir.path().with_extension("hidden");
    fs::rename(dir.path(), &hidden).unwrap();
    DirBuilder::new().recursive(true).mode(0o755).create(dir.path().join("subnets")).unwrap();
    let update = tokio::time::timeout(Duration::from_millis(500), watch.next()).await;
    assert!(update.is_err(), "{update:?}");
    assert!(!manager.status().borrow().connected && !held.is_finished());
    assert_eq!(names(&dir), BTreeSet::new());
    fs::remove_dir_all(dir.path()).unwrap();
    fs::rename(&hidden, dir.path()).unwrap();
    let update = soon(watch.next()).await.unwrap().unwrap();
    assert_eq!(
        update,
        LeaseUpdate::Snapshot { leases: vec![lease], unreadable: UnreadableRecords::default() }
    );
    held.abort();
}

#[tokio::test]
async fn the_watch_sees_a_lease_expire() {
    let dir = store(V4);
    let mut options = LocalOptions::new(dir.path());
    options.ttl = Duration::from_secs(1);
    let manager = LocalSubnetManager::new(options);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let mut watch = manager.watch_leases();
    soon(watch.next()).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    // A reason to look at all files.
    fs::write(dir.path().join("config"), V4).unwrap();
    let update = soon(watch.next()).await.unwrap().unwrap();
    assert_eq!(update, LeaseUpdate::Removed(lease.key.to_string()));
}

#[tokio::test]
async fn a_folder_that_appears_during_a_look_is_watched_from_then_on() {
    let dir = store(V4);
    let folder = folder(&dir);
    let mut changes = watch::Changes::new(folder);
    changes.arm();
    make_subnets(&dir);
    soon(changes.wait(Duration::from_mins(1))).await;
    let quiet = tokio::time::timeout(Duration::from_millis(200), changes.wait(Duration::from_mins(1))).await;
    assert!(quiet.is_err());
    put(&dir, "10.5.8.0-24", "{}");
    let named = |names: &[&str]| watch::News::Names(names.iter().map(Into::into).collect());
    assert_eq!(soon(changes.wait(Duration::from_mins(1))).await, named(&["10.5.8.0-24"]));
    fs::write(dir.path().join("config"), V4).unwrap();
    assert_eq!(soon(changes.wait(Duration::from_mins(1))).await, watch::News::All);
}

#[tokio::test]
async fn one_file_among_thousands_of_others_is_looked_at_alone() {
    let dir = store(V4);
    fs::create_dir(dir.path().join("subnets")).unwrap();
    let junk = |n: usize| format!("junk{n}");
    (0..3000).for_each(|n| put(&dir, &junk(n), "{"));
    let watching = manager(&dir);
    let mut watch = watching.watch_leases();
    let first = soon(watch.next()).await.unwrap().unwrap();
    let LeaseUpdate::Snapshot { unreadable, .. } = first else { panic!("{first:?}") };
    assert_eq!((unreadable.len(), watching.status().borrow().unreadable.count), (3000, 3000));
    assert_eq!(watching.status().borrow().unreadable.records.len(), 20);
    let lease = manager(&dir).acquire_lease(&attrs(1)).await.unwrap();
    assert_eq!(soon(watch.next()).await.unwrap().unwrap(), LeaseUpdate::Put(lease));
    for n in 0..3000 {
        fs::remove_file(path(&dir, &junk(n))).unwrap();
    }
    let mut left: BTreeSet<String> = (0..3000).map(junk).collect();
    while !left.is_empty() {
        match soon(watch.next()).await.unwrap().unwrap() {
            LeaseUpdate::Removed(name) => assert!(left.remove(&name), "{name}"),
            // There were too many at once to look at each.
            LeaseUpdate::Snapshot { leases, unreadable } => {
                assert_eq!(leases.len(), 1);
                left.retain(|name| {
                    unreadable.named().any(|record| record.key == *name) || unreadable.len() > 256
                });
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(watching.status().borrow().unreadable.count, 0);
}

#[tokio::test]
async fn a_value_that_changes_twice_in_one_tick_of_the_clock_is_read_again() {
    let dir = store(V4);
    let folder = folder(&dir);
    put(&dir, "10.5.8.0-24", &attrs(8).to_json());
    let mut cache = Cache::default();
    for node in (1..9).cycle().take(100) {
        // In place, with as many bytes.
        put(&dir, "10.5.8.0-24", &attrs(node).to_json());
        let scan = folder.scan(&mut cache, SystemTime::now()).unwrap();
        assert_eq!(scan.live["10.5.8.0-24"].lease().unwrap().attrs, attrs(node));
    }
}

#[tokio::test]
async fn changes_of_the_config_are_told() {
    let dir = store(V4);
    let store = manager(&dir);
    let first = store.network_config().await.unwrap();
    let mut changes = store.config_changes().unwrap();
    let write = |text: &str| fs::write(dir.path().join("config"), text).unwrap();
    write(&V4.replace("10.5.", "10.6."));
    let now = soon(changes.next()).await.unwrap().unwrap();
    assert_ne!(now, first);
    write("{");
    // The file may be seen before its content is there.
    let problem = soon(changes.next()).await.unwrap().unwrap_err();
    assert!(matches!(problem, SubnetError::Config { .. }), "{problem}");
    // A folder that is not mounted says nothing of the config.
    fs::rename(dir.path().join("config"), dir.path().join("elsewhere")).unwrap();
    let told = tokio::time::timeout(Duration::from_millis(400), changes.next()).await;
    assert!(told.is_err(), "{told:?}");
    write(V4);
    let now = loop {
        if let Ok(now) = soon(changes.next()).await.unwrap() {
            break now;
        }
    };
    assert_eq!(now, first);
}
