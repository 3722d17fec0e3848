//! What goes wrong with a store, and that everything is well again soon after. Each test's name is in
//! `docs/failure-modes.md`.

use std::time::Duration;

use flannel_core::error::chain;
use flannel_core::lease::{Lease, LeaseTable, LeaseUpdate};
use flannel_core::subnet::{LeaseStream, StoreStatus, SubnetError, SubnetManager};
use flannel_lab::etcd::{Etcd, EtcdCluster, EtcdOptions as LabOptions, TlsFiles};
use flannel_store_etcd::{EtcdOptions, EtcdSubnetManager, EtcdTls};
use futures::StreamExt;
use tokio::task::JoinHandle;

use crate::common::*;
use crate::proxy::Proxy;

/// A peer that nobody holds.
const PEER: &str = "10.5.7.0-24";

/// One node: it holds its lease and follows those of all.
struct Node {
    manager: EtcdSubnetManager,
    lease: Lease,
    held: JoinHandle<SubnetError>,
    table: LeaseTable,
    watch: LeaseStream,
}

/// Timeouts that fit into a test.
fn hasty(endpoints: impl IntoIterator<Item = impl Into<String>>) -> EtcdOptions {
    let mut options = EtcdOptions::new(endpoints);
    options.timeouts.connect = Duration::from_secs(1);
    options.timeouts.request = Duration::from_secs(1);
    options
}

impl Node {
    /// Node 1, which sees itself and the peer.
    async fn up(options: EtcdOptions, etcd: &Etcd) -> Self {
        etcd.put(&path(PEER), &attrs(7).to_json()).unwrap();
        let manager = EtcdSubnetManager::new(options).unwrap();
        let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
        let (held, watch) = (renew(&manager, &lease), manager.watch_leases());
        let mut node = Self { manager, lease, held, table: LeaseTable::default(), watch };
        node.follow(|node| node.sees(PEER) && node.sees_itself()).await;
        node
    }

    fn sees(&self, key: &str) -> bool {
        self.table.iter().any(|lease| lease.key.to_string() == key)
    }

    fn sees_itself(&self) -> bool {
        self.sees(&self.lease.key.to_string())
    }

    fn status(&self) -> StoreStatus {
        self.manager.status().borrow().clone()
    }

    /// Takes what the watch says until something holds. No peer may be lost meanwhile.
    async fn follow(&mut self, holds: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + 2 * SOON;
        let had_peer = self.sees(PEER);
        while !holds(self) {
            assert!(tokio::time::Instant::now() < deadline, "{:?}", self.status());
            let pause = Duration::from_millis(20);
            if let Ok(update) = tokio::time::timeout(pause, self.watch.next()).await {
                self.table.apply(update.unwrap().unwrap());
            }
            assert!(!had_peer || self.sees(PEER), "the peer is lost");
            assert!(!self.held.is_finished(), "the lease is given up");
        }
    }

    /// The fault is noticed, and knowledge gets old.
    async fn turns_red(&mut self, words: &str) {
        let is_red = |status: &StoreStatus| !status.connected && status.problem.contains(words);
        self.follow(|node| is_red(&node.status())).await;
        let status = self.status();
        assert!(status.confirmed.unwrap() <= status.since);
    }

    /// The fault is over: news arrive, and the own lease is put back when it is deleted.
    async fn is_well(&mut self, etcd: &Etcd) {
        self.follow(|node| node.status().connected).await;
        let (news, own) = ("10.5.99.0-24", path(self.lease.key));
        etcd.put(&path(news), &attrs(99).to_json()).unwrap();
        self.follow(|node| node.sees(news)).await;
        etcd.del(&path(news)).unwrap();
        self.follow(|node| !node.sees(news)).await;
        etcd.del(&own).unwrap();
        self.follow(|node| !node.sees_itself()).await;
        self.follow(|node| node.sees_itself() && node.status().lease_unkept.is_none()).await;
        assert!(self.status().lease_lost.is_none());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.held.abort();
    }
}

