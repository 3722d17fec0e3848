//! Upgrade from the Go plugin, and back.

use std::fs;

use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use serde_json::{Value, json};

use crate::host::{Host, V4, V6, assert_error, names};

/// What the Go plugin (v1.9.1-flannel1) writes for the config of [`Host::conf`]: maps with sorted keys.
fn record_of_go(host: &Host) -> String {
    let dir = host.dir.display();
    format!(
        "{{\"cniVersion\":\"0.3.1\",\"hairpinMode\":true,\"ipMasq\":false,\"ipam\":{{\"dataDir\":\"{dir}/ipam\",\
         \"ranges\":[[{{\"subnet\":\"10.42.3.0/24\"}}],[{{\"subnet\":\"fd00:42:0:3::/64\"}}]],\
         \"routes\":[{{\"dst\":\"10.42.0.0/16\"}},{{\"dst\":\"fd00:42::/56\"}}],\"type\":\"host-local\"}},\
         \"isDefaultGateway\":true,\"isGateway\":true,\"mtu\":1400,\"name\":\"cbr0\",\"type\":\"bridge\"}}"
    )
}

#[test]
fn what_go_attached_is_detached_and_ours_looks_the_same() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4, V6]);
        let (conf, a) = (host.conf("0.3.1"), host.container("a"));
        // The Go plugin writes this record, then runs the delegate with it.
        let record = record_of_go(&host);
        fs::create_dir_all(host.records()).unwrap();
        fs::write(host.records().join("a"), &record).unwrap();
        let bridge = std::path::Path::new("/usr/lib/cni/bridge");
        host.call_plugin(bridge, "ADD", &a, "eth0", &record.parse().unwrap()).unwrap();
        host.assert_holds(1, 2);
        // The agent may be gone by then.
        fs::remove_file(host.dir.join("subnet.env")).unwrap();
        host.del(&a, &conf);
        host.assert_empty();

        host.write_env(&[V4, V6]);
        host.add(&a, &conf);
        assert_eq!(fs::read_to_string(host.records().join("a")).unwrap(), record);
        fs::remove_file(host.dir.join("subnet.env")).unwrap();
        host.del(&a, &conf);
        host.assert_empty();
    });
}

#[test]
fn gos_record_of_another_interface_is_found_and_stays() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4, V6]);
        let (conf, a) = (host.conf("0.4.0"), host.container("a"));
        let record = record_of_go(&host).replace("0.3.1", "0.4.0");
        fs::create_dir_all(host.records()).unwrap();
        fs::write(host.records().join("a"), &record).unwrap();
        let bridge = std::path::Path::new("/usr/lib/cni/bridge");
        let mut with_result = conf.clone();
        with_result["prevResult"] =
            host.call_plugin(bridge, "ADD", &a, "net1", &record.parse().unwrap()).unwrap();
        assert_eq!(host.call("CHECK", &a, "net1", &with_result), Ok(Value::Null));
        // Another network's is none of ours.
        let mut other = conf.clone();
        other["name"] = json!("other");
        assert_eq!(host.call("DEL", &a, "net1", &other), Ok(Value::Null));
        assert_eq!(host.addresses_in_use().len(), 2);
        assert_eq!(host.call("DEL", &a, "net1", &conf), Ok(Value::Null));
        assert_eq!((host.addresses_in_use().len(), host.veths()), (0, 0));
        assert_eq!(names(&host.records()), ["a"]);
    });
}

#[test]
fn a_damaged_record_is_made_up_for_or_named() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4, V6]);
        let (conf, a) = (host.conf("1.0.0"), host.container("a"));
        for damage in ["", "{\"name\":", "[]", "{}", "\u{0}\u{0}\u{0}"] {
            let result = host.add(&a, &conf);
            fs::write(host.records().join("a"), damage).unwrap();
            let mut with_result = conf.clone();
            with_result["prevResult"] = result;
            assert_error(&host.call("CHECK", &a, "eth0", &with_result), 103, &["/run/cni/records/a"]);
            // Without the agent's file nothing is known, so nothing is done.
            fs::remove_file(host.dir.join("subnet.env")).unwrap();
            assert_error(&host.call("DEL", &a, "eth0", &conf), 103, &["rm /run/cni/records/a", "damaged"]);
            host.assert_holds(1, 2);
            host.write_env(&[V4, V6]);
            host.del(&a, &conf);
            host.assert_empty();
        }
    });
}
