//! Pods on one node, attached in both ways, in every family.

use std::path::Path;

use flannel_lab::cluster::{Cluster, Families};
use flannel_lab::kernel_state::KernelState;
use flannel_lab::ping::{PingOptions, ping};
use flannel_lab::pod::{CniOptions, Pod};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::subnet_env::SubnetEnv;
use flannel_lab::test_name;

const V4: &str = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\n";
const V6: &str = "FLANNEL_IPV6_NETWORK=fd00:42::/56\nFLANNEL_IPV6_SUBNET=fd00:42:0:3::1/64\n";

fn env(families: &[&str]) -> SubnetEnv {
    format!(
        "{}FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        families.concat()
    )
    .parse()
    .unwrap()
}

#[track_caller]
fn assert_ping(from: &Pod, to: &Pod) {
    for address in to.addresses() {
        let report = ping(from.netns(), address.ip(), PingOptions::default()).unwrap();
        assert_eq!(report.lost, 0, "{address}: {report:?}");
    }
}

fn texts(pod: &Pod) -> Vec<String> {
    pod.addresses().iter().map(ToString::to_string).collect()
}

#[test]
fn plain_pods_ping_each_other() {
    in_sandbox(test_name!(), || {
        for families in [&[V4][..], &[V6], &[V4, V6]] {
            let cluster = Cluster::builder()
                .nodes(1)
                .families(Families::Dual)
                .build()
                .unwrap();
            let (node, env) = (cluster.node(1), env(families));
            let a = Pod::attach_plain(node, &env).unwrap();
            let b = Pod::attach_plain(node, &env).unwrap();
            assert_eq!(b.addresses().len(), families.len());
            assert_ping(&a, &b);
            assert_ping(&b, &a);
            let state = KernelState::of(a.netns()).unwrap();
            assert!(state.links[0].contains("mtu 1450"), "{state}");
        }
    });
}

#[test]
fn cni_pods_get_addresses_of_each_family_and_ping_each_other() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder()
            .nodes(2)
            .families(Families::Dual)
            .build()
            .unwrap();
        let (env, options) = (env(&[V4, V6]), CniOptions::default());
        let attach = |number| Pod::attach_cni(cluster.node(number), &env, &options).unwrap();
        let (a, b) = (attach(1), attach(1));
        assert_eq!(texts(&a), ["10.42.3.2/24", "fd00:42:0:3::2/64"]);
        assert_eq!(texts(&b), ["10.42.3.3/24", "fd00:42:0:3::3/64"]);
        assert_ping(&a, &b);
        assert_ping(&b, &a);
        let state = KernelState::of(a.netns()).unwrap();
        assert!(state.links[0].contains("mtu 1450"), "{state}");
        assert!(
            state.routes[0].starts_with("unicast 10.42.0.0/16 via 10.42.3.1"),
            "{state}"
        );

        // Another node has books of its own.
        assert_eq!(texts(&attach(2)), texts(&a));
        b.delete().unwrap();
        let taken = Path::new("/run/flannel-lab/node1/cni/cbr0");
        assert!(taken.join("10.42.3.2").exists() && !taken.join("10.42.3.3").exists());
    });
}

#[test]
fn a_missing_plugin_names_its_package() {
    in_sandbox(test_name!(), || {
        let cluster = Cluster::builder().nodes(1).build().unwrap();
        let options = CniOptions {
            plugin_dir: "/no/such".into(),
            ..Default::default()
        };
        let error = Pod::attach_cni(cluster.node(1), &env(&[V4]), &options).unwrap_err();
        assert!(
            error.to_string().contains("containernetworking-plugins"),
            "{error}"
        );
    });
}
