//! What an operator can choose for one node.

use flannel_core::addr::Subnet;

use crate::path::Layout;

/// What an operator can choose for one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UdpOptions {
    /// How many threads move packets.
    pub layout: Layout,
    /// Underlay addresses, besides those that peers publish, from which datagrams are accepted.
    pub allow_from: Vec<Subnet>,
}

impl UdpOptions {
    /// Sets how many threads move packets.
    #[must_use]
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// Also accepts datagrams from these underlay addresses.
    #[must_use]
    pub fn allow_from(mut self, subnets: impl IntoIterator<Item = Subnet>) -> Self {
        self.allow_from.extend(subnets);
        self
    }
}
