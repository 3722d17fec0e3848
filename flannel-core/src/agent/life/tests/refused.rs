//! What an operator has to mend, and what is refused for good.

use super::*;

/// A network of pods that covers what the node reaches without it: refused by name, unless nodes work so.
#[tokio::test(start_paused = true)]
async fn a_network_that_would_hide_the_underlay_is_refused_until_it_is_mended() {
    let inside = |key: &str| Lease { key: key.parse().unwrap(), attrs: LeaseAttrs::default(), created: 1 };
    let network =
        |network: &str| config(&format!(r#"{{"Network":"{network}","Backend":{{"Type":"vxlan"}}}}"#));
    for (covering, hosts, hidden) in [
        ("10.0.0.0/8", vec![], "the underlay address of eth0 10.0.0.1"),
        ("10.0.0.192/26", vec![], "the default gateway 10.0.0.254"),
        ("10.7.0.0/16", vec!["192.0.2.9", "10.7.1.1"], "the store's endpoint 10.7.1.1"),
    ] {
        let hosts: Vec<String> = hosts.into_iter().map(str::to_owned).collect();
        let covering = NetworkConfig::parse(
            &format!(r#"{{"Network":"{covering}","Backend":{{"Type":"vxlan"}}}}"#),
            LeaseSource::Assigned,
        )
        .unwrap();
        let value = covering.networks.v4.unwrap().network;
        let fake = |listed: Option<Vec<Lease>>| Fake {
            listed: Arc::new(Mutex::new(listed)),
            hosts: hosts.clone(),
            ..Fake::new().configs([Does::Works(covering.clone())])
        };
        // A new cluster, and one whose leases are all in the network of before.
        for listed in [vec![], vec![inside("172.16.3.0-24")]] {
            let test = start(fake(Some(listed)));
            test.wait(60).await;
            let state = test.state();
            assert!(state.contains(&format!("Network = {value}: covers {hidden}: ")), "{state}");
            assert!(state.contains("choose a network apart from"), "{state}");
            assert!(!test.has_ended() && test.file().is_empty());
            *test.fake.configs.lock().unwrap() = [Does::Works(vxlan())].into();
            test.wait(7).await;
            assert_eq!(test.state(), "ready");
            assert_eq!(test.stop().await, Ok(()));
        }
        // One that works so, and one of which the store does not tell in time.
        let of_network = format!("{}-{}", value.base(), value.prefix() + 2);
        for listed in [Some(vec![inside(&of_network)]), None] {
            let test = start(fake(listed));
            test.wait(60).await;
            assert_eq!(test.state(), "ready");
            let remarks = test.notes();
            let named = format!("{hidden} lies inside the network {value}");
            assert!(remarks.iter().any(|remark| remark.contains(&named)), "{remarks:?}");
            assert_eq!(test.stop().await, Ok(()));
        }
    }
    let test = start(Fake {
        listed: Arc::new(Mutex::new(Some(vec![]))),
        ..Fake::new().configs([Does::Works(network("10.1.0.0/16"))])
    });
    test.wait(1).await;
    assert_eq!(test.state(), "ready", "a network apart from all is not even compared with leases");
    assert_eq!(test.stop().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn waits_for_an_operator_to_write_and_mend_the_config() {
    let place = || "/coreos.com/network/config".to_owned();
    let source = NetworkConfig::parse("{", LeaseSource::Store).unwrap_err();
    let fake = Fake::new().configs([
        Does::Fails(SubnetError::NoConfig { place: place() }),
        Does::Fails(SubnetError::Config { place: place(), source }),
        Does::Works(vxlan()),
    ]);
    let test = start(fake);
    tokio::time::sleep(Duration::from_millis(1)).await;
    let state = test.state();
    assert!(state.starts_with("waiting for the network config: no network config at /coreos"), "{state}");
    tokio::time::sleep(Duration::from_millis(700)).await;
    let state = test.state();
    assert!(state.contains("can't be used: network config: JSON"), "{state}");
    test.wait(5).await;
    assert_eq!(test.state(), "ready");
}

#[tokio::test(start_paused = true)]
async fn ends_if_the_store_refuses_for_good() {
    let refused = || SubnetError::Refused { what: "log in as root".into(), source: cause("wrong password") };
    let test = start(Fake::new().configs([Does::Fails(refused()), Does::Hangs]));
    assert_eq!(test.end().await, "store refused: log in as root: wrong password");
    let test = start(Fake::new().registers([Does::Fails(refused()), Does::Hangs]));
    assert_eq!(test.end().await, "backend vxlan failed: store refused: log in as root: wrong password");
    assert!(!test.is_up() && test.state().starts_with("ended: backend vxlan failed: store refused"));
    let error = test.agent.ready().await.unwrap_err();
    assert!(matches!(error.failure(), Failure::Backend { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn says_which_backend_or_interface_is_missing() {
    let missing = config(r#"{"Network": "10.42.0.0/16", "Backend": {"Type": "ipip"}}"#);
    let error = start(Fake::new().configs([Does::Works(missing)])).end().await;
    assert!(error.starts_with("config key Backend.Type can't be used: backend \"ipip\""), "{error}");
    let error = start_at(Fake::new(), "eth9", "subnet.env").end().await;
    assert!(error.contains("interface eth9: there is none of this name"), "{error}");
    assert!(error.ends_with("this host has eth0 (10.0.0.1/24)"), "{error}");
}
