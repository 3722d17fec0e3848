//! Masquerading and forwarding of pod traffic: firewall rules, kept as desired like the rest of the kernel's state.
//!
//! [`rules`] has the desired rules as values. A [`RuleManager`] reads the kernel's rules, plans the smallest change and
//! makes it in one transaction. [`gate`] keeps strangers out of tunnels, by netlink.

mod choose;
mod edit;
mod error;
mod event;
pub mod gate;
pub mod iptables;
mod manager;
pub mod nft;
pub(crate) mod obstacles;
mod program;
mod reconcile;
pub mod rules;

pub use choose::{ManagerChoice, Managers};
pub use error::FirewallError;
pub use event::{FirewallEvent, FirewallEventSender, FirewallEvents};
pub use manager::{Plan, RuleManager, Step, Work};
pub use obstacles::{Cuts, Obstacle, Realm, obstacles};
pub(crate) use reconcile::converge;
pub use reconcile::{Firewall, FirewallInspector, FirewallStatus};
