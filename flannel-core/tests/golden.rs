//! The records of real Go nodes: read in full, and written again with the same bytes.

use flannel_core::addr::{Family, PerFamily};
use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::lease::{LeaseAttrs, LeaseKey};
use flannel_lab::golden::Golden;

#[test]
fn every_record_keeps_its_bytes() {
    let mut seen = 0;
    for golden in Golden::all() {
        for (key, value) in golden.records() {
            let parsed: LeaseKey = key.parse().unwrap_or_else(|error| panic!("{}: {error}", golden.name));
            assert_eq!(parsed.to_string(), key, "{}", golden.name);
            let attrs =
                LeaseAttrs::from_json(&value).unwrap_or_else(|error| panic!("{}: {error}", golden.name));
            assert_eq!(attrs.to_json(), value, "{}", golden.name);
            seen += 1;
        }
    }
    assert_eq!(seen, 18, "nine cases with a store, two nodes each");
}

#[test]
fn every_config_is_read_and_holds_its_leases() {
    for golden in Golden::all() {
        let Some(text) = golden.config() else {
            assert_eq!(golden.name, "kube-vxlan", "only the Kubernetes case has its config elsewhere");
            continue;
        };
        let config = NetworkConfig::parse(&text, LeaseSource::Store).unwrap();
        for (key, _) in golden.records() {
            let key: LeaseKey = key.parse().unwrap();
            let families: Vec<_> = key.subnets().families().collect();
            assert_eq!(config.families().collect::<Vec<_>>(), families, "{}", golden.name);
            for (family, subnet) in key.subnets().iter() {
                let range = config.networks.get(family).unwrap().range.unwrap();
                assert!(range.contains(*subnet), "{}: {subnet} is not in {range:?}", golden.name);
            }
        }
    }
}

/// The Kubernetes records say the same in other clothes: annotations of a Node.
#[test]
fn the_kubernetes_annotations_hold_the_same_values() {
    let golden = Golden::named("kube-vxlan");
    for (name, address) in [("n1", "192.168.77.11"), ("n2", "192.168.77.12")] {
        let node = &golden.json[name];
        let annotation = |suffix: &str| {
            node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{suffix}")].as_str().unwrap()
        };
        let value = format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"{}","BackendData":{}}}"#,
            annotation("public-ip"),
            annotation("backend-type"),
            annotation("backend-data"),
        );
        let attrs = LeaseAttrs::from_json(&value).unwrap();
        assert_eq!(attrs.to_json(), value);
        assert_eq!(attrs.public_ips, PerFamily { v4: Some(address.parse().unwrap()), v6: None });
        let subnet: flannel_core::addr::Subnet = node["spec"]["podCIDR"].as_str().unwrap().parse().unwrap();
        assert_eq!((subnet.family(), subnet.prefix()), (Family::V4, 24));
    }
}
