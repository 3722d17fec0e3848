use std::net::IpAddr;

use super::*;
use crate::underlay::tests::{addr, host, ip, link, options, route, with};

const DUAL: &[Family] = &Family::ALL;

fn overlay() -> PerFamily<Subnet> {
    PerFamily { v4: "10.5.0.0/16".parse().ok(), v6: "fd00:5::/48".parse().ok() }
}

fn without(gone: &[&str]) -> Host {
    let mut host = host();
    host.addresses.retain(|own| !gone.contains(&own.addr.ip().to_string().as_str()));
    host
}

/// What becomes of the choice that `options` makes on the untouched host.
fn after(change: impl FnOnce(&mut Host), options: &UnderlayOptions) -> String {
    let current = decide(&host(), options).unwrap().underlay;
    let mut host = host();
    change(&mut host);
    match review(&host, options, &current, &overlay()) {
        Standing::Stands => "stands".to_owned(),
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

fn remove(gone: &'static str) -> impl FnOnce(&mut Host) {
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
        let both = |host: &mut Host| {
            host.addresses.retain(|own| own.link.0 != 2);
            host.addresses.extend([addr(2, "172.16.31.9/24"), addr(2, "fd00:31::9/64")]);
        };
        assert_eq!(after(both, options), "eth0 172.16.31.9 fd00:31::9");
        // Now the rule would choose another.
        let newer = |host: &mut Host| host.addresses.insert(0, addr(2, "172.16.30.1/24"));
        assert_eq!(after(newer, options), "stands");
    }
    // A new index is no other link.
    let anew = |host: &mut Host| {
        host.links.iter_mut().filter(|link| link.name == "eth0").for_each(|link| link.index.0 = 7);
        host.addresses.iter_mut().filter(|own| own.link.0 == 2).for_each(|own| own.link.0 = 7);
    };
    assert_eq!(after(anew, &named), "stands");
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
    let lost = "underlay address fd00:30::10 is gone from eth0, and there is no other (eth0: no IPv6 address); \
                all stays as it is";
    assert_eq!(after(remove("fd00:30::10"), &named), lost, "a link-local one is there");
    let tentative = |host: &mut Host| {
        remove("fd00:30::10")(host);
        host.addresses.push(LinkAddress { tentative: true, ..addr(2, "fd00:30::11/64") });
    };
    assert_eq!(after(tentative, &named), lost);
    // The pods' bridge is no underlay, though a pattern may match its address.
    let pattern = with(&[Family::V4], |options| options.iface_regexes = vec!["^1".into()]);
    let bridge = |host: &mut Host| {
        host.addresses.retain(|own| own.link.0 == 1);
        host.links.push(link(9, "cni0"));
        host.addresses.push(addr(9, "10.5.3.1/24"));
    };
    assert!(after(bridge, &pattern).starts_with("underlay address 172.16.30.10 is gone from eth0"));
    let gone = |host: &mut Host| host.links.retain(|link| link.name != "eth0");
    assert!(after(gone, &named).starts_with("underlay link eth0 is gone, and there is no other"));
}

#[test]
fn a_deprecated_address_is_left_for_a_better_one_only() {
    let named = with(&[Family::V6], |options| options.ifaces = vec!["eth0".into()]);
    let old = |host: &mut Host| {
        let old = host.addresses.iter_mut().find(|own| own.addr.ip() == ip("fd00:30::10")).unwrap();
        old.deprecated = true;
    };
    assert_eq!(after(old, &named), "stands");
    let renumbered = |host: &mut Host| {
        old(host);
        host.addresses.push(addr(2, "fd00:31::10/64"));
    };
    assert_eq!(after(renumbered, &named), "eth0 fd00:31::10");
}

#[tokio::test(start_paused = true)]
async fn a_successor_is_taken_once_it_has_settled() {
    let options = options(&[Family::V4]);
    let current = decide(&host(), &options).unwrap().underlay;
    let mut follower = Follower::new(options, current, overlay());
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
    let next = follower.look(&again, now + SETTLED * 3).unwrap();
    assert_eq!(next.local.v4, Some(ip("172.16.30.12")));
    follower.take(next);
    assert_eq!((follower.look(&again, now + SETTLED * 3), follower.due()), (None, None));

    // Another link is a longer way.
    let mut elsewhere = without(&["172.16.30.12"]);
    elsewhere.defaults.v4 = Some(vec![route(Some(3), 0)]);
    assert_eq!(follower.look(&elsewhere, now), None);
    assert_eq!(follower.due(), Some(now + SETTLED_ELSEWHERE));
    assert_eq!(follower.problem(), None);
    elsewhere.defaults.v4 = Some(vec![]);
    assert_eq!((follower.look(&elsewhere, now), follower.due()), (None, None));
    assert!(follower.problem().unwrap().contains("172.16.30.12 is gone from eth0"));
}
