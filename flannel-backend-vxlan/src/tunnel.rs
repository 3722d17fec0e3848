//! The tunnel as probes see it, and whether its devices complete checksums. Pure.

use flannel_core::addr::{Family, MacAddr, PerFamily, Vni};
use flannel_core::backend::{ChecksumSwitch, Tunnel};

/// The flag of a VXLAN header that says that it has a VNI (RFC 7348 section 5).
const HAS_VNI: u8 = 0x08;
/// The types of IPv4 and IPv6 in an Ethernet header.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// Whether the devices complete the checksums of pods' packets, or the kernel computes them before.
///
/// Some NICs, and some virtual ones, send packets in tunnels with wrong checksums when that is left to them. Then pings
/// pass, and TCP and UDP don't. To compute them in the kernel costs throughput, so it is not done for everybody.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TxChecksum {
    /// The devices are left as they are.
    #[default]
    Keep,
    /// The kernel computes checksums from the moment on when probes have proven both: that packets are lost whose
    /// checksums the device should complete, and that the same packets pass with a checksum by the kernel. It takes
    /// probes ([`AgentBuilder::probes`](flannel_core::agent::AgentBuilder::probes)), and lasts until the agent ends; a
    /// later agent finds the devices so, and leaves them as they are.
    Auto,
    /// The kernel computes checksums always.
    Off,
}

/// What is held of the devices' checksums.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checksums {
    /// Whether the kernel computes them always.
    always: bool,
    /// Turned by probes.
    pub(crate) switch: Option<ChecksumSwitch>,
}

impl Checksums {
    pub(crate) fn new(held: TxChecksum) -> Self {
        let switch = (held == TxChecksum::Auto).then(ChecksumSwitch::default);
        Self { always: held == TxChecksum::Off, switch }
    }

    /// Why the devices must not complete checksums; `None` if they are left as they are.
    pub(crate) fn why_off(&self) -> Option<String> {
        let proof = || self.switch.as_ref()?.proof();
        if self.always { Some("--vxlan-tx-checksum=off".to_owned()) } else { proof() }
    }
}

/// Wraps packets by hand, as the kernel does.
#[derive(Debug)]
pub(crate) struct VxlanTunnel {
    pub(crate) vni: Vni,
    pub(crate) port: u16,
    /// The MACs of this node's devices. One that was changed since does no harm: it is the frames' source.
    pub(crate) macs: PerFamily<MacAddr>,
}

impl Tunnel for VxlanTunnel {
    fn port(&self, _: Family) -> u16 {
        self.port
    }

    fn wrap(&self, family: Family, to: Option<MacAddr>, packet: &[u8]) -> Option<Vec<u8>> {
        let kind = if family == Family::V4 { IPV4 } else { IPV6 };
        let mut frame = vec![HAS_VNI, 0, 0, 0];
        frame.extend((self.vni.get() << 8).to_be_bytes());
        frame.extend(to.unwrap_or(MacAddr([0xff; 6])).0);
        frame.extend(self.macs.get(family)?.0);
        frame.extend(kind.to_be_bytes());
        frame.extend(packet);
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_wrapped_as_rfc_7348_says() {
        let macs = PerFamily { v4: Some(MacAddr([2, 0, 0, 0, 0, 1])), v6: None };
        let tunnel = VxlanTunnel { vni: Vni::new(0x0a_0b0c).unwrap(), port: 8472, macs };
        let to = MacAddr([2, 0, 0, 0, 0, 9]);
        let wrapped = tunnel.wrap(Family::V4, Some(to), b"packet").unwrap();
        let frame = [8, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0, 2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0];
        assert_eq!(wrapped, [&frame[..], b"packet"].concat());
        assert_eq!(tunnel.wrap(Family::V4, None, b"").unwrap()[8..14], [0xff; 6]);
        assert_eq!(tunnel.wrap(Family::V6, None, b""), None, "this node has no device for it");
    }

    #[test]
    fn checksums_are_left_alone_unless_something_is_proven_or_said() {
        assert_eq!(Checksums::new(TxChecksum::Keep).why_off(), None);
        assert!(Checksums::new(TxChecksum::Keep).switch.is_none());
        assert!(Checksums::new(TxChecksum::Off).why_off().is_some());
        let auto = Checksums::new(TxChecksum::Auto);
        assert_eq!(auto.why_off(), None);
        auto.switch.as_ref().unwrap().turn_off("lost");
        auto.switch.as_ref().unwrap().turn_off("lost again");
        assert_eq!(auto.why_off().as_deref(), Some("lost"));
    }
}
