//! The underlay: nodes reach each other, and every fault does what it says and can be undone.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::kernel_state::KernelState;
use flannel_lab::ping::{PingOptions, Pinger, ping, reaches, system_ping};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

const SOON: Duration = Duration::from_secs(5);

fn two_nodes(families: Families) -> Cluster {
    Cluster::builder().nodes(2).families(families).build().unwrap()
}

fn addresses(cluster: &Cluster, number: u8) -> Vec<IpAddr> {
    let node = cluster.node(number);
    [node.ipv4(), node.ipv6()].into_iter().flatten().collect()
}

#[track_caller]
fn assert_reach(cluster: &Cluster, wanted: bool) {
    for address in addresses(cluster, 2) {
        eventually(SOON, &format!("{address}: {wanted}"), || {
            reaches(cluster.node(1).netns(), address).unwrap() == wanted
        });
    }
}

#[test]
fn nodes_ping_each_other_in_every_family() {
    in_sandbox(test_name!(), || {
        for (families, expected) in [(Families::V4, 1), (Families::V6, 1), (Families::Dual, 2)] {
            let cluster = two_nodes(families);
            assert_eq!(addresses(&cluster, 2).len(), expected);
            for address in addresses(&cluster, 2) {
                let netns = cluster.node(1).netns();
                let report = ping(netns, address, PingOptions::default()).unwrap();
                assert_eq!((report.received, report.lost), (5, 0), "{report:?}");
                let system = system_ping(netns, address, 1400, 3).unwrap();
                assert_eq!((system.sent, system.received), (3, 3), "{}", system.output);
            }
        }
    });
}

#[test]
fn a_packet_that_does_not_fit_is_not_sent_unfragmented() {
    in_sandbox(test_name!(), || {
        let cluster = two_nodes(Families::Dual);
        for (address, header) in addresses(&cluster, 2).into_iter().zip([28, 48]) {
            let try_size = |size: usize, dont_fragment| {
                let payload_size = size - header;
                let timeout = Duration::from_millis(300);
                let options =
                    PingOptions { payload_size, dont_fragment, timeout, count: 2, ..Default::default() };
                ping(cluster.node(1).netns(), address, options).unwrap()
            };
            assert_eq!(try_size(1500, true).lost, 0);
            let too_long = try_size(1501, true);
            assert_eq!(too_long.received, 0);
            assert!(too_long.last_error.unwrap().contains("Message too long"));
            assert_eq!(try_size(1501, false).lost, 0);
        }
    });
}

#[test]
fn faults_cut_the_path_and_undoing_them_brings_it_back() {
    in_sandbox(test_name!(), || {
        let cluster = two_nodes(Families::Dual);
        let node = cluster.node(2);
        let before = KernelState::of(node.netns()).unwrap();
        let index = node.netns().link_index("eth0").unwrap();
        assert_reach(&cluster, true);

        node.carrier_off("eth0").unwrap();
        assert_reach(&cluster, false);
        node.carrier_on("eth0").unwrap();
        assert_reach(&cluster, true);

        node.link_down("eth0").unwrap();
        assert_reach(&cluster, false);
        node.link_up("eth0").unwrap();
        assert_reach(&cluster, true);

        node.partition().unwrap();
        assert_reach(&cluster, false);
        node.heal().unwrap();
        assert_reach(&cluster, true);

        node.delete_nic("eth0").unwrap();
        assert_eq!(node.netns().link_index("eth0").unwrap(), None);
        assert_reach(&cluster, false);
        node.restore_nic("eth0").unwrap();
        assert_reach(&cluster, true);
        assert_ne!(node.netns().link_index("eth0").unwrap(), index);

        node.set_mtu("eth0", 1200).unwrap();
        node.set_mtu("eth0", 1500).unwrap();
        assert_reach(&cluster, true);

        let after = || KernelState::of(node.netns()).unwrap();
        eventually(SOON, "the same state as before", || {
            if after() == before { Ok(()) } else { Err(format!("{}", after())) }
        });
    });
}

