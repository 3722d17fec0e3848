//! Delegates that the user names in place of bridge.

use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use serde_json::{Value, json};

use crate::host::{Host, V4, V6, assert_ping, names};

fn conf(host: &Host, delegate: &Value) -> Value {
    let mut conf = host.conf("1.0.0");
    conf["delegate"] = delegate.clone();
    conf
}

#[test]
fn macvlan_attaches_to_the_nodes_link() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4, V6]);
        let conf = conf(&host, &json!({ "type": "macvlan", "master": "eth0" }));
        assert_eq!(host.ask("STATUS", &conf), Ok(Value::Null));
        let (a, b) = (host.container("a"), host.container("b"));
        let result = host.add(&a, &conf);
        host.add(&b, &conf);
        assert_eq!(a.addresses("eth0").len(), 2);
        assert_ping(&b.netns, &a);
        let link = a.netns.ip_json("link show dev eth0").unwrap();
        assert_eq!((&link[0]["linkinfo"]["info_kind"], &link[0]["mtu"]), (&json!("macvlan"), &json!(1400)));
        let mut with_result = conf.clone();
        with_result["prevResult"] = result;
        assert_eq!(host.call("CHECK", &a, "eth0", &with_result), Ok(Value::Null));
        host.del(&a, &conf);
        host.del(&b, &conf);
        host.assert_empty();
        assert!(a.netns.link_index("eth0").unwrap().is_none());
    });
}

#[test]
fn ipvlan_attaches_or_says_that_the_kernel_has_none() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4]);
        let conf = conf(&host, &json!({ "type": "ipvlan", "master": "eth0" }));
        let a = host.container("a");
        let has_ipvlan = host.node().ip("link add link eth0 name probe type ipvlan mode l2").is_ok();
        if has_ipvlan {
            host.node().ip("link del probe").unwrap();
            host.add(&a, &conf);
            assert_eq!(a.addresses("eth0").len(), 1);
            assert_eq!(names(&host.records()), ["a"]);
            host.del(&a, &conf);
        } else {
            let error = host.call("ADD", &a, "eth0", &conf).unwrap_err();
            let msg = error["msg"].as_str().unwrap();
            assert!(msg.starts_with("failed to delegate add: failed to create ipvlan"), "{error}");
        }
        host.assert_empty();
    });
}

#[test]
fn ptp_routes_without_a_bridge() {
    in_sandbox(test_name!(), || {
        let host = Host::new(&[V4, V6]);
        let conf = conf(&host, &json!({ "type": "ptp", "ipMasq": false }));
        let a = host.container("a");
        host.add(&a, &conf);
        assert!(host.node().link_index("cni0").unwrap().is_none());
        assert_ping(host.node(), &a);
        host.del(&a, &conf);
        host.assert_empty();
    });
}
