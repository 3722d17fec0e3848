//! What a kernel in memory says, where it is the answer that counts.

use flannel_core::addr::{LinkIndex, MacAddr, Vni};
use flannel_core::kernel::VxlanLink;
use flannel_doctor::Verdict::{Failure, Warning};

use super::common::{Case, lease, state, with_peer};

/// A vxlan device as it is in the kernel.
fn vxlan(case: &Case, name: &str, vni: u32) {
    case.kernel.add_link(name, 1450);
    case.kernel.edit_link(name, false, |link| {
        link.kind = Some("vxlan".to_owned());
        link.mac = Some(MacAddr([2, 0, 0, 0, 0, 1]));
        link.vxlan = Some(VxlanLink {
            vni: Vni::new(vni).unwrap(),
            port: 8472,
            local: None,
            lower: Some(LinkIndex(1)),
            learning: false,
            gbp: false,
            foreign: false,
        });
    });
}

#[test]
fn two_devices_with_one_vni() {
    let case = Case::of_files();
    case.agent_files(&state());
    vxlan(&case, "flannel.1", 1);
    case.passes("other-vxlan");
    vxlan(&case, "vxlan7", 1);
    case.fails("other-vxlan", Failure, "vxlan7 has the VNI 1 and the port 8472 of flannel.1");
}

#[test]
fn two_leases_with_one_mac() {
    let case = Case::of_files();
    case.skips("duplicate-mac", "has a lease");
    case.agent_files(&state());
    case.passes("duplicate-mac");
    case.agent_files(&with_peer(state(), lease(3, 1)));
    case.fails(
        "duplicate-mac",
        Failure,
        "leases 10.244.1.0-24, 10.244.3.0-24 publish one IPv4 VTEP MAC 02:00:00:00:00:01",
    );
}

#[test]
fn tables_of_the_kernel() {
    let case = Case::of_files();
    case.skips("conntrack-full", "can't be read");
    let count = |count: &str| _ = case.file("/proc/sys/net/netfilter/nf_conntrack_count", count);
    case.file("/proc/sys/net/netfilter/nf_conntrack_max", "1000\n");
    count("100\n");
    case.passes("conntrack-full");
    count("800\n");
    case.fails("conntrack-full", Warning, "800 of 1000");
    count("1000\n");
    case.fails("conntrack-full", Failure, "new connections are dropped");
    count("many\n");
    case.skips("conntrack-full", "no number");

    let limit = |limit: &str| _ = case.file("/proc/sys/net/ipv4/neigh/default/gc_thresh3", limit);
    limit("1024\n");
    case.passes("neighbour-limits");
    limit("128\n");
    case.fails("neighbour-limits", Warning, "gc_thresh3 is 128");
}

#[test]
fn bridges_pass_the_firewall() {
    let case = Case::of_files();
    case.fails("bridge-netfilter", Warning, "there is no net/bridge/bridge-nf-call-iptables");
    case.file("/proc/sys/net/bridge/bridge-nf-call-iptables", "0\n");
    case.fails("bridge-netfilter", Warning, "is 0");
    case.file("/proc/sys/net/bridge/bridge-nf-call-iptables", "1\n");
    case.passes("bridge-netfilter");
}
