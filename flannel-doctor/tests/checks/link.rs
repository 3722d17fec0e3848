//! What a kernel in memory says, where it is the answer that counts.

use flannel_core::addr::{LinkIndex, MacAddr, Vni};
use flannel_core::kernel::{LinkAddress, VxlanLink};
use flannel_core::lease::Lease;
use flannel_doctor::Verdict::{Failure, Warning};

use super::common::{Case, config, lease, state, with_peer};

/// A vxlan device as it is in the kernel.
pub(crate) fn vxlan(case: &Case, name: &str, vni: u32) {
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
    // Each family has a table.
    limit("1024\n");
    case.file("/proc/sys/net/ipv6/neigh/default/gc_thresh3", "128\n");
    let mut dual = state();
    dual.networks.v6 = "fd00::/48".parse().ok();
    case.agent_files(&dual);
    case.fails("neighbour-limits", Warning, "net.ipv6.neigh.default.gc_thresh3 is 128");
}

#[test]
fn an_underlay_without_ipv6() {
    let dual = config(
        r#"{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}}"#,
    );
    let mut state = state();
    state.networks = dual.networks.map(|_, network| network.network);
    let value = r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#;
    state.own = Some(Lease::decode("10.244.1.0-24&fd00::-64", value.as_bytes(), 1).unwrap());
    state.config = Some(dual);
    let case = Case::of_files();
    case.agent_files(&state);
    let link = case.kernel.add_link("eth0", 1500);
    // Switched off, so that the address that is published is gone.
    case.kernel.add_address(LinkAddress {
        link,
        addr: "192.0.2.1/24".parse().unwrap(),
        global: true,
        deprecated: false,
        permanent: true,
        temporary: false,
        tentative: false,
    });
    let sysctl = |link: &str, value: &str| {
        case.file(&format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), value);
    };
    sysctl("all", "0\n");
    sysctl("eth0", "0\n");
    case.passes("ipv6-disabled");
    sysctl("eth0", "1\n");
    case.fails("ipv6-disabled", Failure, "net/ipv6/conf/eth0/disable_ipv6 is 1");
}

#[test]
fn strict_filters() {
    let case = Case::of_files();
    let mut state = state();
    state.devices.push(flannel_core::state_file::Device::vxlan("flannel-v6.1", Vni::new(1).unwrap()));
    case.agent_files(&state);
    vxlan(&case, "flannel.1", 1);
    vxlan(&case, "flannel-v6.1", 1);
    let sysctl = |link: &str, value: &str| {
        case.file(&format!("/proc/sys/net/ipv4/conf/{link}/rp_filter"), value);
    };
    sysctl("all", "1\n");
    sysctl("flannel.1", "0\n");
    sysctl("flannel-v6.1", "1\n");
    case.fails("rp-filter", Warning, "rp_filter of flannel.1 is 1");
    let finding = case.finding("rp-filter");
    assert_eq!(finding.evidence.len(), 1, "IPv6 has none: {finding:?}");
    assert!(!finding.fix.unwrap().contains("all"), "the larger value counts");
    // The fix is enough.
    sysctl("flannel.1", "2\n");
    case.passes("rp-filter");
}

#[test]
fn each_missing_route_is_named_once() {
    let case = Case::of_files();
    case.agent_files(&(3..10).fold(state(), |state, number| with_peer(state, lease(number, number))));
    let finding = case.finding("peer-routes");
    let seen = &finding.evidence[0];
    assert!(seen.ends_with("10.244.6.0-24 and 3 more"), "{seen}");
}

#[test]
fn four_other_networks_have_one_fix() {
    let case = Case::of_files();
    for name in ["cilium_host", "weave", "antrea-gw0", "kube-bridge"] {
        case.kernel.add_link(name, 1500);
    }
    let finding = case.finding("other-networks");
    assert_eq!(finding.evidence.len(), 4);
    let fix = finding.fix.unwrap();
    assert!(["Antrea", "Cilium", "Weave Net", "kube-router"].iter().all(|name| fix.contains(name)), "{fix}");
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
