mod following;
mod hostile;
mod identity;
mod renewal;
mod time;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::time::SystemTime;

use futures::StreamExt;
use tempfile::TempDir;

use super::*;
use crate::addr::Family;
use crate::lease::{BackendData, LeaseUpdate, UnreadableRecords};
use crate::subnet::allocate::overlaps;
use crate::testing::waiting::renew;

/// The subnets that nodes draw: not those that tests write by name.
const V4: &str = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.100.0","SubnetMax":"10.5.199.0","Backend":{"Type":"vxlan"}}"#;
const SMALL: &str = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.30.0"}"#;
const DUAL: &str = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.100.0","SubnetMax":"10.5.199.0","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
const V6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
/// Longer than a look at the folder takes, shorter than the rescan.
const SOON: Duration = Duration::from_secs(5);

fn store(config: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config"), config).unwrap();
    dir
}

fn manager(dir: &TempDir) -> LocalSubnetManager {
    LocalSubnetManager::new(LocalOptions::new(dir.path()))
}

fn folder(dir: &TempDir) -> Folder {
    Folder { root: dir.path().to_owned(), ttl: Duration::from_mins(1), allow_shared: false }
}

fn attrs(node: u8) -> LeaseAttrs {
    let data =
        BackendData::encode(&serde_json::json!({"VNI": 1, "VtepMAC": format!("0a:00:00:00:00:{node:02x}")}));
    LeaseAttrs {
        public_ips: PerFamily {
            v4: Some([192, 0, 2, node].into()),
            v6: Some([0xfd77, 0, 0, 0, 0, 0, 0, u16::from(node)].into()),
        },
        backend_type: "vxlan".to_owned(),
        backend_data: PerFamily { v4: data.ok(), v6: None },
        ..LeaseAttrs::default()
    }
}

fn path(dir: &TempDir, key: &str) -> PathBuf {
    dir.path().join("subnets").join(key)
}

/// Makes the folder of records, in which no group can write, whatever the umask.
fn make_subnets(dir: &TempDir) {
    DirBuilder::new().mode(0o755).create(dir.path().join("subnets")).unwrap();
}

/// Writes a record as an operator would.
fn put(dir: &TempDir, key: &str, value: &str) {
    let _ = DirBuilder::new().mode(0o755).create(dir.path().join("subnets"));
    fs::write(path(dir, key), value).unwrap();
}

fn age(dir: &TempDir, key: &str, seconds: u64) {
    let time = SystemTime::now() - Duration::from_secs(seconds);
    File::open(path(dir, key)).unwrap().set_modified(time).unwrap();
}

fn names(dir: &TempDir) -> BTreeSet<String> {
    let files = fs::read_dir(dir.path().join("subnets")).unwrap();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("takes too long")
}

