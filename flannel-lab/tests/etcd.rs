//! The store: it answers, stops answering, dies and comes back with its data.

use std::time::Duration;

use flannel_lab::cluster::Cluster;
use flannel_lab::etcd::{Etcd, EtcdCluster, EtcdOptions, TlsFiles};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

#[test]
fn a_store_keeps_its_data_over_pause_and_kill() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(1).build().unwrap();
        let options = EtcdOptions::at(cluster.fabric(), cluster.fabric_address());
        let mut etcd = Etcd::start(options).unwrap();
        assert_eq!(etcd.endpoint(), "http://192.168.77.1:2379");
        etcd.put("/a/1", "{\"x\":\"ü\"}").unwrap();
        etcd.put("/a/2", "-two").unwrap();
        assert_eq!(etcd.get("/a/1").unwrap().as_deref(), Some("{\"x\":\"ü\"}"));
        assert_eq!(etcd.get("/none").unwrap(), None);
        let listed = etcd.list("/a/").unwrap();
        assert_eq!(listed.len(), 2);
        assert_eq!((listed[1].key.as_str(), listed[1].value.as_str()), ("/a/2", "-two"));

        etcd.pause().unwrap();
        assert!(!etcd.is_healthy() && etcd.agent().is_running());
        etcd.resume().unwrap();
        assert!(etcd.is_healthy());

        etcd.kill().unwrap();
        assert!(!etcd.is_healthy() && !etcd.agent().is_running());
        etcd.restart().unwrap();
        assert_eq!(etcd.list("/a/").unwrap(), listed);

        etcd.del("/a/1").unwrap();
        assert_eq!(etcd.list("/a/").unwrap().len(), 1);
        assert_eq!(etcd.compact().unwrap(), etcd.revision().unwrap());
        assert!(etcd.ctl(&["get", "/a/2", "--rev", "2"]).is_err());
        etcd.del_prefix("/a/").unwrap();
        assert_eq!(etcd.list("/").unwrap(), []);
    });
}

#[test]
fn leases_are_shown_with_their_keys() {
    in_sandbox(test_name!(), || {
        let etcd = Etcd::start(EtcdOptions::default()).unwrap();
        let lease = etcd.grant_lease(Duration::from_secs(100)).unwrap();
        etcd.put_on_lease("/leased", "value", lease).unwrap();
        assert_eq!(etcd.list("/leased").unwrap()[0].lease, lease);
        let info = etcd.lease_info(lease).unwrap();
        assert_eq!(info.granted, Some(Duration::from_secs(100)));
        assert!(info.left.unwrap() <= Duration::from_secs(100));
        assert_eq!(info.keys, ["/leased"]);
        etcd.revoke_lease(lease).unwrap();
        assert_eq!(etcd.get("/leased").unwrap(), None);
        assert_eq!(etcd.lease_info(lease).unwrap().left, None);
    });
}

#[test]
fn tls_and_passwords_keep_strangers_out() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(1).build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let tls = TlsFiles::create(dir.path(), &[cluster.fabric_address()]).unwrap();
        let options = EtcdOptions::at(cluster.fabric(), cluster.fabric_address());
        let mut etcd = Etcd::start(EtcdOptions { tls: Some(tls), ..options }).unwrap();
        assert!(etcd.endpoint().starts_with("https://"));
        etcd.put("/secret", "1").unwrap();
        let fabric = cluster.fabric();
        assert!(
            fabric
                .run("etcdctl", &["--dial-timeout=1s", "--endpoints", etcd.endpoint(), "get", "/secret"])
                .is_err()
        );

        etcd.enable_auth("flannel", "sesame").unwrap();
        assert_eq!(etcd.get("/secret").unwrap().as_deref(), Some("1"));
        assert!(etcd.ctl(&["--user", "flannel:sesame", "put", "/x", "2"]).is_ok());
        assert!(etcd.ctl(&["--user", "flannel:guess", "get", "/x"]).is_err());
        assert!(etcd.is_healthy());
    });
}

#[test]
fn a_cluster_lives_without_one_of_three() {
    let mut cluster = EtcdCluster::start(3, &[]).unwrap();
    let leader = cluster.leader().unwrap().expect("a leader");
    let other = (leader + 1) % 3;
    cluster.member(leader).put("/a", "1").unwrap();
    cluster.member(leader).kill().unwrap();
    eventually(Duration::from_secs(20), "another leader", || cluster.leader().ok().flatten());
    assert_eq!(cluster.member(other).get("/a").unwrap().as_deref(), Some("1"));
    cluster.kill_all().unwrap();
    cluster.restart(&[0, 1, 2]).unwrap();
    assert_eq!(cluster.member(leader).get("/a").unwrap().as_deref(), Some("1"));
}

#[test]
fn a_backup_brings_back_data_and_revision() {
    let dir = tempfile::tempdir().unwrap();
    let mut etcd = Etcd::start(EtcdOptions::default()).unwrap();
    etcd.put("/a", "1").unwrap();
    let (backup, revision) = (dir.path().join("backup"), etcd.revision().unwrap());
    etcd.save(&backup).unwrap();
    etcd.put("/a", "2").unwrap();
    etcd.restore(&backup).unwrap();
    assert_eq!(etcd.get("/a").unwrap().as_deref(), Some("1"));
    assert_eq!(etcd.revision().unwrap(), revision);
    assert!(etcd.requests().unwrap()["Range"] >= 2);
}
