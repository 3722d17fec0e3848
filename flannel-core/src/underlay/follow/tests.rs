use std::net::IpAddr;

use super::*;
use crate::addr::LinkIndex;
use crate::underlay::decide;
use crate::underlay::tests::{addr, host, ip, link, options, route, with};

const DUAL: &[Family] = &Family::ALL;

fn without(gone: &[&str]) -> HostLinks {
    let mut host = host();
    host.addresses.retain(|own| !gone.contains(&own.addr.ip().to_string().as_str()));
    host
}

/// What becomes of the choice that `options` makes on the untouched host.
fn after(change: impl FnOnce(&mut HostLinks), options: &UnderlayOptions) -> String {
    let current = decide(&host(), options).unwrap().underlay;
    let mut host = host();
    change(&mut host);
    match review(&host, options, &current) {
        Standing::Stands => "stands".to_owned(),
        Standing::Renamed(name) => format!("renamed {name}"),
        Standing::Succeeded(Underlay { name, local, published, .. }) => {
            let list = |addrs: PerFamily<IpAddr>| {
                addrs.iter().map(|(_, addr)| addr.to_string()).collect::<Vec<_>>().join(" ")
            };
            assert!(local == published || published == options.public_ips, "{published:?}");
            format!("{name} {}", list(local))
        }
        Standing::Lost(why) => why,
    }
}

fn remove(gone: &'static str) -> impl FnOnce(&mut HostLinks) {
    move |host| host.addresses.retain(|own| own.addr.ip() != ip(gone))
}

#[test]
fn what_stands_is_kept_and_what_is_gone_is_chosen_again_by_the_same_rule() {
    let named = with(DUAL, |options| options.ifaces = vec!["eth0".into()]);
    let by_addr = with(&[Family::V4], |options| options.ifaces = vec!["172.16.30.12".into()]);
    let public = with(&[Family::V4], |options| {
        options.ifaces = vec!["eth0".into()];
        options.public_ips.v4 = Some(ip("198.51.100.1"));
    });
    for options in [&options(DUAL), &named] {
        assert_eq!(after(|_| {}, options), "stands");
        assert_eq!(after(remove("172.16.30.11"), options), "stands");
        assert_eq!(after(remove("172.16.30.10"), options), "eth0 172.16.30.11 fd00:30::10");
        let both = |host: &mut HostLinks| {
            host.addresses.retain(|own| own.link.0 != 2);
            host.addresses.extend([addr(2, "172.16.31.9/24"), addr(2, "fd00:31::9/64")]);
        };
        assert_eq!(after(both, options), "eth0 172.16.31.9 fd00:31::9");
        // Now the rule would choose another.
        let newer = |host: &mut HostLinks| host.addresses.insert(0, addr(2, "172.16.30.1/24"));
        assert_eq!(after(newer, options), "stands");
    }
    // Made anew it has another number, and else is what it was.
    let anew = |host: &mut HostLinks| {
        host.links.iter_mut().filter(|link| link.name == "eth0").for_each(|link| link.index.0 = 7);
        host.addresses.iter_mut().filter(|own| own.link.0 == 2).for_each(|own| own.link.0 = 7);
    };
    assert_eq!(after(anew, &named), "eth0 172.16.30.10 fd00:30::10");
    // The public address was said by the operator, the other one was not.
    assert_eq!(after(remove("172.16.30.10"), &public), "eth0 172.16.30.11");
    let lost = after(remove("172.16.30.12"), &by_addr);
    assert_eq!(
        lost,
        "underlay address 172.16.30.12 is gone from eth0, and there is no other (address 172.16.30.12: no \
         interface has it); all stays as it is"
    );
}

#[test]
fn a_worse_address_is_no_successor() {
    let named = with(DUAL, |options| options.ifaces = vec!["eth0".into()]);
    let lost = "underlay address fd00:30::10 is gone from eth0 (is net/ipv6/conf/eth0/disable_ipv6 1?), and there is no \
                other (eth0: no IPv6 address); all stays as it is";
    assert_eq!(after(remove("fd00:30::10"), &named), lost, "a link-local one is there");
    let tentative = |host: &mut HostLinks| {
        remove("fd00:30::10")(host);
        host.addresses.push(LinkAddress { tentative: true, ..addr(2, "fd00:30::11/64") });
    };
    assert_eq!(after(tentative, &named), lost);
    // The pods' bridge is no underlay, though a pattern may match its address.
    let pattern = with(&[Family::V4], |options| {
        options.iface_regexes = vec!["^1".into()];
        options.overlay.networks = vec!["10.5.0.0/16".parse().unwrap()];
    });
    let bridge = |host: &mut HostLinks| {
        host.addresses.retain(|own| own.link.0 == 1);
        host.links.push(Link { kind: Some("bridge".into()), ..link(9, "cni0") });
        host.addresses.push(addr(9, "10.5.3.1/24"));
    };
    assert!(after(bridge, &pattern).starts_with("underlay address 172.16.30.10 is gone from eth0"));
    let gone = |host: &mut HostLinks| {
        host.links.retain(|link| link.name != "eth0");
        host.addresses.retain(|own| own.link.0 != 2);
    };
    assert!(after(gone, &named).starts_with("underlay link eth0 is gone, and there is no other"));
}

