//! Snapshots have the text shape of what was recorded from nodes that run Go flannel.

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::kernel_state::KernelState;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

#[test]
fn a_vxlan_node_looks_as_recorded() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder()
            .nodes(1)
            .families(Families::Dual)
            .build()
            .unwrap();
        let netns = cluster.node(1).netns();
        let mac = "22:bb:dc:8b:da:2b";
        let lines = [
            "link add flannel.1 mtu 1450 type vxlan id 1 local 192.168.77.11 dev eth0 \
             dstport 8472 nolearning",
            "address add 10.244.82.0/32 dev flannel.1",
            "link set flannel.1 up",
            "route add 10.244.37.0/24 via 10.244.37.0 dev flannel.1 onlink",
            &format!("neigh add 10.244.37.0 lladdr {mac} dev flannel.1 nud permanent"),
        ];
        netns.ip_batch(&lines.map(str::to_owned)).unwrap();
        netns
            .bridge(&format!("fdb add {mac} dev flannel.1 dst 192.168.77.12"))
            .unwrap();

        let state = KernelState::of(netns).unwrap();
        assert_eq!(
            state.routes,
            [
                "unicast 10.244.37.0/24 via 10.244.37.0 dev flannel.1 proto boot scope global onlink ",
                "unicast 192.168.77.0/24 dev eth0 proto kernel scope link src 192.168.77.11 ",
                "unicast default via 192.168.77.1 dev eth0 proto boot scope global ",
            ]
        );
        assert!(
            state.routes6.contains(
                &"unicast fd00:77::/64 dev eth0 proto kernel scope global metric 256 pref medium"
                    .into()
            )
        );
        assert!(state.routes6.contains(
            &"unicast default via fd00:77::1 dev eth0 proto boot scope global metric 1024 pref medium"
                .into()
        ));
        assert_eq!(
            state.neighbours,
            [format!("10.244.37.0 dev flannel.1 lladdr {mac} PERMANENT ")]
        );
        assert_eq!(
            state.fdb,
            [format!(
                "{mac} dev flannel.1 dst 192.168.77.12 self permanent"
            )]
        );

        let vxlan = state.of_link("flannel.1");
        assert_eq!((vxlan.links.len(), vxlan.routes.len()), (1, 1), "{vxlan}");
        assert!(vxlan.links[0].contains("port 8472") && vxlan.links[0].contains("learning false"));
        assert!(
            vxlan
                .addresses
                .contains(&"flannel.1 10.244.82.0/32 scope global".into()),
            "{vxlan}"
        );
        assert_eq!(KernelState::of(netns).unwrap(), state);
    });
}
