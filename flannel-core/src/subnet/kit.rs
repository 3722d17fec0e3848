//! Building blocks that the stores of this workspace share, for authors of other stores.
//!
//! - [`Health`] keeps and publishes the [`StoreStatus`](super::StoreStatus), and logs outages once.
//! - [`Backoff`] says how long to wait after a failure, [`renew_after`] when to renew a lease, and
//!   [`grantable`] which lifetimes it can have.
//! - [`is_ours`] says whether the record under the own key is still this node's; [`Rivalry`] distinguishes a record
//!   that somebody changed once from one that a second agent keeps writing.
//! - [`Missing`] keeps leases that a restored backup lacks.
//! - [`FileWatch`] notices that a file may have changed; [`follow_config`] follows the network config, in a [`ConfigFile`] or
//!   wherever a [`ConfigSource`] reads it.
//! - [`repack`] shrinks a map that was filled in order.
//!
//! [`allocate`](super::allocate) decides which subnet a node gets, [`clock`](crate::clock) has time that counts on in
//! suspend, and [`Lease::decode`](crate::lease::Lease::decode) reads records. The contract of a store is written at
//! [`SubnetManager`](super::SubnetManager), and `flannel_core::testing::store_contract` checks it.

mod config_changes;
mod file_watch;
mod health;
pub(super) mod inotify;
mod missing;
mod rivalry;
mod timing;

pub use self::config_changes::{ConfigFile, ConfigSource, follow_config};
pub use self::file_watch::FileWatch;
pub use self::health::Health;
pub use self::missing::Missing;
pub use self::rivalry::Rivalry;
pub use self::timing::{grantable, renew_after};
pub use super::identity::is_ours;
pub use crate::backoff::Backoff;
pub use crate::repack::repack;
