//! The agent: all that one node of the network does, from the network config to its end.
//!
//! [`Agent::builder`] takes a store; backends, underlay, firewall rules and files are told to the builder. The agent
//! then runs as a task of the caller's tokio runtime. It waits for what is not there yet (store, config, lease), holds
//! devices, peers, rules and lease, and says how it is as values: [`AgentStatus`], [`AgentEvent`].
//!
//! What makes it correct is not the caller's business: which addresses the store wants published, who holds the lease
//! while the network runs, how a start without the store goes, when the subnet file may be there, and what happens when
//! the lease is lost.
//!
//! - `builder`, `handle`: what the caller sees. `setup`, `node`: what was said of the agent, and what came of it.
//! - `life`: the course of an agent, over the traits of the core.
//! - `memory`, `lock`: what earlier runs left in files, and who may use them now.
//! - `status`, `event`, `log`: what it says about itself; log lines are made of events, in one place.
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
pub use event::{AgentEvent, AgentEvents};
pub use firewall::{FirewallOptions, Forward};
pub use handle::Agent;
pub use lock::{LockError, wait_for_remains};
pub use memory::state_file_of;
pub use node::Node;
pub use status::{AgentStatus, Condition, ConditionKind, Phase, Readiness};
