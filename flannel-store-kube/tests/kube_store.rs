//! The Kubernetes store against the lab's API server on loopback, a fresh one for each test.

#[path = "kube/common.rs"]
mod common;
#[path = "kube/config.rs"]
mod config;
#[path = "kube/contract.rs"]
mod contract;
#[path = "kube/faults.rs"]
mod faults;
#[path = "kube/large.rs"]
mod large;
#[path = "kube/leases.rs"]
mod leases;
#[path = "kube/metadata.rs"]
mod metadata;
#[path = "kube/reach.rs"]
mod reach;
#[path = "kube/scale.rs"]
mod scale;
#[path = "kube/watch.rs"]
mod watch;
