//! Metrics of an agent of [`flannel_core`], as `OpenMetrics` or in Prometheus' text format.
//!
//! [`AgentMetrics`] reads the agent's status when somebody asks, and makes metrics of it. Units are base units: seconds
//! and bytes. By default no metric has a label whose values grow with the cluster ([`Options::per_peer`]), and none has
//! an address, an endpoint, or a text of an error. [`catalogue::ALL`] lists all of them.
//!
//! ```no_run
//! use flannel_core::agent::Agent;
//! use flannel_metrics::{AgentMetrics, Format, Options};
//!
//! async fn watch(agent: &Agent) {
//!     let metrics = AgentMetrics::new(agent.status(), Options::default());
//!     tokio::spawn(metrics.count_events(agent.events()));
//!     println!("{}", metrics.render(Format::OpenMetrics));
//! }
//! ```
//!
//! The collector joins a registry that the program has already, under a label that tells its agents apart:
//!
//! ```no_run
//! use flannel_core::agent::Agent;
//! use flannel_metrics::{AgentMetrics, Options};
//! use prometheus_client::registry::Registry;
//!
//! fn register(registry: &mut Registry, name: &'static str, agent: &Agent) {
//!     let label = ("agent".into(), name.into());
//!     let metrics = AgentMetrics::new(agent.status(), Options::default());
//!     registry.sub_registry_with_label(label).register_collector(Box::new(metrics));
//! }
//! ```
//!
//! [`ProcessMetrics`] says what the process uses, once for all of its agents, and [`render()`] writes a registry in either
//! format. Where strangers may ask, [`Scrapes`] bounds what that costs.
//!
//! The library keeps no globals and starts no task.

pub mod catalogue;
mod collect;
mod events;
mod format;
mod output;
mod process;
mod scrapes;

pub use collect::{AgentMetrics, Options};
pub use format::{Format, render};
pub use process::ProcessMetrics;
/// The crate whose types are in signatures of this one.
pub use prometheus_client;
pub use scrapes::Scrapes;
