//! Objects as a real kernel takes, shows and announces them.

use std::collections::BTreeSet;
use std::time::Duration;

use flannel_lab::test_name;
use flannel_lab::wait::patiently;

use super::super::Netlink;
use super::kernel::device;
use super::sandbox::{ip, run, with_underlay};
use crate::addr::{Family, LinkIndex, MacAddr, Subnet, Vni};
use crate::dataplane::{Address, FdbEntry, Neighbour, Object, ObjectKey, Op, ROUTE_PROTOCOL, Route, Through};
use crate::kernel::{Kernel, KernelEvent, Kinds, LinkOp, Scope};

/// The objects of a peer, in build-up order. Its subnet is the `number`th /24 or /64.
pub(super) fn peer(link: LinkIndex, family: Family, number: u16, mac: u8) -> [Object; 3] {
    let [high, low] = number.to_be_bytes();
    let mac = MacAddr([2, 0, 0, mac, high, low]);
    let (subnet, dst) = match family {
        Family::V4 => (format!("10.{high}.{low}.0/24"), [192, 0, 2, low | 2].into()),
        Family::V6 => {
            (format!("fd00:10:0:{number:x}::/64"), format!("2001:db8::{number:x}:2").parse().unwrap())
        }
    };
    let dst_net: Subnet = subnet.parse().unwrap();
    [
        Object::Neighbour(Neighbour { link, addr: dst_net.base(), mac }),
        Object::Fdb(FdbEntry { link, mac, dst, port: None, vni: None, via: None }),
        Object::Route(Route {
            dst: dst_net,
            metric: Route::default_metric(family),
            via: Some(dst_net.base()),
            link: Some(link),
            onlink: true,
            through: Through::Itself,
            protocol: ROUTE_PROTOCOL,
            mtu: None,
            plain: true,
        }),
    ]
}

/// What the kernel has on a link and did not put there itself.
pub(super) async fn ours(kernel: &mut Netlink, link: LinkIndex, family: Family) -> BTreeSet<Object> {
    let objects = kernel.objects(Scope { link, family, kinds: Kinds::ALL }).await.unwrap();
    let of_the_kernel = |object: &Object| match object {
        Object::Address(it) => it.addr.to_string().starts_with("fe80:"),
        Object::Route(it) => it.protocol == libc::RTPROT_KERNEL,
        _ => false,
    };
    objects.into_iter().filter(|object| !of_the_kernel(object)).collect()
}

/// What is announced about a link, until there is silence.
pub(super) async fn heard(kernel: &mut Netlink, link: LinkIndex) -> Vec<KernelEvent> {
    let about = |event: &KernelEvent| match event {
        KernelEvent::Put(Object::Address(it)) => it.link == link,
        KernelEvent::Gone(ObjectKey::Address(it, _)) => *it == link,
        _ => true,
    };
    let mut all = Vec::new();
    while let Ok(events) = tokio::time::timeout(Duration::from_millis(100), kernel.events()).await {
        all.extend(events);
    }
    all.retain(about);
    all
}

/// Waits until all these events were announced, and returns what else was. A worker of the kernel
/// announces new IPv6 addresses, in its own time.
async fn heard_all(kernel: &mut Netlink, wanted: impl IntoIterator<Item = KernelEvent>) -> Vec<KernelEvent> {
    let (mut missing, mut others): (Vec<_>, _) = (wanted.into_iter().collect(), Vec::new());
    while !missing.is_empty() {
        let events = tokio::time::timeout(patiently(Duration::from_secs(5)), kernel.events()).await;
        for event in events.unwrap_or_else(|_| panic!("not announced: {missing:?}")) {
            match missing.iter().position(|wanted| *wanted == event) {
                Some(at) => _ = missing.swap_remove(at),
                None => others.push(event),
            }
        }
    }
    others
}

pub(super) async fn done(kernel: &mut Netlink, ops: impl IntoIterator<Item = Op>) {
    let ops: Vec<_> = ops.into_iter().collect();
    assert_eq!(kernel.execute(&ops).await.unwrap(), []);
}

