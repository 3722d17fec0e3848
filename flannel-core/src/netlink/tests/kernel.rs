//! Links, addresses and routes as a real kernel has them.

use std::net::IpAddr;
use std::time::Duration;

use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::patiently;

use super::super::Netlink;
use super::sandbox::{ip, runtime, with_underlay};
use crate::addr::{Family, LinkIndex, MacAddr, Mtu, Vni};
use crate::dataplane::{Address, Object, Op};
use crate::kernel::{Exit, Kernel, KernelEvent, Link, LinkOp, RouteLookup, VxlanLink};

pub(super) const MAC: MacAddr = MacAddr([2, 0x5b, 0x10, 0x33, 0x7e, 1]);

/// A device as flannel has it, over `eth0`.
pub(super) fn vxlan(vni: u32, lower: LinkIndex, local: &str) -> VxlanLink {
    VxlanLink {
        vni: Vni::new(vni).unwrap(),
        port: 8472,
        local: Some(local.parse().unwrap()),
        lower: Some(lower),
        learning: false,
        gbp: false,
        foreign: false,
    }
}

/// Creates `flannel.1` over IPv4 or `flannel-v6.1` over IPv6, sets it up and returns it.
pub(super) async fn device(kernel: &mut Netlink, family: Family) -> Link {
    let lower = kernel.link("eth0").await.unwrap().unwrap().index;
    let (name, local) = match family {
        Family::V4 => ("flannel.1", "192.0.2.1"),
        Family::V6 => ("flannel-v6.1", "2001:db8::1"),
    };
    let vxlan = vxlan(1, lower, local);
    let create = LinkOp::create_vxlan(name, MAC, Mtu(1430), &vxlan);
    kernel.change_link(&create).await.unwrap();
    let link = kernel.link(name).await.unwrap().unwrap();
    kernel.change_link(&LinkOp::SetUp(link.index)).await.unwrap();
    kernel.link(name).await.unwrap().unwrap()
}

#[test]
fn checksum_offload_is_set_and_announced() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let link = device(&mut kernel, Family::V4).await;
        assert_eq!(kernel.tx_checksum("flannel.1").await.unwrap(), Some(true));
        kernel.set_tx_checksum("flannel.1", false).await.unwrap();
        assert_eq!(kernel.tx_checksum("flannel.1").await.unwrap(), Some(false));
        assert!(super::sandbox::run("ethtool", "-k flannel.1").contains("tx-checksum-ip-generic: off"));
        // By whomever.
        super::sandbox::run("ethtool", "-K flannel.1 tx on");
        while !kernel.events().await.contains(&KernelEvent::Link(link.clone())) {}
        assert_eq!(kernel.tx_checksum("flannel.1").await.unwrap(), Some(true));
        assert_eq!(kernel.tx_checksum("flannel.2").await.unwrap(), None);
        let error = kernel.set_tx_checksum("a-name-that-is-too-long", false).await.unwrap_err();
        assert!(error.to_string().contains("tx-checksumming of a-name-that-is-too-long"), "{error}");
    });
}

