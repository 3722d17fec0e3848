//! Where the agents of a cluster keep their leases. Tests write records as other nodes would, and make servers fail.

mod etcd;
mod folder;

use std::collections::BTreeMap;

pub use self::etcd::EtcdStore;
pub use self::folder::Folder;
use crate::LabError;
use crate::node::Node;

/// A store of leases. Keys are those below `subnets/` in etcd, such as `10.244.41.0-24`, whatever the store makes of them.
pub trait Store: Send + Sync {
    /// The flags that make an agent use it.
    fn flags(&self) -> Vec<String>;

    /// What the agent of a node of this name has in its environment besides.
    fn env(&self, _node: &str) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Writes the network config.
    fn put_config(&self, config: &str) -> Result<(), LabError>;

    /// Writes a record of any bytes as another node would, at once: nobody reads half of it.
    fn put_bytes(&self, key: &str, value: &[u8]) -> Result<(), LabError>;

    /// Writes a record as another node would.
    fn put(&self, key: &str, value: &str) -> Result<(), LabError> {
        self.put_bytes(key, value.as_bytes())
    }

    /// Writes the record of a node of the cluster as a Go agent on it would.
    fn put_of(&self, _node: &Node, key: &str, value: &str) -> Result<(), LabError> {
        self.put(key, value)
    }

    /// Deletes a record.
    fn delete(&self, key: &str) -> Result<(), LabError>;

    /// All records by their keys.
    fn records(&self) -> Result<BTreeMap<String, String>, LabError>;

    /// Everything in the store, byte for byte; where the store has revisions, with those, which show even a write that
    /// changed nothing.
    fn everything(&self) -> Result<Vec<String>, LabError> {
        Ok(self.records()?.into_iter().map(|(key, value)| format!("{key} {value}")).collect())
    }
}

/// A store that can fail as a whole.
pub trait Server: Store {
    /// Stops it where it is: connections stay open and nothing answers.
    fn pause(&self) -> Result<(), LabError>;

    /// Lets it go on.
    fn resume(&self) -> Result<(), LabError>;

    /// Ends it at once.
    fn kill(&self) -> Result<(), LabError>;

    /// Starts it again on its data.
    fn restart(&self) -> Result<(), LabError>;

    /// Makes it forget all revisions before the present one.
    fn compact(&self) -> Result<(), LabError>;
}
