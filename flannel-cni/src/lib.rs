//! The CNI plugin `flannel`: it gives this node's subnet to a container by way of another plugin.
//!
//! ```text
//!   runtime ── config, CNI_* ──► flannel ── config of its own ──► bridge ──► host-local
//!                                │    ▲
//!               /var/lib/cni/flannel  /run/flannel/subnet.env ◄── flanneld
//! ```
//!
//! The plugin makes no link and gives no address. It reads what the agent says of this node's subnets
//! ([`subnet_env`]), makes a config of it ([`delegate`]), keeps that for DEL ([`records`]), and runs the plugin that
//! does the work ([`exec`]). [`verbs`] puts these together. A runtime executes the program for every pod, so it has
//! few dependencies and no async runtime, and is small: `cargo cni` builds it static, in less than a MiB.
//!
//! [`install`] is for a program that brings the plugin to a host. Files are opened by [`guarded`] and put in place by
//! [`atomic_file`], which the agent compiles, too.
//!
//! It takes the place of the plugin of github.com/flannel-io/cni-plugin: same config, same delegate config, same
//! records. `docs/cni.md` has what an operator wants to know.

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
