//! What only one node can have, and when two claims exclude each other.

use std::fmt;
use std::net::IpAddr;

use crate::addr::{Family, LinkIndex, MacAddr, Subnet};
use crate::lease::{LeaseAttrs, LeaseKey};

/// Something that only one node can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Claim {
    /// Pod addresses. Contradicts every claim on a subnet that overlaps, and every underlay address in it: a
    /// route to it would swallow the packets that carry all others.
    Subnet(Subnet),
    /// A VTEP MAC on a device of ours. Contradicts the same MAC at another underlay address.
    Vtep(LinkIndex, MacAddr, IpAddr),
    /// An underlay address. One node may have several leases, so of other underlay addresses this contradicts
    /// our own alone.
    Underlay(IpAddr),
}

/// Whose the other claim is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Holder {
    /// This node's.
    Us,
    /// That of a lease which holds.
    Lease(LeaseKey),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Us => f.write_str("this node"),
            Self::Lease(key) => write!(f, "lease {key}, which is older"),
        }
    }
}

impl Claim {
    /// What makes both impossible at once, with the field of the record that says so; `None` if nothing does.
    pub(super) fn against(self, other: Self, holder: Holder) -> Option<String> {
        let ours = matches!(holder, Holder::Us);
        match (self, other) {
            (Self::Subnet(subnet), Self::Subnet(theirs)) if subnet.overlaps(theirs) => {
                Some(format!("subnet {subnet} overlaps {theirs} of {holder}"))
            }
            (Self::Subnet(subnet), Self::Underlay(addr)) if subnet.contains(addr) => {
                Some(format!("subnet {subnet} covers the underlay address {addr} of {holder}"))
            }
            (Self::Underlay(addr), Self::Subnet(theirs)) if theirs.contains(addr) => {
                let field = LeaseAttrs::address_field(Family::of(addr));
                Some(format!("{field} {addr} lies in the subnet {theirs} of {holder}"))
            }
            (Self::Underlay(addr), Self::Underlay(own)) if ours && addr == own => {
                let field = LeaseAttrs::address_field(Family::of(addr));
                Some(format!("{field} {addr} is the underlay address of {holder}"))
            }
            (Self::Vtep(link, mac, at), Self::Vtep(other_link, other_mac, to))
                if (link, mac) == (other_link, other_mac) && (ours || at != to) =>
            {
                Some(format!("VtepMAC {mac} is that of {holder}"))
            }
            _ => None,
        }
    }
}

/// What makes the claims of one lease impossible together.
pub(super) fn against_itself(claims: &[Claim]) -> Option<String> {
    let subnets = claims.iter().filter_map(|claim| match claim {
        Claim::Subnet(subnet) => Some(*subnet),
        _ => None,
    });
    let covered = |subnet: Subnet| {
        claims.iter().find_map(|claim| match claim {
            Claim::Underlay(addr) if subnet.contains(*addr) => Some((*addr, subnet)),
            _ => None,
        })
    };
    let (addr, subnet) = subnets.into_iter().find_map(covered)?;
    let field = LeaseAttrs::address_field(Family::of(addr));
    Some(format!("{field} {addr} lies in its own subnet {subnet}; {}", LeaseAttrs::MEND))
}
