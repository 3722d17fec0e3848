use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

const V4: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n";
const V6: &str = "FLANNEL_IPV6_NETWORK=fd00:1::/48\nFLANNEL_IPV6_SUBNET=fd00:1:0:17::1/64\n";

fn built(conf: &Value, families: &[&str], rest: &str) -> String {
    let conf = NetConf::parse(conf.to_string().as_bytes()).unwrap();
    let env = SubnetEnv::parse(&format!("{}{rest}", families.concat())).unwrap();
    Value::Object(config(&conf, &env)).to_string()
}

const MASQ: &str = "FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

#[test]
fn the_least_config_gives_upstreams_example() {
    let text = built(&json!({"name": "cni-flannel", "type": "flannel"}), &[V4], MASQ);
    let example = r#"{"name":"cni-flannel","type":"bridge","ipMasq":false,"isGateway":true,"mtu":1472,
        "ipam":{"type":"host-local","ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}]}}"#;
    assert_eq!(text.parse::<Value>().unwrap(), example.parse::<Value>().unwrap());
    // The bytes of Go's encoder, which sorts keys: a record of either plugin looks the same.
    assert_eq!(
        text,
        r#"{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"cni-flannel","type":"bridge"}"#
    );
}

#[test]
fn each_family_has_a_range_and_a_route() {
    let conf = json!({"name": "n", "cniVersion": "1.0.0"});
    for (families, ranges, routes) in [
        (&[V6][..], json!([[{"subnet": "fd00:1:0:17::/64"}]]), json!([{"dst": "fd00:1::/48"}])),
        (
            &[V4, V6],
            json!([[{"subnet": "10.1.17.0/24"}], [{"subnet": "fd00:1:0:17::/64"}]]),
            json!([{"dst": "10.1.0.0/16"}, {"dst": "fd00:1::/48"}]),
        ),
    ] {
        let config: Value = built(&conf, families, MASQ).parse().unwrap();
        assert_eq!((&config["ipam"]["ranges"], &config["ipam"]["routes"]), (&ranges, &routes));
        assert_eq!(config["cniVersion"], "1.0.0");
    }
}

#[test]
fn several_networks_are_several_routes() {
    let several = V4.replace("10.1.0.0/16", "10.1.0.0/16,10.2.0.0/16");
    let config: Value = built(&json!({"name": "n"}), &[&several, V6], MASQ).parse().unwrap();
    assert_eq!(
        config["ipam"]["routes"],
        json!([{"dst": "10.1.0.0/16"}, {"dst": "10.2.0.0/16"}, {"dst": "fd00:1::/48"}])
    );
}

#[test]
fn the_user_wins_and_the_rest_is_merged() {
    let conf = json!({
        "name": "n", "cniVersion": "0.3.1", "runtimeConfig": {"mac": "02:00:00:00:00:01"}, "dns": {"domain": "x"},
        "delegate": {
            "hairpinMode": true, "ipMasq": true, "mtu": 1300, "isGateway": false, "cniVersion": "0.1.0",
            "runtimeConfig": {"old": 1}
        },
        "ipam": {
            "dataDir": "/d", "ranges": [[{"subnet": "192.0.2.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.17.9"}]
        },
        "prevResult": {"ips": []}, "args": {}
    });
    let config: Value = built(&conf, &[V4], MASQ).parse().unwrap();
    let expected = json!({
        "name": "n", "type": "bridge", "cniVersion": "0.3.1", "runtimeConfig": {"mac": "02:00:00:00:00:01"},
        "hairpinMode": true, "ipMasq": true, "mtu": 1300, "isGateway": false,
        "ipam": {
            "type": "host-local", "dataDir": "/d", "ranges": [[{"subnet": "10.1.17.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.17.9"}, {"dst": "10.1.0.0/16"}]
        }
    });
    assert_eq!(config, expected);
}

#[test]
fn another_delegate_is_no_gateway() {
    let conf =
        json!({"name": "n", "delegate": {"type": "macvlan", "master": "eth0"}, "ipam": {"type": "other"}});
    let rest = "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
    let config: Value = built(&conf, &[V4], rest).parse().unwrap();
    assert_eq!(config["isGateway"], Value::Null);
    assert_eq!(
        (&config["ipMasq"], &config["mtu"], &config["master"]),
        (&json!(true), &json!(1450), &json!("eth0"))
    );
    assert_eq!(config["ipam"]["type"], "other");
}

/// Values of keys as people and machines write them, right and wrong.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z./0-9]{0,8}".prop_map(Value::from),
        Just(json!("10.0.0.0/8")),
        Just(json!("bridge")),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let key = prop_oneof![Just("dst".to_owned()), Just("type".to_owned()), "[a-z]{0,3}"];
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::from),
            btree_map(key, inner, 0..3).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn object(keys: &'static [&'static str]) -> impl Strategy<Value = Value> {
    btree_map(proptest::sample::select(keys).prop_map(str::to_owned), value(), 0..4)
        .prop_map(|map| Value::Object(map.into_iter().collect()))
}

prop_compose! {
    fn netconf()(
        mut conf in object(&["cniVersion", "dns", "prevResult", "runtimeConfig", "extra"]),
        delegate in prop_oneof![object(&["type", "mtu", "ipMasq", "isGateway", "hairpinMode"]), value()],
        ipam in prop_oneof![object(&["type", "routes", "ranges", "dataDir", "subnet"]), value()],
        version in prop_oneof![Just(None), Just(Some("0.3.1")), Just(Some("1.1.0"))],
    ) -> Value {
        conf["name"] = json!("net");
        conf["delegate"] = delegate;
        conf["ipam"] = ipam;
        if let Some(version) = version {
            conf["cniVersion"] = json!(version);
        }
        conf
    }
}

prop_compose! {
    fn env()(
        v4 in proptest::option::of((any::<u32>(), 0_u8..=32)),
        v6 in (any::<u128>(), 0_u8..=128),
        with_v6 in any::<bool>(), mtu in any::<u32>(), ip_masq in any::<bool>(),
    ) -> String {
        let mut text = format!("FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ={ip_masq}\n");
        if let Some((bits, len)) = v4 {
            let address = std::net::Ipv4Addr::from(bits);
            text += &format!("FLANNEL_NETWORK={address}/{}\nFLANNEL_SUBNET={address}/{len}\n", len / 2);
        }
        if with_v6 || v4.is_none() {
            let address = std::net::Ipv6Addr::from(v6.0);
            text += &format!("FLANNEL_IPV6_NETWORK={address}/{}\nFLANNEL_IPV6_SUBNET={address}/{}\n", v6.1 / 2, v6.1);
        }
        text
    }
}

/// What the CNI specification and the standard plugins ask of a config.
fn assert_valid(conf: &NetConf, env: &SubnetEnv, config: &Object) {
    assert_eq!(config["name"], json!(conf.name));
    let name = config["type"].as_str().unwrap();
    assert!(!name.is_empty() && !name.contains('/') && name != "flannel");
    assert_eq!(config.get("cniVersion").and_then(Value::as_str), conf.cni_version.as_deref());
    if name == "bridge" {
        assert!(config["ipMasq"].is_boolean() && config["isGateway"].is_boolean());
        assert!(u32::try_from(config["mtu"].as_u64().unwrap()).is_ok());
    }
    assert!(config.contains_key("ipMasq") && config.contains_key("mtu"));
    assert!(
        config
            .get("runtimeConfig")
            .is_none_or(|runtime| conf.runtime_config.is_none() || runtime.is_object())
    );
    let ipam = config["ipam"].as_object().unwrap();
    assert!(ipam["type"].is_string());
    assert_eq!(subnets(config), env.subnets);
    for (range, subnet) in ipam["ranges"].as_array().unwrap().iter().zip(&env.subnets) {
        assert_eq!(range.as_array().unwrap().len(), 1);
        assert_eq!(range[0]["subnet"], json!(subnet.to_string()));
        assert!(env.networks.iter().any(|network| network.overlaps(subnet)));
    }
    let routes = ipam["routes"].as_array().unwrap();
    assert!(routes.iter().all(|route| route["dst"].as_str().unwrap().parse::<Cidr>().is_ok()));
    assert!(env.networks.iter().all(|network| routes.contains(&json!({"dst": network.to_string()}))));
    // What is read back from a record is what was written.
    let bytes = serde_json::to_vec(config).unwrap();
    assert_eq!(&serde_json::from_slice::<Object>(&bytes).unwrap(), config);
}

proptest! {
    #[test]
    fn whatever_is_accepted_gives_a_valid_config(conf in netconf(), env in env()) {
        let env = SubnetEnv::parse(&env).unwrap();
        if let Ok(conf) = NetConf::parse(conf.to_string().as_bytes()) {
            assert_valid(&conf, &env, &config(&conf, &env));
        }
    }

    #[test]
    fn nothing_makes_a_parser_panic(bytes in vec(any::<u8>(), 0..200), text in ".{0,200}") {
        let _ = (NetConf::parse(&bytes), NetConf::parse(text.as_bytes()), SubnetEnv::parse(&text));
    }
}

#[test]
fn the_property_is_not_empty() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut accepted = 0;
    for _ in 0..500 {
        let conf = netconf().new_tree(&mut runner).unwrap().current();
        accepted += usize::from(NetConf::parse(conf.to_string().as_bytes()).is_ok());
    }
    assert!((50..450).contains(&accepted), "{accepted} of 500 configs are accepted");
}
