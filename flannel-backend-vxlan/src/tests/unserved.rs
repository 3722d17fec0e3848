//! Hosts on which IPv6 can't be had: its family is out of service by name, and the other one works.

use flannel_core::dataplane::ObjectKey;
use flannel_core::kernel::VxlanLink;

use super::*;

const ONLY_V6: &str =
    r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;

fn set_mtu(host: &Host, mtu: u32) {
    host.kernel.edit_link("eth0", true, |link| link.mtu = Mtu(mtu));
}

/// The reasons and notes of a status.
fn said(running: &Running) -> (String, String) {
    let verdict = running.status.borrow().problems.summary(false);
    (verdict.reasons.join("\n"), verdict.notes.join("\n"))
}

fn has_v6(host: &Host) -> bool {
    host.kernel
        .objects()
        .iter()
        .any(|object| matches!(object.key(), ObjectKey::Route(dst, _) if dst.family() == Family::V6))
}

#[tokio::test(start_paused = true)]
async fn an_underlay_too_small_for_ipv6_serves_ipv4_until_it_is_larger() {
    let host = Host::new(false, DUAL);
    host.store.put(PEER_KEY, PEER);
    set_mtu(&host, 1349);
    let running = host.start().await;
    let (reasons, notes) = said(&running);
    assert_eq!(reasons, "");
    assert!(
        notes.contains("IPv6 is out of service") && notes.contains("set the MTU of eth0 to 1350 or more"),
        "{notes}"
    );
    assert!(host.kernel.link_named("flannel-v6.1").is_none() && !has_v6(&host));
    assert_eq!(host.kernel.objects().len(), 4, "IPv4 has all that it needs");
    // Pods have addresses of both families, and links below 1280 bytes take none of IPv6.
    assert_eq!(running.status.borrow().overlay_mtu, Some(Mtu(1299)));
    set_mtu(&host, 1300);
    settle().await;
    assert_eq!(running.status.borrow().overlay_mtu, Some(Mtu(1280)));
    assert_eq!(host.kernel.link_named("flannel.1").unwrap().mtu, Mtu(1250));
    set_mtu(&host, 1350);
    settle().await;
    assert_eq!(said(&running), Default::default());
    assert_eq!(host.kernel.link_named("flannel-v6.1").unwrap().mtu, Mtu(1280));
    assert_eq!((host.kernel.objects().len(), has_v6(&host)), (all(false), true));
    running.stop().await;
}

/// Small packets pass as before; with a smaller MTU the device would lose its IPv6.
#[tokio::test(start_paused = true)]
async fn an_underlay_that_shrinks_costs_no_packet_that_would_still_pass() {
    let host = Host::new(true, DUAL);
    host.store.put(PEER_KEY, PEER);
    let running = host.start().await;
    let want = host.kernel.objects();
    host.kernel.take_link_ops();
    set_mtu(&host, 1300);
    settle().await;
    resync().await;
    let (reasons, notes) = said(&running);
    assert!(reasons.is_empty() && notes.contains("IPv6 is out of service"), "{reasons}{notes}");
    assert_eq!(
        (host.kernel.objects(), host.kernel.link_named("flannel-v6.1").unwrap().mtu),
        (want.clone(), Mtu(1430))
    );
    assert!(
        matches!(host.kernel.take_link_ops()[..], [LinkOp::SetMtu(_, Mtu(1250))]),
        "that of IPv4 follows"
    );
    // A restart meanwhile changes nothing of that.
    running.stop().await;
    let running = host.start().await;
    assert_eq!((host.kernel.objects(), host.kernel.take_link_ops()), (want.clone(), vec![]));
    set_mtu(&host, 1500);
    settle().await;
    assert_eq!((host.kernel.objects(), said(&running)), (want, Default::default()));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_only_family_is_a_reason_while_it_is_out_of_service() {
    let host = Host::new(false, ONLY_V6);
    set_mtu(&host, 1300);
    let running = host.start().await;
    let (reasons, notes) = said(&running);
    assert!(reasons.contains("IPv6 is out of service") && notes.is_empty(), "{reasons}{notes}");
    set_mtu(&host, 1500);
    settle().await;
    assert_eq!(said(&running), Default::default());
    assert!(host.kernel.link_named("flannel-v6.1").is_some());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn ipv6_that_is_switched_off_on_the_device_is_named_and_heals() {
    let host = Host::new(true, DUAL);
    host.store.put(PEER_KEY, PEER);
    host.kernel.refuse(|op| match op.object() {
        Object::Address(address) => address.addr.is_ipv6().then_some(libc::EACCES),
        _ => None,
    });
    let running = host.start().await;
    let (reasons, notes) = said(&running);
    assert_eq!(reasons, "");
    assert!(notes.contains("run sysctl -w net/ipv6/conf/flannel-v6.1/disable_ipv6=0"), "{notes}");
    assert!(!notes.contains("Address {"), "no debug dump: {notes}");
    // The kernel gives the device its link-local address when IPv6 is switched on.
    tokio::time::sleep(Duration::from_secs(300)).await;
    host.kernel.refuse_nothing();
    let link = host.kernel.link_named("flannel-v6.1").unwrap().index;
    host.kernel.put(Object::Address(Address { link, addr: "fe80::1/64".parse().unwrap() }), true);
    settle().await;
    assert_eq!(said(&running), Default::default());
    running.stop().await;
}

#[tokio::test]
async fn whose_device_has_the_vni_is_said() {
    let host = Host::new(false, r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let vxlan = VxlanLink {
        vni: Vni::new(1).unwrap(),
        port: 8472,
        local: Some([192, 0, 2, 1].into()),
        lower: Some(host.underlay.link),
        learning: false,
        gbp: false,
        foreign: false,
    };
    let (mac, mtu) = (MacAddr([2, 0, 0, 0, 0, 9]), Mtu(1450));
    let other = LinkOp::create_vxlan("other0", mac, mtu, &vxlan);
    host.kernel.clone().change_link(&other).await.unwrap();
    let error = host.register().await.err().unwrap().to_string();
    assert!(error.contains("device other0 has VNI 1 on UDP port 8472: remove it"), "{error}");
}
