//! Whatever befalls the NIC, the agent takes no route away that peers need.

use flannel_core::testing::nic::{Nic, NicStep, nic_step};
use proptest::prelude::*;

use super::*;

fn block_on(body: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(body);
}

fn nic_of(host: &Host) -> Nic {
    let link = host.underlay.link;
    let (global, deprecated, permanent, temporary, tentative) = (true, false, false, false, false);
    let address = |text: &str| {
        let addr = text.parse().unwrap();
        LinkAddress { link, addr, global, deprecated, permanent, temporary, tentative }
    };
    Nic::new(&host.kernel, link, vec![address("192.0.2.1/24")])
}

async fn nothing_is_taken_away(config: &str, steps: &[NicStep]) {
    let host = Host::new(config);
    // The route that goes with the address is not of interest here.
    for object in host.kernel.objects().iter() {
        host.kernel.delete(&object.key(), false);
    }
    let mut nic = nic_of(&host);
    host.store.put(PEER_KEY, PEER);
    let running = host.start().await;
    let want = nic.objects();
    assert_eq!(want.len(), 2);
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_befalls_the_nic_nothing_is_taken_away(
        direct: bool, steps in prop::collection::vec(nic_step(), 1..24),
    ) {
        block_on(nothing_is_taken_away(if direct { DIRECT } else { CONFIG }, &steps));
    }
}

#[test]
fn a_rename_writes_nothing_and_the_names_follow() {
    block_on(async {
        let host = Host::new(CONFIG);
        host.store.put(PEER_KEY, PEER);
        let running = host.start().await;
        host.kernel.take_ops();
        host.kernel.edit_link("eth0", true, |link| link.name = "ens3".to_owned());
        tokio::time::sleep(Duration::from_secs(67)).await;
        assert_eq!(host.kernel.take_ops(), []);
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
    block_on(async {
        let host = Host::new(CONFIG);
        host.store.put(PEER_KEY, PEER);
        let running = host.start().await;
        host.kernel.take_ops();
        host.kernel.take_link_ops();
        host.kernel.edit_link("flannel.ipip", true, |link| link.name = "tun7".to_owned());
        told().await;
        assert_eq!((host.kernel.take_ops(), host.kernel.take_link_ops()), (vec![], vec![]));
        let problem = running.status.borrow().device_problem().unwrap();
        assert!(problem.contains("ip link set tun7 name flannel.ipip"), "{problem}");
        host.kernel.edit_link("tun7", true, |link| link.name = "flannel.ipip".to_owned());
        told().await;
        assert_eq!(running.status.borrow().device_problem(), None);
        running.stop().await;
    });
}
