//! Which underlay a node chooses, and keeps: over restarts with virtual addresses and the overlay's own devices
//! about, and while its NIC is renamed.

use flannel_lab::cluster::Cluster;
use flannel_lab::wait::eventually;
use serde_json::Value;

use crate::backends::{BackendCase, on_every_kind};
use crate::harness::{Bed, Monitor, SOON, Store, Traffic, http_get, new_folder, subnet_file};

on_every_kind!(
    a_renamed_nic_costs_nothing,
    a_virtual_address_is_not_published,
    what_the_overlay_made_is_not_chosen,
    all_next_hops_by_one_nic_are_that_nic,
);

fn bed<S: Store>(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) -> Bed<S> {
    let cluster = Cluster::builder().nodes(3).families(case.widest()).build().unwrap();
    let store = store(&cluster);
    Bed::new(cluster, store, case, case.widest())
}

/// Nodes 2 and 3 name their NIC; node 1 does as `iface` says.
fn start<S: Store>(bed: &mut Bed<S>, iface: &[&str]) {
    bed.spawn_by(1, iface, &[]);
    bed.spawn(2, &[]);
    bed.spawn(3, &[]);
    (1..=3).for_each(|number| bed.wait_ready(number));
    (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
}

fn chosen<S: Store>(bed: &Bed<S>, number: u8) -> String {
    let log = bed.agent(number).log();
    log.lines().find(|line| line.contains("underlay chosen")).unwrap_or_default().to_owned()
}

fn a_renamed_nic_costs_nothing(case: &'static BackendCase) {
    for iface in [&["--iface=eth0"][..], &[]] {
        let mut bed = bed(case, |_| new_folder());
        start(&mut bed, iface);
        let pods = [bed.pod(1), bed.pod(2)];
        let (netns, records) = (bed.netns(1).clone(), bed.store.records().unwrap());
        let traffic = Traffic::between(&pods[0], &pods[1]).and(Traffic::between(&pods[1], &pods[0]));
        bed.wait_until_still(1);
        let (monitor, operations) = (Monitor::start(&netns), bed.operations(1));
        for (from, to) in [("eth0", "ens3"), ("ens3", "enp0s3"), ("enp0s3", "eth0")] {
            netns.ip(&format!("link set {from} name {to}")).unwrap();
            eventually(SOON, "the agent to see the name", || {
                let named = format!("link=\"{to}\"");
                let log = bed.agent(1).log();
                log.lines().any(|line| line.contains("underlay link renamed") && line.contains(&named))
            });
            traffic.go_on(20);
        }
        bed.wait_until_still(1);
        let deleted: Vec<_> = monitor.seen().into_iter().filter(|line| line.contains("Deleted")).collect();
        assert_eq!(deleted, [""; 0], "{iface:?}");
        assert_eq!(bed.operations(1), operations, "{iface:?}: {}", bed.agent(1).log());
        assert_eq!(bed.store.records().unwrap(), records);
        bed.wait_ready(1);
        traffic.assert_no_loss();
    }
}

fn a_virtual_address_is_not_published(case: &'static BackendCase) {
    keeps_its_address(case, |_| new_folder());
}

/// Virtual addresses come before the first start and between runs, listed before the node's own.
pub(crate) fn keeps_its_address<S: Store>(case: &'static BackendCase, store: impl FnOnce(&Cluster) -> S) {
    let mut bed = bed(case, store);
    let netns = bed.netns(1).clone();
    let own = bed.cluster.node(1).addresses("eth0").unwrap();
    let has_v6 = own.iter().any(ipnetwork::IpNetwork::is_ipv6);
    // The own IPv4 address comes behind a virtual one; new IPv6 addresses always come first.
    netns.ip(&format!("address del {} dev eth0", own[0])).unwrap();
    netns.ip("address add 192.168.77.100/32 dev eth0").unwrap();
    bed.cluster.node(1).link_up("eth0").unwrap();
    if has_v6 {
        netns.ip("address add fd00:77::100/128 dev eth0 nodad").unwrap();
    }
    start(&mut bed, &["--iface=eth0"]);
    let (key, before) = bed.record_of(1);
    for stored in [true, false] {
        bed.stop(1);
        // These look like the node's own, and are first of their kind.
        let add = |addr: &str| netns.ip(&format!("address add {addr} dev eth0")).unwrap();
        if stored {
            netns.ip(&format!("address del {} dev eth0", own[0])).unwrap();
            add("192.168.77.101/24");
            add(&format!("{} noprefixroute", own[0]));
            netns.ip("address del 192.168.77.100/32 dev eth0").unwrap();
            if has_v6 {
                add("fd00:77::101/64 nodad");
            }
            bed.cluster.node(1).link_up("eth0").unwrap();
        } else {
            // As after a boot: the store alone knows.
            std::fs::remove_dir_all(subnet_file(1).parent().unwrap()).unwrap();
        }
        bed.start(1);
        let (now, record) = bed.record_of(1);
        let ips = |record: &Value| (record["PublicIP"].clone(), record["PublicIPv6"].clone());
        assert_eq!((&now, ips(&record)), (&key, ips(&before)), "{stored}: {}", chosen(&bed, 1));
        assert_eq!(bed.store.records().unwrap().len(), 3);
    }
    (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
}

fn what_the_overlay_made_is_not_chosen(case: &'static BackendCase) {
    let mut bed = bed(case, |_| new_folder());
    start(&mut bed, &[]);
    let pod = bed.pod(1);
    let (netns, records) = (bed.netns(1).clone(), bed.store.records().unwrap());
    let [(device, ..), (device6, ..)] = case.sides();
    let has_v6 = bed.cluster.node(1).ipv6().is_some();
    // As a DHCP client does on any link: cheaper than the default route that is.
    let gateways = |family: &str| {
        let routes = netns.ip(&format!("{family} route show default")).unwrap();
        routes.split_whitespace().skip_while(|word| *word != "via").nth(1).map(str::to_owned)
    };
    for (family, device) in [("-4", device), ("-6", device6)].into_iter().take(if has_v6 { 2 } else { 1 }) {
        let gateway = gateways(family).unwrap();
        netns.ip(&format!("{family} route del default")).unwrap();
        netns.ip(&format!("{family} route add default via {gateway} dev eth0 metric 2000")).unwrap();
        if device != "eth0" && device != "flannel0" {
            netns.ip(&format!("{family} route add default dev {device} metric 5")).unwrap();
        }
        netns.ip(&format!("{family} route add default dev cni0 metric 6")).unwrap();
    }
    let vtep = || netns.ip("-o link show type vxlan").unwrap();
    let before = vtep();
    bed.kill(1);
    bed.spawn_by(1, &[], &[]);
    bed.wait_ready(1);
    assert!(chosen(&bed, 1).contains("link=\"eth0\""), "{}", chosen(&bed, 1));
    assert_eq!((bed.store.records().unwrap(), vtep()), (records, before));

    // A pattern that the pods' bridge matches, too, and matches first.
    netns.ip("link add nic9 type veth peer name far9").unwrap();
    netns.ip("link set far9 up").unwrap();
    netns.ip("link set nic9 up").unwrap();
    netns.ip("address add 10.99.0.11/24 dev nic9").unwrap();
    netns.ip("address add fd00:99::11/64 dev nic9 nodad").unwrap();
    for (flags, link) in
        [(&["--iface-regex=^10[.]|^fd00:(99|10:)"][..], "nic9"), (&["--iface=cni0", "--iface=eth0"], "eth0")]
    {
        bed.stop(1);
        bed.spawn_by(1, flags, &[]);
        // By nic9 host-gw reaches none of the other nodes, which is red.
        eventually(SOON, "the subnet file", || bed.agent(1).log().contains("subnet file is in place"));
        assert!(chosen(&bed, 1).contains(&format!("link=\"{link}\"")), "{flags:?}: {}", chosen(&bed, 1));
        let published: Vec<String> = bed.store.records().unwrap().into_values().collect();
        assert!(!published.iter().any(|record| record.contains("10.244.")), "{published:?}");
    }
    assert!(bed.agent(1).log().contains("not the underlay interface candidate=cni0 reason=it has 10.244."));
    // Alone it is refused by name, with the reason.
    bed.stop(1);
    for flag in ["--iface=cni0".to_owned(), format!("--iface-can-reach={}", pod.addresses()[0].ip())] {
        bed.spawn_by(1, &[&flag], &[]);
        let why = "no underlay interface: cni0: it has 10.244.";
        eventually(SOON, "the refusal", || bed.agent(1).log().contains(why));
        bed.kill(1);
    }
    // What the operator wrote is shown as it was written.
    bed.spawn_by(1, &[r"--iface-regex=^10\.98\."], &[]);
    let why = r#"regular expression "^10\.98\.": nothing matches it"#;
    eventually(SOON, "the pattern", || bed.agent(1).log().contains(why));
    drop(pod);
}

fn all_next_hops_by_one_nic_are_that_nic(case: &'static BackendCase) {
    let mut bed = bed(case, |_| new_folder());
    let netns = bed.netns(1).clone();
    netns.ip("route replace default nexthop via 192.168.77.2 nexthop via 192.168.77.3").unwrap();
    if bed.cluster.node(1).ipv6().is_some() {
        netns.ip("-6 route flush default").unwrap();
        netns.ip("-6 route add default via fd00:77::2 dev eth0").unwrap();
        netns.ip("-6 route append default via fd00:77::3 dev eth0").unwrap();
    }
    netns.ip("link property add dev eth0 altname enp0s3").unwrap();
    start(&mut bed, &[]);
    assert!(chosen(&bed, 1).contains("link=\"eth0\""), "{}", chosen(&bed, 1));
    bed.stop(1);
    bed.spawn_by(1, &["--iface=enp0s3"], &[]);
    bed.wait_ready(1);
    assert!(http_get(&netns, 8471, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(chosen(&bed, 1).contains("also named enp0s3"), "{}", chosen(&bed, 1));
}
