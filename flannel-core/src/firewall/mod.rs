//! Masquerading and forwarding of pod traffic: firewall rules, held like the rest of the kernel's state.
//!
//! [`rules`] says which rules there should be, as values. A [`RuleManager`] reads what the kernel has, plans
//! the smallest change and makes it in one transaction. [`gate`] closes tunnels to strangers, by the kernel's own
//! interface.

mod choose;
mod edit;
pub mod gate;
mod hold;
pub mod iptables;
mod manager;
pub mod nft;
pub(crate) mod obstacles;
pub mod rules;

pub use choose::{ManagerChoice, Managers};
pub use hold::{Firewall, FirewallStatus};
pub use manager::{FirewallError, Plan, RuleManager, Step};
pub use obstacles::{Cuts, Obstacle, Realm};
