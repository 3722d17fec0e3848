//! The backends of this build, by the name that the network config gives.

use flannel_backend_hostgw::HostGwBackend;
use flannel_backend_udp::{UdpBackend, UdpOptions};
use flannel_backend_vxlan::{NextHopObjects, VxlanBackend};
use flannel_core::backend::Backend;
use flannel_core::firewall::gate::{GateOptions, Mode};
use tracing::info;

/// The kinds of this build.
const KNOWN: &[&str] = &["vxlan", "host-gw", "udp"];
/// Kinds that upstream has, or had, besides.
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

/// What backends are to do on this node, besides what the config of the network says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BackendOptions {
    /// For the udp backend.
    pub(crate) udp: UdpOptions,
    /// For the vxlan backend.
    pub(crate) next_hop_objects: NextHopObjects,
    /// What vxlan does about packets from strangers.
    pub(crate) gate: GateOptions,
}

/// A backend that this build does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("backend {kind:?} {}; this build has: {}", why(.kind), KNOWN.join(", "))]
pub(crate) struct UnknownBackend {
    kind: String,
}

fn why(kind: &str) -> &'static str {
    match kind {
        kind if UPSTREAM.contains(&kind) => "of upstream flannel is not in this build",
        _ => "is unknown",
    }
}

/// Makes the backend of a kind.
pub(crate) fn backend(kind: &str, options: &BackendOptions) -> Result<Box<dyn Backend>, UnknownBackend> {
    let why = match kind {
        "host-gw" => "it has no tunnel",
        _ => "it checks senders always; see --udp-allow-from",
    };
    if ["host-gw", "udp"].contains(&kind) && options.gate.mode == Mode::Enforce {
        info!(backend = kind, why, "--strict-underlay has no effect");
    }
    match kind {
        "vxlan" => Ok(Box::new(
            VxlanBackend::new()
                .next_hop_objects(options.next_hop_objects)
                .strict_underlay(options.gate.clone()),
        )),
        "host-gw" => Ok(Box::new(HostGwBackend::new())),
        "udp" => Ok(Box::new(UdpBackend::new(options.udp.clone()))),
        _ => Err(UnknownBackend { kind: kind.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_what_it_knows() {
        for kind in KNOWN {
            assert_eq!(backend(kind, &BackendOptions::default()).unwrap().kind(), *kind);
        }
    }

    #[test]
    fn says_what_is_unknown_and_what_is_missing() {
        let error = |kind| backend(kind, &BackendOptions::default()).map(|_| ()).unwrap_err().to_string();
        assert_eq!(error("vxlna"), "backend \"vxlna\" is unknown; this build has: vxlan, host-gw, udp");
        for kind in UPSTREAM {
            assert!(error(kind).contains("is not in this build; this build has: vxlan"), "{kind}");
        }
    }
}
