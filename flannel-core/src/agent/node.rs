//! This node's place in the network.

use crate::addr::{Mtu, PerFamily, Subnet};
use crate::backend::Underlay;
use crate::lease::Lease;

/// This node's place in the network, as it was when the agent became ready, but for what it publishes: that is as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Node {
    /// This node's lease: its subnets, and what it publishes.
    pub lease: Lease,
    /// The networks of all pods, which contain the subnets of the lease.
    pub networks: PerFamily<Subnet>,
    /// The kind of the backend that the lease names.
    pub backend: String,
    /// The largest pod packet in bytes: underlay MTU less encapsulation, the smallest of the families. The present
    /// value is [`NetworkStatus::overlay_mtu`](crate::backend::NetworkStatus::overlay_mtu).
    pub overlay_mtu: Mtu,
    /// The link and addresses that carry the traffic between nodes.
    pub underlay: Underlay,
}
