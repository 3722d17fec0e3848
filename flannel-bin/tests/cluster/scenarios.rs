//! Upstream's functional and end-to-end scenarios, by its own words for them; `docs/upstream-scenarios.md` is the list.
//!
//! What a kubelet, kube-proxy, `CoreDNS` or Docker do there is done here by what they tell the kernel: pods by the
//! CNI plugins, services by the rules that kube-proxy writes, names by a server that answers them.

mod end_to_end;
mod functional;
mod kube_proxy;
mod names;
mod rules;
mod services;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::kube::store::KubeStore;
use flannel_lab::netns::Netns;
use flannel_lab::pod::{CniOptions, Pod};
use serde_json::json;

use crate::backends::BackendCase;
use crate::harness::{Bed, env_of};
use crate::kube::kube;

/// A row of upstream's matrix: a backend, and who keeps the firewall rules.
#[derive(Clone, Copy)]
struct Row {
    case: &'static BackendCase,
    nftables: bool,
}

/// Makes one test of each function a row of the matrix that exists here.
macro_rules! on_every_row {
    ($($test:ident),+ $(,)?) => {
        crate::scenarios::on_every_row!(@row vxlan VXLAN false: $($test),+);
        crate::scenarios::on_every_row!(@row vxlan_nftables VXLAN true: $($test),+);
        crate::scenarios::on_every_row!(@row host_gw HOST_GW false: $($test),+);
        crate::scenarios::on_every_row!(@row udp UDP false: $($test),+);
    };
    (@row $name:ident $case:ident $nftables:literal: $($test:ident),+) => {
        mod $name {
            $(
                #[test]
                fn $test() {
                    flannel_lab::sandbox::in_sandbox(flannel_lab::test_name!(), || {
                        let (case, nftables) = (&crate::backends::$case, $nftables);
                        super::$test(crate::scenarios::Row { case, nftables });
                    });
                }
            )+
        }
    };
}
use on_every_row;

impl Row {
    /// Nodes in both families with an API server, and kube-proxy's chains on each; no agent runs yet.
    fn cluster(self, nodes: u8) -> Bed<KubeStore> {
        let cluster = Cluster::builder().nodes(nodes).families(Families::Dual).build().unwrap();
        for node in cluster.nodes() {
            kube_proxy::start(node.netns(), self.nftables);
        }
        let store = kube(&cluster);
        let config = self.case.config(Families::Dual);
        let config = config.replacen('{', &format!("{{\"EnableNFTables\":{},", self.nftables), 1);
        Bed::with_config(cluster, store, self.case, &config)
    }

    /// The daemon set is rolled out: with the arguments of upstream's manifest, and every node ready.
    fn rolled_out(self, nodes: u8) -> Bed<KubeStore> {
        let mut bed = self.cluster(nodes);
        (1..=nodes).for_each(|number| bed.spawn(number, &["--ip-masq"]));
        for number in 1..=nodes {
            bed.wait_ready(number);
            bed.wait_for_peers(number, usize::from(nodes) - 1);
        }
        bed
    }
}

/// A pod as the manifest's `cni-conf.json` asks for it.
fn pod(bed: &Bed<KubeStore>, number: u8) -> Pod {
    let delegate = json!({ "hairpinMode": true, "isDefaultGateway": true });
    let delegate = delegate.as_object().cloned().unwrap();
    let options = CniOptions { delegate, ..CniOptions::default() };
    Pod::attach_cni(bed.cluster.node(number), &env_of(number), &options).unwrap()
}

/// Runs a line of shell.
#[track_caller]
fn sh(netns: &Netns, line: &str) -> String {
    netns.run("sh", &["-c", line]).unwrap()
}
