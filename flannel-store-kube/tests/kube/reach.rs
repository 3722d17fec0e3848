//! Credentials: TLS, tokens that are rotated, kubeconfigs.

use flannel_core::subnet::{SubnetError, SubnetManager};
use flannel_lab::etcd::TlsFiles;
use flannel_lab::kube::fake::{KubeApiOptions, Login};
use flannel_store_kube::{KubeAccess, KubeOptions, KubeSubnetManager};

use crate::common::*;

fn secured(folder: &std::path::Path) -> (Cluster, TlsFiles) {
    let tls = TlsFiles::create(folder, &[]).unwrap();
    let options = KubeApiOptions {
        tls: Some(tls.clone()),
        tokens: Some(vec!["first".to_owned()]),
        ..KubeApiOptions::default()
    };
    let cluster = Cluster::with(V4, options);
    cluster.join(1);
    (cluster, tls)
}

fn with(cluster: &Cluster, access: KubeAccess) -> KubeSubnetManager {
    KubeSubnetManager::new(KubeOptions { access, ..cluster.options(1) }).unwrap()
}

#[tokio::test]
async fn a_pods_token_may_be_rotated() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, _) = secured(folder.path());
    let account = folder.path().join("serviceaccount");
    cluster.api.write_service_account(&account, "first").unwrap();
    let server = (cluster.api.address().ip().to_string(), cluster.api.address().port());
    let manager = with(&cluster, KubeAccess::InCluster { server, service_account: account.clone() });
    manager.acquire_lease(&attrs(1)).await.unwrap();
    let followed = Followed::new(&manager);
    until(|| followed.leases().len() == 1).await;
    // The new token is there before the old one ends, and is found by the first refusal.
    cluster.api.write_service_account(&account, "second").unwrap();
    cluster.api.set_tokens(Some(vec!["second".to_owned()]));
    cluster.api.disconnect();
    cluster.join_published(2);
    until(|| followed.leases().len() == 2).await;
    assert!(manager.status().borrow().connected);
    let token = cluster.api.requests().last().and_then(|request| request.token.clone());
    assert_eq!(token.as_deref(), Some("second"));
}

#[tokio::test]
async fn a_wrong_token_is_told_and_mended_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, _) = secured(folder.path());
    let account = folder.path().join("serviceaccount");
    cluster.api.write_service_account(&account, "wrong").unwrap();
    let server = (cluster.api.address().ip().to_string(), cluster.api.address().port());
    let manager = with(&cluster, KubeAccess::InCluster { server, service_account: account.clone() });
    let error = manager.acquire_lease(&attrs(1)).await.unwrap_err();
    assert!(error.is_transient());
    let problem = manager.status().borrow().problem.clone();
    assert!(problem.contains("401") && problem.contains("token") && !problem.contains("wrong"), "{problem}");
    cluster.api.write_service_account(&account, "first").unwrap();
    manager.acquire_lease(&attrs(1)).await.unwrap();
    // The folder may also come later than the agent.
    let server = (cluster.api.address().ip().to_string(), cluster.api.address().port());
    let late = with(&cluster, KubeAccess::InCluster { server, service_account: folder.path().join("late") });
    let error = late.acquire_lease(&attrs(1)).await.unwrap_err();
    assert!(error.is_transient() && late.status().borrow().problem.contains("late/token"), "{error}");
    cluster.api.write_service_account(&folder.path().join("late"), "first").unwrap();
    late.acquire_lease(&attrs(1)).await.unwrap();
}

