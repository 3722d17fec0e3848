//! Values that only one node can have, and when two claims conflict.

use std::fmt;
use std::net::IpAddr;

use crate::addr::{Family, LinkIndex, MacAddr, Subnet};
use crate::lease::{Field, LeaseAttrs};

/// A value that only one node can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Claim {
    /// A subnet of pods. It conflicts with every overlapping subnet, and with every underlay address in it: a route to
    /// the subnet would take the encapsulated packets to that address.
    Subnet(Subnet),
    /// A VTEP MAC on a device of ours. It conflicts with the same MAC at another underlay address.
    Vtep(LinkIndex, MacAddr, IpAddr),
    /// A public key on a device of ours, and the address and UDP port at which its node receives. It conflicts with the
    /// same key at another address or port.
    Key(LinkIndex, [u8; 32], IpAddr, u16),
    /// An underlay address. One node may have several leases, so two leases may have the same address; it conflicts
    /// only if it is this node's own.
    Underlay(IpAddr),
}

impl Claim {
    /// The underlay address that it names; `None` for a subnet.
    pub(crate) fn underlay(self) -> Option<IpAddr> {
        match self {
            Self::Subnet(_) => None,
            Self::Vtep(_, _, at) | Self::Key(_, _, at, _) | Self::Underlay(at) => Some(at),
        }
    }

    /// Whether it is of backend data that only one node can have.
    pub(crate) fn is_of_backend(self) -> bool {
        matches!(self, Self::Vtep(..) | Self::Key(..))
    }

    /// The part of a lease that makes this claim.
    pub fn field(self) -> Field {
        match self {
            Self::Subnet(subnet) => Field::Subnet(subnet.family()),
            Self::Vtep(_, _, at) => Field::BackendData(Family::of(at)),
            Self::Key(_, _, at, _) => Field::BackendData(Family::of(at)),
            Self::Underlay(addr) => Field::PublicIp(Family::of(addr)),
        }
    }

    /// Whether two nodes can't have both.
    pub(super) fn excludes(self, other: Self) -> bool {
        match (self, other) {
            (Self::Subnet(subnet), Self::Subnet(theirs)) => subnet.overlaps(theirs),
            (Self::Subnet(subnet), Self::Underlay(addr)) | (Self::Underlay(addr), Self::Subnet(subnet)) => {
                subnet.contains(addr)
            }
            (Self::Vtep(link, mac, at), Self::Vtep(other_link, other_mac, to)) => {
                (link, mac) == (other_link, other_mac) && at != to
            }
            (Self::Key(link, key, at, port), Self::Key(other_link, other_key, to, other_port)) => {
                (link, key) == (other_link, other_key) && (at, port) != (to, other_port)
            }
            _ => false,
        }
    }

    /// Whether this claim of another node conflicts with a claim of this node.
    pub(super) fn excludes_ours(self, own: Self) -> bool {
        match (self, own) {
            (Self::Underlay(addr), Self::Underlay(own)) => addr == own,
            (Self::Vtep(link, mac, _), Self::Vtep(own_link, own_mac, _)) => {
                (link, mac) == (own_link, own_mac)
            }
            (Self::Key(link, key, ..), Self::Key(own_link, own_key, ..)) => {
                (link, key) == (own_link, own_key)
            }
            _ => self.excludes(own),
        }
    }

    /// Why both claims conflict, with the field of the record.
    pub(super) fn against(self, other: Self, holder: &dyn fmt::Display) -> String {
        match (self, other) {
            (Self::Subnet(subnet), Self::Underlay(addr)) => {
                format!("subnet {subnet} covers the underlay address {addr} of {holder}")
            }
            (Self::Subnet(subnet), _) => {
                let theirs = if let Self::Subnet(theirs) = other { theirs } else { subnet };
                format!("subnet {subnet} overlaps {theirs} of {holder}")
            }
            (Self::Underlay(addr), Self::Subnet(theirs)) => {
                let field = LeaseAttrs::address_field(Family::of(addr));
                format!("{field} {addr} lies in the subnet {theirs} of {holder}")
            }
            (Self::Underlay(addr), _) => {
                let field = LeaseAttrs::address_field(Family::of(addr));
                format!("{field} {addr} is the underlay address of {holder}")
            }
            (Self::Vtep(_, mac, _), _) => format!("VtepMAC {mac} is that of {holder}"),
            (Self::Key(..), _) => format!("its PublicKey is that of {holder}"),
        }
    }
}

/// Why the claims of one lease conflict with each other.
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
