//! Input of all kinds: valid configs come of what is accepted, and nothing makes a parser panic.

mod properties;
mod replay;

use flannel_cni::delegate::config;
use flannel_cni::netconf::NetConf;
use flannel_cni::subnet_env::SubnetEnv;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Value, json};

use self::properties::assert_valid;

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
        let mut lines = vec![format!("FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ={ip_masq}\n")];
        if let Some((bits, len)) = v4 {
            let address = std::net::Ipv4Addr::from(bits);
            lines.push(format!("FLANNEL_NETWORK={address}/{}\nFLANNEL_SUBNET={address}/{len}\n", len / 2));
        }
        if with_v6 || v4.is_none() {
            let address = std::net::Ipv6Addr::from(v6.0);
            lines.push(format!("FLANNEL_IPV6_NETWORK={address}/{}\nFLANNEL_IPV6_SUBNET={address}/{}\n", v6.1 / 2, v6.1));
        }
        lines.concat()
    }
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
