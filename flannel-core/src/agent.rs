//! The agent: everything that one node of the network does, from reading the network config to stopping.
//!
//! [`Agent::builder`] takes a store; the builder's methods take backends, underlay, firewall rules and files. The agent
//! then runs as a task of the caller's tokio runtime. It waits for what is not there yet (store, config, lease), keeps
//! devices, peers, rules and lease in order, and publishes its state as values: [`AgentStatus`], [`AgentEvent`].
//!
//! The caller need not care which addresses the store wants published, how the lease is renewed while the network runs,
//! how to start without the store, when to write the subnet file, or what to do when the lease is lost.
//!
//! - `builder`, `handle`: the caller's view. `setup`, `node`: the agent's options, and the resulting node.
//! - `life`: what the agent does from start to end, using only the traits of the core.
//! - `memory`, `lock`: what earlier runs left in files, and who may use them now.
//! - `status`, `event`, `log`: its status and events; log lines are made from events, in one place.
//! - [`leave`]: removes what agents left on this host.

mod builder;
mod error;
mod event;
mod firewall;
mod handle;
mod journal;
pub mod leave;
mod life;
mod lock;
mod log;
mod memory;
mod node;
mod place;
mod setup;
mod status;

pub use builder::AgentBuilder;
pub use error::{AgentError, Failure, UnknownBackend};
pub use event::{AgentEvent, TimedEvent};
pub use firewall::{FirewallOptions, Forward};
pub use handle::Agent;
pub use journal::{AgentEvents, KEPT_BYTES, KEPT_EVENTS};
pub use lock::{LockError, wait_for_remains};
pub use memory::{socket_of, state_file_of};
pub use node::Node;
pub use status::{AgentStatus, Condition, ConditionKind, Phase, Readiness};