#[test]
fn vxlan_devices_read_back() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let lower = kernel.link("eth0").await.unwrap().unwrap().index;
        for (family, local) in [(Family::V4, "192.0.2.1"), (Family::V6, "2001:db8::1")] {
            let link = device(&mut kernel, family).await;
            assert_eq!(link.vxlan, Some(vxlan(1, lower, local)));
            assert_eq!((link.mac, link.mtu), (Some(MAC), Mtu(1430)));
            assert_eq!((link.kind.as_deref(), link.up, link.loopback), (Some("vxlan"), true, false));
            assert!(link.carrier);
            assert!(kernel.links().await.unwrap().contains(&link));
        }
        // As Go's devices look.
        let shown: serde_json::Value = serde_json::from_str(&ip("-d -j link show dev flannel.1")).unwrap();
        let golden = serde_json::json!({
            "id": 1, "local": "192.0.2.1", "link": "eth0", "port_range": { "low": 0, "high": 0 },
            "port": 8472, "learning": false, "ttl": 0, "df": "unset", "ageing": 300,
            "udp_csum": true, "udp_zero_csum6_tx": false, "udp_zero_csum6_rx": false,
        });
        let mut data = shown[0]["linkinfo"]["info_data"].clone();
        data.as_object_mut().unwrap().retain(|key, _| golden.get(key).is_some());
        assert_eq!(data, golden);
        assert_eq!(shown[0]["txqlen"], serde_json::Value::Null, "no queue: {shown}");
        assert_eq!(shown[0]["qdisc"], "noqueue");

        let gbp = VxlanLink { gbp: true, learning: true, port: 4789, ..vxlan(7, lower, "192.0.2.1") };
        let create = LinkOp::create_vxlan("gbp", MAC, Mtu(1400), &gbp);
        kernel.change_link(&create).await.unwrap();
        assert_eq!(kernel.link("gbp").await.unwrap().unwrap().vxlan, Some(gbp));

        let taken = kernel.change_link(&create).await.unwrap_err();
        assert_eq!(taken.errno(), Some(libc::EEXIST));
        assert!(taken.to_string().contains("create link gbp"), "{taken}");
        let same_vni = LinkOp::create_vxlan("other", MAC, Mtu(1400), &vxlan(1, lower, "192.0.2.1"));
        let taken = kernel.change_link(&same_vni).await.unwrap_err();
        assert!(taken.to_string().contains("VNI already exists"), "{taken}");
    });
}

#[test]
fn foreign_attributes_are_seen() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        for (at, (more, foreign)) in (10..).zip([
            ("", false),
            ("ageing 20", false),
            ("group 239.1.1.1", true),
            ("remote 192.0.2.9", true),
            ("proxy", true),
            ("rsc", true),
            ("l2miss", true),
            ("l3miss", true),
            ("ttl 9", true),
            ("ttl inherit", true),
            ("tos 4", true),
            ("noudpcsum", true),
            ("udp6zerocsumtx", true),
            ("srcport 1000 2000", true),
            ("maxaddress 5", true),
            ("df set", true),
        ]) {
            ip(&format!(
                "link add x{at} type vxlan id {at} dev eth0 local 192.0.2.1 dstport 8472 nolearning {more}"
            ));
            let link = kernel.link(&format!("x{at}")).await.unwrap().unwrap();
            assert_eq!(link.vxlan.unwrap().foreign, foreign, "{more}");
        }
        ip("link add label type vxlan id 90 dev eth0 local 2001:db8::1 dstport 8472 flowlabel 5");
        assert!(kernel.link("label").await.unwrap().unwrap().vxlan.unwrap().foreign);
        ip("link add ext type vxlan external dstport 4790");
        assert!(kernel.link("ext").await.unwrap().unwrap().vxlan.unwrap().foreign);
        ip("link add gpe type vxlan external gpe dstport 4791");
        assert!(kernel.link("gpe").await.unwrap().unwrap().vxlan.unwrap().foreign);
    });
}

