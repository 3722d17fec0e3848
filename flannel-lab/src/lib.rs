//! A cluster of container hosts on one machine, for tests, benches and the demo.
//!
//! Every node and every pod is a network namespace. The nodes hang on an underlay bridge in a
//! namespace of its own, agents run as real processes in their node's namespace, and pods are
//! attached by plain veth pairs or by the real CNI plugins. What can go wrong on a real network
//! can be made to go wrong here: links lose carrier, NICs vanish, stores stop answering.
//!
//! ```text
//!   pod ── cni0 ── node1 ── eth0 ─┐                      ┌─ eth0 ── node2 ── cni0 ── pod
//!                                 └── bridge in "fabric" ─┘
//! ```
//!
//! All of it lives in a [`sandbox`]: a mount, network and pid namespace (and a user namespace where
//! the caller isn't root) that the kernel tears down with its first process. There is no tear-down
//! code to forget: a panic, a time-out or SIGKILL leaves neither process nor namespace behind.
//!
//! ```no_run
//! use flannel_lab::cluster::Cluster;
//! use flannel_lab::ping::{PingOptions, ping};
//!
//! #[test]
//! fn nodes_reach_each_other() {
//!     flannel_lab::sandbox::in_sandbox(flannel_lab::test_name!(), || {
//!         let cluster = Cluster::builder().nodes(2).build().unwrap();
//!         let (a, b) = (cluster.node(1), cluster.node(2));
//!         let report = ping(a.netns(), b.address(), PingOptions::default()).unwrap();
//!         assert_eq!(report.lost, 0);
//!     });
//! }
//! ```
//!
//! Everything blocks: a harness has nothing better to do, and blocking code is called as easily
//! from async tests (by `spawn_blocking`) as from plain ones.

pub mod agent;
pub mod bed;
pub mod cluster;
pub mod cni_plugin;
pub mod error;
pub mod etcd;
mod exec;
pub mod flanneld;
pub mod golden;
pub mod kernel_state;
pub mod kube;
pub mod nat;
pub mod netns;
pub mod node;
pub mod ping;
mod plan;
pub mod pod;
mod relay;
pub mod sandbox;
pub mod store;
pub mod stranger;
pub mod subnet_env;
mod sys;
pub mod transfer;
pub mod vm;
pub mod wait;

pub use error::LabError;
pub use relay::BrokenOffload;
