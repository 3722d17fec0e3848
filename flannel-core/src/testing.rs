//! Fakes, contracts and generators for tests of stores, backends and agents. Feature `testing`.

mod backend;
#[doc(hidden)]
pub mod fuzz;
pub mod hostile;
mod kernel;
mod netns;
pub mod nic;
mod store;
mod store_contract;
mod strategies;
pub mod waiting;

pub use backend::{BackendSubject, backend_contract};
pub use kernel::FakeKernel;
pub use netns::{Footprint, netns_contract};
pub use store::FakeStore;
pub use store_contract::{FakeStoreBed, StoreBed, node_attrs, store_contract};
pub use strategies::{dataplane, object};