#[test]
fn a_deprecated_address_is_left_for_a_better_one_only() {
    let named = with(&[Family::V6], |options| options.ifaces = vec!["eth0".into()]);
    let old = |host: &mut HostLinks| {
        let old = host.addresses.iter_mut().find(|own| own.addr.ip() == ip("fd00:30::10")).unwrap();
        old.deprecated = true;
    };
    assert_eq!(after(old, &named), "stands");
    let renumbered = |host: &mut HostLinks| {
        old(host);
        host.addresses.push(addr(2, "fd00:31::10/64"));
    };
    assert_eq!(after(renumbered, &named), "eth0 fd00:31::10");
}

#[tokio::test(start_paused = true)]
async fn a_successor_is_taken_once_it_has_settled() {
    let options = options(&[Family::V4]);
    let current = decide(&host(), &options).unwrap().underlay;
    let mut follower = Follower::new(options, current);
    let changed = without(&["172.16.30.10"]);
    let now = Instant::now();
    assert_eq!(follower.look(&changed, now), None);
    assert_eq!(follower.due(), Some(now + SETTLED));
    // It flaps.
    assert_eq!(follower.look(&host(), now + SETTLED / 2), None);
    assert_eq!(follower.due(), None);
    assert_eq!(follower.look(&changed, now + SETTLED), None);
    // Another successor waits anew.
    let again = without(&["172.16.30.10", "172.16.30.11"]);
    assert_eq!(follower.look(&again, now + SETTLED * 2), None);
    let change = follower.look(&again, now + SETTLED * 3).unwrap();
    let Change::Moved(next) = &change else { panic!("{change:?}") };
    assert_eq!(next.local.v4, Some(ip("172.16.30.12")));
    follower.adopt(change);
    assert_eq!((follower.look(&again, now + SETTLED * 3), follower.due()), (None, None));

    // Another link is a longer way.
    let mut elsewhere = without(&["172.16.30.12"]);
    elsewhere.defaults.v4 = Some(vec![route(Some(3), 0)]);
    assert_eq!(follower.look(&elsewhere, now), None);
    assert_eq!(follower.due(), Some(now + SETTLED_ELSEWHERE));
    assert_eq!(follower.problem(), None);
    elsewhere.defaults.v4 = Some(vec![]);
    assert_eq!((follower.look(&elsewhere, now), follower.due()), (None, None));
    assert!(follower.problem().unwrap().0.contains("172.16.30.12 is gone from eth0"));
}

fn follower_of(options: &UnderlayOptions) -> Follower {
    Follower::new(options.clone(), decide(&host(), options).unwrap().underlay)
}

fn rename(host: &mut HostLinks, from: &str, to: &str) {
    host.links.iter_mut().filter(|link| link.name == from).for_each(|link| link.name = to.into());
}

