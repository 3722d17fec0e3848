//! What the stores of this workspace share, for whoever writes another one.
//!
//! - [`Health`] keeps and publishes the [`StoreStatus`](super::StoreStatus), and logs outages once.
//! - [`Backoff`] says how long to wait after a failure, [`renew_after`] when a lease is to be renewed.
//! - [`is_ours`] tells whether the record under the own key still is this node's; [`Rivalry`] tells a record that
//!   somebody changed once from one that a second agent keeps writing.
//! - [`Missing`] keeps leases that a restored backup lacks.
//! - [`FileWatch`] tells when a file may be another.
//! - [`repack`] shrinks a map that was filled in order.
//!
//! Which subnet a node takes is decided in [`allocate`](super::allocate), times that go on in suspend come from
//! [`clock`](crate::clock), and [`Lease::decode`](crate::lease::Lease::decode) reads records. What a store has to do is said at
//! [`SubnetManager`](super::SubnetManager), and checked by `flannel_core::testing::store_contract`.

mod file_watch;
mod health;
pub(super) mod inotify;
mod missing;
mod rivalry;
mod timing;

pub use self::file_watch::FileWatch;
pub use self::health::Health;
pub use self::missing::Missing;
pub use self::rivalry::Rivalry;
pub use self::timing::renew_after;
pub use super::identity::is_ours;
pub use crate::backoff::Backoff;
pub use crate::repack::repack;
