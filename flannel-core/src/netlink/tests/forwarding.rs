//! What a real kernel announces and lists of forwarding and of IPv6 that is switched off.

use std::time::Duration;

use flannel_lab::test_name;
use flannel_lab::wait::patiently;

use super::super::Netlink;
use super::sandbox::{ip, with_underlay};
use crate::addr::{Family, LinkIndex};
use crate::dataplane::{Address, Object, Op};
use crate::kernel::{ConfOf, Forwarding, Kernel, KernelEvent};
use crate::status::ipv6_refused;

fn set(key: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{key}"), value).unwrap();
}

/// Waits for the notification.
async fn told(kernel: &mut Netlink, want: Forwarding) {
    let hear = async { while !kernel.events().await.contains(&KernelEvent::Forwarding(want)) {} };
    tokio::time::timeout(patiently(Duration::from_secs(10)), hear)
        .await
        .unwrap_or_else(|_| panic!("{want:?} is not told"));
}

#[test]
fn forwarding_is_announced_and_listed() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let eth0 = kernel.link("eth0").await.unwrap().unwrap().index;
        set("ipv4/ip_forward", "1");
        set("ipv6/conf/all/forwarding", "1");
        let all = [(Family::V4, "ipv4/ip_forward"), (Family::V6, "ipv6/conf/all/forwarding")];
        for (family, key) in all {
            for on in [false, true] {
                set(key, if on { "1" } else { "0" });
                let is = |of| Forwarding { family, of, on };
                told(&mut kernel, is(ConfOf::All)).await;
                let listed = kernel.forwarding(family).await.unwrap();
                for of in [ConfOf::All, ConfOf::Default, ConfOf::Link(eth0)] {
                    assert!(listed.contains(&is(of)), "{of:?} {listed:?}");
                }
            }
            set(&format!("{}/conf/eth0/forwarding", if family == Family::V4 { "ipv4" } else { "ipv6" }), "0");
            let off = Forwarding { family, of: ConfOf::Link(eth0), on: false };
            told(&mut kernel, off).await;
            assert!(kernel.forwarding(family).await.unwrap().contains(&off));
        }
    });
}

/// The two ways in which IPv6 is taken off a device refuse its address with errnos of their own.
#[test]
fn a_device_without_ipv6_is_named_with_its_sysctl() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        ip("link add dum.0 type veth peer name peer.0");
        ip("link set dum.0 up");
        let link: LinkIndex = kernel.link("dum.0").await.unwrap().unwrap().index;
        let addr = "fd00:5::/128".parse().unwrap();
        let op = Op::Create(Object::Address(Address { link, addr }));
        set("ipv6/conf/dum.0/disable_ipv6", "1");
        let refusals = kernel.execute(&[op]).await.unwrap();
        let reason = ipv6_refused("dum.0", addr, refusals[0].errno).unwrap().to_string();
        assert!(reason.contains("run sysctl -w net/ipv6/conf/dum.0/disable_ipv6=0"), "{reason}");
        set("ipv6/conf/dum.0/disable_ipv6", "0");
        ip("link set dum.0 mtu 1279");
        let refusals = kernel.execute(&[op]).await.unwrap();
        let reason = ipv6_refused("dum.0", addr, refusals[0].errno).unwrap().to_string();
        assert!(reason.contains("its MTU is below 1280"), "{reason}");
        ip("link set dum.0 mtu 1280");
        assert_eq!(kernel.execute(&[op]).await.unwrap(), []);
    });
}

/// Whatever values all links, new ones and this one have: the larger of `all` and the link's is in force.
#[test]
fn a_strict_check_of_sources_is_loosened_on_one_link() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        ip("link add dum.0 type veth peer name peer.0");
        let get = |link: &str| {
            let path = format!("/proc/sys/net/ipv4/conf/{link}/rp_filter");
            std::fs::read_to_string(path).unwrap().trim().to_owned()
        };
        for (all, own, want) in [
            ("0", "0", "0"),
            ("0", "1", "2"),
            ("1", "0", "2"),
            ("1", "1", "2"),
            ("1", "2", "2"),
            ("2", "1", "1"),
        ] {
            set("ipv4/conf/all/rp_filter", all);
            set("ipv4/conf/dum.0/rp_filter", own);
            set("ipv4/conf/eth0/rp_filter", "1");
            kernel.loosen_source_check("dum.0").await.unwrap();
            assert_eq!((get("dum.0"), get("eth0"), get("all")), (want.into(), "1".into(), all.into()));
        }
        let error = kernel.loosen_source_check("none0").await.unwrap_err();
        assert!(error.to_string().contains("ipv4/conf/none0/rp_filter"), "{error}");
    });
}
