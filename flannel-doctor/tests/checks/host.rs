//! What a real namespace of the kernel says: forwarding, filters, firewalls, addresses.

use flannel_core::config::NetworkConfig;
use flannel_core::netns::Netns;
use flannel_doctor::Verdict::{Failure, Note, Warning};
use flannel_lab::sandbox::in_sandbox;
use flannel_lab::test_name;

use super::common::{Case, SUBNET_ENV, SUBNET_FILE, config, networks, sh, state, sysctl};

/// An underlay, the device of vxlan, and the bridge of pods.
const NODE: &str = "
    ip link add eth0 type veth peer name far
    ip address add 192.0.2.1/24 dev eth0; ip link set eth0 up; ip link set far up
    ip link add flannel.1 address 02:00:00:00:00:01 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning
    ip link set flannel.1 mtu 1450 up; ip address add 10.244.1.0/32 dev flannel.1
    ip link add cni0 type bridge; ip address add 10.244.1.1/24 dev cni0; ip link set cni0 up
    ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink proto 102";

fn node() -> Case {
    sh(NODE);
    let case = Case::of_netns(Netns::current().unwrap());
    case.agent_files(&state());
    case
}

#[test]
fn kernel_parameters() {
    in_sandbox(test_name!(), || {
        let case = node();
        sysctl("net/ipv4/ip_forward", "1");
        case.passes("forwarding-ipv4");
        sysctl("net/ipv4/conf/cni0/forwarding", "0");
        case.fails("forwarding-ipv4", Failure, "net/ipv4/conf/cni0/forwarding is 0");
        sysctl("net/ipv4/ip_forward", "0");
        case.fails("forwarding-ipv4", Failure, "net.ipv4.ip_forward is 0");
        case.skips("forwarding-ipv6", "no IPv6");
        case.skips("ipv6-disabled", "no IPv6");

        sysctl("net/ipv4/conf/all/rp_filter", "0");
        sysctl("net/ipv4/conf/flannel.1/rp_filter", "0");
        case.passes("rp-filter");
        sysctl("net/ipv4/conf/flannel.1/rp_filter", "1");
        case.fails("rp-filter", Warning, "rp_filter of flannel.1 is 1");
        // Of `all` and the link's own the larger counts.
        sysctl("net/ipv4/conf/all/rp_filter", "2");
        case.passes("rp-filter");

        // With IPv6, other parameters count.
        let dual = r#"{"EnableIPv4":true,"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}}"#;
        let mut state = state();
        let config: NetworkConfig = config(dual);
        state.networks = config.networks.map(|_, network| network.network);
        state.config = Some(config);
        case.agent_files(&state);
        sysctl("net/ipv6/conf/all/forwarding", "1");
        case.passes("forwarding-ipv6");
        case.passes("ipv6-disabled");
        sysctl("net/ipv6/conf/all/forwarding", "0");
        sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        case.fails("forwarding-ipv6", Warning, "net.ipv6.conf.all.forwarding is 0");
        case.fails("ipv6-disabled", Failure, "net/ipv6/conf/all/disable_ipv6 is 1");
    });
}

