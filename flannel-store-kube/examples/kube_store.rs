//! Shows the network config and follows the nodes of a Kubernetes cluster; writes nothing.
//!
//! `cargo run -p flannel-store-kube --example kube_store -- ~/.kube/config NODE net-conf.json` reads a
//! cluster. Without arguments it makes an API server of its own, with three nodes, one of which leaves.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use flannel_core::lease::{LeaseTable, LeaseUpdate};
use flannel_core::subnet::SubnetManager;
use flannel_lab::kube::fake::{KubeApi, KubeApiOptions, kubelet_node};
use flannel_store_kube::{KubeAccess, KubeOptions, KubeSubnetManager, NodeIdentity};
use futures::StreamExt;
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let folder = tempfile::tempdir()?;
    let (options, lab) = match &args[..] {
        [kubeconfig, node, net_config] => {
            let access = KubeAccess::Kubeconfig { file: kubeconfig.into(), server: None };
            let options = KubeOptions::new(access, NodeIdentity::Name(node.clone()));
            (KubeOptions { net_config: net_config.into(), ..options }, None)
        }
        [] => {
            let net_config: PathBuf = folder.path().join("net-conf.json");
            std::fs::write(&net_config, r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#)?;
            let api = lab()?;
            let options =
                KubeOptions::new(KubeAccess::Url(api.url().into()), NodeIdentity::Name("node1".to_owned()));
            (KubeOptions { net_config, ..options }, Some(api))
        }
        _ => return Err("give a kubeconfig, a node's name and a network config, or nothing".into()),
    };
    let store = KubeSubnetManager::new(options)?;
    println!("{:#?}", store.network_config().await?);
    let mut table = LeaseTable::default();
    let mut watch = store.watch_leases();
    while let Some(update) = watch.next().await {
        let update = update?;
        if let LeaseUpdate::Unreadable(bad) = &update {
            println!("{} can't be read: {}", bad.key, bad.reason);
        }
        for change in table.apply(update) {
            match change.after {
                Some(lease) => println!("{} at {:?}", lease.key, lease.attrs.public_ips),
                None => println!("{} is gone", change.key),
            }
        }
        if let Some(api) = &lab {
            // Its last word ends the example.
            if !api.delete_node("node3") {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}

/// An API server with three nodes of a running network.
fn lab() -> Result<KubeApi, Box<dyn Error>> {
    let api = KubeApi::start(KubeApiOptions::default())?;
    for number in 1..=3 {
        let mut node = kubelet_node(&format!("node{number}"), &[&format!("10.244.{number}.0/24")], 3000);
        let mac = format!("0a:00:00:00:00:0{number}");
        for (name, value) in [
            ("kube-subnet-manager", "true".to_owned()),
            ("backend-type", "vxlan".to_owned()),
            ("backend-data", json!({"VNI": 1, "VtepMAC": mac}).to_string()),
            ("public-ip", format!("192.0.2.{number}")),
        ] {
            node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{name}")] = value.into();
        }
        api.put_node(node);
    }
    Ok(api)
}
