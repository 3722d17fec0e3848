//! Underlay addresses that no node of the segment can have, while the segment changes.

use crate::addr::{Mtu, PerFamily};
use crate::backend::Underlay;
use crate::kernel::LinkAddress;
use crate::underlay::{Follower, UnderlayOptions};

use super::*;

fn address(link: LinkIndex, addr: &str) -> LinkAddress {
    LinkAddress {
        link,
        addr: addr.parse().unwrap(),
        global: true,
        deprecated: false,
        permanent: true,
        temporary: false,
        tentative: false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_address_is_one_by_the_prefix_that_the_link_has_now() {
    let kernel = FakeKernel::default();
    let (link, eth0) = (kernel.add_link("tun0", 1450), kernel.add_link("eth0", 1500));
    kernel.add_address(address(eth0, "192.0.2.1/24"));
    let local = PerFamily { v4: "192.0.2.1".parse().ok(), v6: None };
    let underlay = Underlay {
        name: "eth0".into(),
        link: eth0,
        mtu: Mtu(1500),
        local,
        published: local,
        reason: String::new(),
    };
    let options = UnderlayOptions {
        families: vec![Family::V4],
        ifaces: vec!["eth0".into()],
        ..UnderlayOptions::default()
    };
    let bench =
        bench_with(kernel.clone(), link, |reconciler| reconciler.follow(Follower::new(options, underlay)));
    // The number of a record is its node's address: 192.0.2.255 and 192.0.2.254.
    bench.snapshot(&[lease("10.5.2.0-24", 255), lease("10.5.3.0-24", 254), lease(OWN, 1)]);
    bench.settle().await;
    assert!(!bench.has_route("10.5.2.0-24"), "the broadcast address");
    assert!(bench.has_route("10.5.3.0-24"), "a node's");
    kernel.remove_address("192.0.2.1".parse().unwrap());
    bench.settle().await;
    assert!(!bench.has_route("10.5.2.0-24"), "without an address the segment is what it was");
    kernel.add_address(address(eth0, "192.0.2.1/23"));
    bench.settle().await;
    assert!(bench.has_route("10.5.2.0-24"), "in a larger one it is a node's as others");
    kernel.remove_address("192.0.2.1".parse().unwrap());
    kernel.add_address(address(eth0, "192.0.2.1/24"));
    bench.settle().await;
    assert!(bench.has_route("10.5.3.0-24"));
    assert!(bench.has_route("10.5.2.0-24"), "what is in the kernel for a record that became bad stays there");
}
