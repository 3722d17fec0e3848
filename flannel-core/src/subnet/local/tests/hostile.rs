//! Whoever can write to the folder makes no file elsewhere, holds up no agent, and has none read a disk full.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

fn fifo(path: &Path) {
    mkfifo(path, Mode::S_IRWXU).unwrap();
}

fn huge(path: &Path) {
    File::create(path).unwrap().set_len(3 << 30).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn told(error: &SubnetError, words: &[&str]) {
    let text = crate::error::chain(error);
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

/// The reasons of all unreadable records, by name.
fn unreadable(manager: &LocalSubnetManager) -> Vec<(String, String)> {
    let status = manager.status();
    let status = status.borrow();
    status.unreadable.records.iter().map(|record| (record.key.clone(), record.reason.clone())).collect()
}

#[tokio::test]
async fn a_lock_that_is_a_link_or_no_file_makes_nothing_and_holds_up_nobody() {
    let elsewhere = tempfile::tempdir().unwrap();
    let (missing, victim) = (elsewhere.path().join("missing"), elsewhere.path().join("victim"));
    fs::write(&victim, "precious").unwrap();
    let dir = store(V4);
    let lock = dir.path().join(".lock");
    for (make, why) in [
        (&(|path: &Path| symlink(&missing, path).unwrap()) as &dyn Fn(&Path), "symbolic link"),
        (&|path: &Path| symlink(&victim, path).unwrap(), "symbolic link"),
        (&fifo, "not a regular file"),
        (&|path: &Path| drop(UnixListener::bind(path).unwrap()), "not a regular file"),
    ] {
        make(&lock);
        let error = soon(manager(&dir).acquire_lease(&attrs(1))).await.unwrap_err();
        told(&error, &["lock", "/.lock", why]);
        assert!(error.is_transient(), "the agent waits for somebody to mend it: {error}");
        fs::remove_file(&lock).unwrap();
    }
    assert!(!missing.exists());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    manager(&dir).acquire_lease(&attrs(1)).await.unwrap();
}

#[tokio::test]
async fn a_config_that_is_no_file_or_huge_is_not_read() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), V4).unwrap();
    let dir = store(V4);
    let config = dir.path().join("config");
    for (make, why) in [
        (&fifo as &dyn Fn(&Path), "not a regular file"),
        (&|path: &Path| symlink(secret.path(), path).unwrap(), "symbolic link"),
        (&|path: &Path| symlink("/dev/zero", path).unwrap(), "symbolic link"),
        (&huge, "larger than 65536 bytes"),
        (&|path: &Path| fs::write(path, b"{\xff}").unwrap(), "no UTF-8"),
    ] {
        fs::remove_file(&config).unwrap();
        make(&config);
        let error = soon(manager(&dir).network_config()).await.unwrap_err();
        told(&error, &["read", "/config", why]);
        assert!(error.is_transient(), "a stored config may stand in: {error}");
    }
}

