use flannel_core::addr::LinkIndex;
use flannel_core::config::{LeaseSource, NetworkConfig};

use super::*;

#[test]
fn another_port_takes_a_restart_and_nothing_else_means_anything() {
    let underlay = Underlay::new("eth0", LinkIndex(2), Mtu(1500), PerFamily::default());
    let mut driver = UdpDriver::new(
        Netns::current().unwrap(),
        8285,
        UdpOptions::default(),
        underlay,
        PerFamily::default(),
    );
    let mut take = |keys: &str| {
        let text = format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"udp"{keys}}}}}"#);
        let config = NetworkConfig::parse(&text, LeaseSource::Store).unwrap();
        driver.apply_config(&config.backend, vec!["Backend.anything".to_owned()])
    };
    let restart = |keys: &[&str]| {
        let restart = keys.iter().map(|key| (*key).to_owned()).collect();
        Ok(AppliedConfig::new(Vec::new(), restart))
    };
    assert_eq!(take(r#","Port":9000"#), restart(&["Backend.Port"]));
    assert_eq!(take(r#","Port":0"#).unwrap_err().key, "Backend.Port");
    assert_eq!(take(r#","port":8285,"VNI":1"#), restart(&[]));
}

/// A peer that is reached by another backend from now on still gets packets until its route has moved there.
#[test]
fn a_peer_that_leaves_stays_in_the_table_until_it_is_pruned() {
    let underlay = Underlay::new("eth0", LinkIndex(2), Mtu(1500), PerFamily::default());
    let (netns, options) = (Netns::current().unwrap(), UdpOptions::default());
    let mut driver = UdpDriver::new(netns, 8285, options, underlay, PerFamily::default());
    let node = |n: u8| {
        let key: LeaseKey = format!("10.3.{n}.0-24").parse().unwrap();
        let attrs = LeaseAttrs::from_json(&format!(r#"{{"PublicIP":"192.0.2.{n}"}}"#)).unwrap();
        let lease = Lease { key, attrs, created: 1 };
        let enabled = PerFamily { v4: Some("192.0.2.9".parse().unwrap()), v6: None };
        (key, peer(&lease, &enabled).unwrap())
    };
    let (one, two) = (node(1), node(2));
    let both = || [&one, &two].into_iter().map(|(key, peer)| (key, peer));
    let nobody: fn(&LeaseKey) -> bool = |_| false;
    for (is_shared, left) in [(true, 2), (false, 1)] {
        driver.set_shared(is_shared);
        driver.set_peers(&mut both());
        driver.set_peers(&mut both().take(1));
        assert_eq!(driver.table().len(), left, "several backends: {is_shared}");
        driver.prune_peers(&nobody);
        assert_eq!(driver.table().len(), 1);
    }
    // One that comes back is there once.
    driver.set_shared(true);
    driver.set_peers(&mut both());
    driver.set_peers(&mut both().take(1));
    driver.set_peers(&mut both());
    assert_eq!((driver.table().len(), driver.table().refused()), (2, &[][..]));
}
