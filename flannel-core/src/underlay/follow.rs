//! Follows the chosen underlay while an agent runs: when its link or address is gone from the host, the choice is made
//! again by the same rule.
//!
//! An underlay that is still there is kept, even if the rule would choose another one now, since every move costs the
//! peers a change. Without a replacement everything stays as it is.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::chosen::Underlay;
use super::decide::{Followed, decide_again};
use super::needed::{Needed, Use, hides};
use super::overlay::is_host_address;
use super::{HostLinks, UnderlayError, UnderlayOptions, is_link_local, list};
use crate::addr::{Family, PerFamily};
use crate::config::{ConfigError, NetworkConfig};
use crate::dataplane::{Object, ObjectKey};
use crate::kernel::{KernelEvent, Link, LinkAddress};

/// How long a replacement must have been there before it is used, so that an address that only flaps is never
/// published.
pub const SETTLED: Duration = Duration::from_secs(1);
/// The same for a replacement on another link: a host should not move there while its NIC is only being reconfigured.
pub const SETTLED_ELSEWHERE: Duration = Duration::from_secs(10);

/// The state of a chosen underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// All its addresses are there.
    Stands,
    /// Its link has another name.
    Renamed(String),
    /// Its link or an address is gone, and this would be chosen instead.
    Succeeded(Underlay),
    /// Its link or an address is gone, and there is no replacement, with the reason.
    Lost(String),
}

/// Checks whether the link and addresses of a chosen underlay still exist.
pub fn review(host: &HostLinks, options: &UnderlayOptions, current: &Underlay) -> Standing {
    review_with(host, options, current, &Memory::of(current))
}

/// What a follower remembers of the present underlay.
#[derive(Debug)]
struct Memory {
    /// The name of its link when it was chosen.
    name: String,
    /// Whether its addresses had `/32` or `/128` when they were last seen.
    alone: PerFamily<bool>,
}

impl Memory {
    fn of(underlay: &Underlay) -> Self {
        Self { name: underlay.name.clone(), alone: PerFamily::default() }
    }
}

fn review_with(host: &HostLinks, options: &UnderlayOptions, current: &Underlay, memory: &Memory) -> Standing {
    let link = link_of(host, current);
    if let Some(link) = link.filter(|link| link.name != current.name) {
        return Standing::Renamed(link.name.clone());
    }
    let is_there = link.is_some();
    let has = |addr| owned(host, current, addr);
    let gone = current.local.iter().map(|(_, addr)| *addr).find(|addr| has(*addr).is_none());
    let is_in_place = |own: &LinkAddress| own.link == current.link && !own.deprecated;
    if is_there && current.local.iter().all(|(_, addr)| has(*addr).is_some_and(is_in_place)) {
        return Standing::Stands;
    }
    let fits = |own: &&LinkAddress| {
        let addr = own.addr.ip();
        let family = Family::of(addr);
        // While a link comes up, its link-local address and virtual ones may be there before the others.
        let only_link_local = addr.is_ipv6()
            && is_link_local(addr)
            && current.local.get(family).is_some_and(|current| !is_link_local(*current));
        let only_virtual = is_host_address(own) && memory.alone.get(family) == Some(&false);
        !own.tentative && !only_link_local && !only_virtual
    };
    let addresses = host.addresses.iter().filter(fits).cloned().collect();
    let options = UnderlayOptions { kept: current.local, ..options.clone() };
    let anew = || host.links.iter().find(|link| link.name == current.name);
    let followed = link.or_else(anew).map_or(current.link, |link| link.index);
    let followed = Followed { link: followed, name: memory.name.clone() };
    match decide_again(&HostLinks { addresses, ..host.clone() }, &options, Some(&followed)) {
        Ok(choice) if is_same(&choice.underlay, current) => Standing::Stands,
        Ok(choice) => Standing::Succeeded(choice.underlay),
        // Deprecated addresses still work until they are gone.
        Err(_) if is_there && gone.is_none() => Standing::Stands,
        Err(error) => {
            let what = match gone {
                Some(addr) if is_there => {
                    // The kernel removes the addresses then.
                    let hint = if addr.is_ipv6() {
                        format!(" (is net/ipv6/conf/{}/disable_ipv6 1?)", current.name)
                    } else {
                        String::new()
                    };
                    format!("underlay address {addr} is gone from {}{hint}", current.name)
                }
                _ => format!("underlay link {} is gone", current.name),
            };
            let why = match &error {
                UnderlayError::NoneFits { lost, .. } => list(lost),
                error => error.to_string(),
            };
            Standing::Lost(format!("{what}, and there is no other ({why}); all stays as it is"))
        }
    }
}

/// The link of an underlay, whatever its name is now.
fn link_of<'a>(host: &'a HostLinks, underlay: &Underlay) -> Option<&'a Link> {
    host.links.iter().find(|link| link.index == underlay.link)
}

/// An address on the link of an underlay, else on another link.
fn owned<'a>(host: &'a HostLinks, underlay: &Underlay, addr: IpAddr) -> Option<&'a LinkAddress> {
    let found = host.addresses.iter().filter(|own| own.addr.ip() == addr);
    found.min_by_key(|own| own.link != underlay.link)
}

fn has_same_addresses(a: &Underlay, b: &Underlay) -> bool {
    (a.local, a.published) == (b.local, b.published)
}

