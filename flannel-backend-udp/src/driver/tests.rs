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