async fn until(mut holds: impl FnMut() -> bool) {
    soon(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn says_what_is_wrong_with_the_config() {
    let dir = tempfile::tempdir().unwrap();
    let manager = manager(&dir);
    assert!(!manager.status().borrow().connected);
    let error = manager.network_config().await.unwrap_err();
    assert!(error.to_string().contains("/config"), "{error}");
    assert!(matches!(error, SubnetError::NoConfig { .. }));
    fs::write(dir.path().join("config"), "{}").unwrap();
    assert!(matches!(manager.network_config().await, Err(SubnetError::Config { .. })));
    fs::write(dir.path().join("config"), V4).unwrap();
    assert_eq!(manager.network_config().await.unwrap().backend.kind, "vxlan");
    assert!(manager.status().borrow().connected);
}

#[tokio::test]
async fn writes_the_bytes_of_the_etcd_layout_and_adopts_them_after_a_restart() {
    let dir = store(V4);
    assert_eq!(manager(&dir).published_attrs(&attrs(1).public_ips).await.unwrap(), None);
    let lease = manager(&dir).acquire_lease(&attrs(1)).await.unwrap();
    let file = path(&dir, &lease.key.to_string());
    assert_eq!(fs::read_to_string(&file).unwrap(), attrs(1).to_json());
    assert_eq!(fs::metadata(dir.path().join("subnets")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    assert_eq!(names(&dir).len(), 1, "no temporary file stays");

    let before = fs::metadata(&file).unwrap();
    let mut restarted = LocalOptions::new(dir.path());
    restarted.identity.subnets = "10.5.177.0-24".parse().ok();
    let restarted = LocalSubnetManager::new(restarted);
    assert_eq!(restarted.published_attrs(&attrs(1).public_ips).await.unwrap(), Some(attrs(1)));
    assert_eq!(restarted.acquire_lease(&attrs(1)).await.unwrap(), lease);
    let after = fs::metadata(&file).unwrap();
    assert_eq!(before.ino(), after.ino(), "an unchanged record is not written again");

    let mut changed = attrs(1);
    changed.backend_type = "host-gw".to_owned();
    assert_eq!(restarted.acquire_lease(&changed).await.unwrap().key, lease.key);
    assert_eq!(fs::read_to_string(&file).unwrap(), changed.to_json());
}

#[tokio::test]
async fn takes_the_previous_subnet_if_it_is_free() {
    let dir = store(V4);
    let mut options = LocalOptions::new(dir.path());
    options.identity.subnets = "10.5.177.0-24".parse().ok();
    let lease = LocalSubnetManager::new(options.clone()).acquire_lease(&attrs(1)).await.unwrap();
    assert_eq!(lease.key.to_string(), "10.5.177.0-24");
    let lease = LocalSubnetManager::new(options).acquire_lease(&attrs(2)).await.unwrap();
    assert_ne!(lease.key.to_string(), "10.5.177.0-24");
}

#[tokio::test]
async fn all_families() {
    for (config, families) in [(V4, &[Family::V4][..]), (DUAL, &Family::ALL), (V6, &[Family::V6])] {
        let dir = store(config);
        let lease = manager(&dir).acquire_lease(&attrs(1)).await.unwrap();
        assert_eq!(lease.key.subnets().families().collect::<Vec<_>>(), families);
        let other = manager(&dir).acquire_lease(&attrs(2)).await.unwrap();
        assert!(!overlaps(lease.key, other.key));
        assert_eq!(manager(&dir).acquire_lease(&attrs(1)).await.unwrap(), lease);
    }
}

#[tokio::test]
async fn a_network_that_gains_ipv6_keeps_its_ipv4_subnets() {
    let dir = store(V4);
    let old = manager(&dir).acquire_lease(&attrs(1)).await.unwrap();
    fs::write(dir.path().join("config"), DUAL).unwrap();
    let new = manager(&dir).acquire_lease(&attrs(1)).await.unwrap();
    assert_eq!(new.subnet(Family::V4), old.subnet(Family::V4));
    assert!(new.subnet(Family::V6).is_some());
    assert_eq!(names(&dir), BTreeSet::from([new.key.to_string()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_nodes_at_once_share_thirty_subnets() {
    let dir = store(SMALL);
    let tasks: Vec<_> = (1..=50)
        .map(|node| {
            let manager = manager(&dir);
            tokio::spawn(async move { manager.acquire_lease(&attrs(node)).await })
        })
        .collect();
    let (mut leases, mut refused): (Vec<Lease>, usize) = (Vec::new(), 0);
    for task in tasks {
        match task.await.unwrap() {
            Ok(lease) => leases.push(lease),
            Err(SubnetError::OutOfSubnets { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((leases.len(), refused), (30, 20));
    let keys: BTreeSet<_> = leases.iter().map(|lease| lease.key).collect();
    assert_eq!(keys.len(), 30);
}

#[tokio::test]
async fn an_expired_record_is_gone_but_its_node_gets_it_again() {
    let dir = store(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0"}"#);
    put(&dir, "10.5.1.0-24", &attrs(1).to_json());
    put(&dir, "10.5.2.0-24", &attrs(2).to_json());
    put(&dir, ".10.5.9.0-24.x1y2", "left behind");
    put(&dir, ".nfs0001", "not ours");
    age(&dir, "10.5.1.0-24", 25 * 3600);
    age(&dir, "10.5.2.0-24", 23 * 3600);
    age(&dir, ".10.5.9.0-24.x1y2", 25 * 3600);
    age(&dir, ".nfs0001", 25 * 3600);
    assert_eq!(manager(&dir).published_attrs(&attrs(1).public_ips).await.unwrap(), Some(attrs(1)));
    assert_eq!(manager(&dir).acquire_lease(&attrs(1)).await.unwrap().key.to_string(), "10.5.1.0-24");
    assert!(fs::metadata(path(&dir, "10.5.1.0-24")).unwrap().modified().unwrap().elapsed().unwrap() < SOON);
    assert!(matches!(manager(&dir).acquire_lease(&attrs(3)).await, Err(SubnetError::OutOfSubnets { .. })));
    age(&dir, "10.5.1.0-24", 25 * 3600);
    assert_eq!(manager(&dir).acquire_lease(&attrs(3)).await.unwrap().key.to_string(), "10.5.1.0-24");
    assert_eq!(names(&dir), BTreeSet::from(["10.5.1.0-24", "10.5.2.0-24", ".nfs0001"].map(str::to_owned)));
}

#[tokio::test]
async fn a_reservation_stays_one() {
    let dir = store(V4);
    put(&dir, "10.5.109.0-24", r#"{"PublicIP":"192.0.2.1"}"#);
    let file = path(&dir, "10.5.109.0-24");
    fs::set_permissions(&file, Permissions::from_mode(0o400)).unwrap();
    age(&dir, "10.5.109.0-24", 1000 * 3600);
    let manager = manager(&dir);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    assert_eq!(lease.key.to_string(), "10.5.109.0-24");
    assert_eq!(fs::read_to_string(&file).unwrap(), attrs(1).to_json());
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o400);
    age(&dir, "10.5.109.0-24", 1000 * 3600);
    let held = renew(&manager, &lease);
    assert_eq!(manager.acquire_lease(&attrs(1)).await.unwrap().key, lease.key);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!held.is_finished());
    assert!(fs::metadata(&file).unwrap().modified().unwrap().elapsed().unwrap() > SOON, "it was renewed");
    held.abort();
}

#[tokio::test]
async fn records_that_cannot_be_read_are_reported_and_keep_their_subnets() {
    let dir = store(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.4.0"}"#);
    put(&dir, "10.5.1.0-24", "{");
    put(&dir, "10.5.2.7-24", &attrs(2).to_json());
    put(&dir, "README", "hands off");
    fs::create_dir(path(&dir, "10.5.3.0-24")).unwrap();
    let manager = manager(&dir);
    assert_eq!(manager.acquire_lease(&attrs(1)).await.unwrap().key.to_string(), "10.5.4.0-24");
    let bad: Vec<String> =
        manager.status().borrow().unreadable.records.iter().map(|record| record.key.clone()).collect();
    assert_eq!(bad, ["10.5.1.0-24", "10.5.2.7-24", "10.5.3.0-24", "README"]);
    let Some(Ok(LeaseUpdate::Snapshot { leases, unreadable })) = soon(manager.watch_leases().next()).await
    else {
        panic!()
    };
    assert_eq!((leases.len(), unreadable.len()), (1, 4));
}

#[tokio::test]
async fn a_deleted_lock_does_not_let_two_in() {
    let dir = store(V4);
    let folder = folder(&dir);
    let first = folder.lock(|| false).unwrap();
    let waiting = {
        let folder = folder.clone();
        std::thread::spawn(move || folder.lock(|| false).unwrap())
    };
    std::thread::sleep(Duration::from_millis(50));
    assert!(!waiting.is_finished());
    drop(first);
    let second = waiting.join().unwrap();
    fs::remove_file(dir.path().join(".lock")).unwrap();
    // The new file is another lock: who takes it must find it still there.
    drop((second, folder.lock(|| false).unwrap()));
}

/// A clock that is set far ahead ends leases for whoever looks, before their nodes can renew them.
#[tokio::test(start_paused = true)]
async fn a_lease_that_ran_out_in_a_jump_is_gone_only_if_its_node_stays_silent() {
    let dir = store(V4);
    let (clock, hand) = Clock::with_hand();
    let manager = LocalSubnetManager::new(LocalOptions { clock, ..LocalOptions::new(dir.path()) });
    put(&dir, "10.5.7.0-24", &attrs(7).to_json());
    let mut watch = manager.watch_leases();
    let first = watch.next().await.unwrap().unwrap();
    assert!(matches!(first, LeaseUpdate::Snapshot { leases, .. } if leases.len() == 1));
    hand.suspend(Duration::from_hours(25));
    let begin = tokio::time::Instant::now();
    let next = watch.next().await.unwrap().unwrap();
    assert!(matches!(next, LeaseUpdate::Removed(name) if name == "10.5.7.0-24"));
    let kept = begin.elapsed();
    assert!((Duration::from_secs(30)..Duration::from_secs(60)).contains(&kept), "{kept:?}");
}

/// A thread goes on when the future that waits for it is dropped. What it was about to write is no longer wanted, and the
/// next call must not be overtaken by it.
#[tokio::test]
async fn a_dropped_call_changes_nothing_any_more() {
    let dir = store(V4);
    let manager = manager(&dir);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    fs::remove_file(path(&dir, &lease.key.to_string())).unwrap();
    let (before, after) = (attrs(1), attrs(2));
    let calls: [futures::future::BoxFuture<'_, ()>; 3] = [
        Box::pin(async { _ = manager.renew_lease(&lease).await }),
        Box::pin(async { _ = manager.acquire_lease(&before).await }),
        Box::pin(async { _ = manager.publish(&lease, &after).await }),
    ];
    for mut call in calls {
        let lock = folder(&dir).lock(|| false).unwrap();
        assert!(futures::poll!(&mut call).is_pending());
        drop(call);
        drop(lock);
        while Arc::strong_count(&manager.0) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(fs::read_dir(dir.path().join("subnets")).unwrap().count(), 0);
    }
}
