//! Collects datagrams for one peer into trains that one call can send.

use std::net::SocketAddr;

use crate::forward::PeerIndex;
use crate::socket::sys::{Message, Piece};

/// The most trains in one batch.
pub(super) const TRAINS: usize = 128;
/// Datagrams in a train: the kernel's limit before 6.9.
pub(super) const DATAGRAMS: usize = 64;
/// Bytes in a train: what UDP over IPv4 can describe.
pub(super) const TRAIN_BYTES: usize = 65507;
const PIECES: usize = DATAGRAMS * 2;

/// Datagrams of one length, the last maybe shorter.
#[derive(Debug, Clone, Copy)]
struct Train {
    peer: PeerIndex,
    to: SocketAddr,
    segment: usize,
    datagrams: usize,
    pieces: usize,
    bytes: usize,
    closed: bool,
}

/// The trains of a batch, in the order in which they were begun.
///
/// A datagram joins only the newest train of its peer, so that what goes to one peer stays in order.
pub(super) struct Trains {
    trains: Vec<Train>,
    /// A part of the same length for each train that any batch had so far.
    pieces: Vec<Piece>,
}

impl Trains {
    pub(super) fn new() -> Self {
        // Memory is the kernel's until it is written to, and most nodes never have many trains in a batch.
        Self { trains: Vec::with_capacity(TRAINS), pieces: Vec::with_capacity(TRAINS * PIECES) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.trains.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.trains.len() == TRAINS
    }

    pub(super) fn clear(&mut self) {
        self.trains.clear();
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Whether `datagrams` of `len` bytes, the last of `last`, can join the newest train of a peer.
    pub(super) fn has_room(&self, peer: PeerIndex, datagrams: usize, len: usize, last: usize) -> bool {
        self.newest(peer).is_some_and(|index| {
            let train = &self.trains[index];
            let equal = if datagrams > 1 { train.segment == len } else { last <= train.segment };
            let bytes = (datagrams - 1) * len + last;
            !train.closed
                && equal
                && train.datagrams + datagrams <= DATAGRAMS
                && train.bytes + bytes <= TRAIN_BYTES
        })
    }

    /// Begins a train for datagrams of `len` bytes. There must be room for one more.
    pub(super) fn begin(&mut self, peer: PeerIndex, to: SocketAddr, len: usize) {
        self.trains.push(Train { peer, to, segment: len, datagrams: 0, pieces: 0, bytes: 0, closed: false });
        let needed = self.trains.len() * PIECES;
        if self.pieces.len() < needed {
            self.pieces.resize(needed, Piece { is_header: false, start: 0, len: 0 });
        }
    }

    /// Adds a datagram to the newest train of its peer, for which there is room.
    pub(super) fn add(&mut self, peer: PeerIndex, parts: &[Piece]) {
        let Some(index) = self.newest(peer) else { return };
        let train = &mut self.trains[index];
        let at = index * PIECES + train.pieces;
        self.pieces[at..at + parts.len()].copy_from_slice(parts);
        let len: usize = parts.iter().map(|part| part.len as usize).sum();
        train.pieces += parts.len();
        train.datagrams += 1;
        train.bytes += len;
        train.closed |= len < train.segment;
    }

    /// Each train as peer, datagrams and bytes.
    pub(super) fn totals(&self) -> impl Iterator<Item = (PeerIndex, usize, usize)> + '_ {
        self.trains.iter().map(|train| (train.peer, train.datagrams, train.bytes))
    }

    /// Each train as one message.
    pub(super) fn messages(&self) -> impl Iterator<Item = Message> + '_ {
        self.trains.iter().enumerate().map(|(index, train)| {
            let start = (index * PIECES) as u32;
            Message {
                to: train.to,
                pieces: start..start + train.pieces as u32,
                segment: if train.datagrams > 1 { train.segment as u16 } else { 0 },
                datagrams: train.datagrams as u16,
                bytes: train.bytes as u32,
            }
        })
    }

    fn newest(&self, peer: PeerIndex) -> Option<usize> {
        self.trains.iter().rposition(|train| train.peer == peer)
    }
}

/// The datagrams of a train, each as a message of its own.
pub(super) fn singly<'a>(message: &Message, pieces: &'a [Piece]) -> impl Iterator<Item = Message> + use<'a> {
    let (to, mut at, end) = (message.to, message.pieces.start, message.pieces.end);
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        // Rebuilt headers are followed by their payload; a whole packet is one piece.
        let count = if pieces[at as usize].is_header { 2 } else { 1 };
        let parts = at..(at + count).min(end);
        at = parts.end;
        let bytes = pieces[parts.start as usize..parts.end as usize].iter().map(|piece| piece.len).sum();
        Some(Message { to, pieces: parts, segment: 0, datagrams: 1, bytes })
    })
}

/// How many of `count` datagrams of `len` bytes go into each train, so that all are about equally long.
pub(super) fn balanced(count: usize, len: usize) -> usize {
    let most = (TRAIN_BYTES / len.max(1)).clamp(1, DATAGRAMS);
    count.div_ceil(count.div_ceil(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trains_are_balanced() {
        assert_eq!(balanced(45, 1472), 23, "two trains of 23 and 22, not of 44 and 1");
        assert_eq!(balanced(1, 65507), 1);
        assert_eq!(balanced(64, 100), 64);
        assert_eq!(balanced(65, 100), 33);
        assert_eq!(balanced(3, 65000), 1);
    }

    const PEER: PeerIndex = PeerIndex(3);

    /// The trains after these datagrams for one peer, each as long as its number says, in a train of segments of `segment`.
    fn train(segment: usize, datagrams: &[usize]) -> Trains {
        let mut trains = Trains::new();
        trains.begin(PEER, ([192, 0, 2, 1], 8285).into(), segment);
        for len in datagrams {
            trains.add(PEER, &[Piece { is_header: false, start: 0, len: u32::try_from(*len).unwrap() }]);
        }
        trains
    }

    #[test]
    fn what_the_kernel_can_send_by_one_call_joins_a_train_and_no_more() {
        let nearly_full = vec![100; DATAGRAMS - 1];
        for (what, segment, there, (count, len, last), joins) in [
            ("one of the same length", 100, &[100][..], (1, 100, 100), true),
            ("a shorter one", 100, &[100], (1, 99, 99), true),
            ("a longer one", 100, &[100], (1, 101, 101), false),
            ("one behind a shorter one", 100, &[100, 99], (1, 99, 99), false),
            ("several, the last one shorter", 100, &[100], (3, 100, 50), true),
            ("several of another length", 100, &[100], (2, 99, 99), false),
            ("the last one that there is room for", 100, &nearly_full, (1, 100, 100), true),
            ("one more than that", 100, &nearly_full, (2, 100, 100), false),
            ("the last byte that there is room for", 40_000, &[40_000], (1, 25_507, 25_507), true),
            ("a byte more than that", 40_000, &[40_000], (1, 25_508, 25_508), false),
        ] {
            assert_eq!(train(segment, there).has_room(PEER, count, len, last), joins, "{what}");
        }
        assert!(!train(100, &[100]).has_room(PeerIndex(4), 1, 100, 100), "another peer's");
    }
}
