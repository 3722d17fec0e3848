//! The choice of the underlay, as a pure function.

use std::collections::BTreeMap;
use std::net::IpAddr;

use regex::bytes::{Regex, RegexBuilder};

use super::chosen::Underlay;
use super::overlay::is_host_address;
use super::{ChosenUnderlay, HostLinks, Lost, UnderlayError, UnderlayOptions, is_link_local};
use crate::addr::{Family, LinkIndex, PerFamily};
use crate::error::Expected;
use crate::kernel::{Exit, Link, LinkAddress, RouteLookup};

/// Chooses the underlay of a host.
///
/// As upstream, the default route is used only if nothing was named at all. A candidate that can't be used is skipped
/// for the next one.
pub fn decide(host: &HostLinks, options: &UnderlayOptions) -> Result<ChosenUnderlay, UnderlayError> {
    decide_again(host, options, None)
}

/// A link that may have been renamed since it was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Followed {
    pub(super) link: LinkIndex,
    /// The name by which it was chosen. The operator's options with that name still mean this link.
    pub(super) name: String,
}

/// The same as [`decide`], for a host whose underlay was chosen before.
pub(super) fn decide_again(
    host: &HostLinks,
    options: &UnderlayOptions,
    followed: Option<&Followed>,
) -> Result<ChosenUnderlay, UnderlayError> {
    let mut links: Vec<&Link> = host.links.iter().collect();
    links.sort_by_key(|link| link.index);
    let made = options.overlay.made(host);
    let mut search = Search { host, options, followed, links, made, lost: Vec::new() };
    match search.run() {
        Some(underlay) => Ok(ChosenUnderlay { underlay, lost: search.lost }),
        None => Err(UnderlayError::NoneFits { host: search.describe_host(), lost: search.lost }),
    }
}

