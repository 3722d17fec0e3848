//! The choice of the link and addresses that carry encapsulated packets.
//!
//! [`choose`] reads the kernel once, [`decide`] is pure. The order is upstream's: the interfaces that the operator
//! named, in that order; only if none was named, the published address or else the default route. A device of the
//! overlay itself is never chosen ([`Overlay`]), and an address that was published before is kept if it still exists.
//! While an agent runs, [`review`] checks by the same decision whether the chosen underlay still exists. Upstream:
//! `pkg/ipmatch/match.go`, `pkg/ip/iface.go`.

mod chosen;
mod decide;
mod follow;
mod needed;
mod options;
mod overlay;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

use tracing::info;

pub use chosen::{NoAddress, Underlay};
pub use decide::{BadRegex, check_iface, check_regex, decide};
pub(crate) use follow::{Change, Follower};
pub use follow::{SETTLED, SETTLED_ELSEWHERE, Standing, review};
pub use needed::{Needed, Use, hides};
pub use options::UnderlayOptions;
pub use overlay::Overlay;

use crate::addr::{Family, PerFamily};
use crate::kernel::{Kernel, KernelError, Link, LinkAddress, RouteLookup};

/// The input of the choice, read from one network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLinks {
    /// All links.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<LinkAddress>,
    /// The default routes of each enabled family, in the kernel's order.
    pub defaults: PerFamily<Vec<RouteLookup>>,
    /// The route to `can_reach`, or why there is none.
    pub reach: Result<RouteLookup, NoRoute>,
}

/// Why there is no route to the address that the underlay should reach.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoRoute {
    /// No address was named.
    #[error("not asked for")]
    NotAsked,
    /// The kernel has none.
    #[error("no route leads there")]
    None,
    /// The kernel refused the look-up.
    #[error("{0}")]
    Refused(String),
}

/// The chosen underlay, and the candidates that were tried before.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChosenUnderlay {
    /// The chosen underlay.
    pub underlay: Underlay,
    /// The candidates that were tried first.
    pub lost: Vec<Lost>,
}

/// A candidate that can't be the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lost {
    /// The candidate: a link, or the option that asked for it.
    pub candidate: String,
    /// Why not.
    pub reason: String,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.candidate, self.reason)
    }
}

/// No underlay could be chosen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnderlayError {
    /// The kernel could not be read.
    #[error("can't read the host's interfaces")]
    Kernel(#[from] KernelError),
    /// No candidate can be used.
    #[error("no underlay interface: {}; this host has {host}", list(.lost))]
    NoneFits {
        /// The candidates in the order they were tried.
        lost: Vec<Lost>,
        /// The host's links with their addresses.
        host: String,
    },
    /// One of [`UnderlayOptions::iface_regexes`] is none.
    #[error("{pattern:?} is not a regular expression for interfaces")]
    Regex {
        /// The text.
        pattern: String,
        /// What is wrong with it.
        source: BadRegex,
    },
}

fn list(lost: &[Lost]) -> String {
    lost.iter().map(Lost::to_string).collect::<Vec<_>>().join("; ")
}

/// The link of an underlay: by its index, or else by its name, since a NIC that was created again has another index.
/// Its addresses decide later whether it is the underlay.
pub async fn find(kernel: &mut dyn Kernel, underlay: &Underlay) -> Result<Option<Link>, KernelError> {
    match kernel.link_at(underlay.link).await? {
        Some(link) => Ok(Some(link)),
        None => kernel.link(&underlay.name).await,
    }
}

/// The other usable addresses of the link of a chosen underlay. If there are any, it matters which one this node
/// published before ([`UnderlayOptions::kept`]).
pub async fn rivals(kernel: &mut dyn Kernel, underlay: &Underlay) -> Result<Vec<IpAddr>, KernelError> {
    let addresses = kernel.addresses().await?.into_iter();
    let is_rival = |addr: &IpAddr| {
        let chosen = underlay.local.get(Family::of(*addr));
        chosen.is_some_and(|chosen| chosen != addr) && !is_link_local(*addr)
    };
    let of_link = addresses.filter(|own| own.link == underlay.link).map(|own| own.addr.ip());
    Ok(of_link.filter(is_rival).collect())
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}

/// Chooses the underlay of this network namespace, and logs the candidates that were skipped.
pub async fn choose(kernel: &mut dyn Kernel, options: &UnderlayOptions) -> Result<Underlay, UnderlayError> {
    let host = gather(kernel, options).await?;
    let ChosenUnderlay { underlay, lost } = decide(&host, options)?;
    for Lost { candidate, reason } in &lost {
        info!(%candidate, %reason, "not the underlay interface");
    }
    Ok(underlay)
}

/// Reads what a choice depends on.
pub(crate) async fn gather(
    kernel: &mut dyn Kernel,
    options: &UnderlayOptions,
) -> Result<HostLinks, KernelError> {
    let mut defaults = PerFamily::default();
    for family in &options.families {
        *defaults.get_mut(*family) = Some(kernel.default_routes(*family).await?);
    }
    let reach = match options.can_reach {
        None => Err(NoRoute::NotAsked),
        // A refused look-up concerns only this candidate, so the others are still tried.
        Some(dst) => match kernel.lookup(dst).await {
            Ok(route) => route.ok_or(NoRoute::None),
            Err(error) => Err(NoRoute::Refused(error.to_string())),
        },
    };
    Ok(HostLinks { links: kernel.links().await?, addresses: kernel.addresses().await?, defaults, reach })
}
