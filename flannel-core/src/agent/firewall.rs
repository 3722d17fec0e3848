//! Which firewall rules the agent keeps.

use std::time::Duration;

use crate::addr::{Family, PerFamily, Subnet};
use crate::firewall::rules::{Range, Wanted};

/// Whether the agent accepts forwarded packets of pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Forward {
    /// It does not.
    #[default]
    Off,
    /// It does if the host has a program for it. If not, the status says what that may cost.
    WherePossible,
    /// It does, and the agent does not run without.
    Required,
}

/// Which firewall rules the agent keeps. The default is none; leftovers of an earlier run are removed in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FirewallOptions {
    /// Whether pods reach the world under this node's address. An agent that can't write such rules does not run: pods
    /// would look healthy and reach no address outside.
    pub masquerade: bool,
    /// Whether masquerading chooses source ports at random, where the host can.
    pub random_ports: bool,
    /// Whether forwarded packets of pods are accepted, which matters where others drop them.
    pub forward: Forward,
    /// How often the rules of legacy iptables are read again, since the kernel does not notify of their changes.
    pub resync: Duration,
}

impl Default for FirewallOptions {
    fn default() -> Self {
        Self { masquerade: false, random_ports: true, forward: Forward::Off, resync: Duration::from_secs(5) }
    }
}

impl FirewallOptions {
    /// Masquerading at random ports, and forwarding where possible.
    pub fn masquerade() -> Self {
        Self { masquerade: true, forward: Forward::WherePossible, ..Self::default() }
    }

    /// The same, with or without masquerading.
    #[must_use]
    pub fn with_masquerade(self, masquerade: bool) -> Self {
        Self { masquerade, ..self }
    }

    /// The same, with random source ports or those that pods chose, where they are free.
    #[must_use]
    pub fn with_random_ports(self, random_ports: bool) -> Self {
        Self { random_ports, ..self }
    }

    /// The same, with or without accepting forwarded packets.
    #[must_use]
    pub fn with_forward(self, forward: Forward) -> Self {
        Self { forward, ..self }
    }

    /// The same, with another interval between two reads of iptables' rules.
    #[must_use]
    pub fn with_resync(self, resync: Duration) -> Self {
        Self { resync, ..self }
    }

    /// Whether there are rules to keep.
    pub(super) fn wants_any(self) -> bool {
        self.masquerade || self.forward != Forward::Off
    }

    /// The rules for these pods.
    pub(super) fn wanted(self, ranges: PerFamily<Range>) -> Wanted {
        let Self { masquerade, random_ports, forward, .. } = self;
        Wanted { ranges, masquerade, fully_random: random_ports, forward: forward != Forward::Off }
    }

    /// Whether the agent must not run if it can't write the rules: without masquerading pods look healthy and reach no
    /// address outside, while rules for forwarding matter on some hosts only.
    pub(super) fn are_required(self) -> bool {
        self.masquerade || self.forward == Forward::Required
    }
}

/// Network and subnet of each family for which both are known.
pub(super) fn ranges(networks: PerFamily<Subnet>, subnets: PerFamily<Subnet>) -> PerFamily<Range> {
    PerFamily::from_fn(|family: Family| {
        let (network, subnet) = (*networks.get(family)?, *subnets.get(family)?);
        Some(Range { network, subnet })
    })
}
