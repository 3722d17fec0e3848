//! All checks: what each asks, and what an operator can do. docs/doctor.md is compared with this table.

mod agent;
mod cni;
mod files;
mod firewall;
mod forwarding;
mod kernel;
mod kube;
mod leftovers;
mod limits;
mod managers;
mod mtu;
mod store;
mod tunnel;
mod wireguard;

use std::fmt;

use futures::future::BoxFuture;

use crate::facts::Facts;
use crate::finding::Checked;

/// A question about this host that the doctor can answer.
#[derive(Clone, Copy)]
pub struct Check {
    /// Its name, in words joined by dashes. Names stay.
    pub name: &'static str,
    /// What it asks.
    pub asks: &'static str,
    /// What an operator does if the answer is bad, in general; a finding says it for this host.
    pub remedy: &'static str,
    run: for<'a> fn(&'a Facts) -> BoxFuture<'a, Checked>,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Check").field(&self.name).finish()
    }
}

impl Check {
    /// The check with a name.
    pub fn named(name: &str) -> Option<&'static Self> {
        CHECKS.iter().find(|check| check.name == name)
    }

    /// The names and questions of all checks, and then `further` text, for the help of a program.
    pub fn list(further: &str) -> String {
        let width = CHECKS.iter().map(|check| check.name.len()).max().unwrap_or(0);
        let line = |check: &Self| format!("  {:<width$}  {}", check.name, check.asks);
        let lines = CHECKS.iter().map(line).collect::<Vec<_>>().join("\n");
        format!("Checks:\n{lines}\n\n{further}")
    }

    pub(crate) async fn run(&self, facts: &Facts) -> Checked {
        (self.run)(facts).await
    }
}

macro_rules! checks {
    ($($name:literal, $run:path, $asks:literal, $remedy:literal;)*) => {
        &[$(Check { name: $name, asks: $asks, remedy: $remedy, run: |facts| Box::pin($run(facts)) }),*]
    };
}