#[tokio::test(start_paused = true)]
async fn a_rename_is_a_rename_and_the_operators_word_still_means_the_link() {
    let named = with(DUAL, |options| options.ifaces = vec!["eth0".into()]);
    let by_regex = with(DUAL, |options| options.iface_regexes = vec!["^eth0$".into()]);
    for options in [&options(DUAL), &named, &by_regex] {
        let mut follower = follower_of(options);
        let (mut host, now) = (host(), Instant::now());
        let before = follower.current.clone();
        rename(&mut host, "eth0", "ens3");
        let renamed = KernelEvent::Link(host.links.iter().find(|link| link.name == "ens3").unwrap().clone());
        assert!(follower.concerns(&renamed));
        let change = follower.look(&host, now).unwrap();
        assert_eq!(change, Change::Renamed(Underlay { name: "ens3".into(), ..before }));
        follower.adopt(change);
        assert_eq!((follower.look(&host, now), follower.problem()), (None, None));
        assert!(!follower.concerns(&renamed));
        // Another link takes the old name, and the followed one is renumbered.
        host.links.push(link(9, "eth0"));
        host.addresses.extend([addr(9, "203.0.113.9/24"), addr(9, "2001:db8::9/64")]);
        assert_eq!((follower.look(&host, now), follower.problem()), (None, None));
        host.addresses.retain(|own| own.link.0 != 2);
        host.addresses.extend([addr(2, "172.16.30.99/24"), addr(2, "fd00:30::99/64")]);
        assert_eq!(follower.look(&host, now), None);
        let Some(Change::Moved(next)) = follower.look(&host, now + SETTLED) else { panic!() };
        assert_eq!((next.name.as_str(), next.local.v4), ("ens3", Some(ip("172.16.30.99"))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_nic_that_was_made_anew_is_taken_at_once_and_another_one_later() {
    let named = with(&[Family::V4], |options| options.ifaces = vec!["eth0".into(), "eth1".into()]);
    let mut follower = follower_of(&named);
    let (mut host, now) = (host(), Instant::now());
    host.links.retain(|link| link.name != "eth0");
    host.addresses.retain(|own| own.link.0 != 2);
    assert!(follower.concerns(&KernelEvent::LinkGone(LinkIndex(2), "eth0".into())));
    assert_eq!(follower.look(&host, now), None);
    assert_eq!(follower.due(), Some(now + SETTLED_ELSEWHERE), "eth1 would do");
    // It is back, first without its address.
    host.links.push(link(7, "eth0"));
    assert_eq!(follower.look(&host, now), None);
    host.addresses.push(addr(7, "172.16.30.10/24"));
    let Some(Change::Moved(next)) = follower.look(&host, now) else { panic!() };
    assert_eq!((next.link, next.local.v4), (LinkIndex(7), Some(ip("172.16.30.10"))));
}

#[tokio::test(start_paused = true)]
async fn what_stands_of_the_other_family_is_kept_and_a_virtual_address_is_no_successor() {
    let named = with(DUAL, |options| options.ifaces = vec!["eth0".into()]);
    let mut follower = follower_of(&named);
    let (mut changed, now) = (host(), Instant::now());
    follower.look(&changed, now);
    // Another IPv4 address is listed first now, and IPv6 is renumbered.
    changed.addresses.insert(0, addr(2, "172.16.30.1/24"));
    changed.addresses.retain(|own| own.addr.ip() != ip("fd00:30::10"));
    changed.addresses.push(addr(2, "fd00:30::100/128"));
    assert_eq!(follower.look(&changed, now), None);
    let (why, family) = follower.problem().unwrap();
    assert!(why.contains("fd00:30::10 is gone from eth0"), "{why}");
    assert_eq!(family, Some(Family::V6), "IPv4 stands");
    let mut without_link = changed.clone();
    without_link.links.retain(|link| link.name != "eth0");
    without_link.addresses.retain(|own| own.link.0 != 2);
    follower.look(&without_link, now);
    assert_eq!(follower.problem().unwrap().1, None, "the link is gone, and with it both");
    follower.look(&changed, now);
    changed.addresses.push(addr(2, "fd00:30::11/64"));
    follower.look(&changed, now);
    let Some(Change::Moved(next)) = follower.look(&changed, now + SETTLED) else { panic!() };
    assert_eq!(next.local, PerFamily { v4: Some(ip("172.16.30.10")), v6: Some(ip("fd00:30::11")) });

    // A cloud's node that never had more than a host address is followed to the next one.
    let cloud = |last: u8| {
        let mut host = host();
        host.addresses = vec![addr(2, &format!("10.0.0.{last}/32"))];
        host
    };
    let v4 = options(&[Family::V4]);
    let mut follower = Follower::new(v4.clone(), decide(&cloud(1), &v4).unwrap().underlay);
    follower.look(&cloud(1), now);
    follower.look(&cloud(2), now);
    let Some(Change::Moved(next)) = follower.look(&cloud(2), now + SETTLED) else { panic!() };
    assert_eq!(next.local.v4, Some(ip("10.0.0.2")));
}

/// The address moves to a bridge that its NIC becomes a port of: the link is there, the address is elsewhere.
#[tokio::test(start_paused = true)]
async fn an_address_that_moves_to_a_bridge_is_followed_there() {
    let v4 = options(&[Family::V4]);
    let mut follower = follower_of(&v4);
    let (mut host, now) = (host(), Instant::now());
    host.links.push(Link { kind: Some("bridge".into()), ..link(9, "br0") });
    host.links
        .iter_mut()
        .filter(|link| link.name == "eth0")
        .for_each(|link| link.master = Some(LinkIndex(9)));
    host.addresses.iter_mut().filter(|own| own.link.0 == 2).for_each(|own| own.link.0 = 9);
    host.defaults.v4 = Some(vec![route(Some(9), 0)]);
    assert_eq!(follower.look(&host, now), None);
    let Some(Change::Moved(next)) = follower.look(&host, now + SETTLED_ELSEWHERE) else { panic!() };
    assert_eq!((next.name.as_str(), next.local.v4), ("br0", Some(ip("172.16.30.10"))));
}
