//! Echo messages (RFC 792, RFC 4443 section 4), to bytes and back.

/// The ICMP header of an echo in bytes.
const HEADER: usize = 8;
/// The bytes of the payload that the lab uses: the cookie and the number.
pub(super) const MIN_PAYLOAD: usize = 16;

/// What tells our echoes from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) v6: bool,
    pub(super) cookie: u64,
}

impl Label {
    fn request(self) -> u8 {
        if self.v6 { 128 } else { 8 }
    }

    fn reply(self) -> u8 {
        if self.v6 { 129 } else { 0 }
    }

    /// An echo request with its checksum; for `ICMPv6` the kernel puts in its own.
    pub(super) fn encode(self, number: u64, payload: usize) -> Vec<u8> {
        let mut packet = vec![0; HEADER + payload.max(MIN_PAYLOAD)];
        packet[0] = self.request();
        packet[4..6].copy_from_slice(&(self.cookie as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&(number as u16).to_be_bytes());
        packet[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        packet[16..24].copy_from_slice(&number.to_be_bytes());
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    /// The number in a reply to one of our echoes. A raw IPv4 socket hands out the IP header too.
    pub(super) fn decode(self, packet: &[u8]) -> Option<u64> {
        let header = if self.v6 { 0 } else { usize::from(packet.first()? & 0xf) * 4 };
        let icmp = packet.get(header..)?;
        let eight = |at: usize| Some(u64::from_be_bytes(icmp.get(at..at + 8)?.try_into().ok()?));
        (*icmp.first()? == self.reply() && eight(8)? == self.cookie).then(|| eight(16))?
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(packet: &[u8]) -> u16 {
    let words = packet.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(u16::from_be_bytes([high, 0])),
        _ => 0,
    });
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_known_by_its_cookie() {
        let label = Label { v6: false, cookie: 0x0102_0304_0506_0708 };
        let number = u64::from(u32::MAX) + 7;
        let mut reply = [vec![0x46; 24], label.encode(number, 57)].concat();
        assert_eq!(label.decode(&reply), None, "a request");
        reply[24] = 0;
        assert_eq!(label.decode(&reply), Some(number));
        assert_eq!(Label { cookie: 1, ..label }.decode(&reply), None);
        assert_eq!(label.decode(&reply[..40]), None);
        assert_eq!(label.decode(&[]), None);
    }

    #[test]
    fn ipv6_replies_come_without_their_header() {
        let label = Label { v6: true, cookie: 9 };
        let mut packet = label.encode(3, 0);
        assert_eq!(packet.len(), HEADER + MIN_PAYLOAD);
        packet[0] = 129;
        assert_eq!(label.decode(&packet), Some(3));
    }

    #[test]
    fn a_packet_with_its_checksum_sums_to_zero() {
        for payload in [16, 57, 1400] {
            let packet = Label { v6: false, cookie: u64::MAX }.encode(0xffff, payload);
            assert_eq!(checksum(&packet), 0);
        }
    }
}
