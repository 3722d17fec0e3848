//! The CNI plugin `flannel`: it gives this node's subnet to a container by way of another plugin.
//!
//! ```text
//!   runtime ── config, CNI_* ──► flannel ── config of its own ──► bridge ──► host-local
//!                                │    ▲
//!               /var/lib/cni/flannel  /run/flannel/subnet.env ◄── flanneld
//! ```
//!
//! The plugin itself creates no links and assigns no addresses. It reads this node's subnets from the agent's file
//! ([`subnet_env`]), makes the config of another plugin ([`delegate`]), stores that for DEL ([`records`]), and runs
//! that plugin ([`exec`]). [`guarded`] and [`atomic_file`], which the agent compiles, too, open and write the files. [`verbs`] combines these. A
//! runtime executes the program for every pod, so it has few dependencies and no async runtime, and is small: `cargo
//! cni` builds it static, in less than a MiB.
//!
//! [`install`] is for a program that brings the plugin to a host. Files are opened by [`guarded`] and put in place by
//! [`atomic_file`], which the agent compiles, too.
//!
//! It replaces the plugin of github.com/flannel-io/cni-plugin: same config, same delegate config, same records.
//! `docs/cni.md` is for operators.

pub mod args;
pub mod atomic_file;
pub mod bridge;
pub mod cidr;
pub mod delegate;
pub mod error;
pub mod exec;
pub mod guarded;
pub mod install;
pub mod netconf;
pub mod records;
pub mod subnet_env;
pub mod verbs;
pub mod version;
