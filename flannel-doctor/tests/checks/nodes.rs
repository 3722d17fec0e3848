//! Two nodes, and what happens on the way between them.

use flannel_core::netns::Netns;
use flannel_doctor::Verdict::{Failure, Note};
use flannel_lab::netns::Netns as Node;
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

use super::common::{Case, state};

/// Node `own` of the two, with what an agent would put there.
fn build(node: &Node, own: u8, other: u8) {
    let lines = [
        format!("address add 192.0.2.{own}/24 dev eth0"),
        "link set eth0 up".to_owned(),
        format!(
            "link add flannel.1 address 02:00:00:00:00:0{own} type vxlan id 1 dev eth0 local 192.0.2.{own} dstport 8472 nolearning"
        ),
        "link set flannel.1 mtu 1450 up".to_owned(),
        format!("address add 10.244.{own}.0/32 dev flannel.1"),
        format!("neighbour add 10.244.{other}.0 lladdr 02:00:00:00:00:0{other} dev flannel.1 nud permanent"),
        format!("route add 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink"),
    ];
    node.ip_batch(&lines).unwrap();
    node.bridge(&format!("fdb append 02:00:00:00:00:0{other} dev flannel.1 dst 192.0.2.{other}")).unwrap();
}

#[test]
fn what_is_on_the_way() {
    in_sandbox(test_name!(), || {
        let (a, b) = (Node::add("a").unwrap(), Node::add("b").unwrap());
        a.ip("link add eth0 type veth peer name eth0 netns b").unwrap();
        build(&a, 1, 2);
        build(&b, 2, 1);
        let case = Case::of_netns(Netns::open(a.path()).unwrap());
        case.agent_files(&state());
        case.passes("tunnel-reach");
        case.passes("mtu-path");

        // A hole that tells nobody.
        let rules = "table inet hole { chain in { type filter hook prerouting priority -400; meta l4proto icmp meta length > 1400 drop; }; }";
        b.run("nft", &[rules]).unwrap();
        case.fails("mtu-path", Failure, "at most 1400 bytes reach 192.0.2.2");

        // Only one direction of the tunnel, which is enough.
        b.run(
            "nft",
            &["table inet block { chain in { type filter hook input priority 0; udp dport 8472 drop; }; }"],
        )
        .unwrap();
        case.fails(
            "tunnel-reach",
            Failure,
            "node 192.0.2.2 answers on the underlay, but 10.244.2.0 does not through the tunnel",
        );
        b.ip("link set eth0 down").unwrap();
        case.fails("tunnel-reach", Note, "node 192.0.2.2 answers neither");
        case.skips("mtu-path", "no peer answers");
    });
}
