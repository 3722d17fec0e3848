//! Which addresses a link reaches without a gateway. Pure, but for `follow`, which reads the routes.
//!
//! An address is on-link if the most specific route for it through the link has no gateway. So one dump of the routes
//! answers for all peers, and notifications show when to read them again.

mod follow;

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::addr::{Family, PrefixLengths, Subnet};
use crate::dataplane::Route;

/// The routes through one link, as far as they decide which addresses are on-link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnLink {
    /// By destination and metric, whether the route has no gateway. Routes with a gateway are kept only inside routes
    /// without one, so that a host with many routes costs little memory.
    routes: BTreeMap<(Subnet, u32), bool>,
    lengths: PrefixLengths,
}

impl OnLink {
    /// Computes it from all routes through a link.
    pub fn new(routes: &[Route]) -> Self {
        let mut on_link = Self::default();
        for route in routes.iter().filter(|route| route.via.is_none()) {
            on_link.insert(route);
        }
        let inside: Vec<&Route> =
            routes.iter().filter(|route| route.via.is_some() && on_link.has_around(route.dst)).collect();
        for route in inside {
            on_link.insert(route);
        }
        on_link
    }

    fn insert(&mut self, route: &Route) {
        if self.routes.insert((route.dst, route.metric), route.via.is_none()).is_none() {
            self.lengths.add(route.dst);
        }
    }

    /// Whether an address is on-link.
    pub fn reaches(&self, addr: IpAddr) -> bool {
        self.around(addr, Family::of(addr).bits()).next().unwrap_or(false)
    }

    /// Whether a new or changed route may change the answer for some address.
    pub fn is_changed_by(&self, route: &Route) -> bool {
        match self.routes.get(&(route.dst, route.metric)) {
            Some(direct) => *direct != route.via.is_none(),
            None => route.via.is_none() || self.has_around(route.dst),
        }
    }

    /// Whether the answers depend on the route with this key.
    pub fn rests_on(&self, dst: Subnet, metric: u32) -> bool {
        self.routes.contains_key(&(dst, metric))
    }

    fn has_around(&self, dst: Subnet) -> bool {
        self.around(dst.base(), dst.prefix()).any(|direct| direct)
    }

    /// For the routes to an address with prefixes up to `longest`, the most specific first and then by metric: whether
    /// the route has no gateway.
    fn around(&self, addr: IpAddr, longest: u8) -> impl Iterator<Item = bool> + '_ {
        let subnets = self.lengths.around(addr, longest);
        subnets
            .filter_map(|dst| self.routes.range((dst, 0)..=(dst, u32::MAX)).next().map(|(_, direct)| *direct))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::LinkIndex;
    use crate::dataplane::Through;

    /// `subnet[ via gateway][ metric N]`
    fn route(text: &str) -> Route {
        let words: Vec<&str> = text.split(' ').collect();
        let after = |word| words.iter().position(|it| *it == word).map(|at| words[at + 1]);
        Route {
            dst: words[0].parse().unwrap(),
            metric: after("metric").map_or(0, |metric| metric.parse().unwrap()),
            via: after("via").map(|via| via.parse().unwrap()),
            link: Some(LinkIndex(2)),
            onlink: false,
            through: Through::Itself,
            protocol: 2,
            mtu: None,
            plain: false,
        }
    }

    fn on_link(routes: &[&str]) -> OnLink {
        OnLink::new(&routes.iter().map(|text| route(text)).collect::<Vec<_>>())
    }

