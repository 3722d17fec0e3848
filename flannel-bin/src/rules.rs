//! What the operator wants of firewall rules, and what this host has to keep them.

use std::time::Duration;

use flannel_core::addr::{Family, PerFamily, Subnet};
use flannel_core::firewall::rules::{Range, Wanted};
use flannel_core::firewall::{Choice, FirewallError, Managers};
use flannel_core::netns::Netns;
use futures::future::BoxFuture;

/// The flags about rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RuleOptions {
    /// Whether to masquerade what pods send to the world.
    pub(crate) masquerade: bool,
    /// Whether to choose source ports at random then.
    pub(crate) fully_random: bool,
    /// Whether to accept forwarded packets of pods.
    pub(crate) forward: bool,
    /// Whether the operator said so, rather than the default.
    pub(crate) forward_asked: bool,
    /// How often to look at iptables' rules, which the kernel does not announce.
    pub(crate) resync: Duration,
}

impl RuleOptions {
    /// The rules for these pods.
    pub(crate) fn wanted(self, ranges: PerFamily<Range>) -> Wanted {
        let Self { masquerade, fully_random, forward, .. } = self;
        Wanted { ranges, masquerade, fully_random, forward }
    }

    /// Whether an agent that can't write them should not run: without masquerading pods look healthy and
    /// reach nobody, while rules for forwarding matter on some hosts only.
    pub(crate) fn are_asked_for(self) -> bool {
        self.masquerade || self.forward && self.forward_asked
    }
}

/// Opens what keeps rules.
pub(crate) type OpenManagers<'a> =
    dyn Fn(Choice, Vec<Family>, RuleOptions) -> BoxFuture<'static, Result<Managers, FirewallError>> + 'a;

/// Opens what this host has.
pub(crate) async fn open(
    choice: Choice,
    families: Vec<Family>,
    options: RuleOptions,
) -> Result<Managers, FirewallError> {
    let families = if options.masquerade || options.forward { families } else { Vec::new() };
    Managers::open(&Netns::current()?, choice, &families, options.resync).await
}

/// The families of which network and subnet are known.
pub(crate) fn ranges(networks: PerFamily<Subnet>, subnets: PerFamily<Subnet>) -> PerFamily<Range> {
    PerFamily::from_fn(|family: Family| {
        let (network, subnet) = (*networks.get(family)?, *subnets.get(family)?);
        Some(Range { network, subnet })
    })
}
