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
