//! What an operator can choose for one node.

use flannel_core::addr::Subnet;

use crate::engine::Layout;

/// What an operator can choose for one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdpOptions {
    /// How many threads move packets.
    pub layout: Layout,
    /// Underlay addresses, besides those that peers publish, from which datagrams are accepted.
    pub allow_from: Vec<Subnet>,
}
