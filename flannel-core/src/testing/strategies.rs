//! proptest strategies over small domains, so that keys collide.

use std::net::IpAddr;

use proptest::prelude::*;

use crate::addr::{LinkIndex, MacAddr, Mtu, Subnet};
use crate::dataplane::{Address, Dataplane, FdbEntry, Neighbour, NextHop, Object, Route, Through};

fn addr() -> impl Strategy<Value = IpAddr> {
    (any::<bool>(), 0..4_u8).prop_map(|(v4, low)| {
        if v4 {
            IpAddr::from([10, 5, low, 0])
        } else {
            IpAddr::from([0xfd00, 0, 0, u16::from(low), 0, 0, 0, 0])
        }
    })
}

fn mac() -> impl Strategy<Value = MacAddr> {
    (0..4_u8).prop_map(|low| MacAddr([2, 0, 0, 0, 0, low]))
}

/// Any object on one of two links.
pub fn object() -> impl Strategy<Value = Object> {
    let link = (1..3_u32).prop_map(LinkIndex);
    (0..6_u8, link, addr(), addr(), mac(), any::<bool>(), 0..2_u32).prop_map(
        |(kind, link, addr, other, mac, flag, metric)| {
            let host = Subnet::containing(addr, if addr.is_ipv4() { 32 } else { 128 }).expect("fits");
            let dst = Subnet::containing(addr, if addr.is_ipv4() { 24 } else { 64 }).expect("fits");
            match kind {
                0 => Object::Address(Address { link, addr: host.into() }),
                1 => Object::Neighbour(Neighbour { link, addr, mac }),
                2 => Object::Fdb(FdbEntry { link, mac, dst: other, port: None, vni: None, via: None }),
                3 => {
                    let spare = flag.then_some(metric);
                    Object::NextHop(NextHop { link, gateway: addr, spare })
                }
                5 => Object::Route(Route::blackhole(dst)),
                _ => Object::Route(Route {
                    dst,
                    metric,
                    via: Some(addr),
                    link: Some(link),
                    onlink: flag,
                    through: match (mac.0[5], flag) {
                        (0, _) => Through::Object,
                        (1, true) => Through::Spare(metric),
                        _ => Through::Itself,
                    },
                    protocol: 102,
                    mtu: (mac.0[5] > 1).then_some(Mtu(1280 + metric)),
                    plain: true,
                }),
            }
        },
    )
}

/// A set of up to 24 objects.
pub fn dataplane() -> impl Strategy<Value = Dataplane> {
    prop::collection::vec(object(), 0..24).prop_map(|objects| objects.into_iter().collect())
}
