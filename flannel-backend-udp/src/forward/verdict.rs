//! Decides about packets, in both directions.

use std::net::IpAddr;

use flannel_core::addr::Family;

use super::{Lookup, OWN, PeerIndex};
use crate::counters::DropReason;
use crate::packet::icmp::IcmpError;
use crate::packet::{HeaderError, IpHeader, is_group, is_host_source};

/// The decision about a packet from the TUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outbound {
    /// It goes to a peer.
    Send(PeerIndex),
    /// It is dropped, and its sender may get an error.
    Drop(DropReason, Option<IcmpError>),
}

/// Who sent a datagram, by its underlay address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// A peer.
    Peer(PeerIndex),
    /// A host on the allow list.
    Allowed,
    /// An unknown host.
    Stranger,
}

/// The decision about a packet from a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inbound {
    /// It is written to the TUN. The peer is the sender; if the allow list admitted the packet, the peer whose subnet
    /// contains its source.
    Accept(Option<PeerIndex>),
    /// It is dropped, and its sender may get an error.
    Drop(DropReason, Option<IcmpError>),
}

impl From<HeaderError> for DropReason {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::Truncated => Self::Truncated,
            HeaderError::Version => Self::NotIp,
            HeaderError::Length => Self::BadHeader,
        }
    }
}

impl Lookup<'_> {
    /// Decides about a packet from the TUN. `largest` is the length of its largest part on the wire.
    pub(crate) fn outbound(&mut self, ip: &IpHeader, largest: usize) -> Outbound {
        if self.table.own_address(ip.family()).is_none() {
            return Outbound::Drop(DropReason::FamilyDisabled, None);
        }
        if is_group(ip.destination) {
            return Outbound::Drop(DropReason::Group, None);
        }
        // In the order of a router: first the hop limit, then the route.
        if ip.hop_limit <= 1 {
            return Outbound::Drop(DropReason::Expired, Some(IcmpError::TimeExceeded));
        }
        let peer = match self.owner(ip.destination) {
            None => return Outbound::Drop(DropReason::NoRoute, Some(IcmpError::NoRoute)),
            Some(OWN) => return Outbound::Drop(DropReason::OwnSubnet, Some(IcmpError::HostUnreachable)),
            Some(peer) => PeerIndex(peer),
        };
        match self.table.overlay_mtu {
            Some(mtu) if ip.dont_fragment && largest > mtu.0 as usize => {
                Outbound::Drop(DropReason::TooBig, Some(IcmpError::TooBig(mtu)))
            }
            _ => Outbound::Send(peer),
        }
    }

    /// Who sent a datagram. The port doesn't matter, since NAT may have changed it.
    pub(crate) fn sender(&self, source: IpAddr) -> Sender {
        match self.table.by_source.get(&source) {
            Some(peer) => Sender::Peer(PeerIndex(*peer)),
            None if self.table.is_allowed(source) => Sender::Allowed,
            None => Sender::Stranger,
        }
    }

    /// Decides about a packet from the underlay address `source` of `sender`.
    ///
    /// A source outside of the overlay is accepted: hosts, and load balancers that keep the client's address, send such
    /// packets. A destination outside of our own subnet is not: this node never forwards a peer's packet, neither to
    /// the tunnel nor to the world. No error is sent, since no honest node sends such packets.
    pub(crate) fn inbound(&mut self, sender: Sender, source: IpAddr, ip: &IpHeader) -> Inbound {
        let drop = |reason| Inbound::Drop(reason, None);
        if self.table.own_address(ip.family()).is_none() {
            return drop(DropReason::FamilyDisabled);
        }
        if !is_host_source(ip.source) {
            return drop(DropReason::BadSource);
        }
        let owner = self.owner(ip.source);
        let accepted = match (sender, owner) {
            (Sender::Stranger, _) => return drop(DropReason::UnknownSender),
            (_, Some(OWN)) => return drop(DropReason::SourceIsOurs),
            (Sender::Peer(peer), None) => Some(peer),
            (Sender::Peer(peer), Some(owner)) => {
                // Behind NAT two peers can share an address: each may send what either may.
                if owner != peer.0 && !self.table.sends_from(owner, source) {
                    return drop(DropReason::SourceIsAnothers);
                }
                Some(PeerIndex(owner))
            }
            (Sender::Allowed, owner) => owner.map(PeerIndex),
        };
        if !self.table.is_ours(ip.destination) {
            return drop(DropReason::NotForUs);
        }
        if ip.hop_limit <= 1 {
            return Inbound::Drop(DropReason::Expired, Some(IcmpError::TimeExceeded));
        }
        Inbound::Accept(accepted)
    }

    /// The source address of an error about this packet.
    pub(crate) fn error_source(&self, family: Family) -> Option<IpAddr> {
        self.table.own_address(family)
    }
}
