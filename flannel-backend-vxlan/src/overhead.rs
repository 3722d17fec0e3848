//! The bytes that the tunnel adds to each packet. Pure.

use flannel_core::addr::Family;

/// Bytes that VXLAN adds: outer IP header, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348 section 5).
pub(crate) fn encap_overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 20 + 8 + 8 + 14,
        Family::V6 => 40 + 8 + 8 + 14,
    }
}
