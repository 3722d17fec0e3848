//! What can be said of a datagram before its content is trusted (paper section 5.4).

use flannel_backend_udp::datapath::DropReason;

/// The counter from which on a session takes nothing (`REJECT_AFTER_MESSAGES`, paper section 6.1).
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// The four kinds of messages, by what is done with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// Data of the session with this index.
    Data {
        /// The session's index here.
        receiver: u32,
    },
    /// An initiation, a response or a cookie reply.
    Handshake,
}

impl Message {
    /// The kind of a datagram. Its length is one that its kind has.
    pub(crate) fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        let (kind, rest) = datagram.split_first_chunk().ok_or(DropReason::BadMessage)?;
        match (u32::from_le_bytes(*kind), datagram.len()) {
            (1, 148) | (2, 92) | (3, 64) => Ok(Self::Handshake),
            (4, 32..) => {
                let (receiver, rest) = rest.split_first_chunk().ok_or(DropReason::BadMessage)?;
                let (counter, _) = rest.split_first_chunk().ok_or(DropReason::BadMessage)?;
                if u64::from_le_bytes(*counter) >= REJECT_AFTER_MESSAGES {
                    return Err(DropReason::Replayed);
                }
                Ok(Self::Data { receiver: u32::from_le_bytes(*receiver) })
            }
            _ => Err(DropReason::BadMessage),
        }
    }

    /// Whether a message that we made is data, rather than part of a handshake.
    pub(crate) fn is_data(made: &[u8]) -> bool {
        made.first() == Some(&4)
    }

    /// Whether a handshake message is the response, to whose sender the next packets can go.
    pub(crate) fn is_response(handshake: &[u8]) -> bool {
        handshake.first() == Some(&2)
    }

    /// Whether a handshake message only brings a cookie.
    pub(crate) fn is_cookie(handshake: &[u8]) -> bool {
        handshake.first() == Some(&3)
    }
}

/// The length to which a packet is padded: a multiple of 16, but no longer than the link takes (paper section 5.4.6, and
/// as the kernel does it).
pub(crate) fn padded(len: usize, mtu: usize) -> usize {
    len.next_multiple_of(16).min(mtu).max(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(kind: u32, len: usize, counter: u64) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        if len >= 16 {
            bytes[4..8].copy_from_slice(&77_u32.to_le_bytes());
            bytes[8..16].copy_from_slice(&counter.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn messages_have_the_lengths_of_their_kinds() {
        let (bad, late) = (Err(DropReason::BadMessage), Err(DropReason::Replayed));
        let data = Ok(Message::Data { receiver: 77 });
        for (what, bytes, expected) in [
            ("nothing", vec![], bad),
            ("half a kind", vec![4, 0], bad),
            ("an initiation", datagram(1, 148, 0), Ok(Message::Handshake)),
            ("one that is longer", datagram(1, 149, 0), bad),
            ("a response", datagram(2, 92, 0), Ok(Message::Handshake)),
            ("one that is shorter", datagram(2, 91, 0), bad),
            ("a cookie", datagram(3, 64, 0), Ok(Message::Handshake)),
            ("a keepalive", datagram(4, 32, 5), data),
            ("data", datagram(4, 1452, 5), data),
            ("data without a whole tag", datagram(4, 31, 5), bad),
            ("the last counter", datagram(4, 32, REJECT_AFTER_MESSAGES - 1), data),
            ("one behind it", datagram(4, 32, REJECT_AFTER_MESSAGES), late),
            ("the last number", datagram(4, 32, u64::MAX), late),
            ("no kind", datagram(0, 148, 0), bad),
            ("bits that are reserved", datagram(0x0100_0001, 148, 0), bad),
        ] {
            assert_eq!(Message::parse(&bytes), expected, "{what}");
        }
    }

    #[test]
    fn padding_ends_where_the_link_does() {
        for (len, mtu, expected) in
            [(0, 1420, 0), (1, 1420, 16), (16, 1420, 16), (1409, 1420, 1420), (1420, 1420, 1420)]
        {
            assert_eq!(padded(len, mtu), expected, "{len}");
        }
        assert_eq!(padded(1500, 1420), 1500, "what came is sent, whatever the link was told");
    }
}
