use flannel_core::config::{LeaseSource, NetworkConfig};
use flannel_core::testing::hostile::{Scene, judge};
use proptest::prelude::*;

use super::*;

const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
const LINKS: PerFamily<LinkIndex> = PerFamily { v4: Some(LinkIndex(4)), v6: Some(LinkIndex(6)) };
const ONE: PerFamily<LinkIndex> = PerFamily { v4: Some(LinkIndex(4)), v6: Some(LinkIndex(4)) };
const ALONE: Second<'static> =
    Second { links: &PerFamily { v4: None, v6: None }, is_own: false, way: &|_, _| Way::First };
const DUAL: &str = "10.5.1.0-24&fd00:5::-64";

fn config(keys: &str) -> WireguardConfig {
    let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"wireguard"{keys}}}}}"#);
    WireguardConfig::parse(&NetworkConfig::parse(&text, LeaseSource::Store).unwrap().backend).unwrap()
}

fn lease(key: &str, value: &str) -> Lease {
    Lease { key: key.parse().unwrap(), attrs: LeaseAttrs::from_json(value).unwrap(), created: 1 }
}

/// The record of a node: its IPv4 address, its IPv6 address, and the ports that it publishes.
fn record(v4: Option<&str>, v6: Option<&str>, ports: [Option<u16>; 2]) -> String {
    let text = |ip: Option<&str>| ip.map_or("null".to_owned(), |ip| format!("{ip:?}"));
    let data = |name: &str, port: Option<u16>| {
        port.map(|port| format!(r#","{name}":{{"PublicKey":"{KEY}","Port":{port}}}"#)).unwrap_or_default()
    };
    let (four, six) = (data("BackendData", ports[0]), data("BackendV6Data", ports[1]));
    let (v4, v6) = (text(v4.or(Some("0.0.0.0"))), text(v6));
    format!(r#"{{"PublicIP":{v4},"PublicIPv6":{v6},"BackendType":"wireguard"{four}{six}}}"#)
}

fn ours() -> PerFamily<IpAddr> {
    PerFamily { v4: "192.0.2.1".parse().ok(), v6: "2001:db8::1".parse().ok() }
}

/// The endpoints at which a peer is reached, with their devices.
fn endpoints(peer: &Peer) -> Vec<(u32, String)> {
    let of = |claim: &Claim| match claim {
        Claim::Key(link, key, at, port) => {
            assert_eq!(PublicKey(*key).to_string(), KEY);
            Some((link.0, SocketAddr::new(*at, *port).to_string()))
        }
        _ => None,
    };
    peer.claims.iter().filter_map(of).collect()
}

#[test]
fn publishes_upstreams_bytes_and_the_port_that_receives() {
    let key = KEY.parse().unwrap();
    let published = ours();
    let json = |keys: &str, published| {
        attrs(&config(keys), (key, None), &Family::ALL, published, &PerFamily::default()).to_json()
    };
    assert_eq!(
        json("", published),
        record(Some("192.0.2.1"), Some("2001:db8::1"), [Some(51820), Some(51821)])
    );
    for mode in ["auto", "ipv4", "ipv6"] {
        let keys = format!(r#","Mode":"{mode}","ListenPort":4000"#);
        let want = record(Some("192.0.2.1"), Some("2001:db8::1"), [Some(4000), Some(4000)]);
        assert_eq!(json(&keys, published), want, "{mode}: Go flannel publishes 51821 for IPv6");
    }
    let v4 = PerFamily { v6: None, ..published };
    let only = attrs(&config(""), (key, None), &[Family::V4], v4, &PerFamily::default()).to_json();
    assert_eq!(
        only,
        format!(
            r#"{{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"wireguard","BackendData":{{"PublicKey":"{KEY}","Port":51820}}}}"#
        )
    );
}

#[test]
fn in_separate_mode_each_family_has_its_device_and_endpoint() {
    let config = config("");
    let paths = Paths { config: &config, links: &LINKS, ours: &ours(), second: ALONE };
    let value = record(Some("192.0.2.11"), Some("2001:db8::11"), [Some(51820), Some(4001)]);
    let dual = peer(&lease(DUAL, &value), &paths).unwrap();
    assert_eq!(endpoints(&dual), [(4, "192.0.2.11:51820".to_owned()), (6, "[2001:db8::11]:4001".to_owned())]);
    let routes = [("10.5.1.0/24", 4), ("fd00:5::/64", 6)]
        .map(|(dst, link)| Object::Route(Route::by_device(dst.parse().unwrap(), LinkIndex(link))));
    assert_eq!(dual.objects, routes);
    let v4 = PerFamily { v6: None, ..LINKS };
    let ours_alone = peer(&lease(DUAL, &value), &Paths { links: &v4, ..paths }).unwrap();
    assert_eq!((ours_alone.objects.len(), endpoints(&ours_alone).len()), (1, 1), "only our families");
    let old = format!(
        r#"{{"publicip":"192.0.2.11","BackendType":"wireguard","BackendData":{{"publickey":"{KEY}"}}}}"#
    );
    let old = peer(&lease("10.5.1.0-24", &old), &paths).unwrap();
    assert_eq!(endpoints(&old), [(4, "192.0.2.11:51820".to_owned())], "the port of our own config");
}

/// The table of modes and families: what a node of ours publishes, and what a Go node does.
#[test]
fn a_single_device_is_reached_at_its_one_port_whoever_published() {
    let (world, private) = ("192.0.2.11", "10.9.0.11");
    let (global, local) = ("2001:db8::11", "fd00:77::11");
    for (mode, v4, v6, want) in [
        ("ipv4", world, Some(global), "192.0.2.11:51820"),
        ("ipv6", world, Some(global), "[2001:db8::11]:51820"),
        ("auto", world, Some(global), "192.0.2.11:51820"),
        ("auto", private, Some(global), "[2001:db8::11]:51820"),
        ("auto", private, Some(local), "10.9.0.11:51820"),
        ("auto", private, None, "10.9.0.11:51820"),
    ] {
        let config = config(&format!(r#","Mode":"{mode}""#));
        let paths = Paths { config: &config, links: &ONE, ours: &ours(), second: ALONE };
        for writer in [51820, 51821] {
            let value = record(Some(v4), v6, [Some(51820), Some(writer)]);
            let peer = peer(&lease(DUAL, &value), &paths).unwrap();
            assert_eq!(endpoints(&peer), [(4, want.to_owned())], "{mode} {v4} {v6:?}");
            assert_eq!(peer.objects.len(), 2, "one device carries both families");
        }
    }
    // Nodes with IPv6 alone publish no BackendData.
    let config = config(r#","Mode":"ipv6""#);
    let only = PerFamily { v4: None, ..ours() };
    let paths = Paths { config: &config, links: &ONE, ours: &only, second: ALONE };
    for writer in [51820, 51821] {
        let value = record(None, Some(global), [None, Some(writer)]);
        let peer = peer(&lease("0.0.0.0-0&fd00:5::-64", &value), &paths).unwrap();
        assert_eq!(endpoints(&peer), [(4, "[2001:db8::11]:51820".to_owned())]);
    }
}

const NEXT: &str = "s1Q9qYHwPdrMLGYmvvQGDqzVwGaN2Q0r8QJ7pP0m0Fk=";

/// A record with a next key, as [`record`].
fn record_with_next(next: &str) -> String {
    let value = record(Some("192.0.2.11"), Some("2001:db8::11"), [Some(51820), Some(51821)]);
    value.replace(":51820}", &format!(":51820,{next}}}")).replace(":51821}", &format!(":51821,{next}}}"))
}

/// All claims of keys: device, the beginning of the key, and where it receives.
fn claimed(peer: &Peer) -> Vec<(u32, String, String)> {
    let of = |claim: &Claim| match claim {
        Claim::Key(link, key, at, port) => {
            let key = PublicKey(*key).to_string()[..4].to_owned();
            Some((link.0, key, SocketAddr::new(*at, *port).to_string()))
        }
        _ => None,
    };
    peer.claims.iter().filter_map(of).collect()
}

fn routed(peer: &Peer) -> Vec<u32> {
    let of = |object: &Object| object.link().map(|link| link.0);
    peer.objects.iter().filter_map(of).collect()
}

#[test]
fn the_next_key_is_published_beside_the_present_one() {
    let (key, next) = (KEY.parse().unwrap(), NEXT.parse().unwrap());
    let json = |keys: &str| {
        attrs(&config(keys), (key, Some(next)), &Family::ALL, ours(), &PerFamily::default()).to_json()
    };
    let of = |port: u16| format!(r#""Next":{{"PublicKey":"{NEXT}","Port":{port}}}"#);
    let want = record(Some("192.0.2.1"), Some("2001:db8::1"), [Some(51820), Some(51821)])
        .replace(":51820}", &format!(":51820,{}}}", of(51822)))
        .replace(":51821}", &format!(":51821,{}}}", of(51823)));
    assert_eq!(json(""), want);
    assert_eq!(json(r#","Mode":"auto""#).matches(&of(51822)).count(), 2, "one device for both");
    let read = LeaseAttrs::from_json(&want).unwrap();
    let data = WireguardData::decode(read.backend_data.v6.as_ref().unwrap()).unwrap();
    assert_eq!((data.public_key, data.port, data.next), (key, Some(51821), Some(NextKey::new(next, 51823))));
    // An older agent, or Go flannel's, reads the rest of it.
    assert_eq!(read.to_json(), want, "stores keep it as it is");
}

#[test]
fn a_peer_that_changes_its_key_is_on_both_devices_and_its_route_on_one() {
    let config = config("");
    let links = PerFamily { v4: Some(LinkIndex(14)), v6: Some(LinkIndex(16)) };
    let next = format!(r#""Next":{{"PublicKey":"{NEXT}","Port":51822}}"#);
    let lease = |value: &str| lease(DUAL, value);
    let plain = record(Some("192.0.2.11"), Some("2001:db8::11"), [Some(51820), Some(51821)]);
    let read = |value: &str, links: &PerFamily<LinkIndex>, is_own: bool, used: Way| {
        let way = |_, keys: Keys| {
            assert_eq!(keys.phase, if value == plain { Phase::Idle } else { Phase::Offered });
            used
        };
        let second = Second { links, is_own, way: &way };
        peer(&lease(value), &Paths { config: &config, links: &LINKS, ours: &ours(), second }).unwrap()
    };
    let first = |link: u32, at: &str| (link, KEY[..4].to_owned(), at.to_owned());
    let own = [first(4, "192.0.2.11:51820"), first(6, "[2001:db8::11]:51821")];
    // Without second devices there is the data alone, by which the driver sees that it needs them.
    let without = read(&record_with_next(&next), &PerFamily::default(), false, Way::First);
    assert_eq!((claimed(&without), routed(&without)), (own.to_vec(), vec![4, 6]));
    assert!(without.data.is_some());
    let on_second = |link: u32, at: &str| (link, NEXT[..4].to_owned(), at.to_owned());
    let both = [
        own[0].clone(),
        on_second(14, "192.0.2.11:51822"),
        own[1].clone(),
        on_second(16, "[2001:db8::11]:51822"),
    ];
    for (way, routes) in [(Way::First, [4, 6]), (Way::Second, [14, 16])] {
        let with = read(&record_with_next(&next), &links, false, way);
        assert_eq!((claimed(&with), routed(&with)), (both.to_vec(), routes.to_vec()));
    }
    // Peers that don't change theirs are there if this node does, and begin from a port that nobody knows.
    let idle = read(&plain, &links, false, Way::First);
    assert_eq!((claimed(&idle), idle.data), (own.to_vec(), None));
    let idle = read(&plain, &links, true, Way::First);
    let theirs = |link: u32, at: &str| (link, KEY[..4].to_owned(), at.to_owned());
    assert_eq!(claimed(&idle)[1], theirs(14, "192.0.2.11:51822"));
    assert_eq!(claimed(&idle)[3], theirs(16, "[2001:db8::11]:51823"));
}

/// The node is reached by its present key, as Go flannel reaches it.
#[test]
fn a_next_key_that_is_no_use_is_none() {
    for next in [
        "\"Next\":null",
        "\"Next\":7",
        "\"Next\":{}",
        &format!(r#""Next":{{"PublicKey":"{NEXT}"}}"#),
        &format!(r#""Next":{{"PublicKey":"{NEXT}","Port":0}}"#),
        &format!(r#""Next":{{"PublicKey":"{NEXT}","Port":65536}}"#),
        r#""Next":{"PublicKey":"x","Port":51822}"#,
    ] {
        let attrs = LeaseAttrs::from_json(&record_with_next(next)).unwrap();
        let data = WireguardData::decode(attrs.backend_data.v4.as_ref().unwrap()).unwrap();
        assert_eq!((data.public_key.to_string(), data.next), (KEY.to_owned(), None), "{next}");
    }
}

#[test]
fn other_backends_are_not_ours_and_unreadable_data_is_unknown() {
    let config = config("");
    let v4 = |value: &str| {
        peer(
            &lease("10.5.1.0-24", value),
            &Paths { config: &config, links: &LINKS, ours: &ours(), second: ALONE },
        )
    };
    for value in [r#"{"PublicIP":"192.0.2.11","BackendType":"vxlan"}"#, r#"{"PublicIP":"192.0.2.11"}"#] {
        assert!(matches!(v4(value), Err(PeerError::NotOurs(_))), "{value}");
    }
    let with =
        |data: &str| format!(r#"{{"PublicIP":"192.0.2.11","BackendType":"wireguard","BackendData":{data}}}"#);
    for data in [
        "7",
        "null",
        "{}",
        r#"{"PublicKey":7}"#,
        r#"{"PublicKey":"x"}"#,
        r#"{"PublicKey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}"#,
        &format!(r#"{{"PublicKey":"{KEY}","Port":65536}}"#),
        &format!(r#"{{"PublicKey":"{KEY}","Port":"x"}}"#),
    ] {
        let error = v4(&with(data)).unwrap_err();
        assert!(
            matches!(&error, PeerError::Unreadable(why) if why.contains("BackendData")),
            "{data} {error}"
        );
    }
    let error = v4(&with(&format!(r#"{{"PublicKey":"{KEY}","Port":70000}}"#))).unwrap_err();
    assert!(error.to_string().contains("Port 70000 is none of UDP"), "{error}");
    let nowhere = format!(
        r#"{{"PublicIP":"224.0.0.1","BackendType":"wireguard","BackendData":{{"PublicKey":"{KEY}"}}}}"#
    );
    assert!(matches!(v4(&nowhere), Err(PeerError::Unreadable(_))));
}

#[test]
fn hostile_records_are_refused_by_name() {
    let record = |n: u8| {
        let key = crate::key::PrivateKey([n; 32]).clamped().public();
        let value = format!(
            r#"{{"PublicIP":"192.168.77.{n}","PublicIPv6":"fd00:77::{n}","BackendType":"wireguard","BackendData":{{"PublicKey":"{key}","Port":51820}},"BackendV6Data":{{"PublicKey":"{key}","Port":51821}}}}"#
        );
        (format!("10.244.{n}.0-24&fd00:10:244:{n}::-64"), value)
    };
    let config = config("");
    let paths = Paths { config: &config, links: &LINKS, ours: &ours(), second: ALONE };
    let scene = Scene { kind: KIND, own: record(11), peer: record(12), stranger: record(50) };
    let networks = PerFamily { v4: "10.244.0.0/16".parse().ok(), v6: "fd00:10:244::/56".parse().ok() };
    let own = peer(&lease(&scene.own.0, &scene.own.1), &paths).unwrap().claims;
    judge(&scene, networks, own, |lease| peer(lease, &paths));
}

proptest! {
    #[test]
    fn no_backend_data_panics(data in "[\\{\\}\":,a-zA-Z0-9=]{0,60}", mode in "|auto|ipv4|ipv6|separate") {
        let config = config(&format!(r#","Mode":"{mode}""#));
        let value = format!(r#"{{"PublicIP":"192.0.2.11","BackendType":"wireguard","BackendData":{data}}}"#);
        if let Ok(attrs) = LeaseAttrs::from_json(&value) {
            let key = "10.5.1.0-24".parse().unwrap();
            let paths = Paths { config: &config, links: &LINKS, ours: &ours(), second: ALONE };
            let _ = peer(&Lease { key, attrs, created: 1 }, &paths);
        }
    }
}