#[tokio::test]
async fn kubeconfigs_of_all_kinds_work() {
    let folder = tempfile::tempdir().unwrap();
    let (cluster, _) = secured(folder.path());
    let (file, token) = (folder.path().join("kubeconfig"), folder.path().join("token"));
    std::fs::write(&token, "first").unwrap();
    for login in [Login::Token("first".into()), Login::TokenFile(token), Login::Certificate] {
        cluster.api.write_kubeconfig(&file, &login).unwrap();
        let manager = with(&cluster, KubeAccess::Kubeconfig { file: file.clone(), server: None });
        manager.acquire_lease(&attrs(1)).await.unwrap_or_else(|error| panic!("{login:?}: {error}"));
        assert_eq!(manager.hosts(), ["127.0.0.1"], "what no network of pods may cover");
    }
    // Another server than the file says.
    let server = Some("https://127.0.0.1:1".into());
    let elsewhere = with(&cluster, KubeAccess::Kubeconfig { file: file.clone(), server });
    assert!(elsewhere.acquire_lease(&attrs(1)).await.unwrap_err().is_transient());
    assert!(elsewhere.status().borrow().problem.contains("https://127.0.0.1:1"));

    let refused = |access| match KubeSubnetManager::new(KubeOptions { access, ..cluster.options(1) }) {
        Err(SubnetError::Refused { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    std::fs::write(&file, "{").unwrap();
    assert!(refused(KubeAccess::Kubeconfig { file: file.clone(), server: None }).contains("kubeconfig"));
    let missing = KubeAccess::Kubeconfig { file: folder.path().join("none"), server: None };
    assert!(refused(missing).contains("none"));
    assert!(refused(KubeAccess::Url("nonsense".into())).contains("URL"));
}

#[tokio::test]
async fn another_authoritys_server_is_not_believed() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (cluster, _) = secured(ours.path());
    let file = ours.path().join("kubeconfig");
    cluster.api.write_kubeconfig(&file, &Login::Token("first".into())).unwrap();
    cluster.api.set_tls(&TlsFiles::create(theirs.path(), &[]).unwrap()).unwrap();
    let manager = with(&cluster, KubeAccess::Kubeconfig { file, server: None });
    let error = manager.acquire_lease(&attrs(1)).await.unwrap_err();
    assert!(error.is_transient());
    assert!(cluster.api.requests().is_empty(), "the token went nowhere");
    let problem = manager.status().borrow().problem.clone();
    assert!(problem.to_lowercase().contains("certificate"), "{problem}");
}

#[tokio::test]
async fn the_server_says_what_it_is_and_what_we_may_do() {
    use flannel_core::subnet::{NodeRecord, RightAnswer};
    use flannel_lab::kube::fake::Faults;

    let cluster = Cluster::start(V4);
    cluster.join_published(1);
    let manager = cluster.manager(1);
    let seen = manager.examine().await;
    let [server] = &seen.servers[..] else { panic!("{seen:?}") };
    let answer = server.answer.as_ref().unwrap();
    assert_eq!(answer.version, "v1.33.0");
    assert!(answer.clock.unwrap().size() < std::time::Duration::from_secs(60), "{answer:?}");
    let NodeRecord::Read(node) = &seen.node else { panic!("{:?}", seen.node) };
    assert_eq!((node.name.as_str(), node.subnets[0].as_str()), ("n1", "10.244.1.0/24"));
    assert!(node.published.is_some());
    assert!(seen.rights.iter().all(|right| right.answer == RightAnswer::Allowed), "{:?}", seen.rights);

    cluster.api.set_faults(Faults { deny: vec!["watch nodes".to_owned()], ..Faults::default() });
    let seen = manager.examine().await;
    let denied = seen.rights.iter().filter(|right| matches!(right.answer, RightAnswer::Denied(_)));
    assert_eq!(denied.map(|right| right.what.as_str()).collect::<Vec<_>>(), ["watch nodes"]);

    // A server that is broken says nothing, and that is in the answer.
    cluster.api.set_faults(Faults { fail: Some(503), ..Faults::default() });
    let seen = manager.examine().await;
    assert!(seen.servers[0].answer.as_ref().unwrap_err().contains("503"));
    assert!(matches!(&seen.node, NodeRecord::Unread(why) if why.contains("503")), "{:?}", seen.node);
    assert!(seen.rights.iter().all(|right| matches!(right.answer, RightAnswer::Unknown(_))));
}
