//! The core of flannel in Rust: what an agent needs to hold one node's part of a container overlay network.
//!
//! # The way of a lease
//! A node takes a subnet from a store ([`subnet`]) and publishes how it is reached ([`lease`]). A watch brings
//! the leases of all nodes. [`peers`] turns them into wanted kernel state ([`dataplane`]), and [`reconcile`]
//! holds the kernel in that state through [`kernel`], which [`netlink`] speaks.
//!
//! # Where everything is
//! Values and decisions, pure:
//! - [`addr`]: families, subnets, MACs, VNIs, MTUs, link numbers.
//! - [`config`]: the network configuration, checked while it is read.
//! - [`lease`]: leases in upstream's wire forms, and the table that a watch folds into.
//! - [`peers`]: which leases hold where they contradict each other, and what they ask of the kernel.
//! - [`dataplane`]: kernel state as a value, and the plan from one to another.
//! - [`on_link`]: which addresses a link reaches without a gateway.
//! - [`backoff`]: how long to wait before the next try, and jitter.
//! - [`ownership`]: whose a route on a shared link is, and what a previous backend left behind.
//! - [`error`]: an error and its causes as one line.
//! - [`status`]: what keeps pods from others, with cause, remedy and harm, and how each peer is.
//! - [`events`]: what happens to a network.
//! - [`gojson`]: JSON objects as Go reads them.
//! - [`secret`]: credentials, which no output shows.
//!
//! Traits, and what touches the world:
//! - [`subnet`]: the trait of the stores, what stores share, and the store in a local folder.
//! - [`remembering`]: a store in front of any store, which starts by what an earlier run stored while that one is away.
//! - [`backend`]: the traits of the backends.
//! - [`kernel`]: the trait of the kernel; [`netlink`]: the real one.
//! - [`netns`]: network namespaces, in one of which an agent does all that it does to a host.
//! - [`underlay`]: which link and addresses carry the traffic between nodes; the decision is pure.
//! - [`clock`]: time that goes on while the machine is suspended.
//! - [`port_holder`]: who has a UDP port that is taken.
//! - [`atomic_file`]: files that are whole at any moment.
//! - [`guarded`]: opening files that others may have touched.
//! - [`subnet_file`]: `subnet.env`, by which container runtimes learn this node's subnets.
//! - [`docker_opts`]: options of the Docker daemon from that file.
//! - [`state_file`]: what an agent remembers over restarts.
//! - [`firewall`]: masquerading and forwarding of pod traffic, by nftables or iptables.
//! - [`reconcile`]: the one loop that every route-based backend runs.
//! - [`agent`]: all of it together, for a program that embeds an agent.
//!
//! The library reads no environment, sets up no logger, ends no process and keeps no globals; several
//! agents can run in one process.

pub mod addr;
pub mod agent;
pub mod atomic_file;
pub mod backend;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod dataplane;
pub mod docker_opts;
pub mod error;
pub mod events;
pub mod firewall;
pub mod gojson;
pub mod guarded;
pub mod kernel;
pub mod lease;
pub mod netlink;
pub mod netns;
pub mod on_link;
pub mod ownership;
pub mod peers;
pub mod port_holder;
pub mod reconcile;
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
mod told;
pub mod underlay;
