//! The etcd store against real etcd servers on loopback, a fresh one for each test.

#[path = "etcd/common.rs"]
mod common;
#[path = "etcd/config.rs"]
mod config;
#[path = "etcd/contract.rs"]
mod contract;
#[path = "etcd/faults.rs"]
mod faults;
#[path = "etcd/flood.rs"]
mod flood;
#[path = "etcd/identity.rs"]
mod identity;
#[path = "etcd/large.rs"]
mod large;
#[path = "etcd/leases.rs"]
mod leases;
#[path = "etcd/proxy.rs"]
mod proxy;
#[path = "etcd/reach.rs"]
mod reach;
#[path = "etcd/renew.rs"]
mod renew;
#[path = "etcd/start.rs"]
mod start;
#[path = "etcd/storm.rs"]
mod storm;
#[path = "etcd/watch.rs"]
mod watch;
