//! All that the backend does, it does in the network namespace that it was given.

use flannel_backend_vxlan::VxlanBackend;
use flannel_core::firewall::gate::{GateOptions, Mode};
use flannel_core::testing::{Footprint, netns_contract};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

#[test]
fn touches_only_its_own_namespace() {
    let footprint = Footprint {
        config: r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#,
        peer: r#"{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"06:00:00:00:00:09"}}"#,
        device: Some(("flannel.1", "0")),
        route: "10.5.99.0/24 ",
        port: Some(8472),
    };
    in_sandbox(test_name!(), || {
        netns_contract(&footprint, || {
            Box::new(VxlanBackend::new().strict_underlay(GateOptions::new(Mode::Observe)))
        });
    });
}