fn is_same(a: &Underlay, b: &Underlay) -> bool {
    a.link == b.link && has_same_addresses(a, b)
}

/// A change of the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Its link has another name; nothing else changed.
    Renamed(Underlay),
    /// It is another underlay.
    Moved(Underlay),
}

/// A chosen underlay, and a replacement that is not stable yet.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) options: UnderlayOptions,
    pub(crate) current: Underlay,
    memory: Memory,
    /// The replacement, and when it will be used.
    successor: Option<(Underlay, Instant)>,
    /// Why the current underlay is not complete, and which family that concerns; `None` for all.
    problem: Option<(String, Option<Family>)>,
}

impl Follower {
    pub(crate) fn new(options: UnderlayOptions, current: Underlay) -> Self {
        let memory = Memory::of(&current);
        Self { options, current, memory, successor: None, problem: None }
    }

    /// Refuses a changed config if one of its new networks would hide addresses that this node needs. About networks
    /// that are already in force the start has decided.
    pub(crate) fn check_networks(
        &self,
        in_force: &NetworkConfig,
        next: &NetworkConfig,
    ) -> Result<(), ConfigError> {
        let is_new = |needed: &&Needed| needed.covered_by(next) != needed.covered_by(in_force);
        let own = Needed::of_underlay(&self.current);
        let all = own.iter().chain(&self.options.needed).filter(is_new);
        hides(next, all, Use { has_leases: false, is_routed_whole: false }).map_or(Ok(()), Err)
    }

    /// Whether after this notification the underlay must be checked again.
    pub(crate) fn concerns(&self, event: &KernelEvent) -> bool {
        let is_adrift = self.successor.is_some() || self.problem.is_some();
        let is_ours = |addr| self.current.local.iter().any(|(_, ours)| *ours == addr);
        match event {
            KernelEvent::Put(Object::Address(address)) => is_adrift || is_ours(address.addr.ip()),
            KernelEvent::Gone(ObjectKey::Address(_, addr)) => is_adrift || is_ours(addr.ip()),
            KernelEvent::Put(Object::Route(route)) => is_adrift && route.dst.prefix() == 0,
            KernelEvent::Link(link) => {
                is_adrift || (link.index == self.current.link && link.name != self.current.name)
            }
            KernelEvent::LinkGone(link, _) => is_adrift || *link == self.current.link,
            _ => false,
        }
    }

    /// When to check again without a notification.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.successor.as_ref().map(|(_, at)| *at)
    }

    /// Checks the host, and returns the change to apply now.
    pub(crate) fn look(&mut self, host: &HostLinks, now: Instant) -> Option<Change> {
        for (family, addr) in self.current.local.iter() {
            if let Some(own) = owned(host, &self.current, *addr) {
                *self.memory.alone.get_mut(family) = Some(is_host_address(own));
            }
        }
        let next = match review_with(host, &self.options, &self.current, &self.memory) {
            Standing::Renamed(name) => {
                return Some(Change::Renamed(Underlay { name, ..self.current.clone() }));
            }
            Standing::Stands => {
                (self.successor, self.problem) = (None, None);
                return None;
            }
            Standing::Lost(why) => {
                (self.successor, self.problem) = (None, Some((why, self.only_lost(host))));
                return None;
            }
            Standing::Succeeded(next) => next,
        };
        let at = match &self.successor {
            Some((waits, at)) if is_same(waits, &next) => *at,
            _ => now + self.time_to_settle(host, &next),
        };
        if now < at {
            self.successor = Some((next, at));
            return None;
        }
        self.successor = None;
        Some(Change::Moved(next))
    }

    /// How long a replacement must be stable. A NIC that was created again with the same addresses makes no difference
    /// to peers, so it is used at once.
    fn time_to_settle(&self, host: &HostLinks, next: &Underlay) -> Duration {
        let is_there = link_of(host, &self.current).is_some();
        match next.link == self.current.link || next.name == self.current.name {
            true if !is_there && has_same_addresses(next, &self.current) => Duration::ZERO,
            true => SETTLED,
            false => SETTLED_ELSEWHERE,
        }
    }

    /// The backend has applied the change.
    pub(crate) fn adopt(&mut self, change: Change) {
        match change {
            Change::Renamed(next) => self.current = next,
            Change::Moved(next) => {
                if next.name != self.current.name {
                    self.memory = Memory::of(&next);
                }
                self.memory.alone = PerFamily::default();
                self.current = next;
                self.problem = None;
            }
        }
    }

    /// The family whose address alone is gone, while the link and the other address are in place.
    fn only_lost(&self, host: &HostLinks) -> Option<Family> {
        link_of(host, &self.current)?;
        let is_gone = |(_, addr): &(Family, &IpAddr)| owned(host, &self.current, **addr).is_none();
        let (gone, left): (Vec<_>, Vec<_>) = self.current.local.iter().partition(is_gone);
        match gone[..] {
            [(family, _)] if !left.is_empty() => Some(family),
            _ => None,
        }
    }

    /// The backend can't use the replacement.
    pub(crate) fn refuse(&mut self, why: String) {
        self.problem = Some((why, None));
    }

    /// Why the current underlay is not complete, and which family that concerns; `None` for all.
    pub(crate) fn problem(&self) -> Option<(&str, Option<Family>)> {
        self.problem.as_ref().map(|(why, family)| (why.as_str(), *family))
    }
}

#[cfg(test)]
mod tests;
