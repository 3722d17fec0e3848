//! The virtio-net header in front of every packet that a TUN with offloads reads or writes.

/// `struct virtio_net_hdr` of `<linux/virtio_net.h>`, in the machine's byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct VnetHeader {
    /// See [`NEEDS_CHECKSUM`](Self::NEEDS_CHECKSUM).
    pub flags: u8,
    /// What kind of super-packet this is, if any.
    pub gso_type: u8,
    /// Bytes of all headers; only a hint.
    pub header_len: u16,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// Where the checksum begins to cover the packet.
    pub csum_start: u16,
    /// Where the checksum's field is, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Its length in bytes.
    pub(crate) const LEN: usize = 10;
    /// Flag: the checksum field holds the folded sum of the pseudo header; the rest is to be summed.
    pub(crate) const NEEDS_CHECKSUM: u8 = 1;
    /// Type: an ordinary packet.
    pub(crate) const GSO_NONE: u8 = 0;
    /// Type: TCP over IPv4.
    pub(crate) const GSO_TCPV4: u8 = 1;
    /// Type: TCP over IPv6.
    pub(crate) const GSO_TCPV6: u8 = 4;
    /// Type: UDP datagrams of one size, over either.
    pub(crate) const GSO_UDP_L4: u8 = 5;
    /// Bit in the type of TCP: the first segment alone carries CWR.
    pub(crate) const GSO_ECN: u8 = 0x80;

    /// Reads the header.
    pub(crate) fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            header_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// Writes the header.
    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        let words = [self.header_len, self.gso_size, self.csum_start, self.csum_offset];
        for (to, word) in bytes[2..].as_chunks_mut::<2>().0.iter_mut().zip(words) {
            *to = word.to_ne_bytes();
        }
        bytes
    }
}