#[test]
fn links_change_in_place() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        ip("address add 192.0.2.7/24 dev eth0");
        ip("address add 2001:db8::7/64 dev eth0 nodad");
        for (family, local) in [(Family::V4, "192.0.2.7"), (Family::V6, "2001:db8::7")] {
            let made = device(&mut kernel, family).await;
            let index = made.index;
            let local: IpAddr = local.parse().unwrap();
            let changed = VxlanLink { learning: true, local: Some(local), ..made.vxlan.clone().unwrap() };
            let mac = MacAddr([2, 9, 9, 9, 9, 9]);
            for op in [
                LinkOp::Change(index, changed.to_change()),
                LinkOp::SetMtu(index, Mtu(1300)),
                LinkOp::SetMac(index, mac),
                LinkOp::SetUp(index),
            ] {
                kernel.change_link(&op).await.unwrap();
            }
            let now = kernel.link(&made.name).await.unwrap().unwrap();
            let mac = Some(mac);
            assert_eq!(now, Link { vxlan: Some(changed.clone()), mtu: Mtu(1300), mac, ..made.clone() });

            // No local address here means: leave it.
            let back = VxlanLink { learning: false, local: None, ..changed.clone() };
            kernel.change_link(&LinkOp::Change(index, back.to_change())).await.unwrap();
            let now = kernel.link(&made.name).await.unwrap().unwrap();
            assert_eq!(now.vxlan, Some(VxlanLink { learning: false, ..changed }));

            let too_big = kernel.change_link(&LinkOp::SetMtu(index, Mtu(1490))).await.unwrap_err();
            assert_eq!(too_big.errno(), Some(libc::EINVAL), "{too_big}");

            kernel.change_link(&LinkOp::Delete(index)).await.unwrap();
            assert_eq!(kernel.link(&made.name).await.unwrap(), None);
            let gone = kernel.change_link(&LinkOp::Delete(index)).await.unwrap_err();
            assert_eq!(gone.errno(), Some(libc::ENODEV));
            assert!(gone.to_string().starts_with(&format!("kernel refused to delete link {index}")));
            let gone = kernel.change_link(&LinkOp::SetUp(index)).await.unwrap_err();
            assert_eq!(gone.errno(), Some(libc::ENODEV));
        }
        assert_eq!(kernel.link("a-name-longer-than-any-link-has").await.unwrap(), None);
        assert_eq!(kernel.link("").await.unwrap(), None);
    });
}

#[test]
fn addresses_have_their_flags() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        ip("address add 192.0.2.2/24 dev eth0");
        ip("address add fe80::1/64 dev eth0 nodad");
        ip("address add 169.254.1.1/16 dev eth0 scope link");
        ip("address add 10.9.9.1 peer 10.9.9.2/32 dev eth0");
        ip("address add 2001:db8::2/64 dev eth0 nodad valid_lft 1000 preferred_lft 0");
        let all = kernel.addresses().await.unwrap();
        let find = |text: &str| {
            let addr = text.parse().unwrap();
            all.iter().find(|address| address.addr == addr).unwrap_or_else(|| panic!("{text} in {all:?}"))
        };
        assert!(find("127.0.0.1/8").permanent && !find("127.0.0.1/8").global);
        assert!(find("192.0.2.1/24").global && !find("192.0.2.1/24").temporary);
        assert!(find("192.0.2.2/24").temporary, "IFA_F_SECONDARY has the same bit");
        assert!(!find("169.254.1.1/16").global);
        assert_eq!(find("10.9.9.1/32").addr.ip().to_string(), "10.9.9.1");
        assert!(find("2001:db8::2/64").deprecated && !find("2001:db8::2/64").permanent);
        assert!(!find("2001:db8::1/64").tentative && find("2001:db8::1/64").permanent);
        assert!(!find("fe80::1/64").global);
    });
}

