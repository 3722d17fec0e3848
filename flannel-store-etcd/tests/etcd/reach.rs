//! Reaching the store: endpoints, TLS, logins, and what the operator reads when it fails.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use flannel_core::error::chain;
use flannel_core::lease::LeaseUpdate;
use flannel_core::subnet::{SubnetError, SubnetManager};
use flannel_lab::etcd::{Etcd, EtcdOptions as LabOptions, TlsFiles, free_port};
use flannel_store_etcd::{EtcdOptions, EtcdSubnetManager, EtcdTls};

use crate::common::*;

async fn refusal(options: EtcdOptions) -> String {
    let error = match EtcdSubnetManager::new(options) {
        Ok(manager) => manager.network_config().await.unwrap_err(),
        Err(error) => error,
    };
    chain(&error)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_dead_endpoint_of_two_does_not_matter() {
    let etcd = start(V4);
    let dead = format!("http://127.0.0.1:{}", free_port().unwrap());
    for endpoints in [[dead.as_str(), etcd.endpoint()], [etcd.endpoint(), dead.as_str()]] {
        let manager = EtcdSubnetManager::new(EtcdOptions::new(endpoints)).unwrap();
        for _ in 0..20 {
            manager.network_config().await.unwrap();
        }
        let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
        let held = renew(&manager, &lease);
        let mut watch = manager.watch_leases();
        assert!(matches!(next(&mut watch).await, LeaseUpdate::Snapshot { .. }));
        etcd.del(&path(lease.key)).unwrap();
        assert!(matches!(next(&mut watch).await, LeaseUpdate::Removed(_)));
        assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(_)));
        assert!(manager.status().borrow().connected);
        held.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_endpoint_of_two_only_delays() {
    let (etcd, hanging) = (start(V4), start(V4));
    hanging.pause().unwrap();
    let mut options = EtcdOptions::new([hanging.endpoint(), etcd.endpoint()]);
    options.timeouts.request = Duration::from_secs(1);
    let manager = EtcdSubnetManager::new(options).unwrap();
    let start = Instant::now();
    manager.network_config().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let again = Instant::now();
    manager.network_config().await.unwrap();
    assert!(again.elapsed() < Duration::from_secs(1), "it goes to the one that answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server_is_unavailable_at_once_and_no_config_says_where() {
    let url = format!("http://127.0.0.1:{}", free_port().unwrap());
    let manager = EtcdSubnetManager::new(EtcdOptions::new([&url])).unwrap();
    let error = soon(manager.network_config()).await.unwrap_err();
    assert!(matches!(error, SubnetError::Unavailable { .. }));
    let text = chain(&error);
    assert!(text.contains(&url) && text.contains("refused"), "{text}");
    assert!(!manager.status().borrow().connected);

    let etcd = Etcd::start(quick(LabOptions::default())).unwrap();
    let error = self::manager(&etcd).network_config().await.unwrap_err();
    assert!(
        matches!(&error, SubnetError::NoConfig { place } if place.contains("/coreos.com/network/config"))
    );
    etcd.put("/coreos.com/network/config", r#"{"Network":7}"#).unwrap();
    let error = self::manager(&etcd).network_config().await.unwrap_err();
    assert!(matches!(error, SubnetError::Config { .. }));
}

#[test]
fn bad_options_are_refused_before_the_first_connection() {
    let refused = |options: EtcdOptions| match EtcdSubnetManager::new(options) {
        Err(error @ SubnetError::Refused { .. }) => chain(&error),
        other => panic!("{other:?}"),
    };
    assert!(refused(EtcdOptions::new(Vec::<String>::new())).contains("there is none"));
    assert!(refused(EtcdOptions::new(["unix:///run/etcd.sock"])).contains("unix:///run/etcd.sock"));
    let dir = tempfile::tempdir().unwrap();
    let garbage = dir.path().join("garbage.pem");
    std::fs::write(&garbage, "-----BEGIN NOTHING-----\n").unwrap();
    let with = |tls: EtcdTls| EtcdOptions { tls, ..EtcdOptions::new(["https://127.0.0.1:1"]) };
    for ca_file in [garbage.clone(), dir.path().join("missing.pem")] {
        let text = refused(with(EtcdTls { ca_file: Some(ca_file.clone()), ..EtcdTls::default() }));
        assert!(text.contains(ca_file.to_str().unwrap()), "{text}");
    }
    let text = refused(with(EtcdTls { cert_file: Some(garbage), ..EtcdTls::default() }));
    assert!(text.contains("key file"), "{text}");
}

/// A server with TLS that asks for no client certificate.
fn tls_server(files: &TlsFiles) -> (Etcd, String) {
    let port = free_port().unwrap();
    let url = format!("https://127.0.0.1:{port}");
    let file = |flag: &str, path: &PathBuf| format!("--{flag}={}", path.display());
    let args = vec![
        file("cert-file", &files.server_cert),
        file("key-file", &files.server_key),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
    ];
    let etcd =
        Etcd::start(quick(LabOptions { client_port: Some(port), args, ..LabOptions::default() })).unwrap();
    (etcd, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_an_authority_alone() {
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles::create(dir.path(), &[]).unwrap();
    let (_etcd, url) = tls_server(&files);
    let mut options = EtcdOptions::new([&url]);
    options.tls.ca_file = Some(files.ca.clone());
    let manager = EtcdSubnetManager::new(options.clone()).unwrap();
    assert!(matches!(manager.network_config().await, Err(SubnetError::NoConfig { .. })));

    let other = tempfile::tempdir().unwrap();
    options.tls.ca_file = Some(TlsFiles::create(other.path(), &[]).unwrap().ca);
    let text = refusal(options.clone()).await;
    assert!(text.contains("certificate") && text.contains(&url), "{text}");
    // The roots of the system don't know it, either.
    options.tls.ca_file = None;
    let text = refusal(options).await;
    assert!(text.contains("certificate"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_a_client_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles::create(dir.path(), &[]).unwrap();
    let etcd = Etcd::start(quick(LabOptions { tls: Some(files.clone()), ..LabOptions::default() })).unwrap();
    etcd.put(&format!("{PREFIX}/config"), V4).unwrap();
    let mut options = options(&etcd);
    options.tls = EtcdTls {
        ca_file: Some(files.ca.clone()),
        cert_file: Some(files.client_cert.clone()),
        key_file: Some(files.client_key.clone()),
    };
    let manager = EtcdSubnetManager::new(options.clone()).unwrap();
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let mut watch = manager.watch_leases();
    let update = next(&mut watch).await;
    assert_eq!(update, LeaseUpdate::Snapshot { leases: vec![lease], unreadable: vec![].into() });

    (options.tls.cert_file, options.tls.key_file) = (None, None);
    let text = refusal(options).await;
    assert!(text.contains("client certificate"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn user_and_password() {
    let mut etcd = start(V4);
    etcd.enable_auth("flannel", "hush-hush").unwrap();
    let mut options = options(&etcd);
    options.username = Some("flannel".to_owned());
    options.password = Some("hush-hush".into());
    let manager = EtcdSubnetManager::new(options.clone()).unwrap();
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let held = renew(&manager, &lease);
    let mut watch = manager.watch_leases();
    next(&mut watch).await;
    let mut alone = EtcdSubnetManager::new(options.clone()).unwrap().watch_leases();
    next(&mut alone).await;
    // A restart forgets the tokens.
    etcd.restart().unwrap();
    etcd.del(&path(lease.key)).unwrap();
    assert!(matches!(next(&mut watch).await, LeaseUpdate::Removed(_)));
    assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(_)));
    assert!(matches!(next(&mut alone).await, LeaseUpdate::Removed(_)));
    held.abort();

    options.password = Some("loud".into());
    assert!(!format!("{:?}", EtcdSubnetManager::new(options.clone())).contains("loud"));
    let error = EtcdSubnetManager::new(options.clone()).unwrap().network_config().await.unwrap_err();
    let text = chain(&error);
    assert!(matches!(error, SubnetError::Refused { .. }), "{text}");
    assert!(!text.contains("loud") && text.contains("password"), "{text}");
    options.username = None;
    let error = EtcdSubnetManager::new(options).unwrap().network_config().await.unwrap_err();
    assert!(matches!(error, SubnetError::Refused { .. }), "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_on_the_prefix_are_enough_and_no_rights_are_named() {
    let mut etcd = start(V4);
    etcd.enable_auth("flannel", "hush-hush").unwrap();
    let rights = format!("{PREFIX}/");
    for command in [
        &["user", "add", "small:hush"][..],
        &["user", "add", "none:hush"],
        &["role", "add", "small"],
        &["role", "grant-permission", "small", "readwrite", "--prefix", &rights],
        &["user", "grant-role", "small", "small"],
    ] {
        etcd.ctl(command).unwrap();
    }
    let mut options = options(&etcd);
    (options.username, options.password) = (Some("small".to_owned()), Some("hush".into()));
    let manager = EtcdSubnetManager::new(options.clone()).unwrap();
    let lease = manager.acquire_lease(&attrs(1)).await.unwrap();
    let held = renew(&manager, &lease);
    let mut watch = manager.watch_leases();
    next(&mut watch).await;
    etcd.del(&path(lease.key)).unwrap();
    assert!(matches!(next(&mut watch).await, LeaseUpdate::Removed(_)));
    assert!(matches!(next(&mut watch).await, LeaseUpdate::Put(_)));
    held.abort();
    options.username = Some("none".to_owned());
    let manager = EtcdSubnetManager::new(options).unwrap();
    let error = manager.network_config().await.unwrap_err();
    assert!(matches!(error, SubnetError::Refused { .. }), "{error:?}");
    assert!(chain(&error).contains("permission denied"), "{}", chain(&error));
    assert!(!manager.status().borrow().connected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_for_a_server_without_users_does_no_harm() {
    let etcd = start(V4);
    let mut options = options(&etcd);
    (options.username, options.password) = (Some("root".to_owned()), Some("hush".into()));
    EtcdSubnetManager::new(options).unwrap().network_config().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_join_with_single_slashes() {
    let etcd = Etcd::start(quick(LabOptions::default())).unwrap();
    etcd.put("my/net(/config", V4).unwrap();
    let mut options = options(&etcd);
    options.prefix = "my//net(/".to_owned();
    let lease = EtcdSubnetManager::new(options).unwrap().acquire_lease(&attrs(1)).await.unwrap();
    assert!(etcd.get(&format!("my/net(/subnets/{lease}")).unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_member_says_what_it_is() {
    let etcd = start(V4);
    let dead = format!("http://127.0.0.1:{}", free_port().unwrap());
    let manager = EtcdSubnetManager::new(EtcdOptions::new([etcd.endpoint(), &dead])).unwrap();
    let seen = manager.examine().await;
    let [alive, gone] = &seen.servers[..] else { panic!("{seen:?}") };
    let answer = alive.answer.as_ref().unwrap();
    assert!(answer.version.starts_with("3."), "{answer:?}");
    assert!(
        answer.took > Duration::ZERO && answer.clock.unwrap().size() < Duration::from_secs(60),
        "{answer:?}"
    );
    let why = gone.answer.as_ref().unwrap_err();
    assert!(why.contains(&dead) && why.contains("refused"), "{why}");
}