struct Search<'a> {
    host: &'a HostLinks,
    options: &'a UnderlayOptions,
    followed: Option<&'a Followed>,
    /// The links in the order of their indices.
    links: Vec<&'a Link>,
    /// The links that belong to the overlay, with the reason.
    made: BTreeMap<LinkIndex, String>,
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
        let was = |link: &&Link| self.old_name(link).is_some_and(|old| old == name);
        let is = |link: &&Link| {
            !was(link) && (link.name == name || link.altnames.iter().any(|other| other == name))
        };
        let found: Vec<&Link> =
            self.links.iter().copied().filter(was).chain(self.links.iter().copied().filter(is)).collect();
        if found.is_empty() {
            return self.lose(format!("interface {name}"), self.no_such_name());
        }
        found.into_iter().find_map(|link| {
            let reason = match name {
                _ if link.name == name => format!("it is named {name}"),
                _ if link.altnames.iter().any(|other| other == name) => format!("it is also named {name}"),
                _ => format!("it was named {name}"),
            };
            self.finish(link, PerFamily::default(), &reason)
        })
    }

    fn old_name(&self, link: &Link) -> Option<&'a String> {
        let followed = self.followed.filter(|followed| followed.link == link.index)?;
        Some(&followed.name)
    }

    /// The error for a link that does not exist. If it was renamed while no agent ran, the error names the link that
    /// has the address which this node published last.
    fn no_such_name(&self) -> String {
        let kept = self.options.kept.iter().find_map(|(_, addr)| Some((*addr, self.owner(*addr)?)));
        match kept {
            Some((addr, link)) => format!(
                "there is none of this name; {addr}, which this node published before, is on {}: if that is it, name \
                 it so, or give it the old name as an altname (ip link property add)",
                link.name
            ),
            None => "there is none of this name".to_owned(),
        }
    }

    /// The link that has an address, whatever its flags, since the operator named it.
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

    /// Tries every link by its addresses first, then every link by its name.
    fn by_regex(&mut self, pattern: &str) -> Option<Underlay> {
        let candidate = format!("regular expression \"{pattern}\"");
        let regex = match compile(pattern) {
            Ok(regex) => regex,
            Err(error) => return self.lose(candidate, format!("it can't be used: {error}")),
        };
        let links = self.links.clone();
        let lost = self.lost.len();
        for link in &links {
            let pinned = PerFamily::from_fn(|family| {
                let usable = if self.enabled(family) { self.usable(link, family) } else { Vec::new() };
                self.best(
                    usable.into_iter().filter(|addr| regex.is_match(addr.to_string().as_bytes())),
                    family,
                )
            });
            if self.options.families.iter().all(|family| pinned.get(*family).is_some()) {
                let reason = format!("its address matches {candidate}");
                if let Some(underlay) = self.finish(link, pinned, &reason) {
                    return Some(underlay);
                }
            }
        }
        for link in &links {
            let mut names = std::iter::once(&link.name).chain(self.old_name(link));
            if names.any(|name| regex.is_match(name.as_bytes())) {
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
            Err(reason) => return self.lose(candidate, reason.to_string()),
        };
        let link = self.link_of(&route, &candidate)?;
        // Upstream takes the route's source for IPv4 only: for IPv6 it may be a temporary address.
        let source = route.source.filter(|source| source.is_ipv4() && self.enabled(Family::V4));
        let source = source.map(|source| self.kept_on(link, Family::V4).unwrap_or(source));
        self.finish(link, PerFamily { v4: source, v6: None }, &format!("the route to {dst} leaves by it"))
    }

    /// The link of the default routes, which must be the same for all enabled families. A default route by a device of
    /// the overlay, which DHCP clients may put there, is ignored.
    fn by_default_route(&mut self) -> Option<Underlay> {
        let mut chosen: Option<(Family, &Link)> = None;
        for family in self.options.families.clone() {
            let candidate = format!("{family} default route");
            let mut routes = self.host.defaults.get(family).cloned().unwrap_or_default();
            routes.sort_by_key(|route| route.metric);
            for route in &routes {
                if let Exit::By(link) = route.exit
                    && let Some(why) = self.made.get(&link).cloned()
                {
                    self.lose::<()>(format!("{candidate} by {}", self.name_of(link)), why);
                }
            }
            let by_overlay = |exit| matches!(exit, Exit::By(link) if self.made.contains_key(&link));
            let Some(route) = routes.iter().find(|route| !by_overlay(route.exit)) else {
                let none = if routes.is_empty() { "there is none" } else { "there is no other" };
                return self.lose(candidate, format!("{none}; name the interface"));
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
        let index = match route.exit {
            Exit::By(index) => index,
            Exit::Nowhere => return self.lose(candidate, "it leaves by no interface; name the interface"),
            Exit::Several(one, other) => {
                let (one, other) = (self.name_of(one), self.name_of(other));
                let reason = format!("its next hops leave by {one} and {other}; name the interface");
                return self.lose(candidate, reason);
            }
        };
        let link = self.links.iter().find(|link| link.index == index).copied();
        if link.is_none() {
            return self.lose(candidate, format!("it leaves by interface number {index}, which is gone"));
        }
        link
    }

    /// Completes the addresses of a link, or says why it can't be used.
    fn finish(&mut self, link: &Link, pinned: PerFamily<IpAddr>, reason: &str) -> Option<Underlay> {
        if let Some(why) = self.made.get(&link.index).cloned() {
            return self.lose(&link.name, why);
        }
        if link.mtu.0 == 0 {
            return self.lose(&link.name, "its MTU is 0");
        }
        let public = self.options.public_ips.iter().filter(|(family, _)| self.enabled(*family));
        let of_overlay = public.filter_map(|(_, addr)| Some((*addr, self.owner(*addr)?)));
        let of_overlay = of_overlay.filter(|(_, owner)| self.made.contains_key(&owner.index));
        if let Some((addr, owner)) = of_overlay.last() {
            let why = self.made[&owner.index].clone();
            return self.lose(format!("public address {addr} on {}", owner.name), why);
        }
        let addresses = PerFamily::try_from_fn(|family| {
            if !self.enabled(family) {
                return Ok(None);
            }
            let first = || self.best(self.usable(link, family).into_iter(), family);
            pinned.get(family).copied().or_else(first).map(Some).ok_or(family)
        });
        let addresses = match addresses {
            Ok(addresses) => addresses,
            Err(family) => return self.lose(&link.name, format!("no {family} address")),
        };
        // A public address of a family that is not enabled is published, too, as upstream does.
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

    /// The link that has an address; of several links one that does not belong to the overlay.
    fn owner(&self, addr: IpAddr) -> Option<&'a Link> {
        let has = |link: &&Link| self.addresses(link).any(|own| own.addr.ip() == addr);
        self.links.iter().copied().filter(has).min_by_key(|link| self.made.contains_key(&link.index))
    }

    fn name_of(&self, link: LinkIndex) -> String {
        let found = self.links.iter().find(|known| known.index == link);
        found.map_or_else(|| format!("interface number {link}, which is gone"), |link| link.name.clone())
    }

    /// The usable address that was published before, else the first.
    fn best(&self, mut usable: impl Iterator<Item = IpAddr>, family: Family) -> Option<IpAddr> {
        let kept = self.options.kept.get(family);
        let first = usable.next()?;
        Some(if Some(&first) == kept {
            first
        } else {
            usable.find(|addr| Some(addr) == kept).unwrap_or(first)
        })
    }

    /// The address that was published before, if the link still has it.
    fn kept_on(&self, link: &Link, family: Family) -> Option<IpAddr> {
        let kept = *self.options.kept.get(family)?;
        self.usable(link, family).contains(&kept).then_some(kept)
    }

    fn addresses(&self, link: &Link) -> impl Iterator<Item = &'a LinkAddress> {
        let (index, addresses) = (link.index, &self.host.addresses);
        addresses.iter().filter(move |addr| addr.link == index)
    }

    /// The addresses of a link at which nodes can be reached, the best first.
    fn usable(&self, link: &Link, family: Family) -> Vec<IpAddr> {
        let fits = |addr: &&LinkAddress| {
            Family::of(addr.addr.ip()) == family && !addr.deprecated && is_unicast(addr.addr.ip())
        };
        let mut usable: Vec<_> = self.addresses(link).filter(fits).collect();
        // An address with `/32` or `/128` may be a virtual address that moves between hosts, so it comes last. A
        // tentative address will be usable within a second, so it is better than those. The sort is stable: the
        // kernel's order decides the rest.
        usable.sort_by_key(|addr| {
            let ip = addr.addr.ip();
            let worse = (is_link_local(ip), self.options.overlay.contains(ip), is_host_address(addr));
            (worse, addr.tentative, !addr.permanent, addr.temporary)
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

/// Checks one of [`UnderlayOptions::ifaces`] before it is needed: the name of an interface, one of its other names, or an
/// address. An empty one stands for the default route. Whether the host has it, only the start of an agent shows.
///
/// [`UnderlayOptions::ifaces`]: super::UnderlayOptions::ifaces
pub fn check_iface(text: &str) -> Result<(), Expected> {
    // As the kernel has it (`dev_valid_name`, and `ALTIFNAMSIZ` for the length).
    let is_bad = |it: char| it.is_whitespace() || it.is_control() || it == '/';
    let is_name = text.len() < 128 && !text.contains(is_bad) && !matches!(text, "." | "..");
    if is_name { Ok(()) } else { Err(Expected("the name of an interface or one IP address")) }
}

/// A text that is not a regular expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRegex(String);

/// Checks one of [`UnderlayOptions::iface_regexes`] before it is needed. Patterns have the syntax of Go's RE2.
pub fn check_regex(pattern: &str) -> Result<(), BadRegex> {
    compile(pattern).map(drop)
}

/// Compiles a pattern with the character classes of Go's RE2, which are ASCII only.
fn compile(pattern: &str) -> Result<Regex, BadRegex> {
    RegexBuilder::new(pattern).unicode(false).build().map_err(|error| {
        // The library marks the position over several lines; the last one has the error.
        let text = error.to_string();
        BadRegex(text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned())
    })
}

/// Go's `IsGlobalUnicast` or `IsLinkLocalUnicast`.
fn is_unicast(addr: IpAddr) -> bool {
    !addr.is_unspecified()
        && !addr.is_loopback()
        && !addr.is_multicast()
        && addr != IpAddr::from([255, 255, 255, 255])
}