#[test]
fn routes_are_looked_up() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let eth0 = kernel.link("eth0").await.unwrap().unwrap().index;
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        for family in Family::ALL {
            assert_eq!(kernel.default_routes(family).await.unwrap(), []);
        }
        assert_eq!(kernel.lookup(at("198.51.100.1")).await.unwrap(), None);
        assert_eq!(kernel.lookup(at("2001:db8:1::1")).await.unwrap(), None);
        let direct = kernel.lookup(at("192.0.2.9")).await.unwrap().unwrap();
        assert_eq!((direct.exit, direct.via, direct.source), (Exit::By(eth0), None, Some(at("192.0.2.1"))));
        let direct = kernel.lookup(at("2001:db8::9")).await.unwrap().unwrap();
        assert_eq!((direct.exit, direct.via), (Exit::By(eth0), None));

        ip("route add default via 192.0.2.254");
        ip("route add default via 192.0.2.253 metric 100 src 192.0.2.1");
        ip("route add default via 192.0.2.252 table 99");
        ip("route add default metric 200 nexthop via 192.0.2.251 nexthop via 192.0.2.250");
        ip("-6 route add default via 2001:db8::fe metric 50");
        for (dst, kind) in
            [("203.0.113.1", "unreachable"), ("203.0.113.2", "blackhole"), ("203.0.113.3", "prohibit")]
        {
            ip(&format!("route add {kind} {dst}"));
            assert_eq!(kernel.lookup(at(dst)).await.unwrap(), None, "{kind}");
        }
        for (dst, kind) in
            [("2001:db8:2::1", "unreachable"), ("2001:db8:2::2", "blackhole"), ("2001:db8:2::3", "prohibit")]
        {
            ip(&format!("route add {kind} {dst}"));
            assert_eq!(kernel.lookup(at(dst)).await.unwrap(), None, "{kind}");
        }
        let via = |via, source: Option<&str>, metric| RouteLookup {
            exit: Exit::By(eth0),
            via: Some(at(via)),
            source: source.map(at),
            metric,
        };
        // Two routers, but one way out.
        let several = via("192.0.2.251", None, 200);
        assert_eq!(
            kernel.default_routes(Family::V4).await.unwrap(),
            [via("192.0.2.254", None, 0), via("192.0.2.253", Some("192.0.2.1"), 100), several]
        );
        assert_eq!(kernel.default_routes(Family::V6).await.unwrap(), [via("2001:db8::fe", None, 50)]);
        let there = kernel.lookup(at("198.51.100.1")).await.unwrap().unwrap();
        assert_eq!(there, via("192.0.2.254", Some("192.0.2.1"), 0));
        let there = kernel.lookup(at("2001:db8:1::1")).await.unwrap().unwrap();
        assert_eq!((there.exit, there.via), (Exit::By(eth0), Some(at("2001:db8::fe"))));
    });
}

#[test]
fn default_routes_of_several_next_hops_name_their_links() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        ip("link add eth1 type veth peer name peer1");
        ip("link set eth1 up");
        ip("link set peer1 up");
        ip("address add 198.51.100.1/24 dev eth1");
        ip("address add 2001:db8:1::1/64 dev eth1 nodad");
        let index = async |kernel: &mut Netlink, name| kernel.link(name).await.unwrap().unwrap().index;
        let (eth0, eth1) = (index(&mut kernel, "eth0").await, index(&mut kernel, "eth1").await);
        let exits = async |kernel: &mut Netlink, family| {
            let routes = kernel.default_routes(family).await.unwrap();
            routes.iter().map(|route| (route.exit, route.via.map(|via| via.to_string()))).collect::<Vec<_>>()
        };
        let one = |via: &str| (Exit::By(eth0), Some(via.to_owned()));
        let two = |via: &str| (Exit::Several(eth0, eth1), Some(via.to_owned()));
        ip("route add default nexthop via 192.0.2.251 nexthop via 192.0.2.250");
        // Two routers of one link, as one route and as two that the kernel joins.
        ip("-6 route add default nexthop via 2001:db8::fe nexthop via 2001:db8::fd");
        assert_eq!(exits(&mut kernel, Family::V4).await, [one("192.0.2.251")]);
        assert_eq!(exits(&mut kernel, Family::V6).await, [one("2001:db8::fe")]);
        ip("-6 route flush default");
        ip("-6 route add default via 2001:db8::fe dev eth0");
        ip("-6 route append default via 2001:db8::fd dev eth0");
        assert_eq!(exits(&mut kernel, Family::V6).await, [one("2001:db8::fe")]);
        ip("-6 route append default via 2001:db8:1::fe dev eth1");
        ip("route replace default nexthop via 192.0.2.251 nexthop via 198.51.100.9 dev eth1");
        assert_eq!(exits(&mut kernel, Family::V4).await, [two("192.0.2.251")]);
        assert_eq!(exits(&mut kernel, Family::V6).await, [two("2001:db8::fe")]);
    });
}

