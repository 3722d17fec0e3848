//! extension and alloc backends: an operator's own commands for peers, or leases alone.
//!
//! # extension
//! Commands of the network config are run: one before this node has its lease, whose output the lease publishes; one after
//! that; and for each other node one when it joins and one when it leaves. What travels how is up to them.
//!
//! - **No shell.** A command is split into words once, when the config is read, and variables are replaced inside their words
//!   afterwards. So no value ever becomes code, or another argument. What another node publishes reaches a command only by its
//!   standard input.
//! - **Held state.** A command that fails is tried again with growing delays, the status names its peer and has the last lines
//!   that it printed, and it delays no other. After a restart the commands for all nodes are run again, as Go flannel does,
//!   so they must be idempotent (`ip route replace`, not `add`). Nodes that left meanwhile get their command to be removed,
//!   once the store has listed all nodes, never before.
//! - **Bounded.** Eight commands run at once, one for each node; each has a time limit, after which its whole process group is
//!   killed, as it is when the agent ends. Of its output some kilobytes are kept.
//! - Commands run in the network namespace of the agent, with the environment that [`ExtensionBackend::new`] was given.
//!
//! # alloc
//! [`AllocBackend`] acquires a lease. Something else routes to each node's subnet.

mod alloc;
mod command;
mod config;
mod driver;
mod extension;
mod node;
mod table;
#[cfg(test)]
mod tests;
mod values;
mod words;

pub use alloc::AllocBackend;
pub use config::ExtensionConfig;
pub use extension::ExtensionBackend;
