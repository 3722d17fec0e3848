//! The rows of ipip. They need the kernel's module, which not every machine that runs tests has.

mod vm {
    use flannel_lab::cluster::{Cluster, Families};
    use flannel_lab::pod::Pod;
    use flannel_lab::wait::eventually;

    use crate::backends::{BackendCase, IPIP, IPIP_DIRECT, VXLAN, rows};
    use crate::harness::{Bed, Folder, SOON, Store, Traffic, assert_all_reach_all, new_folder, sides};
    use crate::{connectivity, repair, restart, underlay};

    rows!(
        #[ignore = "needs a kernel with ipip; .ci/vm --all runs it in a VM"]
        pods_reach_each_other: connectivity::every_pod_pings_every_other(&IPIP, |_| new_folder());
        pods_reach_each_other_directly: connectivity::every_pod_pings_every_other(&IPIP_DIRECT, |_| new_folder());
        killed_and_started_again: restart::kill_and_start_again(&IPIP, |_| new_folder());
        damage_is_repaired: repair::damaged_by_hand(&IPIP, |_| new_folder());
        damage_is_repaired_on_direct_routes: repair::damaged_by_hand(&IPIP_DIRECT, |_| new_folder());
        what_is_not_ours_stays: repair::what_is_not_ours_stays(&IPIP);
        the_nic_goes_and_comes_back: repair::the_underlay_nic_goes_and_comes_back(&IPIP);
        the_mtu_follows: repair::the_mtu_follows_the_underlay(&IPIP);
        a_changed_address_is_followed: underlay::follows(&IPIP, |_| new_folder());
        a_key_is_switched_under_traffic: a_key_is_switched();
        from_vxlan_and_back: from_vxlan();
        from_go_and_back: from_go();
        a_link_of_that_name_stays_and_is_named: foreign_link();
    );

    #[cfg(feature = "etcd")]
    rows!(
        #[ignore = "needs a kernel with ipip; .ci/vm --all runs it in a VM"]
        no_outage_of_the_store_changes_the_datapath: crate::outages::change_nothing(&IPIP, crate::etcd::start);
    );

    fn bed(nodes: u8) -> Bed<Folder> {
        let cluster = Cluster::builder().nodes(nodes).families(Families::V4).build().unwrap();
        let mut bed = Bed::new(cluster, new_folder(), &IPIP, Families::V4);
        bed.start_all();
        (1..=nodes).for_each(|number| bed.wait_for_peers(number, usize::from(nodes) - 1));
        bed
    }

    fn a_key_is_switched() {
        let mut bed = bed(2);
        let pods = [bed.pod(1), bed.pod(2)];
        let (want, traffic) = (bed.state(1), Traffic::between(&pods[0], &pods[1]));
        for to in [&IPIP_DIRECT, &IPIP] {
            bed.store.put_config(&to.config(Families::V4)).unwrap();
            bed.stop(1);
            bed.start(1);
            bed.case = to;
            bed.wait_for_peers(1, 1);
            traffic.go_on(100);
        }
        traffic.assert_no_loss();
        bed.wait_for_state(1, "the state of the first time", &want);
        assert_all_reach_all(&pods, IPIP.mtu(Families::V4, 1500));
    }

    fn from_vxlan() {
        let mut bed = bed(3);
        let pods: Vec<Pod> = (1..=3).map(|number| bed.pod(number)).collect();
        let want: Vec<_> = (1..=3).map(|number| bed.state(number)).collect();
        switch(&mut bed, &VXLAN);
        for number in 1..=3 {
            let state = bed.state(number).to_string();
            assert!(!state.contains("flannel.ipip") && state.contains("flannel.1"), "{state}");
            assert!(bed.agent(number).log().contains("device of an earlier backend removed"));
        }
        assert_all_reach_all(&pods, VXLAN.mtu(Families::V4, 1500));
        switch(&mut bed, &IPIP);
        for (number, want) in (1..=3).zip(&want) {
            bed.wait_for_state(number, "the state of the first time", want);
        }
        assert_all_reach_all(&pods, VXLAN.mtu(Families::V4, 1500));
    }

