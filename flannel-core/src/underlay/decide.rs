//! The decision itself, over plain values.

use std::net::IpAddr;

use regex::bytes::{Regex, RegexBuilder};

use super::{Choice, Host, Lost, UnderlayError, UnderlayOptions};
use crate::addr::{Family, PerFamily};
use crate::backend::Underlay;
use crate::kernel::{Link, LinkAddress, RouteLookup};

/// Chooses the underlay of a host.
///
/// Upstream fills what was not named from the default route only if nothing was named at all; a candidate
/// that can't be used is passed over for the next.
pub fn decide(host: &Host, options: &UnderlayOptions) -> Result<Choice, UnderlayError> {
    let mut links: Vec<&Link> = host.links.iter().collect();
    links.sort_by_key(|link| link.index);
    let mut search = Search { host, options, links, lost: Vec::new() };
    match search.run() {
        Some(underlay) => Ok(Choice { underlay, lost: search.lost }),
        None => Err(UnderlayError::NoneFits { host: search.describe_host(), lost: search.lost }),
    }
}

struct Search<'a> {
    host: &'a Host,
    options: &'a UnderlayOptions,
    /// In the order of their numbers.
    links: Vec<&'a Link>,
    lost: Vec<Lost>,
}

impl<'a> Search<'a> {
    fn run(&mut self) -> Option<Underlay> {
        let options = self.options;
        if options.ifaces.is_empty() && options.iface_regexes.is_empty() && options.can_reach.is_none() {
            let mut public = options.public_ips.iter().filter(|(family, _)| self.enabled(*family));
            return match public.next() {
                Some((_, addr)) => self.by_address(*addr, &format!("public address {addr}")),
                None => self.by_default_route(),
            };
        }
        for iface in &options.ifaces {
            let found = match iface.parse::<IpAddr>() {
                _ if iface.is_empty() => self.by_default_route(),
                Ok(addr) => self.by_address(addr.to_canonical(), &format!("address {addr}")),
                Err(_) => self.by_name(iface),
            };
            if found.is_some() {
                return found;
            }
        }
        for pattern in &options.iface_regexes {
            let found = if pattern.is_empty() { self.by_default_route() } else { self.by_regex(pattern) };
            if found.is_some() {
                return found;
            }
        }
        options.can_reach.and_then(|dst| self.by_reach(dst))
    }

    fn by_name(&mut self, name: &str) -> Option<Underlay> {
        match self.links.iter().find(|link| link.name == name).copied() {
            Some(link) => self.finish(link, PerFamily::default(), &format!("it is named {name}")),
            None => self.lose(format!("interface {name:?}"), "there is none of this name"),
        }
    }

    /// The link that has an address, whatever its flags: the operator named it.
    fn by_address(&mut self, addr: IpAddr, candidate: &str) -> Option<Underlay> {
        let family = Family::of(addr);
        if !self.enabled(family) {
            return self.lose(candidate, format!("{family} is not enabled"));
        }
        let Some(link) = self.owner(addr) else {
            return self.lose(candidate, "no interface has it");
        };
        let mut pinned = PerFamily::default();
        *pinned.get_mut(family) = Some(addr);
        // Upstream ties a public IPv6 address to the link that the IPv4 address picked.
        if let (Family::V4, true, Some(public)) =
            (family, self.enabled(Family::V6), self.options.public_ips.v6)
        {
            match self.owner(public) {
                Some(other) if other.index == link.index => pinned.v6 = Some(public),
                Some(other) => {
                    let reason = format!("public address {public} is on {}, not {}", other.name, link.name);
                    return self.lose(candidate, reason);
                }
                None => {
                    return self.lose(candidate, format!("no interface has public address {public}"));
                }
            }
        }
        self.finish(link, pinned, &format!("it has {candidate}"))
    }

    /// First every link by its addresses, then every link by its name.
    fn by_regex(&mut self, pattern: &str) -> Option<Underlay> {
        let candidate = format!("regular expression {pattern:?}");
        let regex = match compile(pattern) {
            Ok(regex) => regex,
            Err(error) => return self.lose(candidate, format!("it can't be used: {error}")),
        };
        let links = self.links.clone();
        let lost = self.lost.len();
        for link in &links {
            let pinned = PerFamily::from_fn(|family| {
                let usable = if self.enabled(family) { self.usable(link, family) } else { Vec::new() };
                usable.into_iter().find(|addr| regex.is_match(addr.to_string().as_bytes()))
            });
            if self.options.families.iter().all(|family| pinned.get(*family).is_some()) {
                let reason = format!("its address matches {candidate}");
                if let Some(underlay) = self.finish(link, pinned, &reason) {
                    return Some(underlay);
                }
            }
        }
        for link in &links {
            if regex.is_match(link.name.as_bytes()) {
                let reason = format!("its name matches {candidate}");
                if let Some(underlay) = self.finish(link, PerFamily::default(), &reason) {
                    return Some(underlay);
                }
            }
        }
        if self.lost.len() == lost { self.lose(candidate, "nothing matches it") } else { None }
    }

    fn by_reach(&mut self, dst: IpAddr) -> Option<Underlay> {
        let candidate = format!("route to {dst}");
        let route = match &self.host.reach {
            Ok(route) => *route,
            Err(reason) => return self.lose(candidate, reason.clone()),
        };
        let link = self.link_of(&route, &candidate)?;
        // Upstream takes the route's source for IPv4 only: for IPv6 it may be a temporary address.
        let source = route.source.filter(|source| source.is_ipv4() && self.enabled(Family::V4));
        self.finish(link, PerFamily { v4: source, v6: None }, &format!("the route to {dst} leaves by it"))
    }

