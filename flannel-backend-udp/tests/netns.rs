//! All that the backend does, it does in the network namespace that it was given.

use flannel_backend_udp::{UdpBackend, UdpOptions};
use flannel_core::testing::{Footprint, netns_contract};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

#[test]
fn touches_only_its_own_namespace() {
    let footprint = Footprint {
        config: r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#,
        peer: r#"{"PublicIP":"192.0.2.9","BackendType":"udp"}"#,
        device: Some(("flannel0", "1")),
        route: "10.5.0.0/16 ",
        port: Some(8285),
    };
    in_sandbox(test_name!(), || {
        netns_contract(&footprint, || Box::new(UdpBackend::new(UdpOptions::default())));
    });
}
