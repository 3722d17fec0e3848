//! The stores of this crate keep the contract.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::config::{LeaseSource, NetworkConfig};
use crate::remembering::{Memory, Remembering};
use crate::state_file::State;
use crate::subnet::local::{LocalOptions, LocalSubnetManager};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// A store in a folder.
struct Local(TempDir);

impl Local {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config"), CONFIG).unwrap();
        Self(folder)
    }

    fn path(&self, key: LeaseKey) -> PathBuf {
        self.0.path().join("subnets").join(key.to_string())
    }

    /// Replaces a file that is there, as an editor does.
    fn replace(&self, path: &Path, text: &str) {
        assert!(path.exists(), "{} is there", path.display());
        let draft = self.0.path().join("draft");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, path).unwrap();
    }
}

#[async_trait]
impl StoreBed for Local {
    async fn open(&self, _: u8, identity: Identity) -> Arc<dyn SubnetManager> {
        Arc::new(LocalSubnetManager::new(LocalOptions { identity, ..LocalOptions::new(self.0.path()) }))
    }

    async fn write(&self, key: LeaseKey, attrs: &LeaseAttrs) {
        self.replace(&self.path(key), &attrs.to_json());
    }

    async fn spoil(&self, key: LeaseKey) {
        self.replace(&self.path(key), "{");
    }

    async fn delete(&self, key: LeaseKey) {
        fs::remove_file(self.path(key)).unwrap();
    }

    fn keeps_created(&self) -> bool {
        false
    }
}

/// A store in a folder, with what an earlier run stored in front of it.
struct Remembered(Local);

#[async_trait]
impl StoreBed for Remembered {
    async fn open(&self, node: u8, identity: Identity) -> Arc<dyn SubnetManager> {
        let store = self.0.open(node, identity).await;
        let own = Lease { key: "10.5.200.0-24".parse().unwrap(), attrs: node_attrs(node), created: 1 };
        let state = State {
            store: store.place(),
            backend: "vxlan".to_owned(),
            config: Some(NetworkConfig::parse(CONFIG, LeaseSource::Store).unwrap()),
            own: Some(own),
            ..State::default()
        };
        let memory = Memory::of(&state, &store.place()).unwrap();
        Arc::new(Remembering::new(store, Some(memory)))
    }

    async fn write(&self, key: LeaseKey, attrs: &LeaseAttrs) {
        self.0.write(key, attrs).await;
    }

    async fn spoil(&self, key: LeaseKey) {
        self.0.spoil(key).await;
    }

    async fn delete(&self, key: LeaseKey) {
        self.0.delete(key).await;
    }

    fn keeps_created(&self) -> bool {
        self.0.keeps_created()
    }
}

#[tokio::test]
async fn a_store_in_a_folder_keeps_the_contract() {
    store_contract(&Local::new()).await;
}

#[tokio::test]
async fn a_store_with_a_memory_in_front_keeps_the_contract() {
    store_contract(&Remembered(Local::new())).await;
}

#[tokio::test(start_paused = true)]
async fn the_store_in_memory_keeps_the_contract() {
    store_contract(&FakeStoreBed::new()).await;
}
