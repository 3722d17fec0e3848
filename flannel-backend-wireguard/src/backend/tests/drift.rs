//! Devices that somebody changes, deletes or has already, and that can't be read.

use super::*;

/// Changes the content of a device, as somebody else would.
type Damage = fn(&mut crate::device::DeviceState);

#[tokio::test(start_paused = true)]
async fn drift_inside_of_a_device_is_repaired_at_the_resync_and_counted() {
    let host = Host::new(DUAL);
    host.store.put(PEER, &record(9));
    let running = host.start().await;
    let link = host.link("flannel-wg");
    let right = host.devices.state(link);
    let damages: [Damage; 5] = [
        |state| state.peers.clear(),
        |state| state.listen_port = 7,
        |state| state.private_key = Some(PrivateKey([7; 32])),
        |state| state.peers.values_mut().for_each(|peer| peer.allowed_ips.clear()),
        |state| {
            let foreign =
                PeerState { allowed_ips: ["10.5.3.0/24".parse().unwrap()].into(), ..PeerState::default() };
            state.peers.insert(key(77), foreign);
        },
    ];
    for (n, damage) in damages.into_iter().enumerate() {
        let repairs = running.status.borrow().repairs;
        host.devices.edit(link, damage);
        tokio::time::sleep(Duration::from_secs(70)).await;
        assert_eq!(host.devices.state(link), right, "damage {n}");
        assert_eq!(running.status.borrow().repairs, repairs + 1, "damage {n}");
    }
    host.devices.take_changes();
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(host.devices.take_changes(), [], "it is at rest");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_vanishes_is_made_again_and_nothing_leaves_meanwhile() {
    let host = Host::new(DUAL);
    host.store.put(PEER, &record(9));
    let running = host.start().await;
    let before = host.peers("flannel-wg");
    host.kernel.refuse_link(|op| matches!(op, LinkOp::Create { .. }).then_some(libc::EOPNOTSUPP));
    host.kernel.delete_link("flannel-wg");
    settle().await;
    let problem = running.status.borrow().device_problem().unwrap();
    assert!(problem.contains("flannel-wg") && problem.contains("modprobe wireguard"), "{problem}");
    let problems = running.status.borrow().problems.clone();
    let reach = problems.reach.map(|_, reach| (reach.expected, reach.cut));
    assert_eq!((reach.v4, reach.v6), (Some((1, 1)), Some((1, 0))), "the other device carries IPv6");
    assert_eq!(problems.summary(true).reasons, [problem.as_str()], "nothing is said of IPv6");
    let blackhole = Object::Route(Route::blackhole("10.5.0.0/16".parse().unwrap()));
    assert_eq!(host.kernel.objects().get(&blackhole.key()), Some(blackhole));
    host.kernel.refuse_nothing();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(host.peers("flannel-wg"), before);
    assert_eq!(host.devices.state(host.link("flannel-wg")).private_key, Some(host.key()));
    let link = host.link("flannel-wg");
    let address = Object::Address(Address { link, addr: "10.5.1.0/32".parse().unwrap() });
    assert_eq!(host.kernel.objects().get(&address.key()), Some(address));
    assert!(host.kernel.objects().get(&Object::Route(route("10.5.99.0/24", link)).key()).is_some());
    assert_eq!(running.status.borrow().device_problem(), None);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_cannot_be_read_is_a_problem_until_it_can() {
    let host = Host::new(DUAL);
    host.store.put(PEER, &record(9));
    let running = host.start().await;
    host.devices.fail(Some(io::ErrorKind::PermissionDenied));
    tokio::time::sleep(Duration::from_secs(70)).await;
    let problem = running.status.borrow().device_problem().unwrap();
    assert!(problem.contains("device flannel-wg: permission denied"), "{problem}");
    host.devices.fail(None);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(running.status.borrow().device_problem(), None);
}

#[tokio::test(start_paused = true)]
async fn a_link_of_another_kind_is_not_touched() {
    let host = Host::new(DUAL);
    host.kernel.add_link("flannel-wg", 1500);
    let error = host.register().await.err().unwrap();
    assert!(flannel_core::error::chain(&error).contains("is not ours; rename or remove it"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_back_is_named() {
    let host = Host::new(DUAL);
    host.store.put(PEER, &record(9));
    let running = host.start().await;
    host.devices.edit(host.link("flannel-wg"), |state| {
        state.peers.get_mut(&key(9)).unwrap().last_handshake =
            SystemTime::now().checked_add(Duration::from_secs(3600));
    });
    tokio::time::sleep(Duration::from_secs(70)).await;
    let problem = running.status.borrow().device_problem().unwrap();
    assert!(
        problem.contains("the clock of this host was set back") && problem.contains("TAI64N"),
        "{problem}"
    );
}
