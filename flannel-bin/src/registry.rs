//! Builds the agent from the backends of this build and the operator's options.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use flannel_backend_extension::{AllocBackend, ExtensionBackend};
use flannel_backend_hostgw::HostGwBackend;
use flannel_backend_ipip::IpipBackend;
use flannel_backend_udp::{UdpBackend, UdpOptions};
use flannel_backend_vxlan::{TxChecksum, VxlanBackend};
use flannel_backend_wireguard::{WireguardBackend, key_file};
use flannel_core::addr::PerFamily;
use flannel_core::agent::{Agent, AgentBuilder, FirewallOptions, Forward, state_file_of};
use flannel_core::firewall::gate::{GateOptions, Mode};
use flannel_core::probe::ProbeOptions;
use flannel_core::subnet::SubnetManager;
use flannel_core::underlay::UnderlayOptions;
use tracing::info;

use crate::cli::{Common, Options};

/// What holds for the route tables of all clouds.
const CLOUD: &str = "take alloc and let the cloud's own controller put a route for each node's subnet, or host-gw where \
                     nodes share a segment, or vxlan anywhere";

/// Further backend kinds that upstream has, or had, each with why it is not here and the way out.
const UPSTREAM: [(&str, &str, &str); 6] = [
    (
        "ipsec",
        "it needs strongSwan's charon beside the agent, and one key for all nodes",
        "take wireguard, which encrypts in the kernel with a key for each node",
    ),
    ("tencent-vpc", "it needs credentials of the cloud on every node", CLOUD),
    ("aws-vpc", "upstream has removed it", CLOUD),
    ("gce", "upstream has removed it", CLOUD),
    ("ali-vpc", "upstream has removed it", CLOUD),
    ("hybridnet", "it was never one of upstream's releases", CLOUD),
];

/// What commands of the network config need not know.
const SECRETS: [&str; 1] = ["FLANNELD_ETCD_PASSWORD"];

/// The agent that the operator asked for, with all backends of this build.
pub(crate) fn agent(options: &Options, store: Arc<dyn SubnetManager>) -> AgentBuilder {
    let Common { subnet_file, state_file, public_ip, public_ipv6, .. } = &options.common;
    let vxlan = VxlanBackend::new()
        .next_hop_objects(options.nexthop_objects)
        .strict_underlay(gate(options))
        .tx_checksum(options.vxlan_tx_checksum);
    let udp = UdpOptions::default().layout(options.udp_threads);
    Agent::builder(store)
        .backend(vxlan)
        .backend(HostGwBackend::new())
        .backend(IpipBackend::new())
        .backend(ExtensionBackend::new(environment()))
        .backend(AllocBackend::new())
        .backend(WireguardBackend::new().key_file(wireguard_key_file()))
        .backend(UdpBackend::new(udp.allow_from(options.udp_allow_from.iter().copied())))
        .underlay(
            UnderlayOptions::auto()
                .ifaces(options.iface.iter().cloned())
                .iface_regexes(options.iface_regex.iter().cloned())
                .can_reach(options.iface_can_reach)
                .public_ips(PerFamily { v4: *public_ip, v6: *public_ipv6 }),
        )
        .subnet_file(subnet_file)
        .state_file(state_file.clone().unwrap_or_else(|| state_file_of(subnet_file)))
        .blackholes(options.ip_blackhole_route)
        .firewall(rules(options))
        .probes(ProbeOptions::new(options.probe).ready(options.ready_peers))
}

/// The file with this node's WireGuard key, which Go flannel takes from the environment, too.
pub(crate) fn wireguard_key_file() -> PathBuf {
    let given = std::env::var_os("WIREGUARD_KEY_FILE").filter(|path| !path.is_empty());
    given.map_or_else(|| key_file::DEFAULT_PATH.into(), PathBuf::from)
}

/// What vxlan does about packets from strangers.
pub(crate) fn gate(options: &Options) -> GateOptions {
    GateOptions::new(options.strict_underlay).allow_from(options.vxlan_allow_from.iter().copied())
}

/// What firewall rules there are to be.
pub(crate) fn rules(options: &Options) -> FirewallOptions {
    FirewallOptions::default()
        .with_masquerade(options.ip_masq)
        .with_random_ports(!options.ip_masq_fully_random_disable)
        .with_forward(match options.iptables_forward_rules {
            false => Forward::Off,
            true if options.requires_forward_rules => Forward::Required,
            true => Forward::WherePossible,
        })
        .with_resync(options.iptables_resync)
}

/// Logs which options have no effect on the backend that the network config names.
pub(crate) fn name_idle_options(kind: &str, options: &Options) {
    let why = match kind {
        "host-gw" => "it has no tunnel",
        "ipip" => "that is for vxlan's tunnels",
        "extension" | "alloc" => "it has no tunnel of its own",
        "udp" => "it checks senders always; see --udp-allow-from",
        _ => return,
    };
    if options.strict_underlay == Mode::Enforce {
        info!(backend = kind, why, "--strict-underlay has no effect");
    }
    if options.vxlan_tx_checksum != TxChecksum::Keep {
        info!(backend = kind, "--vxlan-tx-checksum has no effect");
    }
}

/// Why a backend that upstream has, or had, is not here, and what to do.
pub(crate) fn why_not(kind: &str) -> Option<String> {
    let (_, why, way_out) = UPSTREAM.iter().find(|(upstream, ..)| *upstream == kind)?;
    Some(format!("{why}; {way_out}"))
}

/// The environment of the commands of the network config: that of the process, as upstream has it, without secrets.
fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| !SECRETS.iter().any(|secret| name == secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_of_upstream_are_refused_with_the_way_out() {
        for (kind, words) in [
            ("ipsec", "take wireguard"),
            ("tencent-vpc", "take alloc"),
            ("aws-vpc", "removed it; take alloc"),
            ("gce", "host-gw"),
            ("ali-vpc", "vxlan anywhere"),
        ] {
            let why = why_not(kind).unwrap();
            assert!(why.contains(words), "{kind}: {why}");
        }
        assert_eq!((why_not("vxlna"), why_not(""), why_not("ipip")), (None, None, None));
    }
}
