//! TCP and UDP headers, as far as cutting and coalescing need them.

use super::{be16, be32};

/// The protocol number of TCP.
pub(crate) const TCP: u8 = 6;
/// The protocol number of UDP.
pub(crate) const UDP: u8 = 17;
/// The protocol number of ICMP.
pub(crate) const ICMP: u8 = 1;
/// The protocol number of `ICMPv6`.
pub(crate) const ICMPV6: u8 = 58;

/// Bytes of a UDP header.
pub(crate) const UDP_HEADER: usize = 8;
/// Bytes of a TCP header without options.
pub(crate) const TCP_HEADER: usize = 20;

/// TCP flags.
pub(crate) mod flags {
    /// No more data from the sender.
    pub(crate) const FIN: u8 = 0x01;
    /// Hand the data on now.
    pub(crate) const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub(crate) const ACK: u8 = 0x10;
    /// Congestion window reduced (RFC 3168).
    pub(crate) const CWR: u8 = 0x80;
}

/// A TCP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TcpHeader {
    /// Bytes with options.
    pub header_len: usize,
    /// The sequence number of the first byte.
    pub sequence: u32,
    /// The flags in the low byte.
    pub flags: u8,
}

impl TcpHeader {
    /// Reads the header at the start of `bytes`; `None` if it isn't all there, or its length is wrong.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < TCP_HEADER {
            return None;
        }
        let header_len = usize::from(bytes[12] >> 4) * 4;
        (header_len >= TCP_HEADER && header_len <= bytes.len()).then(|| Self {
            header_len,
            sequence: be32(bytes, 4),
            flags: bytes[13],
        })
    }
}

/// A UDP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UdpHeader {
    /// Bytes with the header.
    pub len: usize,
    /// The checksum; zero for none.
    pub checksum: u16,
}

impl UdpHeader {
    /// Reads the header at the start of `bytes`; `None` if it isn't all there.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= UDP_HEADER)
            .then(|| Self { len: usize::from(be16(bytes, 4)), checksum: be16(bytes, 6) })
    }
}
