//! Whole clusters of the real binary: nodes as network namespaces, pods by the real CNI plugins, the real
//! kernel, a real etcd, and the lab's API server.

mod backends;
mod blackhole;
mod choice;
mod claims;
mod cleanup;
mod connectivity;
mod control;
mod crowd;
mod detour;
mod direct;
mod doctor;
#[cfg(feature = "etcd")]
mod etcd;
mod extension;
mod firewall;
mod flood;
mod go;
mod golden;
mod harness;
mod health;
mod hostgw;
mod hostile;
mod identity;
mod incremental;
mod ipip;
#[cfg(feature = "kube")]
mod kube;
#[cfg(feature = "etcd")]
mod large;
#[cfg(feature = "etcd")]
mod memory;
mod metrics;
mod networks;
#[cfg(any(feature = "etcd", feature = "kube"))]
mod outages;
mod path_mtu;
mod probe;
mod quiet;
mod ready;
mod repair;
mod restart;
#[cfg(all(feature = "etcd", feature = "kube"))]
mod scenarios;
#[cfg(all(feature = "etcd", feature = "kube"))]
mod secrets;
mod strict;
mod switch;
mod takeover;
mod underlay;
mod unprivileged;
#[cfg(feature = "kube")]
mod upgrade;
mod vm;
mod walk;
mod wireguard;
