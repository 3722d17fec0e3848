//! Firewalls of others that come and go while the agent runs, and what the host lacks.

use std::time::Duration;

use flannel_lab::ping::reaches;
use flannel_lab::sandbox::in_sandbox_within;
use flannel_lab::test_name;
use flannel_lab::wait::eventually;

use super::packets::Stream;
use super::{Manager, World, sh};
use crate::backends::{BackendCase, HOST_GW, VXLAN};
use crate::harness::SOON;

/// As firewalld has it in nftables: the policy accepts, and the last rules reject.
const FIREWALLD: &str = "nft -f - <<'END'
table inet firewalld {
  chain filter_FWD_public {
    reject with icmpx type admin-prohibited
  }
  chain filter_FORWARD_ZONES {
    goto filter_FWD_public
  }
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname \"lo\" accept
    ct state invalid drop
    jump filter_FORWARD_ZONES
    reject with icmpx type admin-prohibited
  }
}
END";

/// What its trusted zone adds.
const TRUSTED: &str = "nft insert rule inet firewalld filter_FORWARD_ZONES ip saddr 10.244.0.0/16 accept
    nft insert rule inet firewalld filter_FORWARD_ZONES ip6 saddr fd00:10:244::/56 accept";

impl World {
    /// Whether the pod of node 1 reaches that of node 2, in each family.
    fn pods_reach(&self) -> [bool; 2] {
        [false, true].map(|v6| reaches(self.pods[0].netns(), self.pod(2, v6)).unwrap())
    }

    #[track_caller]
    fn wait_for_readyz(&self, status: &str, is: impl Fn(&str) -> bool) {
        eventually(SOON, status, || {
            let said = self.readyz(1);
            if said.starts_with(&format!("HTTP/1.1 {status}")) && is(&said) { Ok(()) } else { Err(said) }
        });
    }
}

fn firewalld_under_a_running_agent(case: &'static BackendCase) {
    for manager in [Manager::Nftables, Manager::IptablesNft] {
        let world = World::new(case, manager, &["--ip-masq"]);
        eventually(SOON, "pods to reach each other", || world.pods_reach() == [true; 2]);
        sh(world.node(1), FIREWALLD);
        world.wait_for_readyz("503", |said| {
            let parts = [
                "chain filter_FORWARD of table inet firewalld drops forwarded packets (IPv4 of pods to other nodes",
                "; IPv6 of pods to other nodes",
                "by the rule `reject with icmpx admin-prohibited` of chain filter_FWD_public",
                "`firewall-cmd --permanent --zone=trusted --add-source=10.244.0.0/16`",
            ];
            parts.iter().all(|part| said.contains(part))
        });
        assert_eq!(world.pods_reach(), [false; 2], "{manager:?}: they are really cut");
        assert!(world.bed.agent(1).log().contains("a chain drops forwarded traffic"));
        sh(world.node(1), TRUSTED);
        world.wait_for_readyz("200", |said| !said.contains("firewalld"));
        assert_eq!(world.pods_reach(), [true; 2], "{manager:?}: as its advice says");
        sh(world.node(1), &format!("nft delete table inet firewalld; {FIREWALLD}"));
        world.wait_for_readyz("503", |said| said.contains("filter_FORWARD"));
        sh(world.node(1), "nft delete table inet firewalld");
        world.wait_for_readyz("200", |said| !said.contains("firewalld"));
        assert_eq!(world.pods_reach(), [true; 2], "{manager:?}");
    }
}

#[test]
fn firewalld_that_rejects_pods_is_named_with_vxlan() {
    in_sandbox_within(Duration::from_mins(3), test_name!(), || firewalld_under_a_running_agent(&VXLAN));
}

#[test]
fn firewalld_that_rejects_pods_is_named_with_host_gw() {
    in_sandbox_within(Duration::from_mins(3), test_name!(), || firewalld_under_a_running_agent(&HOST_GW));
}

/// The agent was there first; then kubelet and Docker came to the legacy variant.
#[test]
fn the_variant_is_chosen_again_when_the_kubelet_comes() {
    in_sandbox_within(Duration::from_mins(3), test_name!(), || {
        let world = World::new(&VXLAN, Manager::IptablesNft, &["--ip-masq", "--iptables-resync=1"]);
        eventually(SOON, "pods to reach each other", || world.pods_reach() == [true; 2]);
        let ours = |variant: &str| {
            let save = |program: &str| sh(world.node(1), &format!("{program}-{variant}-save"));
            ["iptables", "ip6tables"].map(|program| save(program).matches("FLANNEL-POSTRTG -s").count())
        };
        assert_eq!((ours("nft"), ours("legacy")), ([3; 2], [0; 2]));
        for program in ["iptables-legacy", "ip6tables-legacy"] {
            sh(
                world.node(1),
                &format!("{program} -w 5 -P FORWARD DROP; {program} -w 5 -t mangle -N KUBE-IPTABLES-HINT"),
            );
        }
        eventually(SOON, "the rules to be in the kubelet's variant alone", || {
            let right = ours("nft") == [0; 2] && ours("legacy").iter().all(|count| *count > 0);
            if right { Ok(()) } else { Err(world.bed.agent(1).log()) }
        });
        world.wait_for_readyz("200", |said| !said.contains("legacy"));
        assert_eq!(world.pods_reach(), [true; 2], "without a restart");
        let log = world.bed.agent(1).log();
        assert!(log.contains("firewall rules moved") && log.contains("the kubelet uses it now"), "{log}");
    });
}

/// No packet leaves under the address of its pod meanwhile, and none is lost.
#[test]
fn moving_to_the_other_variant_is_invisible_to_traffic() {
    in_sandbox_within(Duration::from_mins(2), test_name!(), || {
        let world = World::new(&VXLAN, Manager::IptablesNft, &["--ip-masq", "--iptables-resync=1"]);
        let (pod, fabric) = (world.pods[0].netns(), world.bed.cluster.fabric());
        let streams = [false, true].map(|v6| Stream::start(pod, fabric, world.outside(v6)));
        for stream in &streams {
            stream.wait_for(20);
        }
        sh(world.node(1), "iptables-legacy -w 5 -t mangle -N KUBE-KUBELET-CANARY");
        eventually(SOON, "the rules to move", || world.bed.agent(1).log().contains("firewall rules moved"));
        for stream in &streams {
            stream.wait_for(50);
        }
        for (stream, v6) in streams.into_iter().zip([false, true]) {
            let sent = stream.sent();
            let heard = stream.stop();
            assert!(heard.len() as u64 >= sent, "{sent} sent, {} heard", heard.len());
            assert!(heard.iter().all(|source| *source == world.underlay(1, v6)), "{v6}");
        }
    });
}
