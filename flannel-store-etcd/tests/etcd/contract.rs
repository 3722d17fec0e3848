//! The contract of all stores.

use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::lease::{LeaseAttrs, LeaseKey};
use flannel_core::subnet::{Identity, SubnetManager};
use flannel_core::testing::{StoreBed, store_contract};
use flannel_lab::etcd::Etcd;
use flannel_store_etcd::{EtcdOptions, EtcdSubnetManager};

use crate::common::*;

struct Bed(Etcd);

impl Bed {
    /// Puts a value under a key that is there, on the etcd lease that it has.
    fn replace(&self, key: LeaseKey, value: &str) {
        let name = path(key);
        let there = records(&self.0).into_iter().find(|record| record.key == name);
        let lease = there.unwrap_or_else(|| panic!("{name} is there")).lease;
        self.0.put_on_lease(&name, value, lease).unwrap();
    }
}

#[async_trait]
impl StoreBed for Bed {
    async fn open(&self, _: u8, identity: Identity) -> Arc<dyn SubnetManager> {
        let options = EtcdOptions { identity, ..options(&self.0) };
        Arc::new(EtcdSubnetManager::new(options).unwrap())
    }

    async fn write(&self, key: LeaseKey, attrs: &LeaseAttrs) {
        self.replace(key, &attrs.to_json());
    }

    async fn spoil(&self, key: LeaseKey) {
        self.replace(key, "{");
    }

    async fn delete(&self, key: LeaseKey) {
        self.0.del(&path(key)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_in_etcd_keeps_the_contract() {
    store_contract(&Bed(start(V4))).await;
}
