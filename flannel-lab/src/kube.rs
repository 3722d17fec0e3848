//! Kubernetes: an API server in memory, the real one, and either as the store of a cluster.

#[cfg(feature = "kube-api")]
pub mod fake;
pub mod real;
#[cfg(feature = "kube-api")]
pub mod store;
