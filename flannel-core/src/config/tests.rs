use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<NetworkConfig, ConfigError> {
    NetworkConfig::parse(text, LeaseSource::Store)
}

fn range(config: &NetworkConfig, family: Family) -> (u8, String, String) {
    let range = config.networks.get(family).unwrap().range.unwrap();
    (range.prefix(), range.min.base().to_string(), range.max.base().to_string())
}

#[test]
fn fills_in_upstreams_defaults() {
    let config = parse(r#"{"network": "10.3.4.5/16"}"#).unwrap();
    assert_eq!(range(&config, Family::V4), (24, "10.3.1.0".into(), "10.3.255.0".into()));
    assert_eq!(config.backend.kind, "udp");
    assert!(config.nftables.is_none() && config.networks.v6.is_none());

    let config = parse(r#"{"enableipv6":true,"ipv6network":"fc00::/48","network":"10.3.0.0/16"}"#).unwrap();
    assert_eq!(range(&config, Family::V6), (64, "fc00:0:0:1::".into(), "fc00:0:0:ffff::".into()));

    let config = parse(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/62"}"#).unwrap();
    assert_eq!(config.families().collect::<Vec<_>>(), [Family::V6]);
    assert_eq!(range(&config, Family::V6).0, 64);
    for (network, len) in [("10.0.0.0/22", 24), ("10.0.0.0/23", 25), ("10.0.0.0/28", 30), ("10.0.0.0/8", 24)]
    {
        let config = parse(&format!(r#"{{"Network":"{network}"}}"#)).unwrap();
        assert_eq!(range(&config, Family::V4).0, len, "{network}");
    }
}

#[test]
fn keeps_what_is_given() {
    let config = parse(
        r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0","SubnetLen":28,
            "EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetMin":"fc00:0:0:1::","IPv6SubnetMax":"fc00:0:0:f::",
            "IPv6SubnetLen":124,"EnableNFTables":true,"Backend":{"TYPE":"VXLAN","vni":7},"Unknown":1}"#,
    )
    .unwrap();
    assert_eq!(range(&config, Family::V4), (28, "10.3.5.0".into(), "10.3.8.0".into()));
    assert_eq!(range(&config, Family::V6), (124, "fc00:0:0:1::".into(), "fc00:0:0:f::".into()));
    assert_eq!(config.backend.kind, "vxlan");
    assert_eq!(config.backend.get::<u32>("VNI"), Ok(Some(7)));
    assert_eq!(config.backend.names(), ["type", "vni"]);
    assert_eq!(config.nftables, Some(true));
}

#[test]
fn null_and_zero_leave_defaults_where_go_does() {
    let config = parse(
        r#"{"Network":"10.3.0.0/16","EnableIPv4":null,"EnableIPv6":null,"SubnetLen":null,"SubnetMin":"0.0.0.0"}"#,
    )
    .unwrap();
    assert_eq!(range(&config, Family::V4), (24, "10.3.1.0".into(), "10.3.255.0".into()));
}

#[test]
fn errors_name_key_and_value() {
    for (text, key, value) in [
        ("", "JSON", None),
        ("[]", "JSON", None),
        ("{}", "Network", None),
        (r#"{"Network":"10.3.0.0"}"#, "Network", Some("10.3.0.0")),
        (r#"{"Network":"fc00::/48"}"#, "Network", Some("fc00::/48")),
        (r#"{"Network":"0.0.0.0/0"}"#, "Network", Some("0.0.0.0/0")),
        (r#"{"Network":"0.0.0.0/1"}"#, "Network", Some("0.0.0.0/1")),
        (r#"{"Network":null}"#, "Network", Some("null")),
        (r#"{"Network":7}"#, "Network", Some("7")),
        (r#"{"Network":"10.3.0.0/29"}"#, "Network", Some("10.3.0.0/29")),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":31}"#, "SubnetLen", Some("31")),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":17}"#, "SubnetLen", Some("17")),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":-1}"#, "SubnetLen", Some("-1")),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":"24"}"#, "SubnetLen", Some("\"24\"")),
        (r#"{"Network":"10.3.0.0/16","SubnetMin":"10.4.0.0"}"#, "SubnetMin", Some("10.4.0.0")),
        (r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.1.7"}"#, "SubnetMin", Some("10.3.1.7")),
        (r#"{"Network":"10.3.0.0/16","SubnetMin":null}"#, "SubnetMin", Some("null")),
        (r#"{"Network":"10.3.0.0/16","SubnetMax":"fc00::"}"#, "SubnetMax", Some("fc00::")),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.8.0"}"#,
            "SubnetMin",
            Some("10.3.9.0"),
        ),
        (r#"{"Network":"10.3.0.0/16","EnableIPv4":false}"#, "EnableIPv4", Some("false")),
        (r#"{"Network":"10.3.0.0/16","EnableIPv6":1}"#, "EnableIPv6", Some("1")),
        (r#"{"Network":"10.3.0.0/16","EnableIPv6":true}"#, "IPv6Network", None),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"10.0.0.0/8"}"#,
            "IPv6Network",
            Some("10.0.0.0/8"),
        ),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/125"}"#,
            "IPv6Network",
            Some("fc00::/125"),
        ),
        (r#"{"Network":"10.3.0.0/16","Backend":"vxlan"}"#, "Backend", Some("\"vxlan\"")),
        (r#"{"Network":"10.3.0.0/16","Backend":{}}"#, "Backend.Type", None),
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":7}}"#, "Backend.Type", Some("7")),
    ] {
        let error = parse(text).expect_err(text);
        assert_eq!((error.key.as_str(), error.value.as_deref()), (key, value), "{text}: {error}");
    }
}

/// Networks in which no pod can be reached, or beside which nothing else can be.
#[test]
fn impossible_networks_are_refused_with_the_reason() {
    let refused = [
        ("127.0.0.0/8", "127.0.0.0/8, which is for loopback"),
        ("127.5.0.0/16", "127.0.0.0/8, which is for loopback"),
        ("126.0.0.0/7", "127.0.0.0/8, which is for loopback"),
        ("169.254.0.0/16", "169.254.0.0/16, which is for link-local"),
        ("169.254.7.0/24", "169.254.0.0/16, which is for link-local"),
        ("168.0.0.0/6", "169.254.0.0/16, which is for link-local"),
        ("224.0.0.0/8", "224.0.0.0/4, which is for multicast"),
        ("239.1.0.0/16", "224.0.0.0/4, which is for multicast"),
        ("0.0.0.0/8", "0.0.0.0/8, which is for the unspecified"),
        ("0.7.0.0/16", "0.0.0.0/8, which is for the unspecified"),
        ("0.0.0.0/0", "the whole address space"),
        ("0.0.0.0/1", "1/2 of the address space"),
        ("128.0.0.0/1", "1/2 of the address space"),
        ("64.0.0.0/2", "1/4 of the address space"),
        ("32.0.0.0/3", "1/8 of the address space"),
        ("::/0", "the whole address space"),
        ("::/1", "1/2 of the address space"),
        ("8000::/1", "1/2 of the address space"),
        ("2000::/3", "1/8 of the address space"),
        ("::/64", "which is for loopback"),
        ("::ffff:10.0.0.0/104", "::ffff:0:0/96, which is for IPv4-mapped"),
        ("fe80::/64", "fe80::/10, which is for link-local"),
        ("fe00::/8", "fe80::/10, which is for link-local"),
        ("ff05::/32", "ff00::/8, which is for multicast"),
    ];
    let taken = [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "198.18.0.0/15",
        "240.0.0.0/8",
        "16.0.0.0/4",
        "126.0.0.0/8",
        "128.0.0.0/8",
        "169.253.0.0/16",
        "169.255.0.0/16",
        "223.0.0.0/8",
        "1.0.0.0/8",
        "fd00::/8",
        "fc00::/7",
        "2001:db8::/32",
        "fec0::/16",
        "64:ff9b::/64",
        "1000::/4",
    ];
    let text = |network: &str| {
        let v6 = format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"{network}"}}"#);
        if network.contains(':') { v6 } else { format!(r#"{{"Network":"{network}"}}"#) }
    };
    for source in [LeaseSource::Store, LeaseSource::Assigned] {
        for (network, why) in refused {
            let error = NetworkConfig::parse(&text(network), source).expect_err(network);
            let key = if network.contains(':') { "IPv6Network" } else { "Network" };
            assert_eq!((error.key.as_str(), error.value.as_deref()), (key, Some(network)));
            assert!(error.problem.contains(why) && error.problem.contains("choose one such as"), "{error}");
        }
        for network in taken {
            assert!(NetworkConfig::parse(&text(network), source).is_ok(), "{network}");
        }
    }
}

#[test]
fn assigned_subnets_need_no_range() {
    let text = r#"{"Network":"10.3.0.0/29","SubnetLen":99}"#;
    let config = NetworkConfig::parse(text, LeaseSource::Assigned).unwrap();
    assert_eq!(config.networks.v4.unwrap().range, None);
    assert!(parse(text).is_err());
}

#[test]
fn a_disabled_family_is_not_checked() {
    let config = parse(r#"{"Network":"10.3.0.0/16","IPv6Network":"nonsense"}"#).unwrap();
    assert_eq!(config.families().count(), 1);
}

#[test]
fn secrets_stay_out_of_debug_output() {
    let text = r#"{"Network":"10.3.0.0/16","Backend":{"Type":"wireguard","PSK":"hush"}}"#;
    let config = parse(text).unwrap();
    assert!(!format!("{config:?}").contains("hush"));
    let error = config.backend.get::<u32>("PSK").unwrap_err();
    assert!(error.value.is_none() && !format!("{error:?} {error}").contains("hush"), "{error:?}");
    for text in [
        r#"{"Network":"10.3.0.0/16","Backend":"{\"Type\":\"wireguard\",\"PSK\":\"hush\"}"}"#,
        r#"{"Network":"10.3.0.0/16","Backend":[{"PSK":"hush"}]}"#,
        r#""hush""#,
        r#"{"PSK":"hush"#,
    ] {
        let error = parse(text).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("hush"), "{error:?}");
    }
}

proptest! {
    #[test]
    fn never_panics(text in "\\PC*|[\\{\\}\":,a-zA-Z0-9/.]*") {
        let _ = parse(&text);
    }

    #[test]
    fn every_subnet_of_a_range_lies_in_the_network(
        base: std::net::Ipv4Addr, prefix in 1..=28_u8, len in 0..=32_u8, index: u32,
    ) {
        let text = format!(r#"{{"Network":"{base}/{prefix}","SubnetLen":{len}}}"#);
        let Ok(config) = parse(&text) else { return Ok(()) };
        let network = config.networks.v4.unwrap();
        let range = network.range.unwrap();
        let subnet = range.nth(u128::from(index) % range.count()).unwrap();
        prop_assert!(network.network.covers(subnet) && range.contains(subnet));
        prop_assert_eq!(range.nth(range.count()), None);
    }
}

#[test]
fn a_range_has_one_family_and_length_an_order_and_room_for_pods() {
    for (min, max, count) in [
        ("10.5.1.0/24", "10.5.255.0/24", Some(255)),
        ("10.5.1.0/24", "10.5.1.0/24", Some(1)),
        ("10.5.0.0/30", "10.5.0.4/30", Some(2)),
        ("fd00:5::/126", "fd00:5::4/126", Some(2)),
        ("10.5.2.0/24", "10.5.1.0/24", None),
        ("10.5.1.0/24", "10.5.2.0/25", None),
        ("10.5.1.0/24", "fd00:5::/64", None),
        ("10.5.0.1/32", "10.5.0.9/32", None),
        ("10.5.0.0/31", "10.5.0.8/31", None),
        ("fd00:5::1/128", "fd00:5::9/128", None),
        ("0.0.0.0/0", "0.0.0.0/0", None),
    ] {
        let range = SubnetRange::new(min.parse().unwrap(), max.parse().unwrap());
        assert_eq!(range.map(|range| range.count()), count, "{min} to {max}");
        assert_eq!(range.map(|range| range.max().to_string()), count.map(|_| max.to_owned()));
    }
}

#[test]
fn what_it_writes_it_reads_as_the_same() {
    for text in [
        r#"{"Network":"10.5.0.0/16"}"#,
        r#"{"Network":"10.5.0.0/16","SubnetLen":28,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.9.0","Backend":{"Type":"VXLAN","VNI":7,"port":1}}"#,
        r#"{"Network":"10.5.0.0/28","EnableNFTables":true,"SubnetLen":30,"Backend":{"Type":"udp"}}"#,
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"host-gw"}}"#,
        r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/56","Backend":{"Type":"x","A":[{"b":1.5e300}]}}"#,
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"x","Accept":["y",{"Type":"Z","PSK":"hush"}],"SwitchAfter":9}}"#,
    ] {
        for source in [LeaseSource::Store, LeaseSource::Assigned] {
            let config = NetworkConfig::parse(text, source).unwrap();
            let again = NetworkConfig::parse(&config.to_json(), source).unwrap();
            assert_eq!(again, config, "{text}");
            assert_eq!(again.to_json(), config.to_json());
        }
    }
}

/// The keys that differ between two configs of the same source, both ways: names can be spelled differently.
fn changed(a: &str, b: &str) -> String {
    let [a, b] = [a, b].map(|text| parse(text).unwrap());
    let there = a.changed_keys(&b);
    let lower = |keys: &[String]| keys.iter().map(|key| key.to_lowercase()).collect::<Vec<_>>();
    assert_eq!(lower(&there), lower(&b.changed_keys(&a)));
    assert_eq!(there.is_empty(), a == b);
    there.join(" ")
}

#[test]
fn names_the_keys_that_mean_something_else() {
    let plain = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    let both = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
    for (a, b, want) in [
        (plain, plain, ""),
        (
            plain,
            r#"{ "network" : "10.5.0.7/16", "BACKEND":{"TYPE":"VXLAN"}, "Colour":1, "EnableIPv4":null}"#,
            "",
        ),
        (
            plain,
            r#"{"Network":"10.5.0.0/16","SubnetLen":24,"SubnetMin":"10.5.1.0","Backend":{"Type":"vxlan"}}"#,
            "",
        ),
        (plain, r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan"}}"#, "Network"),
        (plain, r#"{"Network":"10.5.0.0/23","Backend":{"Type":"vxlan"}}"#, "Network"),
        (plain, r#"{"Network":"10.5.0.0/16","SubnetLen":26,"Backend":{"Type":"vxlan"}}"#, "SubnetLen"),
        (
            plain,
            r#"{"Network":"10.6.0.0/16","SubnetMin":"10.6.9.0","SubnetMax":"10.6.99.0","Backend":{"Type":"vxlan"}}"#,
            "Network SubnetMin SubnetMax",
        ),
        (
            plain,
            r#"{"Network":"10.5.0.0/16","EnableNFTables":false,"Backend":{"Type":"vxlan"}}"#,
            "EnableNFTables",
        ),
        (plain, r#"{"Network":"10.5.0.0/16"}"#, "Backend.Type"),
        (plain, r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw","VNI":7}}"#, "Backend.Type"),
        (
            plain,
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","vni":7,"DirectRouting":true,"Port":null}}"#,
            "Backend.DirectRouting Backend.vni",
        ),
        (
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"x","PSK":"hush","list":[1, {"a":2}],"huge":1e999}}"#,
            r#"{"Network":"10.5.0.0/16","Backend":{"type":"x","List":[1,{"a":2}],"psk":"quiet","Huge":1e999}}"#,
            "Backend.psk",
        ),
        (both, r#"{"Network":"10.5.0.0/16"}"#, "EnableIPv6"),
        (both, r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#, "EnableIPv4"),
        (
            both,
            r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:6::/48","IPv6SubnetLen":72}"#,
            "IPv6Network IPv6SubnetLen",
        ),
    ] {
        assert_eq!(changed(a, b), want, "{b}");
    }
}

#[test]
fn a_range_that_is_not_read_is_no_change() {
    let parse = |text| NetworkConfig::parse(text, LeaseSource::Assigned).unwrap();
    let (a, b) = (r#"{"Network":"10.5.0.0/16"}"#, r#"{"Network":"10.5.0.0/16","SubnetLen":28}"#);
    assert_eq!(parse(a).changed_keys(&parse(b)), Vec::<String>::new());
}

#[test]
fn keys_without_effect_are_named_in_any_case() {
    let text = r#"{"Network":"10.3.0.0/16","Backend":{"TYPE":"host-gw","VNI":1,"Colour":"red"}}"#;
    let backend = NetworkConfig::parse(text, LeaseSource::Store).unwrap().backend;
    let mut all = backend.names_besides(&[]);
    all.sort();
    assert_eq!(all, ["colour", "vni"]);
    assert_eq!(backend.names_besides(&["VNI", "Port"]), ["colour"]);
}
