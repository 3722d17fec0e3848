//! The rows of WireGuard in the kernel. They need the kernel's module, which not every machine that runs tests has.

mod vm {
    use std::net::IpAddr;
    use std::path::Path;

    use flannel_lab::cluster::{Cluster, Families};
    use flannel_lab::netns::Netns;
    use flannel_lab::ping::system_ping;
    use flannel_lab::pod::Pod;
    use flannel_lab::sandbox::in_sandbox;
    use flannel_lab::test_name;
    use flannel_lab::wait::eventually;

    use crate::backends::{BackendCase, VXLAN, WIREGUARD, WIREGUARD_SINGLE};
    use crate::harness::{Bed, Folder, SOON, Store, Traffic, assert_all_reach_all, new_folder, sides};
    use crate::{connectivity, repair, restart, underlay};

    macro_rules! rows {
        ($($name:ident: $run:expr;)+) => {
            $(
                #[test]
                #[ignore = "needs a kernel with wireguard; .ci/vm --all runs it in a VM"]
                fn $name() {
                    in_sandbox(test_name!(), || $run);
                }
            )+
        };
    }

    rows!(
        pods_reach_each_other: connectivity::every_pod_pings_every_other(&WIREGUARD, |_| new_folder());
        killed_and_started_again: restart::kill_and_start_again(&WIREGUARD, |_| new_folder());
        damage_is_repaired: repair::damaged_by_hand(&WIREGUARD, |_| new_folder());
        damage_inside_of_the_device_is_repaired: damage_inside();
        what_is_not_ours_stays: repair::what_is_not_ours_stays(&WIREGUARD);
        the_nic_goes_and_comes_back: repair::the_underlay_nic_goes_and_comes_back(&WIREGUARD);
        the_mtu_follows: repair::the_mtu_follows_the_underlay(&WIREGUARD);
        a_changed_address_is_followed: underlay::follows(&WIREGUARD, |_| new_folder());
        keys_of_the_config_are_switched_under_traffic: keys_are_switched();
        one_device_carries_both_families: one_device();
        nothing_leaves_unencrypted: nothing_leaves();
        from_vxlan_and_back: from_vxlan();
        from_go_and_back: from_go();
    );

    #[cfg(feature = "etcd")]
    rows!(
        no_outage_of_the_store_changes_the_datapath: crate::outages::change_nothing(&WIREGUARD, crate::etcd::start);
    );

    fn bed(case: &'static BackendCase, nodes: u8) -> Bed<Folder> {
        let cluster = Cluster::builder().nodes(nodes).families(Families::Dual).build().unwrap();
        let mut bed = Bed::new(cluster, new_folder(), case, Families::Dual);
        bed.start_all();
        (1..=nodes).for_each(|number| bed.wait_for_peers(number, usize::from(nodes) - 1));
        bed
    }