/// Old things, too: nobody can remove a folder like a file, so they don't count as expired.
#[tokio::test]
async fn what_is_no_record_is_named_and_keeps_its_subnet_and_others_go_on() {
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    fs::write(elsewhere.path(), attrs(2).to_json()).unwrap();
    let dir = store(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.7.0"}"#);
    put(&dir, "10.5.6.0-24", &format!(r#"{{"PublicIP":"192.0.2.6","x":"{}"}}"#, "x".repeat(64 << 10)));
    fifo(&path(&dir, "10.5.1.0-24"));
    fs::create_dir(path(&dir, "10.5.2.0-24")).unwrap();
    symlink(elsewhere.path(), path(&dir, "10.5.3.0-24")).unwrap();
    drop(UnixListener::bind(path(&dir, "10.5.4.0-24")).unwrap());
    huge(&path(&dir, "10.5.5.0-24"));
    fs::create_dir(path(&dir, ".10.5.9.0-24.x1y2z3")).unwrap();
    for folder in ["10.5.2.0-24", ".10.5.9.0-24.x1y2z3"] {
        age(&dir, folder, 25 * 3600);
    }
    let manager = manager(&dir);
    let lease = soon(manager.acquire_lease(&attrs(1))).await.unwrap();
    assert_eq!(lease.key.to_string(), "10.5.7.0-24", "the free one");
    let (file, large) = ("not a regular file", "larger than 65536 bytes");
    let want = [(1, file), (2, file), (3, file), (4, file), (5, large), (6, large)];
    let bad = unreadable(&manager);
    assert_eq!(bad.len(), want.len(), "{bad:?}");
    for ((key, reason), (number, why)) in bad.iter().zip(want) {
        assert!(*key == format!("10.5.{number}.0-24") && reason.contains(why), "{key}: {reason}");
    }

    let mut watch = manager.watch_leases();
    let update = soon(watch.next()).await.unwrap().unwrap();
    let LeaseUpdate::Snapshot { leases, unreadable } = update else { panic!("{update:?}") };
    assert_eq!((leases, unreadable.len()), (vec![lease], 6));
    // The watch goes on when a FIFO comes, where a record or the config was.
    fs::remove_file(path(&dir, "10.5.6.0-24")).unwrap();
    assert_eq!(soon(watch.next()).await.unwrap().unwrap(), LeaseUpdate::Removed("10.5.6.0-24".into()));
    fs::rename(path(&dir, "10.5.1.0-24"), dir.path().join("config")).unwrap();
    assert_eq!(soon(watch.next()).await.unwrap().unwrap(), LeaseUpdate::Removed("10.5.1.0-24".into()));
    put(&dir, ".x", &attrs(6).to_json());
    fs::rename(path(&dir, ".x"), path(&dir, "10.5.6.0-24")).unwrap();
    let update = soon(watch.next()).await.unwrap().unwrap();
    assert!(matches!(&update, LeaseUpdate::Put(lease) if lease.attrs == attrs(6)), "{update:?}");
}

#[tokio::test]
async fn renewal_dates_nothing_elsewhere_and_a_write_goes_through_no_link() {
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    fs::write(elsewhere.path(), "precious").unwrap();
    elsewhere.as_file().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let dir = store(V4);
    let key = "10.5.8.0-24";
    put(&dir, key, "");
    fs::remove_file(path(&dir, key)).unwrap();
    symlink(elsewhere.path(), path(&dir, key)).unwrap();
    let folder = folder(&dir);
    let error = folder.touch(key.parse().unwrap(), None).unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
    symlink(elsewhere.path(), dir.path().join(".lock")).unwrap();
    assert!(folder.time(None).is_err());
    folder.write(key.parse().unwrap(), &attrs(8), false, None).unwrap();
    assert!(fs::symlink_metadata(path(&dir, key)).unwrap().is_file());
    let there = fs::metadata(elsewhere.path()).unwrap();
    assert_eq!(there.modified().unwrap(), SystemTime::UNIX_EPOCH);
    assert_eq!(fs::read_to_string(elsewhere.path()).unwrap(), "precious");
}

#[tokio::test]
async fn a_folder_of_records_that_is_a_link_is_none() {
    let elsewhere = tempfile::tempdir().unwrap();
    let dir = store(V4);
    symlink(elsewhere.path(), dir.path().join("subnets")).unwrap();
    let error = manager(&dir).acquire_lease(&attrs(1)).await.unwrap_err();
    told(&error, &["/subnets", "links are not followed"]);
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_folder_that_others_can_write_to_is_refused_unless_that_is_asked_for() {
    let dir = store(V4);
    make_subnets(&dir);
    let shared = || LocalOptions { allow_shared: true, ..LocalOptions::new(dir.path()) };
    for (folder, mode, who) in [
        ("", 0o777, "everybody"),
        ("", 0o1777, "everybody"),
        ("", 0o770, "its group"),
        ("subnets", 0o707, "everybody"),
        ("subnets", 0o770, "its group"),
    ] {
        chmod(&dir.path().join(folder), mode);
        let mut errors = vec![manager(&dir).acquire_lease(&attrs(1)).await.unwrap_err()];
        if folder.is_empty() {
            errors.push(manager(&dir).network_config().await.unwrap_err());
        }
        let root = dir.path().display().to_string();
        for error in errors {
            told(&error, &[who, "others can write", "chmod go-w", &root, "--local-store-allow-shared"]);
            assert!(matches!(error, SubnetError::Refused { .. }), "{error:?}");
        }
        LocalSubnetManager::new(shared()).acquire_lease(&attrs(1)).await.unwrap();
        chmod(&dir.path().join(folder), 0o755);
    }
    manager(&dir).acquire_lease(&attrs(1)).await.unwrap();
}

/// As root, which can give a folder away.
#[tokio::test]
async fn a_folder_of_another_user_is_refused() {
    let dir = store(V4);
    if std::os::unix::fs::chown(dir.path(), Some(12_345), None).is_err() {
        // An ordinary user has folders of its own alone, and root's: `/` is no store, but nobody's fault.
        let folder = Folder { root: "/".into(), ttl: Duration::from_mins(1), allow_shared: false };
        assert!(folder.has_subnets().is_ok());
        return;
    }
    let error = manager(&dir).network_config().await.unwrap_err();
    told(&error, &["it belongs to user 12345", "chown root"]);
    let shared = LocalOptions { allow_shared: true, ..LocalOptions::new(dir.path()) };
    LocalSubnetManager::new(shared).network_config().await.unwrap();
}

#[tokio::test]
async fn a_folder_that_is_opened_to_others_while_agents_run_costs_no_peer() {
    let dir = store(V4);
    let manager = manager(&dir);
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let mut watch = manager.watch_leases();
    soon(watch.next()).await.unwrap().unwrap();
    let subnets = dir.path().join("subnets");
    chmod(&subnets, 0o777);
    fs::remove_file(path(&dir, &lease.key.to_string())).unwrap();
    put(&dir, "10.5.9.0-24", &attrs(9).to_json());
    let mut status = manager.status();
    soon(async {
        tokio::select! {
            update = watch.next() => panic!("{update:?}"),
            refused = status.wait_for(|status| status.problem.contains("everybody can write")) => {
                assert!(!refused.unwrap().connected);
            }
        }
    })
    .await;
    chmod(&subnets, 0o700);
    let update = soon(watch.next()).await.unwrap().unwrap();
    assert!(matches!(&update, LeaseUpdate::Snapshot { leases, .. } if leases.len() == 1), "{update:?}");
}