#[test]
fn objects_are_put_replaced_and_deleted() {
    with_underlay(test_name!(), || async {
        let (mut kernel, mut hearer) = (Netlink::open().unwrap(), Netlink::open().unwrap());
        for family in Family::ALL {
            let link = device(&mut kernel, family).await.index;
            heard(&mut hearer, link).await;
            let addr = if family == Family::V4 { "10.0.7.0/32" } else { "fd00:10:0:7::/128" };
            let address = Object::Address(Address { link, addr: addr.parse().unwrap() });
            let [neighbour, fdb, route] = peer(link, family, 0x0304, 1);
            let all = BTreeSet::from([address, neighbour, fdb, route]);

            done(&mut kernel, all.iter().copied().map(Op::Create)).await;
            assert_eq!(ours(&mut kernel, link, family).await, all);
            heard_all(&mut hearer, all.iter().copied().map(KernelEvent::Put)).await;

            // The same again changes nothing.
            done(&mut kernel, all.iter().copied().map(Op::Replace)).await;
            done(&mut kernel, [address, neighbour, fdb].map(Op::Create)).await;
            assert_eq!(ours(&mut kernel, link, family).await, all);
            let again = kernel.execute(&[Op::Create(route)]).await.unwrap();
            assert_eq!((again.len(), again[0].errno), (1, libc::EEXIST));

            // Other attributes under the same keys.
            let [other, ..] = peer(link, family, 0x0304, 2);
            let Object::Route(plain) = route else { unreachable!() };
            let moved = Object::Route(Route { onlink: false, via: None, ..plain });
            let Object::Fdb(entry) = fdb else { unreachable!() };
            let far = if family == Family::V4 { "192.0.2.99" } else { "2001:db8::99" };
            let far = Object::Fdb(FdbEntry { dst: far.parse().unwrap(), ..entry });
            heard(&mut hearer, link).await;
            done(&mut kernel, [other, far, moved].map(Op::Replace)).await;
            let changed = BTreeSet::from([address, other, far, moved]);
            assert_eq!(ours(&mut kernel, link, family).await, changed);
            heard_all(&mut hearer, [other, far, moved].map(KernelEvent::Put)).await;

            done(&mut kernel, changed.iter().rev().copied().map(Op::Delete)).await;
            assert_eq!(ours(&mut kernel, link, family).await, BTreeSet::new());
            let gone = changed.iter().map(|object| KernelEvent::Gone(object.key()));
            let others = heard_all(&mut hearer, gone).await;
            assert!(!changed.iter().any(|it| others.contains(&KernelEvent::Put(*it))), "{others:?}");

            // What is gone may be deleted.
            done(&mut kernel, changed.iter().chain(&all).copied().map(Op::Delete)).await;
            kernel.change_link(&LinkOp::Delete(link)).await.unwrap();
        }
    });
}

#[test]
fn what_a_kernel_puts_itself_is_announced_to_others() {
    with_underlay(test_name!(), || async {
        let (mut kernel, mut other) = (Netlink::open().unwrap(), Netlink::open().unwrap());
        for family in Family::ALL {
            let link = device(&mut kernel, family).await.index;
            heard(&mut kernel, link).await;
            let [neighbour, fdb, route] = peer(link, family, 0x0304, 1);
            let changed = peer(link, family, 0x0304, 2);
            done(&mut kernel, [neighbour, fdb, route].map(Op::Create)).await;
            done(&mut kernel, changed.map(Op::Replace)).await;
            // The kernel doesn't say who made an FDB entry.
            assert_eq!(heard(&mut kernel, link).await, [fdb, changed[1]].map(KernelEvent::Put));
            // What another does is news.
            heard(&mut other, link).await;
            done(&mut kernel, [Op::Delete(route)]).await;
            heard_all(&mut other, [KernelEvent::Gone(route.key())]).await;
            done(&mut other, [Op::Replace(neighbour), Op::Create(route)]).await;
            heard_all(&mut kernel, [neighbour, route].map(KernelEvent::Put)).await;
            assert_eq!(heard(&mut other, link).await, []);
            done(&mut other, [neighbour, route].map(Op::Delete)).await;
            heard_all(&mut kernel, [neighbour, route].map(|it| KernelEvent::Gone(it.key()))).await;
            kernel.change_link(&LinkOp::Delete(link)).await.unwrap();
        }
    });
}

