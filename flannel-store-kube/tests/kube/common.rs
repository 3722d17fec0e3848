//! Servers, managers and nodes for the tests.

use std::time::Duration;

use flannel_core::addr::{Family, PerFamily};
use flannel_core::lease::{BackendData, Lease, LeaseAttrs, LeaseTable, LeaseUpdate};
use flannel_core::subnet::{LeaseStream, SubnetManager};
pub(crate) use flannel_core::testing::waiting::{next, soon, until};
use flannel_lab::kube::fake::{KubeApi, KubeApiOptions, kubelet_node};
use flannel_store_kube::{KubeAccess, KubeOptions, KubeSubnetManager, KubeTimeouts, NodeIdentity};
use futures::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const V4: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
pub(crate) const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}"#;

/// A server, and the file with the network config.
pub(crate) struct Cluster {
    pub(crate) api: KubeApi,
    pub(crate) folder: TempDir,
}

impl Cluster {
    pub(crate) fn start(config: &str) -> Self {
        Self::with(config, KubeApiOptions::default())
    }

    pub(crate) fn with(config: &str, options: KubeApiOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let api = KubeApi::start(options).unwrap();
        let cluster = Self { api, folder };
        cluster.write_config(config);
        cluster
    }

    pub(crate) fn write_config(&self, config: &str) {
        std::fs::write(self.folder.path().join("net-conf.json"), config).unwrap();
    }

    /// Creates node `n<number>` as a kubelet and a controller manager do.
    pub(crate) fn join(&self, number: u8) {
        self.api.put_node(kubelet_node(&name(number), &[&cidr(number), &cidr_v6(number)], 3000));
    }

    /// The same, with what an agent wrote.
    pub(crate) fn join_published(&self, number: u8) {
        self.join(number);
        self.annotate(number, &published(number));
    }

    pub(crate) fn annotate(&self, number: u8, annotations: &[(&str, Option<String>)]) {
        let edited = self.api.edit_node(&name(number), |node| {
            let all = node["metadata"]["annotations"].as_object_mut().unwrap();
            for (suffix, value) in annotations {
                let full = format!("flannel.alpha.coreos.com/{suffix}");
                match value {
                    Some(value) => drop(all.insert(full, json!(value))),
                    None => drop(all.remove(&full)),
                }
            }
        });
        assert!(edited, "n{number} is there");
    }

    pub(crate) fn options(&self, number: u8) -> KubeOptions {
        let node = NodeIdentity::Name(name(number));
        let timeouts = KubeTimeouts {
            connect: Duration::from_secs(2),
            request: Duration::from_secs(2),
            page: Duration::from_secs(4),
            silence: Duration::from_secs(2),
            first_word: Duration::from_secs(1),
        };
        let net_config = self.folder.path().join("net-conf.json");
        KubeOptions { net_config, timeouts, ..KubeOptions::new(KubeAccess::Url(self.api.url().into()), node) }
    }

    pub(crate) fn manager(&self, number: u8) -> KubeSubnetManager {
        KubeSubnetManager::new(self.options(number)).unwrap()
    }

    /// Our annotations of a node, without the prefix.
    pub(crate) fn annotations(&self, number: u8) -> Vec<(String, String)> {
        let node = self.api.node(&name(number)).unwrap();
        let all = node["metadata"]["annotations"].as_object().unwrap();
        let ours = all.iter().filter_map(|(name, value)| {
            Some((name.strip_prefix("flannel.alpha.coreos.com/")?.to_owned(), value.as_str()?.to_owned()))
        });
        ours.collect()
    }

    pub(crate) fn condition(&self, number: u8) -> Option<Value> {
        let node = self.api.node(&name(number)).unwrap();
        let all = node["status"]["conditions"].as_array().unwrap().clone();
        all.into_iter().find(|condition| condition["type"] == "NetworkUnavailable")
    }
}

