use proptest::prelude::*;

use super::*;

#[test]
fn writes_upstreams_bytes() {
    for text in [
        r#"{"PublicIP":"192.0.2.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:5b:10:33:7e:01"}}"#,
        r#"{"PublicIP":"192.0.2.11","PublicIPv6":"2001:db8::11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:5b:10:33:7e:01"},"BackendV6Data":{"VNI":1,"VtepMAC":"5e:5b:10:33:7e:01"}}"#,
        r#"{"PublicIP":"192.0.2.11","PublicIPv6":null,"BackendType":"host-gw"}"#,
        r#"{"PublicIP":"192.0.2.11","PublicIPv6":null}"#,
        r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::11","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"5e:5b:10:33:7e:01"}}"#,
        r#"{"PublicIP":"192.0.2.11","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"b64=","Port":51820}}"#,
        r#"{"PublicIP":"192.0.2.11","PublicIPv6":null,"BackendType":"extension","BackendData":"text"}"#,
        // A member of ours, which Go ignores.
        r#"{"PublicIP":"192.0.2.11","PublicIPv6":null,"BackendType":"host-gw","Receives":[{"Type":"udp"},{"Type":"wireguard","Data":{"PublicKey":"b64=","Port":51820},"V6Data":"x"}]}"#,
    ] {
        assert_eq!(LeaseAttrs::from_json(text).unwrap().to_json(), text);
    }
}

