//! The core of flannel in Rust: what an agent needs to keep one node's part of a container overlay network working.
//!
//! # The way of a lease
//! A node acquires a subnet from a store ([`subnet`]) and publishes how it is reached ([`lease`]). A watch brings the
//! leases of all nodes. [`peers`] turns them into the desired state of the kernel ([`dataplane`]), and [`reconcile`]
//! keeps the kernel in that state through the trait [`kernel`], which [`netlink`] implements.
//!
//! # Where everything is
//! Values and decisions, pure:
//! - [`addr`]: families, subnets, MACs, VNIs, MTUs, link indices.
//! - [`config`]: the network configuration, checked while it is read.
//! - [`lease`]: leases in upstream's wire forms, and the table of current leases.
//! - [`peers`]: which leases are programmed where they conflict, and which kernel objects they need.
//! - [`dataplane`]: kernel state as a value, and the plan that leads from observed to desired state.
//! - [`on_link`]: which addresses a link reaches without a gateway.
//! - [`backoff`]: how long to wait before the next try, and jitter.
//! - [`ownership`]: whether a route on a shared link is ours, and what a previous backend left behind.
//! - [`error`]: an error and its causes as one line.
//! - [`status`]: problems that cut pods off, with cause, remedy and harm, and the state of each peer.
//! - [`events`]: what happened to a network, as values.
//! - [`gojson`]: JSON objects as Go reads them.
//! - [`times`]: the text forms of times.
//! - [`secret`]: types for credentials, which hide them in all output.
//!
//! Traits, and modules that touch kernel, files and clock:
//! - [`subnet`]: the trait of the stores, what stores share, and the store in a local folder.
//! - [`remembering`]: wraps a store, and starts from what an earlier run stored while that store is unavailable.
//! - [`backend`]: the traits of the backends.
//! - [`kernel`]: the trait of the kernel; [`netlink`]: the real one.
//! - [`netns`]: network namespaces. An agent makes all its changes to a host in one of them.
//! - [`underlay`]: chooses the link and addresses that carry the traffic between nodes; the decision is pure.
//! - [`clock`]: time that counts on while the machine is suspended.
//! - [`port_holder`]: who has a UDP port.
//! - [`atomic_file`]: replaces files atomically.
//! - [`guarded`]: opens files that others may have written to.
//! - [`subnet_file`]: `subnet.env`, from which the CNI plugin learns this node's subnets.
//! - [`docker_opts`]: options of the Docker daemon from that file.
//! - [`state_file`]: the file in which an agent remembers its state over restarts.
//! - [`probe`]: finds out by packets whether peers are reached, and if not, why.
//!   [`proofs`]: what of that the loop acts on, peer by peer.
//! - [`firewall`]: masquerading and forwarding of pod traffic, by nftables or iptables.
//! - [`reconcile`]: the one loop that every route-based backend runs; [`inspect`]: asks it what differs from what is desired.
//! - [`reexport`]: the crates whose types are in signatures of this one.
//! - [`agent`]: combines all of it, for a program that embeds an agent.
//!
//! The library reads no environment, sets up no logger, ends no process and keeps no globals; several
//! agents can run in one process.

pub mod addr;
pub mod agent;
pub mod atomic_file;
pub mod backend;
pub mod backoff;
mod chunked;
pub mod clock;
pub mod config;
pub mod dataplane;
pub mod docker_opts;
pub mod error;
pub mod events;
pub mod firewall;
pub mod gojson;
pub mod guarded;
pub mod heartbeat;
pub mod inspect;
pub mod kernel;
pub mod lease;
pub mod netlink;
pub mod netns;
pub mod on_link;
pub mod ownership;
pub mod peers;
pub mod port_holder;
pub mod probe;
pub mod proofs;
pub mod reconcile;
pub mod reexport;
pub mod remembering;
mod repack;
mod resync;
pub mod secret;
pub mod state_file;
pub mod status;
pub mod subnet;
pub mod subnet_file;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod times;
mod told;
pub mod underlay;
