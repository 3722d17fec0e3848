//! The store in memory, under test.

use std::sync::Arc;

use async_trait::async_trait;

use super::StoreBed;
use crate::config::{LeaseSource, NetworkConfig};
use crate::lease::{LeaseAttrs, LeaseKey};
use crate::subnet::{Identity, SubnetManager};
use crate::testing::FakeStore;

/// A [`FakeStore`] under test.
#[derive(Clone)]
pub struct FakeStoreBed(FakeStore);

impl FakeStoreBed {
    /// An empty store with a network of IPv4.
    pub fn new() -> Self {
        let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
        Self(FakeStore::new(NetworkConfig::parse(config, LeaseSource::Store).expect("it is a valid config")))
    }
}

impl Default for FakeStoreBed {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl StoreBed for FakeStoreBed {
    async fn open(&self, _: u8, identity: Identity) -> Arc<dyn SubnetManager> {
        Arc::new(self.0.of_node(identity))
    }

    async fn write(&self, key: LeaseKey, attrs: &LeaseAttrs) {
        self.0.put(&key.to_string(), &attrs.to_json());
    }

    async fn spoil(&self, key: LeaseKey) {
        self.0.spoil(key);
    }

    async fn delete(&self, key: LeaseKey) {
        self.0.remove(&key.to_string());
    }

    fn leases_end(&self) -> bool {
        false
    }
}