#[test]
fn a_link_has_further_names_a_master_and_keeps_its_number() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        ip("link property add dev eth0 altname enp0s3 altname a-name-longer-than-fifteen-bytes");
        ip("link add br0 type bridge");
        ip("link set peer0 master br0");
        let eth0 = kernel.link("eth0").await.unwrap().unwrap();
        assert_eq!(eth0.altnames, ["enp0s3", "a-name-longer-than-fifteen-bytes"]);
        let links = kernel.links().await.unwrap();
        let named = |name: &str| links.iter().find(|link| link.name == name).unwrap();
        assert_eq!(named("eth0"), &eth0);
        assert_eq!(named("peer0").master, Some(named("br0").index));
        assert_eq!((eth0.master, eth0.kind.as_deref()), (None, Some("veth")));
        assert_eq!(kernel.link_at(eth0.index).await.unwrap(), Some(eth0.clone()));
        // Only newer kernels rename a link that is up.
        ip("link set eth0 down");
        ip("link set eth0 name ens3");
        let renamed = kernel.link_at(eth0.index).await.unwrap().unwrap();
        assert_eq!((renamed.name.as_str(), renamed.index), ("ens3", eth0.index));
        assert_eq!(kernel.link("eth0").await.unwrap(), None);
        assert_eq!(kernel.link_at(LinkIndex(4711)).await.unwrap(), None);
        assert_eq!(kernel.link_at(LinkIndex(0)).await.unwrap(), None);
    });
}

/// In a user namespace of its own a process has no power over the network namespace it came with.
#[test]
fn a_missing_capability_is_reported() {
    const MARKER: &str = "NETLINK_TEST_UNPRIVILEGED";
    let test = test_name!();
    if std::env::var_os(MARKER).is_some() {
        return runtime().block_on(a_missing_capability());
    }
    in_sandbox(test, || {
        let output = std::process::Command::new("unshare")
            .arg("--user")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(MARKER, "1")
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && out.contains("1 passed"), "{out}");
    });
}

async fn a_missing_capability() {
    let mut kernel = Netlink::open().unwrap();
    let error = kernel.change_link(&LinkOp::SetUp(LinkIndex(1))).await.unwrap_err();
    assert_eq!(error.errno(), Some(libc::EPERM));
    assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    let addr = "10.0.0.1/32".parse().unwrap();
    let op = Op::Create(Object::Address(Address { link: LinkIndex(1), addr }));
    let refusals = kernel.execute(&[op, op]).await.unwrap();
    assert_eq!(refusals.len(), 2);
    assert!(refusals[1].to_string().contains("CAP_NET_ADMIN"), "{}", refusals[1]);
}

#[test]
fn two_namespaces_at_once() {
    with_underlay(test_name!(), || async {
        use nix::sched::{CloneFlags, unshare};
        let mut here = Netlink::open().unwrap();
        let (handle, before) = (tokio::runtime::Handle::current(), here.links().await.unwrap().len());
        let opened = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let _runtime = handle.enter();
            Netlink::open()
        });
        let mut there = opened.join().unwrap().unwrap();
        // With some modules loaded, a new namespace has devices of theirs, too: `tunl0`, say.
        let names: Vec<_> = there.links().await.unwrap().into_iter().map(|it| it.name).collect();
        assert!(names.contains(&"lo".to_owned()) && !names.contains(&"eth0".to_owned()), "{names:?}");
        assert_eq!(here.links().await.unwrap().len(), before);
        there.change_link(&LinkOp::SetUp(LinkIndex(1))).await.unwrap();
        let heard = tokio::time::timeout(patiently(Duration::from_secs(5)), there.events()).await.unwrap();
        assert!(!heard.is_empty());
        let mut heard = Vec::new();
        while let Ok(events) = tokio::time::timeout(Duration::from_millis(50), here.events()).await {
            heard.extend(events);
        }
        assert!(
            !heard.iter().any(|event| matches!(event, KernelEvent::Link(link) if link.loopback)),
            "{heard:?}"
        );
    });
}
