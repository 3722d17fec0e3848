//! Builds the agent from the backends of this build and the operator's options.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use flannel_backend_extension::{AllocBackend, ExtensionBackend};
use flannel_backend_hostgw::HostGwBackend;
use flannel_backend_ipip::IpipBackend;
use flannel_backend_udp::{UdpBackend, UdpOptions};
use flannel_backend_vxlan::{TxChecksum, VxlanBackend};
use flannel_backend_wireguard::{NatOptions, WireguardBackend, key_file};
use flannel_core::addr::PerFamily;
use flannel_core::agent::{Agent, AgentBuilder, FirewallOptions, Forward, state_file_of};
use flannel_core::firewall::gate::{GateOptions, Mode};
use flannel_core::probe::ProbeOptions;
use flannel_core::subnet::SubnetManager;
use flannel_core::underlay::UnderlayOptions;
use tracing::info;

use crate::cli::{Common, Options};

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
    let wireguard = WireguardBackend::new()
        .implementation(options.wireguard)
        .rotate_every(options.wireguard_rotate)
        .nat(NatOptions::new(options.behind_nat, options.relay));
    Agent::builder(store)
        .backend(vxlan)
        .backend(HostGwBackend::new())
        .backend(IpipBackend::new())
        .backend(ExtensionBackend::new(environment()))
        .backend(AllocBackend::new())
        .backend(wireguard.layout(options.udp_threads).key_file(wireguard_key_file()))
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
    if kind != "wireguard" && (options.behind_nat || options.relay) {
        info!(backend = kind, "--behind-nat and --relay have no effect");
    }
    let why = match kind {
        "host-gw" => "it has no tunnel",
        "ipip" => "that is for vxlan's tunnels",
        "extension" | "alloc" => "it has no tunnel of its own",
        "udp" => "it checks senders always; see --udp-allow-from",
        "wireguard" => "it accepts packets only from whoever has the key of a peer",
        _ => return,
    };
    if options.strict_underlay == Mode::Enforce {
        info!(backend = kind, why, "--strict-underlay has no effect");
    }
    if options.vxlan_tx_checksum != TxChecksum::Keep {
        info!(backend = kind, "--vxlan-tx-checksum has no effect");
    }
}

/// The environment of the commands of the network config: that of the process, as upstream has it, without secrets.
fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| !SECRETS.iter().any(|secret| name == secret))
}