    fn switch(bed: &mut Bed<Folder>, to: &'static BackendCase) {
        bed.store.put_config(&to.config(Families::V4)).unwrap();
        for number in 1..=3 {
            bed.stop(number);
            bed.start(number);
        }
        bed.case = to;
        (1..=3).for_each(|number| bed.wait_for_peers(number, 2));
    }

    /// Node 1 as a Go agent left it, with the routes of nodes that are there and of one that has gone.
    fn from_go() {
        let mut bed = bed(3);
        let pods = [bed.pod(1), bed.pod(2)];
        let netns = bed.netns(1).clone();
        let run = |command: &str| {
            netns.run("sh", &["-c", command]).unwrap_or_else(|error| panic!("{command}: {error}"))
        };
        bed.kill(1);
        std::fs::remove_file("/run/flannel/node1/subnet.env.state").unwrap();
        run("ip link del flannel.ipip");
        let (key, value) = bed.record_of(1);
        let (own, _) = sides(bed.case, &key, &value).remove(0);
        let peers = [bed.remotes(2).remove(0), bed.remotes(3).remove(0)];
        for (at, peer) in peers.iter().enumerate() {
            let commands = (IPIP.as_go_leaves_it)(&own, peer);
            let is_for_all = |command: &String| command.starts_with("ip route");
            commands
                .iter()
                .filter(|command| at == 0 || is_for_all(command))
                .for_each(|command| _ = run(command));
        }
        let of_go = bed.state(1);
        run(&format!(
            "ip route add 10.244.250.0/24 via {} dev flannel.ipip onlink proto boot",
            peers[0].underlay
        ));
        let index = netns.link_index("flannel.ipip").unwrap();
        let traffic = Traffic::between(&pods[0], &pods[1]);
        traffic.go_on(20);
        bed.start(1);
        bed.wait_for_state(1, "all as Go left it, without the route of the node that has gone", &of_go);
        traffic.go_on(100);
        // And back: Go reuses the device (kind, local and remote fit), finds its address, and counts the routes as its own.
        bed.stop(1);
        assert_eq!(netns.link_index("flannel.ipip").unwrap(), index, "the same device all the time");
        let show = run("ip -d link show flannel.ipip");
        assert!(show.contains(&format!("ipip any remote any local {} ", own.underlay)), "{show}");
        run("ip link set flannel.ipip mtu 1480 up");
        run(&format!("ip route del {} via {} dev flannel.ipip", peers[1].subnet, peers[1].underlay));
        traffic.go_on(20);
        traffic.assert_no_loss();
    }

    /// A link that is in the way stays, whether it came before the agent or while it ran. A start ends with the reason.
    fn foreign_link() {
        let mut bed = bed(2);
        let netns = bed.netns(1).clone();
        let pods = [bed.pod(1), bed.pod(2)];
        let take_the_name = || {
            netns.ip("link del flannel.ipip").unwrap();
            // The agent may be sooner.
            netns.ip("link add flannel.ipip type bridge").is_ok()
        };
        let is_named = |log: &str| {
            log.contains("no IPIP tunnel (bridge)") && log.contains("ip link set flannel.ipip name")
        };
        eventually(SOON, "the name taken while the agent runs", || take_the_name().then_some(()).ok_or(()));
        eventually(SOON, "a word about the link and the way out", || {
            let log = bed.agent(1).log();
            if is_named(&log) { Ok(()) } else { Err(log) }
        });
        bed.kill(1);
        bed.spawn(1, &[]);
        let status = bed.agent(1).wait(SOON).unwrap();
        let log = bed.agent(1).log();
        assert!(!status.success() && is_named(&log), "{status}: {log}");
        assert!(netns.ip("-d link show flannel.ipip").unwrap().contains("bridge"), "it stays");
        netns.ip("link del flannel.ipip").unwrap();
        bed.start(1);
        bed.wait_for_peers(1, 1);
        assert_all_reach_all(&pods, IPIP.mtu(Families::V4, 1500));
    }
}
