//! Builds the agent from the backends of this build and the operator's options.

use std::sync::Arc;

use flannel_backend_hostgw::HostGwBackend;
use flannel_backend_udp::{UdpBackend, UdpOptions};
use flannel_backend_vxlan::{NextHopObjects, VxlanBackend};
use flannel_core::agent::{Agent, AgentBuilder, UnknownBackend};
use flannel_core::firewall::gate::{GateOptions, Mode};
use flannel_core::subnet::SubnetManager;
use flannel_core::underlay::UnderlayOptions;
use tracing::info;

use crate::cli::Options;

/// Further backend kinds that upstream has, or had.
const UPSTREAM: &[&str] = &[
    "wireguard",
    "ipip",
    "ipsec",
    "alloc",
    "extension",
    "tencent-vpc",
    "ali-vpc",
    "aws-vpc",
    "gce",
    "hybridnet",
];

/// The options of backends on this node, in addition to the network config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BackendOptions {
    /// For the udp backend.
    pub(crate) udp: UdpOptions,
    /// For the vxlan backend.
    pub(crate) next_hop_objects: NextHopObjects,
    /// What vxlan does about packets from strangers.
    pub(crate) gate: GateOptions,
}

/// The agent that the operator asked for, with all backends of this build.
pub(crate) fn agent(options: &Options, store: Arc<dyn SubnetManager>) -> AgentBuilder {
    let BackendOptions { udp, next_hop_objects, gate } = &options.backends;
    let vxlan = VxlanBackend::new().next_hop_objects(*next_hop_objects).strict_underlay(gate.clone());
    Agent::builder(store)
        .backend(vxlan)
        .backend(HostGwBackend::new())
        .backend(UdpBackend::new(udp.clone()))
        .underlay(
            UnderlayOptions::auto()
                .ifaces(options.ifaces.iter().cloned())
                .iface_regexes(options.iface_regexes.iter().cloned())
                .can_reach(options.can_reach)
                .public_ips(options.public_ips),
        )
        .subnet_file(&options.subnet_file)
        .state_file(&options.state_file)
        .blackholes(options.blackholes)
        .firewall(options.rules)
}

/// Logs which options have no effect on the backend that the network config names.
pub(crate) fn name_idle_options(kind: &str, options: &BackendOptions) {
    let why = match kind {
        "host-gw" => "it has no tunnel",
        "udp" => "it checks senders always; see --udp-allow-from",
        _ => return,
    };
    if options.gate.mode == Mode::Enforce {
        info!(backend = kind, why, "--strict-underlay has no effect");
    }
}

/// A backend that this build does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("backend {kind:?} {}; this build has: {}", why(.kind), known.join(", "))]
pub(crate) struct NoBackend {
    kind: String,
    known: Vec<String>,
}

impl From<&UnknownBackend> for NoBackend {
    fn from(UnknownBackend { kind, known, .. }: &UnknownBackend) -> Self {
        Self { kind: kind.clone(), known: known.clone() }
    }
}

fn why(kind: &str) -> &'static str {
    match kind {
        kind if UPSTREAM.contains(&kind) => "of upstream flannel is not in this build",
        _ => "is unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_unknown_and_what_is_missing() {
        let known = vec!["vxlan".to_owned(), "udp".to_owned()];
        let error = |kind: &str| NoBackend { kind: kind.to_owned(), known: known.clone() }.to_string();
        assert_eq!(error("vxlna"), "backend \"vxlna\" is unknown; this build has: vxlan, udp");
        for kind in UPSTREAM {
            assert!(error(kind).contains("is not in this build; this build has: vxlan"), "{kind}");
        }
    }
}