#[test]
fn addresses_are_as_go_writes_them() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let link = device(&mut kernel, Family::V4).await.index;
        let address = |addr: &str| Object::Address(Address { link, addr: addr.parse().unwrap() });
        let wanted = ["10.0.7.0/32", "10.1.0.1/24", "10.2.0.0/31"].map(address);
        done(&mut kernel, wanted.map(Op::Create)).await;
        done(&mut kernel, [Op::Create(address("fd00:10::1/64"))]).await;
        let shown = ip("address show dev flannel.1");
        assert!(shown.contains("inet 10.0.7.0/32 scope global flannel.1"), "{shown}");
        assert!(shown.contains("inet 10.1.0.1/24 brd 10.1.0.255 scope global flannel.1"), "{shown}");
        assert!(shown.contains("inet 10.2.0.0/31 scope global flannel.1"), "{shown}");
        assert!(shown.contains("inet6 fd00:10::1/64 scope global nodad"), "{shown}");
        let usable = kernel.addresses().await.unwrap();
        let v6 = usable.iter().find(|it| it.addr.to_string() == "fd00:10::1/64").unwrap();
        assert!(v6.permanent && !v6.tentative, "usable at once: {v6:?}");
        assert_eq!(ours(&mut kernel, link, Family::V4).await, BTreeSet::from(wanted));
    });
}

#[test]
fn entries_of_others_are_read_as_they_are() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let link = device(&mut kernel, Family::V4).await.index;
        let eth0 = kernel.link("eth0").await.unwrap().unwrap().index;
        for entry in [
            "02:00:00:00:00:01 dev flannel.1 dst 192.0.2.9 port 4789 vni 9 via eth0 self permanent",
            "00:00:00:00:00:00 dev flannel.1 dst 192.0.2.8 self permanent",
            "02:00:00:00:00:02 dev flannel.1 dst 192.0.2.7 self static",
            "02:00:00:00:00:03 dev flannel.1 dst 192.0.2.6 self dynamic",
        ] {
            run("bridge", &format!("fdb append {entry}"));
        }
        // Only the zero MAC and groups can have several remotes.
        run("bridge", "fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.0.2.10 self permanent");
        let entry = |last, dst: &str| FdbEntry {
            link,
            mac: MacAddr(if last == 0 { [0; 6] } else { [2, 0, 0, 0, 0, last] }),
            dst: dst.parse().unwrap(),
            port: None,
            vni: None,
            via: None,
        };
        let (port, vni, via) = (Some(4789), Some(Vni::new(9).unwrap()), Some(eth0));
        let odd = FdbEntry { port, vni, via, ..entry(1, "192.0.2.9") };
        let fdb = BTreeSet::from([odd, entry(0, "192.0.2.8"), entry(0, "192.0.2.10")].map(Object::Fdb));
        assert_eq!(ours(&mut kernel, link, Family::V4).await, fdb, "static (0x40) and dynamic are no ours");
        // One of the two remotes of a MAC goes alone.
        done(&mut kernel, [odd, entry(0, "192.0.2.8")].map(Object::Fdb).map(Op::Delete)).await;
        let last = Object::Fdb(entry(0, "192.0.2.10"));
        assert_eq!(ours(&mut kernel, link, Family::V4).await, BTreeSet::from([last]));
        done(&mut kernel, [Op::Delete(last)]).await;

        ip("neigh add 10.0.1.1 lladdr 02:00:00:00:00:01 dev flannel.1 nud permanent");
        ip("neigh add 10.0.1.2 lladdr 02:00:00:00:00:02 dev flannel.1 nud reachable");
        ip("neigh add 10.0.1.3 lladdr 02:00:00:00:00:03 dev flannel.1 nud noarp");
        ip("neigh add proxy 10.0.1.4 dev flannel.1");
        ip("neigh add 10.0.1.1 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
        let (addr, mac) = ([10, 0, 1, 1].into(), MacAddr([2, 0, 0, 0, 0, 1]));
        let neighbour = Object::Neighbour(Neighbour { link, addr, mac });
        assert_eq!(ours(&mut kernel, link, Family::V4).await, BTreeSet::from([neighbour]));
        done(&mut kernel, [Op::Delete(neighbour)]).await;

        ip("address add 10.0.0.1/32 dev flannel.1");
        ip("nexthop add id 7 via 10.8.0.1 dev flannel.1 onlink");
        let routes = [
            ("10.1.0.0/24", "via 10.1.0.0 dev flannel.1 onlink", true),
            ("10.2.0.0/24", "dev flannel.1", true),
            ("10.3.0.0/24", "via 10.3.0.0 dev flannel.1 onlink mtu 1300", false),
            ("10.4.0.0/24", "via 10.4.0.0 dev flannel.1 onlink src 10.0.0.1", false),
            ("10.5.0.0/24", "nhid 7", false),
            ("10.6.0.0/24", "via inet6 fe80::1 dev flannel.1 onlink", false),
            ("10.7.0.0/24", "via 10.7.0.0 dev flannel.1 onlink proto 3 metric 9", true),
        ];
        for (dst, rest, _) in routes {
            ip(&format!("route add {dst} {rest}"));
        }
        ip("route add 10.1.0.0/24 dev flannel.1 tos 4");
        ip("route add 10.9.0.0/24 dev flannel.1 table 77");
        ip("route add blackhole 10.10.0.0/24");
        ip("route add 10.11.0.0/24 nexthop dev flannel.1 nexthop dev eth0");
        let address = Object::Address(Address { link, addr: "10.0.0.1/32".parse().unwrap() });
        let seen = ours(&mut kernel, link, Family::V4).await;
        let plain: Vec<_> = seen
            .iter()
            .filter_map(
                |it| if let Object::Route(it) = it { Some((it.dst.to_string(), it.plain)) } else { None },
            )
            .collect();
        assert_eq!(plain, routes.map(|(dst, _, plain)| (dst.to_owned(), plain)));
        // Whatever they are, they can be deleted.
        done(&mut kernel, seen.into_iter().filter(|it| *it != address).map(Op::Delete)).await;
        assert_eq!(ours(&mut kernel, link, Family::V4).await, BTreeSet::from([address]));
        let left = ip("route show table all");
        for left_alone in ["10.1.0.0/24 tos", "10.9.0.0/24", "blackhole 10.10.0.0/24", "10.11.0.0/24"] {
            assert!(left.contains(left_alone), "{left_alone} in {left}");
        }
    });
}