    #[test]
    fn the_most_specific_route_decides() {
        let subnet = "192.0.2.0/24";
        let default = "0.0.0.0/0 via 192.0.2.254";
        for (routes, addr, want) in [
            (&[subnet, default][..], "192.0.2.9", true),
            (&[subnet, default], "198.51.100.9", false),
            (&[default], "192.0.2.9", false),
            (&[], "192.0.2.9", false),
            (&[subnet, "192.0.2.9/32 via 192.0.2.254"], "192.0.2.9", false),
            (&[subnet, "192.0.2.9/32 via 192.0.2.254"], "192.0.2.8", true),
            (&[subnet, "192.0.2.128/25 via 192.0.2.254", "192.0.2.200/32"], "192.0.2.200", true),
            (&[subnet, "192.0.2.128/25 via 192.0.2.254", "192.0.2.200/32"], "192.0.2.201", false),
            // A cloud's /32, with the gateway alone on-link; and a point-to-point link without gateways.
            (&["192.0.2.254/32", default], "192.0.2.9", false),
            (&["0.0.0.0/0"], "203.0.113.5", true),
            // A second subnet on the link, and one with two ways of which the cheaper counts.
            (&[subnet, "203.0.113.0/24"], "203.0.113.5", true),
            (&["192.0.2.0/24 metric 100", "192.0.2.0/24 via 192.0.2.254 metric 50"], "192.0.2.9", false),
            (&["192.0.2.0/24 metric 100", "192.0.2.0/24 via 192.0.2.254 metric 200"], "192.0.2.9", true),
            (&["2001:db8::/64 metric 256", "::/0 via fe80::1 metric 1024"], "2001:db8::9", true),
            (&["2001:db8::/64 metric 256", "::/0 via fe80::1 metric 1024"], "2001:db8:1::9", false),
            (&[subnet], "2001:db8::9", false),
        ] {
            assert_eq!(on_link(routes).reaches(addr.parse().unwrap()), want, "{addr} by {routes:?}");
        }
    }

    #[test]
    fn only_what_can_change_an_answer_is_of_interest() {
        let known = on_link(&["192.0.2.0/24", "0.0.0.0/0 via 192.0.2.254", "192.0.2.9/32 via 192.0.2.254"]);
        for (put, want) in [
            ("192.0.2.0/24", false),
            ("192.0.2.9/32 via 192.0.2.253", false),
            ("0.0.0.0/0 via 192.0.2.253", false),
            ("198.51.100.0/24 via 192.0.2.254", false),
            ("2001:db8::/32 via fe80::1", false),
            ("198.51.100.0/24", true),
            ("192.0.2.8/32 via 192.0.2.254", true),
            ("192.0.2.0/24 via 192.0.2.254", true),
            ("192.0.2.9/32", true),
        ] {
            assert_eq!(known.is_changed_by(&route(put)), want, "{put}");
        }
        assert!(known.rests_on("192.0.2.0/24".parse().unwrap(), 0));
        assert!(known.rests_on("192.0.2.9/32".parse().unwrap(), 0));
        assert!(!known.rests_on("0.0.0.0/0".parse().unwrap(), 0), "says nothing that its absence would not");
    }

    prop_compose! {
        fn any_route()(low in 0..8_u8, prefix in 28..=32_u8, metric in 0..2_u32, direct: bool) -> Route {
            let dst = Subnet::containing([192, 0, 2, low].into(), prefix).unwrap();
            let via = (!direct).then_some([192, 0, 2, 254].into());
            Route { dst, metric, via, ..route("192.0.2.0/24") }
        }
    }

    /// All routes, one by one.
    fn naive(routes: &[Route], addr: IpAddr) -> bool {
        let fits = routes.iter().filter(|route| route.dst.contains(addr));
        fits.max_by_key(|route| (route.dst.prefix(), std::cmp::Reverse(route.metric)))
            .is_some_and(|route| route.via.is_none())
    }

    proptest! {
        #[test]
        fn it_is_the_longest_match(routes in prop::collection::vec(any_route(), 0..12)) {
            let routes: Vec<Route> =
                routes.into_iter().map(|it| ((it.dst, it.metric), it)).collect::<BTreeMap<_, _>>().into_values().collect();
            let on_link = OnLink::new(&routes);
            for low in 0..16 {
                let addr = [192, 0, 2, low].into();
                prop_assert_eq!(on_link.reaches(addr), naive(&routes, addr), "{}", addr);
            }
        }

        #[test]
        fn what_is_of_no_interest_changes_nothing(
            routes in prop::collection::vec(any_route(), 0..8), put in any_route(),
        ) {
            let mut all: BTreeMap<_, Route> = routes.into_iter().map(|it| ((it.dst, it.metric), it)).collect();
            let before = OnLink::new(&all.values().copied().collect::<Vec<_>>());
            if !before.is_changed_by(&put) {
                all.insert((put.dst, put.metric), put);
                let after = OnLink::new(&all.values().copied().collect::<Vec<_>>());
                for low in 0..16 {
                    let addr = [192, 0, 2, low].into();
                    prop_assert_eq!(before.reaches(addr), after.reaches(addr));
                }
            }
        }
    }
}