    fn sh(netns: &Netns, command: &str) -> String {
        netns.run("sh", &["-c", command]).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// What `wg` tells of a device: the lines of the device, and those of each peer.
    fn content(netns: &Netns, device: &str) -> Vec<String> {
        let text = sh(netns, &format!("wg showconf {device}"));
        let mut blocks: Vec<String> = text.split("\n\n").map(|block| block.trim().to_owned()).collect();
        blocks.sort_unstable();
        blocks
    }

    /// The kernel tells nobody of such damage: errors that packets meet tell sooner than the resync.
    fn damage_inside() {
        let bed = bed(&WIREGUARD, 2);
        let netns = bed.netns(1);
        let pods = [bed.pod(1), bed.pod(2)];
        Traffic::between(&pods[0], &pods[1]).assert_no_loss();
        let devices = ["flannel-wg", "flannel-wg-v6"];
        let want = devices.map(|device| content(netns, device));
        for (port, device) in (4711..).zip(devices) {
            let peer = sh(netns, &format!("wg show {device} peers")).trim().to_owned();
            let damages = [
                format!("wg set {device} peer {peer} remove"),
                format!("wg set {device} peer {peer} allowed-ips ''"),
                format!("wg set {device} peer {peer} persistent-keepalive 7"),
                format!("wg set {device} listen-port {port}"),
                format!("wg genkey >/run/key; wg set {device} private-key /run/key"),
                format!("wg set {device} peer $(wg genkey | wg pubkey) allowed-ips 10.244.250.0/24"),
            ];
            for damage in damages {
                sh(netns, &damage);
            }
        }
        assert_ne!(devices.map(|device| content(netns, device)), want);
        eventually(4 * SOON, "the devices as they were", || {
            let have = devices.map(|device| content(netns, device));
            if have == want { Ok(()) } else { Err(format!("{have:?}")) }
        });
        // With the private key the sessions went.
        for addr in pods[1].addresses() {
            eventually(SOON, "packets again", || {
                flannel_lab::ping::reaches(pods[0].netns(), addr.ip()).unwrap()
            });
        }
        assert_all_reach_all(&pods, WIREGUARD.mtu(Families::Dual, 1500));
    }

    /// Counts what leaves a node by its NIC and is from a pod or for one, as it is or in a VXLAN tunnel: the outer
    /// packets of WireGuard have the addresses of nodes.
    struct Plain<'a>(Vec<&'a Netns>);

    impl<'a> Plain<'a> {
        fn count(on: impl IntoIterator<Item = &'a Netns>) -> Self {
            let nodes: Vec<_> = on.into_iter().collect();
            for netns in &nodes {
                let rules = [
                    "add table inet plain",
                    "add chain inet plain out { type filter hook postrouting priority 300; }",
                    "add rule inet plain out oifname eth0 ip daddr 10.244.0.0/16 counter",
                    "add rule inet plain out oifname eth0 ip6 daddr fd00:10:244::/56 counter",
                    "add rule inet plain out oifname eth0 udp dport 8472 counter",
                ];
                for rule in rules {
                    netns.run("nft", &[rule]).unwrap();
                }
            }
            Self(nodes)
        }

        /// The lines with a counter that is not zero.
        fn seen(&self) -> Vec<String> {
            let lists = self.0.iter().map(|netns| netns.run("nft", &["list table inet plain"]).unwrap());
            let is_counted = |line: &&str| line.contains("counter") && !line.contains("packets 0 ");
            lists
                .flat_map(|list| list.lines().filter(is_counted).map(str::to_owned).collect::<Vec<_>>())
                .collect()
        }
    }

    fn nothing_leaves() {
        let cluster = Cluster::builder().nodes(2).families(Families::Dual).build().unwrap();
        let mut bed = Bed::new(cluster, new_folder(), &WIREGUARD, Families::Dual);
        // Node 2 is a gateway for all that has no other way, so that what is not held back leaves.
        for (number, other) in [(1, 2), (2, 1)] {
            let to = bed.node(other).addresses("eth0").unwrap();
            for addr in
                to.iter().map(ipnetwork::IpNetwork::ip).filter(|addr| !addr.to_string().starts_with("fe80"))
            {
                let family = if addr.is_ipv4() { "-4" } else { "-6" };
                bed.netns(number).ip(&format!("{family} route replace default via {addr} dev eth0")).unwrap();
            }
        }
        bed.start(1);
        let here = bed.pod(1);
        let netns = [bed.netns(1).clone(), bed.netns(2).clone()];
        let plain = Plain::count(&netns);
        let send = |to: &str| _ = system_ping(here.netns(), to.parse().unwrap(), 100, 3).unwrap();
        // A peer that is not known yet, one with another backend, one without a key.
        let (key, value) = VXLAN.record(80);
        bed.store.put(&key, &value).unwrap();
        let (key, value) = WIREGUARD.record(81);
        bed.store.put(&key, &value.replace("PublicKey", "NoKey")).unwrap();
        ["10.244.41.2", "10.244.80.2", "10.244.81.2", "fd00:10:244:50::2"].into_iter().for_each(send);
        bed.start(2);
        let there = bed.pod(2);
        (1..=2).for_each(|number| bed.wait_for_peers(number, 1));
        let pods = [here, there];
        Traffic::between(&pods[0], &pods[1]).assert_no_loss();
        // The device goes while packets flow, with and without an agent.
        let traffic = Traffic::between(&pods[0], &pods[1]);
        for _ in 0..3 {
            netns[0].ip("link del flannel-wg").unwrap();
            bed.wait_for_peers(1, 1);
            traffic.go_on(20);
        }
        bed.kill(1);
        netns[0].ip("link del flannel-wg").unwrap();
        netns[0].ip("link del flannel-wg-v6").unwrap();
        for addr in pods[1].addresses() {
            let report = system_ping(pods[0].netns(), addr.ip(), 100, 3).unwrap();
            assert_eq!(report.received, 0, "{}", report.output);
        }
        bed.start(1);
        bed.wait_for_peers(1, 1);
        traffic.go_on(20);
        drop(traffic.stop());
        assert_eq!(plain.seen(), Vec::<String>::new());
        // It would have been seen.
        let via = bed.node(2).ipv4().unwrap();
        netns[0].ip(&format!("route add 10.244.250.0/24 via {via} dev eth0")).unwrap();
        _ = system_ping(pods[0].netns(), "10.244.250.1".parse().unwrap(), 100, 1).unwrap();
        assert_eq!(plain.seen().len(), 1);
    }