#[test]
fn firewalls() {
    in_sandbox(test_name!(), || {
        let case = node();
        case.passes("firewall-programs");
        case.passes("firewall-variants");
        case.passes("forward-chains");
        sh(
            "nft add table inet other; nft add chain inet other f '{ type filter hook forward priority 0; policy drop; }'",
        );
        case.fails("forward-chains", Failure, "chain f of table inet other drops forwarded packets");
        sh("nft delete table inet other");

        case.fails("masquerade-rules", Failure, "no rule masquerades IPv4");
        sh("nft add table ip flannel-ipv4
            nft add chain ip flannel-ipv4 postrtg '{ type nat hook postrouting priority srcnat; }'
            nft add rule ip flannel-ipv4 postrtg ip saddr 10.244.0.0/16 masquerade");
        case.passes("masquerade-rules");
        sh("nft delete table ip flannel-ipv4
            iptables-nft -t nat -N FLANNEL-POSTRTG
            iptables-nft -t nat -A FLANNEL-POSTRTG -s 10.244.0.0/16 -j MASQUERADE");
        case.passes("masquerade-rules");
        case.file(SUBNET_FILE, &SUBNET_ENV.replace("IPMASQ=true", "IPMASQ=false"));
        case.skips("masquerade-rules", "does not masquerade");

        sh("iptables-legacy -t filter -P FORWARD ACCEPT");
        case.fails("firewall-variants", Warning, "both variants");
    });
}

#[test]
fn no_programs_no_rules() {
    in_sandbox(test_name!(), || {
        // Whoever looks for programs in here finds an empty folder.
        sh("mkdir -p /run/empty; mount --bind /run/empty /usr/sbin; mount --bind /run/empty /sbin");
        let case = Case::of_netns(Netns::current().unwrap());
        case.agent_files(&state());
        // The kernel is asked without a program.
        case.passes("firewall-programs");
        case.passes("kernel-nf-tables");
        case.passes("forward-chains");
        case.fails("masquerade-rules", Failure, "no rule masquerades");
    });
}

#[test]
fn devices_and_addresses() {
    in_sandbox(test_name!(), || {
        let case = node();
        case.passes("overlay-device");
        case.passes("vtep-mac");
        case.passes("underlay-address");
        case.passes("device-addresses");
        case.passes("network-overlap");
        case.passes("leftover-devices");
        case.passes("leftover-routes");
        case.passes("other-networks");
        case.passes("other-vxlan");
        case.passes("peer-routes");
        case.passes("cni-bridge");
        case.passes("mtu-overlay");
        case.passes("mtu-subnet-file");
        case.passes("mtu-bridge");

        sh("ip route del 10.244.2.0/24; ip route add 10.99.0.0/24 dev eth0 proto 102");
        case.fails("peer-routes", Failure, "1 of 1 subnets of other nodes have no route here: 10.244.2.0-24");
        case.fails("leftover-routes", Warning, "10.99.0.0/24");
        sh(
            "ip address add 169.254.7.7/16 dev flannel.1; ip link add docker0 type bridge; ip address add 10.244.9.1/24 dev docker0",
        );
        case.fails("device-addresses", Warning, "169.254.7.7/16");
        case.fails("network-overlap", Failure, "docker0 has 10.244.9.1/24");
        sh(
            "ip link add cilium_vxlan type vxlan id 5 dstport 8472 dev eth0; ip link add flannel.7 type vxlan id 7 dstport 4789 dev eth0",
        );
        case.fails("other-networks", Warning, "cilium_vxlan looks like a device of Cilium");
        case.fails("other-vxlan", Note, "cilium_vxlan (VNI 5) shares UDP port 8472");
        case.fails("leftover-devices", Warning, "flannel.7 is of another backend or network");
        sh("ip link set flannel.1 address 02:00:00:00:00:99");
        case.fails("vtep-mac", Failure, "the MAC of flannel.1 is 02:00:00:00:00:99");
        sh("ip address add 10.244.77.1/24 dev cni0");
        case.fails("cni-bridge", Failure, "cni0 has 10.244.77.1/24");
        sh("ip link set eth0 mtu 1400");
        case.fails("mtu-overlay", Failure, "flannel.1 has MTU 1450, and eth0 below it 1400: 1350 fit");
        sh("ip link add port0 type veth peer name pod0; ip link set port0 mtu 1500 master cni0");
        case.fails("mtu-bridge", Warning, "larger is the MTU of port0");
        sh("ip link set port0 mtu 1400");
        case.fails("mtu-bridge", Note, "smaller is the MTU of port0");
        sh("ip link set flannel.1 mtu 1350");
        case.fails("mtu-subnet-file", Failure, "FLANNEL_MTU is 1450, and flannel.1 has MTU 1350");
        sh("ip link set flannel.1 down");
        case.fails("overlay-device", Failure, "device flannel.1 is down");
        sh("ip link delete flannel.1");
        case.fails("overlay-device", Failure, "there is no device flannel.1");
        sh("ip link set far down");
        case.fails("underlay-address", Failure, "the underlay eth0 with 192.0.2.1 has no carrier");
        sh("ip address del 192.0.2.1/24 dev eth0");
        case.fails("underlay-address", Warning, "192.0.2.1 is on no link");
    });
}

#[test]
fn the_port_of_the_tunnel() {
    in_sandbox(test_name!(), || {
        let case = node();
        case.passes("tunnel-port");
        sh("ip link delete flannel.1");
        case.fails("tunnel-port", Note, "nobody has UDP port 8472");
        let _socket = std::net::UdpSocket::bind("0.0.0.0:8472").unwrap();
        case.fails("tunnel-port", Failure, "UDP port 8472 belongs to process");
        let mut other = state();
        other.networks = networks("10.244.0.0/16");
        other.backend = "host-gw".to_owned();
        case.agent_files(&other);
        case.skips("tunnel-port", "no tunnel port");
    });
}