#[test]
fn an_address_can_change() {
    in_sandbox(test_name!(), || {
        let cluster = two_nodes(Families::Dual);
        let old = addresses(&cluster, 2);
        for new in ["192.168.77.99", "fd00:77::99"] {
            cluster.node(2).change_address("eth0", new.parse().unwrap()).unwrap();
        }
        assert_eq!(cluster.node(2).ipv4(), Some("192.168.77.99".parse().unwrap()));
        assert_reach(&cluster, true);
        for old in old {
            assert!(!reaches(cluster.node(1).netns(), old).unwrap());
        }
        let routes = KernelState::of(cluster.node(2).netns()).unwrap();
        assert!(routes.routes[0].starts_with("unicast 192.168.77.0/24"), "{routes}");
        assert!(routes.routes[1].starts_with("unicast default via 192.168.77.1 "), "{routes}");
    });
}

#[test]
fn a_nic_can_have_another_name() {
    in_sandbox(test_name!(), || {
        let cluster = two_nodes(Families::Dual);
        let node = cluster.node(2);
        let index = node.netns().link_index("eth0").unwrap();
        node.rename_nic("eth0", "ens3").unwrap();
        assert_reach(&cluster, true);
        assert_eq!(node.netns().link_index("ens3").unwrap(), index, "it is the same link");
        assert!(node.link_down("eth0").is_err() && node.rename_nic("eth0", "ens4").is_err());
        node.carrier_off("ens3").unwrap();
        assert_reach(&cluster, false);
        node.carrier_on("ens3").unwrap();
        node.rename_nic("ens3", "eth0").unwrap();
        assert_reach(&cluster, true);
    });
}

#[test]
fn nodes_come_and_go_and_the_fabric_routes_between_segments() {
    in_sandbox(test_name!(), || {
        let mut cluster = two_nodes(Families::Dual);
        assert_eq!(cluster.add_node_on(&[1, 0]).unwrap().name(), "node3");
        let far = cluster.node(3);
        assert_eq!(far.address(), "192.168.78.13".parse::<IpAddr>().unwrap());
        let wanted = [far.ipv4(), far.ipv6(), Some("192.168.77.13".parse().unwrap())];
        for address in wanted.into_iter().flatten() {
            eventually(SOON, &address.to_string(), || reaches(cluster.node(1).netns(), address).unwrap());
        }
        let gone = addresses(&cluster, 2)[0];
        cluster.remove_node(2).unwrap();
        assert!(!reaches(cluster.node(1).netns(), gone).unwrap());
        assert!(cluster.remove_node(2).is_err());
        assert_eq!(cluster.add_node().unwrap().number(), 4);
        assert_eq!(cluster.nodes().count(), 3);
    });
}

#[test]
fn a_pinger_measures_an_outage_and_nothing_else() {
    in_sandbox(test_name!(), || {
        let cluster = two_nodes(Families::V4);
        let netns = cluster.node(1).netns();
        let interval = Duration::from_millis(2);
        let options = PingOptions { interval, ..Default::default() };
        let pinger = Pinger::start(netns, cluster.node(2).address(), options.clone()).unwrap();
        pinger.wait_for_replies(200, SOON).unwrap();
        let report = pinger.stop();
        assert_eq!((report.lost, report.duplicates), (0, 0), "{report:?}");

        let pinger = Pinger::start(netns, cluster.node(2).address(), options).unwrap();
        pinger.wait_for_replies(20, SOON).unwrap();
        // Short enough for the neighbour entries to stay good.
        let before = Instant::now();
        cluster.node(2).partition().unwrap();
        let cut = Instant::now();
        std::thread::sleep(Duration::from_millis(300));
        let at_least = cut.elapsed();
        cluster.node(2).heal().unwrap();
        pinger.wait_for_replies(20, SOON).unwrap();
        let report = pinger.stop();
        assert_eq!(report.outages.len(), 1, "{report:?}");
        let outage = report.longest_outage().unwrap();
        assert_eq!(outage.lost, report.lost);
        // An echo may have left up to an interval before the cut.
        assert!(
            (at_least.saturating_sub(interval * 5)..before.elapsed()).contains(&outage.lasted),
            "{outage:?}"
        );
    });
}
