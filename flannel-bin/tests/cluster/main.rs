//! Whole clusters of the real binary: nodes as network namespaces, pods by the real CNI plugins, the real
//! kernel, a real etcd.

mod connectivity;
mod golden;
mod harness;
mod repair;
mod restart;
mod takeover;
