//! Follows the chosen underlay while an agent runs: when what was chosen is gone from the host, the choice is
//! made again by the same rule.
//!
//! What still stands is kept, even where the rule would choose another today: every move costs the peers a
//! change. Without a successor everything stays as it is.

use std::time::Duration;

use tokio::time::Instant;

use super::{Host, UnderlayError, UnderlayOptions, decide, list};
use crate::addr::{Family, PerFamily, Subnet};
use crate::backend::Underlay;
use crate::dataplane::{Object, ObjectKey};
use crate::kernel::{KernelEvent, LinkAddress};

/// How long a successor must have been there before it is taken, so that an address that only flaps is
/// published to nobody.
pub const SETTLED: Duration = Duration::from_secs(1);
/// The same for a successor on another link, to which a host should not move while its NIC is set up anew.
pub const SETTLED_ELSEWHERE: Duration = Duration::from_secs(10);

/// What became of a chosen underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// All its addresses are there.
    Stands,
    /// Something of it is gone, and this would be chosen instead.
    Succeeded(Underlay),
    /// Something of it is gone, and nothing can take its place: why.
    Lost(String),
}

/// Looks whether a chosen underlay still stands. `overlay` is the pods' network: an address in it is never one
/// of the underlay.
pub fn review(
    host: &Host,
    options: &UnderlayOptions,
    current: &Underlay,
    overlay: &PerFamily<Subnet>,
) -> Standing {
    let has = |addr| host.addresses.iter().find(|own| own.addr.ip() == addr);
    let gone = current.local.iter().map(|(_, addr)| *addr).find(|addr| has(*addr).is_none());
    let is_there = host.links.iter().any(|link| link.name == current.name);
    let ends = |own: &LinkAddress| own.deprecated;
    if is_there && gone.is_none() && !current.local.iter().any(|(_, addr)| has(*addr).is_some_and(ends)) {
        return Standing::Stands;
    }
    let fits = |own: &&LinkAddress| {
        let addr = own.addr.ip();
        let link_local =
            |addr: std::net::IpAddr| matches!(addr, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
        // While a link comes up, its link-local address is there before the others.
        let worse = link_local(addr)
            && current.local.get(Family::of(addr)).is_some_and(|current| !link_local(*current));
        !own.tentative && !worse && !overlay.iter().any(|(_, network)| network.contains(addr))
    };
    let addresses = host.addresses.iter().filter(fits).cloned().collect();
    match decide(&Host { addresses, ..host.clone() }, options) {
        Ok(choice) if is_same(&choice.underlay, current) => Standing::Stands,
        Ok(choice) => Standing::Succeeded(choice.underlay),
        // Deprecated addresses work until they are gone.
        Err(_) if is_there && gone.is_none() => Standing::Stands,
        Err(error) => {
            let what = match gone {
                Some(addr) if is_there => format!("underlay address {addr} is gone from {}", current.name),
                _ => format!("underlay link {} is gone", current.name),
            };
            let why = match &error {
                UnderlayError::NoneFits { lost, .. } => list(lost),
                UnderlayError::Kernel(error) => error.to_string(),
            };
            Standing::Lost(format!("{what}, and there is no other ({why}); all stays as it is"))
        }
    }
}

fn is_same(a: &Underlay, b: &Underlay) -> bool {
    (&a.name, a.local, a.published) == (&b.name, b.local, b.published)
}

/// A chosen underlay, and what waits to take its place.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) options: UnderlayOptions,
    pub(crate) current: Underlay,
    overlay: PerFamily<Subnet>,
    /// What would be chosen now, and when it is taken.
    successor: Option<(Underlay, Instant)>,
    /// Why the current one does not stand.
    problem: Option<String>,
}

impl Follower {
    pub(crate) fn new(options: UnderlayOptions, current: Underlay, overlay: PerFamily<Subnet>) -> Self {
        Self { options, current, overlay, successor: None, problem: None }
    }

    /// Whether an announcement makes it necessary to look again.
    pub(crate) fn concerns(&self, event: &KernelEvent) -> bool {
        let is_adrift = self.successor.is_some() || self.problem.is_some();
        let is_ours = |addr| self.current.local.iter().any(|(_, ours)| *ours == addr);
        match event {
            KernelEvent::Put(Object::Address(address)) => is_adrift || is_ours(address.addr.ip()),
            KernelEvent::Gone(ObjectKey::Address(_, addr)) => is_adrift || is_ours(addr.ip()),
            KernelEvent::Put(Object::Route(route)) => is_adrift && route.dst.prefix() == 0,
            KernelEvent::Link(_) => is_adrift,
            KernelEvent::LinkGone(_, name) => is_adrift || *name == self.current.name,
            _ => false,
        }
    }

    /// When to look again although nothing was announced.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.successor.as_ref().map(|(_, at)| *at)
    }

    /// Looks at the host, and returns the underlay that is to be taken now.
    pub(crate) fn look(&mut self, host: &Host, now: Instant) -> Option<Underlay> {
        let next = match review(host, &self.options, &self.current, &self.overlay) {
            Standing::Stands => {
                (self.successor, self.problem) = (None, None);
                return None;
            }
            Standing::Lost(why) => {
                (self.successor, self.problem) = (None, Some(why));
                return None;
            }
            Standing::Succeeded(next) => next,
        };
        match &self.successor {
            Some((waits, at)) if is_same(waits, &next) => {
                if now < *at {
                    return None;
                }
                self.successor = None;
                Some(next)
            }
            _ => {
                let settled = if next.name == self.current.name { SETTLED } else { SETTLED_ELSEWHERE };
                self.successor = Some((next, now + settled));
                None
            }
        }
    }

    /// The backend took it.
    pub(crate) fn take(&mut self, next: Underlay) {
        self.current = next;
        self.problem = None;
    }

    /// The backend can't use it.
    pub(crate) fn refuse(&mut self, why: String) {
        self.problem = Some(why);
    }

    pub(crate) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

#[cfg(test)]
mod tests;
