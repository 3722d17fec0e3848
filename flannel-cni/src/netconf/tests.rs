use serde_json::json;

use super::*;

fn parse(text: &str) -> Result<NetConf, CniError> {
    NetConf::parse(text.as_bytes())
}

#[test]
fn the_least_config_has_defaults() {
    let conf = parse(r#"{"name":"cbr0","type":"flannel"}"#).unwrap();
    assert_eq!((conf.subnet_file.to_str(), conf.data_dir.to_str()), (Some(SUBNET_FILE), Some(DATA_DIR)));
    assert_eq!((conf.version(), conf.delegate_type(), conf.ipam_type()), ("0.1.0", "bridge", "host-local"));
    assert_eq!((&conf.cni_version, &conf.runtime_config, &conf.prev_result), (&None, &None, &None));
    assert_eq!(conf.valid_attachments, None);
}

#[test]
fn all_keys_are_read_in_any_case() {
    let conf = parse(
        r#"{"CniVersion":"1.0.0","NAME":"n","subnetfile":"/s","DataDir":"/d","delegate":{"type":"macvlan"},
            "IPAM":{"type":"static"},"runtimeConfig":{"mac":"x"},"prevResult":{"ips":[]},"dns":{}}"#,
    );
    let conf = conf.unwrap();
    assert_eq!((conf.version(), conf.name.as_str(), conf.delegate_type()), ("1.0.0", "n", "macvlan"));
    assert_eq!((conf.subnet_file.to_str(), conf.data_dir.to_str()), (Some("/s"), Some("/d")));
    assert_eq!(
        (conf.ipam_type(), &conf.runtime_config),
        ("static", &json!({"mac": "x"}).as_object().cloned())
    );
    assert_eq!(conf.prev_result, Some(json!({"ips": []})));
    // The exact name counts more than another case of it.
    assert_eq!(parse(r#"{"NAME":"other","name":"exact"}"#).unwrap().name, "exact");
}

#[test]
fn null_and_empty_are_absent() {
    let conf =
        r#"{"cniVersion":"","name":"n","delegate":null,"ipam":null,"dataDir":"","runtimeConfig":null}"#;
    assert_eq!(parse(conf), parse(r#"{"name":"n"}"#));
}

#[test]
fn valid_attachments_are_read_by_either_name() {
    let conf = |keys: &str| parse(&format!(r#"{{"name":"n",{keys}}}"#)).map(|conf| conf.valid_attachments);
    let one = Some(BTreeSet::from([Attachment::new("c", "eth0").unwrap()]));
    let list = r#"[{"containerID":"c","ifname":"eth0"}]"#;
    assert_eq!(conf(&format!(r#""cni.dev/valid-attachments":{list}"#)).unwrap(), one);
    assert_eq!(conf(&format!(r#""cni.dev/attachments":{list}"#)).unwrap(), one);
    assert_eq!(conf(r#""cni.dev/valid-attachments":null"#).unwrap(), Some(BTreeSet::new()));
    for bad in ["1", "{}", "[1]", r#"[{"containerID":"c"}]"#, r#"[{"containerID":"../c","ifname":"eth0"}]"#] {
        assert!(conf(&format!(r#""cni.dev/valid-attachments":{bad}"#)).is_err(), "{bad}");
    }
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    for (conf, expected_code, word) in [
        ("", code::DECODING, "EOF"),
        ("[]", code::DECODING, "netconf"),
        (r#"{"name":1}"#, code::DECODING, "name is 1"),
        (r#"{"name":"n","delegate":[]}"#, code::DECODING, "delegate is []"),
        (r#"{"name":"n","subnetFile":{}}"#, code::DECODING, "subnetFile"),
        ("{}", code::INVALID_CONFIG, "missing network name"),
        (r#"{"name":"../n"}"#, code::INVALID_CONFIG, "invalid characters"),
        (r#"{"name":"n","cniVersion":"2.0.0"}"#, code::INCOMPATIBLE_VERSION, "2.0.0"),
        (r#"{"name":"n","delegate":{"name":"x"}}"#, code::INVALID_CONFIG, "must not have 'name' field"),
        (r#"{"name":"n","delegate":{"ipam":{}}}"#, code::INVALID_CONFIG, "must not have 'ipam' field"),
        (r#"{"name":"n","delegate":{"type":1}}"#, code::INVALID_CONFIG, "must have (string) 'type' field"),
        (r#"{"name":"n","delegate":{"type":"../sh"}}"#, code::INVALID_CONFIG, "is a path"),
        (r#"{"name":"n","delegate":{"type":"flannel"}}"#, code::INVALID_CONFIG, "call itself"),
        (r#"{"name":"n","delegate":{"ipMasq":"yes"}}"#, code::INVALID_CONFIG, "'ipMasq'"),
        (r#"{"name":"n","delegate":{"mtu":-1}}"#, code::INVALID_CONFIG, "'mtu'"),
        (r#"{"name":"n","delegate":{"type":"bridge","isGateway":0}}"#, code::INVALID_CONFIG, "'isGateway'"),
        (r#"{"name":"n","ipam":{"type":[]}}"#, code::INVALID_CONFIG, "type is []"),
        (r#"{"name":"n","ipam":{"routes":{}}}"#, code::INVALID_CONFIG, "routes is {}"),
        (r#"{"name":"n","ipam":{"routes":[{"dst":"x"}]}}"#, code::INVALID_CONFIG, "no valid dst"),
    ] {
        let error = parse(conf).unwrap_err();
        assert!(error.code == expected_code && error.msg.contains(word), "{conf}: {error}");
    }
    // Only what is known of a delegate is checked.
    assert!(parse(r#"{"name":"n","delegate":{"type":"other","ipMasq":"yes"}}"#).is_ok());
}

#[test]
fn an_error_object_is_in_the_configs_version_if_that_can_be_told() {
    for (conf, version) in [
        (r#"{"cniVersion":"0.3.1","name":7}"#, "0.3.1"),
        (r#"{"cniVersion":"7"}"#, "1.1.0"),
        ("{}", "1.1.0"),
        ("{", "1.1.0"),
    ] {
        assert_eq!(version_of(conf.as_bytes()), version, "{conf}");
    }
}