#[test]
fn reads_what_go_reads() {
    let attrs = LeaseAttrs::from_json(
        r#" {"backenddata": null, "Unknown": [1], "publicip": "1.2.3.4", "PUBLICIPV6": null} "#,
    )
    .unwrap();
    assert_eq!(attrs.to_json(), r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#);
    assert_eq!(LeaseAttrs::from_json("{}").unwrap(), LeaseAttrs::default());
}

#[test]
fn names_the_bad_member() {
    for (text, name) in [
        (r#"{"PublicIP":"fd00::1"}"#, "PublicIP"),
        (r#"{"PublicIP":7}"#, "PublicIP"),
        (r#"{"PublicIPv6":"1.2.3.4"}"#, "PublicIPv6"),
        (r#"{"BackendType":{}}"#, "BackendType"),
    ] {
        let error = LeaseAttrs::from_json(text).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{name} ")), "{text}: {error}");
    }
    for text in ["", "null", "[]", "{", "\"x\"", "{\"PublicIP\":\"1.2.3.4\"} x"] {
        assert!(matches!(LeaseAttrs::from_json(text), Err(AttrsError::Json(_))), "{text}");
    }
}

fn kinds(attrs: &LeaseAttrs) -> Vec<&str> {
    attrs.receives.iter().map(|reception| reception.kind.as_str()).collect()
}

#[test]
fn further_ways_to_receive_are_read_as_far_as_they_are_readable() {
    for (list, want) in [
        (r#"[{"Type":"udp","V6Data":null},{"TYPE":"wireguard","data":{}}]"#, "udp wireguard"),
        (r#"[7,null,{},{"Type":""},{"Type":7},{"Data":1},{"Type":"udp"},[]]"#, "udp"),
        (r#"[{"Type":"udp","Data":1},{"Type":"ipip"},{"Type":"udp","Data":2}]"#, "udp ipip"),
        (
            r#"[7,{"Type":"a"},{"Type":"b"},{"Type":"c"},{"Type":"d"},{"Type":"e"},{"Type":"f"},{"Type":"g"},{"Type":"h"},{"Type":"i"}]"#,
            "a b c d e f g h",
        ),
        ("[]", ""),
        ("null", ""),
        (r#"{"Type":"udp"}"#, ""),
        (r#""udp""#, ""),
    ] {
        let text = format!(r#"{{"receives":{list},"PublicIP":"192.0.2.1","BackendType":"host-gw"}}"#);
        let attrs = LeaseAttrs::from_json(&text).unwrap();
        assert_eq!(kinds(&attrs).join(" "), want, "{list}");
        assert_eq!(attrs.backend_type, "host-gw", "{list}");
    }
    let twice = Reception::parse_list(r#"[{"Type":"udp","Data":1},{"Type":"udp","Data":2}]"#).unwrap();
    assert_eq!(Reception::write_list(&twice), r#"[{"Type":"udp","Data":1}]"#, "the first of a kind counts");
}

#[test]
fn a_lease_is_read_as_that_of_each_backend_by_which_its_node_receives() {
    let attrs = LeaseAttrs::from_json(
        r#"{"PublicIP":"192.0.2.1","BackendData":1,"Receives":[{"Type":"vxlan","Data":2},{"Type":"udp","Data":3}]}"#,
    )
    .unwrap();
    let read = |kind, published| attrs.as_kind(kind, published).map(|attrs| attrs.to_json());
    let json = |rest| Some(format!(r#"{{"PublicIP":"192.0.2.1","PublicIPv6":null,{rest}}}"#));
    assert_eq!(read("vxlan", "vxlan"), json(r#""BackendType":"vxlan","BackendData":2"#));
    assert_eq!(read("udp", ""), json(r#""BackendData":1"#), "a lease without a type is udp's own");
    assert_eq!(read("host-gw", "host-gw"), None);
    let other = LeaseAttrs { backend_type: "ipip".into(), ..attrs.clone() };
    assert_eq!(other.as_kind("udp", "").map(|attrs| attrs.to_json()), json(r#""BackendData":3"#));
}

/// Attributes over a small domain.
fn attrs() -> impl Strategy<Value = LeaseAttrs> {
    let data = || {
        let text = prop::sample::select(vec!["{}", r#"{"Port": 1, "x":[1e400]}"#, "7", r#""a\u00e9""#]);
        let data = prop::option::of(text.prop_map(|text| BackendData::parse(text).unwrap().unwrap()));
        (data.clone(), data).prop_map(|(v4, v6)| PerFamily { v4, v6 })
    };
    let kinds = vec!["udp", "vxlan", "wireguard", "host-gw", "ipip", "\"", "é", "a", "b"];
    let kinds = prop::sample::subsequence(kinds, 0..=Reception::MOST).prop_shuffle();
    let receives = kinds.prop_flat_map(move |kinds| {
        let one = |kind: &str| {
            let kind = kind.to_owned();
            data().prop_map(move |backend_data| Reception { kind: kind.clone(), backend_data })
        };
        kinds.into_iter().map(one).collect::<Vec<_>>()
    });
    let kind = prop::sample::select(vec!["", "vxlan", "udp"]);
    (any::<[bool; 2]>(), kind, data(), receives).prop_map(|([v4, v6], kind, backend_data, receives)| {
        LeaseAttrs {
            public_ips: PerFamily {
                v4: v4.then_some([192, 0, 2, 1].into()),
                v6: v6.then_some([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()),
            },
            backend_type: kind.to_owned(),
            backend_data,
            receives,
        }
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_the_same(attrs in attrs()) {
        let json = attrs.to_json();
        prop_assert_eq!(&LeaseAttrs::from_json(&json).unwrap(), &attrs);
        // Without further ways, the bytes are those without the member.
        let plain = LeaseAttrs { receives: Vec::new(), ..attrs.clone() }.to_json();
        prop_assert!(!plain.contains("Receives") && json.starts_with(&plain[..plain.len() - 1]));
        for kind in ["udp", "vxlan", "wireguard"] {
            let read = attrs.as_kind(kind, kind);
            let listed = attrs.receives.iter().any(|reception| reception.kind == kind);
            prop_assert_eq!(read.is_some(), listed || attrs.backend_type == kind);
            prop_assert!(read.is_none_or(|read| read.receives.is_empty() && read.backend_type == kind));
        }
    }

    #[test]
    fn never_panics(text in "\\PC*|[\\{\\}\":,a-zA-Z0-9]*") {
        let _ = LeaseAttrs::from_json(&text);
    }
}
