//! Whole clusters of the real binary: nodes as network namespaces, pods by the real CNI plugins, the real
//! kernel, a real etcd.

mod backends;
mod connectivity;
#[cfg(feature = "etcd")]
mod etcd;
mod golden;
mod harness;
mod hostgw;
mod incremental;
mod repair;
mod restart;
mod switch;
mod takeover;
mod underlay;
