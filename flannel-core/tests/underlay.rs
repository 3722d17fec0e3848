//! The choice of the underlay on a real kernel, after upstream's `pkg/ipmatch` tests.

use std::process::Command;

use flannel_core::addr::PerFamily;
use flannel_core::backend::Underlay;
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::netlink::Netlink;
use flannel_core::underlay::{UnderlayError, UnderlayOptions, choose};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {err}");
}

/// eth0 with five IPv4 addresses and one IPv6 address, and eth1 with none.
fn build_host() {
    ip("link add eth0 type veth peer name eth1");
    ip("link set eth0 up");
    ip("link set eth1 up");
    for last in 10..15 {
        ip(&format!("address add 172.16.30.{last}/24 dev eth0"));
    }
    ip("address add fd00:30::10/64 dev eth0 nodad");
}

fn chosen(change: impl FnOnce(&mut UnderlayOptions)) -> Result<Underlay, UnderlayError> {
    let mut options = UnderlayOptions::auto();
    change(&mut options);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { choose(&mut Netlink::open().unwrap(), &options).await })
}

/// For both families.
fn dual() -> UnderlayOptions {
    let config =
        r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd03::/48","Backend":{"Type":"vxlan"}}"#;
    UnderlayOptions::of_config(&NetworkConfig::parse(config, LeaseSource::Assigned).unwrap())
}

/// The name and the addresses as text.
fn text(underlay: Result<Underlay, UnderlayError>) -> String {
    let Underlay { name, published, .. } = underlay.unwrap();
    let published: Vec<_> = published.iter().map(|(_, addr)| addr.to_string()).collect();
    format!("{name} {}", published.join(" "))
}

#[test]
fn finds_what_upstream_finds() {
    in_sandbox(test_name!(), || {
        build_host();
        let v4 = |text: &str| PerFamily { v4: Some(text.parse().unwrap()), v6: None };
        let regex = |regex: &str| vec![regex.to_owned()];
        let iface = regex;
        assert_eq!(text(chosen(|o| o.iface_regexes = regex(r"172\.16\.30\.12"))), "eth0 172.16.30.12");
        assert_eq!(text(chosen(|o| o.iface_regexes = regex("^eth"))), "eth0 172.16.30.10");
        assert_eq!(text(chosen(|o| o.ifaces = iface("eth0"))), "eth0 172.16.30.10");
        assert_eq!(text(chosen(|o| o.ifaces = iface("172.16.30.13"))), "eth0 172.16.30.13");
        let both = chosen(|o| *o = dual().iface("172.16.30.13"));
        assert_eq!(text(both), "eth0 172.16.30.13 fd00:30::10");
        let both = chosen(|o| *o = dual().iface("fd00:30::10"));
        assert_eq!(text(both), "eth0 172.16.30.10 fd00:30::10");
        let nat = chosen(|o| (o.iface_regexes, o.public_ips) = (regex("eth0"), v4("8.8.8.8"))).unwrap();
        assert_eq!((nat.published, nat.local), (v4("8.8.8.8"), v4("172.16.30.10")));
    });
}

#[test]
fn follows_the_routes_of_the_host() {
    in_sandbox(test_name!(), || {
        build_host();
        let error = chosen(|_| ()).unwrap_err().to_string();
        assert!(error.contains("IPv4 default route: there is none"), "{error}");
        let reach = |dst: &str| chosen(|o| o.can_reach = Some(dst.parse().unwrap()));
        let error = reach("10.9.9.9").unwrap_err().to_string();
        assert!(error.contains("route to 10.9.9.9: no route leads there"), "{error}");
        ip("route add 10.9.9.9/32 dev eth0 src 172.16.30.14");
        assert_eq!(text(reach("10.9.9.9")), "eth0 172.16.30.14");
        ip("address add 10.1.1.1/24 dev eth1");
        ip("route add default via 172.16.30.1 dev eth0 metric 200");
        assert_eq!(text(chosen(|_| ())), "eth0 172.16.30.10");
        ip("route add default via 10.1.1.9 dev eth1 metric 100");
        assert_eq!(text(chosen(|_| ())), "eth1 10.1.1.1");
        ip("route add default metric 50 nexthop via 10.1.1.9 dev eth1 nexthop via 172.16.30.1 dev eth0");
        let error = chosen(|_| ()).unwrap_err().to_string();
        let named = "IPv4 default route: its next hops leave by eth1 and eth0; name the interface";
        assert!(error.contains(named), "{error}");
        ip("route replace default metric 50 nexthop via 172.16.30.2 nexthop via 172.16.30.1");
        assert_eq!(text(chosen(|_| ())), "eth0 172.16.30.10");
        ip("-6 route add default nexthop via fd00:30::1 nexthop via fd00:30::2");
        assert_eq!(text(chosen(|o| *o = dual())), "eth0 172.16.30.10 fd00:30::10");
        ip("link property add dev eth1 altname enp0s3");
        assert_eq!(text(chosen(|o| o.ifaces = vec!["enp0s3".to_owned()])), "eth1 10.1.1.1");
    });
}