    /// Every enabled family must leave by the same link.
    fn by_default_route(&mut self) -> Option<Underlay> {
        let mut chosen: Option<(Family, &Link)> = None;
        for family in self.options.families.clone() {
            let candidate = format!("{family} default route");
            let routes = self.host.defaults.get(family).map_or(&[][..], Vec::as_slice);
            let Some(route) = routes.iter().min_by_key(|route| route.metric) else {
                return self.lose(candidate, "there is none; name the interface");
            };
            let link = self.link_of(route, &candidate)?;
            match chosen {
                Some((first, other)) if other.index != link.index => {
                    let reason = format!("it leaves by {}, but that of {first} by {}", link.name, other.name);
                    return self.lose(candidate, reason);
                }
                _ => chosen = Some((family, link)),
            }
        }
        let Some((_, link)) = chosen else {
            return self.lose("default route", "no address family is enabled");
        };
        self.finish(link, PerFamily::default(), "the default route leaves by it")
    }

    fn link_of(&mut self, route: &RouteLookup, candidate: &str) -> Option<&'a Link> {
        let Some(index) = route.link else {
            return self.lose(candidate, "it has no single interface (multipath); name the interface");
        };
        let link = self.links.iter().find(|link| link.index == index).copied();
        if link.is_none() {
            return self.lose(candidate, format!("it leaves by interface number {index}, which is gone"));
        }
        link
    }

    /// Completes the addresses of a link, or says why it can't be used.
    fn finish(&mut self, link: &Link, pinned: PerFamily<IpAddr>, reason: &str) -> Option<Underlay> {
        if link.mtu.0 == 0 {
            return self.lose(&link.name, "its MTU is 0");
        }
        let addresses = PerFamily::try_from_fn(|family| {
            if !self.enabled(family) {
                return Ok(None);
            }
            let first = || self.usable(link, family).first().copied();
            pinned.get(family).copied().or_else(first).map(Some).ok_or(family)
        });
        let addresses = match addresses {
            Ok(addresses) => addresses,
            Err(family) => return self.lose(&link.name, format!("no {family} address")),
        };
        // A public address of a family that is not enabled is published all the same, as upstream does.
        let published = PerFamily::from_fn(|family| {
            self.options.public_ips.get(family).or(addresses.get(family)).copied()
        });
        let local = addresses.map(|family, addr| {
            let public = published.get(family).copied().filter(|public| self.owner(*public).is_some());
            public.unwrap_or(addr)
        });
        Some(Underlay {
            name: link.name.clone(),
            link: link.index,
            mtu: link.mtu,
            local,
            published,
            reason: reason.to_owned(),
        })
    }

    fn lose<T>(&mut self, candidate: impl Into<String>, reason: impl Into<String>) -> Option<T> {
        self.lost.push(Lost { candidate: candidate.into(), reason: reason.into() });
        None
    }

    fn enabled(&self, family: Family) -> bool {
        self.options.families.contains(&family)
    }

    /// The link that has an address.
    fn owner(&self, addr: IpAddr) -> Option<&'a Link> {
        let has = |link: &Link| self.addresses(link).any(|own| own.addr.ip() == addr);
        self.links.iter().copied().find(|link| has(link))
    }

    fn addresses(&self, link: &Link) -> impl Iterator<Item = &'a LinkAddress> {
        let (index, addresses) = (link.index, &self.host.addresses);
        addresses.iter().filter(move |addr| addr.link == index)
    }

    /// The addresses of a link that nodes can be reached at, the best first.
    fn usable(&self, link: &Link, family: Family) -> Vec<IpAddr> {
        let fits = |addr: &&LinkAddress| {
            Family::of(addr.addr.ip()) == family && !addr.deprecated && is_unicast(addr.addr.ip())
        };
        let mut usable: Vec<_> = self.addresses(link).filter(fits).collect();
        // A tentative address is a second away from use, so it is still better than a link-local one.
        // The sort is stable: the kernel's order decides the rest.
        usable.sort_by_key(|addr| {
            (is_link_local(addr.addr.ip()), addr.tentative, !addr.permanent, addr.temporary)
        });
        usable.into_iter().map(|addr| addr.addr.ip()).collect()
    }

    fn describe_host(&self) -> String {
        let describe = |link: &&Link| {
            let addresses: Vec<_> = self.addresses(link).map(|addr| addr.addr.to_string()).collect();
            let addresses = if addresses.is_empty() { "no address".into() } else { addresses.join(", ") };
            format!("{} ({addresses})", link.name)
        };
        let links: Vec<_> = self.links.iter().map(describe).collect();
        if links.is_empty() { "no interfaces".into() } else { links.join(", ") }
    }
}

/// Compiles a pattern with the classes of Go's RE2, which know ASCII only.
fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern).unicode(false).build().map_err(|error| {
        // The library draws the place over several lines; the last one says what is wrong.
        let text = error.to_string();
        text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
    })
}

/// Go's `IsGlobalUnicast` or `IsLinkLocalUnicast`.
fn is_unicast(addr: IpAddr) -> bool {
    !addr.is_unspecified()
        && !addr.is_loopback()
        && !addr.is_multicast()
        && addr != IpAddr::from([255, 255, 255, 255])
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}
