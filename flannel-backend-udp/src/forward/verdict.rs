//! What becomes of a packet, in either direction.

use std::net::IpAddr;

use flannel_core::addr::Family;

use super::{Lookup, OWN, PeerIndex};
use crate::counters::DropReason;
use crate::packet::icmp::IcmpError;
use crate::packet::{HeaderError, IpHeader, is_group, is_host_source};

/// What becomes of a packet from the TUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outbound {
    /// It goes to a peer.
    Send(PeerIndex),
    /// It doesn't, and its sender may be told so.
    Drop(DropReason, Option<IcmpError>),
}

/// Who sent a datagram, as far as its underlay address tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A peer.
    Peer(PeerIndex),
    /// Somebody on the allow list.
    Allowed,
    /// Nobody we know.
    Stranger,
}

/// What becomes of a packet out of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inbound {
    /// It goes to the TUN. The peer is the sender, or the one in whose subnet the packet's source lies
    /// where the allow list let it in.
    Accept(Option<PeerIndex>),
    /// It doesn't, and its sender may be told so.
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
        // In the order of a router: first whether it lives, then where to.
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

    /// Tells who sent a datagram. The port doesn't matter: it may have been translated on the way.
    pub(crate) fn sender(&self, source: IpAddr) -> Sender {
        match self.table.by_source.get(&source) {
            Some(peer) => Sender::Peer(PeerIndex(*peer)),
            None if self.table.is_allowed(source) => Sender::Allowed,
            None => Sender::Stranger,
        }
    }

    /// Decides about a packet that came from `source`, which is `sender`.
    ///
    /// A source outside the overlay passes: hosts and load balancers that keep the client's address send
    /// such packets. A destination outside of our own subnet does not: no peer's packet leaves this node again,
    /// by the tunnel or as the node's own. Nobody is told, since no honest node sends one.
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
                // Two peers can share an address, behind NAT: each may send what either may.
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

    /// The address that an error about this packet comes from.
    pub(crate) fn error_source(&self, family: Family) -> Option<IpAddr> {
        self.table.own_address(family)
    }
}
