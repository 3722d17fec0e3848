//! All that the backend does, it does in the network namespace that it was given.

use flannel_backend_hostgw::HostGwBackend;
use flannel_core::testing::{Footprint, netns_contract};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

#[test]
fn touches_only_its_own_namespace() {
    let footprint = Footprint {
        config: r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#,
        peer: r#"{"PublicIP":"192.0.2.9","BackendType":"host-gw"}"#,
        device: None,
        route: "10.5.99.0/24 via 192.0.2.9 dev eth0",
        port: None,
    };
    in_sandbox(test_name!(), || netns_contract(&footprint, || Box::new(HostGwBackend::new())));
}
