//! The kinds of packets that probes send. Pure.

/// The kind of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A small echo through the overlay.
    Small,
    /// An echo through the overlay that fills its MTU.
    Full,
    /// UDP through the overlay whose checksum the device completes.
    Offloaded,
    /// UDP through the overlay with a checksum by the kernel.
    Software,
    /// A TCP connection through the overlay.
    Tcp,
    /// A small echo on the underlay.
    UnderEcho,
    /// UDP on the underlay.
    UnderUdp,
    /// A TCP connection on the underlay.
    UnderTcp,
    /// A datagram to the tunnel's port that its owner ignores.
    Closed,
    /// An echo that goes through the tunnel and is answered on the underlay.
    Sideways,
    /// The same to whatever MAC the peer's device has.
    AnyMac,
    /// The question to its link who has its address.
    Solicit,
    /// An echo through the overlay of the largest size that passed, in bytes with its IP header.
    AtLargest(u32),
    /// An echo of this size, by which the largest one that passes is searched.
    Rung(u32),
}

impl Kind {
    /// Whether its size is what is tried.
    pub(super) fn is_large(self) -> bool {
        matches!(self, Self::Full | Self::AtLargest(_) | Self::Rung(_))
    }

    /// Whether it is the peer's node on the underlay that answers.
    pub(super) fn is_underlay(self) -> bool {
        matches!(self, Self::UnderEcho | Self::UnderUdp | Self::UnderTcp | Self::Closed | Self::Solicit)
    }
}
