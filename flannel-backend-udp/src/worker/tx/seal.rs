//! From the TUN to the underlay through a cipher: each packet, or each segment of a super-packet, becomes one datagram.
//!
//! A cipher wants a packet in one piece. So the headers of a segment are written in front of its payload, over the end of
//! the payload before it, which has been sealed by then: no payload is copied only to be sealed.

use std::ops::Range;

use super::TxPath;
use crate::counters::DropReason;
use crate::forward::PeerIndex;
use crate::passage::{Batch, Cipher, Sealed};
use crate::segment::{MAX_HEADERS, Segments};
use crate::socket::sys::Piece;
use crate::worker::Context;
use crate::worker::train::{TRAIN_BYTES, balanced};

/// The most padding that a cipher writes behind a packet.
pub(super) const PADDING: usize = 16;

impl TxPath {
    /// Seals the packet at `range` and queues the datagram.
    pub(super) fn seal_whole<B: Batch>(
        &mut self,
        peer: PeerIndex,
        range: &Range<usize>,
        batch: &mut B,
        context: &mut Context<'_>,
    ) {
        // Behind the packet is what no earlier read has filled, or the next read will.
        if let Some(sealed) = self.seal(peer, range.start, range.len(), batch, context) {
            let joins = self.trains.has_room(peer, 1, sealed.len, sealed.len);
            self.queue_sealed(peer, sealed, joins, batch, context);
        }
    }

    /// Seals the segments of the super-packet at `range`, and queues the datagrams.
    pub(super) fn seal_segments<B: Batch>(
        &mut self,
        peer: PeerIndex,
        range: &Range<usize>,
        mut segments: Segments,
        batch: &mut B,
        context: &mut Context<'_>,
    ) {
        let (count, header_len, full) = (segments.count(), segments.header_len(), segments.full_len());
        let mut original = [0; MAX_HEADERS];
        let mut headers = [0; MAX_HEADERS];
        original[..header_len].copy_from_slice(&self.packets[range.start..range.start + header_len]);
        let each = balanced(count, full + <B::Cipher as Cipher>::OVERHEAD);
        for index in 0..count {
            // Segments shorter than their headers may have overwritten the first ones.
            self.packets[range.start..range.start + header_len].copy_from_slice(&original[..header_len]);
            let header = &mut headers[..header_len];
            let Some(payload) = segments.next(&self.packets[range.clone()], header) else { break };
            let start = range.start + payload.start - header_len;
            let len = header_len + payload.len();
            self.packets[start..start + header_len].copy_from_slice(header);
            // Padding would overwrite the beginning of the next segment.
            let behind: [u8; PADDING] = self.behind(start + len);
            let sealed = self.seal(peer, start, len, batch, context);
            self.packets[start + len..start + len + PADDING].copy_from_slice(&behind);
            if let Some(sealed) = sealed {
                let joins = index % each != 0 && self.trains.has_room(peer, 1, sealed.len, sealed.len);
                self.queue_sealed(peer, sealed, joins, batch, context);
            }
        }
    }

    fn behind(&self, at: usize) -> [u8; PADDING] {
        let mut bytes = [0; PADDING];
        bytes.copy_from_slice(&self.packets[at..at + PADDING]);
        bytes
    }

    /// Seals a packet into the room for datagrams.
    fn seal<B: Batch>(
        &mut self,
        peer: PeerIndex,
        start: usize,
        len: usize,
        batch: &mut B,
        context: &mut Context<'_>,
    ) -> Option<Sealed> {
        let most = (len + <B::Cipher as Cipher>::OVERHEAD).max(<B::Cipher as Cipher>::LONGEST);
        if most > TRAIN_BYTES {
            context.tally.dropped(DropReason::TooBig, 1);
            return None;
        }
        if self.sealed_used + most > self.sealed.len() {
            self.flush(batch, context);
        }
        let packet = &mut self.packets[start..start + len + PADDING];
        let out = &mut self.sealed[self.sealed_used..self.sealed_used + most];
        match batch.cipher()?.seal(peer, packet, len, out) {
            Ok(sealed) => sealed,
            Err(reason) => {
                context.tally.dropped(reason, 1);
                None
            }
        }
    }

    /// Adds the datagram that was sealed last to the newest train of its peer, or begins another.
    fn queue_sealed<B: Batch>(
        &mut self,
        peer: PeerIndex,
        sealed: Sealed,
        joins: bool,
        batch: &mut B,
        context: &mut Context<'_>,
    ) {
        let start = self.sealed_used;
        self.sealed_used += sealed.len;
        let mut piece = Piece { is_header: false, start: start as u32, len: sealed.len as u32 };
        if !joins {
            if self.trains.is_full() {
                self.flush_but(start, sealed.len, batch, context);
                piece.start = 0;
            }
            self.trains.begin(peer, sealed.to, sealed.len);
        }
        self.trains.add(peer, &[piece]);
    }

    /// Sends all trains, and keeps the datagram that is in none yet.
    fn flush_but<B: Batch>(&mut self, start: usize, len: usize, batch: &mut B, context: &mut Context<'_>) {
        self.flush(batch, context);
        self.sealed.copy_within(start..start + len, 0);
        self.sealed_used = len;
    }
}
