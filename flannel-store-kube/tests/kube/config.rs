//! The network config in a file, as a `ConfigMap` is mounted.

use std::os::unix::fs::symlink;

use flannel_core::subnet::{SubnetError, SubnetManager};
use futures::StreamExt;

use crate::common::*;

fn config(mtu: u16) -> String {
    format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"vxlan","MTU":{mtu}}}}}"#)
}

#[tokio::test]
async fn is_followed_through_the_swap_of_a_config_map() {
    let cluster = Cluster::start(V4);
    cluster.join(1);
    // As the kubelet mounts it: the file is a link through `..data` to a folder, and `..data` is swapped.
    let root = cluster.folder.path();
    std::fs::remove_file(root.join("net-conf.json")).unwrap();
    let swap = |number: u16| {
        let folder = root.join(format!("..{number}"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("net-conf.json"), config(1000 + number)).unwrap();
        symlink(format!("..{number}"), root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    swap(1);
    symlink("..data/net-conf.json", root.join("net-conf.json")).unwrap();
    let manager = cluster.manager(1);
    let first = manager.network_config().await.unwrap();
    // What changed before anybody followed is a change, too.
    swap(2);
    let mut changes = manager.config_changes().unwrap();
    for number in 2..6 {
        if number > 2 {
            swap(number);
        }
        let now = soon(changes.next()).await.unwrap().unwrap();
        assert_ne!(now, first);
        assert_eq!(now.backend.get::<u16>("MTU").unwrap(), Some(1000 + number));
    }
}

#[tokio::test]
async fn what_cannot_be_used_is_told_once_and_a_touch_is_no_change() {
    let cluster = Cluster::start(&config(1400));
    cluster.join(1);
    let manager = cluster.manager(1);
    manager.network_config().await.unwrap();
    let mut changes = manager.config_changes().unwrap();
    let news = |changes: &mut flannel_core::subnet::ConfigStream| {
        futures::future::FutureExt::now_or_never(changes.next())
    };
    assert!(news(&mut changes).is_none());
    cluster.write_config(&format!("  {}  ", config(1400)));
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    assert!(news(&mut changes).is_none());
    cluster.write_config("{");
    let problem = soon(changes.next()).await.unwrap().unwrap_err();
    assert!(matches!(problem, SubnetError::Config { .. }), "{problem}");
    std::fs::remove_file(cluster.folder.path().join("net-conf.json")).unwrap();
    let problem = soon(changes.next()).await.unwrap().unwrap_err();
    assert!(matches!(problem, SubnetError::NoConfig { .. }), "{problem}");
    cluster.write_config(&config(1300));
    let now = soon(changes.next()).await.unwrap().unwrap();
    assert_eq!(now.backend.get::<u16>("MTU").unwrap(), Some(1300));
    let path = cluster.folder.path().join("net-conf.json");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let problem = loop {
        // The file may be seen to be gone first.
        match soon(changes.next()).await.unwrap().unwrap_err() {
            SubnetError::NoConfig { .. } => {}
            problem => break problem.to_string(),
        }
    };
    assert!(problem.contains("net-conf.json"), "{problem}");
}

#[tokio::test]
async fn a_file_alone_is_no_store() {
    let cluster = Cluster::start(V4);
    cluster.join(1);
    let manager = cluster.manager(1);
    assert!(manager.network_config().await.is_ok());
    cluster.api.stop_listening();
    cluster.api.disconnect();
    let away = cluster.manager(1).network_config().await.unwrap_err();
    assert!(matches!(away, SubnetError::Unavailable { .. }), "{away}");
    std::fs::remove_file(cluster.folder.path().join("net-conf.json")).unwrap();
    assert!(matches!(cluster.manager(1).network_config().await.unwrap_err(), SubnetError::NoConfig { .. }));
}

#[tokio::test]
async fn without_the_file_a_watch_waits_with_a_word_and_goes_on_once_it_has_begun() {
    let cluster = Cluster::start(V4);
    cluster.join_published(1);
    let file = cluster.folder.path().join("net-conf.json");
    std::fs::remove_file(&file).unwrap();
    let manager = cluster.manager(1);
    let followed = Followed::new(&manager);
    until(|| manager.status().borrow().problem.contains("net-conf.json")).await;
    cluster.write_config(V4);
    until(|| followed.leases().len() == 1).await;
    std::fs::remove_file(&file).unwrap();
    cluster.api.stop_listening();
    cluster.api.disconnect();
    cluster.join_published(2);
    cluster.api.compact();
    cluster.api.listen_again().unwrap();
    until(|| followed.leases().len() == 2).await;
}
