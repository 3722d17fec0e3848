//! The contract of all stores.

use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::addr::Family;
use flannel_core::lease::{Lease, LeaseAttrs, LeaseKey, Reception};
use flannel_core::subnet::{Identity, SubnetManager};
use flannel_core::testing::{StoreBed, store_contract};
use flannel_lab::kube::fake::KubeApiOptions;
use serde_json::json;

use crate::common::*;
use crate::metadata::ALL;

/// Node n<number> has 10.244.<number>.0/24, or the next free one once that was given away.
struct Bed(Cluster);

impl Bed {
    fn node_of(&self, key: LeaseKey) -> u8 {
        let cidr = key.subnet(Family::V4).unwrap().to_string();
        let has = |number: &u8| {
            self.0.api.node(&name(*number)).is_some_and(|node| node["spec"]["podCIDR"] == cidr.as_str())
        };
        (1..=199).find(has).unwrap_or_else(|| panic!("a node has {cidr}"))
    }

    fn annotate(&self, key: LeaseKey, attrs: Option<&LeaseAttrs>) {
        let data = attrs.map(|attrs| attrs.backend_data.get(Family::V4).unwrap().as_str().to_owned());
        let ip = attrs.map(|attrs| attrs.public_ips.v4.unwrap().to_string());
        let receives = attrs.map(|attrs| &attrs.receives).filter(|receives| !receives.is_empty());
        self.0.annotate(
            self.node_of(key),
            &[
                ("kube-subnet-manager", attrs.map(|_| "true".to_owned())),
                ("backend-type", attrs.map(|attrs| attrs.backend_type.clone())),
                ("backend-data", data),
                ("public-ip", ip),
                ("receives", receives.map(|receives| Reception::write_list(receives))),
            ],
        );
    }
}

#[async_trait]
impl StoreBed for Bed {
    async fn open(&self, node: u8, _: Identity) -> Arc<dyn SubnetManager> {
        if self.0.api.node(&name(node)).is_none() {
            self.0.join(node);
        }
        Arc::new(self.0.manager(node))
    }

    async fn write(&self, key: LeaseKey, attrs: &LeaseAttrs) {
        self.annotate(key, Some(attrs));
    }

    async fn spoil(&self, key: LeaseKey) {
        self.0.annotate(self.node_of(key), &[("public-ip", Some("nonsense".to_owned()))]);
    }

    async fn delete(&self, key: LeaseKey) {
        self.annotate(key, None);
    }

    /// The cluster lost the node, and gave its subnet to another one before it registered again.
    async fn give_away(&self, lease: &Lease, attrs: &LeaseAttrs) {
        let (node, other) = (self.node_of(lease.key), 150);
        let cidrs =
            |number: u8| json!({"podCIDR": cidr(number), "podCIDRs": [cidr(number), cidr_v6(number)]});
        let there = self.0.api.node(&name(node)).unwrap();
        assert!(self.0.api.delete_node(&name(node)));
        let mut next = there.clone();
        next["spec"] = cidrs(other);
        self.0.api.put_node(next);
        self.0.join(other);
        self.0.api.edit_node(&name(other), |object| object["spec"] = there["spec"].clone());
        self.annotate(lease.key, Some(attrs));
    }

    fn chooses_subnets(&self) -> bool {
        false
    }

    fn leases_end(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn the_store_in_kubernetes_keeps_the_contract() {
    for metadata_only in ALL {
        let options = KubeApiOptions { metadata_only, ..KubeApiOptions::default() };
        store_contract(&Bed(Cluster::with(V4, options))).await;
    }
}