#[test]
fn ipv6_routes_of_others_are_read_as_they_are() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let link = device(&mut kernel, Family::V6).await.index;
        let dev = "dev flannel-v6.1";
        ip(&format!("nexthop add id 8 via fd00:8::1 {dev} onlink"));
        ip(&format!("address add fd00::1/128 nodad {dev}"));
        let routes = [
            ("fd00:1::/64", "via fd00:1:: DEV onlink", true),
            ("fd00:2::/64", "DEV", true),
            ("fd00:3::/64", "via fd00:3:: DEV onlink mtu 1300", false),
            ("fd00:4::/64", "via fd00:4:: DEV onlink src fd00::1", false),
            ("fd00:5::/64", "nhid 8", false),
            ("fd00:6::/64", "via fd00:6:: DEV onlink expires 1000", false),
            ("fd00:7::/64", "via fd00:7:: DEV onlink pref high", false),
            ("fd00:8::/64", "via fd00:8:: DEV onlink proto 3 metric 9", true),
        ];
        for (dst, rest, _) in routes {
            ip(&format!("-6 route add {dst} {}", rest.replace("DEV", dev)));
        }
        let seen: Vec<_> = ours(&mut kernel, link, Family::V6)
            .await
            .into_iter()
            .filter_map(|it| if let Object::Route(it) = it { Some(it) } else { None })
            .collect();
        let plain: Vec<_> = seen.iter().map(|it| (it.dst.to_string(), it.plain)).collect();
        assert_eq!(plain, routes.map(|(dst, _, plain)| (dst.to_owned(), plain)));
        assert_eq!(seen[0].metric, 1024);
        done(&mut kernel, seen.into_iter().map(|it| Op::Delete(Object::Route(it)))).await;
        let left = ip("-6 route show dev flannel-v6.1");
        assert!(!routes.iter().any(|(dst, ..)| left.contains(dst)), "{left}");
    });
}

#[test]
fn foreign_routes_are_not_overwritten() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        for (family, foreign, lookup) in [
            (Family::V4, "10.0.1.0/24 via 192.0.2.77 dev eth0 proto static", "10.0.1.0/24"),
            (Family::V6, "fd00:10:0:1::/64 via 2001:db8::77 dev eth0 proto static", "fd00:10:0:1::/64"),
        ] {
            let link = device(&mut kernel, family).await.index;
            ip(&format!("route add {foreign}"));
            let before = ip(&format!("-{} route show {lookup}", if family == Family::V4 { 4 } else { 6 }));
            let ops = peer(link, family, 1, 1).map(Op::Create);
            let refusals = kernel.execute(&ops).await.unwrap();
            assert_eq!(refusals.len(), 1);
            // IPv6 looks first where the gateway is, which the foreign route says otherwise.
            let errno = if family == Family::V4 { libc::EEXIST } else { libc::EINVAL };
            assert_eq!((refusals[0].op, refusals[0].errno), (ops[2], errno), "{}", refusals[0]);
            assert_eq!(
                ip(&format!("-{} route show {lookup}", if family == Family::V4 { 4 } else { 6 })),
                before
            );
            // Nor does the deletion of ours take it.
            done(&mut kernel, ops.map(|op| Op::Delete(*op.object()))).await;
            assert_eq!(
                ip(&format!("-{} route show {lookup}", if family == Family::V4 { 4 } else { 6 })),
                before
            );
            kernel.change_link(&LinkOp::Delete(link)).await.unwrap();
        }
    });
}

