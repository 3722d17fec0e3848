//! Whatever befalls the NIC, the agent takes nothing away that peers need.

use flannel_core::testing::nic::{Nic, NicStep, nic_step};
use proptest::prelude::*;

use super::*;

const DIRECT: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

fn nic_of(host: &Host) -> Nic {
    let (global, deprecated, permanent, temporary, tentative) = (true, false, false, false, false);
    let address = |text: &str| LinkAddress {
        link: host.underlay.link,
        addr: text.parse().unwrap(),
        global,
        deprecated,
        permanent,
        temporary,
        tentative,
    };
    Nic::new(&host.kernel, host.underlay.link, vec![address("192.0.2.1/24"), address("2001:db8::1/64")])
}

async fn nothing_is_taken_away(objects: bool, config: &str, steps: &[NicStep]) {
    let host = Host::new(objects, config);
    let mut nic = nic_of(&host);
    host.store.put(PEER_KEY, PEER);
    host.store.put(
        "10.5.98.0-24",
        r#"{"PublicIP":"192.0.2.8","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:08"}}"#,
    );
    let running = host.start().await;
    resync().await;
    // A record that can't be used any more: its last good version stays.
    host.store.put("10.5.98.0-24", r#"{"PublicIP":"192.0.2.8","BackendType":"vxlan"}"#);
    settle().await;
    let want = nic.objects();
    assert!(want.iter().any(|object| object.contains("10.5.98.0")));
    nic.taken_away();
    for step in steps {
        nic.apply(*step).await;
        assert_eq!(nic.taken_away(), [""; 0], "after {step:?}");
    }
    nic.heal().await;
    assert_eq!(nic.taken_away(), [""; 0]);
    assert_eq!(nic.objects(), want);
    let status = running.status.borrow().clone();
    assert_eq!((status.device_problem(), status.underlay_problem(), status.refused()), (None, None, vec![]));
    running.stop().await;
}

fn run(objects: bool, config: &str, steps: &[NicStep]) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(nothing_is_taken_away(objects, config, steps));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_befalls_the_nic_nothing_is_taken_away(
        objects: bool, steps in prop::collection::vec(nic_step(), 1..24),
    ) {
        run(objects, DUAL, &steps);
    }

    #[test]
    fn nor_with_direct_routing(steps in prop::collection::vec(nic_step(), 1..24)) {
        run(true, DIRECT, &steps);
    }
}

#[test]
fn a_rename_writes_nothing_and_the_names_follow() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let host = Host::new(true, DUAL);
        host.store.put(PEER_KEY, PEER);
        let running = host.start().await;
        resync().await;
        host.kernel.take_ops();
        host.kernel.take_link_ops();
        host.kernel.edit_link("eth0", true, |link| link.name = "ens3".to_owned());
        resync().await;
        assert_eq!((host.kernel.take_ops(), host.kernel.take_link_ops()), (vec![], vec![]));
        let status = running.status.borrow().clone();
        assert_eq!((status.device_problem(), status.underlay_problem()), (None, None));
        host.kernel.edit_link("ens3", true, |link| link.up = false);
        settle().await;
        assert_eq!(running.status.borrow().device_problem().as_deref(), Some("underlay link ens3 is down"));
        running.stop().await;
    });
}

#[test]
fn a_device_of_ours_that_was_renamed_is_held_and_named() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let host = Host::new(true, DUAL);
        host.store.put(PEER_KEY, PEER);
        let running = host.start().await;
        resync().await;
        host.kernel.take_ops();
        host.kernel.edit_link("flannel.1", true, |link| link.name = "vx1".to_owned());
        settle().await;
        assert_eq!(host.kernel.take_ops(), []);
        let problem = "device flannel.1 is called vx1 now; name it back (ip link set vx1 name flannel.1) before the next \
                       start";
        assert_eq!(running.status.borrow().device_problem().as_deref(), Some(problem));
        host.kernel.edit_link("vx1", true, |link| link.name = "flannel.1".to_owned());
        settle().await;
        assert_eq!(running.status.borrow().device_problem(), None);
        running.stop().await;
    });
}
