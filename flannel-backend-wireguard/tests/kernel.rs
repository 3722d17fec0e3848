//! Devices of the real kernel.

mod vm {
    use std::collections::BTreeMap;

    use flannel_backend_wireguard::device::{Change, Device as _, DeviceState, PeerChange, PeerState};
    use flannel_backend_wireguard::kernel::KernelDevice;
    use flannel_backend_wireguard::key::{PresharedKey, PrivateKey, PublicKey};
    use flannel_backend_wireguard::provider::{InKernel, NewDevice, Provider as _};
    use flannel_core::addr::Mtu;
    use flannel_core::kernel::{Kernel as _, LinkOp};
    use flannel_core::netlink::Netlink;
    use flannel_core::netns::Netns;
    use flannel_lab::sandbox::in_sandbox;
    use flannel_lab::test_name;

    /// Runs a test with a device of its own, which is not up.
    fn with_device(test: &str, body: impl AsyncFnOnce(&mut Netlink, KernelDevice)) {
        in_sandbox(test, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let netns = Netns::current().unwrap();
                let mut kernel = Netlink::open_in(&netns).unwrap();
                let new = NewDevice::new(&netns, "flannel-wg", Mtu(1420), 0);
                assert!(InKernel.create(&mut kernel, &new).await.unwrap().is_none());
                let link = kernel.link("flannel-wg").await.unwrap().unwrap();
                let device = KernelDevice::open(&netns, link.index).unwrap();
                body(&mut kernel, device).await;
            });
        });
    }

    fn key(n: u16) -> PublicKey {
        PublicKey(std::array::from_fn(|at| n.to_be_bytes().get(at).copied().unwrap_or(9)))
    }

    /// A peer with two addresses, and every hundredth with more than one message has.
    fn peer(n: u16) -> PeerState {
        let many = if n.is_multiple_of(100) { 700 } else { 0 };
        let more = (0..many)
            .map(|at: u16| format!("172.{}.{}.{}/32", n / 100 + 16, at / 256, at % 256).parse().unwrap());
        let subnets = [format!("10.{}.{}.0/24", n / 256, n % 256), format!("fd00:5:{n:x}::/64")];
        let endpoint = if n.is_multiple_of(2) { "[2001:db8::9]:51821" } else { "192.0.2.9:51820" };
        PeerState {
            preshared_key: n.is_multiple_of(3).then_some(PresharedKey([7; 32])),
            endpoint: endpoint.parse().ok(),
            keepalive: n % 30,
            allowed_ips: subnets.map(|subnet| subnet.parse().unwrap()).into_iter().chain(more).collect(),
            ..PeerState::default()
        }
    }

    fn put(n: u16) -> Change {
        let PeerState { preshared_key, endpoint, keepalive, allowed_ips, .. } = peer(n);
        let change = PeerChange {
            preshared_key: Some(preshared_key),
            endpoint,
            keepalive: Some(keepalive),
            allowed_ips: Some(allowed_ips),
        };
        Change::Peer(key(n), change)
    }

    #[test]
    #[ignore = "needs a kernel with wireguard; .ci/vm runs it in a VM"]
    fn a_thousand_peers_are_written_and_read_back() {
        with_device(test_name!(), async |_, device| {
            let private_key = PrivateKey::generate().unwrap();
            let mut changes = vec![Change::PrivateKey(private_key.clone()), Change::ListenPort(51820)];
            changes.extend((1..=1000).map(put));
            device.apply(&changes).await.unwrap();
            let peers: BTreeMap<_, _> = (1..=1000).map(|n| (key(n), peer(n))).collect();
            let mut want =
                DeviceState { private_key: Some(private_key), listen_port: 51820, fwmark: 0, peers };
            assert!(device.state().await.unwrap() == want, "all that was written");
            // One change touches one peer.
            let less = PeerChange { allowed_ips: Some([].into()), ..PeerChange::default() };
            device.apply(&[Change::RemovePeer(key(5)), Change::Peer(key(6), less)]).await.unwrap();
            want.peers.remove(&key(5));
            want.peers.get_mut(&key(6)).unwrap().allowed_ips.clear();
            assert!(device.state().await.unwrap() == want, "and nothing else");
            assert!(device.read().unwrap() == want, "read by the status, too");
        });
    }

    #[test]
    #[ignore = "needs a kernel with wireguard; .ci/vm runs it in a VM"]
    fn a_device_that_is_gone_is_an_error_with_what_was_tried() {
        with_device(test_name!(), async |kernel, device| {
            let link = kernel.link("flannel-wg").await.unwrap().unwrap();
            kernel.change_link(&LinkOp::Delete(link.index)).await.unwrap();
            let error = device.state().await.unwrap_err().to_string();
            assert!(error.contains("read the peers of WireGuard link"), "{error}");
            let error = device.apply(&[Change::ListenPort(1)]).await.unwrap_err().to_string();
            assert!(error.contains("change the keys and peers of WireGuard link"), "{error}");
        });
    }

    #[test]
    #[ignore = "needs a kernel with wireguard; .ci/vm runs it in a VM"]
    fn a_time_of_no_handshake_is_none() {
        with_device(test_name!(), async |_, device| {
            device.apply(&[put(1)]).await.unwrap();
            assert_eq!(device.state().await.unwrap().peers[&key(1)].last_handshake, None);
        });
    }
}