pub(crate) fn name(number: u8) -> String {
    format!("n{number}")
}

pub(crate) fn cidr(number: u8) -> String {
    format!("10.244.{number}.0/24")
}

pub(crate) fn cidr_v6(number: u8) -> String {
    format!("fd00:244:0:{number:x}::/64")
}

pub(crate) fn key(number: u8) -> String {
    format!("10.244.{number}.0-24")
}

pub(crate) fn attrs(number: u8) -> LeaseAttrs {
    let mac = format!("0a:00:00:00:00:{number:02x}");
    LeaseAttrs {
        public_ips: PerFamily { v4: Some([198, 18, 0, number].into()), v6: None },
        backend_type: "vxlan".to_owned(),
        backend_data: PerFamily {
            v4: BackendData::encode(&json!({"VNI": 1, "VtepMAC": mac})).ok(),
            v6: None,
        },
        ..LeaseAttrs::default()
    }
}

pub(crate) fn dual_attrs(number: u8) -> LeaseAttrs {
    let mut attrs = attrs(number);
    attrs.public_ips.v6 = Some([0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number)].into());
    attrs.backend_data.v6 =
        BackendData::encode(&json!({"VNI": 1, "VtepMAC": format!("0a:00:00:00:06:{number:02x}")})).ok();
    attrs
}

/// What an agent of upstream writes for [`dual_attrs`] to a node.
pub(crate) fn published(number: u8) -> Vec<(&'static str, Option<String>)> {
    let attrs = dual_attrs(number);
    let data = |family| attrs.backend_data.get(family).map(|data| data.as_str().to_owned());
    let ip = |family| attrs.public_ips.get(family).map(ToString::to_string);
    vec![
        ("kube-subnet-manager", Some("true".to_owned())),
        ("backend-type", Some("vxlan".to_owned())),
        ("backend-data", data(Family::V4)),
        ("public-ip", ip(Family::V4)),
        ("backend-v6-data", data(Family::V6)),
        ("public-ipv6", ip(Family::V6)),
    ]
}

/// Leases as `key address`, in order.
pub(crate) fn texts<'a>(leases: impl IntoIterator<Item = &'a Lease>) -> Vec<String> {
    let text = |lease: &Lease| {
        let ips: Vec<String> = lease.attrs.public_ips.iter().map(|(_, ip)| ip.to_string()).collect();
        format!("{} {}", lease.key, ips.join(","))
    };
    let mut all: Vec<String> = leases.into_iter().map(text).collect();
    all.sort();
    all
}

/// Reads a snapshot.
pub(crate) async fn snapshot(watch: &mut LeaseStream) -> (Vec<String>, Vec<String>) {
    match next(watch).await {
        LeaseUpdate::Snapshot { leases, unreadable } => {
            (texts(&leases), unreadable.named().map(|bad| bad.key).collect())
        }
        other => panic!("no snapshot: {other:?}"),
    }
}

/// What a watch leads to, followed in the background.
pub(crate) struct Followed {
    pub(crate) table: std::sync::Arc<std::sync::Mutex<LeaseTable>>,
    /// The keys that went, in their order.
    pub(crate) removed: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Followed {
    pub(crate) fn new(manager: &KubeSubnetManager) -> Self {
        let mut watch = manager.watch_leases();
        let table = std::sync::Arc::<std::sync::Mutex<LeaseTable>>::default();
        let removed = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
        let (into, gone) = (table.clone(), removed.clone());
        let task = tokio::spawn(async move {
            while let Some(update) = watch.next().await {
                for change in into.lock().unwrap().apply(update.unwrap()) {
                    if change.after.is_none() {
                        gone.lock().unwrap().push(change.key.to_string());
                    }
                }
            }
        });
        Self { table, removed, task }
    }

    pub(crate) fn leases(&self) -> Vec<String> {
        texts(self.table.lock().unwrap().iter().map(|lease| &lease.lease))
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}
