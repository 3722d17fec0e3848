//! Masquerading and forwarding of pod traffic: firewall rules, held like the rest of the kernel's state.
//!
//! [`rules`] says which rules there should be, as values. A [`RuleManager`] reads what the kernel has, plans
//! the smallest change and makes it in one transaction.

mod edit;
pub mod iptables;
mod manager;
pub mod rules;

pub use manager::{FirewallError, Plan, RuleManager, Step};
