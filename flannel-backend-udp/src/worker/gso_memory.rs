//! Peers to which the kernel refused to send a train.

use std::net::{IpAddr, SocketAddr};

/// How long a refusal is remembered: path MTUs grow again, and devices get replaced.
const MEMORY_MS: u64 = 30_000;
const PLACES: usize = 256;

/// Remembers some refusals. Two peers may evict each other, which sometimes costs a further refusal.
#[derive(Debug)]
pub(super) struct GsoMemory {
    places: Box<[Option<(SocketAddr, u64)>; PLACES]>,
    /// Nothing is remembered beyond this time, so nothing need be looked up.
    latest: u64,
}

impl GsoMemory {
    pub(super) fn new() -> Self {
        Self { places: Box::new([None; PLACES]), latest: 0 }
    }

    /// Whether trains to a peer are worth trying.
    pub(super) fn allows(&self, peer: SocketAddr, now_ms: u64) -> bool {
        now_ms >= self.latest
            || !matches!(self.places[place(peer)], Some((known, until)) if known == peer && now_ms < until)
    }

    pub(super) fn refused(&mut self, peer: SocketAddr, now_ms: u64) {
        let until = now_ms + MEMORY_MS;
        self.places[place(peer)] = Some((peer, until));
        self.latest = until;
    }
}

fn place(peer: SocketAddr) -> usize {
    let bits = match peer.ip() {
        IpAddr::V4(addr) => u128::from(addr.to_bits()),
        IpAddr::V6(addr) => addr.to_bits(),
    };
    let folded = (bits as u64) ^ ((bits >> 64) as u64);
    (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_forgotten_in_time() {
        let mut memory = GsoMemory::new();
        let peer = SocketAddr::from(([10, 0, 0, 1], 8285));
        let other = SocketAddr::from(([10, 0, 0, 2], 8285));
        assert!(memory.allows(peer, 5));
        memory.refused(peer, 5);
        assert!(!memory.allows(peer, 6) && memory.allows(other, 6));
        assert!(memory.allows(peer, 5 + MEMORY_MS));
    }
}
