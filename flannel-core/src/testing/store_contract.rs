//! The contract of [`SubnetManager`] as a test that any store can run.
//!
//! A store implements [`StoreBed`]: how to open its instances, and how somebody else changes its records. Then
//! [`store_contract`] acts as several nodes of a cluster, and panics with the rule that the store breaks:
//!
//! ```
//! # use flannel_core::testing::{FakeStoreBed, store_contract};
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
//! # runtime.block_on(async {
//! store_contract(&FakeStoreBed::new()).await;
//! # });
//! ```

mod fake;
mod observer;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;

use crate::addr::PerFamily;
use crate::lease::{BackendData, Lease, LeaseAttrs, LeaseKey, Reception};
use crate::subnet::{Identity, SubnetManager};

pub use self::fake::FakeStoreBed;

/// A store under test, as its nodes and its operator see it.
///
/// Its network config has IPv4, the backend `vxlan`, and room for a hundred subnets. What the methods do is done once
/// they return, but the stores need not have noticed it.
#[async_trait]
pub trait StoreBed: Send + Sync {
    /// Opens the store as node number `node` (1 to 99) does at its start: a new instance, which knows only `identity`
    /// of its node. A store whose subnets somebody else assigns has one for this node by then.
    async fn open(&self, node: u8, identity: Identity) -> Arc<dyn SubnetManager>;

    /// Changes the value of an existing record, behind the back of its node.
    async fn write(&self, key: LeaseKey, attrs: &LeaseAttrs);

    /// Makes the value of an existing record unreadable.
    async fn spoil(&self, key: LeaseKey);

    /// Deletes a record.
    async fn delete(&self, key: LeaseKey);

    /// Gives the subnet of `lease` to another node, which publishes `attrs` with it.
    async fn give_away(&self, lease: &Lease, attrs: &LeaseAttrs) {
        self.write(lease.key, attrs).await;
    }

    /// Whether the store chooses subnets, and so respects [`SubnetManager::avoid`].
    fn chooses_subnets(&self) -> bool {
        true
    }

    /// Whether leases end unless they are renewed, so that the status has the term of the own one.
    fn leases_end(&self) -> bool {
        true
    }

    /// Whether a record keeps the time of its creation when its value changes. If not, a node that publishes again
    /// counts as the youngest in a conflict.
    fn keeps_created(&self) -> bool {
        true
    }
}

/// What node number `node` publishes: an address of 198.18.0.0/15 and a VTEP MAC.
pub fn node_attrs(node: u8) -> LeaseAttrs {
    attrs_with(node, node)
}

/// Attributes with the address of one node number and the VTEP MAC of another.
fn attrs_with(address: u8, mac: u8) -> LeaseAttrs {
    let data = serde_json::json!({"VNI": 1, "VtepMAC": format!("0a:00:00:00:00:{mac:02x}")});
    LeaseAttrs {
        public_ips: PerFamily { v4: Some([198, 18, 0, address].into()), v6: None },
        backend_type: "vxlan".to_owned(),
        backend_data: PerFamily { v4: BackendData::encode(&data).ok(), v6: None },
        ..LeaseAttrs::default()
    }
}

/// What node number `node` publishes, with a list of further ways by which it receives.
fn receiving(node: u8, list: &str) -> LeaseAttrs {
    LeaseAttrs { receives: Reception::parse_list(list).expect("a JSON list"), ..node_attrs(node) }
}

/// Checks all rules that are written at [`SubnetManager`], one after another in one store. It takes seconds, and runs
/// on paused time if the store does.
///
/// # Panics
///
/// With the rule, if the store breaks one.
pub async fn store_contract(bed: &dyn StoreBed) {
    rules::config_and_status(bed).await;
    rules::a_lease_lies_in_the_network_and_is_seen(bed).await;
    rules::a_restart_changes_nothing(bed).await;
    rules::a_node_keeps_its_subnet_over_another_address(bed).await;
    rules::nodes_share_no_address(bed).await;
    rules::a_subnet_holds_no_underlay_address(bed).await;
    rules::a_watch_tells_every_change(bed).await;
    rules::publishing_changes_the_record_and_nothing_else(bed).await;
    rules::further_ways_to_receive_are_kept(bed).await;
    rules::the_own_record_is_put_back(bed).await;
    rules::a_lease_of_another_node_is_lost(bed).await;
    rules::a_released_lease_is_gone(bed).await;
    rules::a_dropped_future_does_nothing_more(bed).await;
}