fn cluster() -> EtcdCluster {
    let times = ["--heartbeat-interval=20", "--election-timeout=200"].map(str::to_owned);
    let cluster = EtcdCluster::start(3, &times).unwrap();
    cluster.member(0).put(&format!("{PREFIX}/config"), V4).unwrap();
    cluster
}

/// The endpoints, this one first.
fn first(cluster: &EtcdCluster, index: usize) -> Vec<String> {
    let mut endpoints = cluster.endpoints();
    endpoints.rotate_left(index);
    endpoints
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_killed() {
    let mut cluster = cluster();
    let leader = cluster.leader().unwrap().unwrap();
    let mut node = Node::up(hasty(first(&cluster, leader)), cluster.member(leader)).await;
    cluster.member(leader).kill().unwrap();
    let other = cluster.member((leader + 1) % 3);
    until(|| other.get("/any").is_ok()).await;
    node.is_well(other).await;
    cluster.restart(&[leader]).unwrap();
    node.is_well(cluster.member(leader)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_member_that_we_use_is_paused() {
    let cluster = cluster();
    let mut options = hasty(first(&cluster, 0));
    // The least that a server allows.
    (options.timeouts.probe, options.timeouts.probe_answer) =
        (Duration::from_secs(5), Duration::from_secs(1));
    let mut node = Node::up(options, cluster.member(0)).await;
    cluster.member(0).pause().unwrap();
    until(|| cluster.member(1).get("/any").is_ok()).await;
    cluster.member(1).put(&path("10.5.8.0-24"), &attrs(8).to_json()).unwrap();
    node.follow(|node| node.sees("10.5.8.0-24")).await;
    node.is_well(cluster.member(1)).await;
    cluster.member(0).resume().unwrap();
    node.is_well(cluster.member(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_are_on_the_side_of_the_minority() {
    let cluster = cluster();
    // The only member that we reach, like the others' of the far side.
    let mut node = Node::up(hasty([cluster.member(2).endpoint()]), cluster.member(2)).await;
    cluster.member(0).pause().unwrap();
    cluster.member(1).pause().unwrap();
    node.turns_red("").await;
    let error = node.manager.acquire_lease(&attrs(2)).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    // They answer only together.
    std::thread::scope(|scope| {
        scope.spawn(|| cluster.member(0).resume().unwrap());
        scope.spawn(|| cluster.member(1).resume().unwrap());
    });
    node.is_well(cluster.member(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_members_are_down_and_the_history_is_compacted_before_we_return() {
    let mut cluster = cluster();
    let proxy = Proxy::to(cluster.member(0).endpoint()).await;
    let mut node = Node::up(hasty([&proxy.url]), cluster.member(0)).await;
    cluster.member(0).put(&path("10.5.8.0-24"), &attrs(8).to_json()).unwrap();
    node.follow(|node| node.sees("10.5.8.0-24")).await;
    cluster.kill_all().unwrap();
    node.turns_red("").await;
    proxy.cut();
    cluster.restart(&[0, 1, 2]).unwrap();
    let member = cluster.member(0);
    member.del(&path("10.5.8.0-24")).unwrap();
    member.put(&path("10.5.9.0-24"), &attrs(9).to_json()).unwrap();
    member.compact().unwrap();
    proxy.delay(Duration::ZERO);
    // What was really deleted is gone, and nothing else.
    node.follow(|node| node.sees("10.5.9.0-24") && !node.sees("10.5.8.0-24")).await;
    assert!(node.status().missing.is_empty());
    node.is_well(member).await;
}

/// A peer and we ourselves joined after the backup; `passed`: its revisions pass those we know before we return.
async fn restored(passed: bool) {
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    let mut etcd = start(V4);
    for key in ["10.5.4.0-24", "10.5.5.0-24"] {
        etcd.put(&path(key), &attrs(4).to_json()).unwrap();
    }
    etcd.save(&backup).unwrap();
    let proxy = Proxy::to(etcd.endpoint()).await;
    let mut node = Node::up(hasty([&proxy.url]), &etcd).await;
    etcd.del(&path("10.5.5.0-24")).unwrap();
    node.follow(|node| !node.sees("10.5.5.0-24")).await;
    let revision = etcd.revision().unwrap();
    proxy.cut();
    node.turns_red("").await;
    etcd.restore(&backup).unwrap();
    assert!(etcd.revision().unwrap() < revision);
    while passed && etcd.revision().unwrap() < revision + 5 {
        etcd.put("/elsewhere", "moves the revision on").unwrap();
    }
    proxy.delay(Duration::ZERO);
    // The peer is not in the store any more, but nothing says that it is gone; what was deleted is there again.
    node.follow(|node| node.sees("10.5.5.0-24")).await;
    assert!(node.sees(PEER) && node.sees("10.5.4.0-24"));
    until(|| etcd.get(&path(node.lease.key)).unwrap().is_some()).await;
    node.follow(|node| node.status().missing == [PEER]).await;
    // Back, it goes when it is deleted, as ever.
    etcd.put(&path(PEER), &attrs(7).to_json()).unwrap();
    node.follow(|node| node.status().missing.is_empty()).await;
    node.is_well(&etcd).await;
    etcd.del(&path(PEER)).unwrap();
    assert_eq!(next(&mut node.watch).await, LeaseUpdate::Removed(PEER.to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_backup_is_restored() {
    restored(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_backup_is_restored_and_written_to_before_we_return() {
    restored(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_lease_goes_when_its_subnet_is_taken_or_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let backup = dir.path().join("backup");
    let mut etcd = start(V4);
    etcd.save(&backup).unwrap();
    let mut options = hasty([etcd.endpoint()]);
    (options.ttl, options.renew_margin) = (Duration::from_secs(5), Duration::from_secs(2));
    let manager = EtcdSubnetManager::new(options).unwrap();
    for key in [PEER, "10.5.8.0-24"] {
        etcd.put(&path(key), &attrs(7).to_json()).unwrap();
    }
    let mut watch = manager.watch_leases();
    next(&mut watch).await;
    etcd.restore(&backup).unwrap();
    let LeaseUpdate::Snapshot { leases, unreadable } = next(&mut watch).await else { panic!() };
    let kept: Vec<_> = unreadable.named().map(|kept| kept.key).collect();
    assert_eq!((leases.len(), kept), (0, vec![PEER.to_owned(), "10.5.8.0-24".to_owned()]));
    etcd.put(&path("10.5.8.0-23"), &attrs(8).to_json()).unwrap();
    assert_eq!(next(&mut watch).await, LeaseUpdate::Removed("10.5.8.0-24".to_owned()));
    assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(_)));
    assert_eq!(manager.status().borrow().missing, [PEER]);
    assert_eq!(next(&mut watch).await, LeaseUpdate::Removed(PEER.to_owned()));
    assert!(manager.status().borrow().missing.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn our_user_loses_its_role_and_then_its_account() {
    let mut etcd = start(V4);
    etcd.enable_auth("flannel", "hush-hush").unwrap();
    let mut options = hasty([etcd.endpoint()]);
    (options.username, options.password) = (Some("flannel".to_owned()), Some("hush-hush".into()));
    let mut node = Node::up(options, &etcd).await;
    // A restart forgets the tokens; the next are got without a word.
    etcd.restart().unwrap();
    node.is_well(&etcd).await;
    etcd.ctl(&["user", "revoke-role", "flannel", "all"]).unwrap();
    etcd.restart().unwrap();
    node.turns_red("permission denied").await;
    etcd.ctl(&["user", "grant-role", "flannel", "all"]).unwrap();
    node.is_well(&etcd).await;
    etcd.ctl(&["user", "delete", "flannel"]).unwrap();
    etcd.restart().unwrap();
    node.turns_red("authentication failed").await;
    etcd.ctl(&["user", "add", "flannel:hush-hush"]).unwrap();
    etcd.ctl(&["user", "grant-role", "flannel", "all"]).unwrap();
    node.is_well(&etcd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_while_we_run() {
    let (used, fresh) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (old, new) =
        (TlsFiles::create(used.path(), &[]).unwrap(), TlsFiles::create(fresh.path(), &[]).unwrap());
    let mut etcd =
        Etcd::start(quick(LabOptions { tls: Some(old.clone()), ..LabOptions::default() })).unwrap();
    etcd.put(&format!("{PREFIX}/config"), V4).unwrap();
    let mut options = hasty([etcd.endpoint()]);
    options.tls = EtcdTls {
        ca_file: Some(old.ca.clone()),
        cert_file: Some(old.client_cert.clone()),
        key_file: Some(old.client_key.clone()),
    };
    let mut node = Node::up(options, &etcd).await;
    // Half of a new pair is no reason to lose what works.
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let beside = to.with_extension("new");
        std::fs::copy(from, &beside).unwrap();
        std::fs::rename(beside, to).unwrap();
    };
    copy(&new.client_cert, &old.client_cert);
    node.manager.network_config().await.unwrap();
    // All files are of another authority, which nobody trusts that has only the old ones.
    copy(&new.client_key, &old.client_key);
    copy(&new.ca, &old.ca);
    copy(&new.server_cert, &old.server_cert);
    copy(&new.server_key, &old.server_key);
    etcd.restart().unwrap();
    node.is_well(&etcd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_slow() {
    let etcd = start(V4);
    let proxy = Proxy::to(etcd.endpoint()).await;
    let mut node = Node::up(hasty([&proxy.url]), &etcd).await;
    // Slow, but in time.
    proxy.delay(Duration::from_millis(150));
    node.manager.network_config().await.unwrap();
    node.is_well(&etcd).await;
    // Later than anybody waits.
    proxy.delay(Duration::from_secs(2));
    node.manager.network_config().await.unwrap_err();
    node.turns_red("").await;
    proxy.delay(Duration::ZERO);
    node.is_well(&etcd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_is_full() {
    let etcd = start(V4);
    let mut options = hasty([etcd.endpoint()]);
    (options.ttl, options.renew_margin) = (Duration::from_secs(6), Duration::from_secs(4));
    let mut node = Node::up(options.clone(), &etcd).await;
    let before = records(&etcd);
    // As the server does by itself when its quota is used up.
    let client = etcd_client::Client::connect([etcd.endpoint()], None).await.unwrap();
    let (activate, full) = (etcd_client::AlarmAction::Activate, etcd_client::AlarmType::Nospace);
    client.maintenance_client().alarm(activate, full, None).await.unwrap();
    // Reads go on, and so does the lease: it outlives its time.
    let manager = EtcdSubnetManager::new(options).unwrap();
    let error = manager.acquire_lease(&attrs(2)).await.unwrap_err();
    assert!(error.is_transient() && chain(&error).contains("alarm disarm"), "{}", chain(&error));
    assert!(manager.status().borrow().connected, "it answers");
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(records(&etcd), before);
    assert!(node.status().connected && node.status().lease_unkept.is_none());
    // A lease that is lost can't be put back, and that is said.
    etcd.del(&path(node.lease.key)).unwrap();
    node.follow(|node| node.status().lease_unkept.is_some()).await;
    let status = node.status();
    assert!(status.connected && status.lease_unkept.unwrap().contains("alarm disarm"));
    etcd.ctl(&["alarm", "disarm"]).unwrap();
    node.follow(|node| node.sees_itself() && node.status().lease_unkept.is_none()).await;
    node.is_well(&etcd).await;
}
