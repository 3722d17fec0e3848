//! Devices in this process, in place of the kernel's.

use super::*;

/// As Go flannel leaves it: without a blackhole.
#[tokio::test(start_paused = true)]
async fn a_device_of_the_kernel_gives_way_to_one_in_the_process_behind_a_blackhole() {
    let mut host = Host::new(DUAL);
    host.devices = FakeDevices::in_process();
    let mut kernel = host.kernel.clone();
    for name in ["flannel-wg", "flannel-wg-v6"] {
        kernel.change_link(&crate::provider::create(name, Mtu(1420))).await.unwrap();
    }
    let go = host.link("flannel-wg");
    host.kernel.put(Object::Route(route("10.5.0.0/16", go)), false);
    host.kernel.refuse(|op| {
        matches!(op.object(), Object::Route(route) if route.through == Through::Nowhere)
            .then_some(libc::EPERM)
    });
    let error = flannel_core::error::chain(&host.register().await.err().unwrap());
    assert!(error.contains("a blackhole for 10.5.0.0/16 must come first"), "{error}");
    assert_eq!(host.link("flannel-wg"), go, "it stays");
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (ops, links) = (Arc::clone(&order), Arc::clone(&order));
    host.kernel.refuse(move |op| {
        if matches!(op.object(), Object::Route(route) if route.through == Through::Nowhere) {
            ops.lock().unwrap().push("blackhole");
        }
        None
    });
    host.kernel.refuse_link(move |op| {
        if matches!(op, LinkOp::Delete(_)) {
            links.lock().unwrap().push("delete");
        }
        None
    });
    let _running = host.start().await;
    for name in ["flannel-wg", "flannel-wg-v6"] {
        let link = host.kernel.link_named(name).unwrap();
        assert_eq!((link.kind.as_deref(), link.up, link.mtu), (Some("tun"), true, Mtu(1420)));
        assert_eq!(host.devices.state(link.index).private_key, Some(host.key()));
    }
    assert_eq!(*order.lock().unwrap(), ["blackhole", "blackhole", "delete", "delete"]);
}

#[tokio::test(start_paused = true)]
async fn a_device_in_the_process_that_stops_is_made_again_and_expects_its_peers() {
    let mut host = Host::new(DUAL);
    host.devices = FakeDevices::in_process();
    host.store.put(PEER, &record(9));
    let running = host.start().await;
    assert_eq!(host.devices.expected(), [], "a peer that is new has no session");
    let (link, before) = (host.link("flannel-wg"), host.peers("flannel-wg"));
    // Its link stays as long as somebody has the device, and so does the port.
    host.devices.end(link);
    settle().await;
    assert!(host.devices.is_closed(link));
    host.kernel.delete_link("flannel-wg");
    settle().await;
    assert_ne!(host.link("flannel-wg"), link);
    assert_eq!(host.peers("flannel-wg"), before);
    assert_eq!(host.devices.expected(), [key(9)]);
    assert_eq!(running.status.borrow().device_problem(), None);
    // The next process has the leases of the last one.
    host.previous = Some(running.stop().await);
    for name in ["flannel-wg", "flannel-wg-v6"] {
        host.kernel.delete_link(name);
    }
    host.devices = FakeDevices::in_process();
    let _running = host.start().await;
    assert_eq!(host.devices.expected(), [key(9)]);
}

/// A TUN that another process has looks like ours, and isn't.
#[tokio::test(start_paused = true)]
async fn a_tun_of_another_process_is_named_by_the_real_provider() {
    let host = Host::new(DUAL);
    let kernel = host.kernel.clone();
    let tun = LinkOp::Create {
        name: "flannel-wg".to_owned(),
        mac: None,
        mtu: None,
        kind: flannel_core::kernel::LinkKind::new("tun", []),
    };
    kernel.clone().change_link(&tun).await.unwrap();
    let open = move |_: &Netns| Ok(Box::new(kernel.clone()) as Box<dyn Kernel>);
    let provider = Arc::new(crate::provider::InUserspace::default());
    let backend = WireguardBackend::with_kernel(open, provider).key_file(host.folder.path().join("wgkey"));
    let netns = Netns::current().unwrap();
    let registration = Registration::new(&netns, &host.config, &host.underlay, &host.store);
    let error = flannel_core::error::chain(&backend.register(registration).await.err().unwrap());
    assert!(error.contains("there is a TUN of this name, which another process has"), "{error}");
}