#[test]
fn a_bad_operation_stops_no_other() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        for family in Family::ALL {
            let link = device(&mut kernel, family).await.index;
            let mut ops: Vec<_> = (1..=100).flat_map(|n| peer(link, family, n, 1)).map(Op::Create).collect();
            let [.., Object::Route(route)] = peer(link, family, 200, 1) else { unreachable!() };
            // The first without a link to be on-link with; the last also as the last of all.
            let homeless = Op::Create(Object::Route(Route { link: None, ..route }));
            let nowhere =
                Op::Create(Object::Address(Address { link: LinkIndex(9999), addr: route.dst.into() }));
            ops.insert(150, homeless);
            ops.push(nowhere);
            let refusals = kernel.execute(&ops).await.unwrap();
            assert_eq!(refusals.iter().map(|it| it.op).collect::<Vec<_>>(), [homeless, nowhere]);
            assert_ne!(refusals[0].reason, "", "{}", refusals[0]);
            assert_eq!(refusals[1].errno, libc::ENODEV);
            let wanted: BTreeSet<_> = (1..=100).flat_map(|n| peer(link, family, n, 1)).collect();
            assert_eq!(ours(&mut kernel, link, family).await, wanted);
            kernel.change_link(&LinkOp::Delete(link)).await.unwrap();
        }
    });
}

#[test]
fn changes_of_others_are_heard() {
    with_underlay(test_name!(), || async {
        let mut kernel = Netlink::open().unwrap();
        let made = device(&mut kernel, Family::V4).await;
        let link = made.index;
        assert!(heard(&mut kernel, link).await.contains(&KernelEvent::Link(made.clone())));

        // A neighbour that is no longer permanent, or failed, is gone.
        let key = ObjectKey::Neighbour(link, [10, 0, 1, 1].into());
        ip("neigh add 10.0.1.1 lladdr 02:00:00:00:00:01 dev flannel.1 nud permanent");
        assert!(matches!(heard(&mut kernel, link).await[..], [KernelEvent::Put(Object::Neighbour(_))]));
        ip("neigh replace 10.0.1.1 lladdr 02:00:00:00:00:01 dev flannel.1 nud stale");
        assert_eq!(heard(&mut kernel, link).await, [KernelEvent::Gone(key)]);
        ip("neigh replace 10.0.1.1 lladdr 02:00:00:00:00:01 dev flannel.1 nud permanent");
        heard(&mut kernel, link).await;
        ip("neigh del 10.0.1.1 dev flannel.1");
        let events = heard(&mut kernel, link).await;
        assert_eq!(events, [KernelEvent::Gone(key), KernelEvent::Gone(key)], "FAILED, then deleted");

        // Other tables and other TOS are none of our business.
        ip("route add 10.1.0.0/24 dev flannel.1 table 77");
        ip("route add 10.1.0.0/24 dev flannel.1 tos 4");
        ip("address add 10.1.1.1/32 dev flannel.1");
        assert!(matches!(heard(&mut kernel, link).await[..], [KernelEvent::Put(Object::Address(_))]));

        ip("link set flannel.1 down");
        assert!(
            heard(&mut kernel, link).await.iter().any(|it| matches!(it, KernelEvent::Link(it) if !it.up))
        );
        // Bridge ports are announced as links of another family, also when they leave.
        ip("link add br0 type bridge");
        ip("link set flannel.1 master br0");
        ip("link set flannel.1 nomaster");
        let gone = |event: &KernelEvent| matches!(event, KernelEvent::LinkGone(it, _) if *it == link);
        let events = heard(&mut kernel, link).await;
        assert!(!events.iter().any(gone), "{events:?}");
        ip("link del flannel.1");
        let events = heard(&mut kernel, link).await;
        assert!(events.contains(&KernelEvent::LinkGone(link, "flannel.1".into())), "{events:?}");
    });
}
