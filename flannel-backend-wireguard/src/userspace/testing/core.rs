//! The protocol's core alone, to measure what of a tunnel's cost is the cipher's.

use crate::key::PublicKey;
use crate::userspace::noise::{Data, Identity, LONGEST_HANDSHAKE, Tunnel};

use super::private_key;

/// One end of a session.
pub struct End(Tunnel);

/// Two ends that have made their handshake: the first one seals, the second one opens.
///
/// # Panics
/// If the core refuses its own handshake.
pub fn session() -> (End, End) {
    let [one, other] = [1, 2].map(|number| Identity::new(&private_key(number)));
    let end = |own: &Identity, peer: PublicKey, index| Tunnel::new(own, peer, None, index);
    let (mut first, mut second) = (end(&one, other.public(), 1), end(&other, one.public(), 2));
    let (mut message, mut answer) = ([0; LONGEST_HANDSHAKE], [0; LONGEST_HANDSHAKE]);
    let len = first.initiate(&mut message).expect("none has begun");
    let len = second.handshake(&message[..len], &mut answer).ok().flatten().expect("an answer");
    let len = first.handshake(&answer[..len], &mut message).ok().flatten().expect("a keepalive");
    assert_eq!(second.open(&message[..len], &mut answer), Ok(Data::Keepalive));
    (End(first), End(second))
}

impl End {
    /// Seals a packet into `out`, which has 32 bytes more and 148 at least, and returns the length of the datagram.
    pub fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        self.0.seal(packet, out)
    }

    /// Opens a datagram into `out`, which is as long, and returns the length of the packet.
    pub fn open(&mut self, datagram: &[u8], out: &mut [u8]) -> Option<usize> {
        match self.0.open(datagram, out) {
            Ok(Data::Packet(len)) => Some(len),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::userspace::testing::packet;

    #[test]
    fn what_one_end_seals_the_other_opens() {
        let (mut one, mut other) = session();
        let packet = packet([10, 0, 1, 1], [10, 0, 2, 1], &[7; 100]);
        let (mut sealed, mut opened) = ([0; 200], [0; 200]);
        let len = one.seal(&packet, &mut sealed).unwrap();
        assert_eq!(len, packet.len() + 32);
        assert_eq!(other.open(&sealed[..len], &mut opened), Some(packet.len()));
        assert_eq!(opened[..packet.len()], packet);
        assert_eq!(other.open(&sealed[..len], &mut opened), None, "a second time it is a replay");
    }
}
