use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::wire::sealed;
use super::*;
use crate::addr::Mtu;
use crate::config::LeaseSource;
use crate::lease::Reception;

fn state() -> State {
    let value = r#"{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::9","BackendType":"vxlan"}"#;
    let lease = |key, created| Lease::decode(key, value.as_bytes(), created).unwrap();
    let peer = lease("10.5.9.0-24&fd00:5:0:9::-64", 7);
    let config = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan","VNI":7}}"#;
    State {
        backend: "vxlan".into(),
        networks: PerFamily { v4: "10.5.0.0/16".parse().ok(), v6: "fd00:5::/48".parse().ok() },
        devices: vec![
            Device::vxlan("flannel.1", Vni::new(1).unwrap()),
            Device::of_kind("flannel.ipip", "ipip"),
        ],
        beside: vec![BackendConfig::stored(r#"{"Type":"wireguard","PSK":"c2VjcmV0"}"#).unwrap()],
        proven: [(peer.key, Proven { detour: Some("udp".to_owned()), mtu4: None, mtu6: Some(Mtu(1280)) })]
            .into(),
        routes_of_others: true,
        leases: [(peer.key, Arc::new(AgedLease { lease: peer, ages: Ages::from_array([1, 2, 3, 4, 5]) }))]
            .into(),
        store: "local:/var/lib/flannel".into(),
        config: Some(NetworkConfig::parse(config, LeaseSource::Store).unwrap()),
        own: Some(lease("10.5.1.0-24&fd00:5:0:1::-64", 3)),
        own_ages: Ages::all(6),
        wanted_ips: PerFamily { v4: "203.0.113.1".parse().ok(), v6: "2001:db8::1".parse().ok() },
        former_ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::2".parse().unwrap()],
        host_macs: vec![MacAddr([2, 0, 0, 0, 0, 1])],
        saved: 1_750_000_000,
    }
}

#[test]
fn is_read_as_it_was_written() {
    let text = state().encode();
    assert_eq!(State::decode(text.as_bytes()), Ok(state()));
    let lease = r#""leases":{"10.5.9.0-24&fd00:5:0:9::-64":{"created":7,"attrs":{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::9","BackendType":"vxlan"},"ages":[1,2,3,4,5]}}"#;
    assert!(text.contains(lease), "{text}");
    let devices = r#""devices":[{"name":"flannel.1","vni":1},{"name":"flannel.ipip","kind":"ipip"}]"#;
    assert!(text.contains(devices), "older agents read those of vxlan: {text}");
}

/// By what nodes receive besides is in the attributes, where an older agent ignores it as it does in a store.
#[test]
fn further_ways_to_receive_are_kept() {
    let receives =
        Reception::parse_list(r#"[{"Type":"wireguard","Data":{"Port":1}},{"Type":"udp"}]"#).unwrap();
    let mut more = state();
    more.own.as_mut().unwrap().attrs.receives.clone_from(&receives);
    let peer = more.leases.values_mut().next().unwrap();
    Arc::make_mut(peer).lease.attrs.receives = receives;
    let text = more.encode();
    assert_eq!(State::decode(text.as_bytes()), Ok(more));
    let written =
        r#""BackendType":"vxlan","Receives":[{"Type":"wireguard","Data":{"Port":1}},{"Type":"udp"}]}"#;
    assert_eq!(text.matches(written).count(), 2, "{text}");
}

#[test]
fn any_damage_makes_it_none_with_a_word() {
    let text = state().encode();
    let cut = &text[..text.len() / 2];
    let changed = text.replace("192.0.2.9", "192.0.2.8");
    let newer = text.replace("\"version\":2", "\"version\":3");
    for (text, word) in [
        ("", "no state"),
        ("{}", "no state"),
        (cut, "no state"),
        (&changed, "damaged"),
        (&newer, "version 3 of another agent; this one reads up to 2"),
    ] {
        let error = State::decode(text.as_bytes()).unwrap_err();
        assert!(error.to_string().contains(word), "{text}: {error}");
    }
}

#[test]
fn a_missing_file_is_no_problem_and_an_unreadable_one_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("subnet.env.state");
    assert_eq!(read(&path), Recalled::default());
    state().write(&path).unwrap();
    let found = read(&path);
    let stored = found.state.unwrap();
    assert!(stored.saved > state().saved && found.problem.is_none(), "it is dated now");
    assert_eq!(State { saved: state().saved, ..stored }, state());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    fs::write(&path, "garbage").unwrap();
    let found = read(&path);
    assert!(found.state.is_none() && found.problem.is_some());
    assert!(read(folder.path()).problem.is_some());
    let error = state().write(&path.join("below")).unwrap_err();
    assert!(error.to_string().contains("subnet.env.state/below"), "{error}");
}

#[test]
fn reads_what_an_older_agent_wrote() {
    let old = sealed(
        1,
        r#"{"backend":"vxlan","networks":["10.5.0.0/16"],"devices":[{"name":"flannel.1","vni":1}],"nodes":{"10.5.9.0-24":["192.0.2.9"]}}"#,
    );
    let state = State::decode(old.as_bytes()).unwrap();
    assert_eq!((state.config, state.own, state.saved), (None, None, 0));
    let node = &state.leases[&"10.5.9.0-24".parse().unwrap()];
    assert_eq!(node.attrs.public_ips.v4, "192.0.2.9".parse().ok());
}

#[test]
fn what_is_sealed_well_but_hostile_is_none_with_a_word() {
    let good = state().encode();
    let good = &good[good.find(r#""state":"#).unwrap() + 8..good.len() - 2];
    assert_eq!(State::decode(sealed(2, good).as_bytes()), Ok(state()));
    for (from, to, word) in [
        (
            r#""Network":"10.5.0.0/16""#,
            r#""Network":"no""#,
            "config that can't be used: network config: Network",
        ),
        ("10.5.1.0-24&", "10.5.1.7-24&", "own lease that can't be used: record"),
        (r#""PublicIP":"192.0.2.9""#, r#""PublicIP":"fd00::9""#, "can't be used"),
        (r#""saved":1750000000"#, r#""saved":-1"#, "no state"),
        (r#""store":"local"#, r#""stores":"local"#, "no state"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good, "{from}");
        let error = State::decode(sealed(2, &bad).as_bytes()).unwrap_err();
        assert!(error.to_string().contains(word), "{to}: {error}");
    }
    // One bad peer is not known; the others are.
    let bad = good.replace("10.5.9.0-24&", "10.5.9.0-33&");
    let without = State { leases: BTreeMap::new(), proven: BTreeMap::new(), ..state() };
    assert_eq!(State::decode(sealed(2, &bad).as_bytes()), Ok(without));
}

#[test]
fn says_how_old_it_is() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(age(0), "at an unknown time");
    assert_eq!(age(now - 3 * 3600 - 5), "3 h ago");
    assert_eq!(age(now - 10 * 86_400 - 5), "10 days ago");
    assert!(age(now + 1000).contains("has not reached"));
}

proptest! {
    #[test]
    fn no_changed_byte_goes_unseen(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let good = state().encode();
        let mut bytes = good.clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        // White space around the whole and case of the names of the envelope apart, nothing is accepted.
        if let Ok(read) = State::decode(&bytes) {
            prop_assert_eq!(read, state());
        }
    }
}