    fn keys_are_switched() {
        let mut bed = bed(&WIREGUARD, 2);
        let pods = [bed.pod(1), bed.pod(2)];
        let traffic = Traffic::between(&pods[0], &pods[1]);
        let devices =
            [bed.netns(1).link_index("flannel-wg").unwrap(), bed.netns(2).link_index("flannel-wg").unwrap()];
        let psk = sh(bed.netns(1), "wg genpsk").trim().to_owned();
        let keys =
            format!(r#""Type":"wireguard","PSK":"{psk}","PersistentKeepaliveInterval":5,"ListenPort":4000"#);
        let config = WIREGUARD.config(Families::Dual).replace(r#""Type":"wireguard""#, &keys);
        bed.store.put_config(&config).unwrap();
        for number in 1..=2 {
            bed.stop(number);
            bed.start(number);
        }
        for number in 1..=2 {
            eventually(SOON, "the keys in force", || {
                let text = sh(bed.netns(number), "wg showconf flannel-wg");
                let is_there = ["ListenPort = 4000", "PersistentKeepalive = 5", ":4000", &psk];
                if is_there.iter().all(|it| text.contains(it)) { Ok(()) } else { Err(text) }
            });
        }
        traffic.go_on(100);
        let now =
            [bed.netns(1).link_index("flannel-wg").unwrap(), bed.netns(2).link_index("flannel-wg").unwrap()];
        assert_eq!(now, devices, "the same devices");
        for number in 1..=2 {
            assert!(!bed.agent(number).log().contains(&psk), "no log has the key");
        }
    }

    fn one_device() {
        let bed = bed(&WIREGUARD_SINGLE, 3);
        let pods: Vec<Pod> = (1..=3).map(|number| bed.pod(number)).collect();
        assert_all_reach_all(&pods, WIREGUARD_SINGLE.mtu(Families::Dual, 1500));
        for number in 1..=3 {
            assert_eq!(bed.netns(number).link_index("flannel-wg-v6").unwrap(), None);
            let endpoints = sh(bed.netns(number), "wg show flannel-wg endpoints");
            assert_eq!(endpoints.matches("]:51820").count(), 2, "{endpoints}");
        }
    }

    fn from_vxlan() {
        let mut bed = bed(&VXLAN, 3);
        let pods: Vec<Pod> = (1..=3).map(|number| bed.pod(number)).collect();
        switch(&mut bed, &WIREGUARD);
        let netns: Vec<Netns> = (1..=3).map(|number| bed.netns(number).clone()).collect();
        {
            let plain = Plain::count(&netns);
            for number in 1..=3 {
                let state = bed.state(number).to_string();
                assert!(!state.contains("flannel.1 ") && state.contains("flannel-wg"), "{state}");
            }
            assert_all_reach_all(&pods, WIREGUARD.mtu(Families::Dual, 1500));
            assert_eq!(plain.seen(), Vec::<String>::new());
        }
        switch(&mut bed, &VXLAN);
        for number in 1..=3 {
            let state = bed.state(number).to_string();
            assert!(!state.contains("flannel-wg") && !state.contains("blackhole"), "{state}");
        }
        assert_all_reach_all(&pods, WIREGUARD.mtu(Families::Dual, 1500));
    }

    fn switch(bed: &mut Bed<Folder>, to: &'static BackendCase) {
        bed.store.put_config(&to.config(Families::Dual)).unwrap();
        for number in 1..=3 {
            bed.stop(number);
            bed.start(number);
        }
        bed.case = to;
        (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
    }

    /// Node 1 as a Go agent that was killed left it: devices, peers, and a route for the whole network.
    fn from_go() {
        let mut bed = bed(&WIREGUARD, 2);
        let pods = [bed.pod(1), bed.pod(2)];
        let netns = bed.netns(1).clone();
        let of_ours = bed.state(1);
        bed.kill(1);
        std::fs::remove_file("/run/flannel/node1/subnet.env.state").unwrap();
        for line in ["route flush proto 102", "-6 route flush proto 102"] {
            netns.ip(line).unwrap();
        }
        lay_out(&bed, &netns);
        let traffic = Traffic::between(&pods[0], &pods[1]);
        traffic.go_on(20);
        let indexes = ["flannel-wg", "flannel-wg-v6"].map(|device| netns.link_index(device).unwrap());
        bed.start(1);
        bed.wait_for_state(1, "as ours has it", &of_ours);
        traffic.go_on(100);
        let now = ["flannel-wg", "flannel-wg-v6"].map(|device| netns.link_index(device).unwrap());
        assert_eq!(now, indexes, "the same devices, with their sessions");
        traffic.assert_no_loss();
        // And back: Go makes its devices again at each start, which ends all sessions.
        bed.stop(1);
        let back = Traffic::between(&pods[1], &pods[0]);
        lay_out(&bed, &netns);
        for addr in pods[1].addresses().iter().map(ipnetwork::IpNetwork::ip) {
            eventually(SOON, "packets again", || flannel_lab::ping::reaches(pods[0].netns(), addr).unwrap());
        }
        drop(back.stop());
    }

    /// What Go flannel does at a start on node 1, to devices that were there or not.
    fn lay_out(bed: &Bed<Folder>, netns: &Netns) {
        let (key, value) = bed.record_of(1);
        let (theirs, value_of_two) = bed.record_of(2);
        let own = sides(bed.case, &key, &value);
        let peers = sides(bed.case, &theirs, &value_of_two);
        let key_file = Path::new("/run/flannel/node1/wgkey");
        let data = [("BackendData", 51820), ("BackendV6Data", 51821)];
        for (((own, _), (_, peer)), (data, port)) in own.iter().zip(&peers).zip(data) {
            let device = peer.device;
            let public = value_of_two[data]["PublicKey"].as_str().unwrap();
            let endpoint = match peer.underlay.parse().unwrap() {
                IpAddr::V4(addr) => format!("{addr}:{port}"),
                IpAddr::V6(addr) => format!("[{addr}]:{port}"),
            };
            sh(
                netns,
                &format!("ip link del {device} 2>/dev/null || true; ip link add {device} type wireguard"),
            );
            sh(
                netns,
                &format!(
                    "wg set {device} private-key {} listen-port {port} peer {public} endpoint {endpoint} allowed-ips {}",
                    key_file.display(),
                    peer.subnet
                ),
            );
            for command in (bed.case.as_go_leaves_it)(own, peer) {
                let v6 = own.base.contains(':');
                sh(netns, &if v6 { command.replace("ip route", "ip -6 route") } else { command });
            }
        }
    }
}