/// All checks, in the order in which they are shown: from the kernel upward.
pub const CHECKS: &[Check] = checks![
    "kernel-vxlan", kernel::vxlan,
    "Can this kernel make VXLAN devices? Tried in a network namespace of its own.",
    "Load the module `vxlan`, or take a kernel that has it.";
    "kernel-tun", kernel::tun,
    "Can this kernel make TUN devices, which the udp backend needs? Tried likewise.",
    "Load the module `tun`; give a container `/dev/net/tun`.";
    "kernel-ipip", kernel::ipip,
    "Can this kernel make IPIP devices? Tried likewise, with the ipip backend only.",
    "Load the module `ipip`, or take another backend.";
    "kernel-wireguard", kernel::wireguard,
    "Can this kernel make WireGuard devices? Tried likewise.",
    "Load the module `wireguard`, or let the agent encrypt in user space.";
    "kernel-nf-tables", kernel::nf_tables,
    "Does this kernel keep nf_tables rules that masquerade? Tried likewise.",
    "Load `nf_tables`, `nft_masq` and `nft_chain_nat`, or use iptables.";
    "kernel-next-hop-objects", kernel::next_hops,
    "Does this kernel have next-hop objects? Tried likewise.",
    "Nothing: plain routes do the same.";
    "kernel-checksums", kernel::checksums,
    "Does a masqueraded UDP datagram leave a VXLAN tunnel with the right checksum, over a link without offload? A real one is sent in a namespace of its own.",
    "Take a newer kernel, or switch `tx-checksum-ip-generic` off on flannel's devices.";
    "capabilities", kernel::capabilities,
    "Does the agent (else this process) have CAP_NET_ADMIN and CAP_NET_RAW?",
    "Give it what it lacks.";
    "forwarding-ipv4", forwarding::ipv4,
    "Does this host forward IPv4, also on the links of pods and nodes?",
    "`sysctl -w net.ipv4.ip_forward=1`.";
    "forwarding-ipv6", forwarding::ipv6,
    "Does this host forward IPv6, if the network has it?",
    "`sysctl -w net.ipv6.conf.all.forwarding=1`.";
    "ipv6-disabled", forwarding::ipv6_disabled,
    "Is IPv6 switched off on a link that needs it?",
    "Set `disable_ipv6` of the link to 0.";
    "rp-filter", forwarding::rp_filter,
    "Does strict reverse path filtering drop packets from the overlay?",
    "Set `rp_filter` to 2 (loose) or 0.";
    "bridge-netfilter", forwarding::bridge_netfilter,
    "Do packets between pods of this node pass the firewall, as Services need it?",
    "Load `br_netfilter`; set `bridge-nf-call-iptables` to 1.";
    "firewall-programs", firewall::programs,
    "Is iptables installed, or does the kernel keep nf_tables rules, for which no program is needed?",
    "Load `nf_tables`, `nft_masq` and `nft_chain_nat`, or install iptables.";
    "firewall-variants", firewall::variants,
    "Do both variants of iptables have rules, which don't see each other?",
    "Let all programs use one variant.";
    "forward-chains", firewall::forward_chains,
    "Which chain of others (nftables, either iptables; firewalld, ufw, Docker) surely drops packets of pods?",
    "Accept the pods' network there; the finding has the command.";
    "masquerade-rules", firewall::masquerade,
    "Are the rules there that masquerade pods, if the agent should keep them?",
    "Start the agent with `--ip-masq`, and see its log.";
    "overlay-device", tunnel::device,
    "Are the devices that carry the overlay there, and up?",
    "Start the agent, which makes them.";
    "tunnel-port", tunnel::port,
    "Who has the UDP port of the tunnel?",
    "End the other process, or change `Backend.Port`.";
    "other-vxlan", tunnel::other_vxlan,
    "Does a VXLAN device of others share our port or VNI?",
    "Remove it, or give one another VNI or port.";
    "tunnel-reach", tunnel::reach,
    "Do a few peers answer through the tunnel, or on the underlay alone?",
    "Let the tunnel's UDP port pass between nodes.";
    "peer-routes", tunnel::peer_routes,
    "Has each subnet of other nodes a route?",
    "Start the agent; see its log for what the kernel refuses.";
    "underlay-address", tunnel::underlay,
    "Is the published address on a link of this host that is up?",
    "Restart the agent, or name the interface by `--iface`.";
    "vtep-mac", tunnel::vtep_mac_kept,
    "Has the device the MAC that the lease publishes?",
    "Find out who changes it; the agent sets it back.";
    "duplicate-mac", tunnel::duplicate_mac,
    "Do two leases publish one MAC?",
    "Let the younger node make a new one.";
    "device-peers", wireguard::peers,
    "Has a WireGuard device of flannel peers that no lease has?",
    "Remove them, if nobody needs them; the agent leaves alone what it does not know.";
    "handshake-clock", wireguard::clock,
    "Was the clock set back behind the last handshake with a peer?",
    "Set the clock right.";
    "mtu-overlay", mtu::overlay,
    "Do packets of the overlay's MTU, with their tunnel headers, fit into the underlay?",
    "Remove `Backend.MTU`, or lower it.";
    "mtu-subnet-file", mtu::subnet_file,
    "Does `FLANNEL_MTU` fit into the overlay?",
    "Restart the agent; then re-create the pods.";
    "mtu-bridge", mtu::bridge,
    "Do the pods have the MTU that they should have?",
    "Re-create pods with an older MTU.";
    "mtu-path", mtu::path,
    "Do packets of full size reach a few peers on the underlay, and how large may they be? Found by bisection.",
    "Let the path carry them, or set `Backend.MTU`.";
    "cni-config", cni::config,
    "Is there a CNI config for flannel that can be read, and does it read our subnet file?",
    "`flanneld install-cni`.";
    "cni-order", cni::order,
    "Is flannel's CNI config the first by name?",
    "Move the other away.";
    "cni-plugins", cni::plugins,
    "Are all plugins that the config needs there, and can they be executed?",
    "`flanneld install-cni`; install containernetworking-plugins.";
    "cni-version", cni::version,
    "Do the plugins know the CNI version of the config? They are asked.",
    "Change `cniVersion`, or install newer plugins.";
    "cni-bridge", cni::bridge,
    "Has the pods' bridge addresses of this node's lease alone?",
    "Delete the bridge; the next pod makes it anew.";
    "subnet-file", files::subnet_file,
    "Is the subnet file there, can it be read, and does it agree with the state file?",
    "Restart the agent.";
    "state-file", files::state_file,
    "Can the state file be used, and was it written on this host?",
    "Delete it on a clone of a host.";
    "file-rights", files::rights,
    "Who besides root can read what is private, or write what pods depend on?",
    "`chmod`, as the finding says.";
    "key-file", wireguard::key_file,
    "Is the private key of this node there, readable for the agent alone, good, and that of its lease?",
    "`chmod`, restore or remove it, as the finding says.";
    "device-addresses", managers::addresses,
    "Has somebody given flannel's devices further addresses?",
    "Exclude the devices from that program (hosts.md).";
    "networkmanager", managers::network_manager,
    "Does NetworkManager manage flannel's devices?",
    "Exclude them (hosts.md).";
    "networkd", managers::networkd,
    "Does systemd-networkd manage flannel's devices, or delete routes of others?",
    "Exclude them (hosts.md).";
    "dhcpcd", managers::dhcpcd,
    "Does dhcpcd run on flannel's devices?",
    "Exclude them (hosts.md).";
    "udev-mac-policy", managers::udev,
    "Does a `.link` file of udev set the MAC of flannel's devices?",
    "Restrict its `[Match]` to hardware.";
    "neighbour-limits", limits::neighbours,
    "Is the neighbour table large enough for all peers?",
    "Raise `gc_thresh1` to `gc_thresh3`.";
    "conntrack-full", limits::conntrack,
    "Is the table of tracked connections full?",
    "Raise `nf_conntrack_max`.";
    "network-overlap", leftovers::overlap,
    "Does an address of this host overlap with the pods' network?",
    "Give one of them other addresses.";
    "leftover-devices", leftovers::devices,
    "Are there devices of another backend or network of flannel?",
    "`flanneld cleanup`.";
    "leftover-routes", leftovers::routes,
    "Are there routes of flannel's outside of the network?",
    "Delete them, if no other agent needs them.";
    "other-networks", leftovers::other_networks,
    "Are there devices of another pod network?",
    "Remove what is not in use.";
    "agents", agent::processes,
    "Does one agent run, and only one with this subnet file?",
    "Start it; stop all but one.";
    "agent-problems", agent::problems,
    "What does the running agent complain about?",
    "Each line says it.";
    "store-reachable", store::reachable,
    "Does the store answer, and each of its servers?",
    "Start it; correct network or credentials.";
    "store-latency", store::latency,
    "How fast does each server of the store answer?",
    "Look at its disk, its load, the way to it.";
    "store-version", store::version,
    "Which versions have the servers of the store?",
    "Upgrade.";
    "store-clock", store::clock,
    "Does the store's clock agree with this host's?",
    "Keep time on both.";
    "network-config", store::config,
    "Is the network config in the store good, and does the agent use it?",
    "Correct it; restart the agent.";
    "store-leases", store::leases,
    "Can all leases be read, and is this node's among them?",
    "Delete records of nodes that are gone.";
    "kube-pod-cidrs", kube::pod_cidrs,
    "Are the node's podCIDRs in the network?",
    "Make `Network` and `--cluster-cidr` the same.";
    "kube-annotations", kube::annotations,
    "Does the node publish what this host has?",
    "Restart the agent.";
    "kube-rights", kube::rights,
    "Does the API server let the agent do what it must? It is asked (SelfSubjectAccessReview).",
    "Apply the ClusterRole.";
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_of_one_form() {
        let names: BTreeSet<_> = CHECKS.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), CHECKS.len());
        assert!(CHECKS.len() >= 30);
        for check in CHECKS {
            assert!(
                check
                    .name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
                "{}",
                check.name
            );
            assert!(check.asks.contains('?') && check.remedy.ends_with('.'), "{}", check.name);
            assert!(
                !check.asks.contains(['|', '\n']) && !check.remedy.contains(['|', '\n']),
                "{}: it is a row of a table",
                check.name
            );
        }
        assert_eq!(Check::named("mtu-path").map(|check| check.name), Some("mtu-path"));
        assert!(Check::named("mtu").is_none());
    }
}
